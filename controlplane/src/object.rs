//! Kubernetes objects as this crate sees them: the fields that change a decision, parsed once at
//! the edge and bounded. What is not here is not read.
//!
//! Both sources make these from the same JSON value, so that a directory and an API server cannot
//! mean different things by the same text.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Which source an object came from; sources run together and never touch each other's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

/// The kinds that the control plane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node.
    Node,
    /// What `translate` makes of a Service; a cloud-controller may hand it in directly.
    LoadBalancer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::LoadBalancer => "LoadBalancer",
        })
    }
}

/// Names one object. The uid is part of it: the same name made anew is another object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Where it came from.
    pub source: SourceId,
    /// Which cluster, for sources that serve several; "" otherwise.
    pub cluster: Arc<str>,
    /// What it is.
    pub kind: Kind,
    /// "" for Nodes.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// "" where a file gives none.
    pub uid: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Where in a file an object stands; lines and columns count from 1, a column per character. On an
/// API server, its path there; line and column are 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file.
    pub file: Arc<PathBuf>,
    /// Line of the object's first key.
    pub line: u32,
    /// Column of it.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file's name is anybody's text: it may hold line feeds and what terminals obey.
        for c in self.file.to_string_lossy().chars() {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                c => c.escape_debug().try_for_each(|c| f.write_char(c))?,
            }
        }
        if self.line == 0 {
            return Ok(());
        }
        write!(f, ":{}:{}", self.line, self.column)
    }
}

/// What every object carries. Equality leaves out where it was read: an object that only moved
/// within its file did not change.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Its key.
    pub key: Key,
    /// Labels and annotations that some rule reads (see `annotations`), bounded in size.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// As above.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// creationTimestamp, seconds since 1970.
    pub created: Option<i64>,
    /// A deletionTimestamp is set.
    pub deleting: bool,
    /// Where it was read, for messages.
    pub location: Option<Location>,
}

impl PartialEq for Meta {
    fn eq(&self, other: &Meta) -> bool {
        let Meta {
            key,
            labels,
            annotations,
            created,
            deleting,
            location: _,
        } = self;
        *key == other.key
            && *labels == other.labels
            && *annotations == other.annotations
            && *created == other.created
            && *deleting == other.deleting
    }
}

impl Eq for Meta {}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

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

/// addressType of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// FQDN: has no semantics, never served.
    Fqdn,
}

/// One of a slice's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// `None` for a nil name, which matches nothing; "" is a valid name.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// `None` for nil or 0.
    pub port: Option<NonZeroU16>,
}

/// One of a slice's endpoints. Conditions stay as written: `translate` holds the nil rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]` as written; parsed and judged by `translate`.
    pub address: Arc<str>,
    /// conditions.ready.
    pub ready: Option<bool>,
    /// conditions.serving.
    pub serving: Option<bool>,
    /// conditions.terminating.
    pub terminating: Option<bool>,
    /// nodeName.
    pub node: Option<Arc<str>>,
    /// zone.
    pub zone: Option<Arc<str>>,
    /// hints.forZones.
    pub for_zones: Vec<Arc<str>>,
    /// hints.forNodes.
    pub for_nodes: Vec<Arc<str>>,
    /// targetRef.uid or kind/namespace/name: which pod it is.
    pub target: Option<Arc<str>>,
}

/// When the change that an EndpointSlice came with was triggered, by its annotation
/// `endpoints.kubernetes.io/last-change-trigger-time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It has none.
    Absent,
    /// It is no time: it is as good as none.
    Unreadable,
    /// Microseconds since 1970, by another machine's clock.
    At(i64),
}

/// An EndpointSlice. Equality leaves out when it was triggered: it changes nothing that is served.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    /// Name and labels.
    pub meta: Meta,
    /// Label kubernetes.io/service-name.
    pub service: Option<Arc<str>>,
    /// addressType.
    pub address_type: AddressType,
    /// ports.
    pub ports: Vec<SlicePort>,
    /// endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What dates it.
    pub trigger: Trigger,
}

impl PartialEq for EndpointSlice {
    fn eq(&self, other: &EndpointSlice) -> bool {
        let EndpointSlice {
            meta,
            service,
            address_type,
            ports,
            endpoints,
            trigger: _,
        } = self;
        *meta == other.meta
            && *service == other.service
            && *address_type == other.address_type
            && *ports == other.ports
            && *endpoints == other.endpoints
    }
}

impl Eq for EndpointSlice {}

impl EndpointSlice {
    /// The Service that it belongs to, without uid, which a slice does not say.
    pub fn service_key(&self) -> Option<Key> {
        Some(Key {
            kind: Kind::Service,
            name: Arc::clone(self.service.as_ref()?),
            uid: Arc::default(),
            ..self.meta.key.clone()
        })
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name, annotations, and all labels, which the node selector may name.
    pub meta: Meta,
    /// status.addresses of type InternalIP, then ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// spec.taints keys.
    pub taints: Vec<Arc<str>>,
}

/// What a source hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A load balancer, ready made.
    LoadBalancer(Arc<crate::load_balancer::LoadBalancer>),
}

impl Object {
    /// Its key.
    pub fn key(&self) -> &Key {
        match self {
            Object::Service(service) => &service.meta.key,
            Object::EndpointSlice(slice) => &slice.meta.key,
            Object::Node(node) => &node.meta.key,
            Object::LoadBalancer(load_balancer) => &load_balancer.key,
        }
    }

    /// Where it was read, if it came from a file.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Object::Service(service) => service.meta.location.as_ref(),
            Object::EndpointSlice(slice) => slice.meta.location.as_ref(),
            Object::Node(node) => node.meta.location.as_ref(),
            Object::LoadBalancer(_) => None,
        }
    }
}

/// The one stream of changes. Between `Init` and `InitDone` of a kind every object that still
/// exists is applied; what was not is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A list of this kind begins.
    Init(Kind),
    /// An object as it is now.
    Apply(Object),
    /// An object was deleted.
    Delete(Key),
    /// The list is complete.
    InitDone(Kind),
    /// There is no list of this kind now, and nobody knows when: it is not to be waited for.
    Unavailable(Kind),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_line_that_no_terminal_obeys() {
        let shown = |file: &str| {
            let file = Arc::new(PathBuf::from(file));
            let (line, column) = (3, 7);
            Location { file, line, column }.to_string()
        };
        assert_eq!(
            shown("/etc/weir/wär 'x'.yaml"),
            "/etc/weir/wär 'x'.yaml:3:7"
        );
        let file = Arc::new(PathBuf::from("/api/v1/namespaces/shop/services/web"));
        let (line, column) = (0, 0);
        let on_a_server = Location { file, line, column }.to_string();
        assert_eq!(on_a_server, "/api/v1/namespaces/shop/services/web");
        let hostile = shown("a\n2026 INFO all is well\x1b[2J\u{202e}.yaml");
        assert_eq!(
            hostile,
            r"a\n2026 INFO all is well\u{1b}[2J\u{202e}.yaml:3:7"
        );
    }
}
