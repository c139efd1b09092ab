//! Who holds which address: uniqueness, and sharing where both sides ask for it. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::table::Protocol;

use super::free::Free;
use super::pool::Pools;
use crate::object::{Family, Key};

/// What a load balancer brings to an address.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) key: Key,
    pub(super) sharing: Option<Arc<str>>,
    pub(super) ports: BTreeSet<(u16, Protocol)>,
}

/// Why an address cannot be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Somebody has it, and the newcomer does not ask to share.
    Taken { holder: Key },
    /// The newcomer asks to share.
    Sharing { holder: Key, problem: &'static str },
}

/// Every holder of one address says the same sharing key, or there is one holder.
#[derive(Clone, Debug)]
struct Holding {
    sharing: Option<Arc<str>>,
    holders: BTreeSet<Key>,
    ports: BTreeMap<(u16, Protocol), Key>,
}

/// The addresses held under one sharing key, in one family.
#[derive(Clone, Debug, Default)]
struct Group {
    addresses: BTreeSet<IpAddr>,
    by_port: BTreeMap<(u16, Protocol), BTreeSet<IpAddr>>,
}

/// All addresses of the pools, and those outside that are still held.
#[derive(Clone, Debug)]
pub(super) struct Holdings {
    pools: Pools,
    free: Vec<Free>,
    held: BTreeMap<IpAddr, Holding>,
    /// Recorded for load balancers that were not seen yet.
    reserved: BTreeMap<IpAddr, Vec<Key>>,
    groups: BTreeMap<(Arc<str>, Family), Group>,
}

impl Holdings {
    pub(super) fn new(pools: Pools) -> Holdings {
        let mut free: Vec<Free> = pools.iter().map(|pool| Free::new(&pool.ranges)).collect();
        for address in pools.excluded() {
            for pool in &mut free {
                pool.remove(address);
            }
        }
        Holdings {
            pools,
            free,
            held: BTreeMap::new(),
            reserved: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }

    pub(super) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Has the pool at `place` (or any) a free address of this family?
    pub(super) fn has_free(&self, family: Family, place: Option<usize>) -> bool {
        self.lowest_free(family, place).is_some()
    }

    fn lowest_free(&self, family: Family, place: Option<usize>) -> Option<IpAddr> {
        match place {
            Some(place) => self.free.get(place)?.lowest(family),
            None => self.free.iter().find_map(|pool| pool.lowest(family)),
        }
    }

    /// May `claim` hold `address`? Its owner may, if `recorded`, whoever else is recorded there.
    pub(super) fn check(
        &self,
        address: IpAddr,
        claim: &Claim,
        recorded: bool,
    ) -> Result<(), Obstacle> {
        if !recorded && let Some(holder) = self.reserved.get(&address).and_then(|keys| keys.first())
        {
            return Err(Obstacle::Taken {
                holder: holder.clone(),
            });
        }
        let Some(holding) = self.held.get(&address) else {
            return Ok(());
        };
        let Some(first) = holding.holders.first() else {
            return Ok(());
        };
        let sharing = |holder: &Key, problem| Obstacle::Sharing {
            holder: holder.clone(),
            problem,
        };
        match (&claim.sharing, &holding.sharing) {
            (None, _) => Err(Obstacle::Taken {
                holder: first.clone(),
            }),
            (Some(_), None) => Err(sharing(first, "it does not allow sharing")),
            (Some(ours), Some(theirs)) if ours != theirs => {
                Err(sharing(first, "its sharing key differs"))
            }
            _ => match claim.ports.iter().find_map(|port| holding.ports.get(port)) {
                Some(holder) => Err(sharing(
                    holder,
                    "both have a port with the same number and protocol",
                )),
                None => Ok(()),
            },
        }
    }

    /// An address for `claim`: the lowest one that its sharing key lets it join, so that sharing
    /// saves addresses; else the lowest free one of the first pool that has one.
    pub(super) fn find(
        &self,
        family: Family,
        place: Option<usize>,
        claim: &Claim,
    ) -> Option<IpAddr> {
        self.joinable(family, place, claim)
            .or_else(|| self.lowest_free(family, place))
    }

    fn joinable(&self, family: Family, place: Option<usize>, claim: &Claim) -> Option<IpAddr> {
        let sharing = claim.sharing.clone()?;
        let group = self.groups.get(&(sharing, family))?;
        let users: Vec<&BTreeSet<IpAddr>> = claim
            .ports
            .iter()
            .filter_map(|port| group.by_port.get(port))
            .collect();
        // The usual full house, everybody on one port, is seen without a walk.
        if users
            .iter()
            .any(|users| users.len() == group.addresses.len())
        {
            return None;
        }
        group
            .addresses
            .iter()
            .find(|address| {
                let pool = self.pools.of(**address);
                pool.is_some()
                    && (place.is_none() || pool == place)
                    && !self.reserved.contains_key(address)
                    && !users.iter().any(|users| users.contains(address))
            })
            .copied()
    }

    /// Takes `address` for `claim`, which `check` allowed. True if nobody held it before.
    pub(super) fn hold(&mut self, address: IpAddr, claim: &Claim) -> bool {
        self.occupy(address);
        let fresh = !self.held.contains_key(&address);
        let holding = self.held.entry(address).or_insert_with(|| Holding {
            sharing: claim.sharing.clone(),
            holders: BTreeSet::new(),
            ports: BTreeMap::new(),
        });
        holding.holders.insert(claim.key.clone());
        for port in &claim.ports {
            holding.ports.insert(*port, claim.key.clone());
        }
        if let Some(sharing) = &claim.sharing {
            let group = self
                .groups
                .entry((sharing.clone(), Family::of(address)))
                .or_default();
            group.addresses.insert(address);
            for port in &claim.ports {
                group.by_port.entry(*port).or_default().insert(address);
            }
        }
        fresh
    }

    /// Gives `address` back.
    pub(super) fn release(&mut self, address: IpAddr, claim: &Claim) {
        let Some(holding) = self.held.get_mut(&address) else {
            return;
        };
        holding.holders.remove(&claim.key);
        holding.ports.retain(|_, holder| *holder != claim.key);
        let empty = holding.holders.is_empty();
        if empty {
            self.held.remove(&address);
        }
        if let Some(sharing) = &claim.sharing {
            self.leave_group(address, sharing.clone(), &claim.ports, empty);
        }
        self.vacate(address);
    }

    fn leave_group(
        &mut self,
        address: IpAddr,
        sharing: Arc<str>,
        ports: &BTreeSet<(u16, Protocol)>,
        empty: bool,
    ) {
        let name = (sharing, Family::of(address));
        let Some(group) = self.groups.get_mut(&name) else {
            return;
        };
        for port in ports {
            if let Some(users) = group.by_port.get_mut(port) {
                users.remove(&address);
                if users.is_empty() {
                    group.by_port.remove(port);
                }
            }
        }
        if empty {
            group.addresses.remove(&address);
            if group.addresses.is_empty() {
                self.groups.remove(&name);
            }
        }
    }

    /// Keeps `address` for a load balancer of the record.
    pub(super) fn reserve(&mut self, address: IpAddr, key: &Key) {
        self.occupy(address);
        self.reserved.entry(address).or_default().push(key.clone());
    }

    /// The inverse of `reserve`.
    pub(super) fn unreserve(&mut self, address: IpAddr, key: &Key) {
        if let Some(keys) = self.reserved.get_mut(&address) {
            if let Some(at) = keys.iter().position(|here| here == key) {
                keys.remove(at);
            }
            if keys.is_empty() {
                self.reserved.remove(&address);
            }
        }
        self.vacate(address);
    }

    fn occupied(&self, address: IpAddr) -> bool {
        self.held.contains_key(&address) || self.reserved.contains_key(&address)
    }

    fn occupy(&mut self, address: IpAddr) {
        if let Some(place) = self.pools.of(address)
            && !self.occupied(address)
        {
            self.free[place].remove(address);
        }
    }

    /// After a holder or a reservation went: free again if it was the last.
    fn vacate(&mut self, address: IpAddr) {
        if let Some(place) = self.pools.of(address)
            && !self.occupied(address)
        {
            // Taking it out first makes giving back twice harmless.
            self.free[place].remove(address);
            self.free[place].insert(address);
        }
    }
}
