//! Addresses that nobody holds, as intervals: lowest first, O(log n) each, whatever the size of
//! the pools. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::pool::{Range, address, number};
use crate::object::Family;

/// The free addresses of one pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Free {
    v4: Intervals,
    v6: Intervals,
}

impl Free {
    /// All of `ranges`.
    pub(super) fn new(ranges: &[Range]) -> Free {
        let mut free = Free::default();
        for range in ranges {
            free.side(range.family())
                .insert(number(range.first()), number(range.last()));
        }
        free
    }

    /// The lowest one.
    pub(super) fn lowest(&self, family: Family) -> Option<IpAddr> {
        let intervals = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        intervals
            .0
            .keys()
            .next()
            .map(|&first| address(family, first))
    }

    /// Takes one out; no effect if it is not there.
    pub(super) fn remove(&mut self, address: IpAddr) {
        self.side(Family::of(address)).remove(number(address));
    }

    /// Puts one back. It must not be there.
    pub(super) fn insert(&mut self, address: IpAddr) {
        self.side(Family::of(address))
            .insert(number(address), number(address));
    }

    fn side(&mut self, family: Family) -> &mut Intervals {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// First -> last; neither overlapping nor touching.
#[derive(Clone, Debug, Default)]
struct Intervals(BTreeMap<u128, u128>);

impl Intervals {
    fn remove(&mut self, n: u128) {
        let Some((&first, &last)) = self.0.range(..=n).next_back() else {
            return;
        };
        if last < n {
            return;
        }
        self.0.remove(&first);
        if first < n {
            self.0.insert(first, n - 1);
        }
        if n < last {
            self.0.insert(n + 1, last);
        }
    }

    fn insert(&mut self, mut first: u128, mut last: u128) {
        if let Some((&before, &end)) = self.0.range(..first).next_back()
            && end.checked_add(1) == Some(first)
        {
            first = before;
        }
        if let Some(after) = last.checked_add(1)
            && let Some(end) = self.0.remove(&after)
        {
            last = end;
        }
        self.0.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_set(steps in proptest::collection::vec((any::<bool>(), 0u8..16), 0..200)) {
            let range: Range = "192.0.2.0/28".parse().expect("a range");
            let mut free = Free::new(&[range]);
            let mut model: BTreeSet<u8> = (0..16).collect();
            for (put, n) in steps {
                let address = IpAddr::from([192, 0, 2, n]);
                if put {
                    if model.insert(n) {
                        free.insert(address);
                    }
                } else {
                    model.remove(&n);
                    free.remove(address);
                }
                let lowest = model.first().map(|&n| IpAddr::from([192, 0, 2, n]));
                prop_assert_eq!(free.lowest(Family::V4), lowest);
                let expanded: BTreeSet<u8> = free
                    .v4
                    .0
                    .iter()
                    .flat_map(|(&first, &last)| first..=last)
                    .map(|n| n as u8 & 15)
                    .collect();
                prop_assert_eq!(&expanded, &model);
                let touching = free.v4.0.values().any(|last| free.v4.0.contains_key(&(last + 1)));
                prop_assert!(!touching, "intervals are merged");
            }
        }
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let mut all = Intervals::default();
        all.insert(0, u128::MAX);
        all.remove(u128::MAX);
        all.remove(0);
        all.insert(u128::MAX, u128::MAX);
        all.insert(0, 0);
        assert_eq!(all.0, BTreeMap::from([(0, u128::MAX)]));
    }
}
