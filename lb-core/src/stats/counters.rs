//! Counters with one writer: the worker that owns them. Anyone may read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{CloseReason, ConnectError, DropReason};
use crate::table::{FrontendKey, Owner};

/// A number that one thread changes and any thread reads.
///
/// A change is a load and a store, both relaxed: no atomic read-modify-write, so a second writer
/// would lose counts. Readers see each counter whole, and two of them a moment apart.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`, wrapping.
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(value, Ordering::Relaxed);
    }

    /// Takes `n` away, stopping at zero: for gauges.
    pub fn sub(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed).saturating_sub(n);
        self.0.store(value, Ordering::Relaxed);
    }

    /// Replaces the value: for gauges.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts for one frontend.
#[derive(Debug)]
pub struct FrontendCounters {
    /// The frontend.
    pub key: FrontendKey,
    /// Whose it was when the counters were made.
    pub owner: Owner,
    /// TCP connections accepted, denied and shed ones too.
    pub connections_opened: Counter,
    /// TCP connections that live now.
    pub connections_active: Counter,
    /// UDP flows created.
    pub flows_opened: Counter,
    /// UDP flows that live now.
    pub flows_active: Counter,
    /// Connections and flows ended, by reason.
    pub closed: [Counter; CloseReason::COUNT],
    /// Bytes received from clients.
    pub bytes_downstream: Counter,
    /// Bytes received from backends.
    pub bytes_upstream: Counter,
    /// Datagrams received from clients.
    pub datagrams_downstream: Counter,
    /// Datagrams received from backends.
    pub datagrams_upstream: Counter,
    /// Datagrams discarded, by reason.
    pub drops: [Counter; DropReason::COUNT],
    /// Tries to reach a backend that failed, by reason; a connection or flow may have several.
    pub connect_errors: [Counter; ConnectError::COUNT],
    /// New connections and flows that got no pin because the pins were full.
    pub affinity_full: Counter,
}

impl FrontendCounters {
    /// All zero.
    pub fn new(key: FrontendKey, owner: Owner) -> FrontendCounters {
        FrontendCounters {
            key,
            owner,
            connections_opened: Counter::default(),
            connections_active: Counter::default(),
            flows_opened: Counter::default(),
            flows_active: Counter::default(),
            closed: Default::default(),
            bytes_downstream: Counter::default(),
            bytes_upstream: Counter::default(),
            datagrams_downstream: Counter::default(),
            datagrams_upstream: Counter::default(),
            drops: Default::default(),
            connect_errors: Default::default(),
            affinity_full: Counter::default(),
        }
    }

    /// The counter of connections and flows that ended for `reason`.
    pub fn closed(&self, reason: CloseReason) -> &Counter {
        &self.closed[reason as usize]
    }

    /// The counter of datagrams discarded for `reason`.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.drops[reason as usize]
    }

    /// The counter of tries to reach a backend that failed for `reason`.
    pub fn connect_failed(&self, reason: ConnectError) -> &Counter {
        &self.connect_errors[reason as usize]
    }

    /// Does a connection or flow live under these counters?
    pub fn is_live(&self) -> bool {
        self.connections_active.value() + self.flows_active.value() > 0
    }
}

/// What one worker counts for itself. On cache lines of its own: workers write theirs at the same
/// time.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Passes of the loop.
    pub turns: Counter,
    /// Readiness events handled.
    pub events: Counter,
    /// Timers fired.
    pub timers: Counter,
    /// When the last turn began, in microseconds of the process's clock.
    pub heartbeat: Counter,
    /// TCP connections that live now.
    pub connections_active: Counter,
    /// UDP flows that live now.
    pub flows_active: Counter,
    /// Descriptors that connections and flows hold now.
    pub descriptors: Counter,
    /// Those of them that flows hold.
    pub flow_descriptors: Counter,
    /// Descriptors that pipes for bulk hold now, spare ones too; two each. Not among
    /// [`WorkerCounters::descriptors`].
    pub pipe_descriptors: Counter,
    /// Receives of bulk that were copied because there was no pipe to splice through.
    pub bulk_copied: Counter,
    /// Waits after which the completion queue was full and the kernel kept more aside.
    pub ring_overflows: Counter,
    /// Submissions that found their queue full and went before their time.
    pub ring_full: Counter,
    /// Receives that ended because no provided buffer was left; each goes on when there are some.
    pub ring_no_buffers: Counter,
    /// Operations cancelled.
    pub ring_cancels: Counter,
    /// Provided buffers that hold bytes on their way now.
    pub ring_buffers: Counter,
    /// Sends and connects under way in the ring now.
    pub ring_in_flight: Counter,
    /// Connections shed because the descriptor budget was spent.
    pub shed_budget: Counter,
    /// Connections shed because accept said EMFILE or ENFILE.
    pub shed_exhausted: Counter,
    /// Times that opening a listener failed.
    pub bind_errors: Counter,
    /// Listening sockets that are open now.
    pub listeners: Counter,
    /// Those of them whose callers wait for memory now.
    pub listeners_waiting: Counter,
    /// Times that a listener's callers had to wait for memory.
    pub accept_waits: Counter,
    /// The memory that copies of latest datagrams take now, in bytes.
    pub copy_bytes: Counter,
    /// Datagrams of which no copy was kept because they were longer than 2 KiB, or that memory was
    /// full.
    pub copies_refused: Counter,
}
