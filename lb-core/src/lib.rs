//! Placeholder until the crate map is written.
pub mod affinity;
pub mod balance;
pub mod plane;
pub mod stats;
pub mod table;
pub mod time;
