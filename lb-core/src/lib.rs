//! Placeholder until the crate map is written.
pub mod balance;
pub mod flow;
pub mod plane;
pub mod stats;
pub mod table;
pub mod time;
