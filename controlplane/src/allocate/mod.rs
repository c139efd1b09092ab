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
//! 8. An address that left the pools is kept while its load balancer lives.
//!
//! The same batches over the same record give the same addresses. A change costs what it touches
//! (and the logarithm of the rest), never a walk over all load balancers.

mod free;
mod hold;
mod pool;
mod record;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::hold::{Claim, Holdings, Obstacle};
use self::waiting::{Age, Cause, Order, Waiting};
use crate::load_balancer::{Addressing, LoadBalancer};
use crate::object::{Family, Key, Kind};
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
}

/// What a recorded load balancer is found by; the uid is compared apart.
type Name = (Arc<str>, Kind, Arc<str>, Arc<str>);

fn name_of(key: &Key) -> Name {
    (
        key.cluster.clone(),
        key.kind,
        key.namespace.clone(),
        key.name.clone(),
    )
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
        let mut entries: Vec<Entry> = held.chain(self.unseen.values().flatten().cloned()).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Record { entries }
    }

    fn remember(&mut self, entry: Entry) {
        for address in &entry.addresses {
            self.holdings.reserve(*address, &entry.key);
        }
        self.unseen
            .entry(name_of(&entry.key))
            .or_default()
            .push(entry);
    }

    /// Drops a reservation, if nobody came for it.
    fn forget(&mut self, entry: &Entry, turn: &mut Turn) {
        let name = name_of(&entry.key);
        let Some(entries) = self.unseen.get_mut(&name) else {
            return;
        };
        if let Some(at) = entries.iter().position(|here| here == entry) {
            entries.remove(at);
            for address in &entry.addresses {
                self.holdings.unreserve(*address, &entry.key);
                turn.addresses.insert(*address);
            }
        }
        if entries.is_empty() {
            self.unseen.remove(&name);
        }
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
    fn arrive(&mut self, key: Key, lb: &LoadBalancer, turn: &mut Turn) -> Option<(Member, Option<Entry>)> {
        let Addressing::Pools { families, all, requested, pool, sharing } = &lb.addressing else {
            self.arrive_fixed(key, lb, turn);
            return None;
        };
        let mut families = families.clone();
        families.dedup();
        let wish = Wish {
            families,
            all: *all,
            requested: requested.iter().map(|address| address.to_canonical()).collect(),
            pool: pool.clone(),
        };
        let claim = Claim {
            key: key.clone(),
            sharing: sharing.clone(),
            ports: lb.ports.iter().map(|port| (port.port.get(), port.protocol)).collect(),
        };
        let known = self.members.get(&key);
        let age = self.age(&key, lb.created, known.map(|member| &member.order.age));
        if known.is_some_and(|old| {
            old.wish == wish
                && old.claim.sharing == claim.sharing
                && old.claim.ports == claim.ports
                && old.order.age == age
        }) {
            return None;
        }
        let order = Order { unrequested: wish.requested.is_empty(), age, key: key.clone() };
        let before = self.assignment(&key);
        let previous = self.leave(&key, turn);
        turn.before.insert(key, before);
        self.revision += 1;
        let member = Member { wish, claim, order, held: Vec::new(), assignment: Assignment::default() };
        Some((member, previous))
    }

    fn arrive_fixed(&mut self, key: Key, lb: &LoadBalancer, turn: &mut Turn) {
        let Addressing::Fixed(addresses) = &lb.addressing else {
            return;
        };
        let before = self.assignment(&key);
        self.leave(&key, turn);
        turn.before.insert(key.clone(), before);
        let assignment = Assignment { addresses: addresses.clone(), reasons: Vec::new() };
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

    /// Lets arrivals keep what they held or what is recorded for them, oldest first, and queues
    /// them all.
    fn keep(&mut self, mut arrivals: Vec<(Member, Option<Entry>)>, turn: &mut Turn) {
        arrivals.sort_by(|(a, _), (b, _)| (&a.order.age, &a.order.key).cmp(&(&b.order.age, &b.order.key)));
        // An entry of the very same source and uid is nobody else's: those first.
        for exact in [true, false] {
            for (member, previous) in &mut arrivals {
                if previous.is_none() {
                    *previous = self.recall(&member.order.key, exact);
                }
            }
        }
        for (mut member, previous) in arrivals {
            if let Some(previous) = previous {
                self.keep_one(&mut member, &previous, turn);
            }
            turn.queue.insert(member.order.clone());
            self.members.insert(member.order.key.clone(), member);
        }
    }

    fn recall(&mut self, key: &Key, exact: bool) -> Option<Entry> {
        let name = name_of(key);
        let entries = self.unseen.get_mut(&name)?;
        let at = entries.iter().position(|entry| {
            let (ours, theirs) = (&key.uid, &entry.key.uid);
            match exact {
                true => ours == theirs && key.source == entry.key.source,
                false => ours == theirs || ours.is_empty() || theirs.is_empty(),
            }
        })?;
        let entry = entries.remove(at);
        if entries.is_empty() {
            self.unseen.remove(&name);
        }
        for address in &entry.addresses {
            self.holdings.unreserve(*address, &entry.key);
        }
        self.revision += 1;
        Some(entry)
    }

    fn keep_one(&mut self, member: &mut Member, previous: &Entry, turn: &mut Turn) {
        // Those that wait to join it may: a reservation ended.
        turn.sharing.extend(member.claim.sharing.clone());
        for &address in &previous.addresses {
            // Whoever waits for it may have it now, or learns who has it.
            turn.addresses.insert(address);
            if self.may_keep(&member.wish, address, previous.pool.as_ref())
                && !member.held.iter().any(|held| held.is_ipv4() == address.is_ipv4())
                && self.holdings.check(address, &member.claim, true).is_ok()
            {
                take(&mut self.holdings, member, address, turn);
            }
        }
    }

    /// Does the specification leave the address where it is? `pool` is what was asked for before.
    fn may_keep(&self, wish: &Wish, address: IpAddr, pool: Option<&Arc<str>>) -> bool {
        let family = Family::of(address);
        if !wish.families.contains(&family) {
            return false;
        }
        if let Some(requested) = wish.requested.iter().find(|a| Family::of(**a) == family) {
            return *requested == address;
        }
        let pools = self.holdings.pools();
        match &wish.pool {
            Some(name) if pool != Some(name) => {
                pools.of(address).is_some() && pools.of(address) == pools.by_name(name)
            }
            _ => true,
        }
    }

    /// Places the queue and everybody whom the changes help, first in order first.
    fn settle(&mut self, turn: &mut Turn) {
        loop {
            for address in std::mem::take(&mut turn.addresses) {
                turn.queue.extend(self.waiting.at(address));
            }
            for sharing in std::mem::take(&mut turn.sharing) {
                turn.queue.extend(self.waiting.sharing(&sharing));
            }
            // A waiter leaves its list when tried: it takes an address, or lacks something of
            // another list. So the loop ends.
            let waiter = self.waiting.first(|family, place| self.holdings.has_free(family, place));
            let Some(order) = turn.queue.first().into_iter().chain(&waiter).min().cloned() else {
                return;
            };
            turn.queue.remove(&order);
            self.waiting.remove(&order.key);
            if let Some(mut member) = self.members.remove(&order.key) {
                turn.before
                    .entry(order.key.clone())
                    .or_insert_with(|| member.assignment.clone());
                let causes = self.place(&mut member, turn);
                if !causes.is_empty() {
                    self.waiting.insert(&order, causes);
                }
                self.members.insert(order.key, member);
            }
        }
    }

    /// Completes what `member` holds, or takes it all away; returns what it waits for.
    fn place(&mut self, member: &mut Member, turn: &mut Turn) -> Vec<Cause> {
        let mut lacks = Lacks::default();
        let mut found = Vec::new();
        for address in &member.wish.requested {
            if !member.wish.families.contains(&Family::of(*address)) {
                lacks.fatal(Reason::RequestedFamily { address: *address }, None);
            }
        }
        for (index, &family) in member.wish.families.iter().enumerate() {
            if member.held.iter().any(|held| Family::of(*held) == family) {
                continue;
            }
            let requested = member.wish.requested.iter().find(|a| Family::of(**a) == family);
            let fatal = member.wish.all || index == 0 || requested.is_some();
            let outcome = match requested {
                Some(address) => self.requested(*address, member),
                None => self.unrequested(family, member),
            };
            match outcome {
                Ok(address) => found.push(address),
                Err((reason, cause)) if fatal => lacks.fatal(reason, cause),
                Err((Reason::NoPool { .. }, None)) => {} // What the pools allow: nothing to tell.
                Err((reason, cause)) => lacks.note(reason, cause),
            }
        }
        if lacks.is_fatal {
            release(&mut self.holdings, member, turn);
        } else {
            for address in found {
                take(&mut self.holdings, member, address, turn);
            }
        }
        let pools = self.holdings.pools();
        let outside = member.held.iter().filter(|address| pools.of(**address).is_none());
        lacks.reasons.extend(outside.map(|&address| Reason::AddressOutsidePools { address }));
        lacks.reasons.sort();
        lacks.reasons.dedup();
        member.assignment = Assignment {
            addresses: in_order(&member.wish.families, &member.held),
            reasons: lacks.reasons,
        };
        if let (false, Some(sharing)) = (lacks.causes.is_empty(), &member.claim.sharing) {
            lacks.causes.push(Cause::Sharing(sharing.clone()));
        }
        lacks.causes
    }

    fn requested(&self, address: IpAddr, member: &Member) -> Result<IpAddr, (Reason, Option<Cause>)> {
        let pools = self.holdings.pools();
        let Some(place) = pools.of(address) else {
            return Err((Reason::AddressNotInPool { address }, None));
        };
        if let Some(pool) = &member.wish.pool
            && pools.by_name(pool) != Some(place)
        {
            let reason = Reason::ConflictingRequest {
                first: format!("requested address {address}").into(),
                second: format!("requested pool {pool:?}").into(),
            };
            return Err((reason, None));
        }
        match self.holdings.check(address, &member.claim, false) {
            Ok(()) => Ok(address),
            Err(obstacle) => {
                let reason = match obstacle {
                    Obstacle::Taken { holder } => Reason::AddressTaken { address, holder },
                    Obstacle::Sharing { holder, problem } => Reason::SharingRefused { address, holder, problem },
                };
                Err((reason, Some(Cause::Address(address))))
            }
        }
    }

    fn unrequested(&self, family: Family, member: &Member) -> Result<IpAddr, (Reason, Option<Cause>)> {
        let pools = self.holdings.pools();
        let place = match &member.wish.pool {
            None => None,
            Some(name) => match pools.by_name(name) {
                Some(place) => Some(place),
                None => return Err((Reason::UnknownPool { pool: name.clone() }, None)),
            },
        };
        if !pools.have_family(place, family) {
            return Err((Reason::NoPool { family }, None));
        }
        self.holdings
            .find(family, place, &member.claim)
            .ok_or((Reason::PoolExhausted { family }, Some(Cause::Free(family, place))))
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

/// What a load balancer did not get.
#[derive(Default)]
struct Lacks {
    reasons: Vec<Reason>,
    causes: Vec<Cause>,
    is_fatal: bool,
}

impl Lacks {
    fn note(&mut self, reason: Reason, cause: Option<Cause>) {
        self.reasons.push(reason);
        self.causes.extend(cause);
    }

    fn fatal(&mut self, reason: Reason, cause: Option<Cause>) {
        self.note(reason, cause);
        self.is_fatal = true;
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
