//! A table per line of the Service and EndpointSlice semantics, named after it.

mod abuse;
mod addressing;
mod dump;
mod endpoints;
mod gate;
mod health;
mod nodes;
mod policy;
mod properties;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use lb_core::table::{Backend, BackendState};

use super::{Rules, View, translate};
use crate::load_balancer::{Addressing, LoadBalancer, Translation};
use crate::nodes::NodeSet;
use crate::object::{
    AddressType, Endpoint, EndpointSlice, Family, FamilyPolicy, Kind, Mark, Meta, PortProtocol,
    Rival, Service, ServicePort, ServiceType, SlicePort, SourceId, TrafficPolicy, Trigger,
};
use crate::probe::Verdicts;
use crate::reason::{Reason, Severity};

fn meta(kind: Kind, name: &str) -> Meta {
    Meta {
        key: crate::testing::key(kind, "default", name),
        labels: Default::default(),
        annotations: Default::default(),
        created: None,
        deleting: false,
        location: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("tests use real ports")
}

fn port(name: &str, protocol: PortProtocol, port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: number(port),
        node_port: None,
    }
}

/// default/web: an IPv4 LoadBalancer Service with one nameless TCP port 80.
fn service() -> Service {
    Service {
        meta: meta(Kind::Service, "web"),
        kind: ServiceType::LoadBalancer,
        class: None,
        load_balancer_ip: None,
        allocate_node_ports: true,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        client_ip_affinity: None,
        ip_families: vec![Family::V4],
        ip_family_policy: FamilyPolicy::SingleStack,
        headless: false,
        ports: vec![port("", PortProtocol::Tcp, 80)],
        stored: crate::object::Stored::default(),
    }
}

fn annotated(pairs: &[(&str, &str)]) -> Service {
    let mut service = service();
    for (name, value) in pairs {
        service
            .meta
            .annotations
            .insert((*name).into(), (*value).into());
    }
    service
}

/// A ready endpoint with an explicit set of conditions.
fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.into(),
        ready: Some(true),
        serving: Some(true),
        terminating: Some(false),
        node: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        target: None,
    }
}

fn with(address: &str, ready: bool, serving: bool, terminating: bool) -> Endpoint {
    Endpoint {
        ready: Some(ready),
        serving: Some(serving),
        terminating: Some(terminating),
        ..endpoint(address)
    }
}

fn serving(address: &str) -> Endpoint {
    with(address, false, true, true)
}

fn slice_port(name: Option<&str>, protocol: PortProtocol, port: u16) -> SlicePort {
    SlicePort {
        name: name.map(Arc::from),
        protocol,
        port: NonZeroU16::new(port),
    }
}

/// A slice of default/web with the nameless TCP port 8080.
fn slice(address_type: AddressType, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        meta: meta(Kind::EndpointSlice, "web-abcde"),
        service: Some("web".into()),
        address_type,
        ports: vec![slice_port(Some(""), PortProtocol::Tcp, 8080)],
        endpoints,
        trigger: Trigger::Absent,
    }
}

fn v4(endpoints: Vec<Endpoint>) -> EndpointSlice {
    slice(AddressType::V4, endpoints)
}

fn v6(endpoints: Vec<Endpoint>) -> EndpointSlice {
    slice(AddressType::V6, endpoints)
}

fn run_with(service: &Service, slices: Vec<EndpointSlice>, rules: &Rules) -> Translation {
    let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
    let view = View {
        nodes: &NodeSet::default(),
        verdicts: &Verdicts::new(),
        health: &Verdicts::new(),
    };
    translate(service, &slices, view, rules)
}

fn run(service: &Service, slices: Vec<EndpointSlice>) -> Translation {
    run_with(service, slices, &Rules::default())
}

/// One healthy endpoint, so that reasons about endpoints stay away.
fn run_healthy(service: &Service) -> Translation {
    let mut slice = v4(vec![endpoint("10.0.0.1")]);
    slice.ports = service
        .ports
        .iter()
        .map(|port| SlicePort {
            name: Some(port.name.clone()),
            protocol: port.protocol,
            port: Some(number(8080)),
        })
        .collect();
    run(service, vec![slice])
}

fn codes(translation: &Translation) -> Vec<&'static str> {
    translation.reasons.iter().map(Reason::code).collect()
}

fn served(translation: &Translation) -> &LoadBalancer {
    translation
        .load_balancer
        .as_ref()
        .expect("the Service is served")
}

/// The backends of one port for one family, as "address" or "address draining".
fn backends(translation: &Translation, at: usize, family: Family) -> Vec<String> {
    let port = &served(translation).ports[at];
    let backends: &[Backend] = match family {
        Family::V4 => &port.v4,
        Family::V6 => &port.v6,
    };
    backends
        .iter()
        .map(|backend| {
            assert_eq!(backend.weight, 1);
            match backend.state {
                BackendState::Active => backend.address.to_string(),
                BackendState::Draining => format!("{} draining", backend.address),
            }
        })
        .collect()
}

fn first_v4(translation: &Translation) -> Vec<String> {
    backends(translation, 0, Family::V4)
}
