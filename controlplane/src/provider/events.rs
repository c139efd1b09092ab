//! What a Service's events say: the reasons of the service controller (cloud-provider) and of MetalLB, that
//! dashboards know, with our own text. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Intent;
use super::plan::cut;
use crate::object::Key;
use crate::reason::{Reason, Severity};
use crate::status::{ServiceStatus, State};

/// The API allows 1,024 bytes (ValidateEvent).
const MESSAGE: usize = 1_024;

/// One event to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn normal(reason: &'static str, message: String) -> Event {
    Event {
        warning: false,
        reason,
        message: cut(message, MESSAGE),
    }
}

fn warning(reason: &'static str, message: String) -> Event {
    Event {
        warning: true,
        reason,
        message: cut(message, MESSAGE),
    }
}

/// What was told of one Service.
#[derive(Clone, Debug, Default)]
struct Told {
    addresses: Vec<IpAddr>,
    /// Those addresses are of an earlier process.
    inherited: bool,
    serving: bool,
    /// Codes of the reasons, and what each is about where it is about one thing.
    reasons: BTreeSet<(&'static str, String)>,
    leaving: bool,
}

impl Told {
    /// Those reasons that were not told.
    fn news(&mut self, status: &ServiceStatus) -> Vec<Event> {
        let told = std::mem::take(&mut self.reasons);
        self.reasons = status.reasons.iter().map(about).collect();
        let news = status.reasons.iter();
        let news = news.filter(|reason| !told.contains(&about(reason)));
        news.map(of_reason).collect()
    }
}

/// What was told of each Service.
#[derive(Debug, Default)]
pub(super) struct Story(BTreeMap<Key, Told>);

impl Story {
    /// What is new of a Service. The first look at one that was published by an earlier process
    /// tells nothing that it told.
    pub(super) fn next(&mut self, intent: &Intent) -> Vec<Event> {
        let key = &intent.service.meta.key;
        match intent.ours {
            true => self.of_ours(key, intent),
            false => self.of_leaving(key, intent),
        }
    }

    /// `key` is gone, or is not ours any more and was released.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    fn of_ours(&mut self, key: &Key, intent: &Intent) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.0.contains_key(key) {
            let stored = &intent.service.stored;
            if !stored.finalizer {
                let text = "Ensuring load balancer".to_owned();
                events.push(normal("EnsuringLoadBalancer", text));
            }
            let told = Told {
                addresses: stored.ingress.iter().filter_map(|entry| entry.ip).collect(),
                inherited: true,
                serving: !stored.ingress.is_empty(),
                ..Told::default()
            };
            self.0.insert(key.clone(), told);
        }
        let Some(status) = &intent.status else {
            return events;
        };
        if status.settling || (status.state == State::Pending && status.reasons.is_empty()) {
            return events;
        }
        let Some(told) = self.0.get_mut(key) else {
            return events;
        };
        if intent.early {
            return told.news(status);
        }
        let inherited = std::mem::take(&mut told.inherited);
        if told.addresses != status.addresses {
            let given = list(&status.addresses);
            if inherited && !told.addresses.is_empty() {
                let text = format!(
                    "Its status named {}, which this appliance cannot keep: it is in no pool, or held by another",
                    list(&told.addresses)
                );
                events.push(warning("AddressNotKept", text));
            }
            if !status.addresses.is_empty() {
                events.push(normal("IPAllocated", format!("Assigned {given}")));
            }
            told.addresses.clone_from(&status.addresses);
            told.serving = false;
        }
        let serves = matches!(status.state, State::Serving | State::Degraded);
        if serves && !told.serving {
            let text = format!("Serving at {}", list(&status.addresses));
            events.push(normal("EnsuredLoadBalancer", text));
        }
        told.serving = serves || (told.serving && status.state == State::Closed);
        events.append(&mut told.news(status));
        events
    }

    fn of_leaving(&mut self, key: &Key, intent: &Intent) -> Vec<Event> {
        if !intent.service.stored.finalizer {
            return self.of_others(key, intent);
        }
        let told = self.0.entry(key.clone()).or_default();
        if std::mem::replace(&mut told.leaving, true) {
            return Vec::new();
        }
        let text = "Deleting load balancer".to_owned();
        vec![normal("DeletingLoadBalancer", text)]
    }

    /// Not ours: said if another provider is why.
    fn of_others(&mut self, key: &Key, intent: &Intent) -> Vec<Event> {
        let Some(reason) = rival(intent) else {
            self.0.remove(key);
            return Vec::new();
        };
        let told = self.0.entry(key.clone()).or_default();
        let is_news = told.reasons.insert(about(reason));
        is_news.then(|| of_reason(reason)).into_iter().collect()
    }

    /// The finalizers are gone.
    pub(super) fn released(&mut self, key: &Key) -> Event {
        self.0.remove(key);
        normal("DeletedLoadBalancer", "Deleted load balancer".to_owned())
    }
}

/// The other provider that a Service is left to.
pub(super) fn rival(intent: &Intent) -> Option<&Reason> {
    let status = intent.status.as_deref()?;
    let mut reasons = status.reasons.iter();
    reasons.find(|reason| matches!(reason, Reason::RivalProvider { .. }))
}

/// A write failed.
pub(super) fn failed(error: &str) -> Event {
    warning(
        "UpdateLoadBalancerFailed",
        format!("Cannot write to the API server: {error}"),
    )
}

/// A reason without the numbers that move with every pod.
fn about(reason: &Reason) -> (&'static str, String) {
    let of = match reason {
        Reason::NoUsableEndpoint { .. } | Reason::OnlyTerminatingEndpoints { .. } => String::new(),
        Reason::MoreEndpointsRefused { .. } | Reason::TooManyBackends { .. } => String::new(),
        Reason::NoEligibleNode { .. } | Reason::NoHealthyNode { .. } => String::new(),
        Reason::PodsUnreachable { .. } | Reason::NoFallback { .. } => String::new(),
        Reason::UnhealthyEndpoints { .. } | Reason::EndpointsNotChecked { .. } => String::new(),
        Reason::NoHealthyEndpoint { port, .. } => port.to_string(),
        other => other.to_string(),
    };
    (reason.code(), of)
}

pub(super) fn of_reason(reason: &Reason) -> Event {
    let text = format!("{}: {reason}", reason.code());
    let word = match reason {
        Reason::NoPool { .. }
        | Reason::PoolExhausted { .. }
        | Reason::UnknownPool { .. }
        | Reason::AddressNotInPool { .. }
        | Reason::AddressTaken { .. }
        | Reason::BadAddressRequest { .. }
        | Reason::ConflictingRequest { .. }
        | Reason::RequestedFamily { .. }
        | Reason::SharingRefused { .. } => "AllocationFailed",
        Reason::NoUsableEndpoint { .. } => "UnAvailableLoadBalancer",
        Reason::RivalProvider { .. } => reason.code(),
        other if other.severity() == Severity::Note => other.code(),
        _ => "SyncLoadBalancerFailed",
    };
    warning(word, text)
}

/// What a state is called.
pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Serving => "Serving",
        State::Degraded => "Degraded",
        State::Closed => "Closed",
        State::Pending => "Pending",
        State::Refused => "Refused",
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let all: Vec<Arc<str>> = addresses.iter().map(|ip| ip.to_string().into()).collect();
    all.join(", ")
}
