//! Faults of the cluster and of the appliance, with real objects: rows K10 and K17-K19.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::shared::{Room, TIGHT, soon};
use crate::support::cluster::stage::ingress;
use crate::support::traffic::{Load, ask, connect, exchange, read_name, udp};

/// "should work after restarting apiserver".
#[test]
fn should_work_after_restarting_apiserver() {
    let Some(room) = Room::alone("apiserver") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    let address = room.service("before", &json!({}));
    soon("it answers", || room.ask(address).is_ok());
    room.cluster.stop_api();
    room.answers(address, 5);
    room.cluster.start_api();
    room.answers(address, 5);
    assert_eq!(room.service("before", &json!({})), address);
    let after = room.service("after", &json!({}));
    soon("a new one answers too", || room.ask(after).is_ok());
}

/// What is open at a pod lives on while the pod says ten times a second that it is ready, and that it is
/// not; who comes is served by it or by the other.
#[test]
fn k10_a_pod_that_flaps_ten_times_a_second_resets_nobody() {
    use std::io::{Read, Write};
    let Some(room) = Room::new("flap") else {
        return;
    };
    let _servers = (room.tcp(0), room.tcp(1), room.udp(0), room.udp(1));
    let flapping = room.pod(0);
    let address = room.service(
        "web",
        &json!({"ports": [room.port_80("TCP"), room.port_80("UDP")]}),
    );
    let vip = SocketAddr::new(address, 80);
    soon("it answers", || room.ask(address).is_ok());
    let mut open = connect(&room.lab.client, vip).unwrap();
    assert_eq!(read_name(&mut open).unwrap(), "0");
    let flow = udp(&room.lab.client, vip);
    flow.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    room.pod(1);
    soon("the other answers", || {
        room.ask(address).is_ok_and(|n| n == "1")
    });
    let load = Load::start(&room.lab.client, 2, 100, move || ask(vip).map(|_| ()));
    let period = Duration::from_millis(100);
    let mut next = Instant::now();
    for round in 0..30 {
        room.cluster.set_ready(&flapping, round % 2 == 1);
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        exchange(&flow, b"x").unwrap();
        next += period;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (done, failed) = load.finish();
    assert!(done > 0 && failed.is_empty(), "{done}: {failed:?}");
    assert_eq!(
        room.service("web", &json!({"ports": [room.port_80("TCP")]})),
        address
    );
}

/// K18: who comes too late waits and is told so, takes nothing from anybody, and is served as soon as an
/// address is free; K17: a restart in between moves nobody, and gives the waiting ones nothing.
#[test]
fn k17_k18_a_full_pool_over_a_restart_moves_nobody_and_heals() {
    let Some(room) = Room::alone("full-pool") else {
        return;
    };
    let tight = json!({"weir.dev/address-pool": "tight"});
    let put = |name: &str| {
        room.cluster
            .put(&room.service_with(name, &tight, &json!({})))
    };
    let mut held: Vec<(String, IpAddr)> = Vec::new();
    for name in ["a", "b"] {
        put(name);
        let found = room.wait(name, "an address", |service| ingress(service).is_some());
        held.push((name.into(), ingress(&found).unwrap()));
    }
    let mut given: Vec<IpAddr> = held.iter().map(|(_, ip)| *ip).collect();
    given.sort();
    assert_eq!(given, TIGHT.map(IpAddr::from));
    let waits = |name: &str| {
        let found = room.wait_reason(name, "PoolExhausted");
        assert_eq!(ingress(&found), None, "{name}");
    };
    let nobody_moved = |held: &[(String, IpAddr)]| {
        for (name, ip) in held {
            assert_eq!(ingress(&room.get(name)), Some(*ip), "{name}");
        }
    };
    // By name the first in every order but age.
    put("0-late");
    waits("0-late");
    assert_eq!(room.wait_event("0-late", "PoolExhausted"), "Warning");
    room.restart_weir(|| {
        put("00-later");
    });
    waits("00-later");
    waits("0-late");
    nobody_moved(&held);
    room.cluster.call("DELETE", &room.path("b"), &Value::Null);
    let found = room.wait("0-late", "the address that is free", |service| {
        ingress(service).is_some()
    });
    assert_eq!(ingress(&found), Some(held[1].1), "the oldest that waits");
    waits("00-later");
    held.pop();
    nobody_moved(&held);
}

/// The oldest has an address; who asks for the same one waits, unless both say one sharing key and no port
/// occurs twice. The traffic policy need not agree.
#[test]
fn k19_one_address_for_two_namespaces_needs_the_consent_of_both() {
    let Some(room) = Room::new("sharing") else {
        return;
    };
    let other = room.beside("sharing-too");
    let key = |key: &str, ip: Option<IpAddr>| {
        let mut all = json!({"weir.dev/allow-shared-ip": key});
        if let Some(ip) = ip {
            all["weir.dev/load-balancer-ips"] = json!(ip);
        }
        all
    };
    let _servers = (room.tcp(0), other.tcp(1));
    room.pod(0);
    other.pod(1);
    room.cluster
        .put(&room.service_with("web", &key("k", None), &json!({})));
    let found = room.wait("web", "an address", |service| ingress(service).is_some());
    let address = ingress(&found).unwrap();
    let put = |said: &Value, port: u16| {
        let ports = json!([{"name": "tcp", "port": port, "targetPort": other.port}]);
        let spec = json!({"ports": ports, "externalTrafficPolicy": "Local"});
        other.cluster.put(&other.service_with("web", said, &spec));
    };
    // Without a key, with another one, and with the same port.
    put(&json!({"weir.dev/load-balancer-ips": address}), 81);
    other.wait_reason("web", "AddressTaken");
    put(&key("guess", Some(address)), 81);
    other.wait_reason("web", "SharingRefused");
    put(&key("k", Some(address)), 80);
    other.wait_reason("web", "SharingRefused");
    assert_eq!(ingress(&other.get("web")), None);
    put(&key("k", Some(address)), 81);
    other.wait("web", "they share", |service| {
        ingress(service) == Some(address)
    });
    let second = SocketAddr::new(address, 81);
    soon("each has its own port", || {
        let theirs = room.lab.client.run(move || ask(second));
        room.ask(address).is_ok_and(|n| n == "0") && theirs.is_ok_and(|n| n == "1")
    });
}
