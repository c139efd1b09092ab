//! Who is served, and by whom.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;

use crate::shared::{Room, soon};
use crate::support::cluster::Pod;
use crate::support::traffic::{Load, TcpPod, ask, dial_from, read_name};

/// How often upstream asks before it believes in affinity.
const IN_A_ROW: usize = 15;

/// "should have session affinity work for LoadBalancer service with ESIPP on [LinuxOnly]", "should be able
/// to switch session affinity for LoadBalancer service with ESIPP on".
#[test]
fn should_have_session_affinity_work_and_be_able_to_switch_it_with_esipp_on() {
    affinity("affinity-local", "Local");
}

/// The same, "with ESIPP off".
#[test]
fn should_have_session_affinity_work_and_be_able_to_switch_it_with_esipp_off() {
    affinity("affinity-cluster", "Cluster");
}

fn affinity(name: &str, policy: &str) {
    let Some(room) = Room::new(name) else { return };
    let _servers = [0, 1, 2].map(|n| room.tcp(n));
    for (n, node) in [(0, "n1"), (1, "n1"), (2, "n2")] {
        room.pod_on(node, n);
    }
    let address = room.service(
        "web",
        &json!({"sessionAffinity": "ClientIP", "externalTrafficPolicy": policy}),
    );
    soon("it answers", || room.ask(address).is_ok());
    let one = |names: &[String]| names.iter().all(|name| *name == names[0]);
    // It may have begun with fewer than three pods; from here on nobody moves.
    let first = room.answers(address, IN_A_ROW);
    assert!(one(&first), "{first:?}");
    room.patch("web", &json!({"sessionAffinity": "None"}));
    soon("several pods answer", || {
        !one(&room.answers(address, IN_A_ROW))
    });
    room.patch("web", &json!({"sessionAffinity": "ClientIP"}));
    soon("one pod answers", || one(&room.answers(address, IN_A_ROW)));
    let names = room.answers(address, IN_A_ROW);
    assert!(one(&names), "{names:?}");
}

/// "should only allow access from service loadbalancer source ranges".
#[test]
fn should_only_allow_access_from_service_loadbalancer_source_ranges() {
    let Some(room) = Room::new("source-ranges") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    let [a, b] = [room.clients()[0], room.clients()[1]];
    let only = |client: Ipv4Addr| json!({"loadBalancerSourceRanges": [format!("{client}/32")]});
    let address = room.service("web", &only(a));
    let from = |client: Ipv4Addr| {
        let to = SocketAddr::new(address, 80);
        room.lab
            .client
            .run(move || read_name(&mut dial_from(client.into(), 0, to)?))
    };
    // Whoever is not in the list is reset: nothing was dialled for him.
    let denied = |client| from(client).is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
    soon("the first is served", || from(a).is_ok());
    assert!(denied(b));
    room.patch("web", &only(b));
    soon("the second is served, the first is not", || {
        from(b).is_ok() && denied(a)
    });
    room.patch("web", &json!({"loadBalancerSourceRanges": null}));
    soon("both are served", || from(a).is_ok() && from(b).is_ok());
    assert_eq!(room.service("web", &json!({})), address);
}

/// "should handle updates to ExternalTrafficPolicy field": the health check's port is the API server's to
/// give and to take back; who is served does not change, since pods are dialled.
#[test]
fn should_handle_updates_to_external_traffic_policy_field() {
    let Some(room) = Room::new("traffic-policy") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod_on("n2", 0);
    let address = room.service("web", &json!({"externalTrafficPolicy": "Local"}));
    let health_port = || room.get("web")["spec"]["healthCheckNodePort"].as_u64();
    soon("it answers", || room.ask(address).is_ok());
    let given = health_port().expect("a health check port");
    assert_eq!(room.wait_event("web", "ClientAddressNotKept"), "Warning");
    room.patch("web", &json!({"externalTrafficPolicy": "Cluster"}));
    assert_eq!(health_port(), None, "given back");
    room.answers(address, 5);
    room.patch(
        "web",
        &json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": given}),
    );
    assert_eq!(health_port(), Some(given));
    room.answers(address, 5);
    room.wait("web", "the same address", |service| {
        let ip = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
        ip.as_str().and_then(|ip| ip.parse().ok()) == Some(address as IpAddr)
    });
}

/// "should not have connectivity disruption during rolling update with externalTrafficPolicy=Local", at 100 %
/// where upstream takes 95.
#[test]
fn should_not_have_connectivity_disruption_during_rolling_update_with_local() {
    const PODS: u16 = 3;
    let Some(room) = Room::new("rolling-local") else {
        return;
    };
    let node = |n: u16| ["n1", "n2"][usize::from(n % 2)];
    let mut servers: VecDeque<TcpPod> = (0..PODS).map(|n| room.tcp(n)).collect();
    let mut pods: VecDeque<Pod> = (0..PODS).map(|n| room.pod_on(node(n), n)).collect();
    let address = room.service("web", &json!({"externalTrafficPolicy": "Local"}));
    soon("it answers", || room.ask(address).is_ok());
    let to = SocketAddr::new(address, 80);
    let load = Load::start(&room.lab.client, 4, 200, move || ask(to).map(|_| ()));
    for n in PODS..3 * PODS {
        servers.push_back(room.tcp(n));
        pods.push_back(room.pod_on(node(n), n));
        soon("the new one answers", || {
            room.answers(address, 10).contains(&n.to_string())
        });
        // Its kubelet ends it once nobody is sent there any more, or after its grace.
        let (pod, server) = (pods.pop_front().unwrap(), servers.pop_front().unwrap());
        room.cluster.delete_pod(&pod, Duration::from_secs(60));
        soon("the old one has no more to do", || {
            let before = server.count();
            room.answers(address, 20);
            server.count() == before
        });
        server.kill();
        room.cluster.end_pod(&pod);
        load.goes_on(20);
    }
    let (done, failed) = load.finish();
    assert!(failed.is_empty(), "{done}: {failed:?}");
}
