//! The ranges that addresses are given from. PURE.
//!
//! A range is a CIDR (`192.0.2.0/28`) or a first and a last address (`192.0.2.10-192.0.2.20`), of
//! either family. **Every** address of a range is given, the first and the last of an IPv4 CIDR
//! too: a VIP is a host address (/32), so network and broadcast addresses of a routed range are as
//! good as any other. Where a range is the very subnet of a link, write `FIRST-LAST` without them.
//!
//! Ranges are kept as two numbers and never enumerated: an IPv6 /48 costs what a /128 costs.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use crate::object::Family;

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a range or a set of pools is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Neither form.
    #[error(
        "pool {text:?} is no range: write a CIDR (192.0.2.0/28) or FIRST-LAST (192.0.2.10-192.0.2.20)"
    )]
    Syntax {
        /// As written.
        text: String,
    },
    /// A CIDR with bits set behind its prefix.
    #[error(
        "pool {text:?} has host bits set; did you mean {meant}, or the single address {single}?"
    )]
    HostBits {
        /// As written.
        text: String,
        /// The network that contains it.
        meant: String,
        /// The address alone, as a CIDR.
        single: String,
    },
    /// FIRST and LAST of two families.
    #[error("pool {text:?} mixes IPv4 and IPv6; give each family its own pool")]
    Mixed {
        /// As written.
        text: String,
    },
    /// FIRST after LAST.
    #[error("pool {text:?} ends before it begins; swap the two addresses")]
    Backwards {
        /// As written.
        text: String,
    },
    /// Addresses that no client could dial.
    #[error("pool {text:?} contains {what} addresses, which cannot be a VIP")]
    Unusable {
        /// As written.
        text: String,
        /// Which kind.
        what: &'static str,
    },
    /// Two pools hold the same address.
    #[error(
        "pools {first} ({first_range}) and {second} ({second_range}) overlap; an address belongs to one pool"
    )]
    Overlap {
        /// The earlier pool.
        first: Arc<str>,
        /// Its range.
        first_range: Range,
        /// The later pool.
        second: Arc<str>,
        /// Its range.
        second_range: Range,
    },
    /// Two pools of one name.
    #[error("two pools are named {name:?}; give one of them another name")]
    DuplicateName {
        /// The name.
        name: Arc<str>,
    },
}

/// The address as a number, comparable inside its family.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`number`].
pub(super) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Numbers of this family come from IPv4 ranges alone and fit 32 bits.
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

impl Range {
    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address, part of the range.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Is `address` in it?
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && self.first <= address && address <= self.last
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    fn new(text: &str, first: IpAddr, last: IpAddr) -> Result<Range, PoolError> {
        let text = || clip(text);
        if Family::of(first) != Family::of(last) {
            return Err(PoolError::Mixed { text: text() });
        }
        if last < first {
            return Err(PoolError::Backwards { text: text() });
        }
        let range = Range { first, last };
        match unusable(&range) {
            Some(what) => Err(PoolError::Unusable { text: text(), what }),
            None => Ok(range),
        }
    }
}

/// Text of a person, cut so that a message stays a line.
fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Which addresses of a range can never be dialled (RFC 6890), if any.
fn unusable(range: &Range) -> Option<&'static str> {
    const V4: [(&str, &str, &str); 4] = [
        ("0.0.0.0", "0.255.255.255", "unspecified (0.0.0.0/8)"),
        ("169.254.0.0", "169.254.255.255", "link-local"),
        ("224.0.0.0", "239.255.255.255", "multicast"),
        ("255.255.255.255", "255.255.255.255", "broadcast"),
    ];
    const V6: [(&str, &str, &str); 4] = [
        ("::", "::", "unspecified"),
        ("::ffff:0:0", "::ffff:ffff:ffff", "IPv4-mapped"),
        (
            "fe80::",
            "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "link-local",
        ),
        (
            "ff00::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "multicast",
        ),
    ];
    V4.iter().chain(&V6).find_map(|&(first, last, what)| {
        let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
            return None;
        };
        range.overlaps(&Range { first, last }).then_some(what)
    })
}

impl FromStr for Range {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Range, PoolError> {
        let text = text.trim();
        let syntax = || PoolError::Syntax { text: clip(text) };
        if let Some((first, last)) = text.split_once('-') {
            let first = first.trim().parse().map_err(|_| syntax())?;
            let last = last.trim().parse().map_err(|_| syntax())?;
            return Range::new(text, first, last);
        }
        let network: ipnet::IpNet = text.parse().map_err(|_| syntax())?;
        if network.addr() != network.network() {
            return Err(PoolError::HostBits {
                text: clip(text),
                meant: network.trunc().to_string(),
                single: ipnet::IpNet::from(network.addr()).to_string(),
            });
        }
        // `IpNet::broadcast` is the last address of either family.
        Range::new(text, network.network(), network.broadcast())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// A named set of ranges, of both families if need be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What a Service's pool annotation says.
    pub name: Arc<str>,
    /// Its ranges, in the order in which addresses are given.
    pub ranges: Vec<Range>,
}

/// All pools of the appliance, in order of preference; no two share an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools {
    pools: Vec<Pool>,
    excluded: BTreeSet<IpAddr>,
    /// First address of each range -> (last, pool), sorted: one lookup per address.
    index: std::collections::BTreeMap<IpAddr, (IpAddr, usize)>,
}

impl Pools {
    /// Names what has no name `pool-1`, `pool-2`, .. by its place. An address of `excluded` (the
    /// appliance's own: node-port fronts, the admin listener) is treated as in no pool.
    ///
    /// # Errors
    /// Two ranges that overlap, or two pools of one name.
    pub fn new(
        pools: impl IntoIterator<Item = (Option<Arc<str>>, Vec<Range>)>,
        excluded: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Pools, PoolError> {
        let mut built = Pools {
            excluded: excluded.into_iter().map(|a| a.to_canonical()).collect(),
            ..Pools::default()
        };
        for (place, (name, ranges)) in pools.into_iter().enumerate() {
            let name = name.unwrap_or_else(|| format!("pool-{}", place + 1).into());
            if built.by_name(&name).is_some() {
                return Err(PoolError::DuplicateName { name });
            }
            built.pools.push(Pool {
                name: name.clone(),
                ranges: Vec::new(),
            });
            for range in ranges {
                built.insert(place, range)?;
            }
        }
        Ok(built)
    }

    fn insert(&mut self, place: usize, range: Range) -> Result<(), PoolError> {
        // Ranges in the index never overlap, so the last one that begins at or before the end of
        // this one is the only one that can touch it.
        let before = self.index.range(..=range.last).next_back();
        if let Some((&first, &(last, other))) = before {
            let present = Range { first, last };
            if present.overlaps(&range) {
                return Err(PoolError::Overlap {
                    first: self.pools[other].name.clone(),
                    first_range: present,
                    second: self.pools[place].name.clone(),
                    second_range: range,
                });
            }
        }
        self.index.insert(range.first, (range.last, place));
        self.pools[place].ranges.push(range);
        Ok(())
    }

    /// In order of preference.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Pool> {
        self.pools.iter()
    }

    /// The place of the pool of this name.
    pub fn by_name(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| &*pool.name == name)
    }

    /// The place of the pool that gives `address`.
    pub fn of(&self, address: IpAddr) -> Option<usize> {
        if self.excluded.contains(&address) {
            return None;
        }
        let (_, &(last, place)) = self.index.range(..=address).next_back()?;
        (address <= last).then_some(place)
    }

    /// Addresses inside the ranges that are never given.
    pub fn excluded(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.excluded.iter().copied()
    }

    /// Does the pool at `place` (or any, if `None`) have addresses of this family?
    pub fn have_family(&self, place: Option<usize>, family: Family) -> bool {
        self.pools
            .iter()
            .enumerate()
            .filter(|(here, _)| place.is_none_or(|wanted| wanted == *here))
            .any(|(_, pool)| pool.ranges.iter().any(|range| range.family() == family))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn both_forms_of_both_families() {
        assert_eq!(range("192.0.2.0/28").to_string(), "192.0.2.0-192.0.2.15");
        assert_eq!(range("192.0.2.7/32").to_string(), "192.0.2.7-192.0.2.7");
        assert_eq!(
            range(" 192.0.2.9 - 192.0.2.11 ").to_string(),
            "192.0.2.9-192.0.2.11"
        );
        assert_eq!(
            range("2001:db8::/127").to_string(),
            "2001:db8::-2001:db8::1"
        );
        assert_eq!(range("2001:db8::5-2001:db8::9").last(), ip("2001:db8::9"));
        assert_eq!(range("2001:db8::/32").family(), Family::V6);
    }

    #[test]
    fn bad_ranges_say_what_is_right() {
        for (text, part) in [
            ("", "is no range"),
            ("192.0.2.0", "is no range"),
            ("192.0.2.0/33", "is no range"),
            ("192.0.2.1-", "is no range"),
            ("a-b", "is no range"),
            (
                "192.0.2.5/28",
                "192.0.2.0/28, or the single address 192.0.2.5/32",
            ),
            ("192.0.2.9-192.0.2.1", "swap"),
            ("192.0.2.9-2001:db8::1", "mixes"),
            ("0.0.0.0/0", "unspecified"),
            ("224.0.0.0/4", "multicast"),
            ("255.255.255.255/32", "broadcast"),
            ("169.254.169.254/32", "link-local"),
            ("::ffff:192.0.2.0/124", "IPv4-mapped"),
            ("fe80::/64", "link-local"),
            ("ff02::/16", "multicast"),
            ("::/0", "unspecified"),
        ] {
            let error = text.parse::<Range>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn overlap_is_refused_and_named() {
        let error = Pools::new(
            [
                (None, vec![range("192.0.2.0/28")]),
                (
                    Some("b".into()),
                    vec![range("192.0.2.32/28"), range("192.0.2.15-192.0.2.20")],
                ),
            ],
            [],
        )
        .expect_err("overlap");
        assert_eq!(
            error.to_string(),
            "pools pool-1 (192.0.2.0-192.0.2.15) and b (192.0.2.15-192.0.2.20) overlap; an address belongs to one pool"
        );
        // One that swallows another, and one family beside the other.
        assert!(
            Pools::new(
                [
                    (None, vec![range("10.0.0.4/32")]),
                    (None, vec![range("10.0.0.0/8")])
                ],
                []
            )
            .is_err()
        );
        assert!(
            Pools::new(
                [
                    (None, vec![range("10.0.0.0/8")]),
                    (None, vec![range("10.0.0.4/32")])
                ],
                []
            )
            .is_err()
        );
        assert!(
            Pools::new(
                [
                    (None, vec![range("10.0.0.0/8")]),
                    (None, vec![range("::a00:1/128")])
                ],
                []
            )
            .is_ok()
        );
        assert!(matches!(
            Pools::new([(Some("a".into()), vec![]), (Some("a".into()), vec![])], []),
            Err(PoolError::DuplicateName { .. })
        ));
    }

    #[test]
    fn addresses_find_their_pool() {
        let pools = Pools::new(
            [
                (None, vec![range("192.0.2.0/28")]),
                (None, vec![range("2001:db8::/64"), range("10.0.0.0/30")]),
            ],
            [ip("192.0.2.3"), ip("::ffff:192.0.2.4")],
        )
        .expect("apart");
        assert_eq!(pools.of(ip("192.0.2.0")), Some(0));
        assert_eq!(pools.of(ip("192.0.2.15")), Some(0));
        assert_eq!(pools.of(ip("192.0.2.16")), None);
        assert_eq!(pools.of(ip("192.0.2.3")), None, "excluded");
        assert_eq!(pools.of(ip("192.0.2.4")), None, "excluded, canonical");
        assert_eq!(pools.of(ip("10.0.0.3")), Some(1));
        assert_eq!(pools.of(ip("2001:db8::ffff")), Some(1));
        assert_eq!(pools.of(ip("2001:db8:0:1::")), None);
        assert_eq!(pools.by_name("pool-2"), Some(1));
        assert!(pools.have_family(None, Family::V6) && !pools.have_family(Some(0), Family::V6));
    }
}
