//! An object as JSON again (PURE): the fields that [`parse`](super::super::parse) reads, so that
//! what is kept over a restart is read by the same rules as what an API server sends.

use serde_json::{Map, Value, json};

use super::scope::resource;
use crate::annotations::LABEL_SERVICE_NAME;
use crate::object::{
    AddressType, CLEANUP_FINALIZER, Endpoint, EndpointSlice, FINALIZER, Family, FamilyPolicy, Kind,
    Mark, Meta, Node, Object, PortProtocol, Rival, Service, ServiceType, Stored, TrafficPolicy,
};
use crate::provider::ingress_of;

/// The object as an API server would send it; `None` for what none sends.
pub(super) fn encode(object: &Object) -> Option<Value> {
    let (kind, mut value) = match object {
        Object::Service(service) => (Kind::Service, self::service(service)),
        Object::EndpointSlice(slice) => (Kind::EndpointSlice, self::slice(slice)),
        Object::Node(node) => (Kind::Node, self::node(node)),
        Object::LoadBalancer(_) => return None,
    };
    let resource = resource(kind)?;
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = resource.kind.into();
    Some(value)
}

fn meta(meta: &Meta) -> Value {
    let Meta {
        key,
        labels,
        annotations,
        created,
        deleting,
        location: _,
    } = meta;
    let mut value = json!({
        "name": key.name,
        "namespace": key.namespace,
        "uid": key.uid,
        "labels": labels,
        "annotations": annotations,
    });
    if let Some(created) = created {
        value["creationTimestamp"] = time(*created).into();
    }
    if *deleting {
        value["deletionTimestamp"] = time(0).into();
    }
    value
}

fn service(service: &Service) -> Value {
    let Service {
        meta,
        kind,
        class,
        load_balancer_ip,
        allocate_node_ports,
        external_traffic_policy,
        health_check_node_port,
        source_ranges,
        client_ip_affinity,
        ip_families,
        ip_family_policy,
        headless,
        ports,
        stored,
    } = service;
    let ports = ports.iter().map(|port| {
        json!({
            "name": port.name,
            "protocol": protocol(port.protocol),
            "port": port.port,
            "nodePort": port.node_port,
        })
    });
    let mut spec = json!({
        "type": match kind {
            ServiceType::ClusterIp => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::ExternalName => "ExternalName",
        },
        "loadBalancerClass": class,
        "loadBalancerIP": load_balancer_ip,
        "allocateLoadBalancerNodePorts": allocate_node_ports,
        "externalTrafficPolicy": match external_traffic_policy {
            TrafficPolicy::Cluster => "Cluster",
            TrafficPolicy::Local => "Local",
        },
        "healthCheckNodePort": health_check_node_port,
        "loadBalancerSourceRanges": source_ranges,
        "ipFamilies": ip_families.iter().map(Family::to_string).collect::<Vec<_>>(),
        "ipFamilyPolicy": match ip_family_policy {
            FamilyPolicy::SingleStack => "SingleStack",
            FamilyPolicy::PreferDualStack => "PreferDualStack",
            FamilyPolicy::RequireDualStack => "RequireDualStack",
        },
        "ports": ports.collect::<Vec<_>>(),
    });
    if let Some(timeout) = client_ip_affinity {
        spec["sessionAffinity"] = "ClientIP".into();
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout.as_secs()}});
    }
    if *headless {
        spec["clusterIP"] = "None".into();
    }
    let mut metadata = self::meta(meta);
    let status = self::stored(stored, &mut metadata);
    json!({
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}

/// The status; what stands in the metadata is put there.
fn stored(stored: &Stored, metadata: &mut Value) -> Value {
    let Stored {
        finalizer,
        cleanup_finalizer,
        ingress,
        conditions,
        generation,
        rival,
        // Nobody asks how old what is kept is.
        version: _,
    } = stored;
    let finalizers = [
        (finalizer, FINALIZER),
        (cleanup_finalizer, CLEANUP_FINALIZER),
    ];
    let finalizers = finalizers.iter().filter(|(is_set, _)| **is_set);
    metadata["finalizers"] = finalizers.map(|(_, name)| *name).collect();
    if let Some(rival) = rival {
        self::rival(rival, metadata);
    }
    metadata["generation"] = json!(generation);
    let ingress = ingress.iter().map(|entry| {
        let mut value = ingress_of(entry);
        if let Some(hostname) = &entry.hostname {
            value["hostname"] = json!(hostname);
        }
        value
    });
    let conditions = conditions.iter().map(|condition| {
        json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": condition.observed_generation,
            "lastTransitionTime": condition.since,
        })
    });
    json!({
        "loadBalancer": {"ingress": ingress.collect::<Vec<_>>()},
        "conditions": conditions.collect::<Vec<_>>(),
    })
}

/// What another provider left, as it stands in the metadata.
fn rival(rival: &Rival, metadata: &mut Value) {
    let fields = match rival.mark {
        Mark::Finalizer => {
            if let Some(finalizers) = metadata["finalizers"].as_array_mut() {
                finalizers.push(json!(rival.name));
            }
            return;
        }
        Mark::Status => json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}}),
        Mark::Cleanup => {
            let name = format!("v:\"{CLEANUP_FINALIZER}\"");
            json!({"f:metadata": {"f:finalizers": {name: {}}}})
        }
    };
    metadata["managedFields"] = json!([{"manager": rival.name, "fieldsV1": fields}]);
}

fn slice(slice: &EndpointSlice) -> Value {
    let EndpointSlice {
        meta,
        service,
        address_type,
        ports,
        endpoints,
        // Of no use to another process.
        trigger: _,
    } = slice;
    let ports = ports.iter().map(|port| {
        json!({
            "name": port.name,
            "protocol": protocol(port.protocol),
            "port": port.port,
        })
    });
    let mut metadata = self::meta(meta);
    if let Some(service) = service {
        metadata["labels"][LABEL_SERVICE_NAME] = json!(service);
    }
    json!({
        "metadata": metadata,
        "addressType": match address_type {
            AddressType::V4 => "IPv4",
            AddressType::V6 => "IPv6",
            AddressType::Fqdn => "FQDN",
        },
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// There are 100,000 of them: what is not said is left out.
fn endpoint(endpoint: &Endpoint) -> Value {
    let Endpoint {
        address,
        ready,
        serving,
        terminating,
        node,
        zone,
        for_zones,
        for_nodes,
        target,
    } = endpoint;
    let mut value = Map::new();
    value.insert("addresses".to_owned(), json!([address]));
    let conditions = [
        ("ready", ready),
        ("serving", serving),
        ("terminating", terminating),
    ];
    let conditions: Map<String, Value> = conditions
        .into_iter()
        .filter_map(|(name, said)| Some((name.to_owned(), Value::from((*said)?))))
        .collect();
    let names = |all: &[std::sync::Arc<str>]| -> Value {
        all.iter().map(|name| json!({"name": name})).collect()
    };
    let mut set = |name: &str, value_of: Value| {
        value.insert(name.to_owned(), value_of);
    };
    if !conditions.is_empty() {
        set("conditions", conditions.into());
    }
    if let Some(node) = node {
        set("nodeName", json!(node));
    }
    if let Some(zone) = zone {
        set("zone", json!(zone));
    }
    if !(for_zones.is_empty() && for_nodes.is_empty()) {
        set(
            "hints",
            json!({"forZones": names(for_zones), "forNodes": names(for_nodes)}),
        );
    }
    if let Some(target) = target {
        // One without a uid is named; read again it is the same text.
        set("targetRef", json!({"uid": target}));
    }
    value.into()
}

fn node(node: &Node) -> Value {
    let Node {
        meta,
        addresses,
        taints,
    } = node;
    // Their order is what matters, and it is kept.
    let addresses = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}));
    let taints = taints.iter().map(|key| json!({"key": key}));
    json!({
        "metadata": self::meta(meta),
        "spec": {"taints": taints.collect::<Vec<_>>()},
        "status": {"addresses": addresses.collect::<Vec<_>>()},
    })
}

fn protocol(protocol: PortProtocol) -> &'static str {
    match protocol {
        PortProtocol::Tcp => "TCP",
        PortProtocol::Udp => "UDP",
        PortProtocol::Sctp => "SCTP",
    }
}

/// Seconds since 1970 as RFC 3339 (the civil calendar, in 400-year eras that begin in March).
fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let from_march_0 = days + 719_468;
    let (era, day_of_era) = (
        from_march_0.div_euclid(146_097),
        from_march_0.rem_euclid(146_097),
    );
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z",
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::object::SourceId;
    use crate::source::parse::Reader;

    fn read(value: &Value) -> Object {
        let mut reader = Reader::new(SourceId(3), Arc::default()).with_status();
        reader.object(value, None).expect("it is read")
    }

    fn returns(value: &Value) {
        let object = read(value);
        let encoded = encode(&object).expect("it is one that a server sends");
        assert_eq!(read(&encoded), object, "{encoded}");
    }

    #[test]
    fn every_field_returns() {
        returns(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u",
                "annotations": {"metallb.io/loadBalancerIPs": "192.0.2.1", "weir.dev/address-pool": "p"},
                "labels": {"service.kubernetes.io/service-proxy-name": "x"},
                "creationTimestamp": "2026-10-31T08:15:30Z", "deletionTimestamp": "2026-11-01T00:00:00Z",
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4", "loadBalancerIP": "192.0.2.9",
                "allocateLoadBalancerNodePorts": false, "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 30_001, "loadBalancerSourceRanges": [" 10.0.0.0/8", "bad"],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 77}},
                "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack", "clusterIP": "None",
                "ports": [
                    {"name": "a", "protocol": "UDP", "port": 53, "nodePort": 30_053},
                    {"port": 80, "nodePort": 0}, {"protocol": "SCTP", "port": 5_060},
                ],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]}},
        }));
        returns(
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "w"}, "spec": {}}),
        );
        let cleanup = format!("v:\"{CLEANUP_FINALIZER}\"");
        for (finalizer, fields) in [
            ("service.k8s.aws/resources", json!({})),
            (
                CLEANUP_FINALIZER,
                json!({"f:metadata": {"f:finalizers": {cleanup: {}}}}),
            ),
            (
                FINALIZER,
                json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}}),
            ),
        ] {
            let value = json!({"apiVersion": "v1", "kind": "Service", "spec": {}, "metadata": {
                "name": "w", "finalizers": [finalizer], "managedFields": [{"manager": "m", "fieldsV1": fields}],
            }});
            let Object::Service(service) = read(&value) else {
                panic!("a Service");
            };
            assert!(service.stored.rival.is_some(), "{value}");
            returns(&value);
        }
        returns(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv6",
            "ports": [{"name": "", "port": 1}, {"port": null}, {"name": "b", "protocol": "UDP", "port": 2}],
            "endpoints": [
                {"addresses": ["fd00::1", "fd00::2"], "conditions": {"ready": true, "terminating": false},
                 "nodeName": "n", "zone": "z", "targetRef": {"kind": "Pod", "namespace": "shop", "name": "p"},
                 "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}},
                {"addresses": ["what ever"], "conditions": {"serving": false}, "targetRef": {"uid": "u7"}},
                {"addresses": ["fd00::3"]},
            ],
        }));
        returns(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "u"},
            "spec": {"taints": [{"key": "a"}, {"key": "b"}]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "192.0.2.7"}, {"type": "InternalIP", "address": "10.0.0.1"},
            ]},
        }));
    }

    proptest! {
        #[test]
        fn any_time_returns(seconds in -62_000_000_000_i64..250_000_000_000) {
            let value = json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": "n", "creationTimestamp": time(seconds)}});
            let Object::Node(node) = read(&value) else {
                return Err(TestCaseError::fail("a Node"));
            };
            prop_assert_eq!(node.meta.created, Some(seconds));
        }
    }
}
