//! How the process's descriptors are shared out between listeners and traffic.
//!
//! PURE. Worked out once for each generation, where it is published, so that every worker serves
//! the same frontends.
//!
//! ```text
//! limit = reserve + 3 per worker + workers x listeners + 2 per connection + 1 per flow
//! ```
//!
//! Listeners may take at most three quarters of what the reserve leaves: a quarter is for traffic,
//! whatever the table asks for.

use std::collections::HashSet;
use std::sync::Arc;

use crate::table::{Slot, Table};

/// Descriptors that a worker needs for itself: epoll, eventfd, the spare for accept.
const PER_WORKER: u64 = 3;
/// Traffic has at least one in this many of the descriptors that are shared out.
const TRAFFIC_SHARE: u64 = 4;
/// Per worker, less than this for traffic and listeners is no start: one listener and a few
/// connections.
const LEAST_PER_WORKER: u64 = 8;

/// What there is to share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    workers: u64,
    shared: u64,
}

/// The limit of open descriptors is too low to start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooFew {
    /// The least limit that will do.
    pub(crate) needed: u64,
}

/// Who is served, and what is left for traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Frontends that get no listener; `None`: all fit.
    refused: Option<Arc<HashSet<Slot>>>,
    /// Descriptors that all connections and flows may hold together.
    pub(crate) traffic: u64,
}

impl Budget {
    /// The budget of a process that may open `limit` descriptors and keeps `reserved` of them, or
    /// a quarter if that is less, for what is not the data plane.
    pub(crate) fn new(limit: u64, workers: usize, reserved: u64) -> Result<Budget, TooFew> {
        let workers = workers as u64;
        let least = workers * (PER_WORKER + LEAST_PER_WORKER);
        let left = limit.saturating_sub(reserved.min(limit / 4));
        if left < least {
            let needed = (least + reserved).min(least + (least - 1) / 3);
            return Err(TooFew { needed });
        }
        Ok(Budget {
            workers,
            shared: left - workers * PER_WORKER,
        })
    }

    /// How many frontends can have a listener in every worker.
    fn frontends(&self) -> u64 {
        (self.shared - self.shared / TRAFFIC_SHARE) / self.workers
    }

    /// Who of `table` is served: all while they fit, else the oldest (lowest precedence, then
    /// lowest key).
    ///
    /// A frontend that has no usable backend counts as the others do: were it not so, its recovery
    /// would close the listener of another.
    pub(crate) fn plan(&self, table: &Table) -> Plan {
        let most = self.frontends();
        let served = most.min(table.len() as u64);
        let traffic = self.shared - served * self.workers;
        if table.len() as u64 <= most {
            let refused = None;
            return Plan { refused, traffic };
        }
        let mut order: Vec<_> = table
            .iter()
            .map(|(s, f)| (f.precedence, f.key, s))
            .collect();
        let (_, first_refused, _) = order.select_nth_unstable(served as usize);
        let first_refused = *first_refused;
        let refused = order.iter().filter(|&&entry| entry >= first_refused);
        Plan {
            refused: Some(Arc::new(refused.map(|&(_, _, slot)| slot).collect())),
            traffic,
        }
    }
}

impl Plan {
    /// Does the frontend at `slot` get a listener?
    pub(crate) fn serves(&self, slot: Slot) -> bool {
        self.refused
            .as_ref()
            .is_none_or(|refused| !refused.contains(&slot))
    }

    /// The slots that one of the two serves and the other does not.
    pub(crate) fn differences(&self, other: &Plan) -> Vec<Slot> {
        let (mine, theirs) = (self.refused.as_deref(), other.refused.as_deref());
        match (mine, theirs) {
            (None, None) => Vec::new(),
            (Some(one), None) | (None, Some(one)) => one.iter().copied().collect(),
            (Some(a), Some(b)) => a.symmetric_difference(b).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::testing;

    /// (limit, workers, reserved) -> frontends that fit, descriptors for traffic beside 1 frontend
    #[test]
    fn shares() {
        let cases = [
            ((20_000, 1, 64), Some((14_950, 19_932))),
            ((20_000, 2, 64), Some((7_474, 19_928))),
            ((1_024, 2, 64), Some((358, 952))),
            ((256, 2, 64), Some((70, 184))),
            // The reserve is never more than a quarter.
            ((100, 2, 64), Some((26, 67))),
            ((29, 2, 64), Some((6, 14))),
            ((28, 2, 64), None),
            ((0, 1, 0), None),
        ];
        for ((limit, workers, reserved), expected) in cases {
            let budget = Budget::new(limit, workers, reserved);
            let table = testing::table(&[testing::spec("192.0.2.1:80", &["10.0.0.1:80"])]);
            let found = budget.ok().map(|b| (b.frontends(), b.plan(&table).traffic));
            assert_eq!(found, expected, "limit {limit}, {workers} workers");
        }
    }

    #[test]
    fn the_needed_limit_is_the_least_that_will_do() {
        for workers in 1..40 {
            for reserved in [0, 10, 64, 1_000] {
                let TooFew { needed } = Budget::new(1, workers, reserved).expect_err("too few");
                assert!(Budget::new(needed, workers, reserved).is_ok());
                assert!(Budget::new(needed - 1, workers, reserved).is_err());
            }
        }
    }

    #[test]
    fn the_oldest_are_served_and_traffic_keeps_its_share() {
        let budget = Budget::new(100, 2, 10).expect("enough");
        let most = budget.frontends();
        // Given newest first, so that slots and precedence disagree.
        let specs: Vec<_> = (0..most as u16 + 5)
            .map(|i| {
                let mut spec = testing::spec(&format!("192.0.2.1:{}", 1_000 + i), &["10.0.0.1:80"]);
                spec.precedence = u64::from(u16::MAX - i) / 2;
                spec
            })
            .collect();
        let table = testing::table(&specs);
        let plan = budget.plan(&table);
        let mut order: Vec<_> = table.iter().collect();
        order.sort_by_key(|(_, f)| (f.precedence, f.key));
        for (rank, (slot, _)) in order.into_iter().enumerate() {
            assert_eq!(plan.serves(slot), (rank as u64) < most, "rank {rank}");
        }
        assert!(plan.traffic >= budget.shared / TRAFFIC_SHARE);
        assert_eq!(plan.traffic, budget.shared - most * budget.workers);

        let fits = budget.plan(&testing::table(&specs[..most as usize]));
        assert_eq!(fits.refused, None);
        assert_eq!(plan.differences(&fits).len(), 5);
        assert_eq!(fits.differences(&plan).len(), 5);
        assert!(plan.differences(&plan.clone()).is_empty());
    }
}
