//! Pods or nodes, for a Service that leaves the choice: pods, while they can be reached from here.
//!
//! A node's pods are asked by a connection to one of its endpoints; that it is refused is an answer.
//! They count as unreachable where their node answers and they do not: a node that is dead takes
//! its pods with it, which the EndpointSlices say soon, and node ports would not help. Where not one
//! pod of any node answers there is no way to pods, whatever the nodes say.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use lb_core::table::Protocol;

use super::View;
use super::endpoints::{Endpoints, State};
use super::ports::Served;
use crate::object::{Family, Service};
use crate::probe::{self, Answer, KUBE_PROXY_PORT, Probe, Target, Wanted};
use crate::reason::Reason;

const NO_NODES: &str =
    "no Node is known; Weir needs to list and watch nodes (deploy/kubernetes/nodes.yaml grants it)";
const NO_NODE_PORT: &str =
    "a port has no nodePort; leave allocateLoadBalancerNodePorts at its default";
const NO_TARGET: &str = "no node may be dialled; see the labels of the nodes and --node-selector";

/// Are nodes to be dialled? Adds what has to be asked.
pub(super) fn falls_back(
    service: &Service,
    served: &[Served<'_>],
    endpoints: &Endpoints<'_>,
    view: View<'_>,
    probes: &mut BTreeSet<Probe>,
    reasons: &mut Vec<Reason>,
) -> bool {
    let wanted = of_pods(service, served, endpoints);
    let nodes = unreachable(&wanted, view, probes);
    let asked = wanted.iter().flat_map(|(target, places)| {
        let target = target.clone();
        places.iter().map(move |at| Probe {
            target: target.clone(),
            at: *at,
        })
    });
    probes.extend(asked);
    if nodes == 0 {
        return false;
    }
    let problem = if !view.nodes.known {
        NO_NODES
    } else if served.iter().any(|served| served.port.node_port.is_none()) {
        NO_NODE_PORT
    } else if view.nodes.targets.is_empty() {
        NO_TARGET
    } else {
        reasons.push(Reason::PodsUnreachable { nodes });
        return true;
    };
    reasons.push(Reason::NoFallback { nodes, problem });
    false
}

/// The ready endpoints of each node, of every TCP port; of a UDP port the nodes alone, which others may
/// know about: an endpoint that says nothing may have nothing to say.
fn of_pods(service: &Service, served: &[Served<'_>], endpoints: &Endpoints<'_>) -> Wanted {
    let mut wanted = Wanted::new();
    let key = &service.meta.key;
    for served in served {
        for family in [Family::V4, Family::V6] {
            for candidate in endpoints.of(served.port, family) {
                let (State::Ready, Some(node)) = (candidate.state, candidate.node) else {
                    continue;
                };
                let target = Target::Pods(key.source, key.cluster.clone(), node.into());
                let at = candidate.address;
                match served.protocol {
                    Protocol::Tcp => probe::add(&mut wanted, &Probe { target, at }),
                    Protocol::Udp => drop(wanted.entry(target).or_default()),
                }
            }
        }
    }
    wanted
}

/// On how many nodes pods are unreachable; 0 if that is the nodes' own fault.
fn unreachable(wanted: &Wanted, view: View<'_>, probes: &mut BTreeSet<Probe>) -> u32 {
    let silent = |target: &&Target| view.verdicts.get(*target) == Some(&Answer::Silent);
    let all = wanted.keys().filter(silent).count();
    let mut alone = 0;
    for target in wanted.keys() {
        let Target::Pods(_, _, name) = target else {
            continue;
        };
        // They are in order of their names.
        let nodes = &view.nodes.targets;
        let found = nodes.binary_search_by(|node| node.name.cmp(name));
        let node = found.ok().and_then(|at| nodes.get(at));
        let Some(address) = node.and_then(|node| node.v4.or(node.v6)) else {
            continue;
        };
        let at = SocketAddr::new(address, KUBE_PROXY_PORT);
        let health = Target::Proxy(at);
        let answer = view.verdicts.get(&health);
        let answers = answer.is_some_and(|answer| *answer != Answer::Silent);
        alone += u32::from(answers && silent(&target));
        probes.insert(Probe { target: health, at });
    }
    match all == wanted.len() {
        true => all as u32,
        false => alone,
    }
}
