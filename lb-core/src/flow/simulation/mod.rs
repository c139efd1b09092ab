//! A small world around the flows: clients, backends that die and return, a network that delays,
//! reorders, doubles and forges, a driver that takes datagrams in batches and hears late, changes of
//! the pool and of policy, a flood of spoofed sources. Decisions come from a seed, or from a
//! fuzzer's bytes ([`play`]). `WEIR_SEED` repeats one run.

mod check;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::fixture::{Fixed, backend, client, rules};
use super::*;
use crate::chance::Chance;

const FLOWS: usize = 40;
const COPY_BYTES: usize = 600;

/// One world, as `bytes` decide it: as long as they last.
///
/// # Panics
/// If the flows break a promise.
pub fn play(bytes: &[u8]) {
    let mut world = World::new(Chance::bytes(bytes), [7; 16]);
    while !world.chance.is_spent() {
        world.step();
    }
    world.end();
}

/// On its way through the network; arrives at its time.
#[derive(Clone, Copy, Debug)]
enum InFlight {
    Reply(Sent),
    Refusal(Sent),
}

/// What left on a flow's socket: the socket names the flow and one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    flow: FlowId,
    socket: u64,
    to: SocketAddr,
}

/// What the world knows of a flow that lives.
#[derive(Clone, Copy, Debug)]
struct Known {
    frontend: usize,
    deadline: Time,
    two_way: bool,
}

/// The driver's part of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    socket: u64,
    to: SocketAddr,
}

struct World<'a> {
    chance: Chance<'a>,
    now: Time,
    rules: [Fixed; 2],
    flows: Flows<Part>,
    /// Backends whose process runs.
    alive: BTreeSet<SocketAddr>,
    network: BTreeMap<(Time, u64), InFlight>,
    sequence: u64,
    sockets: u64,
    known: BTreeMap<FlowId, Known>,
    /// Flows that ended: nothing may ever come of them again.
    dead: Vec<FlowId>,
    spoofed: u32,
    answered: u64,
}

impl<'a> World<'a> {
    fn new(chance: Chance<'a>, key: [u8; 16]) -> World<'a> {
        let limits = Limits {
            flows: FLOWS,
            flows_per_source: 8,
            copy_bytes: COPY_BYTES,
            ..Limits::default()
        };
        let rules = [1, 2].map(|frontend| Fixed {
            frontend,
            backends: (1..=4).map(backend).collect(),
            ..rules()
        });
        World {
            chance,
            now: Time::ZERO,
            alive: rules[0].backends.iter().copied().collect(),
            rules,
            flows: Flows::new(limits, key),
            network: BTreeMap::new(),
            sequence: 0,
            sockets: 0,
            known: BTreeMap::new(),
            dead: Vec::new(),
            spoofed: 0,
            answered: 0,
        }
    }

    /// A driver's turn: what the network brought, a batch of datagrams, changes, timers.
    fn step(&mut self) {
        let pause = match self.chance.percent(2) {
            true => 40_000_000,
            false => 20_000,
        };
        self.now = self.now + Duration::from_micros(self.chance.below(pause));
        self.deliver();
        let mut batch = Vec::new();
        for _ in 0..=self.chance.below(3) {
            batch.extend(self.receive());
        }
        if self.chance.percent(3) {
            self.change();
        }
        if self.chance.percent(4) {
            self.stray();
        }
        // Sent together when the turn ends: by then a flow may have ended or moved.
        for sent in batch {
            self.transmit(sent);
        }
        while let Some(closed) = self.flows.expire(self.now) {
            self.forget(Some(closed), true);
        }
        self.check();
    }

    /// Everything ends: nothing is left over.
    fn end(&mut self) {
        while let Some(closed) = self.flows.close_any() {
            self.forget(Some(closed), true);
        }
        self.check();
        assert!(self.flows.is_empty() && self.known.is_empty());
        assert_eq!(self.flows.copy_bytes(), 0);
    }

    /// A datagram comes in by a listener; the flow it is to leave on.
    fn receive(&mut self) -> Option<Sent> {
        let frontend = usize::from(self.chance.percent(20));
        let from = if self.chance.percent(40) {
            self.spoofed += 1;
            let [_, b, c, d] = self.spoofed.to_be_bytes();
            SocketAddr::from(([100, b, c, d], 1))
        } else {
            let source = self.chance.below(8) as u8;
            client(source, 1 + self.chance.below(10) as u16)
        };
        let rules = self.rules[frontend].clone();
        let known = self.flows.contains(from, &rules);
        let flow = match self.flows.datagram(self.now, from, &rules) {
            Verdict::Forward(flow) => flow,
            Verdict::Move { flow, avoid } => {
                assert!(
                    avoid.is_some() || !rules.holds(self.part(flow).to),
                    "moved without a cause"
                );
                match self.chance.percent(90) {
                    true => self.relocate(flow, frontend, avoid),
                    false if avoid.is_some() => self.flows.stayed(flow),
                    false => {
                        let closed = self.flows.close(flow);
                        self.forget(closed, true);
                        return None;
                    }
                }
                flow
            }
            Verdict::Open { admission, shed } => {
                self.forget(shed, false);
                // There may be no backend, or no descriptor.
                if self.chance.percent(3) {
                    return None;
                }
                let part = self.dial(&rules, None);
                self.flows.open(self.now, admission, part.to, part)
            }
            Verdict::Drop { reason, closed } => {
                let denied = !rules.permits(from.ip());
                assert_eq!(denied, reason == Refusal::SourceDenied, "{reason:?}");
                assert!(denied || !known, "a live flow was refused for want of room");
                self.forget(closed, true);
                return None;
            }
        };
        assert!(rules.permits(from.ip()), "a denied source was let in");
        assert_eq!(self.flows.client(flow), Some(from));
        self.used(flow, frontend, false);
        let Part { socket, to } = self.part(flow);
        assert!(rules.holds(to), "for a backend that has vanished");
        Some(Sent { flow, socket, to })
    }

    /// What was to be sent is sent, if its socket is still there, and reported.
    fn transmit(&mut self, sent: Sent) {
        if self.flows.part(sent.flow).map(|part| part.socket) != Some(sent.socket) {
            return;
        }
        let len = self.chance.below(64) as usize;
        self.carry(sent);
        let held = self.flows.copy_bytes();
        let unkept = self.flows.sent(sent.flow, &vec![0; len]);
        assert!(
            !unkept || held + len > COPY_BYTES,
            "there was room for a copy"
        );
    }

    fn carry(&mut self, sent: Sent) {
        match self.alive.contains(&sent.to) {
            // A spoofed source's reply comes as well; not all is answered.
            true if self.chance.percent(60) => self.post(InFlight::Reply(sent)),
            true => {}
            false => self.post(InFlight::Refusal(sent)),
        }
    }

    /// It arrives later, maybe twice, maybe before what was posted earlier.
    fn post(&mut self, what: InFlight) {
        for _ in 0..=u64::from(self.chance.percent(5)) {
            let at = self.now + Duration::from_micros(self.chance.below(50_000));
            self.sequence += 1;
            self.network.insert((at, self.sequence), what);
        }
    }

    fn deliver(&mut self) {
        while let Some((&(at, n), _)) = self.network.first_key_value() {
            if at > self.now {
                return;
            }
            match self.network.remove(&(at, n)) {
                Some(InFlight::Reply(sent)) if self.is_open(sent) => self.reply(sent.flow),
                // The error belongs to the socket that sent; a flow that moved has another one.
                Some(InFlight::Refusal(sent)) if self.is_open(sent) => self.refusal(sent.flow),
                _ => {}
            }
        }
    }

    fn is_open(&self, sent: Sent) -> bool {
        self.flows
            .part(sent.flow)
            .is_some_and(|part| part.socket == sent.socket)
    }

    fn reply(&mut self, flow: FlowId) {
        let frontend = self.known[&flow].frontend;
        let timeouts = self.rules[frontend].timeouts;
        let client = self.flows.replied(self.now, flow, timeouts);
        assert!(client.is_some(), "a live flow has a client");
        self.used(flow, frontend, true);
        self.answered += 1;
    }

    fn refusal(&mut self, flow: FlowId) {
        let frontend = self.known[&flow].frontend;
        let refused = self.flows.refused(flow).expect("alive");
        assert_eq!(refused.backend, self.part(flow).to);
        let Some(copy) = refused.copy else {
            return;
        };
        if self.chance.percent(10) {
            return; // nowhere to go: its next datagram moves it
        }
        self.relocate(flow, frontend, Some(refused.backend));
        self.used(flow, frontend, false);
        let Part { socket, to } = self.part(flow);
        self.carry(Sent { flow, socket, to });
        self.flows.resent(flow, &copy);
    }

    fn relocate(&mut self, flow: FlowId, frontend: usize, avoid: Option<SocketAddr>) {
        let rules = self.rules[frontend].clone();
        let part = self.dial(&rules, avoid);
        let old = self.part(flow);
        let moved = self.flows.moved(self.now, flow, part.to, &rules, part);
        assert_eq!(moved, Some(old), "the old socket comes back");
    }

    fn dial(&mut self, rules: &Fixed, avoid: Option<SocketAddr>) -> Part {
        let count = rules.backends.len();
        let n = self.chance.below(count as u64) as usize;
        let skip = usize::from(Some(rules.backends[n]) == avoid);
        self.sockets += 1;
        Part {
            socket: self.sockets,
            to: rules.backends[(n + skip) % count],
        }
    }

    /// Pools, source ranges, timeouts and processes change; a frontend or a descriptor goes.
    fn change(&mut self) {
        let some: Vec<u8> = (1..=6).filter(|_| self.chance.percent(50)).collect();
        let frontend = usize::from(self.chance.percent(30));
        let rules = &mut self.rules[frontend];
        match self.chance.below(7) {
            0 if !some.is_empty() => rules.backends = some.into_iter().map(backend).collect(),
            1 => self.alive = some.into_iter().map(backend).collect(),
            2 => self.alive = (1..=6).map(backend).collect(),
            3 => {
                let seconds = |s| Duration::from_secs(s);
                rules.timeouts.one_way = seconds(1 + self.chance.below(40));
                rules.timeouts.two_way = seconds(1 + self.chance.below(120));
            }
            4 => {
                let id = rules.frontend;
                while let Some(closed) = self.flows.close_one_of(id) {
                    assert_eq!(closed.frontend, id);
                    self.forget(Some(closed), true);
                }
            }
            5 => {
                let shed = self.flows.shed(self.now);
                self.forget(shed, false);
            }
            _ => {
                let source = self.chance.below(8) as u8;
                let denied = self.chance.percent(50);
                rules.denied = match denied {
                    true => vec![IpAddr::from([192, 0, 2, source])],
                    false => vec![],
                };
            }
        }
        self.rules[frontend].epoch += 1;
    }

    /// A completion for a flow that is no more: nothing comes of it.
    fn stray(&mut self) {
        let Some(last) = self.dead.len().checked_sub(1) else {
            return;
        };
        let flow = self.dead[self.chance.below(last as u64 + 1) as usize];
        let (rules, part) = (
            self.rules[0].clone(),
            Part {
                socket: 0,
                to: backend(9),
            },
        );
        assert_eq!(self.flows.replied(self.now, flow, rules.timeouts), None);
        assert_eq!(self.flows.refused(flow), None);
        assert_eq!(
            self.flows.moved(self.now, flow, part.to, &rules, part),
            None
        );
        assert!(!self.flows.sent(flow, b"late") && !self.flows.resent(flow, b"late"));
        self.flows.stayed(flow);
        assert_eq!(self.flows.close(flow), None);
        assert_eq!(self.flows.part(flow), None);
    }

    fn part(&self, flow: FlowId) -> Part {
        *self.flows.part(flow).expect("alive")
    }

    fn used(&mut self, flow: FlowId, frontend: usize, two_way: bool) {
        let known = self.known.entry(flow).or_insert(Known {
            frontend,
            deadline: self.now,
            two_way: false,
        });
        known.two_way |= two_way;
        known.deadline = self.now + self.rules[frontend].timeouts.of(known.two_way);
    }

    fn forget(&mut self, closed: Option<Closed<Part>>, may_be_two_way: bool) {
        let Some(closed) = closed else {
            return;
        };
        assert!(
            may_be_two_way || !closed.two_way,
            "shed an established flow"
        );
        let (flows, dead) = (&self.flows, &mut self.dead);
        self.known.retain(|id, known| {
            let alive = flows.part(*id).is_some();
            if !alive {
                assert_eq!(known.two_way, closed.two_way);
                dead.push(*id);
            }
            alive
        });
    }

    fn check(&self) {
        assert_eq!(self.flows.len(), self.known.len());
        assert!(self.flows.len() <= FLOWS && self.flows.copy_bytes() <= COPY_BYTES);
        for (id, known) in &self.known {
            assert!(self.flows.part(*id).is_some(), "expired early: {id:?}");
            assert!(known.deadline > self.now, "expired late: {id:?}, {known:?}");
            assert_eq!(self.flows.backend(*id), Some(self.part(*id).to));
        }
        let first = self.known.values().map(|known| known.deadline).min();
        assert!(first.is_none_or(|at| self.flows.next_deadline().is_some_and(|d| d <= at)));
        self.flows.check();
    }
}
