//! Several appliances of one cluster on one network: one gives addresses and has them on its interfaces, the
//! others know them and wait.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::{self, Cluster};
use support::net::{Net, POOL_V4, pod_v4};
use support::traffic::{TcpPod, ask};
use support::weir::{Start, Weir};
use support::*;

const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");
/// The fixture's user, bound to what the appliance's account is bound to.
const BINDINGS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: appliance}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: appliance}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: appliance, namespace: weir-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: weir}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: appliance}]
";
/// The lease lasts 15 s and is looked at every 2 s; the rest is for a machine that others use too.
const TAKEN_OVER: Duration = Duration::from_secs(45);

struct Stage {
    cluster: Cluster,
    lab: Lab,
    /// The other appliance's machine.
    other: Net,
    _pod: TcpPod,
}

impl Stage {
    fn new() -> Stage {
        let lab = Lab::new();
        let other = lab.second_appliance();
        let cluster = Cluster::start_in(&lab.server, [10, 2, 0, 2].into());
        cluster.apply(RBAC);
        cluster.apply(BINDINGS);
        cluster.node("n1", &[[10, 2, 0, 2].into()], &[]);
        let pod = pod_v4(0).into();
        cluster.pod("default", "web-0", &[("app", "web")], "n1", &[pod]);
        let _pod = TcpPod::named(&lab.server, pod_v4(0), 8080, "web-0");
        Stage {
            cluster,
            lab,
            other,
            _pod,
        }
    }

    fn launch(&self, start: Start, net: &Net) -> Weir {
        start
            .without_manifests()
            .arg("--kubeconfig")
            .arg(self.cluster.appliance().display())
            .args(["--pool", POOL_V4])
            .launch(net)
    }

    fn service(&self, name: &str) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4",
                "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        self.cluster.apply(&service.to_string());
    }

    /// What the API server says; waits for it.
    fn published(&self, name: &str) -> IpAddr {
        let of = |service: &Value| -> Option<IpAddr> {
            let ip = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
            ip.as_str()?.parse().ok()
        };
        let what = format!("{name} has an address");
        let found = self
            .cluster
            .wait(&what, &["service", name], |service| of(service).is_some());
        of(&found).unwrap()
    }

    fn answers(&self, address: IpAddr) -> bool {
        // As another client would: it asks on the link who has the address.
        let _ = self
            .lab
            .client
            .command("ip")
            .args(["neigh", "flush", "all"])
            .output();
        let to = SocketAddr::from((address, 80));
        self.lab.client.run(move || ask(to).is_ok())
    }
}

/// Where `weir` serves it.
fn address(weir: &Weir, name: &str) -> Option<IpAddr> {
    let all = weir.services();
    let service = all.iter().find(|service| service["name"] == name)?;
    service["addresses"][0].as_str()?.parse().ok()
}

/// Is it on an interface of this machine?
fn has(net: &Net, address: IpAddr) -> bool {
    let all = net.out("ip", &["-o", "addr", "show"]);
    all.contains(&format!(" {address}/"))
}

/// The MAC address that the client believes to have `address`; it does not ask.
fn believed(client: &Net, address: IpAddr) -> Option<String> {
    let all = client.out("ip", &["neigh", "show", &address.to_string()]);
    let (_, after) = all.split_once("lladdr ")?;
    after.split_whitespace().next().map(str::to_owned)
}

/// That of this machine's link to clients.
fn mac(net: &Net) -> String {
    let link = net.out("ip", &["-o", "link", "show", "dev", "front"]);
    let (_, after) = link.split_once("link/ether ").unwrap();
    after.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn of_two_appliances_one_has_the_addresses_and_the_other_takes_over_without_moving_one() {
    if skip("leadership") || cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let (one, two) = (&stage.lab.lb, &stage.other);
    let first = stage.launch(Weir::prepare(), one);
    stage.service("a");
    let a = stage.published("a");
    eventually("it answers", SOON, || stage.answers(a));

    // The second knows what the first has given, and gives nothing itself.
    let second = stage.launch(Weir::prepare(), two);
    eventually("the second knows the address", SOON, || {
        address(&second, "a") == Some(a)
    });
    stage.service("b");
    let b = stage.published("b");
    eventually("the second knows the new one", SOON, || {
        address(&second, "b") == Some(b)
    });
    assert_eq!(address(&first, "b"), Some(b));
    assert!(has(one, a) && has(one, b));
    assert!(!has(two, a) && !has(two, b), "only one answers for a VIP");
    let (status, ready) = second.get("/readyz?verbose");
    assert!(
        status == 200 && ready.contains("keeps their addresses off"),
        "{ready}"
    );

    // The first ends in peace: the other has them at its next look, and says so on the link.
    assert!(stage.answers(a));
    let client = &stage.lab.client;
    assert_eq!(believed(client, a), Some(mac(one)));
    let again = first.stop();
    assert!(!has(one, a) && !has(one, b));
    eventually("the second has them", TAKEN_OVER, || {
        has(two, a) && has(two, b)
    });
    let there = Instant::now();
    eventually("a client that knew the first is told", SOON, || {
        believed(client, a) == Some(mac(two))
    });
    println!("the client knew after {:?}", there.elapsed());
    assert_eq!(
        [address(&second, "a"), address(&second, "b")],
        [a, b].map(Some)
    );
    eventually("it answers there", SOON, || stage.answers(b));

    // It comes back with its old record, finds another, and stays off.
    stage.service("c");
    let c = stage.published("c");
    let first = stage.launch(again, one);
    for (name, expected) in [("a", a), ("b", b), ("c", c)] {
        eventually("the first knows it", SOON, || {
            address(&first, name) == Some(expected)
        });
        assert!(!has(one, expected) && has(two, expected), "{name}");
    }

    // kill -9 and a restart on the same machine: the lease is its own, and nothing moves.
    let second = stage.launch(second.kill(), two);
    eventually("its own lease", SOON, || {
        let (_, ready) = second.get("/readyz?verbose");
        ready.contains("this process writes")
    });
    assert!(has(two, a) && !has(one, a));

    // Its machine dies: the other takes over when the lease has ended.
    two.ip(&["link", "set", "front", "down"]);
    drop(second.kill());
    eventually("the first has them", TAKEN_OVER, || {
        [a, b, c].iter().all(|address| has(one, *address))
    });
    eventually("it answers", SOON, || stage.answers(c));
    stage.service("d");
    stage.published("d");
    for (name, expected) in [("a", a), ("b", b), ("c", c)] {
        assert_eq!(stage.published(name), expected);
        assert_eq!(address(&first, name), Some(expected));
    }
}
