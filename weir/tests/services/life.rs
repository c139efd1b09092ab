//! A Service's life: it comes, changes, and leaves.

use serde_json::{Value, json};

use crate::shared::{Room, refused, soon};
use crate::support::cluster::stage::{CLASS, FINALIZER, condition, finalizers, ingress};
use crate::support::net::pod_v4;
use crate::support::traffic::{TcpPod, ask, exchange, udp};

/// LoadBalancers: "should be able to change the type and ports of a TCP service"; "should handle
/// load balancer cleanup finalizer for service".
#[test]
fn change_the_type_and_ports_of_a_tcp_service_and_cleanup_finalizer() {
    let Some(room) = Room::new("tcp-type") else {
        return;
    };
    let _server = TcpPod::named(&room.lab.server, pod_v4(0), room.port, "0");
    let address = room.service("web", &json!({}));
    let on = |port: u16| {
        let to = (address, port).into();
        room.lab.client.run(move || ask(to))
    };
    // 0 pods: refused, and it is said why.
    soon("refused", || refused(&on(80)));
    let found = room.wait_reason("web", "NoUsableEndpoint");
    let entry = &found["status"]["loadBalancer"]["ingress"][0];
    assert_eq!(entry["ipMode"], "Proxy");
    let why = "a class of ours: not the standard one";
    assert_eq!(finalizers(&found), [FINALIZER], "{why}");
    // 1 pod: an answer.
    room.pod(0);
    soon("it answers", || on(80).is_ok());
    room.wait("web", "it serves", |service| {
        condition(service, "weir.dev/Serving").is_some_and(|c| c["status"] == "True")
    });
    // Another port: the address stays, the old port closes.
    let moved = json!([{"name": "tcp", "port": 81, "targetPort": room.port}]);
    room.patch("web", &json!({"ports": moved}));
    soon("the new port answers", || on(81).is_ok());
    soon("the old port is closed", || on(80).is_err());
    assert_eq!(ingress(&room.get("web")), Some(address));
    // Back to ClusterIP: closed, status clear, finalizer gone; the class is wiped by then.
    let leaving = json!({"type": "ClusterIP", "loadBalancerClass": null});
    room.patch("web", &leaving);
    let left = |service: &Value| finalizers(service).is_empty();
    let found = room.wait("web", "it is left", left);
    assert_eq!(ingress(&found), None);
    assert!(condition(&found, "weir.dev/Serving").is_none());
    soon("the port is closed", || on(81).is_err());
    // And again: the finalizer comes back with the type.
    let coming = json!({"type": "LoadBalancer", "loadBalancerClass": CLASS});
    room.patch("web", &coming);
    room.wait("web", "it is ours again", |service| {
        finalizers(service) == [FINALIZER] && ingress(service).is_some()
    });
    // Deleted: nothing hangs in Terminating.
    room.cluster.call("DELETE", &room.path("web"), &Value::Null);
    room.wait("web", "it is gone", Value::is_null);
    for reason in [
        "EnsuringLoadBalancer",
        "IPAllocated",
        "EnsuredLoadBalancer",
        "UnAvailableLoadBalancer",
        "DeletingLoadBalancer",
        "DeletedLoadBalancer",
    ] {
        room.wait_event("web", reason);
    }
}

/// "should be able to change the type and ports of a UDP service".
#[test]
fn change_the_type_and_ports_of_a_udp_service() {
    let Some(room) = Room::new("udp-type") else {
        return;
    };
    let _server = room.udp(0);
    let ports =
        |port: u16| json!({"ports": [{"port": port, "protocol": "UDP", "targetPort": room.port}]});
    let address = room.service("dns", &ports(53));
    let [old, new] = [53, 54].map(|port| udp(&room.lab.client, (address, port)));
    let answers = |socket| exchange(socket, b"x").is_ok();
    let closed = |socket| refused(&exchange(socket, b"x"));
    soon("ICMP says that nobody is there", || closed(&old));
    room.pod(0);
    soon("it answers", || answers(&old));
    room.patch("dns", &ports(54));
    soon("the new port answers", || answers(&new));
    soon("the old one is closed", || closed(&old));
    let leaving = json!({"type": "ClusterIP", "loadBalancerClass": null});
    room.patch("dns", &leaving);
    room.wait("dns", "it is left", |service| ingress(service).is_none());
    soon("nobody answers", || !answers(&new));
}
