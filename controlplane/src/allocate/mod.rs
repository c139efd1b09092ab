//! Addresses from pools: who gets which, and why somebody gets none. PURE; `record` says what is
//! kept on disk, [`crate::state`] keeps it.
//!
//! The control task owns the [`Allocator`]. Rules, in the order in which they bind:
//!
//! 1. An address that is held is never taken from its holder, and its holder never moves, unless
//!    the holder's own specification asks for it. Holding outlives a restart by the [`Record`]:
//!    until the first complete list, the addresses of load balancers not yet seen are reserved.
//! 2. Inside one batch those that hold or are recorded keep; then those that request an address
//!    are served, then the rest, each by age (see [`Allocator::apply`]). Older wins.
//!    Without either, the addresses that an API server says it had are given back to it where
//!    nobody has them and a pool does.
//! 3. A requested address comes from a pool, or not at all; no other is given instead. The
//!    families of the Service that it requests nothing for are filled from the pools.
//! 4. RequireDualStack is all or none. Otherwise the first family is a must, the other is given as
//!    soon as the pools allow.
//! 5. An address is shared by load balancers that all say the same sharing key and whose (port,
//!    protocol) pairs differ. The key is the consent of each of them, so it also joins Services of
//!    different namespaces and clusters, as it does with MetalLB. externalTrafficPolicy need not
//!    agree: every endpoint is dialled from here, no node announces the address.
//! 6. Without a request, an address that can be shared is preferred to a free one; else it is the
//!    lowest free one of the first pool that has one.
//! 7. What is refused waits, and is retried when something changes that can help it.
//! 8. Where another process gives the addresses of a source ([`Allocator::follow`]), those that an API server
//!    names are taken, as 2. has it, and no other is given.
//! 9. An address that left the pools is kept while its load balancer lives.
//!
//! The same batches over the same record give the same addresses. A change costs what it touches
//! (and the logarithm of the rest), never a walk over all load balancers.

mod follow;
mod free;
mod hold;
mod keep;
mod place;
mod pool;
mod record;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::hold::{Claim, Holdings};
use self::keep::{Arrival, Name};
use self::waiting::{Age, Order, Waiting};
use crate::load_balancer::{Addressing, LoadBalancer};
use crate::object::{Family, Key, SourceId};
use crate::reason::Reason;

pub use self::pool::{Pool, PoolError, Pools, Range};
pub use self::record::{Entry, Record};

/// What a load balancer got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// In the order of its families; empty if it is not served.
    pub addresses: Vec<IpAddr>,
    /// Why not, or what else to know.
    pub reasons: Vec<Reason>,
}

/// The address part of `Addressing::Pools`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    families: Vec<Family>,
    all: bool,
    requested: Vec<IpAddr>,
    pool: Option<Arc<str>>,
}

/// One live load balancer.
#[derive(Clone, Debug)]
struct Member {
    wish: Wish,
    claim: Claim,
    order: Order,
    held: Vec<IpAddr>,
    assignment: Assignment,
    /// What an API server says it has.
    published: Vec<IpAddr>,
}

/// What one call of `apply` or `complete` did so far.
#[derive(Default)]
struct Turn {
    /// Assignments as they were before the call.
    before: BTreeMap<Key, Assignment>,
    /// To be placed.
    queue: BTreeSet<Order>,
    /// Where something changed, and nobody was woken yet.
    addresses: BTreeSet<IpAddr>,
    sharing: BTreeSet<Arc<str>>,
}

/// Gives addresses to load balancers.
#[derive(Clone, Debug)]
pub struct Allocator {
    members: BTreeMap<Key, Member>,
    /// Given by settings: remembered to answer for, never allocated.
    fixed: BTreeMap<Key, Assignment>,
    holdings: Holdings,
    waiting: Waiting,
    /// Recorded, reserved, and not seen yet.
    unseen: BTreeMap<Name, Vec<Entry>>,
    /// Whose addresses another process gives.
    followed: Option<SourceId>,
    youngest: i64,
    batch: u64,
    revision: u64,
}

impl Allocator {
    /// With the addresses of `record` reserved until their owners come or [`Allocator::complete`].
    pub fn new(pools: Pools, record: Record) -> Allocator {
        let mut allocator = Allocator {
            members: BTreeMap::new(),
            fixed: BTreeMap::new(),
            holdings: Holdings::new(pools),
            waiting: Waiting::default(),
            unseen: BTreeMap::new(),
            followed: None,
            youngest: i64::MIN,
            batch: 0,
            revision: 0,
        };
        for entry in record.entries {
            allocator.remember(entry);
        }
        allocator
    }

    /// Takes load balancers as they are now (`None`: gone) and returns whose assignment changed.
    ///
    /// The last word of a key counts. Age is creationTimestamp; without one a load balancer is as
    /// old as the youngest timestamp known when it was first seen, and younger than that one; then
    /// namespace and name decide. A change that touches neither addressing nor port numbers, as a
    /// change of endpoints, costs one comparison.
    pub fn apply(
        &mut self,
        batch: impl IntoIterator<Item = (Key, Option<Arc<LoadBalancer>>)>,
    ) -> BTreeSet<Key> {
        self.batch += 1;
        let mut turn = Turn::default();
        let mut arrivals = Vec::new();
        let mut departed = Vec::new();
        let batch: BTreeMap<_, _> = batch.into_iter().collect();
        for created in batch.values().flatten().filter_map(|lb| lb.created) {
            self.youngest = self.youngest.max(created);
        }
        for (key, lb) in batch {
            match lb {
                None => departed.extend(self.leave(&key, &mut turn)),
                Some(lb) => arrivals.extend(self.arrive(key, &lb, &mut turn)),
            }
        }
        // The same name without (or now with) its uid is the same load balancer: it inherits.
        for entry in &departed {
            self.remember(entry.clone());
        }
        self.keep(arrivals, &mut turn);
        for entry in &departed {
            self.forget(entry, &mut turn);
        }
        self.settle(&mut turn);
        self.finish(turn)
    }

    /// The first complete list was applied: what is recorded for others is given up. Returns
    /// whose assignment changed.
    pub fn complete(&mut self) -> BTreeSet<Key> {
        let mut turn = Turn::default();
        if self.unseen.is_empty() {
            return BTreeSet::new();
        }
        for entry in std::mem::take(&mut self.unseen).into_values().flatten() {
            self.revision += 1;
            for address in &entry.addresses {
                self.holdings.unreserve(*address, &entry.key);
                turn.addresses.insert(*address);
            }
        }
        // Sharers may have waited for a reservation to end; there is no index by its key.
        turn.sharing.extend(
            self.members
                .values()
                .filter_map(|member| member.claim.sharing.clone()),
        );
        self.settle(&mut turn);
        self.finish(turn)
    }

    /// What `key` has; nothing if it is not known.
    pub fn assignment(&self, key: &Key) -> Assignment {
        self.members
            .get(key)
            .map(|member| &member.assignment)
            .or_else(|| self.fixed.get(key))
            .cloned()
            .unwrap_or_default()
    }

    /// Grows with every change of [`Allocator::record`]: write the record when it does.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Who holds what, and what is still reserved.
    pub fn record(&self) -> Record {
        let held = self
            .members
            .iter()
            .filter(|(_, member)| !member.held.is_empty())
            .map(|(key, member)| Entry {
                key: key.clone(),
                pool: member.wish.pool.clone(),
                addresses: member.assignment.addresses.clone(),
            });
        let mut entries: Vec<Entry> = held
            .chain(self.unseen.values().flatten().cloned())
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Record { entries }
    }

    /// Returns what it held.
    fn leave(&mut self, key: &Key, turn: &mut Turn) -> Option<Entry> {
        if let Some(assignment) = self.fixed.remove(key) {
            turn.before.insert(key.clone(), assignment);
        }
        let mut member = self.members.remove(key)?;
        self.waiting.remove(key);
        let addresses = release(&mut self.holdings, &mut member, turn);
        turn.before.insert(key.clone(), member.assignment);
        (!addresses.is_empty()).then(|| Entry {
            key: key.clone(),
            pool: member.wish.pool,
            addresses,
        })
    }

    /// Takes in a new or changed load balancer, holding nothing; `None` if nothing that matters
    /// here changed. Returns with it what it held.
    fn arrive(&mut self, key: Key, lb: &LoadBalancer, turn: &mut Turn) -> Option<Arrival> {
        let Addressing::Pools {
            families,
            all,
            requested,
            pool,
            sharing,
        } = &lb.addressing
        else {
            self.arrive_fixed(key, lb, turn);
            return None;
        };
        let mut families = families.clone();
        families.dedup();
        let wish = Wish {
            families,
            all: *all,
            requested: requested
                .iter()
                .map(|address| address.to_canonical())
                .collect(),
            pool: pool.clone(),
        };
        let claim = Claim {
            key: key.clone(),
            sharing: sharing.clone(),
            ports: lb
                .ports
                .iter()
                .map(|port| (port.port.get(), port.protocol))
                .collect(),
        };
        let known = self.members.get(&key);
        let known_before = known.is_some();
        let age = self.age(&key, lb.created, known.map(|member| &member.order.age));
        let asks_as_before = known.is_some_and(|old| {
            old.wish == wish && old.claim.sharing == claim.sharing && old.claim.ports == claim.ports
        });
        if asks_as_before && known.is_some_and(|old| old.order.age == age) {
            self.publish(&key, &lb.published, turn);
            return None;
        }
        let order = Order {
            unrequested: wish.requested.is_empty(),
            age,
            key: key.clone(),
        };
        let before = self.assignment(&key);
        let previous = self.leave(&key, turn);
        turn.before.insert(key, before);
        self.revision += 1;
        let member = Member {
            wish,
            claim,
            order,
            held: Vec::new(),
            assignment: Assignment::default(),
            published: lb.published.clone(),
        };
        Some(Arrival {
            member,
            previous,
            // What it holds already is the better answer.
            adopts: !known_before,
            asks_as_before,
        })
    }

    fn arrive_fixed(&mut self, key: Key, lb: &LoadBalancer, turn: &mut Turn) {
        let Addressing::Fixed(addresses) = &lb.addressing else {
            return;
        };
        let before = self.assignment(&key);
        self.leave(&key, turn);
        turn.before.insert(key.clone(), before);
        let assignment = Assignment {
            addresses: addresses.clone(),
            reasons: Vec::new(),
        };
        self.fixed.insert(key, assignment);
    }

    fn age(&self, key: &Key, created: Option<i64>, known: Option<&Age>) -> Age {
        match (created, known) {
            (None, Some(known)) if known.batch != 0 => known.clone(),
            _ => Age {
                seconds: created.unwrap_or(self.youngest),
                batch: if created.is_some() { 0 } else { self.batch },
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            },
        }
    }

    fn finish(&mut self, turn: Turn) -> BTreeSet<Key> {
        let mut changed = BTreeSet::new();
        for (key, before) in turn.before {
            let now = self.assignment(&key);
            if now.addresses != before.addresses {
                self.revision += 1;
            }
            if now != before {
                changed.insert(key);
            }
        }
        changed
    }
}

fn in_order(families: &[Family], held: &[IpAddr]) -> Vec<IpAddr> {
    let of = |family: &Family| held.iter().find(|address| Family::of(**address) == *family);
    families.iter().filter_map(of).copied().collect()
}

fn take(holdings: &mut Holdings, member: &mut Member, address: IpAddr, turn: &mut Turn) {
    let fresh = holdings.hold(address, &member.claim);
    member.held.push(address);
    // Joining an address that is shared already opens nothing to others.
    if fresh && let Some(sharing) = &member.claim.sharing {
        turn.sharing.insert(sharing.clone());
    }
}

fn release(holdings: &mut Holdings, member: &mut Member, turn: &mut Turn) -> Vec<IpAddr> {
    let addresses = in_order(&member.wish.families, &member.held);
    for address in member.held.drain(..) {
        holdings.release(address, &member.claim);
        turn.addresses.insert(address);
        turn.sharing.extend(member.claim.sharing.clone());
    }
    addresses
}
