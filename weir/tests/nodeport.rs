//! Nodes dialled at their node ports, with the real kube-proxy on each (semantics.md 3.0, 3.1, 3.3;
//! K20). Pods answer with their name; a Service of the Local policy so tells which node was dialled.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::{self, CONVERGED, Cluster, Pod};
use support::net::{Net, POOL_V4};
use support::traffic::{Load, TcpPod, ask, connect, read_name};
use support::*;

const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");
const NODES: &str = include_str!("../../deploy/kubernetes/nodes.yaml");

/// A role of the deployment, bound to the fixture's user: a ClusterRole, or one of weir-system.
fn binding(kind: &str, role: &str) -> String {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": format!("{kind}Binding"),
        "metadata": {
            "name": format!("appliance-{role}"),
            "namespace": (kind == "Role").then_some("weir-system"),
        },
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "appliance"}],
    })
    .to_string()
}

/// A node with kube-proxy.
struct Node {
    name: String,

    net: Net,
    proxy: Child,
    log: tempfile::NamedTempFile,
    _config: tempfile::NamedTempFile,
}

impl Node {
    fn start(lab: &Lab, cluster: &Cluster, number: u8) -> Node {
        let net = lab.node(number);
        let name = format!("n{number}");
        cluster.node(&name, &[Ipv4Addr::new(10, 3, number, 2).into()], &[]);
        let log = tempfile::NamedTempFile::new().unwrap();
        let config = tempfile::NamedTempFile::new().unwrap();
        let text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "hostnameOverride": name,
            "clientConnection": {"kubeconfig": cluster.admin()},
            "healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249",
            "nftables": {"minSyncPeriod": "100ms"},
            // The kernel's settings are not its to change here.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        std::fs::write(config.path(), text.to_string()).unwrap();
        let proxy = cluster
            .program_in(&net, "kube-proxy")
            .arg(format!("--config={}", config.path().display()))
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Node {
            name,
            net,
            proxy,
            log,
            _config: config,
        }
    }

    /// From now on it says nothing, as a machine without power.
    fn die(&self) {
        self.net.nft(
            "table inet dead { \
             chain in { type filter hook prerouting priority -500; policy drop; } \
             chain out { type filter hook output priority -500; policy drop; } }",
        );
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
        if std::thread::panicking() {
            let text = std::fs::read_to_string(self.log.path()).unwrap_or_default();
            let from = text.len().saturating_sub(4_000);
            let text = String::from_utf8_lossy(&text.as_bytes()[from..]).into_owned();
            println!("--- kube-proxy of {}\n{text}", self.name);
        }
    }
}

struct Stage {
    nodes: Vec<Node>,
    cluster: Cluster,
    lab: Lab,
}

impl Stage {
    fn new(nodes: u8) -> Stage {
        let lab = Lab::new();
        let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
        cluster.apply(RBAC);
        cluster.apply(&binding("ClusterRole", "weir"));
        cluster.apply(&binding("Role", "weir"));
        let nodes = (1..=nodes).map(|number| Node::start(&lab, &cluster, number));
        let nodes = nodes.collect();
        Stage {
            nodes,
            cluster,
            lab,
        }
    }

    fn weir(&self, args: &[&str]) -> Weir {
        Weir::prepare()
            .without_manifests()
            .arg("--kubeconfig")
            .arg(self.cluster.appliance().display())
            .args(["--pool", POOL_V4])
            .args(args.iter().copied())
            .launch(&self.lab.lb)
    }

    /// A pod on node `n`, ready, that answers with its name, which is its app's and the node's.
    fn pod(&self, app: &str, n: u8, last: u8) -> (Pod, TcpPod) {
        let node = &self.nodes[usize::from(n) - 1];
        let address = Ipv4Addr::new(10, 4, n, last);
        let name = format!("{app}{n}");
        let server = TcpPod::named(&node.net, address, 8080, &name);
        let pod = self.cluster.pod(
            "default",
            &name,
            &[("app", app)],
            &node.name,
            &[address.into()],
        );
        (pod, server)
    }

    fn service(&self, name: &str, spec: &Value, annotations: &Value) -> IpAddr {
        let mut all = json!({
            "type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4", "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 8080}],
        });
        for (field, value) in spec.as_object().unwrap() {
            all[field] = value.clone();
        }
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "annotations": annotations}, "spec": all});
        self.cluster.apply(&service.to_string());
        let ip = |found: &Value| {
            let ip = found["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?;
            ip.parse::<IpAddr>().ok()
        };
        let found = self
            .cluster
            .wait("an address", &["service", name], |found| {
                ip(found).is_some()
            });
        ip(&found).unwrap()
    }

    fn ask(&self, vip: IpAddr) -> std::io::Result<String> {
        let to = SocketAddr::new(vip, 80);
        self.lab.client.run(move || ask(to))
    }

    /// Asks until the last 20 answers in a row are exactly these names, each of them.
    #[track_caller]
    fn answered_by(&self, what: &str, vip: IpAddr, names: &[&str]) {
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        eventually(what, CONVERGED, || {
            let found: std::io::Result<BTreeSet<String>> = (0..20).map(|_| self.ask(vip)).collect();
            found.is_ok_and(|found| found == wanted)
        });
    }

    /// A connection that is answered by this pod.
    fn connection_to(&self, vip: IpAddr, name: &str) -> std::net::TcpStream {
        eventually_some("a connection to the pod", CONVERGED, || {
            let mut stream = connect(&self.lab.client, SocketAddr::new(vip, 80)).ok()?;
            (read_name(&mut stream).ok()? == name).then_some(stream)
        })
    }

    /// The reasons of a Service's events.
    fn events(&self, name: &str) -> BTreeSet<String> {
        self.cluster.told(name).into_iter().collect()
    }

    #[track_caller]
    fn told(&self, name: &str, reason: &str) {
        eventually(reason, CONVERGED, || self.events(name).contains(reason));
    }
}

#[track_caller]
fn lives(stream: &mut std::net::TcpStream) {
    let mut back = [0; 5];
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// One cluster for all of it: starting it takes longer than what is asked of it.
#[test]
fn k20_nodes_are_dialled_at_their_node_ports() {
    if skip("nodeport") || cluster::skip() {
        return;
    }
    let stage = Stage::new(3);
    let weir = stage.weir(&[]);
    let nodes = json!({"weir.dev/backends": "nodes"});

    without_the_verb(&stage, &weir);
    stage.cluster.apply(NODES);
    stage.cluster.apply(&binding("ClusterRole", "weir-nodes"));

    let _cluster = [1, 3].map(|n| stage.pod("all", n, 1));
    let all = stage.service("all", &json!({"sessionAffinity": "None"}), &nodes);
    stage.answered_by("from outside to every pod", all, &["all1", "all3"]);

    local_policy(&stage, &weir, &nodes);
    fronted(&stage);
    on_a_node(&stage);
    pods_out_of_reach(&stage, &weir);
    a_node_dies(&stage, &weir, all);
}

/// A missing verb for Nodes blocks the Services that use them, says so, and blocks no other.
fn without_the_verb(stage: &Stage, weir: &Weir) {
    let _pods = (stage.pod("plain", 1, 4), stage.pod("early", 1, 3));
    let plain = stage.service("plain", &json!({}), &json!({}));
    let early = stage.service("early", &json!({}), &json!({"weir.dev/backends": "nodes"}));
    stage.told("early", "SyncLoadBalancerFailed");
    assert!(stage.ask(early).is_err(), "nobody knows a node");
    stage.answered_by("a Service that dials pods", plain, &["plain1"]);
    eventually("it is said which verb on what", CONVERGED, || {
        let (_, text) = weir.get("/readyz?verbose");
        text.contains("forbidden: list nodes")
    });
    let (status, text) = weir.get("/readyz");
    assert_eq!(status, 200, "it is ready all the same: {text}");
    stage
        .cluster
        .kubectl(&["delete", "service", "plain", "early"]);
}

/// Only nodes with endpoints; 503 drains, a taint drains, and what is open lives.
fn local_policy(stage: &Stage, weir: &Weir, nodes: &Value) {
    let pods = [1, 2].map(|n| stage.pod("near", n, 2));
    let vip = stage.service("near", &json!({"externalTrafficPolicy": "Local"}), nodes);
    stage.answered_by("nodes with endpoints", vip, &["near1", "near2"]);
    assert!(weir.metric("weir_probe_targets", &["proxy", "good"]) >= 2.0);

    // It terminates and serves: its node's health is 503 from now on.
    let mut first = stage.connection_to(vip, "near1");
    stage
        .cluster
        .delete_pod(&pods[0].0, Duration::from_secs(60));
    stage.answered_by("the node drains", vip, &["near2"]);
    eventually("its health says so", CONVERGED, || {
        weir.metric("weir_probe_targets", &["proxy", "draining"]) >= 1.0
    });
    lives(&mut first);
    stage.cluster.end_pod(&pods[0].0);
    let _again = stage.cluster.pod(
        "default",
        "near1",
        &[("app", "near")],
        "n1",
        &[Ipv4Addr::new(10, 4, 1, 2).into()],
    );
    stage.answered_by("it is back", vip, &["near1", "near2"]);

    // The cluster autoscaler is about to delete it (KEP-3836).
    let mut second = stage.connection_to(vip, "near2");
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    stage.cluster.kubectl(&["taint", "node", "n2", taint]);
    stage.answered_by("the tainted node drains", vip, &["near1"]);
    assert!(weir.metric("weir_nodes", &["leaving"]) >= 1.0);
    lives(&mut second);
    lives(&mut first);
    let taint = format!("{taint}-");
    stage.cluster.kubectl(&["taint", "node", "n2", &taint]);
    stage.answered_by("it stays after all", vip, &["near1", "near2"]);

    // Kept out by label: at once, and said where nobody is left.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    let set = |value: &str| {
        let label = format!("{label}{value}");
        let all = ["label", "node", "n1", "n2", "n3", "--overwrite", &label];
        stage.cluster.kubectl(&all);
    };
    set("=");
    eventually("no node is left", CONVERGED, || stage.ask(vip).is_err());
    eventually("and it is said", CONVERGED, || {
        let field = "involvedObject.kind=Service,involvedObject.name=near";
        let all = stage.cluster.get(&["events", "--field-selector", field]);
        all.to_string().contains("kept out by the label")
    });
    set("=false");
    stage.answered_by("false keeps none out", vip, &["near1", "near2"]);
}

/// A Service of type NodePort that asks for an address: its status is not ours to write.
fn fronted(stage: &Stage) {
    let _pod = stage.pod("front", 1, 3);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "front", "annotations": {"weir.dev/front": "true", "weir.dev/backends": "nodes"}},
        "spec": {"type": "NodePort", "selector": {"app": "front"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    stage.cluster.apply(&service.to_string());
    stage.told("front", "EnsuredLoadBalancer");
    let field = "involvedObject.kind=Service,involvedObject.name=front,reason=IPAllocated";
    let events = stage.cluster.get(&["events", "--field-selector", field]);
    let message = events["items"][0]["message"].as_str().unwrap();
    let vip: IpAddr = message
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .expect("the event names it");
    stage.answered_by("the fronted Service", vip, &["front1"]);
    let found = stage.cluster.get(&["service", "front"]);
    assert_eq!(found["status"]["loadBalancer"], json!({}));
    assert!(found["metadata"]["finalizers"].is_null(), "{found}");
    stage.cluster.kubectl(&["delete", "service", "front"]);
    eventually("it is closed", CONVERGED, || stage.ask(vip).is_err());
}

/// K22: an appliance on a node, which fronts a Service at the node's own address. kube-proxy is there before it, and
/// that is said; what it does not take is not spoken of.
fn on_a_node(stage: &Stage) {
    let _pod = stage.pod("edge", 1, 4);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "edge"},
        "spec": {"type": "NodePort", "selector": {"app": "edge"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    stage.cluster.apply(&service.to_string());
    let weir = Weir::prepare()
        .without_manifests()
        .arg("--kubeconfig")
        .arg(stage.cluster.appliance().display())
        .args(["--node-port-address", "10.3.1.2"])
        .launch(&stage.nodes[0].net);
    let reasons = |name: &str| {
        let services = weir.services();
        let found = services.iter().find(|service| service["name"] == name);
        found.map_or(Value::Null, |found| found["reasons"].clone())
    };
    eventually("it is said", CONVERGED, || {
        let said = reasons("edge").to_string();
        said.contains("TakenByKubeProxy") && said.contains("for default/edge has this node port")
    });
    let all = reasons("all").to_string();
    assert!(!all.contains("TakenByKubeProxy"), "{all}");
    stage.cluster.kubectl(&["delete", "service", "edge"]);
}

/// auto: the appliance loses its way to pods; it says so and goes by way of nodes.
fn pods_out_of_reach(stage: &Stage, weir: &Weir) {
    let _pod = stage.pod("auto", 3, 3);
    let vip = stage.service("auto", &json!({}), &json!({"weir.dev/backends": "auto"}));
    stage.answered_by("pods are dialled", vip, &["auto3"]);
    eventually("they are asked", CONVERGED, || {
        weir.metric("weir_probe_targets", &["pods", "good"]) >= 1.0
    });
    assert!(!stage.events("auto").contains("PodsUnreachable"));
    let node = &stage.nodes[2].net;
    node.nft(
        "table ip lost { chain in { type filter hook prerouting priority -300; \
         ip saddr 10.3.3.1 ip daddr 10.4.0.0/16 drop; } }",
    );
    stage.told("auto", "PodsUnreachable");
    stage.answered_by("node ports are dialled instead", vip, &["auto3"]);
    node.exec("nft", &["delete", "table", "ip", "lost"]);
    eventually("pods are dialled again", CONVERGED, || {
        let service = stage.cluster.get(&["service", "auto"]);
        let conditions = service["status"]["conditions"].to_string();
        let services = weir.services();
        let auto = services.iter().find(|found| found["name"] == "auto");
        let quiet = auto.is_some_and(|found| !found.to_string().contains("PodsUnreachable"));
        quiet && conditions.contains("Serving")
    });
    stage.answered_by("pods answer", vip, &["auto3"]);
}

/// K20: NodePort targets switch within about a second by probe, and no new connection fails but
/// those that were on the node when it died.
fn a_node_dies(stage: &Stage, weir: &Weir, all: IpAddr) {
    // Pods of both are on node 3 alone, so that only the way there can be lost.
    stage
        .cluster
        .kubectl(&["delete", "pod", "all1", "--grace-period=0", "--force"]);
    stage.answered_by("one pod is left", all, &["all3"]);
    let silent = || weir.metric("weir_probe_targets", &["proxy", "silent"]);
    assert_eq!(silent(), 0.0);
    const THREADS: u32 = 4;
    let to = SocketAddr::new(all, 80);
    let load = Load::start(&stage.lab.client, THREADS, 100, move || ask(to).map(drop));
    stage.nodes[1].die();
    let died = Instant::now();
    eventually("it is found dead", CONVERGED, || silent() >= 1.0);
    let took = died.elapsed();
    println!("a dead node was found after {took:?}");
    let (_, errors) = load.finish();
    // Each thread had one connection open when the node died, which may have been there.
    assert!(errors.len() <= THREADS as usize, "{errors:?}");
    let load = Load::start(&stage.lab.client, THREADS, 100, move || ask(to).map(drop));
    load.goes_on(50);
    let (_, errors) = load.finish();
    assert!(errors.is_empty(), "{errors:?}");
}
