//! What the workers count.
//!
//! Each worker owns its counters and is their only writer; [`Snapshot`] adds them up for whoever
//! asks, and costs the workers nothing.

mod counters;
mod reason;

pub use counters::{Counter, FrontendCounters, WorkerCounters};
pub use reason::{CloseReason, DropReason};
