//! Maglev hashing (Eisenbud et al., NSDI 2016, s3.4): every backend walks its own permutation of a
//! prime number of places and takes the next free one at its turn.
//!
//! The paper's M > 100 N moves 1.3 to 3.9 % of other backends' keys at a change (measured); 1,000
//! places per backend move less than 1 % and share within 1 %. A key's place is its hash modulo M,
//! so all keys may move where M itself changes: the sizes are few and far apart for that reason.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Member;

/// The most backends of a Maglev pool, usable or not: 2 MiB of table, tens of milliseconds to build.
pub const MAX_BACKENDS: usize = 1_024;

/// (Backends up to, places): places are prime and at least 1,000 per backend.
const SIZES: [(usize, usize); 3] = [(16, 16_411), (128, 131_101), (MAX_BACKENDS, 1_048_583)];

/// A free place while the table is built. No backend has this number: they end at `MAX_BACKENDS`.
const FREE: u16 = u16::MAX;

/// Unrelated places tried for a skipped key before the whole pool is searched.
const PROBES: u64 = 16;

#[derive(Clone, Debug)]
pub(super) struct Maglev {
    /// Positions in the pool's list.
    places: Box<[u16]>,
    /// Usable backends, for the search that ends an unlucky pick.
    usable: Box<[u16]>,
}

impl Maglev {
    /// `size` counts the unusable backends as well: one that drains must not change M.
    pub(super) fn new(members: &[Member], size: usize) -> Maglev {
        let usable = members.iter().map(|m| m.index as u16).collect();
        let places = if members.is_empty() {
            Box::default()
        } else {
            fill(members, places_for(size))
        };
        Maglev { places, usable }
    }

    pub(super) fn pick(&self, hash: u64, skip: impl Fn(usize) -> bool) -> Option<usize> {
        if self.usable.is_empty() {
            return None;
        }
        let mut hash = hash;
        for _ in 0..PROBES {
            let place = hash % self.places.len() as u64;
            let index = usize::from(self.places[place as usize]);
            if !skip(index) {
                return Some(index);
            }
            hash = scramble(hash);
        }
        let start = (hash % self.usable.len() as u64) as usize;
        let (before, after) = self.usable.split_at(start);
        let mut rest = after.iter().chain(before).map(|&i| usize::from(i));
        rest.find(|&i| !skip(i))
    }
}

#[cfg(test)]
impl Maglev {
    /// The largest deviation of a backend's places from an equal share, as a fraction of it.
    pub(super) fn imbalance(&self, backends: usize) -> f64 {
        let mut counts = vec![0u32; backends];
        for &i in &self.places {
            counts[usize::from(i)] += 1;
        }
        let share = self.places.len() as f64 / backends as f64;
        let deviations = counts.iter().map(|&c| (f64::from(c) - share).abs() / share);
        deviations.fold(0.0, f64::max)
    }
}

fn places_for(size: usize) -> usize {
    let fitting = SIZES.iter().find(|(most, _)| size <= *most);
    fitting.unwrap_or(&SIZES[SIZES.len() - 1]).1
}

/// A backend's walk over the places.
struct Walk {
    index: u16,
    next: usize,
    step: usize,
}

impl Walk {
    /// Takes the next free place. Only called while one is free; the walk meets every place,
    /// because its step and the prime number of places have no common factor.
    fn take(&mut self, places: &mut [u16]) {
        loop {
            let place = self.next;
            self.next += self.step;
            if self.next >= places.len() {
                self.next -= places.len();
            }
            if places[place] == FREE {
                places[place] = self.index;
                return;
            }
        }
    }
}

fn fill(members: &[Member], size: usize) -> Box<[u16]> {
    let mut places = vec![FREE; size].into_boxed_slice();
    let mut walks: Vec<Walk> = members
        .iter()
        .map(|m| Walk {
            index: m.index as u16,
            next: (m.seed.0 % size as u64) as usize,
            step: (m.seed.1 % (size as u64 - 1)) as usize + 1,
        })
        .collect();
    if members.iter().all(|m| m.weight == members[0].weight) {
        let count = walks.len();
        for turn in 0..size {
            walks[turn % count].take(&mut places);
        }
        return places;
    }
    // Stride scheduling: whoever has had the least for its weight is next. The first turn comes
    // after half a stride (Webster's rounding, which favours neither heavy nor light), and a heap
    // keeps a pool of one heavy and many light backends from costing a round of all per place.
    const STRIDE: u64 = 1 << 40;
    let stride = |i: usize| STRIDE / u64::from(members[i].weight);
    let mut turns: BinaryHeap<_> = (0..walks.len())
        .map(|i| Reverse((stride(i) / 2, i)))
        .collect();
    for _ in 0..size {
        // The heap holds every walk and walks are not empty; `None` would end the loop early.
        let Some(mut turn) = turns.peek_mut() else {
            break;
        };
        let Reverse((had, i)) = *turn;
        *turn = Reverse((had + stride(i), i));
        walks[i].take(&mut places);
    }
    places
}

/// The finalizer of splitmix64: another place for a key whose own is skipped.
fn scramble(hash: u64) -> u64 {
    let x = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_prime_and_a_thousand_times_the_backends() {
        for (backends, places) in SIZES {
            assert!(places >= 1_000 * backends);
            assert!(
                (2..)
                    .take_while(|d| d * d <= places)
                    .all(|d| places % d != 0)
            );
        }
        assert!(MAX_BACKENDS < usize::from(FREE));
    }

    #[test]
    fn every_place_is_taken_in_proportion_to_weight() {
        let weights = [1u16, 2, 3, 10, 100];
        let members: Vec<Member> = (0u32..)
            .zip(weights)
            .map(|(index, weight)| Member {
                index,
                weight,
                seed: (scramble(u64::from(index)), scramble(u64::from(index) + 99)),
            })
            .collect();
        let maglev = Maglev::new(&members, 5);
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for m in &members {
            let count = maglev.places.iter().filter(|&&i| u32::from(i) == m.index);
            let share = maglev.places.len() as f64 * f64::from(m.weight) / total;
            assert!((count.count() as f64 - share).abs() <= 1.5, "{m:?}");
        }
    }
}
