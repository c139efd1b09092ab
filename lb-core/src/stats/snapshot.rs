//! The workers' counters added up.

use std::collections::BTreeMap;

use super::{CloseReason, ConnectError, Counter, DropReason, FrontendCounters, WorkerCounters};
use crate::table::{FrontendKey, Owner};

/// Every counter of the data plane at one moment.
///
/// A frontend's counters end with it, once the last connection or flow of it has; one that comes
/// back begins at zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By worker.
    pub workers: Vec<WorkerTotals>,
    /// Over all workers, by frontend and whose it is or was.
    pub frontends: BTreeMap<(FrontendKey, Owner), FrontendTotals>,
}

impl Snapshot {
    pub(crate) fn add(&mut self, counters: &FrontendCounters) {
        let key = (counters.key, counters.owner.clone());
        self.frontends.entry(key).or_default().add(counters);
    }
}

/// One frontend's counters; see [`FrontendCounters`] for what each means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the counter of the same name, documented there"
)]
pub struct FrontendTotals {
    pub connections_opened: u64,
    pub connections_active: u64,
    pub flows_opened: u64,
    pub flows_active: u64,
    pub closed: Totals<{ CloseReason::COUNT }>,
    pub bytes_downstream: u64,
    pub bytes_upstream: u64,
    pub datagrams_downstream: u64,
    pub datagrams_upstream: u64,
    pub drops: Totals<{ DropReason::COUNT }>,
    pub connect_errors: Totals<{ ConnectError::COUNT }>,
    pub affinity_full: u64,
}

impl FrontendTotals {
    fn add(&mut self, counters: &FrontendCounters) {
        // Without `..`, so that no counter is forgotten here.
        let FrontendCounters {
            key: _,
            owner: _,
            connections_opened,
            connections_active,
            flows_opened,
            flows_active,
            closed,
            bytes_downstream,
            bytes_upstream,
            datagrams_downstream,
            datagrams_upstream,
            drops,
            connect_errors,
            affinity_full,
        } = counters;
        self.connections_opened += connections_opened.value();
        self.connections_active += connections_active.value();
        self.flows_opened += flows_opened.value();
        self.flows_active += flows_active.value();
        self.closed.add(closed);
        self.bytes_downstream += bytes_downstream.value();
        self.bytes_upstream += bytes_upstream.value();
        self.datagrams_downstream += datagrams_downstream.value();
        self.datagrams_upstream += datagrams_upstream.value();
        self.drops.add(drops);
        self.connect_errors.add(connect_errors);
        self.affinity_full += affinity_full.value();
    }

    /// Connections and flows that ended for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed.0[reason as usize]
    }

    /// Datagrams discarded for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize]
    }

    /// Tries to reach a backend that failed for `reason`.
    pub fn connect_failed(&self, reason: ConnectError) -> u64 {
        self.connect_errors.0[reason as usize]
    }
}

/// A number for each variant of an enum of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals<const N: usize>([u64; N]);

impl<const N: usize> Default for Totals<N> {
    fn default() -> Self {
        Totals([0; N])
    }
}

impl<const N: usize> Totals<N> {
    fn add(&mut self, counters: &[Counter; N]) {
        for (total, counter) in self.0.iter_mut().zip(counters) {
            *total += counter.value();
        }
    }
}

/// One worker's counters; see [`WorkerCounters`] for what each means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the counter of the same name, documented there"
)]
pub struct WorkerTotals {
    pub turns: u64,
    pub events: u64,
    pub timers: u64,
    pub connections_active: u64,
    pub flows_active: u64,
    pub descriptors: u64,
    pub pipe_descriptors: u64,
    pub bulk_copied: u64,
    pub ring_overflows: u64,
    pub ring_full: u64,
    pub ring_no_buffers: u64,
    pub ring_cancels: u64,
    pub ring_buffers: u64,
    pub ring_in_flight: u64,
    pub shed_budget: u64,
    pub shed_exhausted: u64,
    pub bind_errors: u64,
    pub listeners: u64,
    pub listeners_waiting: u64,
    pub accept_waits: u64,
    pub copy_bytes: u64,
    pub copies_refused: u64,
}

impl From<&WorkerCounters> for WorkerTotals {
    fn from(counters: &WorkerCounters) -> WorkerTotals {
        let WorkerCounters {
            turns,
            events,
            timers,
            // An instant, not a count: reports tell its age.
            heartbeat: _,
            connections_active,
            flows_active,
            descriptors,
            // Part of the line before: the budget's own business.
            flow_descriptors: _,
            pipe_descriptors,
            bulk_copied,
            ring_overflows,
            ring_full,
            ring_no_buffers,
            ring_cancels,
            ring_buffers,
            ring_in_flight,
            shed_budget,
            shed_exhausted,
            bind_errors,
            listeners,
            listeners_waiting,
            accept_waits,
            copy_bytes,
            copies_refused,
        } = counters;
        WorkerTotals {
            turns: turns.value(),
            events: events.value(),
            timers: timers.value(),
            connections_active: connections_active.value(),
            flows_active: flows_active.value(),
            descriptors: descriptors.value(),
            pipe_descriptors: pipe_descriptors.value(),
            bulk_copied: bulk_copied.value(),
            ring_overflows: ring_overflows.value(),
            ring_full: ring_full.value(),
            ring_no_buffers: ring_no_buffers.value(),
            ring_cancels: ring_cancels.value(),
            ring_buffers: ring_buffers.value(),
            ring_in_flight: ring_in_flight.value(),
            shed_budget: shed_budget.value(),
            shed_exhausted: shed_exhausted.value(),
            bind_errors: bind_errors.value(),
            listeners: listeners.value(),
            listeners_waiting: listeners_waiting.value(),
            accept_waits: accept_waits.value(),
            copy_bytes: copy_bytes.value(),
            copies_refused: copies_refused.value(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::testing;

    #[test]
    fn workers_add_up_and_owners_stay_apart() {
        let spec = testing::spec("192.0.2.1:80", &[]);
        let other = Owner {
            name: "other".into(),
            ..spec.owner.clone()
        };
        let counters = |owner: &Owner, n: u64| {
            let counters = FrontendCounters::new(spec.key, owner.clone());
            counters.bytes_upstream.add(n);
            counters.closed(CloseReason::Finished).add(n);
            counters.closed(CloseReason::IdleTimeout).add(1);
            counters.dropped(DropReason::NoFlow).add(n);
            counters.connections_active.add(1);
            counters.connections_active.sub(2);
            counters
        };
        let mut snapshot = Snapshot::default();
        for counters in [
            counters(&spec.owner, 5),
            counters(&spec.owner, 7),
            counters(&other, 100),
        ] {
            snapshot.add(&counters);
        }
        let totals = &snapshot.frontends[&(spec.key, spec.owner)];
        assert_eq!(totals.bytes_upstream, 12);
        assert_eq!(totals.closed(CloseReason::Finished), 12);
        assert_eq!(totals.closed(CloseReason::IdleTimeout), 2);
        assert_eq!(totals.dropped(DropReason::NoFlow), 12);
        assert_eq!(totals.connections_active, 0, "a gauge stops at zero");
        assert_eq!(snapshot.frontends[&(spec.key, other)].bytes_upstream, 100);
    }
}
