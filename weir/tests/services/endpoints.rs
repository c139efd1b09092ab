//! Pods come, go, and are in between.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::shared::{Room, refused, soon};
use crate::support::net::pod_v4;
use crate::support::traffic::{exchange, udp};

/// Longer than any case: no kubelet ends a pod that is deleted with it.
const GRACE: Duration = Duration::from_secs(600);

/// A UDP Service of the room, and a client of it that keeps its port.
fn udp_service(room: &Room) -> (IpAddr, UdpSocket) {
    let address = room.service("dns", &json!({"ports": [room.port_80("UDP")]}));
    let socket = udp(&room.lab.client, (address, 80));
    (address, socket)
}

fn said_by(socket: &UdpSocket, n: u16) -> bool {
    exchange(socket, b"x").is_ok_and(|said| said == format!("{n}:x").as_bytes())
}

/// "should be able to preserve UDP traffic when server pod cycles for a LoadBalancer service on the same
/// nodes".
#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_on_the_same_node() {
    udp_pod_cycles("udp-same-node", ["n1", "n1"]);
}

/// "... on different nodes".
#[test]
fn should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_on_different_nodes() {
    udp_pod_cycles("udp-nodes", ["n1", "n2"]);
}

fn udp_pod_cycles(name: &str, nodes: [&str; 2]) {
    let Some(room) = Room::new(name) else { return };
    let (first_server, _second_server) = (room.udp(0), room.udp(1));
    let first = room.pod_on(nodes[0], 0);
    let (_, socket) = udp_service(&room);
    soon("the first answers", || said_by(&socket, 0));
    room.pod_on(nodes[1], 1);
    room.cluster.end_pod(&first);
    soon("the second answers", || said_by(&socket, 1));
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let stale = first_server.count();
    for _ in 0..20 {
        assert!(said_by(&socket, 1));
    }
    assert_eq!(first_server.count(), stale, "nothing goes to the old one");
}

/// Conntrack: "should be able to preserve UDP traffic when initial unready endpoints get ready".
#[test]
fn should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready() {
    let Some(room) = Room::new("udp-unready") else {
        return;
    };
    let server = room.udp(0);
    let pod = room.starting_pod("n1", 0);
    room.cluster.set_ready(&pod, false);
    let (_, socket) = udp_service(&room);
    soon("nobody is there", || refused(&exchange(&socket, b"x")));
    assert_eq!(server.count(), 0);
    room.cluster.set_ready(&pod, true);
    soon("it answers the same client", || said_by(&socket, 0));
}

/// "should be rejected when no endpoints exist".
#[test]
fn should_be_rejected_when_no_endpoints_exist() {
    let Some(room) = Room::new("rejected") else {
        return;
    };
    let address = room.service(
        "web",
        &json!({"ports": [room.port_80("TCP"), room.port_80("UDP")]}),
    );
    rejects(&room, address);
}

/// "should be rejected for evicted pods (no endpoints exist)".
#[test]
fn should_be_rejected_for_evicted_pods_no_endpoints_exist() {
    let Some(room) = Room::new("evicted") else {
        return;
    };
    let (_tcp, _udp) = (room.tcp(0), room.udp(0));
    let pod = room.pod(0);
    let address = room.service(
        "web",
        &json!({"ports": [room.port_80("TCP"), room.port_80("UDP")]}),
    );
    soon("it answers", || room.ask(address).is_ok());
    room.cluster.evict(&pod);
    rejects(&room, address);
}

/// By RST and by ICMP, not by silence; the address stays.
fn rejects(room: &Room, address: IpAddr) {
    let socket = udp(&room.lab.client, (address, 80));
    soon("TCP is refused", || refused(&room.ask(address)));
    soon("UDP is refused", || refused(&exchange(&socket, b"x")));
    let found = room.wait_reason("web", "NoUsableEndpoint");
    let ip = &found["status"]["loadBalancer"]["ingress"][0]["ip"];
    assert_eq!(*ip, address.to_string());
}

/// "should fallback to terminating endpoints when there are no ready endpoints" (all four forms of it:
/// pods are dialled, so that no policy changes who answers).
#[test]
fn should_fallback_to_terminating_endpoints_when_there_are_no_ready_endpoints() {
    let Some(room) = Room::new("terminating") else {
        return;
    };
    let _servers = [0, 1, 2].map(|n| room.tcp(n));
    let old = [room.pod_on("n1", 0), room.pod_on("n2", 1)];
    let local = room.service("local", &json!({"externalTrafficPolicy": "Local"}));
    let address = room.service("web", &json!({}));
    for vip in [address, local] {
        soon("it answers", || room.ask(vip).is_ok());
    }
    for pod in &old {
        room.cluster.delete_pod(pod, GRACE);
    }
    room.wait_event("web", "OnlyTerminatingEndpoints");
    for vip in [address, local] {
        room.answers(vip, 5);
    }
    // One that does not serve any more takes nothing.
    room.cluster.set_ready(&old[0], false);
    let only = |n: &str| {
        let [web, local] = [address, local].map(|vip| room.answers(vip, 10));
        web.iter().chain(&local).all(|name| name == n)
    };
    soon("the one that serves takes everything", || only("1"));
    room.pod(2);
    soon("the one that is ready takes everything", || only("2"));
}

/// EndpointSlice: "should create and delete two custom EndpointSlices with duplicate addresses", "should
/// support a Service with multiple ports specified in multiple EndpointSlices" (k8s#114144).
#[test]
fn two_custom_endpoint_slices_with_duplicate_addresses_are_a_union() {
    let Some(room) = Room::new("slices") else {
        return;
    };
    let _servers = [0, 1, 2].map(|n| room.tcp(n));
    let address = room.service("web", &json!({"selector": null}));
    let slice = |name: &str, pods: &[u16]| {
        let endpoint = |n: &u16| json!({"addresses": [pod_v4(*n)]});
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        room.cluster.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": room.namespace,
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "tcp", "port": room.port, "protocol": "TCP"}],
        }));
    };
    slice("one", &[0, 1]);
    slice("two", &[1, 2]);
    let answering = || {
        let mut names = room.answers(address, 30);
        names.sort();
        names.dedup();
        names
    };
    soon("it answers", || room.ask(address).is_ok());
    soon("the union answers", || answering() == ["0", "1", "2"]);
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/one",
        room.namespace
    );
    room.cluster.call("DELETE", &path, &Value::Null);
    soon("what the other slice says is left", || {
        answering() == ["1", "2"]
    });
}

/// "should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true".
#[test]
fn should_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses() {
    let Some(room) = Room::new("not-ready") else {
        return;
    };
    let _server = room.tcp(0);
    let pod = room.starting_pod("n1", 0);
    room.cluster.set_ready(&pod, false);
    let address = room.service("web", &json!({"publishNotReadyAddresses": true}));
    soon("the unready one answers", || room.ask(address).is_ok());
    room.cluster.delete_pod(&pod, GRACE);
    room.cluster
        .wait_endpoints(&room.namespace, "web", "terminating", |found| {
            found.iter().any(|endpoint| endpoint.terminating)
        });
    room.answers(address, 5);
    room.patch("web", &json!({"publishNotReadyAddresses": false}));
    soon("refused", || refused(&room.ask(address)));
}

/// Programming latency, from the time that the endpointslice controller writes down.
#[test]
fn a_change_of_endpoints_is_timed_from_its_trigger() {
    let Some(room) = Room::new("timed") else {
        return;
    };
    let counted = || {
        const COUNT: &str = "weir_endpoints_programming_duration_seconds_count";
        room.with_weir(|weir| weir.metric(COUNT, &[]))
    };
    room.service("web", &json!({}));
    // Pods date whole seconds, and what is from before Weir's start does not count.
    let second = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let begun = second();
    soon("another second", || second() > begun);
    let before = counted();
    room.pod(0);
    soon("it is counted", || counted() > before);
}
