//! A hierarchical timing wheel.
//!
//! PURE. Six levels of 64 slots; a slot of level 0 is a tick of one millisecond, a slot of level
//! n + 1 is a whole turn of level n (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels",
//! scheme 7). Arming, moving and cancelling cost O(1); a timer is moved down at most five times.
//! Together the levels span 2.2 years; what is armed beyond that waits in the last slot and is
//! placed anew when it comes round.
//!
//! A timer never fires early, and at most one tick late by the wheel's doing.

use std::num::NonZeroU32;

use crate::chunks::Chunks;
use crate::time::Time;

/// Microseconds in one tick.
const TICK: u64 = 1_000;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 6;
/// Ticks that all levels span together.
const SPAN: u64 = 1 << (BITS * LEVELS as u32);
/// The list of timers whose tick has come and that were not popped yet.
const DUE: usize = LEVELS * SLOTS;
/// The list that an entry is in while it is vacant.
const VACANT: usize = DUE + 1;
/// End of a list.
const NONE: u32 = u32::MAX;

/// Names one armed timer; stale once it fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    generation: NonZeroU32,
}

#[derive(Debug)]
struct Entry<T> {
    tick: u64,
    payload: T,
    prev: u32,
    next: u32,
    generation: NonZeroU32,
    list: u16,
}

/// Timers that carry a `T` each.
#[derive(Debug)]
pub struct Wheel<T> {
    entries: Chunks<Entry<T>>,
    /// First entry of each list; `VACANT` is chained through `next` alone.
    heads: Box<[u32; VACANT + 1]>,
    /// A bit for each slot of a level that holds an entry.
    occupied: [u64; LEVELS],
    /// Every tick up to and including this one has been moved to `DUE`.
    elapsed: u64,
    len: usize,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel that stands at `now`.
    pub fn new(now: Time) -> Wheel<T> {
        Wheel {
            entries: Chunks::new(),
            heads: Box::new([NONE; VACANT + 1]),
            occupied: [0; LEVELS],
            elapsed: now.as_micros() / TICK,
            len: 0,
        }
    }

    /// How many timers are armed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is none armed?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Arms a timer for `at`; one in the past is due at once.
    pub fn arm(&mut self, at: Time, payload: T) -> TimerId {
        let tick = at.as_micros().div_ceil(TICK);
        let index = self.heads[VACANT];
        let (index, generation) = match self.entries.get_mut(index as usize) {
            Some(entry) => {
                self.heads[VACANT] = entry.next;
                entry.tick = tick;
                entry.payload = payload;
                (index, entry.generation)
            }
            None => {
                let generation = NonZeroU32::MIN;
                self.entries.push(Entry {
                    tick,
                    payload,
                    prev: NONE,
                    next: NONE,
                    generation,
                    list: VACANT as u16,
                });
                (self.entries.len() as u32 - 1, generation)
            }
        };
        self.place(index);
        self.len += 1;
        TimerId { index, generation }
    }

    /// Moves an armed timer to `at`; false if it fired or was cancelled before.
    pub fn rearm(&mut self, id: TimerId, at: Time) -> bool {
        if !self.is_armed(id) {
            return false;
        }
        self.unlink(id.index);
        self.entries[id.index as usize].tick = at.as_micros().div_ceil(TICK);
        self.place(id.index);
        true
    }

    /// Takes a timer back; its payload, unless it fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        if !self.is_armed(id) {
            return None;
        }
        self.unlink(id.index);
        Some(self.release(id.index))
    }

    /// The next timer that is due at `now`, disarmed.
    pub fn pop(&mut self, now: Time) -> Option<T> {
        self.advance(now.as_micros() / TICK);
        let index = self.heads[DUE];
        if index == NONE {
            return None;
        }
        self.unlink(index);
        Some(self.release(index))
    }

    /// When to call [`Wheel::pop`] next: at the earliest timer or before it, never after it.
    pub fn next(&self) -> Option<Time> {
        let tick = match self.heads[DUE] {
            NONE => self.next_slot()?.2,
            _ => self.elapsed,
        };
        Some(Time::from_micros(tick * TICK))
    }

    fn is_armed(&self, id: TimerId) -> bool {
        self.entries
            .get(id.index as usize)
            .is_some_and(|entry| entry.generation == id.generation && entry.list != VACANT as u16)
    }

    /// Brings the wheel to `tick`: every timer up to it is in `DUE` afterwards.
    fn advance(&mut self, tick: u64) {
        while let Some((level, slot, start)) = self.next_slot() {
            if start > tick {
                break;
            }
            self.elapsed = start;
            self.empty_slot(level, slot);
        }
        self.elapsed = self.elapsed.max(tick);
    }

    /// The occupied slot that comes first, and the tick at which it starts.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        // A lower level holds only what comes before the next slot of the level above.
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let shift = BITS * level as u32;
        // The slot we stand in comes last: in the top level it holds what is a whole turn away,
        // in every other nothing.
        let after = ((self.elapsed >> shift) as u32 + 1) % SLOTS as u32;
        let ahead = self.occupied[level].rotate_right(after).trailing_zeros();
        let slot = (after + ahead) as usize % SLOTS;
        let turn = 1 << (shift + BITS);
        let mut start = (self.elapsed & !(turn - 1)) + ((slot as u64) << shift);
        if start <= self.elapsed {
            start += turn;
        }
        Some((level, slot, start))
    }

    /// Places every entry of a slot anew: a level lower, or due.
    fn empty_slot(&mut self, level: usize, slot: usize) {
        let list = level * SLOTS + slot;
        let mut index = std::mem::replace(&mut self.heads[list], NONE);
        self.occupied[level] &= !(1 << slot);
        while index != NONE {
            let next = self.entries[index as usize].next;
            self.place(index);
            index = next;
        }
    }

    /// Links an unlinked entry into the list of its tick.
    fn place(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        let list = if tick <= self.elapsed {
            DUE
        } else {
            let tick = tick.min(self.elapsed + (SPAN - 1));
            // The level is that of the highest digit in which the tick differs from now.
            let differs = (tick ^ self.elapsed) | (SLOTS as u64 - 1);
            let level = ((63 - differs.leading_zeros()) / BITS).min(LEVELS as u32 - 1);
            let slot = (tick >> (BITS * level)) as usize % SLOTS;
            self.occupied[level as usize] |= 1 << slot;
            level as usize * SLOTS + slot
        };
        let head = std::mem::replace(&mut self.heads[list], index);
        if let Some(second) = self.entries.get_mut(head as usize) {
            second.prev = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.prev = NONE;
        entry.next = head;
        entry.list = list as u16;
    }

    fn unlink(&mut self, index: u32) {
        let Entry {
            prev, next, list, ..
        } = self.entries[index as usize];
        if let Some(after) = self.entries.get_mut(next as usize) {
            after.prev = prev;
        }
        match self.entries.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => {
                let list = list as usize;
                self.heads[list] = next;
                if next == NONE && list < DUE {
                    self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
                }
            }
        }
    }

    /// Gives an unlinked entry's place back.
    fn release(&mut self, index: u32) -> T {
        let vacant = std::mem::replace(&mut self.heads[VACANT], index);
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        entry.list = VACANT as u16;
        entry.next = vacant;
        self.len -= 1;
        entry.payload
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u64),
        Rearm(usize, u64),
        Cancel(usize),
        Advance(u64, usize),
    }

    /// Microseconds at every scale of the wheel and past its end.
    fn distance() -> impl Strategy<Value = u64> {
        (0u32..50, any::<u64>()).prop_map(|(bits, any)| any & ((1 << bits) - 1))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => distance().prop_map(Step::Arm),
            2 => (any::<usize>(), distance()).prop_map(|(at, d)| Step::Rearm(at, d)),
            2 => any::<usize>().prop_map(Step::Cancel),
            3 => (distance(), 0usize..8).prop_map(|(d, n)| Step::Advance(d, n)),
        ]
    }

    fn tick(time: Time) -> u64 {
        time.as_micros().div_ceil(TICK)
    }

    proptest! {
        /// Against a sorted map of ticks: the same timers fire, none before its tick and all by
        /// it; `next` is never after the earliest.
        #[test]
        fn as_a_sorted_map(start in distance(), steps in prop::collection::vec(step(), 1..120)) {
            let mut now = Time::from_micros(start);
            let mut wheel = Wheel::new(now);
            let mut model: BTreeMap<usize, u64> = BTreeMap::new();
            let mut ids = Vec::new();
            for step in steps {
                match step {
                    Step::Arm(distance) => {
                        let at = now + Duration::from_micros(distance);
                        model.insert(ids.len(), tick(at));
                        ids.push(wheel.arm(at, ids.len()));
                    }
                    Step::Rearm(n, distance) if !ids.is_empty() => {
                        let n = n % ids.len();
                        let at = now + Duration::from_micros(distance);
                        prop_assert_eq!(wheel.rearm(ids[n], at), model.contains_key(&n));
                        model.entry(n).and_modify(|t| *t = tick(at));
                    }
                    Step::Cancel(n) if !ids.is_empty() => {
                        let n = n % ids.len();
                        let expected = model.remove(&n).map(|_| n);
                        prop_assert_eq!(wheel.cancel(ids[n]), expected);
                    }
                    Step::Rearm(..) | Step::Cancel(_) => {}
                    Step::Advance(distance, most) => {
                        now = now + Duration::from_micros(distance);
                        // Not all that is due is popped in one turn.
                        for _ in 0..most {
                            let due = model.values().any(|&t| t * TICK <= now.as_micros());
                            let Some(fired) = wheel.pop(now) else {
                                prop_assert!(!due, "late");
                                break;
                            };
                            let tick = model.remove(&fired);
                            prop_assert!(tick.is_some_and(|t| t * TICK <= now.as_micros()), "early");
                        }
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                prop_assert_eq!(wheel.is_empty(), model.is_empty());
                match (wheel.next(), model.values().min()) {
                    (Some(next), Some(&first)) => prop_assert!(
                        next.as_micros() <= (first * TICK).max(now.as_micros()),
                        "would sleep past the earliest"
                    ),
                    (next, first) => prop_assert!(next.is_none() && first.is_none()),
                }
            }
        }
    }

    #[test]
    fn next_leads_to_every_timer_in_a_bounded_number_of_steps() {
        let mut wheel = Wheel::new(Time::ZERO);
        let far = Time::from_micros(90 * 24 * 3600 * 1_000_000);
        wheel.arm(far, ());
        let mut steps = 0;
        loop {
            let next = wheel.next().expect("it is armed");
            if wheel.pop(next).is_some() {
                assert_eq!(next, far);
                break;
            }
            steps += 1;
            assert!(steps <= LEVELS, "more cascades than levels");
        }
    }

    #[test]
    fn an_entry_is_small() {
        // An idle connection's share of the wheel.
        assert!(size_of::<Entry<u64>>() <= 32);
        assert_eq!(size_of::<Option<TimerId>>(), 8);
    }
}
