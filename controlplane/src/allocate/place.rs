//! Serves those that lack an address, first in order first. PURE.

use std::net::IpAddr;

use super::hold::Obstacle;
use super::waiting::Cause;
use super::{Allocator, Assignment, Member, Pools, Turn, in_order, release, take};
use crate::object::Family;
use crate::reason::Reason;

impl Allocator {
    /// Places the queue and everybody whom the changes help, first in order first.
    pub(super) fn settle(&mut self, turn: &mut Turn) {
        loop {
            for address in std::mem::take(&mut turn.addresses) {
                turn.queue.extend(self.waiting.at(address));
            }
            for sharing in std::mem::take(&mut turn.sharing) {
                turn.queue.extend(self.waiting.sharing(&sharing));
            }
            // A waiter leaves its list when tried: it takes an address, or lacks something of
            // another list. So the loop ends.
            let waiter = self
                .waiting
                .first(|family, place| self.holdings.has_free(family, place));
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
        if self.followed == Some(member.order.key.source) {
            return self.place_published(member, turn);
        }
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
            let requested = member
                .wish
                .requested
                .iter()
                .find(|a| Family::of(**a) == family);
            let fatal = member.wish.all || index == 0 || requested.is_some();
            let outcome = match requested {
                Some(address) => self.requested(*address, member),
                None => self.unrequested(family, member),
            };
            match outcome {
                Slot::Found(address) => found.push(address),
                Slot::Lacks(reason, cause) if fatal => lacks.fatal(reason, cause),
                // What the pools allow: nothing to tell.
                Slot::Lacks(Reason::NoPool { .. }, None) => {}
                Slot::Lacks(reason, cause) => lacks.note(reason, cause),
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
        let outside = member
            .held
            .iter()
            .filter(|address| pools.of(**address).is_none());
        lacks
            .reasons
            .extend(outside.map(|&address| Reason::AddressOutsidePools { address }));
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

    fn requested(&self, address: IpAddr, member: &Member) -> Slot {
        let pools = self.holdings.pools();
        let Some(place) = pools.of(address) else {
            return Slot::Lacks(Reason::AddressNotInPool { address }, None);
        };
        if let Some(pool) = &member.wish.pool
            && pools.by_name(pool) != Some(place)
        {
            let reason = Reason::ConflictingRequest {
                first: format!("requested address {address}").into(),
                second: format!("requested pool {pool:?}").into(),
            };
            return Slot::Lacks(reason, None);
        }
        match self.holdings.check(address, &member.claim, false) {
            Ok(()) => Slot::Found(address),
            Err(obstacle) => {
                let reason = match obstacle {
                    Obstacle::Taken { holder } => Reason::AddressTaken { address, holder },
                    Obstacle::Sharing { holder, problem } => Reason::SharingRefused {
                        address,
                        holder,
                        problem,
                    },
                };
                Slot::Lacks(reason, Some(Cause::Address(address)))
            }
        }
    }

    fn unrequested(&self, family: Family, member: &Member) -> Slot {
        let pools = self.holdings.pools();
        let place = match &member.wish.pool {
            None => None,
            Some(name) => match pools.by_name(name) {
                Some(place) => Some(place),
                None => {
                    let pool = name.clone();
                    let known = names(pools).into();
                    return Slot::Lacks(Reason::UnknownPool { pool, known }, None);
                }
            },
        };
        if !pools.have_family(place, family) {
            return Slot::Lacks(Reason::NoPool { family }, None);
        }
        match self.holdings.find(family, place, &member.claim) {
            Some(address) => Slot::Found(address),
            None => {
                let cause = Cause::Free(family, place);
                Slot::Lacks(Reason::PoolExhausted { family }, Some(cause))
            }
        }
    }
}

/// What one family of a load balancer finds.
enum Slot {
    Found(IpAddr),
    /// Why nothing, and what could help.
    Lacks(Reason, Option<Cause>),
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

/// The pools there are, for a person: ten at most.
fn names(pools: &Pools) -> String {
    let mut names: Vec<&str> = pools.iter().take(10).map(|pool| &*pool.name).collect();
    match pools.iter().len() {
        0 => return "none".to_owned(),
        all if all > names.len() => names.push(".."),
        _ => {}
    }
    names.join(", ")
}
