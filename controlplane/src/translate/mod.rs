//! One Service and its EndpointSlices become one load balancer, or a refusal with its reasons.
//!
//! PURE: no clock, no memory of what was before, no other Service. The result depends on what the
//! objects say and not on the order in which they came, so that equal input is never published
//! twice. Everything in the objects is a tenant's text: bounded, canonicalised, and never trusted
//! with an address that only the appliance should reach.
//!
//! The line through the module: `gate` admits the Service, `addressing` says which VIPs it
//! wants, `endpoints` judges and counts what the slices list (`guard` refuses addresses),
//! `ports` chooses the backends, `health` takes out those whose check fails, `by_nodes` where nodes are
//! dialled in the place of pods, `auto` where that is to be found out, `source_ranges` and `options` make
//! the policy.
//!
//! Fields that are not read, on purpose: `targetPort` (slices carry the number), `externalIPs` and
//! `status` (anybody may write the one, and the other is output), `appProtocol` (a hint),
//! `internalTrafficPolicy` and `trafficDistribution` (for traffic inside the cluster; the slices'
//! hints say what remains), `publishNotReadyAddresses` (the slices' conditions carry it),
//! `allocateLoadBalancerNodePorts` (each port says whether it has a nodePort).

mod address;
mod addressing;
mod auto;
mod by_nodes;
mod endpoints;
mod gate;
mod guard;
mod health;
mod options;
mod ports;
mod source_ranges;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::load_balancer::{Addressing, EndpointCounts, LoadBalancer, Translation};
use crate::nodes::{NodeSet, Selector};
use crate::object::{EndpointSlice, Family, Service};
use crate::probe::{Probe, Target, Verdicts};
use crate::reason::Reason;

use gate::Front;
pub(crate) use gate::left_to;
pub(crate) use guard::refusal;
pub use text::shown;

/// So many items of one kind are named one by one in the reasons.
const LISTED: usize = 5;

/// What is dialled for a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backends {
    /// Its endpoints.
    #[default]
    Pods,
    /// Nodes, at its node ports.
    Nodes,
    /// Endpoints while they can be reached, else nodes.
    Auto,
}

/// What there is beside a Service, its slices and the settings.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The nodes of its cluster.
    pub nodes: &'a NodeSet,
    /// What probes found of nodes.
    pub verdicts: &'a Verdicts,
    /// And of endpoints.
    pub health: &'a Verdicts,
}

/// What the ports have to have asked, and what answers say of their endpoints.
#[derive(Default)]
struct Found {
    probes: BTreeSet<Probe>,
    checks: BTreeSet<Target>,
    failing: BTreeSet<IpAddr>,
}

/// The appliance's settings that change what a Service means. Addresses are canonical: no v4-mapped
/// ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The loadBalancerClass served here.
    pub class: Arc<str>,
    /// Serve Services without a class too.
    pub default_provider: bool,
    /// The zone this appliance stands in, for hints; `None`: hints are not followed.
    pub zone: Option<Arc<str>>,
    /// Where Services of type NodePort are fronted; none: they are refused.
    pub node_port_addresses: Vec<IpAddr>,
    /// Ranges of endpoints that are served though a built-in rule refuses them; each opens only
    /// what it lies inside of.
    pub allow_endpoints: Vec<IpNet>,
    /// What is dialled for a Service that does not say.
    pub backends: Backends,
    /// The nodes that are dialled at node ports.
    pub node_selector: Selector,
    /// The address pools, first and last address: our own VIPs, never dialled.
    pub pools: Vec<(IpAddr, IpAddr)>,
    /// Other addresses of the appliance that are never dialled: the admin listener's, and VIPs
    /// that are held outside the pools.
    pub own_addresses: Vec<IpAddr>,
}

impl Default for Rules {
    /// The directory's rules: our class and class-less Services, no pools.
    fn default() -> Rules {
        Rules {
            class: "weir.dev/l4".into(),
            default_provider: true,
            zone: None,
            node_port_addresses: Vec::new(),
            allow_endpoints: Vec::new(),
            backends: Backends::Pods,
            node_selector: Selector::default(),
            pools: Vec::new(),
            own_addresses: Vec::new(),
        }
    }
}

/// What `service` with these `slices` means under `rules`, as far as `view` tells. Slices of other Services are left out.
pub fn translate<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
    view: View<'_>,
    rules: &Rules,
) -> Translation {
    let mut reasons = Vec::new();
    let mut found = Found::default();
    let own = slices.into_iter().filter(|slice| belongs(slice, service));
    let endpoints = endpoints::gather(own.map(|slice| &**slice), rules);
    let load_balancer = serve(service, &endpoints, view, rules, &mut found, &mut reasons);
    if load_balancer.is_some() {
        endpoints.refusals(&mut reasons);
    }
    reasons.sort_unstable();
    reasons.dedup();
    Translation {
        load_balancer: load_balancer.map(Arc::new),
        reasons,
        endpoints: EndpointCounts {
            unhealthy: found.failing.len().try_into().unwrap_or(u32::MAX),
            ..endpoints.counts
        },
        probes: found.probes.into_iter().collect(),
        checks: found.checks.into_iter().collect(),
    }
}

/// Is `slice` one of `service`'s? The store finds slices by this label; asked again here, because
/// a slice of another namespace must not lend its pods to this one.
fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let (slice_key, key) = (&slice.meta.key, &service.meta.key);
    slice_key.source == key.source
        && slice_key.cluster == key.cluster
        && slice_key.namespace == key.namespace
        && slice.service.as_ref() == Some(&key.name)
}

fn serve(
    service: &Service,
    endpoints: &endpoints::Endpoints<'_>,
    view: View<'_>,
    rules: &Rules,
    found: &mut Found,
    reasons: &mut Vec<Reason>,
) -> Option<LoadBalancer> {
    let front = match gate::admit(service, rules) {
        Ok(front) => front,
        Err(reason) => {
            reasons.push(reason);
            return None;
        }
    };
    let mut not_built = gate::not_built(service);
    if !not_built.is_empty() {
        reasons.append(&mut not_built);
        return None;
    }
    let addressing = match front {
        Front::LoadBalancer => addressing::from_pools(service, rules, reasons)?,
        Front::NodePort => Addressing::Fixed(rules.node_port_addresses.clone()),
    };
    let families = families_of(&addressing);
    gate::notes(service, reasons);
    options::ignored(service, reasons);
    let dialled = options::backends(service, rules, reasons);
    let asked = ports::Asked {
        service,
        front,
        families: &families,
        dialled,
        view,
    };
    let ports = ports::ports(asked, endpoints, found, reasons);
    if ports.is_empty() {
        return None;
    }
    Some(LoadBalancer {
        key: service.meta.key.clone(),
        created: service.meta.created,
        sources: source_ranges::sources(service, &families, reasons),
        algorithm: options::algorithm(service, ports.len() * families.len(), reasons),
        affinity: options::affinity(service),
        idle_timeout: options::idle_timeout(service, reasons),
        published: published(service),
        addressing,
        ports,
    })
}

/// Does what `service` means depend on nodes?
pub(crate) fn looks_at_nodes(service: &Service, rules: &Rules) -> bool {
    gate::admit(service, rules).is_ok()
        && options::backends(service, rules, &mut Vec::new()) != Backends::Pods
}

/// Is `service` one that is served here in any way, as it stands?
pub(crate) fn is_admitted(service: &Service, rules: &Rules) -> bool {
    gate::admit(service, rules).is_ok()
}

/// Is `service` ours to serve with addresses from the pools, as it stands? Whether it then can be is
/// another question.
pub(crate) fn is_ours(service: &Service, rules: &Rules) -> bool {
    matches!(gate::admit(service, rules), Ok(Front::LoadBalancer))
}

/// The addresses that it had of us: without our finalizer somebody else wrote them.
fn published(service: &Service) -> Vec<IpAddr> {
    let stored = &service.stored;
    let ingress = stored.ingress.iter().filter(|_| stored.finalizer);
    ingress.filter_map(|entry| entry.ip).collect()
}

fn families_of(addressing: &Addressing) -> Vec<Family> {
    match addressing {
        Addressing::Pools { families, .. } => families.clone(),
        Addressing::Fixed(addresses) => {
            let mut families: Vec<Family> = addresses.iter().copied().map(Family::of).collect();
            families.sort_unstable();
            families.dedup();
            families
        }
    }
}
