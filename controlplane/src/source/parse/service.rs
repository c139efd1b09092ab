//! Services.

use std::time::Duration;

use super::{MAX_TEXT, Reader, non_empty, protocol};
use crate::object::{Family, FamilyPolicy, Meta, Service, ServicePort, ServiceType, TrafficPolicy};
use crate::source::field::{FieldError, Node};

/// core/v1 has no limit; a slice could not name more than 100 of them.
const MAX_SERVICE_PORTS: usize = 1000;
/// core/v1 has no limit.
const MAX_SOURCE_RANGES: usize = 4096;
/// core/v1 types.go: default and largest sessionAffinityConfig.clientIP.timeoutSeconds.
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;
const MAX_AFFINITY_SECONDS: i64 = 86_400;
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
impl Reader {
    pub(super) fn service(&mut self, root: &Node<'_>, meta: Meta) -> Result<Service, FieldError> {
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
            stored: self.stored(root),
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
