//! Which source addresses may connect.

use std::net::IpAddr;
use std::sync::Arc;

/// The addresses that may connect: everybody, or the given prefixes and nobody else.
///
/// Once it is not [`SourceRanges::any`], a family without a prefix is denied altogether. A clone is
/// cheap. Two values are equal if the same addresses may connect and both or neither are `any`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SourceRanges(Option<Arc<Listed>>);

/// Inclusive ranges, ascending, with a gap between any two.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl SourceRanges {
    /// Everybody.
    pub fn any() -> SourceRanges {
        SourceRanges(None)
    }

    /// Nobody.
    pub fn none() -> SourceRanges {
        SourceRanges::from_prefixes([])
    }

    /// Who is in one of these prefixes (an address and how many of its leading bits count; the
    /// others may be anything).
    ///
    /// A prefix of v4-mapped addresses (::ffff:0:0/96 and longer) is the IPv4 prefix in it. A
    /// prefix longer than its family's addresses admits nobody: a mistake must not open a door.
    pub fn from_prefixes(prefixes: impl IntoIterator<Item = (IpAddr, u8)>) -> SourceRanges {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (address, length) in prefixes {
            match unmapped(address, length) {
                (IpAddr::V4(address), length) if length <= 32 => {
                    let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                    let bits = u32::from(address);
                    v4.push((bits & !host, bits | host));
                }
                (IpAddr::V6(address), length) if length <= 128 => {
                    let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                    let bits = u128::from(address);
                    v6.push((bits & !host, bits | host));
                }
                _ => {}
            }
        }
        SourceRanges(Some(Arc::new(Listed {
            v4: merged(v4, |n| n.checked_add(1)),
            v6: merged(v6, |n| n.checked_add(1)),
        })))
    }

    /// May this address connect? A v4-mapped address is judged as the IPv4 address that it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        let Some(listed) = &self.0 else {
            return true;
        };
        match address.to_canonical() {
            IpAddr::V4(v4) => within(&listed.v4, u32::from(v4)),
            IpAddr::V6(v6) => within(&listed.v6, u128::from(v6)),
        }
    }
}

fn unmapped(address: IpAddr, length: u8) -> (IpAddr, u8) {
    match (address, length.checked_sub(96)) {
        (IpAddr::V6(v6), Some(rest)) => match v6.to_ipv4_mapped() {
            // A length past 128 stays past 32, and is refused as that.
            Some(v4) => (IpAddr::V4(v4), rest),
            None => (address, length),
        },
        _ => (address, length),
    }
}

fn within<N: Ord + Copy>(ranges: &[(N, N)], bits: N) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= bits);
    after > 0 && bits <= ranges[after - 1].1
}

/// Sorted; what overlaps or touches becomes one. `next` is `None` after the last number.
fn merged<N: Ord + Copy>(mut ranges: Vec<(N, N)>, next: impl Fn(N) -> Option<N>) -> Box<[(N, N)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let joined = next(earlier.1).is_none_or(|past| later.0 <= past);
        if joined {
            earlier.1 = earlier.1.max(later.1);
        }
        joined
    });
    ranges.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn any_is_everybody_and_none_is_nobody() {
        for address in ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1"] {
            assert!(SourceRanges::any().contains(ip(address)));
            assert!(!SourceRanges::none().contains(ip(address)));
        }
        assert_ne!(SourceRanges::any(), SourceRanges::none());
    }

    #[test]
    fn a_family_that_is_not_listed_is_denied() {
        let v4 = SourceRanges::from_prefixes([(ip("0.0.0.0"), 0)]);
        assert!(v4.contains(ip("198.51.100.1")) && v4.contains(ip("255.255.255.255")));
        assert!(!v4.contains(ip("2001:db8::1")));
        let v6 = SourceRanges::from_prefixes([(ip("::"), 0)]);
        assert!(v6.contains(ip("2001:db8::1")));
        assert!(!v6.contains(ip("198.51.100.1")));
    }

    #[test]
    fn mapped_addresses_are_ipv4_on_both_sides() {
        let v4 = SourceRanges::from_prefixes([(ip("192.0.2.0"), 24)]);
        assert!(v4.contains(ip("::ffff:192.0.2.7")));
        assert!(!v4.contains(ip("::ffff:192.0.3.7")));
        let mapped = SourceRanges::from_prefixes([(ip("::ffff:192.0.2.0"), 120)]);
        assert_eq!(mapped, v4);
    }

    #[test]
    fn impossible_lengths_admit_nobody() {
        let prefixes = [
            (ip("0.0.0.0"), 33),
            (ip("::"), 129),
            (ip("::ffff:0.0.0.0"), 200),
        ];
        assert_eq!(SourceRanges::from_prefixes(prefixes), SourceRanges::none());
    }

    #[test]
    fn order_and_overlap_do_not_matter() {
        let halves = [
            (ip("10.128.0.0"), 9),
            (ip("10.0.0.9"), 9),
            (ip("10.1.0.0"), 16),
        ];
        let whole = SourceRanges::from_prefixes([(ip("10.0.0.0"), 8)]);
        assert_eq!(SourceRanges::from_prefixes(halves), whole);
    }

    proptest! {
        #[test]
        fn is_the_prefixes_checked_one_by_one(
            v4 in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..12),
            v6 in proptest::collection::vec((any::<u128>(), 0u8..=128), 0..12),
            near in any::<prop::sample::Index>(),
            probes in proptest::collection::vec((any::<u32>(), any::<u128>()), 1..20),
        ) {
            let ranges = SourceRanges::from_prefixes(
                v4.iter().map(|&(a, l)| (Ipv4Addr::from(a).into(), l))
                    .chain(v6.iter().map(|&(a, l)| (Ipv6Addr::from(a).into(), l))),
            );
            let in4 = |p: u32| v4.iter().any(|&(a, l)| {
                (0..l).all(|bit| (a ^ p) >> (31 - bit) & 1 == 0)
            });
            let in6 = |p: u128| v6.iter().any(|&(a, l)| {
                (0..l).all(|bit| (a ^ p) >> (127 - bit) & 1 == 0)
            });
            for (a, b) in probes {
                // Half of the probes lie close to a prefix.
                let a = v4.get(near.index(13)).map_or(a, |p| p.0 ^ (a >> (p.1.saturating_sub(1) & 31)));
                let b = v6.get(near.index(13)).map_or(b, |p| p.0 ^ (b >> (p.1.saturating_sub(1) & 127)));
                prop_assert_eq!(ranges.contains(Ipv4Addr::from(a).into()), in4(a));
                let b = Ipv6Addr::from(b);
                if b.to_ipv4_mapped().is_none() {
                    prop_assert_eq!(ranges.contains(b.into()), in6(b.into()));
                }
            }
        }
    }
}
