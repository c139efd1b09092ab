//! What the workers count.
//!
//! Each worker owns its counters and is their only writer; a [`Snapshot`] adds them up for whoever
//! asks, and costs the workers nothing.

mod counters;
mod reason;
mod snapshot;

pub use counters::{Counter, FrontendCounters, WorkerCounters};
pub use reason::{CloseReason, ConnectError, DropReason};
pub use snapshot::{FrontendTotals, Snapshot, Totals, WorkerTotals};
