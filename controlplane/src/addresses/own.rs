//! Which of the machine's addresses are this appliance's to remove. PURE.
//!
//! The mark alone does not say: it is the same for every appliance, and several may live in one
//! network namespace (`weir demo` beside `weir serve`). An address that somebody else's appliance
//! marked is used as it is and never touched, as every other that we did not add.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::allocate::{Pools, Record};

/// What this appliance may have added: now, or in an earlier process.
#[derive(Clone, Debug, Default)]
pub struct Own {
    pools: Pools,
    /// Given out by the process before, maybe from a pool that is gone.
    recorded: BTreeSet<IpAddr>,
    /// Added by this process: an address that is in no pool (a node-port front's), too.
    added: BTreeSet<(IpAddr, u32)>,
    /// Of these, what the kernel did not mark.
    unmarked: BTreeSet<(IpAddr, u32)>,
}

impl Own {
    /// An appliance of these pools, which gave out what `record` says before it ended.
    pub fn new(pools: Pools, record: &Record) -> Own {
        let recorded = record.entries.iter().flat_map(|entry| &entry.addresses);
        Own {
            pools,
            recorded: recorded.copied().collect(),
            ..Own::default()
        }
    }

    /// Is this address, which the interface of this index has, ours?
    pub(super) fn is_ours(&self, address: IpAddr, interface: u32, is_marked: bool) -> bool {
        let place = (address, interface);
        let is_claimed = self.added.contains(&place)
            || self.recorded.contains(&address)
            || self.pools.of(address).is_some();
        (is_marked && is_claimed) || self.unmarked.contains(&place)
    }

    /// This process added it.
    pub(super) fn note_added(&mut self, address: IpAddr, interface: u32) {
        self.added.insert((address, interface));
    }

    /// And the kernel did not keep the mark. Returns whether it is the first of its kind.
    pub(super) fn note_unmarked(&mut self, address: IpAddr, interface: u32) -> bool {
        let is_first = self.unmarked.is_empty();
        self.unmarked.insert((address, interface)) && is_first
    }

    /// It is not there any more.
    pub(super) fn note_removed(&mut self, address: IpAddr, interface: u32) {
        self.added.remove(&(address, interface));
        self.unmarked.remove(&(address, interface));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::Entry;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn own() -> Own {
        let pool = vec!["192.0.2.0/28".parse().expect("a range")];
        let pools = Pools::new([(None, pool)], [ip("192.0.2.9")]).expect("one pool");
        let key = crate::testing::service("n", "s");
        let entry = Entry {
            key,
            pool: None,
            addresses: vec![ip("198.51.100.7"), ip("2001:db8::7")],
        };
        let record = Record {
            entries: vec![entry],
        };
        Own::new(pools, &record)
    }

    #[test]
    fn a_mark_counts_in_our_pools_and_our_record_alone() {
        let own = own();
        for (address, ours) in [
            ("192.0.2.0", true),
            ("192.0.2.15", true),
            ("192.0.2.16", false),
            ("192.0.2.9", false), // taken out of the pool: our own front, not a VIP
            ("198.51.100.7", true),
            ("198.51.100.8", false),
            ("2001:db8::7", true),
            ("127.64.255.1", false),
        ] {
            assert_eq!(own.is_ours(ip(address), 2, true), ours, "{address}");
            assert!(!own.is_ours(ip(address), 2, false), "{address}: not marked");
        }
    }

    #[test]
    fn what_this_process_added_is_ours_where_it_added_it() {
        let (mut own, front) = (own(), ip("203.0.113.1"));
        own.note_added(front, 2);
        assert!(own.is_ours(front, 2, true) && !own.is_ours(front, 3, true));
        assert!(
            !own.is_ours(front, 2, false),
            "taken away, and added by another"
        );
        assert!(own.note_unmarked(front, 2) && !own.note_unmarked(front, 3));
        assert!(own.is_ours(front, 2, false));
        own.note_removed(front, 2);
        assert!(!own.is_ours(front, 2, true) && !own.is_ours(front, 2, false));
    }
}
