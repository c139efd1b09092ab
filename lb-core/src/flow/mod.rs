//! UDP flows: what to do with a datagram, and how long to remember who sent it.
//!
//! PURE, one per worker, owned by its UDP driver. The driver reads datagrams and says so
//! ([`Flows::datagram`]); the answer is a [`Verdict`], which the driver carries out and reports
//! back ([`Flows::open`], [`Flows::moved`], [`Flows::sent`], [`Flows::replied`],
//! [`Flows::refused`]). What the driver needs per flow (its socket) travels in here as `T` and
//! comes back whenever a flow ends, so that a flow and its socket end together.
//!
//! ```text
//!                 datagram: Open                  reply
//!     (none) ----------------------> one-way --------------> two-way
//!        ^                           |  ^  \                 /  |  ^
//!        |   one_way timeout, shed   |  |   refused, or the     |  |
//!        +---------------------------+  |   backend vanished    |  |
//!        |                           +--+   : Move, same state  +--+
//!        |   two_way timeout                                    |
//!        +------------------------------------------------------+
//!     either state: source denied or frontend closed -> (none)
//! ```
//!
//! - A flow is *one-way* until its client is known to hear us, that is until its first reply.
//!   Spoofed sources never get further, so only one-way flows are ever shed to make room.
//! - Until a backend has answered, the flow keeps a copy of the latest datagram sent to it. A
//!   refusal (ICMP port unreachable) gives the copy back, for another backend; after
//!   [`MAX_REFUSALS`] in a row it is lost.
//! - Timers are exact: a flow ends at its deadline, never before, and a datagram read before the
//!   timers of the same turn keeps its flow.

mod chain;
mod copies;
mod expiry;
mod index;
mod slots;
mod sources;
mod vocabulary;

#[cfg(any(test, fuzzing))]
mod fixture;
#[cfg(test)]
mod model_tests;
#[cfg(any(test, fuzzing))]
pub mod simulation;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::time::Time;

use chain::{Chain, Order};
use copies::Copies;
use expiry::Deadlines;
use index::Index;
use slots::{Ends, Flow, Slots};
use sources::{KeyedHash, Sources};

pub use copies::COPY_MAX;

pub use vocabulary::{Admission, Closed, Limits, Refusal, Refused, Rules, Timeouts, Verdict};

/// Names one flow for as long as it lives; afterwards it names nothing.
pub use crate::slab::Key as FlowId;

/// So many backends in a row may refuse one datagram before it is lost. Bounds what a client of a
/// pool of dead backends, or a forger of ICMP, can make us send.
pub const MAX_REFUSALS: u8 = 8;

/// The flows of one worker.
#[derive(Debug)]
pub struct Flows<T> {
    limits: Limits,
    slots: Slots<T>,
    index: Index,
    frontends: HashMap<u64, Chain, KeyedHash>,
    sources: Sources,
    /// Every one-way flow, oldest first.
    one_way: Chain,
    deadlines: Deadlines,
    copies: Copies,
}

impl<T> Flows<T> {
    /// An empty table. `seed` keys its hashes and must be unknown to clients.
    pub fn new(limits: Limits, seed: [u8; 16]) -> Flows<T> {
        let hash = KeyedHash::new(seed);
        Flows {
            limits,
            slots: Slots::new(),
            index: Index::new(limits.flows, hash.clone()),
            frontends: HashMap::with_hasher(hash.clone()),
            sources: Sources::new(limits.flows_per_source, limits.flows, hash),
            one_way: Chain::default(),
            deadlines: Deadlines::default(),
            copies: Copies::new(limits.copy_bytes),
        }
    }

    /// Flows alive.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// No flow alive?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of kept datagrams.
    pub fn copy_bytes(&self) -> usize {
        self.copies.used()
    }

    /// The driver's part of a flow.
    pub fn part(&self, flow: FlowId) -> Option<&T> {
        self.slots.get(flow).map(|f| &f.part)
    }

    /// As [`Flows::part`], to change it.
    pub fn part_mut(&mut self, flow: FlowId) -> Option<&mut T> {
        self.slots.get_mut(flow).map(|f| &mut f.part)
    }

    /// Who talks on a flow.
    pub fn client(&self, flow: FlowId) -> Option<SocketAddr> {
        self.slots.get(flow).map(|f| f.client)
    }

    /// Whom a flow talks to.
    pub fn backend(&self, flow: FlowId) -> Option<SocketAddr> {
        self.slots.get(flow).map(|f| f.backend)
    }

    /// Has anything been sent to the flow's present backend, and not been refused? The first
    /// should go alone: until then nobody knows whether there is someone to take it.
    pub fn has_sent(&self, flow: FlowId) -> bool {
        self.slots.get(flow).is_some_and(|f| f.sent)
    }

    /// Has `client` a flow?
    pub fn contains(&self, client: SocketAddr, rules: &impl Rules) -> bool {
        self.find(&(rules.id(), client)).is_some()
    }

    fn find(&self, ends: &Ends) -> Option<FlowId> {
        let index = self.index.find(&self.slots, ends)?;
        Some(self.slots.id_at(index))
    }

    /// A datagram has come from `client`.
    pub fn datagram(&mut self, now: Time, client: SocketAddr, rules: &impl Rules) -> Verdict<T> {
        let Some(id) = self.find(&(rules.id(), client)) else {
            return self.admit(now, client, rules);
        };
        let flow = self.slots.at_mut(id.index());
        // Rules that have not changed since the flow's last datagram gave their answer then.
        if flow.epoch != rules.epoch() {
            if !rules.permits(client.ip()) {
                return Verdict::Drop {
                    reason: Refusal::SourceDenied,
                    closed: self.close(id),
                };
            }
            if !rules.holds(flow.backend) {
                return Verdict::Move {
                    flow: id,
                    avoid: None,
                };
            }
            flow.epoch = rules.epoch();
        }
        let avoid = flow.refused.then_some(flow.backend);
        self.touch(now, id, rules.timeouts());
        match avoid {
            Some(_) => Verdict::Move { flow: id, avoid },
            None => Verdict::Forward(id),
        }
    }

    /// Opens the admitted flow to `backend`.
    pub fn open(
        &mut self,
        now: Time,
        admission: Admission,
        backend: SocketAddr,
        part: T,
    ) -> FlowId {
        let Admission {
            frontend,
            client,
            epoch,
            timeouts,
        } = admission;
        let deadline = now + timeouts.one_way;
        let flow = Flow::new(frontend, client, backend, epoch, now, deadline, part);
        let id = self.slots.insert(flow);
        let ends = (frontend, client);
        self.index.insert(&mut self.slots, &ends, id.index());
        let chain = self.frontends.entry(frontend).or_default();
        self.slots.push(chain, Order::Frontend, id.index());
        self.slots
            .push(&mut self.one_way, Order::OneWay, id.index());
        self.sources.add(client.ip(), &mut self.slots, id.index());
        self.deadlines.arm(&mut self.slots, deadline, id.index());
        id
    }

    /// The flow now talks to `backend` through `part`; returns the part it had. Nothing of what
    /// was kept for the old backend is kept for the new one.
    pub fn moved(
        &mut self,
        now: Time,
        flow: FlowId,
        backend: SocketAddr,
        rules: &impl Rules,
        part: T,
    ) -> Option<T> {
        let f = self.slots.get_mut(flow)?;
        self.copies.forget(&mut f.copy);
        f.backend = backend;
        // The epoch stays: whether the client is still permitted is judged at its next datagram.
        f.answered = false;
        f.sent = false;
        f.refused = false;
        let old = std::mem::replace(&mut f.part, part);
        self.touch(now, flow, rules.timeouts());
        Some(old)
    }

    /// The refusing backend is the only one there is: the flow stays with it.
    pub fn stayed(&mut self, flow: FlowId) {
        if let Some(f) = self.slots.get_mut(flow) {
            f.refused = false;
        }
    }

    /// `payload` has been sent to the flow's backend; of several in one go, the last. Says whether
    /// a copy that might have been wanted could not be kept, because it or all together would be
    /// too large.
    pub fn sent(&mut self, flow: FlowId, payload: &[u8]) -> bool {
        let Some(f) = self.slots.get_mut(flow) else {
            return false;
        };
        f.sent = true;
        !f.answered && !self.copies.keep(&mut f.copy, payload)
    }

    /// A copy that a refusal gave back has been sent to another backend. It is kept again, should
    /// that one refuse it too: nobody has read it yet.
    pub fn resent(&mut self, flow: FlowId, payload: &[u8]) -> bool {
        match self.slots.get(flow) {
            Some(f) if f.refusals < MAX_REFUSALS => self.sent(flow, payload),
            _ => false,
        }
    }

    /// A datagram has come from the flow's backend. Returns the client.
    pub fn replied(&mut self, now: Time, flow: FlowId, timeouts: Timeouts) -> Option<SocketAddr> {
        let f = self.slots.get_mut(flow)?;
        self.copies.forget(&mut f.copy);
        f.answered = true;
        f.refused = false;
        f.refusals = 0;
        let client = f.client;
        if !f.two_way {
            f.two_way = true;
            let index = flow.index();
            self.slots.unlink(&mut self.one_way, Order::OneWay, index);
            self.sources
                .established(client.ip(), &mut self.slots, index);
        }
        self.touch(now, flow, timeouts);
        Some(client)
    }

    /// The flow's backend has refused a datagram sent earlier. With a copy, or with a datagram
    /// in hand, the driver moves the flow now; otherwise its next datagram will say `Move`.
    pub fn refused(&mut self, flow: FlowId) -> Option<Refused> {
        let f = self.slots.get_mut(flow)?;
        f.refused = true;
        f.sent = false;
        f.refusals = f.refusals.saturating_add(1);
        Some(Refused {
            backend: f.backend,
            copy: self.copies.take(&mut f.copy),
        })
    }

    /// Ends a flow.
    pub fn close(&mut self, flow: FlowId) -> Option<Closed<T>> {
        let index = flow.index();
        let f = self.slots.get_mut(flow)?;
        self.copies.forget(&mut f.copy);
        let (frontend, client, two_way) = (f.frontend, f.client, f.two_way);
        if let Some(chain) = self.frontends.get_mut(&frontend) {
            self.slots.unlink(chain, Order::Frontend, index);
            if chain.is_empty() {
                self.frontends.remove(&frontend);
            }
        }
        if !two_way {
            self.slots.unlink(&mut self.one_way, Order::OneWay, index);
        }
        self.sources
            .remove(client.ip(), &mut self.slots, index, two_way);
        let ends = (frontend, client);
        self.index.remove(&mut self.slots, &ends, index);
        self.deadlines.disarm(&mut self.slots, index);
        let f = self.slots.remove(flow)?;
        Some(Closed {
            frontend,
            two_way,
            part: f.part,
        })
    }

    /// Ends one flow of a frontend; call until `None` to end all.
    pub fn close_one_of(&mut self, frontend: u64) -> Option<Closed<T>> {
        let first = self.frontends.get(&frontend)?.first()?;
        self.close(self.slots.id_at(first))
    }

    /// Ends any one flow; call until `None` to end all.
    pub fn close_any(&mut self) -> Option<Closed<T>> {
        let (_, chain) = self.frontends.iter().next()?;
        self.close(self.slots.id_at(chain.first()?))
    }

    /// Sheds the oldest flow that never saw a reply, if it is past its grace: for a driver that
    /// runs out of descriptors below the cap.
    pub fn shed(&mut self, now: Time) -> Option<Closed<T>> {
        self.shed_first(now, self.one_way.first())
    }

    /// No flow ends before this.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| at)
    }

    /// Ends one flow whose deadline has come; call until `None`, or later for the rest.
    pub fn expire(&mut self, now: Time) -> Option<Closed<T>> {
        while let Some((at, index)) = self.deadlines.first()
            && at <= now
        {
            let f = self.slots.at_mut(index);
            if f.deadline <= now {
                return self.close(self.slots.id_at(index));
            }
            f.armed = f.deadline;
            let at = f.armed;
            self.deadlines.rearm(&mut self.slots, at, index);
        }
        None
    }

    fn admit(&mut self, now: Time, client: SocketAddr, rules: &impl Rules) -> Verdict<T> {
        let refuse = |reason| Verdict::Drop {
            reason,
            closed: None,
        };
        if !rules.permits(client.ip()) {
            return refuse(Refusal::SourceDenied);
        }
        let mut shed = None;
        if self.sources.is_full(client.ip()) {
            // The source pays with its own: spoofing one address must not cost the others.
            shed = self.shed_first(now, self.sources.oldest_one_way(client.ip()));
            if shed.is_none() {
                return refuse(Refusal::SourceFlowLimit);
            }
        } else if self.slots.len() >= self.limits.flows {
            shed = self.shed_first(now, self.one_way.first());
            if shed.is_none() {
                return refuse(Refusal::FlowLimit);
            }
        }
        Verdict::Open {
            admission: Admission {
                frontend: rules.id(),
                client,
                epoch: rules.epoch(),
                timeouts: rules.timeouts(),
            },
            shed,
        }
    }

    fn shed_first(&mut self, now: Time, oldest: Option<u32>) -> Option<Closed<T>> {
        let oldest = oldest?;
        let opened = self.slots.at_mut(oldest).opened;
        if now.since(opened) < self.limits.one_way_grace {
            return None;
        }
        self.close(self.slots.id_at(oldest))
    }

    /// The flow has been used: its deadline moves. The alarm is left where it is (it will look
    /// again when it rings) unless the deadline now comes before it.
    fn touch(&mut self, now: Time, id: FlowId, timeouts: Timeouts) {
        if let Some(f) = self.slots.get_mut(id) {
            f.deadline = now + timeouts.of(f.two_way);
            if f.deadline < f.armed {
                f.armed = f.deadline;
                let at = f.armed;
                self.deadlines.rearm(&mut self.slots, at, id.index());
            }
        }
    }
}
