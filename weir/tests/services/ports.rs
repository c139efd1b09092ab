//! Ports, protocols and addresses of a Service.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use crate::shared::{Room, refused, soon};
use crate::support::traffic::{ask, exchange, udp};

/// "should serve endpoints on same port and different protocols".
#[test]
fn should_serve_endpoints_on_same_port_and_different_protocols() {
    let Some(room) = Room::new("protocols") else {
        return;
    };
    let (_tcp, _udp) = (room.tcp(0), room.udp(0));
    room.pod(0);
    let address = room.service(
        "web",
        &json!({"ports": [room.port_80("TCP"), room.port_80("UDP")]}),
    );
    let socket = udp(&room.lab.client, (address, 80));
    soon("both answer", || {
        room.ask(address).is_ok() && exchange(&socket, b"x").is_ok()
    });
    room.patch("web", &json!({"ports": [room.port_80("TCP")]}));
    soon("UDP is closed", || refused(&exchange(&socket, b"x")));
    assert!(room.ask(address).is_ok());
    room.patch("web", &json!({"ports": [room.port_80("UDP")]}));
    soon("UDP answers, TCP is closed", || {
        exchange(&socket, b"x").is_ok() && refused(&room.ask(address))
    });
}

/// "should be able to create LoadBalancer Service without NodePort and change it".
#[test]
fn should_be_able_to_create_load_balancer_service_without_node_port_and_change_it() {
    let Some(room) = Room::new("no-node-port") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    let address = room.service("web", &json!({"allocateLoadBalancerNodePorts": false}));
    let node_port = || room.get("web")["spec"]["ports"][0]["nodePort"].as_u64();
    soon("it answers", || room.ask(address).is_ok());
    assert_eq!(node_port(), None);
    room.patch("web", &json!({"allocateLoadBalancerNodePorts": true}));
    assert!(node_port().is_some(), "the API server gives one");
    room.answers(address, 5);
    // What was given stays until its owner takes it away (KEP-1864).
    room.patch("web", &json!({"allocateLoadBalancerNodePorts": false}));
    assert!(node_port().is_some());
    room.answers(address, 5);
}

/// "should be possible to connect to a service via ExternalIP": that is kube-proxy's, and never ours.
#[test]
fn external_ips_are_ignored() {
    let Some(room) = Room::new("external-ips") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    // The appliance's own address, and one that a pool would give.
    let wanted: [IpAddr; 2] = [[10, 1, 0, 1].into(), [10, 1, 0, 159].into()];
    let names = wanted.map(|ip| ip.to_string());
    let address = room.service("web", &json!({"externalIPs": names}));
    soon("it answers", || room.ask(address).is_ok());
    assert!(!wanted.contains(&address));
    assert!(refused(&room.ask(wanted[0])));
    let vip = SocketAddr::new(wanted[1], 80);
    assert!(room.lab.client.run(move || ask(vip)).is_err());
    let links = room.lab.lb.out("ip", &["-o", "address"]);
    assert!(!links.contains(&names[1]), "{links}");
}
