//! A small world around the flows: clients, backends that die and return, a network that delays,
//! changes of the pool, a flood of spoofed sources. Seeded; a failure prints its seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::tests::{Fixed, backend, rules};
use super::*;

/// xorshift64*: any fixed, seedable sequence serves here.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// On its way through the network; arrives at its time.
#[derive(Debug)]
enum InFlight {
    Reply(FlowId),
    Refusal(FlowId, SocketAddr),
}

struct World {
    rng: Rng,
    now: Time,
    rules: Fixed,
    flows: Flows<SocketAddr>,
    /// Backends whose process runs.
    alive: BTreeSet<SocketAddr>,
    network: BTreeMap<(Time, u64), InFlight>,
    sequence: u64,
    /// Deadline of every flow as the simulation reckons it.
    deadlines: BTreeMap<FlowId, (Time, bool)>,
    spoofed: u32,
    answered: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits {
            flows: 40,
            flows_per_source: 8,
            copy_bytes: 600,
            ..Limits::default()
        };
        let mut rules = rules();
        rules.backends = (1..=4).map(backend).collect();
        World {
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: Time::ZERO,
            alive: rules.backends.iter().copied().collect(),
            rules,
            flows: Flows::new(
                limits,
                seed.to_le_bytes().repeat(2).try_into().expect("16 bytes"),
            ),
            network: BTreeMap::new(),
            sequence: 0,
            deadlines: BTreeMap::new(),
            spoofed: 0,
            answered: 0,
        }
    }

    fn pick(&mut self, avoid: Option<SocketAddr>) -> SocketAddr {
        let n = self.rng.below(self.rules.backends.len() as u64) as usize;
        let picked = self.rules.backends[n];
        if Some(picked) == avoid {
            return self.rules.backends[(n + 1) % self.rules.backends.len()];
        }
        picked
    }

    fn post(&mut self, what: InFlight) {
        let at = self.now + Duration::from_micros(self.rng.below(50_000));
        self.sequence += 1;
        self.network.insert((at, self.sequence), what);
    }

    fn transmit(&mut self, flow: FlowId, spoofed: bool) {
        let to = self.flows.backend(flow).expect("alive");
        assert_eq!(self.flows.part(flow), Some(&to), "socket and backend agree");
        assert!(
            self.rules.holds(to),
            "a datagram for a backend that has vanished"
        );
        if self.alive.contains(&to) {
            if !spoofed {
                self.post(InFlight::Reply(flow));
            }
        } else {
            self.post(InFlight::Refusal(flow, to));
        }
    }

    fn forget(&mut self, closed: Option<Closed<SocketAddr>>, may_be_two_way: bool) {
        if let Some(closed) = closed {
            assert!(
                may_be_two_way || !closed.two_way,
                "shed an established flow"
            );
            let flows = &self.flows;
            self.deadlines.retain(|id, _| flows.part(*id).is_some());
        }
    }

    fn used(&mut self, flow: FlowId, two_way: bool) {
        let entry = self.deadlines.entry(flow).or_insert((self.now, false));
        entry.1 |= two_way;
        entry.0 = self.now + self.rules.timeouts.of(entry.1);
    }

    fn datagram(&mut self, from: SocketAddr, spoofed: bool) {
        let flow = match self.flows.datagram(self.now, from, &self.rules) {
            Verdict::Forward(flow) => flow,
            Verdict::Move { flow, avoid } => {
                let to = self.pick(avoid);
                self.flows.moved(self.now, flow, to, &self.rules, to);
                flow
            }
            Verdict::Open { admission, shed } => {
                self.forget(shed, false);
                let to = self.pick(None);
                self.flows.open(self.now, admission, to, to)
            }
            Verdict::Drop { closed, .. } => return self.forget(closed, true),
        };
        self.used(flow, false);
        self.transmit(flow, spoofed);
        let len = self.rng.below(64) as usize;
        self.flows.sent(flow, &vec![0; len]);
    }

    fn deliver(&mut self) {
        while let Some((&(at, n), _)) = self.network.first_key_value() {
            if at > self.now {
                return;
            }
            match self.network.remove(&(at, n)) {
                Some(InFlight::Reply(flow)) => {
                    let t = self.rules.timeouts;
                    if self.flows.replied(self.now, flow, t).is_some() {
                        self.used(flow, true);
                        self.answered += 1;
                    }
                }
                // The error belongs to the socket that sent; a flow that moved has another one.
                Some(InFlight::Refusal(flow, by)) if self.flows.backend(flow) == Some(by) => {
                    self.refusal(flow);
                }
                _ => {}
            }
        }
    }

    fn refusal(&mut self, flow: FlowId) {
        let refused = self.flows.refused(flow).expect("alive");
        if refused.copy.is_some() {
            let to = self.pick(Some(refused.backend));
            self.flows.moved(self.now, flow, to, &self.rules, to);
            self.used(flow, false);
            self.transmit(flow, false);
            assert_eq!(self.flows.refused(flow).and_then(|r| r.copy), None);
            self.flows.stayed(flow);
        }
    }

    fn change(&mut self) {
        let some: Vec<u8> = (1..=6).filter(|_| self.rng.chance(50)).collect();
        match self.rng.below(4) {
            0 if !some.is_empty() => {
                self.rules.backends = some.into_iter().map(backend).collect();
                self.rules.epoch += 1;
            }
            1 => self.alive = some.into_iter().map(backend).collect(),
            2 => self.alive = (1..=6).map(backend).collect(),
            _ => {
                self.rules.denied = match self.rng.chance(50) {
                    true => vec![IpAddr::from([192, 0, 2, self.rng.below(8) as u8])],
                    false => vec![],
                };
                self.rules.epoch += 1;
            }
        }
    }

    fn step(&mut self) {
        let pause = if self.rng.chance(2) {
            40_000_000
        } else {
            20_000
        };
        self.now = self.now + Duration::from_micros(self.rng.below(pause));
        self.deliver();
        if self.rng.chance(40) {
            self.spoofed += 1;
            let [_, b, c, d] = self.spoofed.to_be_bytes();
            self.datagram(SocketAddr::from(([100, b, c, d], 1)), true);
        } else {
            let from = [192, 0, 2, self.rng.below(8) as u8];
            let port = 1 + self.rng.below(10) as u16;
            self.datagram(SocketAddr::from((from, port)), false);
        }
        if self.rng.chance(3) {
            self.change();
        }
        while let Some(closed) = self.flows.expire(self.now) {
            self.forget(Some(closed), true);
        }
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.flows.len(), self.deadlines.len());
        assert!(self.flows.len() <= 40 && self.flows.copy_bytes() <= 600);
        for (id, (deadline, two_way)) in &self.deadlines {
            assert!(self.flows.part(*id).is_some(), "expired early: {id:?}");
            assert!(
                *deadline > self.now,
                "expired late: {id:?}, two-way: {two_way}"
            );
        }
    }
}

#[test]
fn invariants_hold_in_a_hostile_world() {
    struct Seed(u64);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("seed {}", self.0);
            }
        }
    }
    let mut answered = 0;
    for seed in 0..60 {
        let seed = Seed(seed);
        let mut world = World::new(seed.0);
        for _ in 0..1_500 {
            world.step();
        }
        answered += world.answered;
    }
    assert!(answered > 10_000, "the world must mostly work: {answered}");
}
