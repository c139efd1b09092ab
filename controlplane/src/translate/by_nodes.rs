//! Backends of a Service that is dialled at its node ports: the nodes that may be dialled, judged by
//! what probes found of them.
//!
//! ```text
//!   Cluster policy: kube-proxy's health (:10256/healthz)   200 active   503 drains
//!   Local policy:   the Service's (healthCheckNodePort)    200 active   503 drains
//!   either, refused, odd or silent: a connection to the node port says; of a UDP port nothing does
//! ```
//!
//! What is not known yet counts as good: it was so a moment ago, and the data plane tries another
//! backend within 250 ms. Where no node is active those that drain are dialled, and where none
//! drains those that do not answer: what probes say may be wrong, and nothing is lost by trying.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_core::table::{Backend, BackendState, Protocol};

use super::View;
use super::endpoints::{Candidate, Endpoints, State};
use super::ports::{Choice, Chosen, Served};
use crate::nodes::Target as Node;
use crate::object::{Family, Service, TrafficPolicy};
use crate::probe::{Answer, KUBE_PROXY_PORT, Probe, Target};
use crate::reason::Reason;

/// How a node stands for one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// It takes new work, with this weight if it says one.
    Active(Option<u16>),
    /// It wants none.
    Draining,
    /// It does not answer.
    Down,
}

/// Where a port's endpoints are, as far as a node port forwards to them.
struct Places<'a> {
    /// Nodes with a ready one.
    ready: BTreeSet<&'a str>,
    /// Nodes with one that serves and terminates.
    serving: BTreeSet<&'a str>,
    /// Every one says its node.
    known: bool,
}

/// One Service that is dialled at its node ports.
pub(super) struct ByNodes<'a> {
    service: &'a Service,
    view: View<'a>,
    /// What has to be asked.
    pub(super) probes: BTreeSet<Probe>,
}

impl<'a> ByNodes<'a> {
    pub(super) fn new(service: &'a Service, view: View<'a>) -> ByNodes<'a> {
        ByNodes {
            service,
            view,
            probes: BTreeSet::new(),
        }
    }

    /// How many backends a port has at most.
    pub(super) fn size(&self) -> usize {
        2 * self.view.nodes.targets.len()
    }

    /// The backends of one port.
    pub(super) fn choose(
        &mut self,
        served: &Served<'_>,
        endpoints: &Endpoints<'_>,
        reasons: &mut Vec<Reason>,
    ) -> Choice {
        let nodes = self.view.nodes;
        if !nodes.known {
            reasons.push(Reason::NodesUnknown);
        }
        let v4 = self.of(served, Family::V4, endpoints, reasons);
        let v6 = self.of(served, Family::V6, endpoints, reasons);
        let none = v4.backends.is_empty() && v6.backends.is_empty();
        let usable = |family| !self.usable(served, family, endpoints).is_empty();
        let without_node = none && (usable(Family::V4) || usable(Family::V6));
        if without_node && nodes.known {
            reasons.push(Reason::NoEligibleNode { out: nodes.out });
        }
        Choice {
            v4,
            v6,
            without_node,
        }
    }

    /// The endpoints that a node port of this family forwards to.
    fn usable<'e>(
        &self,
        served: &Served<'_>,
        family: Family,
        endpoints: &Endpoints<'e>,
    ) -> Vec<Candidate<'e>> {
        let families = &self.service.ip_families;
        if !families.is_empty() && !families.contains(&family) {
            return Vec::new();
        }
        let mut all = endpoints.of(served.port, family);
        all.retain(|candidate| matches!(candidate.state, State::Ready | State::Serving));
        all
    }

    fn of(
        &mut self,
        served: &Served<'_>,
        family: Family,
        endpoints: &Endpoints<'_>,
        reasons: &mut Vec<Reason>,
    ) -> Chosen {
        let usable = self.usable(served, family, endpoints);
        let (Some(node_port), false) = (served.port.node_port, usable.is_empty()) else {
            return Chosen::default();
        };
        let places = places(&usable);
        let mut stands = Vec::new();
        for node in &self.view.nodes.targets {
            let Some(address) = node.address(family) else {
                continue;
            };
            let at = SocketAddr::new(address, node_port.get());
            if let Some(stand) = self.stand(node, at, served.protocol, &places) {
                stands.push((at, stand));
            }
        }
        if let Some(reason) = unhealthy(&stands) {
            reasons.push(reason);
        }
        Chosen {
            backends: backends(stands),
            terminating: places.ready.is_empty() && places.known,
        }
    }

    /// How `node` stands, whose node port is `at`; `None` if it never forwards to an endpoint.
    fn stand(
        &mut self,
        node: &Node,
        at: SocketAddr,
        protocol: Protocol,
        places: &Places<'_>,
    ) -> Option<Stand> {
        let stand = match self.service.external_traffic_policy {
            TrafficPolicy::Cluster => self.asked(at, KUBE_PROXY_PORT, protocol, true),
            TrafficPolicy::Local => self.local(node, at, protocol, places)?,
        };
        Some(match stand {
            Stand::Active(_) if node.leaving => Stand::Draining,
            stand => stand,
        })
    }

    /// Under the Local policy a node forwards to its own endpoints alone. What the slices say is
    /// ahead of what the node says in one direction: an endpoint that goes.
    fn local(
        &mut self,
        node: &Node,
        at: SocketAddr,
        protocol: Protocol,
        places: &Places<'_>,
    ) -> Option<Stand> {
        let has = |nodes: &BTreeSet<&str>| nodes.contains(&*node.name);
        let (ready, serving) = (has(&places.ready), has(&places.serving));
        if places.known && !ready && !serving {
            return None;
        }
        let port = self.service.health_check_node_port;
        let port = port.map_or(KUBE_PROXY_PORT, std::num::NonZeroU16::get);
        // Where nobody says which node has endpoints, a node that was not asked may have none.
        let stand = self.asked(at, port, protocol, places.known);
        Some(match stand {
            Stand::Active(_) if places.known && !ready => Stand::Draining,
            stand => stand,
        })
    }

    /// What the health at `port` of a node says, and its node port `at` where that says nothing.
    fn asked(&mut self, at: SocketAddr, port: u16, protocol: Protocol, hope: bool) -> Stand {
        let health = SocketAddr::new(at.ip(), port);
        let silent = match self.verdict(Target::Proxy(health), health) {
            Some(Answer::Good(weight)) => return Stand::Active(weight),
            Some(Answer::Draining) => return Stand::Draining,
            None if hope => return Stand::Active(None),
            None => return Stand::Draining,
            Some(Answer::Silent) => true,
            Some(Answer::Refused | Answer::Odd | Answer::Status(_)) => false,
        };
        let port = match protocol {
            Protocol::Tcp => self.verdict(Target::Port(at), at),
            // Nothing says whether a UDP port is there.
            Protocol::Udp => None,
        };
        match port {
            Some(Answer::Good(_)) => Stand::Active(None),
            Some(_) => Stand::Down,
            None if silent => Stand::Down,
            None => Stand::Active(None),
        }
    }

    /// What is known of `target`, which is asked from now on.
    fn verdict(&mut self, target: Target, at: SocketAddr) -> Option<Answer> {
        let verdict = self.view.verdicts.get(&target).copied();
        self.probes.insert(Probe { target, at });
        verdict
    }
}

fn places<'a>(usable: &[Candidate<'a>]) -> Places<'a> {
    let on = |state| {
        let all = usable
            .iter()
            .filter(move |candidate| candidate.state == state);
        all.filter_map(|candidate| candidate.node).collect()
    };
    Places {
        ready: on(State::Ready),
        serving: on(State::Serving),
        known: usable.iter().all(|candidate| candidate.node.is_some()),
    }
}

/// Said where nobody is active.
fn unhealthy(stands: &[(SocketAddr, Stand)]) -> Option<Reason> {
    let count = |wanted: Stand| stands.iter().filter(|(_, stand)| *stand == wanted).count() as u32;
    let active = |(_, stand): &(SocketAddr, Stand)| matches!(stand, Stand::Active(_));
    let none = !stands.is_empty() && !stands.iter().any(active);
    none.then(|| Reason::NoHealthyNode {
        draining: count(Stand::Draining),
        silent: count(Stand::Down),
    })
}

/// The active ones, and those that drain; where nobody is active the next best is.
fn backends(mut stands: Vec<(SocketAddr, Stand)>) -> Vec<Backend> {
    let is_active = |stand: &Stand| matches!(stand, Stand::Active(_));
    for next in [Stand::Draining, Stand::Down] {
        if !stands.iter().any(|(_, stand)| is_active(stand)) {
            let of_next = stands.iter_mut().filter(|(_, stand)| *stand == next);
            of_next.for_each(|(_, stand)| *stand = Stand::Active(None));
        }
    }
    let active = stands.iter().filter(|(_, stand)| is_active(stand));
    // Weights of some and none of others cannot be compared.
    let weighted = active
        .clone()
        .all(|(_, stand)| matches!(stand, Stand::Active(Some(_))));
    let mut backends: Vec<Backend> = stands
        .iter()
        .filter_map(|(address, stand)| {
            let (weight, state) = match stand {
                Stand::Active(Some(weight)) if weighted => (*weight, BackendState::Active),
                Stand::Active(_) => (1, BackendState::Active),
                Stand::Draining => (1, BackendState::Draining),
                Stand::Down => return None,
            };
            Some(Backend {
                address: *address,
                weight,
                state,
            })
        })
        .collect();
    // Two nodes that say one address are one backend: active before draining.
    backends.sort_unstable_by_key(|backend| (backend.address, backend.state, backend.weight));
    backends.dedup_by_key(|backend| backend.address);
    backends
}
