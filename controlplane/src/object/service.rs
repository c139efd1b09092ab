//! A Service, and what is written to it.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use super::{Family, Meta};

/// spec.type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// ClusterIP; headless if `Service::headless`.
    ClusterIp,
    /// NodePort.
    NodePort,
    /// LoadBalancer.
    LoadBalancer,
    /// ExternalName.
    ExternalName,
}

/// spec.ports[].protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP; known, and refused per port.
    Sctp,
}

/// spec.ipFamilyPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// SingleStack.
    #[default]
    SingleStack,
    /// PreferDualStack.
    PreferDualStack,
    /// RequireDualStack.
    RequireDualStack,
}

/// spec.externalTrafficPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Cluster.
    #[default]
    Cluster,
    /// Local.
    Local,
}

/// One of spec.ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// "" where none is given.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// What clients dial on the VIP.
    pub port: NonZeroU16,
    /// What clients dial on a node.
    pub node_port: Option<NonZeroU16>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name, labels, annotations.
    pub meta: Meta,
    /// spec.type.
    pub kind: ServiceType,
    /// spec.loadBalancerClass.
    pub class: Option<Arc<str>>,
    /// spec.loadBalancerIP as written.
    pub load_balancer_ip: Option<Arc<str>>,
    /// spec.allocateLoadBalancerNodePorts.
    pub allocate_node_ports: bool,
    /// spec.externalTrafficPolicy.
    pub external_traffic_policy: TrafficPolicy,
    /// spec.healthCheckNodePort.
    pub health_check_node_port: Option<NonZeroU16>,
    /// spec.loadBalancerSourceRanges as written: parsed by `translate`, which fails closed.
    pub source_ranges: Vec<Arc<str>>,
    /// spec.sessionAffinity ClientIP with its timeout.
    pub client_ip_affinity: Option<Duration>,
    /// spec.ipFamilies in order.
    pub ip_families: Vec<Family>,
    /// spec.ipFamilyPolicy.
    pub ip_family_policy: FamilyPolicy,
    /// spec.clusterIP is "None".
    pub headless: bool,
    /// spec.ports.
    pub ports: Vec<ServicePort>,
    /// What the API server keeps for the provider of its load balancer.
    pub stored: Stored,
}

/// Our finalizer: on every Service that is or was ours.
pub const FINALIZER: &str = "weir.dev/load-balancer";
/// The standard one (KEP-980): on Services without a class beside it.
pub const CLEANUP_FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// What we are called in metadata.managedFields.
pub const FIELD_MANAGER: &str = "weir";

/// What an API server keeps in a Service for the provider of its load balancer; empty where files
/// are read. Anybody may have written it: it decides what is written next, and who gets back an
/// address, but never what is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// metadata.finalizers has [`FINALIZER`].
    pub finalizer: bool,
    /// And [`CLEANUP_FINALIZER`].
    pub cleanup_finalizer: bool,
    /// status.loadBalancer.ingress.
    pub ingress: Vec<Ingress>,
    /// Those of status.conditions that are of a type we write.
    pub conditions: Vec<Condition>,
    /// metadata.generation; 0 where there is none, as on API servers that do not count Services'.
    pub generation: i64,
    /// Another provider, by what it left in the Service.
    pub rival: Option<Rival>,
    /// metadata.resourceVersion.
    pub version: Version,
}

/// A provider of load balancers that is not us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// What it is called: a field manager, or its finalizer. As written.
    pub name: Arc<str>,
    /// What it left.
    pub mark: Mark,
}

/// By what another provider is known; the surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A finalizer that is a provider's own.
    Finalizer,
    /// It wrote status.loadBalancer.ingress last.
    Status,
    /// It added [`CLEANUP_FINALIZER`].
    Cleanup,
}

/// A resourceVersion, which grows with every change; 0 if it is not known. Any two are equal: an object of which
/// nothing else changed did not change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Version(pub u64);

impl PartialEq for Version {
    fn eq(&self, _: &Version) -> bool {
        true
    }
}

impl Eq for Version {}

/// One entry of status.loadBalancer.ingress.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ingress {
    /// ip; `None` if it is none, or not an address.
    pub ip: Option<IpAddr>,
    /// hostname.
    pub hostname: Option<Arc<str>>,
    /// ipMode is Proxy.
    pub proxied: bool,
    /// ports.
    pub ports: Vec<IngressPort>,
}

/// One entry of an ingress's ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IngressPort {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// Why it is not served.
    pub error: Option<Arc<str>>,
}

/// One of status.conditions (metav1.Condition).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// type.
    pub kind: Arc<str>,
    /// True, False or Unknown.
    pub status: Arc<str>,
    /// A word for why.
    pub reason: Arc<str>,
    /// And the text.
    pub message: Arc<str>,
    /// Of the object's generation.
    pub observed_generation: i64,
    /// lastTransitionTime as written.
    pub since: Arc<str>,
}

impl Condition {
    /// Does it say the same, whenever it was said?
    pub fn says(&self, other: &Condition) -> bool {
        let Condition {
            kind,
            status,
            reason,
            message,
            observed_generation,
            since: _,
        } = self;
        *kind == other.kind
            && *status == other.status
            && *reason == other.reason
            && *message == other.message
            && *observed_generation == other.observed_generation
    }
}
