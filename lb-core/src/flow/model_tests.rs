//! The flows against a model that is a plain list, searched from end to end.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;

use super::fixture::{Fixed, backend, client, rules};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Datagram {
        source: u8,
        port: u16,
        frontend: u64,
        len: usize,
    },
    Reply(usize),
    Refused(usize),
    Wait(u64),
    Pool(u64, Vec<u8>),
    Deny(u64, Option<u8>),
    CloseFrontend(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (0u8..4, 0u16..4, 0u64..2, prop_oneof![0usize..40, Just(COPY_MAX + 1)])
            .prop_map(|(source, port, frontend, len)| Op::Datagram { source, port, frontend, len }),
        4 => any::<usize>().prop_map(Op::Reply),
        3 => any::<usize>().prop_map(Op::Refused),
        4 => prop_oneof![1u64..200_000, 1_000_000u64..40_000_000].prop_map(Op::Wait),
        1 => (0u64..2, prop::collection::vec(1u8..4, 1..3)).prop_map(|(f, p)| Op::Pool(f, p)),
        1 => (0u64..2, prop::option::of(0u8..4)).prop_map(|(f, s)| Op::Deny(f, s)),
        1 => (0u64..2).prop_map(Op::CloseFrontend),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Naive {
    frontend: u64,
    client: SocketAddr,
    backend: SocketAddr,
    opened: Time,
    deadline: Time,
    two_way: bool,
    answered: bool,
    refused: bool,
    copy: Option<Vec<u8>>,
}

struct Model {
    limits: Limits,
    /// In order of opening.
    flows: Vec<Naive>,
}

impl Model {
    fn oldest(&self, now: Time, source: Option<IpAddr>) -> Option<usize> {
        let at = self
            .flows
            .iter()
            .position(|f| !f.two_way && source.is_none_or(|s| f.client.ip() == s))?;
        (now.since(self.flows[at].opened) >= self.limits.one_way_grace).then_some(at)
    }

    /// What the datagram meets: the answer's name, and the room made.
    fn datagram(&mut self, now: Time, from: SocketAddr, r: &Fixed) -> &'static str {
        let found = self
            .flows
            .iter()
            .position(|f| f.frontend == r.frontend && f.client == from);
        if r.denied.contains(&from.ip()) {
            found.map(|at| self.flows.remove(at));
            return "denied";
        }
        if let Some(at) = found {
            let f = &mut self.flows[at];
            if !r.backends.contains(&f.backend) || f.refused {
                return "move";
            }
            return "forward";
        }
        let of_source = self
            .flows
            .iter()
            .filter(|f| f.client.ip() == from.ip())
            .count();
        let (victim, refusal) = if of_source >= self.limits.flows_per_source {
            (self.oldest(now, Some(from.ip())), "source limit")
        } else if self.flows.len() >= self.limits.flows {
            (self.oldest(now, None), "limit")
        } else {
            return "open";
        };
        match victim {
            Some(at) => {
                self.flows.remove(at);
                "open"
            }
            None => refusal,
        }
    }

    fn copies(&self) -> usize {
        self.flows
            .iter()
            .filter_map(|f| f.copy.as_ref().map(Vec::len))
            .sum()
    }

    fn find(&mut self, frontend: u64, client: SocketAddr) -> &mut Naive {
        self.flows
            .iter_mut()
            .find(|f| f.frontend == frontend && f.client == client)
            .expect("model has the flow")
    }
}

fn name<T>(verdict: &Verdict<T>) -> &'static str {
    match verdict {
        Verdict::Forward(_) => "forward",
        Verdict::Move { .. } => "move",
        Verdict::Open { .. } => "open",
        Verdict::Drop { reason, .. } => match reason {
            Refusal::SourceDenied => "denied",
            Refusal::FlowLimit => "limit",
            Refusal::SourceFlowLimit => "source limit",
        },
    }
}

struct Pair {
    now: Time,
    rules: [Fixed; 2],
    real: Flows<(u64, SocketAddr)>,
    model: Model,
}

impl Pair {
    fn new() -> Pair {
        let limits = Limits {
            flows: 6,
            flows_per_source: 3,
            ..Limits::default()
        };
        let timeouts = [(30, 120), (5, 7)].map(|(one, two)| Timeouts {
            one_way: Duration::from_secs(one),
            two_way: Duration::from_secs(two),
        });
        Pair {
            now: Time::ZERO,
            rules: [0u64, 1].map(|frontend| Fixed {
                frontend,
                timeouts: timeouts[frontend as usize],
                ..rules()
            }),
            real: Flows::new(limits, [3; 16]),
            model: Model {
                limits,
                flows: vec![],
            },
        }
    }

    fn datagram(&mut self, from: SocketAddr, frontend: u64, payload: &[u8]) {
        let r = self.rules[frontend as usize].clone();
        let expected = self.model.datagram(self.now, from, &r);
        let verdict = self.real.datagram(self.now, from, &r);
        assert_eq!(name(&verdict), expected);
        let idle = |two_way| r.timeouts.of(two_way);
        let (id, to) = match verdict {
            Verdict::Forward(id) => (id, None),
            Verdict::Drop { .. } => return,
            Verdict::Open { admission, .. } => {
                let to = r.backends[0];
                let part = (frontend, from);
                self.model.flows.push(Naive {
                    frontend,
                    client: from,
                    backend: to,
                    opened: self.now,
                    deadline: self.now,
                    two_way: false,
                    answered: false,
                    refused: false,
                    copy: None,
                });
                (self.real.open(self.now, admission, to, part), Some(to))
            }
            Verdict::Move { flow, avoid } => {
                let to = r
                    .backends
                    .iter()
                    .copied()
                    .find(|b| Some(*b) != avoid)
                    .unwrap_or(r.backends[0]);
                self.real.moved(self.now, flow, to, &r, (frontend, from));
                (flow, Some(to))
            }
        };
        let f = self.model.find(frontend, from);
        if let Some(to) = to {
            f.backend = to;
            (f.answered, f.refused, f.copy) = (false, false, None);
        }
        f.deadline = self.now + idle(f.two_way);
        if !f.answered {
            f.copy = (payload.len() <= COPY_MAX).then(|| payload.to_vec());
        }
        let unkept = self.real.sent(id, payload);
        assert_eq!(unkept, payload.len() > COPY_MAX && !f.answered);
    }

    fn nth(&self, n: usize) -> Option<(Naive, FlowId)> {
        let f = self
            .model
            .flows
            .get(n.checked_rem(self.model.flows.len())?)?;
        Some((
            f.clone(),
            self.real.find(&(f.frontend, f.client)).expect("it lives"),
        ))
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Datagram {
                source,
                port,
                frontend,
                len,
            } => {
                self.datagram(client(source, port), frontend, &vec![source; len]);
            }
            Op::Reply(n) => {
                if let Some((f, id)) = self.nth(n) {
                    let t = self.rules[f.frontend as usize].timeouts;
                    assert_eq!(self.real.replied(self.now, id, t), Some(f.client));
                    let deadline = self.now + t.two_way;
                    let f = self.model.find(f.frontend, f.client);
                    (f.two_way, f.answered, f.refused) = (true, true, false);
                    (f.copy, f.deadline) = (None, deadline);
                }
            }
            Op::Refused(n) => {
                if let Some((f, id)) = self.nth(n) {
                    let refused = self.real.refused(id).expect("alive");
                    assert_eq!((refused.backend, refused.copy), (f.backend, f.copy));
                    let f = self.model.find(f.frontend, f.client);
                    (f.refused, f.copy) = (true, None);
                }
            }
            Op::Wait(micros) => self.now = self.now + Duration::from_micros(micros),
            Op::Pool(frontend, backends) => {
                let r = &mut self.rules[frontend as usize];
                r.epoch += 1;
                r.backends = backends.into_iter().map(backend).collect();
            }
            Op::Deny(frontend, source) => {
                let r = &mut self.rules[frontend as usize];
                r.epoch += 1;
                r.denied = source.map(|s| client(s, 0).ip()).into_iter().collect();
            }
            Op::CloseFrontend(frontend) => {
                while self.real.close_one_of(frontend).is_some() {}
                self.model.flows.retain(|f| f.frontend != frontend);
            }
        }
    }

    fn compare(&mut self) {
        let now = self.now;
        let due = |f: &Naive| f.deadline <= now;
        let mut expected: Vec<_> = self.model.flows.iter().filter(|f| due(f)).collect();
        expected.sort_by_key(|f| (f.frontend, f.client));
        let expected: Vec<_> = expected.iter().map(|f| (f.frontend, f.client)).collect();
        let mut expired = vec![];
        while let Some(closed) = self.real.expire(now) {
            expired.push(closed.part);
        }
        expired.sort();
        assert_eq!(expired, expected);
        self.model.flows.retain(|f| !due(f));
        assert_eq!(self.real.len(), self.model.flows.len());
        assert_eq!(self.real.slots.len(), self.model.flows.len());
        let first = self.model.flows.iter().map(|f| f.deadline).min();
        assert!(first.is_none_or(|at| self.real.next_deadline().is_some_and(|d| d <= at)));
        assert!(self.real.copy_bytes() >= self.model.copies());
        for f in &self.model.flows {
            let id = self.real.find(&(f.frontend, f.client)).expect("it lives");
            assert_eq!(self.real.part(id), Some(&(f.frontend, f.client)));
            assert_eq!(self.real.backend(id), Some(f.backend));
        }
        if self.model.flows.is_empty() {
            assert_eq!(self.real.copy_bytes(), 0);
            assert_eq!(self.real.sources.len(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 400 }))]

    #[test]
    fn the_flows_do_as_the_naive_list_does(ops in prop::collection::vec(op(), 1..120)) {
        let mut pair = Pair::new();
        for op in ops {
            pair.apply(op);
            pair.compare();
        }
    }
}
