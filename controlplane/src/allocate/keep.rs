//! What was held stays held: over a change, over a restart by the record. PURE.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Allocator, Entry, Member, Turn, Wish, take};
use crate::object::{Family, Key, Kind};

/// What a recorded load balancer is found by; the uid is compared apart.
pub(super) type Name = (Arc<str>, Kind, Arc<str>, Arc<str>);

fn name_of(key: &Key) -> Name {
    (
        key.cluster.clone(),
        key.kind,
        key.namespace.clone(),
        key.name.clone(),
    )
}

/// A load balancer that is new or asks anew.
pub(super) struct Arrival {
    pub(super) member: Member,
    /// What it held, or what is recorded for it.
    pub(super) previous: Option<Entry>,
    /// It is new: what an API server says it had is as good as recorded.
    pub(super) adopts: bool,
    /// Only its age is another.
    pub(super) asks_as_before: bool,
}

impl Allocator {
    pub(super) fn remember(&mut self, entry: Entry) {
        for address in &entry.addresses {
            self.holdings.reserve(*address, &entry.key);
        }
        self.unseen
            .entry(name_of(&entry.key))
            .or_default()
            .push(entry);
    }

    /// Drops a reservation, if nobody came for it.
    pub(super) fn forget(&mut self, entry: &Entry, turn: &mut Turn) {
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

    /// Lets arrivals keep what they held or what is recorded for them, oldest first, and queues
    /// them all. Those that ask for nothing else than before come before those that do: of two that
    /// shared an address and may no longer, the one that changed leaves.
    pub(super) fn keep(&mut self, mut arrivals: Vec<Arrival>, turn: &mut Turn) {
        arrivals.sort_by(|a, b| {
            let rank = |arrival: &Arrival| !arrival.asks_as_before;
            let (a, b) = ((rank(a), &a.member.order), (rank(b), &b.member.order));
            (a.0, &a.1.age, &a.1.key).cmp(&(b.0, &b.1.age, &b.1.key))
        });
        for likeness in [Likeness::Same, Likeness::SameSource, Likeness::SameName] {
            for arrival in &mut arrivals {
                if arrival.previous.is_none() {
                    arrival.previous = self.recall(&arrival.member.order.key, likeness);
                }
            }
        }
        // What is recorded here comes before what anybody may have written there.
        let (recorded, others): (Vec<_>, Vec<_>) = arrivals
            .into_iter()
            .partition(|arrival| arrival.previous.is_some());
        for arrival in recorded.into_iter().chain(others) {
            let Arrival {
                mut member,
                previous,
                adopts,
                asks_as_before: _,
            } = arrival;
            let adopted = || self.adopted(&member).filter(|_| adopts);
            let previous = previous.or_else(adopted);
            // Who follows takes what is published when it is placed: what is recorded here may be older.
            let follows = self.followed == Some(member.order.key.source);
            if let Some(previous) = previous.filter(|_| !follows) {
                self.keep_one(&mut member, &previous, turn);
            }
            turn.queue.insert(member.order.clone());
            self.members.insert(member.order.key.clone(), member);
        }
    }

    /// Published addresses as if they were recorded: those of a pool only.
    fn adopted(&self, member: &Member) -> Option<Entry> {
        let pools = self.holdings.pools();
        let published = member.published.iter().map(IpAddr::to_canonical);
        let addresses: Vec<_> = published
            .filter(|address| pools.of(*address).is_some())
            .collect();
        (!addresses.is_empty()).then(|| Entry {
            key: member.order.key.clone(),
            pool: None,
            addresses,
        })
    }

    fn recall(&mut self, key: &Key, likeness: Likeness) -> Option<Entry> {
        let name = name_of(key);
        let entries = self.unseen.get_mut(&name)?;
        let at = entries.iter().position(|entry| {
            let (ours, theirs) = (&key.uid, &entry.key.uid);
            let may_be = ours == theirs || ours.is_empty() || theirs.is_empty();
            match likeness {
                Likeness::Same => ours == theirs && key.source == entry.key.source,
                Likeness::SameSource => may_be && key.source == entry.key.source,
                Likeness::SameName => may_be,
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
                && !member
                    .held
                    .iter()
                    .any(|held| held.is_ipv4() == address.is_ipv4())
                && self.holdings.check(address, &member.claim, true).is_ok()
            {
                take(&mut self.holdings, member, address, turn);
            }
        }
    }

    /// Does the specification leave the address where it is? `pool` is what was asked for before.
    pub(super) fn may_keep(&self, wish: &Wish, address: IpAddr, pool: Option<&Arc<str>>) -> bool {
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
}

/// How a record's entry is like a load balancer of its name; the likest is looked for first, for
/// it is nobody else's.
#[derive(Clone, Copy)]
enum Likeness {
    /// Source and uid agree.
    Same,
    /// The source agrees, and a uid is unknown on either side.
    SameSource,
    /// Another source, and the uids do not disagree.
    SameName,
}
