//! What a real API server lets a hostile tenant write: rows S1-S4. Nothing of it touches another's traffic
//! or addresses.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::shared::{Room, soon};
use crate::support::cluster::stage::{FINALIZER, ingress};
use crate::support::traffic::TcpPod;

/// A tenant that is served, and must go on so.
struct Victim {
    room: Room,
    address: IpAddr,
    _server: TcpPod,
}

impl Victim {
    fn new(namespace: &str) -> Option<Victim> {
        let room = Room::new(namespace)?;
        let server = room.tcp(0);
        room.pod(0);
        let address = room.service("victim", &json!({}));
        soon("the victim answers", || room.ask(address).is_ok());
        Some(Victim {
            room,
            address,
            _server: server,
        })
    }

    #[track_caller]
    fn assert_unharmed(&self, after: &Value) {
        let names = self.room.answers(self.address, 5);
        assert!(
            names.iter().all(|name| name == "0"),
            "{names:?} after {after:#}"
        );
        assert_eq!(
            ingress(&self.room.get("victim")),
            Some(self.address),
            "{after:#}"
        );
    }
}

/// Waits until the appliance has seen what was written before: a Service made after it has an address.
fn seen(room: &Room, n: usize) {
    let name = format!("mark-{n}");
    room.service(&name, &json!({}));
    room.cluster.call("DELETE", &room.path(&name), &Value::Null);
}

#[test]
fn s1_no_field_takes_an_address_of_another() {
    let Some(victim) = Victim::new("s1-victim") else {
        return;
    };
    let room = victim.room.beside("s1-evil");
    let evil = room.tcp(1);
    room.pod(1);
    let ip = victim.address.to_string();
    let own = json!({});
    let attempts = [
        (own.clone(), json!({"externalIPs": [ip]})),
        (own.clone(), json!({"loadBalancerIP": ip})),
        (json!({"weir.dev/load-balancer-ips": ip}), own.clone()),
        (json!({"metallb.io/loadBalancerIPs": ip}), own.clone()),
        (
            json!({"weir.dev/load-balancer-ips": format!("::ffff:{ip}")}),
            own.clone(),
        ),
        (
            json!({"weir.dev/load-balancer-ips": ip, "weir.dev/allow-shared-ip": "guess"}),
            own,
        ),
    ];
    for (n, (annotations, spec)) in attempts.into_iter().enumerate() {
        let attempt = room.service_with("evil", &annotations, &spec);
        room.cluster.put(&attempt);
        seen(&room, n);
        assert_ne!(
            ingress(&room.get("evil")),
            Some(victim.address),
            "{attempt:#}"
        );
        victim.assert_unharmed(&attempt);
    }
    assert_eq!(evil.count(), 0, "nobody came to the attacker");
    // Status too is the attacker's to write, where RBAC is lax: what is not in our record is put right.
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
    room.service("claims", &json!({}));
    let path = room.path("claims");
    room.cluster
        .call("PATCH", &format!("{path}/status"), &status);
    room.wait("claims", "its own address again", |service| {
        ingress(service).is_some_and(|ip| ip != victim.address)
    });
    let claimed = room.service_with(
        "born",
        &json!({}),
        &json!({"loadBalancerClass": "other/lb"}),
    );
    room.cluster.put(&claimed);
    let path = room.path("born");
    let finalizer = json!({"metadata": {"finalizers": [FINALIZER]}});
    room.cluster.call("PATCH", &path, &finalizer);
    room.cluster
        .call("PATCH", &format!("{path}/status"), &status);
    seen(&room, 99);
    victim.assert_unharmed(&claimed);
}

#[test]
fn s2_endpoints_that_only_the_appliance_reaches_are_never_dialled() {
    let Some(victim) = Victim::new("s2-victim") else {
        return;
    };
    let room = victim.room.beside("s2-evil");
    let address = room.service("web", &json!({"selector": null}));
    let slice = |family: &str, at: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "evil", "namespace": room.namespace,
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family, "endpoints": [{"addresses": [at]}],
            "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}],
        })
    };
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/evil",
        room.namespace
    );
    let vip = victim.address.to_string();
    let own = address.to_string();
    let mut let_in = 0;
    for (family, at) in [
        ("IPv4", "127.0.0.1"),
        ("IPv4", "169.254.169.254"),
        ("IPv4", "168.63.129.16"),
        ("IPv4", "100.100.100.200"),
        ("IPv4", "0.1.2.3"),
        ("IPv4", "255.255.255.255"),
        ("IPv4", &vip),
        ("IPv4", &own),
        ("IPv6", "fd00:ec2::254"),
        ("IPv6", "64:ff9b::a9fe:a9fe"),
        ("IPv6", "2002:7f00:1::1"),
        ("IPv6", "fd01::64:1"),
    ] {
        let attempt = slice(family, at);
        // Of one name slices have one family.
        room.cluster.call("DELETE", &path, &Value::Null);
        if room.cluster.try_put(&attempt).is_err() {
            continue;
        }
        let_in += 1;
        room.wait_said("web", "EndpointRefused", at);
        assert!(room.ask(address).is_err(), "{at}");
        victim.assert_unharmed(&attempt);
    }
    assert!(let_in >= 8, "the API server lets in only {let_in} of them");
}

#[test]
fn s3_source_ranges_that_are_none_deny_everybody() {
    let Some(victim) = Victim::new("s3-victim") else {
        return;
    };
    let room = victim.room.beside("s3-ranges");
    let _server = room.tcp(1);
    room.pod(1);
    let address = room.service("web", &json!({}));
    soon("it answers", || room.ask(address).is_ok());
    let legacy = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let mut let_in = 0;
    for (annotations, spec) in [
        (json!({legacy: "10.1.0.0/99"}), json!({})),
        (json!({legacy: "everybody"}), json!({})),
        (json!({legacy: "0.0.0.0/0,"}), json!({})),
        (
            json!({}),
            json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}),
        ),
        (
            json!({}),
            json!({"loadBalancerSourceRanges": ["fd01::/64"]}),
        ),
        (
            json!({}),
            json!({"loadBalancerSourceRanges": ["10.1.0.0/99"]}),
        ),
    ] {
        let attempt = room.service_with("web", &annotations, &spec);
        if room.cluster.try_put(&attempt).is_err() {
            continue;
        }
        let_in += 1;
        soon(&format!("denied by {attempt:#}"), || {
            room.ask(address).is_err()
        });
        victim.assert_unharmed(&attempt);
        // Open again: the next one has to close it by itself.
        room.cluster
            .put(&room.service_with("web", &json!({}), &json!({})));
        soon("it answers again", || room.ask(address).is_ok());
    }
    assert!(let_in >= 2, "the API server lets in only {let_in} of them");
    // White space around a range is let in, and means nothing.
    let spaced = json!({"loadBalancerSourceRanges": [" 10.1.0.0/24 "]});
    room.cluster
        .put(&room.service_with("web", &json!({}), &spaced));
    room.answers(address, 5);
}

#[test]
fn s4_annotations_of_every_wrong_kind_are_noted_and_disturb_nobody() {
    let Some(victim) = Victim::new("s4-victim") else {
        return;
    };
    let room = victim.room.beside("s4-evil");
    let _server = room.tcp(1);
    room.pod(1);
    let huge = "9".repeat(200_000);
    let many: serde_json::Map<String, Value> = (0..500)
        .map(|n| (format!("weir.dev/unknown-{n}"), json!("x")))
        .collect();
    let attempts = [
        json!({"weir.dev/idle-timeout": "-1"}),
        json!({"weir.dev/idle-timeout": huge}),
        json!({"weir.dev/algorithm": "\u{202e}\u{0}\u{1b}[31m".replace('\u{0}', "")}),
        json!({"weir.dev/load-balancer-ips": huge}),
        Value::Object(many),
    ];
    for (n, annotations) in attempts.iter().enumerate() {
        let attempt = room.service_with("evil", annotations, &json!({}));
        room.cluster.put(&attempt);
        seen(&room, n);
        victim.assert_unharmed(&json!(n));
    }
    // The text of a tenant is escaped wherever it is shown.
    room.with_weir(|weir| {
        let log = weir.log();
        assert!(
            !log.contains('\u{1b}') && !log.contains('\u{202e}'),
            "{log}"
        );
    });
    // Another class takes it away from us: the API server wants another type in between.
    let address = room.service("leaves", &json!({}));
    soon("it answers", || room.ask(address).is_ok());
    room.patch(
        "leaves",
        &json!({"type": "ClusterIP", "loadBalancerClass": null}),
    );
    room.patch(
        "leaves",
        &json!({"type": "LoadBalancer", "loadBalancerClass": "other/lb"}),
    );
    room.wait("leaves", "it is left", |service| {
        service["metadata"]["finalizers"].is_null() && ingress(service).is_none()
    });
    soon("closed", || room.ask(address).is_err());
}
