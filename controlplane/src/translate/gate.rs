//! Is this Service ours to serve, and does it ask only for what is built?

use crate::annotations::{self, LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME, Meaning, NATIVE_PREFIX};
use crate::object::{CLEANUP_FINALIZER, Mark, Rival, Service, ServiceType, TrafficPolicy};
use crate::reason::Reason;

use super::Rules;
use super::text::shown;

/// How a Service is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// With addresses from the pools, at the Service's ports; so are Services of type NodePort that
    /// ask for it by annotation.
    LoadBalancer,
    /// At the appliance's node-port addresses, at the nodePorts.
    NodePort,
}

/// How to serve `service`.
///
/// # Errors
/// The first reason for which it is not ours: type, ignore annotation, class, another provider, in this order.
pub fn admit(service: &Service, rules: &Rules) -> Result<Front, Reason> {
    if service.meta.deleting {
        return Err(Reason::Deleting);
    }
    let front = front_of(service, rules)?;
    if let Some(name) = asked(service, Meaning::Ignore).next() {
        return Err(Reason::Ignored {
            annotation: shown(name),
        });
    }
    // The class belongs to the type LoadBalancer: the API wipes it when the type changes.
    if service.kind == ServiceType::LoadBalancer {
        match &service.class {
            Some(class) if *class == rules.class => {}
            None if rules.default_provider => {
                if let Some(rival) = rival(service) {
                    return Err(left_to(evidence(rival), rules));
                }
            }
            found => {
                return Err(Reason::ForeignClass {
                    found: found.as_deref().map_or("(none)".into(), shown),
                    ours: rules.class.clone(),
                });
            }
        }
    }
    Ok(front)
}

/// Another provider that was here first: with our finalizer we were.
fn rival(service: &Service) -> Option<&Rival> {
    let stored = &service.stored;
    stored.rival.as_ref().filter(|_| !stored.finalizer)
}

/// It is another provider's, as `evidence` shows.
pub(crate) fn left_to(evidence: String, rules: &Rules) -> Reason {
    Reason::RivalProvider {
        evidence: evidence.into(),
        ours: rules.class.clone(),
    }
}

fn evidence(rival: &Rival) -> String {
    let name = shown(&rival.name);
    match rival.mark {
        Mark::Finalizer => format!("its finalizer \"{name}\" is there"),
        Mark::Status => format!("\"{name}\" wrote status.loadBalancer"),
        Mark::Cleanup => format!("\"{name}\" added the finalizer {CLEANUP_FINALIZER}"),
    }
}

fn front_of(service: &Service, rules: &Rules) -> Result<Front, Reason> {
    let refused = |kind, hint| Err(Reason::NotALoadBalancer { kind, hint });
    match service.kind {
        // An external name would make an open relay of the appliance.
        ServiceType::ExternalName => refused(
            "ExternalName",
            "; an external name would make an open relay of this appliance",
        ),
        _ if service.headless => refused("headless", "; headless Services are dialled directly"),
        _ if service.meta.labels.contains_key(LABEL_HEADLESS) => refused(
            "headless by the label service.kubernetes.io/headless",
            "; remove the label to serve it",
        ),
        ServiceType::ClusterIp => refused("ClusterIP", "; change the type to have one"),
        ServiceType::NodePort if asked(service, Meaning::Front).next().is_some() => {
            Ok(Front::LoadBalancer)
        }
        ServiceType::NodePort if rules.node_port_addresses.is_empty() => refused(
            "NodePort",
            "; annotate it with weir.dev/front: \"true\" to have one nevertheless, or start with --node-port-address",
        ),
        ServiceType::NodePort => Ok(Front::NodePort),
        ServiceType::LoadBalancer => Ok(Front::LoadBalancer),
    }
}

/// Does a switch's value turn it off? Everything else turns it on: a slip of the pen in a request
/// to be left alone, or for something that is not built, must not be taken for its absence.
pub fn says_no(value: &str) -> bool {
    const NO: &[&str] = &["", "false", "f", "0", "no", "n", "off", "none", "disabled"];
    let value = value.trim();
    NO.iter().any(|no| value.eq_ignore_ascii_case(no))
}

/// The annotations of `meaning` that turn it on. One of ours, if set, speaks alone, so that it
/// overrides what a chart sets for another load balancer; otherwise every alias is heard.
fn asked(service: &Service, meaning: Meaning) -> impl Iterator<Item = &str> {
    let ours_only = ours_speaks(service, meaning);
    annotations::of(&service.meta.annotations, meaning)
        .filter(move |(name, value)| {
            (!ours_only || name.starts_with(NATIVE_PREFIX)) && turns_on(name, value)
        })
        .map(|(name, _)| &**name)
}

/// Is an annotation of ours set to anything but blanks?
fn ours_speaks(service: &Service, meaning: Meaning) -> bool {
    annotations::of(&service.meta.annotations, meaning)
        .any(|(name, value)| name.starts_with(NATIVE_PREFIX) && !value.trim().is_empty())
}

fn turns_on(name: &str, value: &str) -> bool {
    if name.ends_with("/aws-load-balancer-backend-protocol") {
        // Only these of its values mean TLS towards the backend.
        let value = value.trim().to_ascii_lowercase();
        return matches!(&*value, "ssl" | "tls" | "https");
    }
    !says_no(value)
}

/// Every request of `service` for something that is not built. One is enough to refuse it: a
/// server that expects a PROXY header or the client's address must not get connections without.
pub fn not_built(service: &Service) -> Vec<Reason> {
    let mut found = Vec::new();
    for (meaning, attribute, what) in [
        (
            Meaning::ProxyProtocol,
            Some("proxy_protocol_v2.enabled"),
            "PROXY protocol",
        ),
        (
            Meaning::PreserveClientIp,
            Some("preserve_client_ip.enabled"),
            "connections from the client's own address",
        ),
        (Meaning::Tls, None, "TLS"),
    ] {
        found.extend(asked(service, meaning).map(|name| not_supported(what, name)));
        let ours_only = ours_speaks(service, meaning);
        for (name, key, value) in attributes(service) {
            if !ours_only && Some(key) == attribute && !says_no(value) {
                found.push(not_supported(what, &format!("{name} ({key})")));
            }
        }
    }
    found
}

fn not_supported(what: &str, place: &str) -> Reason {
    Reason::NotSupported {
        what: format!("{what}, asked for by annotation {}", shown(place)).into(),
    }
}

/// AWS's target group attributes, `key=value,...`, with the annotation's name.
pub fn attributes(service: &Service) -> impl Iterator<Item = (&str, &str, &str)> {
    annotations::of(&service.meta.annotations, Meaning::TargetGroupAttributes).flat_map(
        |(name, list)| {
            list.split(',')
                .filter_map(|entry| entry.split_once('='))
                .map(|(key, value)| (&**name, key.trim(), value.trim()))
        },
    )
}

/// What the owner should know of labels and fields that change nothing here.
pub fn notes(service: &Service, reasons: &mut Vec<Reason>) {
    if service.meta.labels.contains_key(LABEL_SERVICE_PROXY_NAME) {
        reasons.push(Reason::ForeignServiceProxy);
    }
    if service.external_traffic_policy == TrafficPolicy::Local {
        reasons.push(Reason::ClientAddressNotKept);
    }
}
