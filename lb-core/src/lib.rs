//! Placeholder until the crate map is written.
#![allow(dead_code)]
pub mod affinity;
pub mod balance;
pub mod conn;
pub mod flow;
pub mod plane;
pub mod slab;
pub mod stats;
mod sys;
pub mod table;
pub mod time;
pub mod timer;
mod worker;
