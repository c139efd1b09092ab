//! From a Service as it is stored, and what became of it here, to the next step. PURE.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::table::Protocol;

use super::Intent;
use crate::object::{
    CLEANUP_FINALIZER, Condition, FINALIZER, Ingress, IngressPort, PortProtocol, Service,
    ServiceType,
};
use crate::reason::{Reason, Severity};
use crate::status::{ServiceStatus, State};

/// Our condition: True while at least one port serves.
pub(super) const SERVING: &str = "weir.dev/Serving";
/// The only standard condition of a Service (KEP-1435).
pub(super) const PORTS_ERROR: &str = "LoadBalancerPortsError";
/// Its reason when some of the ports' protocols are not supported.
const MIXED_PROTOCOL: &str = "LoadBalancerMixedProtocolNotSupported";
/// A message of ours is cut after so many bytes; the API allows 32,768.
const MESSAGE: usize = 1_024;

/// The next thing to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Add these finalizers.
    Claim(Vec<&'static str>),
    /// Write this status.
    Publish(Status),
    /// Take these finalizers away: nothing is left of it here.
    Release(Vec<&'static str>),
}

/// A status to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Status {
    /// All of ingress, if it changes.
    pub(super) ingress: Option<Vec<Ingress>>,
    /// Conditions that change.
    pub(super) conditions: Vec<Condition>,
    /// Types of conditions that go.
    pub(super) gone: Vec<&'static str>,
}

/// The next step, if one is due. `contested`: another undoes what we write.
pub(super) fn next(intent: &Intent, contested: bool) -> Option<Step> {
    let service = &intent.service;
    let status = intent.status.as_deref();
    if intent.early {
        return None;
    }
    match (intent.ours, service.kind == ServiceType::LoadBalancer) {
        (true, true) => keep(service, status),
        // The API server takes a status for no other type (kubernetes#119789): what is fronted all
        // the same is told in events, and what was written when it was a load balancer goes.
        (true, false) => leave(service, None, contested),
        (false, _) => leave(service, status, contested),
    }
}

fn keep(service: &Service, status: Option<&ServiceStatus>) -> Option<Step> {
    let stored = &service.stored;
    let mut missing = Vec::new();
    if service.class.is_none() && !stored.cleanup_finalizer {
        missing.push(CLEANUP_FINALIZER);
    }
    if !stored.finalizer {
        missing.push(FINALIZER);
    }
    if !missing.is_empty() {
        return Some(Step::Claim(missing));
    }
    let status = status?;
    if status.settling || (status.state == State::Pending && status.reasons.is_empty()) {
        // The workers and the machine have not said yet how it fares.
        return withdrawn(service, status);
    }
    let mut change = Status::default();
    let ingress = ingress(service, status);
    if ingress != stored.ingress {
        change.ingress = Some(ingress);
    }
    for (kind, wanted) in [
        (SERVING, Some(serving(service, status))),
        (PORTS_ERROR, ports_error(service, status)),
    ] {
        let found = stored.conditions.iter().find(|c| &*c.kind == kind);
        match (wanted, found) {
            (Some(wanted), found) if found.is_none_or(|found| !found.says(&wanted)) => {
                change.conditions.push(wanted);
            }
            // Only what is ours: another may say something of the ports too.
            (None, Some(found)) if *found.reason == *MIXED_PROTOCOL => {
                change.gone.push(PORTS_ERROR)
            }
            _ => {}
        }
    }
    (change != Status::default()).then_some(Step::Publish(change))
}

/// Addresses that it has no more are withdrawn at once, whatever else is on its way.
fn withdrawn(service: &Service, status: &ServiceStatus) -> Option<Step> {
    let stored = &service.stored.ingress;
    let kept = |entry: &&Ingress| entry.ip.is_some_and(|ip| status.addresses.contains(&ip));
    let left: Vec<Ingress> = stored.iter().filter(kept).cloned().collect();
    (left != *stored).then(|| {
        Step::Publish(Status {
            ingress: Some(left),
            ..Status::default()
        })
    })
}

fn leave(service: &Service, status: Option<&ServiceStatus>, contested: bool) -> Option<Step> {
    let stored = &service.stored;
    if !stored.finalizer {
        return None;
    }
    if status.is_some_and(|status| !status.addresses.is_empty() || status.settling) {
        // It holds an address still.
        return None;
    }
    let ours = stored.conditions.iter().filter_map(|condition| {
        [SERVING, PORTS_ERROR]
            .into_iter()
            .find(|kind| *kind == &*condition.kind)
    });
    let gone: Vec<_> = ours.collect();
    // Another's addresses are not ours to take away, and we would not get the better of it.
    let clears = !contested && !stored.ingress.is_empty();
    if clears || !gone.is_empty() {
        return Some(Step::Publish(Status {
            ingress: clears.then(Vec::new),
            conditions: Vec::new(),
            gone,
        }));
    }
    let mut finalizers = vec![FINALIZER];
    if stored.cleanup_finalizer && service.class.is_none() {
        finalizers.insert(0, CLEANUP_FINALIZER);
    }
    Some(Step::Release(finalizers))
}

/// What clients of the cluster are told: addresses that work, in the order of the families.
fn ingress(service: &Service, status: &ServiceStatus) -> Vec<Ingress> {
    let live = !matches!(status.state, State::Pending | State::Refused);
    let published = |ip: &IpAddr| {
        let mut stored = service.stored.ingress.iter();
        stored.any(|entry| entry.ip == Some(*ip))
    };
    let shown = status.addresses.iter().filter(|ip| live || published(ip));
    let errors = errors(service, status);
    let entries = shown.map(|ip| Ingress {
        ip: Some(*ip),
        hostname: None,
        // We rewrite the destination (KEP-1860).
        proxied: true,
        ports: ports(service, &errors),
    });
    entries.collect()
}

/// Ports that are not served, and the word for why; `domain/CamelCase`, as the API wants it.
fn errors(
    service: &Service,
    status: &ServiceStatus,
) -> BTreeMap<(u16, PortProtocol), &'static str> {
    let mut errors = BTreeMap::new();
    for port in &service.ports {
        if port.protocol == PortProtocol::Sctp {
            errors.insert(
                (port.port.get(), port.protocol),
                "weir.dev/SCTPNotSupported",
            );
        }
    }
    for reason in &status.reasons {
        if let Reason::NoNodePort { port } = reason {
            let ports = service
                .ports
                .iter()
                .filter(|found| found.port.get() == *port);
            let ports = ports.filter(|found| found.node_port.is_none());
            errors.extend(ports.map(|port| {
                let key = (port.port.get(), port.protocol);
                (key, "weir.dev/NoNodePort")
            }));
        }
        let (frontend, word) = match reason {
            Reason::NotListening { frontend, .. } => (frontend, "weir.dev/NotListening"),
            Reason::DescriptorLimit { frontend, .. } => (frontend, "weir.dev/DescriptorLimit"),
            Reason::FrontendTaken { frontend, .. } => (frontend, "weir.dev/FrontendTaken"),
            _ => continue,
        };
        let protocol = match frontend.protocol {
            Protocol::Tcp => PortProtocol::Tcp,
            Protocol::Udp => PortProtocol::Udp,
        };
        errors.insert((frontend.port.get(), protocol), word);
    }
    errors
}

/// Every port, if one of them has an error; none otherwise.
fn ports(
    service: &Service,
    errors: &BTreeMap<(u16, PortProtocol), &'static str>,
) -> Vec<IngressPort> {
    if errors.is_empty() {
        return Vec::new();
    }
    let ports = service.ports.iter().map(|port| IngressPort {
        port: port.port.get(),
        protocol: port.protocol,
        error: errors
            .get(&(port.port.get(), port.protocol))
            .map(|error| Arc::from(*error)),
    });
    ports.collect()
}

fn serving(service: &Service, status: &ServiceStatus) -> Condition {
    let trouble = status
        .reasons
        .iter()
        .filter(|reason| reason.severity() != Severity::Note);
    let said: Vec<String> = trouble.clone().map(ToString::to_string).collect();
    let serves = matches!(status.state, State::Serving | State::Degraded);
    let reason = match (trouble.clone().next(), status.state) {
        (Some(reason), _) => reason.code(),
        (None, State::Serving) => "Serving",
        (None, State::Degraded) => "Degraded",
        (None, State::Closed) => "NoUsableEndpoint",
        (None, State::Pending | State::Refused) => "Pending",
    };
    let message = match said.is_empty() {
        true => {
            let addresses: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
            format!(
                "{} at {}",
                super::events::word(status.state),
                addresses.join(", ")
            )
        }
        false => said.join("; "),
    };
    Condition {
        kind: SERVING.into(),
        status: if serves { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: cut(message, MESSAGE).into(),
        observed_generation: service.stored.generation,
        since: Arc::default(),
    }
}

fn ports_error(service: &Service, status: &ServiceStatus) -> Option<Condition> {
    let unsupported = |reason: &&Reason| matches!(reason, Reason::PortProtocolNotSupported { .. });
    let said: Vec<_> = status.reasons.iter().filter(unsupported).collect();
    let said: Vec<String> = said.into_iter().map(ToString::to_string).collect();
    (!said.is_empty()).then(|| Condition {
        kind: PORTS_ERROR.into(),
        status: "True".into(),
        reason: MIXED_PROTOCOL.into(),
        message: cut(said.join("; "), MESSAGE).into(),
        observed_generation: service.stored.generation,
        since: Arc::default(),
    })
}

/// The first `limit` bytes, or a few less: no character is cut.
pub(super) fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
    }
    text
}
