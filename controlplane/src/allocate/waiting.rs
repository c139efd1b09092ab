//! Load balancers that did not get all they asked for, by what could change that: one change
//! wakes those it can help, and scans nobody else. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::object::{Family, Key};

/// Who comes first: those that request an address, then by age, then by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// False sorts first.
    pub(super) unrequested: bool,
    pub(super) age: Age,
    pub(super) key: Key,
}

/// How old a load balancer counts; the oldest sorts first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age {
    /// creationTimestamp, or the youngest one known when this was first seen without.
    pub(super) seconds: i64,
    /// 0 with a timestamp, else the number of the batch that first brought it.
    pub(super) batch: u64,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// What could help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A free address of this family in the pool at this place, or in any.
    Free(Family, Option<usize>),
    /// Any change at this address.
    Address(IpAddr),
    /// Any change among those that say this sharing key.
    Sharing(Arc<str>),
}

/// Indexed both ways; a list that is empty is not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    free: BTreeMap<(Family, Option<usize>), BTreeSet<Order>>,
    addresses: BTreeMap<IpAddr, BTreeSet<Order>>,
    sharing: BTreeMap<Arc<str>, BTreeSet<Order>>,
    causes: BTreeMap<Key, (Order, Vec<Cause>)>,
}

impl Waiting {
    /// Waits for any of `causes`. It must not be waiting already.
    pub(super) fn insert(&mut self, order: &Order, causes: Vec<Cause>) {
        for cause in &causes {
            let list = match cause {
                Cause::Free(family, place) => self.free.entry((*family, *place)).or_default(),
                Cause::Address(address) => self.addresses.entry(*address).or_default(),
                Cause::Sharing(key) => self.sharing.entry(key.clone()).or_default(),
            };
            list.insert(order.clone());
        }
        self.causes
            .insert(order.key.clone(), (order.clone(), causes));
    }

    /// Waits no more.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some((order, causes)) = self.causes.remove(key) else {
            return;
        };
        for cause in causes {
            match cause {
                Cause::Free(family, place) => take(&mut self.free, &(family, place), &order),
                Cause::Address(address) => take(&mut self.addresses, &address, &order),
                Cause::Sharing(sharing) => take(&mut self.sharing, &sharing, &order),
            }
        }
    }

    /// Those that a change at `address` may help.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = Order> + '_ {
        self.addresses.get(&address).into_iter().flatten().cloned()
    }

    /// Those that a change among the sharers may help.
    pub(super) fn sharing(&self, key: &str) -> impl Iterator<Item = Order> + '_ {
        self.sharing.get(key).into_iter().flatten().cloned()
    }

    /// The first in order whom a free address helps.
    pub(super) fn first(&self, has_free: impl Fn(Family, Option<usize>) -> bool) -> Option<Order> {
        self.free
            .iter()
            .filter(|((family, place), _)| has_free(*family, *place))
            .filter_map(|(_, list)| list.first())
            .min()
            .cloned()
    }
}

fn take<K: Ord>(lists: &mut BTreeMap<K, BTreeSet<Order>>, name: &K, order: &Order) {
    if let Some(list) = lists.get_mut(name) {
        list.remove(order);
        if list.is_empty() {
            lists.remove(name);
        }
    }
}
