//! The ports of a load balancer and the backends behind each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use lb_core::table::{Backend, BackendState, Protocol};

use crate::load_balancer::Port;
use crate::object::{Family, PortProtocol, Service, ServicePort, TrafficPolicy};
use crate::reason::Reason;

use super::by_nodes::ByNodes;
use super::endpoints::{Candidate, Endpoints, Hint, State};
use super::gate::Front;
use super::health::Health;
use super::text::shown;
use super::{Backends, Found, View, auto};

/// Most backends of one Service, over all its ports: the largest pool four times. Each takes some
/// 300 bytes until it is served, and ports times endpoints are written in few: without an end, a
/// manifest of 100 KiB takes 20 GB.
pub const MAX_BACKENDS: usize = 262_144;

/// A port that can be served: what clients dial, and the Service's port it stands for.
pub(super) struct Served<'a> {
    number: NonZeroU16,
    pub(super) protocol: Protocol,
    pub(super) port: &'a ServicePort,
}

/// Whose ports, and what is known of how they are to be served.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub service: &'a Service,
    pub front: Front,
    pub families: &'a [Family],
    pub dialled: Backends,
    pub view: View<'a>,
}

/// The ports of `service` with their backends for VIPs of `families`, sorted by number and
/// protocol. The same number on TCP and UDP makes two ports.
pub(super) fn ports(
    asked: Asked<'_>,
    endpoints: &Endpoints<'_>,
    found: &mut Found,
    reasons: &mut Vec<Reason>,
) -> Vec<Port> {
    let Asked {
        service,
        families,
        view,
        ..
    } = asked;
    let served = served(asked, reasons);
    let by_nodes = match asked.dialled {
        Backends::Pods => false,
        Backends::Nodes => true,
        Backends::Auto => {
            let probes = &mut found.probes;
            auto::falls_back(service, &served, endpoints, view, probes, reasons)
        }
    };
    if by_nodes && service.client_ip_affinity.is_some() {
        reasons.push(Reason::AffinityAtNodes);
    }
    let mut nodes = by_nodes.then(|| ByNodes::new(service, view));
    let mut health = match by_nodes {
        true => Health::of_nodes(service, view, reasons),
        false => Health::of(service, view, reasons),
    };
    let sizes = served.iter().map(|served| match &nodes {
        Some(nodes) => nodes.size(),
        None => endpoints.size_of(served.port),
    });
    let count: usize = sizes.sum();
    if count > MAX_BACKENDS {
        let most = MAX_BACKENDS;
        reasons.push(Reason::TooManyBackends { count, most });
        return Vec::new();
    }
    let mut made: Vec<Port> = served
        .into_iter()
        .map(|served| {
            let choice = match &mut nodes {
                Some(nodes) => nodes.choose(&served, endpoints, reasons),
                None => {
                    let mut all = [Family::V4, Family::V6].map(|f| endpoints.of(served.port, f));
                    health.sort_out(&served, &mut all, reasons);
                    choose(&all, service.external_traffic_policy)
                }
            };
            explain(served.port, &choice, families, endpoints, reasons);
            let backends = |family| {
                let wanted = families.contains(&family);
                let chosen = wanted.then(|| choice.of(family).0.backends.clone());
                chosen.unwrap_or_default()
            };
            Port {
                // Fit for a metric label too.
                name: shown(&served.port.name),
                port: served.number,
                protocol: served.protocol,
                v4: backends(Family::V4),
                v6: backends(Family::V6),
            }
        })
        .collect();
    let probes = nodes.map(|nodes| nodes.probes);
    found.probes.extend(probes.unwrap_or_default());
    health.explain(reasons);
    found.checks = health.checks;
    found.failing = health.failing;
    made.sort_unstable_by_key(|port| (port.port, port.protocol));
    made
}

/// What the owner should know of one port's backends.
fn explain(
    port: &ServicePort,
    choice: &Choice,
    families: &[Family],
    endpoints: &Endpoints<'_>,
    reasons: &mut Vec<Reason>,
) {
    let counts = endpoints.counts;
    if !endpoints.is_empty() && !endpoints.list(port) {
        reasons.push(Reason::PortNameMismatch {
            port: port.port.get(),
            name: shown(&port.name),
        });
    } else if !choice.without_node && choice.v4.backends.is_empty() && choice.v6.backends.is_empty()
    {
        reasons.push(Reason::NoUsableEndpoint {
            not_ready: counts.not_ready,
            terminating: counts.serving + counts.terminating,
        });
    }
    for &family in families {
        let (chosen, crossed) = choice.of(family);
        if crossed {
            reasons.push(Reason::CrossFamily { vip: family });
        }
        if chosen.terminating {
            reasons.push(Reason::OnlyTerminatingEndpoints {
                serving: counts.serving,
            });
        }
    }
}

fn served<'a>(asked: Asked<'a>, reasons: &mut Vec<Reason>) -> Vec<Served<'a>> {
    let service = asked.service;
    let mut seen = BTreeSet::new();
    let mut served = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let (protocol, word) = match port.protocol {
            PortProtocol::Tcp => (Protocol::Tcp, "tcp"),
            PortProtocol::Udp => (Protocol::Udp, "udp"),
            PortProtocol::Sctp => {
                reasons.push(Reason::PortProtocolNotSupported {
                    port: port.port.get(),
                });
                continue;
            }
        };
        let number = match asked.front {
            // Where pods are dialled a LoadBalancer Service needs no nodePort.
            Front::LoadBalancer => {
                let dialled = asked.dialled != Backends::Nodes || port.node_port.is_some();
                dialled.then_some(port.port)
            }
            Front::NodePort => port.node_port,
        };
        let Some(number) = number else {
            reasons.push(Reason::NoNodePort {
                port: port.port.get(),
            });
            continue;
        };
        if seen.insert((number, protocol)) {
            served.push(Served {
                number,
                protocol,
                port,
            });
        } else {
            reasons.push(Reason::DuplicatePort {
                port: number.get(),
                protocol: word,
            });
        }
    }
    if served.is_empty() {
        reasons.push(Reason::NoPorts);
    }
    served
}

/// The backends of one family.
#[derive(Default)]
pub(super) struct Chosen {
    pub backends: Vec<Backend>,
    /// They are all terminating.
    pub terminating: bool,
}

/// The backends of both families for one port.
pub(super) struct Choice {
    pub v4: Chosen,
    pub v6: Chosen,
    /// There are endpoints, and no node to reach them by.
    pub without_node: bool,
}

impl Choice {
    /// What a VIP of `family` uses, and whether that is the other family: only while its own has
    /// nothing usable and the other has.
    fn of(&self, family: Family) -> (&Chosen, bool) {
        let (own, other) = match family {
            Family::V4 => (&self.v4, &self.v6),
            Family::V6 => (&self.v6, &self.v4),
        };
        let crossed = own.backends.is_empty() && !other.backends.is_empty();
        (if crossed { other } else { own }, crossed)
    }
}

fn choose([v4, v6]: &[Vec<Candidate<'_>>; 2], policy: TrafficPolicy) -> Choice {
    Choice {
        v4: usable(v4, policy),
        v6: usable(v6, policy),
        without_node: false,
    }
}

/// Ready endpoints, narrowed by hints; while there are any, terminating ones that still serve keep
/// their UDP flows and get nothing new. Without a ready one they take everything (KEP-1669). What
/// is terminating and does not serve is never used.
fn usable(candidates: &[Candidate<'_>], policy: TrafficPolicy) -> Chosen {
    let ready: Vec<&Candidate<'_>> = with(candidates, State::Ready).collect();
    let serving = |state| with(candidates, State::Serving).map(move |c| backend(c.address, state));
    if ready.is_empty() {
        let backends: Vec<Backend> = serving(BackendState::Active).collect();
        let terminating = !backends.is_empty();
        return Chosen {
            backends,
            terminating,
        };
    }
    let hinted = follow_hints(&ready, policy);
    let mut backends: Vec<Backend> = ready
        .iter()
        .filter(|c| !hinted || c.hint == Hint::Ours)
        .map(|c| backend(c.address, BackendState::Active))
        .chain(serving(BackendState::Draining))
        .collect();
    backends.sort_unstable();
    Chosen {
        backends,
        terminating: false,
    }
}

/// Zone hints count if every ready endpoint has one and at least one is for our zone, and not
/// under the Local policy. Hints for nodes stand above them and are judged alike, but this
/// appliance is no node of the cluster, so that none ever matches.
fn follow_hints(ready: &[&Candidate<'_>], policy: TrafficPolicy) -> bool {
    policy != TrafficPolicy::Local
        && ready.iter().all(|c| c.hint != Hint::None)
        && ready.iter().any(|c| c.hint == Hint::Ours)
}

fn with<'c, 'a>(
    candidates: &'c [Candidate<'a>],
    state: State,
) -> impl Iterator<Item = &'c Candidate<'a>> {
    candidates.iter().filter(move |c| c.state == state)
}

/// Kubernetes has no weights: all endpoints are equal.
fn backend(address: SocketAddr, state: BackendState) -> Backend {
    Backend {
        address,
        weight: 1,
        state,
    }
}
