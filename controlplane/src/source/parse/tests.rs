//! One value at a time: what is read, and what is refused with which path.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::object::{EndpointSlice, Service, ServiceType, Trigger};
use serde_json::json;

fn read(value: &Value) -> Result<Object, ObjectError> {
    object_from_value(SourceId(1), &Arc::default(), value)
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
           "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

fn slice(fields: Value) -> Value {
    let mut value = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4"});
    let more = fields.as_object().expect("tests pass mappings").clone();
    value.as_object_mut().expect("a mapping").extend(more);
    value
}

fn good_service(value: &Value) -> Arc<Service> {
    match read(value) {
        Ok(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn good_slice(value: &Value) -> Arc<EndpointSlice> {
    match read(value) {
        Ok(Object::EndpointSlice(slice)) => slice,
        other => panic!("{other:?}"),
    }
}

fn refusal(value: &Value) -> String {
    read(value).expect_err("must be refused").to_string()
}

#[test]
fn defaults_are_those_of_the_api() {
    let web = good_service(&service(json!({"ports": [{"port": 80}]})));
    assert_eq!(web.kind, ServiceType::ClusterIp);
    assert_eq!(web.ports[0].protocol, PortProtocol::Tcp);
    assert_eq!(&*web.ports[0].name, "");
    assert!(web.allocate_node_ports);
    assert_eq!(web.client_ip_affinity, None);
    let on = json!({"sessionAffinity": "ClientIP"});
    let seconds = good_service(&service(on)).client_ip_affinity;
    assert_eq!(seconds, Some(Duration::from_secs(10_800)));
}

#[test]
fn null_is_absent_everywhere() {
    let with_null = service(
        json!({"type": null, "ports": null, "ipFamilies": null, "clusterIP": null,
        "loadBalancerSourceRanges": null, "sessionAffinity": null, "sessionAffinityConfig": null,
        "externalTrafficPolicy": null, "healthCheckNodePort": null, "loadBalancerClass": null,
        "allocateLoadBalancerNodePorts": null, "ipFamilyPolicy": null, "loadBalancerIP": null}),
    );
    assert_eq!(good_service(&with_null), good_service(&service(json!({}))));
    let bare = slice(
        json!({"ports": null, "endpoints": [{"addresses": ["10.0.0.1"],
        "conditions": null, "hints": null, "targetRef": null, "nodeName": null, "zone": null}]}),
    );
    let endpoint = &good_slice(&bare).endpoints[0];
    assert_eq!((endpoint.ready, endpoint.serving), (None, None));
}

/// Fields for others to read: `internalTrafficPolicy` is the ClusterIP's; `appProtocol` is a hint;
/// `trafficDistribution` and its annotation are read by who writes the slices' hints.
#[test]
fn fields_for_others_change_nothing() {
    let plain = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    let mut full = service(json!({"type": "LoadBalancer",
        "ports": [{"port": 80, "appProtocol": "https", "targetPort": "web"}],
        "internalTrafficPolicy": "Local", "trafficDistribution": "PreferSameNode",
        "externalIPs": ["192.0.2.1"], "publishNotReadyAddresses": true,
        "selector": {"app": "web"}, "externalName": "example.com"}));
    full["metadata"]["annotations"] = json!({"service.kubernetes.io/topology-mode": "Auto"});
    assert_eq!(good_service(&full), good_service(&plain));
}

#[test]
fn a_nil_port_name_is_not_an_empty_one() {
    let ports = json!({"ports": [{"port": 80}, {"name": null, "port": 81}, {"name": "", "port": 82}, {"name": "x"}, {"port": 0}]});
    let slice = good_slice(&slice(ports));
    let names: Vec<Option<&str>> = slice
        .ports
        .iter()
        .map(|port| port.name.as_deref())
        .collect();
    assert_eq!(names, [None, None, Some(""), Some("x"), None]);
    assert_eq!((slice.ports[3].port, slice.ports[4].port), (None, None));
}

#[test]
fn wrong_fields_are_named_by_their_path() {
    let cases = [
        (
            service(json!({"ports": [{"port": 80}, {"port": "443"}]})),
            "spec.ports[1].port: \"443\" is not a port (1 to 65535)",
        ),
        (
            service(json!({"ports": [{"port": 80, "nodePort": -1}]})),
            "spec.ports[0].nodePort: -1 is not a port (1 to 65535)",
        ),
        (
            service(json!({"ports": {"port": 80}})),
            "spec.ports: a mapping is not a list",
        ),
        (
            service(json!({"type": "Ingress"})),
            "spec.type: \"Ingress\" is unknown; write one of ClusterIP, NodePort, LoadBalancer, ExternalName",
        ),
        (
            service(json!({"ports": [{"port": 80, "protocol": "tcp"}]})),
            "spec.ports[0].protocol: \"tcp\" is unknown; write one of TCP, UDP, SCTP",
        ),
        (
            service(
                json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            ),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not a whole number from 1 to 86400",
        ),
        (
            service(json!({"loadBalancerSourceRanges": "192.0.2.0/24"})),
            "spec.loadBalancerSourceRanges: \"192.0.2.0/24\" is not a list",
        ),
        (service(json!([])), "spec: a list is not a mapping"),
        (
            slice(json!({"addressType": "IPv5"})),
            "addressType: \"IPv5\" is unknown; write one of IPv4, IPv6, FQDN",
        ),
        (
            slice(json!({"endpoints": [{"addresses": []}]})),
            "endpoints[0].addresses: is missing",
        ),
        (
            slice(
                json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": "yes"}}]}),
            ),
            "endpoints[0].conditions.ready: \"yes\" is not true or false",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service"}),
            "metadata: is missing",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "Web"}}),
            "metadata.name: \"Web\" is not a name (lower-case letters, digits, '-' and '.', at most 253)",
        ),
        (
            json!({"apiVersion": "v1", "kind": 7}),
            "kind: 7 is not text (put quotes around it)",
        ),
        (json!("<html>"), "\"<html>\" is not a mapping"),
    ];
    for (value, expected) in cases {
        assert_eq!(refusal(&value), expected);
    }
}

#[test]
fn lists_and_texts_are_bounded() {
    let endpoint = json!({"addresses": ["10.0.0.1"]});
    let full = |count| slice(json!({"endpoints": vec![endpoint.clone(); count]}));
    assert_eq!(good_slice(&full(1000)).endpoints.len(), 1000);
    assert_eq!(
        refusal(&full(1001)),
        "endpoints: has 1001 entries; at most 1000 are read"
    );
    let ports = |count| slice(json!({"ports": vec![json!({"name": "x", "port": 1}); count]}));
    assert!(read(&ports(100)).is_ok());
    assert_eq!(
        refusal(&ports(101)),
        "ports: has 101 entries; at most 100 are read"
    );
    let long = service(json!({"loadBalancerClass": "x".repeat(257)}));
    assert_eq!(
        refusal(&long),
        "spec.loadBalancerClass: is 257 bytes long; at most 256 are read"
    );
}

#[test]
fn annotations_that_no_rule_reads_are_dropped_whatever_their_size() {
    let mut value = service(json!({}));
    value["metadata"]["annotations"] =
        json!({"note": "x".repeat(1 << 20), "weir.dev/algorithm": "maglev"});
    value["metadata"]["labels"] = json!({"app": "web", "service.kubernetes.io/headless": ""});
    let web = good_service(&value);
    assert_eq!(web.meta.annotations.len(), 1);
    assert_eq!(web.meta.labels.len(), 1);
    value["metadata"]["annotations"] = json!({"weir.dev/algorithm": "x".repeat(1 << 20)});
    assert_eq!(
        refusal(&value),
        "metadata.annotations[\"weir.dev/algorithm\"]: is 1048576 bytes long; at most 4096 are read"
    );
}

/// A Service as an API server hands it out.
fn stored(value: &Value) -> crate::object::Stored {
    let mut reader = Reader::new(SourceId(1), Arc::default()).with_status();
    match reader.object(value, None) {
        Ok(Object::Service(web)) => web.stored.clone(),
        other => panic!("refused: {other:?}"),
    }
}

#[test]
fn what_an_api_server_keeps_is_read_only_where_it_was_asked_for() {
    let mut value = service(json!({"type": "LoadBalancer"}));
    value["metadata"]["finalizers"] = json!(["x/y", "weir.dev/load-balancer"]);
    value["metadata"]["generation"] = json!(3);
    value["status"] = json!({
        "loadBalancer": {"ingress": [
            {"ip": "192.0.2.1", "ipMode": "Proxy", "ports": [
                {"port": 80, "protocol": "TCP"}, {"port": 9, "protocol": "SCTP", "error": "x/Y"}]},
            {"hostname": "x"}, {"ip": "?"}]},
        "conditions": [
            {"type": "weir.dev/Serving", "status": "True", "reason": "Serving", "message": "m",
             "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "example.com/Other", "status": "True"}]});
    assert_eq!(
        good_service(&value).stored,
        crate::object::Stored::default()
    );
    let found = stored(&value);
    assert!(found.finalizer && !found.cleanup_finalizer);
    assert_eq!(found.generation, 3);
    let ip = "192.0.2.1".parse::<IpAddr>().expect("an address");
    let ips: Vec<_> = found.ingress.iter().map(|entry| entry.ip).collect();
    assert_eq!(ips, [Some(ip), None, None]);
    assert_eq!(found.ingress[1].hostname.as_deref(), Some("x"));
    assert!(found.ingress[0].proxied && !found.ingress[1].proxied);
    assert_eq!(found.ingress[0].ports.len(), 2);
    assert_eq!(found.ingress[0].ports[1].error.as_deref(), Some("x/Y"));
    assert_eq!(found.conditions.len(), 1, "others' are not kept");
    assert_eq!(&*found.conditions[0].message, "m");
}

#[test]
fn a_hostile_status_never_refuses_the_service() {
    let long = "x".repeat(1 << 20);
    for status in [
        json!(7),
        json!({"loadBalancer": []}),
        json!({"loadBalancer": {"ingress": {}}}),
        json!({"loadBalancer": {"ingress": [7, null, {"ip": 7, "ports": [{"port": 0}]}]}}),
        json!({"conditions": [7, {"type": 7}, {"type": "weir.dev/Serving", "message": long}]}),
        json!({"conditions": [{"type": "weir.dev/Serving", "observedGeneration": -1}]}),
    ] {
        let mut value = service(json!({"type": "LoadBalancer"}));
        value["metadata"]["finalizers"] = json!([7, {"a": 1}, "weir.dev/load-balancer"]);
        value["status"] = status;
        assert!(stored(&value).finalizer);
    }
}

#[test]
fn nodes_give_internal_addresses_first() {
    let value = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "worker-1", "labels": {"topology.kubernetes.io/zone": "a", "x": "y"}},
        "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "Hostname", "address": "worker-1"}, {"type": "InternalIP", "address": "10.0.0.1"}]}});
    let Ok(Object::Node(node)) = read(&value) else {
        panic!("refused");
    };
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "203.0.113.1"]);
    assert_eq!(&*node.meta.key.namespace, "");
    assert_eq!(node.taints.len(), 1);
    assert_eq!(node.meta.labels.len(), 2, "a selector may name any");
}

#[test]
fn other_kinds_are_skipped_and_not_refused() {
    for (api_version, kind) in [
        ("apps/v1", "Deployment"),
        ("discovery.k8s.io/v1beta1", "EndpointSlice"),
        ("v2", "Service"),
    ] {
        let value = json!({"apiVersion": api_version, "kind": kind, "spec": 7});
        assert!(
            matches!(read(&value), Err(ObjectError::Skipped { .. })),
            "{kind}"
        );
    }
}

#[test]
fn repeated_strings_are_shared() {
    let mut reader = Reader::new(SourceId(1), Arc::default());
    let mut node = || {
        let value =
            slice(json!({"endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "worker-1"}]}));
        match reader.object(&value, None) {
            Ok(Object::EndpointSlice(slice)) => slice.endpoints[0].node.clone().expect("given"),
            other => panic!("{other:?}"),
        }
    };
    assert!(Arc::ptr_eq(&node(), &node()));
}

#[test]
fn what_triggered_a_slice_is_read_as_go_writes_it_and_refuses_none() {
    let of = |annotations: Value| {
        let mut value = slice(json!({}));
        value["metadata"]["annotations"] = annotations;
        good_slice(&value)
    };
    let at = |time: &str| of(json!({"endpoints.kubernetes.io/last-change-trigger-time": time}));
    let second = 1_767_323_045_000_000;
    let long = "2026-01-02T03:04:05Z".repeat(10_000);
    for (time, trigger) in [
        ("2026-01-02T03:04:05Z", Trigger::At(second)),
        ("2026-01-02T03:04:05.000001Z", Trigger::At(second + 1)),
        (
            "2026-01-02T05:04:05.123456789+02:00",
            Trigger::At(second + 123_456),
        ),
        ("1969-12-31T23:59:59Z", Trigger::At(-1_000_000)),
        ("", Trigger::Unreadable),
        ("yesterday", Trigger::Unreadable),
        ("2026-13-02T03:04:05Z", Trigger::Unreadable),
        ("2026-01-02", Trigger::Unreadable),
        (&*long, Trigger::Unreadable),
    ] {
        let found = at(time);
        assert_eq!(found.trigger, trigger, "{time:.60}");
        assert_eq!(found, of(json!({})), "it changes nothing");
    }
    assert_eq!(of(json!({"other": "x"})).trigger, Trigger::Absent);
    assert_eq!(good_slice(&slice(json!({}))).trigger, Trigger::Absent);
}
