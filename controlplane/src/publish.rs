//! The table on its way to the workers: published, numbered, and heard of again.
//!
//! Owned by the control task; nobody else stores a table. What the workers report is the only
//! source of "it listens": [`Publisher::front`] and [`Publisher::hear`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use lb_core::plane::{Handle, ListenerState, Report};
use lb_core::table::{FrontendKey, Radix, Slot, Table};

use crate::control::{Cause, Undated};
use crate::measure;
use crate::reason::Reason;
use crate::status::Front;

/// Publishes tables and remembers what it has to hear back.
pub(crate) struct Publisher {
    plane: Handle,
    table: Arc<Table>,
    report: Report,
    /// The generation in which a frontend got its slot: an older report speaks of another.
    born: BTreeMap<FrontendKey, u64>,
    /// Tables that not every worker runs yet, oldest first.
    underway: VecDeque<Underway>,
}

struct Underway {
    generation: u64,
    /// When the first of its causes came.
    since: Instant,
    /// Those that their source dates.
    causes: Vec<Cause>,
    /// The frontends that it is the first to have.
    begun: Vec<FrontendKey>,
}

impl Publisher {
    /// Goes on where `table` ends, the one that was published last.
    pub(crate) fn new(plane: Handle, table: Arc<Table>) -> Publisher {
        let born = table
            .iter()
            .map(|(_, frontend)| (frontend.key, table.generation));
        Publisher {
            born: born.collect(),
            report: plane.report(),
            plane,
            table,
            underway: VecDeque::new(),
        }
    }

    /// The table published last.
    pub(crate) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Publishes `table`, whose first cause came at `since`, unless it says what the last one says.
    /// `causes`: the changes of endpoints among them.
    pub(crate) fn publish(
        &mut self,
        table: Arc<Table>,
        since: Instant,
        causes: Vec<Result<Cause, Undated>>,
    ) {
        if *table == *self.table {
            return;
        }
        let mut dated = Vec::new();
        for cause in causes {
            match cause {
                Ok(cause) => dated.push(cause),
                Err(undated) => measure::undated(undated.word()),
            }
        }
        let (born, generation) = (&mut self.born, table.generation);
        let mut new = Vec::new();
        Table::diff(&self.table, &table, |_, before, after| {
            match (before, after) {
                (None, Some(begun)) => {
                    born.insert(begun.key, generation);
                    new.push(begun.key);
                }
                // What moved to another slot may be told as begun first.
                (Some(ended), None) if born.get(&ended.key) != Some(&generation) => {
                    born.remove(&ended.key);
                }
                _ => {}
            }
        });
        self.table = Arc::clone(&table);
        self.underway.push_back(Underway {
            generation,
            since,
            causes: dated,
            begun: new,
        });
        self.plane.publish(table);
    }

    /// Takes the workers' report. Returns the frontends of which something may be new, and records
    /// the tables that are now in force in all workers.
    pub(crate) fn hear(&mut self) -> BTreeSet<FrontendKey> {
        let new = self.plane.report();
        let old = std::mem::replace(&mut self.report, new);
        let mut slots = BTreeSet::new();
        let nothing = Radix::new();
        for (i, worker) in self.report.workers.iter().enumerate() {
            let before = old
                .workers
                .get(i)
                .map_or(&nothing, |worker| &worker.listeners);
            Radix::diff(before, &worker.listeners, |slot, _, _| {
                slots.insert(Slot(slot));
            });
        }
        let mut news: BTreeSet<FrontendKey> = slots
            .into_iter()
            .filter_map(|slot| Some(self.table.get(slot)?.key))
            .collect();
        let running = self.report.generation();
        while let Some(table) = self
            .underway
            .pop_front_if(|table| table.generation <= running)
        {
            let now = Instant::now();
            measure::programmed(now - table.since);
            for cause in table.causes {
                measure::endpoints_programmed(cause.elapsed(now));
            }
            news.extend(table.begun);
        }
        news
    }

    /// How the frontend at `slot` stands, by the report heard last. Without the address: whether
    /// that is on the machine is another matter.
    pub(crate) fn front(&self, key: &FrontendKey, slot: Slot) -> Front {
        let Some(frontend) = self.table.get(slot).filter(|frontend| frontend.key == *key) else {
            return Front::Waiting;
        };
        if self
            .born
            .get(key)
            .is_none_or(|born| *born > self.report.generation())
        {
            return Front::Waiting;
        }
        match (frontend.pool.has_usable(), self.report.listener(slot)) {
            // An open listener that is to close is still open.
            (_, ListenerState::Listening) => Front::Open,
            (true, ListenerState::Closed | ListenerState::Pending) => Front::Waiting,
            (true, ListenerState::Failed(error)) => Front::Failed(Reason::NotListening {
                frontend: *key,
                problem: error.to_string().into(),
            }),
            (true, ListenerState::OverLimit) => Front::Failed(Reason::DescriptorLimit {
                frontend: *key,
                limit: descriptor_limit(),
            }),
            (false, _) => Front::Closed,
        }
    }
}

/// RLIMIT_NOFILE of this process; the data plane raises it at its start.
fn descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}
