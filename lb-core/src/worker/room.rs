//! What memory is left for new work, and which idle connections go when there is none
//! ([`crate::plane::memory`] says when).

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use crate::plane::memory::{Level, Order};
use crate::slab::{Key, Slab};
use crate::stats::WorkerCounters;
use crate::time::Time;

/// A connection that moved a byte less than this ago is not idle.
const IDLE: Duration = Duration::from_secs(1);
/// Connections looked at in one turn, at some 10 to 100 ns each.
const LOOKS_PER_TURN: u32 = 4_096;
/// Connections closed in one turn, at some 20 us each.
const CLOSES_PER_TURN: usize = 64;

/// The last order of memory, as one worker follows it.
#[derive(Debug)]
pub(crate) struct Room {
    order: Arc<Order>,
    /// So many connections and flows may live here until the next order.
    ceiling: u64,
}

impl Room {
    pub(super) fn new() -> Room {
        Room {
            order: Arc::new(Order::NONE),
            ceiling: u64::MAX,
        }
    }

    /// Is `order` another than the last? Then it holds from now on.
    pub(super) fn follow(&mut self, order: &Arc<Order>, counters: &WorkerCounters) -> bool {
        if Arc::ptr_eq(&self.order, order) {
            return false;
        }
        self.order = Arc::clone(order);
        self.ceiling = live(counters).saturating_add(order.growth);
        true
    }

    /// Is there memory for one more connection or flow?
    pub(crate) fn has_place(&self, counters: &WorkerCounters) -> bool {
        self.order.level == Level::Ample && live(counters) < self.ceiling
    }

    /// How many idle connections are to go.
    pub(super) fn to_close(&self) -> usize {
        self.order.close
    }

    /// May a connection go that has been as it is since then? `stalled`: bytes wait in it.
    pub(crate) fn may_go(&self, now: Time, since: Time, stalled: bool) -> bool {
        self.order.close > 0 && (stalled || !self.order.stalled) && now.since(since) >= IDLE
    }
}

fn live(counters: &WorkerCounters) -> u64 {
    counters.connections_active.value() + counters.flows_active.value()
}

/// Finds those that have been idle for the longest, a piece in each turn, and hands them out a few
/// at a time.
#[derive(Debug, Default)]
pub(crate) struct Shedder {
    /// How many are wanted of the pass under way; 0: none is.
    wanted: usize,
    /// The place to look at next.
    next: u32,
    /// The oldest of those seen in this pass, the youngest of them on top.
    found: BinaryHeap<(Time, Key)>,
    /// Of the pass before, the oldest last.
    doomed: Vec<Key>,
}

impl Shedder {
    /// `count` are to go. Nothing new while a pass is under way: its end will tell.
    pub(crate) fn begin(&mut self, count: usize) {
        if !self.is_busy() {
            self.wanted = count;
            self.next = 0;
        }
    }

    /// Is there something to do that no event will tell of?
    pub(crate) fn is_busy(&self) -> bool {
        self.wanted > 0 || !self.doomed.is_empty()
    }

    /// Looks on. `since` says of an idle one since when it has been.
    pub(crate) fn look<T>(&mut self, slab: &Slab<T>, since: impl Fn(&T) -> Option<Time>) {
        if self.wanted == 0 {
            return;
        }
        let end = self.next.saturating_add(LOOKS_PER_TURN).min(slab.places());
        for index in self.next..end {
            if let Some((key, value)) = slab.at(index)
                && let Some(since) = since(value)
            {
                self.found.push((since, key));
                if self.found.len() > self.wanted {
                    self.found.pop();
                }
            }
        }
        self.next = end;
        if end >= slab.places() {
            self.wanted = 0;
            let oldest_first = std::mem::take(&mut self.found).into_sorted_vec();
            self.doomed = oldest_first.into_iter().rev().map(|(_, key)| key).collect();
        }
    }

    /// The next that is to go in this turn, of which `before` have gone.
    pub(crate) fn next_doomed(&mut self, before: usize) -> Option<Key> {
        match before < CLOSES_PER_TURN {
            true => self.doomed.pop(),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(level: Level, growth: u64, stalled: bool) -> Arc<Order> {
        let close = if level == Level::Critical { 10 } else { 0 };
        Arc::new(Order {
            level,
            growth,
            close,
            stalled,
        })
    }

    #[test]
    fn a_worker_grows_by_no_more_than_it_was_told() {
        let counters = WorkerCounters::default();
        let mut room = Room::new();
        counters.connections_active.add(100);
        counters.flows_active.add(50);
        assert!(room.has_place(&counters));
        let narrow = order(Level::Ample, 3, false);
        assert!(room.follow(&narrow, &counters));
        assert!(!room.follow(&narrow, &counters), "it is known");
        counters.connections_active.add(2);
        assert!(room.has_place(&counters));
        counters.flows_active.add(1);
        assert!(!room.has_place(&counters));
        counters.connections_active.sub(1);
        assert!(room.has_place(&counters), "what ends makes room");
        for level in [Level::Scarce, Level::Critical] {
            assert!(room.follow(&order(level, 0, false), &counters));
            assert!(!room.has_place(&counters));
        }
        assert!(room.follow(&order(Level::Ample, u64::MAX, false), &counters));
        assert!(room.has_place(&counters));
    }

    #[test]
    fn who_may_go() {
        let counters = WorkerCounters::default();
        let mut room = Room::new();
        let now = Time::from_micros(10_000_000);
        let (idle, busy) = (Time::from_micros(9_000_000), Time::from_micros(9_000_001));
        assert!(!room.may_go(now, idle, true), "nothing is short");
        room.follow(&order(Level::Critical, 0, false), &counters);
        assert!(room.may_go(now, idle, false) && room.may_go(now, idle, true));
        assert!(!room.may_go(now, busy, true));
        room.follow(&order(Level::Critical, 0, true), &counters);
        assert!(!room.may_go(now, idle, false), "it has no buffers to give");
        assert!(room.may_go(now, idle, true));
        room.follow(&order(Level::Scarce, 0, false), &counters);
        assert!(!room.may_go(now, idle, true));
    }

    proptest! {
        /// Against a sort of all: the same ones go, the oldest first, none is looked at twice and
        /// no turn does more than its share.
        #[test]
        fn the_oldest_go_first(
            ages in prop::collection::vec(prop::option::of(0u64..500), 0..10_000),
            wanted in 1usize..300,
        ) {
            let mut slab = Slab::new();
            let keys: Vec<Key> = ages.iter().map(|age| slab.insert(*age)).collect();
            let mut expected: Vec<(u64, Key)> = ages.iter().zip(&keys)
                .filter_map(|(age, key)| Some(((*age)?, *key)))
                .collect();
            expected.sort();
            expected.truncate(wanted);
            let mut shedder = Shedder::default();
            shedder.begin(wanted);
            let (mut gone, mut turns) = (Vec::new(), 0);
            while shedder.is_busy() {
                shedder.begin(wanted + 1);
                let looks = std::cell::Cell::new(0);
                shedder.look(&slab, |age| {
                    looks.set(looks.get() + 1);
                    age.map(Time::from_micros)
                });
                prop_assert!(looks.get() <= LOOKS_PER_TURN);
                let mut now = 0;
                while let Some(key) = shedder.next_doomed(now) {
                    gone.push((slab.get(key).copied().flatten().unwrap_or(0), key));
                    now += 1;
                }
                prop_assert!(now <= CLOSES_PER_TURN);
                turns += 1;
                prop_assert!(turns < 100);
            }
            prop_assert_eq!(gone, expected);
        }
    }
}
