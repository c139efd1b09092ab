//! How the rest of the process talks to the data plane.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::Chosen;
use super::memory;
use super::watchers::Watchers;
use crate::stats::{Snapshot, WorkerTotals};
use crate::sys::clock;
use crate::table::Table;
use crate::time::Time;
use crate::worker::{Budget, Published, Report, Shared, WorkerReport};

/// Talks to a running [`Plane`](super::Plane); from any thread, and of no effect once it has stopped.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) budget: Budget,
    pub(super) watchers: Arc<Watchers>,
    pub(super) engine: Chosen,
    pub(super) memory: Arc<memory::Watch>,
}

impl Handle {
    /// Which I/O driver runs, and why.
    pub fn engine(&self) -> &Chosen {
        &self.0.engine
    }

    /// What the last look at memory found; ample, of nothing known, before the first and where
    /// nobody looks.
    pub fn memory(&self) -> memory::Memory {
        self.0.memory.seen()
    }

    /// Calls `callback` whenever memory becomes more or less scarce, from the thread that looks:
    /// the next look waits for it, workers do not.
    pub fn on_memory(&self, callback: Box<dyn Fn(&memory::Memory) + Send + Sync>) {
        self.0.memory.on_change(Arc::from(callback));
    }

    /// Hands `table` to the workers; each goes over to it at its next turn. A table published
    /// before a worker came to the last one takes that one's place.
    pub fn publish(&self, table: Arc<Table>) {
        let shared = &self.0.shared;
        let plan = self.0.budget.plan(&table);
        shared.announce(|| shared.published.store(Arc::new(Published { table, plan })));
    }

    /// What every worker runs now.
    pub fn report(&self) -> Report {
        let shared = &self.0.shared;
        let now = clock::now();
        let workers = shared.states.iter().zip(shared.counters.iter()).enumerate();
        let workers = workers.map(|(worker, (state, counters))| {
            let state = state.load();
            Arc::new(WorkerReport {
                worker,
                generation: state.generation,
                heartbeat: now.since(Time::from_micros(counters.heartbeat.value())),
                listeners: state.listeners.clone(),
            })
        });
        Report {
            workers: workers.collect(),
        }
    }

    /// Calls `callback` after every change of the report, from a thread of its own; several
    /// changes may make one call. Workers do not wait for it, other callbacks do.
    pub fn on_change(&self, callback: Box<dyn Fn() + Send + Sync>) {
        self.0.watchers.lock().callbacks.push(Arc::from(callback));
        // What changed before it was there is told too.
        self.0.shared.reporter.unpark();
    }

    /// Blocks until every worker runs `generation` (or a later one) in full, each listener being
    /// open or known not to be; false if `timeout` passes first.
    pub fn wait(&self, generation: u64, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let watchers = &self.0.watchers;
        let mut state = watchers.lock();
        while self.report().generation() < generation {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = watchers.wait(state, left);
        }
        true
    }

    /// Every counter now.
    pub fn stats(&self) -> Snapshot {
        let shared = &self.0.shared;
        let mut snapshot = Snapshot {
            workers: shared
                .counters
                .iter()
                .map(|c| WorkerTotals::from(&**c))
                .collect(),
            ..Snapshot::default()
        };
        for state in &shared.states {
            let state = state.load();
            state
                .counters
                .iter()
                .for_each(|(_, counters)| snapshot.add(counters));
            state
                .retired
                .iter()
                .for_each(|counters| snapshot.add(counters));
        }
        snapshot
    }

    /// Takes no new work from now on, and ends at `deadline` from now what lives then; a later
    /// call moves the end. Who has finished its TCP handshake is still served: listeners close a
    /// quarter of a second later, when handshakes under way have ended too.
    pub fn drain(&self, deadline: Duration) {
        let shared = &self.0.shared;
        let until = (clock::now() + deadline)
            .as_micros()
            .min(Shared::NO_DRAIN - 1);
        shared.announce(|| shared.drain_until.store(until, Ordering::Release));
    }

    /// Has a drain ended: no listener, no connection, no flow?
    pub fn is_drained(&self) -> bool {
        self.0
            .shared
            .states
            .iter()
            .all(|state| state.load().drained)
    }

    /// How many connections and flows live now.
    pub fn active(&self) -> (u64, u64) {
        let counters = self.0.shared.counters.iter();
        counters.fold((0, 0), |(connections, flows), worker| {
            (
                connections + worker.connections_active.value(),
                flows + worker.flows_active.value(),
            )
        })
    }
}
