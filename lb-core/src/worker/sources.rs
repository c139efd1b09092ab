//! PURE: which of our own addresses a backend is dialled from.
//!
//! A connection is four numbers, and three of them are given once the source address is: so the
//! local ports, some 28,000, are all that one source can have open towards one backend.

use std::net::{IpAddr, SocketAddr};

/// The addresses that backends are dialled from, by family.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    v4: Box<[IpAddr]>,
    v6: Box<[IpAddr]>,
}

impl Sources {
    pub(crate) fn new(addresses: &[IpAddr]) -> Sources {
        let all = addresses.iter().copied();
        let (v4, v6): (Vec<_>, Vec<_>) = all.partition(IpAddr::is_ipv4);
        Sources {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// Is the choice the kernel's towards `to`?
    pub(crate) fn is_empty(&self, to: SocketAddr) -> bool {
        self.of_family(to).is_empty()
    }

    /// Those of the family of `to`, each once, beginning where `random` says: so that all fill up
    /// alike, whichever backends are dialled in turn. None: the choice is the kernel's.
    pub(crate) fn order(&self, to: SocketAddr, random: u64) -> impl Iterator<Item = IpAddr> {
        let of_family = self.of_family(to);
        let first = (random % of_family.len().max(1) as u64) as usize;
        let (before, after) = of_family.split_at(first);
        after.iter().chain(before).copied()
    }

    fn of_family(&self, to: SocketAddr) -> &[IpAddr] {
        match to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => &self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_family_comes_once_and_first_in_its_turn() {
        let addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"];
        let addresses = addresses.map(|address| address.parse().expect("an address"));
        let sources = Sources::new(&addresses);
        let order = |to: &str, random| -> Vec<String> {
            let to = to.parse().expect("an address");
            sources.order(to, random).map(|ip| ip.to_string()).collect()
        };
        let (one, two, three) = ("192.0.2.1", "192.0.2.2", "192.0.2.3");
        assert_eq!(order("10.0.0.1:80", 0), [one, two, three]);
        assert_eq!(order("10.0.0.1:80", 1), [two, three, one]);
        assert_eq!(order("10.0.0.1:80", 5), [three, one, two]);
        assert_eq!(order("[fd00::1]:80", 7), ["2001:db8::1"]);
        let none = Sources::new(&addresses[..1]);
        let to = "[fd00::1]:80".parse().expect("an address");
        assert_eq!(none.order(to, 3).count(), 0);
    }
}
