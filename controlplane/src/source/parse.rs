//! One JSON value -> one object: the only reading of Kubernetes objects there is, for files and
//! API servers alike. Typed strictly: a field of the wrong kind refuses its object, with the path
//! of the field, and nothing else.
//!
//! Limits are those that the API server itself enforces where it has one (validation of
//! discovery.k8s.io/v1 and core/v1), and generous where it has none.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::field::{FieldError, Node, quoted};
use crate::annotations;
use crate::object::{
    AddressType, Endpoint, EndpointSlice, Family, FamilyPolicy, Key, Kind, Location, Meta,
    Node as KubernetesNode, Object, PortProtocol, Service, ServicePort, ServiceType, SlicePort,
    SourceId, TrafficPolicy,
};

/// discovery/v1: "each slice may include a maximum of 1000 endpoints" and "of 100 ports".
pub const MAX_ENDPOINTS_PER_SLICE: usize = 1000;
/// As above.
pub const MAX_PORTS_PER_SLICE: usize = 100;
/// discovery/v1: "must contain at least one address but no more than 100".
const MAX_ADDRESSES_PER_ENDPOINT: usize = 100;
/// discovery/v1: at most 8 hints; some room for versions to come.
const MAX_HINTS: usize = 64;
/// core/v1 has no limit; a slice could not name more than 100 of them.
const MAX_SERVICE_PORTS: usize = 1000;
/// core/v1 has no limit.
const MAX_SOURCE_RANGES: usize = 4096;
/// Longest label value is 63, longest DNS name 253: nothing that is read is longer, but for
/// annotations.
const MAX_TEXT: usize = 256;
/// Longest annotation that some rule reads, and how many such an object may have. (All together
/// may be 256 KiB: apimachinery TotalAnnotationSizeLimitB. What no rule reads is not kept.)
const MAX_ANNOTATION: usize = 4096;
const MAX_ANNOTATIONS: usize = 64;
/// Addresses of a node or of a Service's status.
const MAX_STATUS_ADDRESSES: usize = 256;
/// core/v1 types.go: default and largest sessionAffinityConfig.clientIP.timeoutSeconds.
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;
const MAX_AFFINITY_SECONDS: i64 = 86_400;
/// Distinct strings that are remembered to be shared.
const MAX_SHARED_STRINGS: usize = 65_536;

/// Why a value gives no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A kind that nothing here reads: left out, which is no fault.
    #[error("{api_version} {kind} is not read here")]
    Skipped {
        /// As written, cut.
        api_version: String,
        /// As written, cut.
        kind: String,
    },
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Reads the objects of one source. It shares repeated strings (namespaces, nodes, zones, port
/// names) among all objects that it reads, so keep one as long as the source.
#[derive(Debug)]
pub struct Reader {
    source: SourceId,
    cluster: Arc<str>,
    read_status: bool,
    strings: HashSet<Arc<str>>,
}

/// Reads one object; for many, keep a [`Reader`].
///
/// # Errors
/// The value is of no kind that is read, or a field of it is wrong.
pub fn object_from_value(
    source: SourceId,
    cluster: &Arc<str>,
    value: &Value,
) -> Result<Object, ObjectError> {
    Reader::new(source, Arc::clone(cluster)).object(value, None)
}

impl Reader {
    /// A reader for objects of this source and cluster that leaves out a Service's status, as
    /// files have none of their own.
    pub fn new(source: SourceId, cluster: Arc<str>) -> Reader {
        let strings = HashSet::new();
        Reader {
            source,
            cluster,
            read_status: false,
            strings,
        }
    }

    /// Reads a Service's status too: the addresses that an API server remembers for us.
    #[must_use]
    pub fn with_status(self) -> Reader {
        Reader {
            read_status: true,
            ..self
        }
    }

    /// Reads one object. `location` is where it stands, for messages.
    ///
    /// # Errors
    /// The value is of no kind that is read, or a field of it is wrong.
    pub fn object(
        &mut self,
        value: &Value,
        location: Option<Location>,
    ) -> Result<Object, ObjectError> {
        let root = Node::root(value);
        let kind = kind_of(&root)?;
        let meta = self.meta(&root, kind, location)?;
        Ok(match kind {
            Kind::Service => Object::Service(Arc::new(self.service(&root, meta)?)),
            Kind::EndpointSlice => Object::EndpointSlice(Arc::new(self.slice(&root, meta)?)),
            // `kind_of` gives no other.
            Kind::Node | Kind::LoadBalancer => Object::Node(Arc::new(self.node(&root, meta)?)),
        })
    }

    /// The key of an object that may otherwise be wrong, if that much of it can be read.
    pub fn key_of(&mut self, value: &Value) -> Option<Key> {
        let root = Node::root(value);
        let kind = kind_of(&root).ok()?;
        self.key(&root.field("metadata").ok()??, kind).ok()
    }

    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return Arc::clone(shared);
        }
        if self.strings.len() >= MAX_SHARED_STRINGS {
            self.strings.clear();
        }
        let shared: Arc<str> = Arc::from(text);
        self.strings.insert(Arc::clone(&shared));
        shared
    }

    fn key(&mut self, metadata: &Node<'_>, kind: Kind) -> Result<Key, FieldError> {
        let namespace = match (kind, metadata.field("namespace")?) {
            (Kind::Node, _) => "",
            (_, Some(namespace)) => namespace.name()?,
            // As kubectl has it.
            (_, None) => "default",
        };
        let uid = match metadata.field("uid")? {
            Some(uid) => uid.text(MAX_TEXT)?,
            None => "",
        };
        Ok(Key {
            source: self.source,
            cluster: Arc::clone(&self.cluster),
            kind,
            namespace: self.share(namespace),
            name: Arc::from(metadata.required("name")?.name()?),
            uid: Arc::from(uid),
        })
    }

    fn meta(
        &mut self,
        root: &Node<'_>,
        kind: Kind,
        location: Option<Location>,
    ) -> Result<Meta, FieldError> {
        let metadata = root.required("metadata")?;
        let created = metadata.field("creationTimestamp")?;
        Ok(Meta {
            key: self.key(&metadata, kind)?,
            labels: self.texts(&metadata, "labels", |name| {
                annotations::LABELS.contains(&name)
            })?,
            annotations: self.texts(&metadata, "annotations", annotations::is_read)?,
            created: created.map(|created| created.time()).transpose()?,
            deleting: metadata.field("deletionTimestamp")?.is_some(),
            location,
        })
    }

    fn texts(
        &mut self,
        metadata: &Node<'_>,
        field: &str,
        wanted: fn(&str) -> bool,
    ) -> Result<BTreeMap<Arc<str>, Arc<str>>, FieldError> {
        let mut kept = BTreeMap::new();
        let Some(all) = metadata.field(field)? else {
            return Ok(kept);
        };
        for (name, value) in all.fields(wanted)? {
            if kept.len() == MAX_ANNOTATIONS || name.len() > MAX_TEXT {
                let (count, limit) = (kept.len() + 1, MAX_ANNOTATIONS);
                return Err(all.error(super::FieldProblem::TooMany { count, limit }));
            }
            let value = value.text(MAX_ANNOTATION)?;
            kept.insert(self.share(name), self.share(value));
        }
        Ok(kept)
    }

    fn service(&mut self, root: &Node<'_>, meta: Meta) -> Result<Service, FieldError> {
        let spec = root.required("spec")?;
        let families = spec.field("ipFamilies")?;
        let policy = spec.field("ipFamilyPolicy")?;
        let traffic = non_empty(spec.field("externalTrafficPolicy")?)?;
        let allocate = spec.field("allocateLoadBalancerNodePorts")?;
        let cluster_ip = spec.field("clusterIP")?;
        let health_check = spec.field("healthCheckNodePort")?;
        Ok(Service {
            kind: match non_empty(spec.field("type")?)? {
                Some(kind) => kind.one_of(SERVICE_TYPES, SERVICE_TYPES_ALLOWED)?,
                None => ServiceType::ClusterIp,
            },
            class: self.optional_text(&spec, "loadBalancerClass")?,
            load_balancer_ip: self.optional_text(&spec, "loadBalancerIP")?,
            allocate_node_ports: allocate.map_or(Ok(true), |allocate| allocate.boolean())?,
            external_traffic_policy: match traffic {
                Some(policy) => policy.one_of(TRAFFIC_POLICIES, "Cluster, Local")?,
                None => TrafficPolicy::Cluster,
            },
            health_check_node_port: match health_check {
                Some(port) => port.port_or_zero()?,
                None => None,
            },
            source_ranges: self.text_list(&spec, "loadBalancerSourceRanges", MAX_SOURCE_RANGES)?,
            client_ip_affinity: affinity(&spec)?,
            ip_families: match families {
                Some(families) => families
                    .entries(2)?
                    .map(|family| family.one_of(FAMILIES, "IPv4, IPv6"))
                    .collect::<Result<_, _>>()?,
                None => Vec::new(),
            },
            ip_family_policy: match policy {
                Some(policy) => policy.one_of(FAMILY_POLICIES, FAMILY_POLICIES_ALLOWED)?,
                None => FamilyPolicy::SingleStack,
            },
            headless: match cluster_ip {
                Some(address) => address.text(MAX_TEXT)? == "None",
                None => false,
            },
            ports: self.service_ports(&spec)?,
            status_addresses: self.status_addresses(root)?,
            meta,
        })
    }

    fn service_ports(&mut self, spec: &Node<'_>) -> Result<Vec<ServicePort>, FieldError> {
        let Some(ports) = spec.field("ports")? else {
            return Ok(Vec::new());
        };
        let mut read = Vec::new();
        for port in ports.entries(MAX_SERVICE_PORTS)? {
            let node_port = port.field("nodePort")?;
            read.push(ServicePort {
                name: self.optional_text(&port, "name")?.unwrap_or_default(),
                protocol: protocol(&port)?,
                port: port.required("port")?.port()?,
                node_port: match node_port {
                    Some(node_port) => node_port.port_or_zero()?,
                    None => None,
                },
            });
        }
        Ok(read)
    }

    /// status.loadBalancer.ingress[].ip; what is no address is passed over, since we wrote it.
    fn status_addresses(&self, root: &Node<'_>) -> Result<Vec<IpAddr>, FieldError> {
        if !self.read_status {
            return Ok(Vec::new());
        }
        let Some(status) = root.field("status")? else {
            return Ok(Vec::new());
        };
        let Some(load_balancer) = status.field("loadBalancer")? else {
            return Ok(Vec::new());
        };
        let Some(ingress) = load_balancer.field("ingress")? else {
            return Ok(Vec::new());
        };
        let mut addresses = Vec::new();
        for entry in ingress.entries(MAX_STATUS_ADDRESSES)? {
            let address = entry.field("ip")?;
            let text = address.map(|ip| ip.text(MAX_TEXT)).transpose()?;
            addresses.extend(text.and_then(|text| text.parse::<IpAddr>().ok()));
        }
        Ok(addresses)
    }

    fn slice(&mut self, root: &Node<'_>, meta: Meta) -> Result<EndpointSlice, FieldError> {
        Ok(EndpointSlice {
            service: self.service_name(root)?,
            address_type: root
                .required("addressType")?
                .one_of(ADDRESS_TYPES, "IPv4, IPv6, FQDN")?,
            ports: self.slice_ports(root)?,
            endpoints: match root.field("endpoints")? {
                Some(endpoints) => endpoints
                    .entries(MAX_ENDPOINTS_PER_SLICE)?
                    .map(|endpoint| self.endpoint(&endpoint))
                    .collect::<Result<_, _>>()?,
                None => Vec::new(),
            },
            meta,
        })
    }

    fn service_name(&mut self, root: &Node<'_>) -> Result<Option<Arc<str>>, FieldError> {
        let metadata = root.required("metadata")?;
        match metadata.field("labels")? {
            Some(labels) => self.optional_text(&labels, annotations::LABEL_SERVICE_NAME),
            None => Ok(None),
        }
    }

    fn slice_ports(&mut self, root: &Node<'_>) -> Result<Vec<SlicePort>, FieldError> {
        let Some(ports) = root.field("ports")? else {
            return Ok(Vec::new());
        };
        let mut read = Vec::new();
        for port in ports.entries(MAX_PORTS_PER_SLICE)? {
            let name = port.field("name")?;
            let name = name.map(|name| name.text(MAX_TEXT)).transpose()?;
            let number = port.field("port")?;
            read.push(SlicePort {
                // "" is a name, and nil is none.
                name: name.map(|name| self.share(name)),
                protocol: protocol(&port)?,
                port: match number {
                    Some(number) => number.port_or_zero()?,
                    None => None,
                },
            });
        }
        Ok(read)
    }

    fn endpoint(&mut self, endpoint: &Node<'_>) -> Result<Endpoint, FieldError> {
        let addresses = endpoint.required("addresses")?;
        let address = match addresses.entries(MAX_ADDRESSES_PER_ENDPOINT)?.next() {
            Some(address) => Arc::from(address.text(MAX_TEXT)?),
            None => return Err(addresses.error(super::FieldProblem::Missing)),
        };
        let conditions = endpoint.field("conditions")?;
        let condition = |name: &str| -> Result<Option<bool>, FieldError> {
            let Some(conditions) = &conditions else {
                return Ok(None);
            };
            let condition = conditions.field(name)?;
            condition.map(|condition| condition.boolean()).transpose()
        };
        let hints = endpoint.field("hints")?;
        let hints = hints.as_ref();
        Ok(Endpoint {
            address,
            ready: condition("ready")?,
            serving: condition("serving")?,
            terminating: condition("terminating")?,
            node: self.optional_text(endpoint, "nodeName")?,
            zone: self.optional_text(endpoint, "zone")?,
            for_zones: hints.map_or(Ok(Vec::new()), |hints| self.names(hints, "forZones"))?,
            for_nodes: hints.map_or(Ok(Vec::new()), |hints| self.names(hints, "forNodes"))?,
            target: target(endpoint)?,
        })
    }

    /// `[{name: a}, {name: b}]`
    fn names(&mut self, hints: &Node<'_>, field: &str) -> Result<Vec<Arc<str>>, FieldError> {
        let Some(list) = hints.field(field)? else {
            return Ok(Vec::new());
        };
        list.entries(MAX_HINTS)?
            .map(|entry| Ok(self.share(entry.required("name")?.text(MAX_TEXT)?)))
            .collect()
    }

    fn node(&mut self, root: &Node<'_>, meta: Meta) -> Result<KubernetesNode, FieldError> {
        Ok(KubernetesNode {
            addresses: node_addresses(root)?,
            taints: match root.field("spec")? {
                Some(spec) => match spec.field("taints")? {
                    Some(taints) => taints
                        .entries(MAX_STATUS_ADDRESSES)?
                        .map(|taint| Ok(self.share(taint.required("key")?.text(MAX_TEXT)?)))
                        .collect::<Result<_, FieldError>>()?,
                    None => Vec::new(),
                },
                None => Vec::new(),
            },
            meta,
        })
    }

    /// Text that is absent if empty.
    fn optional_text(
        &mut self,
        node: &Node<'_>,
        field: &str,
    ) -> Result<Option<Arc<str>>, FieldError> {
        let Some(text) = node.field(field)? else {
            return Ok(None);
        };
        let text = text.text(MAX_TEXT)?;
        Ok((!text.is_empty()).then(|| self.share(text)))
    }

    fn text_list(
        &mut self,
        node: &Node<'_>,
        field: &str,
        limit: usize,
    ) -> Result<Vec<Arc<str>>, FieldError> {
        let Some(list) = node.field(field)? else {
            return Ok(Vec::new());
        };
        list.entries(limit)?
            .map(|entry| Ok(self.share(entry.text(MAX_TEXT)?)))
            .collect()
    }
}

const SERVICE_TYPES: &[(&str, ServiceType)] = &[
    ("ClusterIP", ServiceType::ClusterIp),
    ("NodePort", ServiceType::NodePort),
    ("LoadBalancer", ServiceType::LoadBalancer),
    ("ExternalName", ServiceType::ExternalName),
];
const SERVICE_TYPES_ALLOWED: &str = "ClusterIP, NodePort, LoadBalancer, ExternalName";
const TRAFFIC_POLICIES: &[(&str, TrafficPolicy)] = &[
    ("Cluster", TrafficPolicy::Cluster),
    ("Local", TrafficPolicy::Local),
];
const FAMILIES: &[(&str, Family)] = &[("IPv4", Family::V4), ("IPv6", Family::V6)];
const FAMILY_POLICIES: &[(&str, FamilyPolicy)] = &[
    ("SingleStack", FamilyPolicy::SingleStack),
    ("PreferDualStack", FamilyPolicy::PreferDualStack),
    ("RequireDualStack", FamilyPolicy::RequireDualStack),
];
const FAMILY_POLICIES_ALLOWED: &str = "SingleStack, PreferDualStack, RequireDualStack";
const PROTOCOLS: &[(&str, PortProtocol)] = &[
    ("TCP", PortProtocol::Tcp),
    ("UDP", PortProtocol::Udp),
    ("SCTP", PortProtocol::Sctp),
];
const ADDRESS_TYPES: &[(&str, AddressType)] = &[
    ("IPv4", AddressType::V4),
    ("IPv6", AddressType::V6),
    ("FQDN", AddressType::Fqdn),
];

fn kind_of(root: &Node<'_>) -> Result<Kind, ObjectError> {
    let api_version = root.required("apiVersion")?.text(usize::MAX)?;
    let kind = root.required("kind")?.text(usize::MAX)?;
    match (api_version, kind) {
        ("v1", "Service") => Ok(Kind::Service),
        ("v1", "Node") => Ok(Kind::Node),
        ("discovery.k8s.io/v1", "EndpointSlice") => Ok(Kind::EndpointSlice),
        _ => Err(ObjectError::Skipped {
            api_version: quoted(api_version),
            kind: quoted(kind),
        }),
    }
}

/// The Go types write "" for some fields that are not set.
fn non_empty(node: Option<Node<'_>>) -> Result<Option<Node<'_>>, FieldError> {
    match node {
        Some(node) if node.text(usize::MAX)?.is_empty() => Ok(None),
        node => Ok(node),
    }
}

fn protocol(port: &Node<'_>) -> Result<PortProtocol, FieldError> {
    match non_empty(port.field("protocol")?)? {
        Some(protocol) => protocol.one_of(PROTOCOLS, "TCP, UDP, SCTP"),
        None => Ok(PortProtocol::Tcp),
    }
}

fn affinity(spec: &Node<'_>) -> Result<Option<Duration>, FieldError> {
    let on = match non_empty(spec.field("sessionAffinity")?)? {
        Some(affinity) => {
            affinity.one_of(&[("None", false), ("ClientIP", true)], "None, ClientIP")?
        }
        None => false,
    };
    if !on {
        return Ok(None);
    }
    let mut seconds = DEFAULT_AFFINITY_SECONDS;
    if let Some(config) = spec.field("sessionAffinityConfig")?
        && let Some(client_ip) = config.field("clientIP")?
        && let Some(timeout) = client_ip.field("timeoutSeconds")?
    {
        seconds = timeout.integer(1, MAX_AFFINITY_SECONDS)?;
    }
    Ok(Some(Duration::from_secs(seconds.unsigned_abs())))
}

/// Which pod an endpoint is: its uid, or kind/namespace/name.
fn target(endpoint: &Node<'_>) -> Result<Option<Arc<str>>, FieldError> {
    let Some(target) = endpoint.field("targetRef")? else {
        return Ok(None);
    };
    let part = |name: &str| -> Result<String, FieldError> {
        let part = target.field(name)?;
        let text = part.map(|part| part.text(MAX_TEXT).map(str::to_owned));
        Ok(text.transpose()?.unwrap_or_default())
    };
    let uid = part("uid")?;
    if !uid.is_empty() {
        return Ok(Some(Arc::from(uid)));
    }
    let named = format!("{}/{}/{}", part("kind")?, part("namespace")?, part("name")?);
    Ok((named != "//").then(|| Arc::from(named)))
}

/// InternalIP, then ExternalIP; host names are passed over.
fn node_addresses(root: &Node<'_>) -> Result<Vec<IpAddr>, FieldError> {
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    let Some(status) = root.field("status")? else {
        return Ok(internal);
    };
    let Some(addresses) = status.field("addresses")? else {
        return Ok(internal);
    };
    for entry in addresses.entries(MAX_STATUS_ADDRESSES)? {
        let address = entry.required("address")?.text(MAX_TEXT)?;
        let address = address.parse::<IpAddr>().ok();
        match entry.required("type")?.text(MAX_TEXT)? {
            "InternalIP" => internal.extend(address),
            "ExternalIP" => external.extend(address),
            _ => {}
        }
    }
    internal.append(&mut external);
    Ok(internal)
}

#[cfg(test)]
mod tests;
