//! Weir as the LoadBalancer provider of a real cluster: what `kubectl` shows, and what clients get. Tests
//! are named after the upstream e2e that they stand for (faults.md 1.1), where there is one.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::cluster::{self, Cluster, Pod};
use support::net::{POOL_V4, POOL_V6, pod_v4, pod_v6};
use support::traffic::{Load, TcpPod, UdpPod, ask, connect, exchange, read_name, udp};
use support::weir::Weir;
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
const CLASS: &str = "weir.dev/l4";
const FINALIZER: &str = "weir.dev/load-balancer";
const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";

/// A cluster whose API server stands in the appliance's namespace, and an appliance that serves it.
struct Stage {
    cluster: Cluster,
    lab: Lab,
}

impl Stage {
    fn new() -> Stage {
        let lab = Lab::new();
        let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
        cluster.apply(RBAC);
        cluster.apply(BINDINGS);
        cluster.node("n1", &[[10, 2, 0, 2].into()], &[]);
        Stage { cluster, lab }
    }

    fn weir(&self, args: &[&str]) -> Weir {
        let kubeconfig = self.cluster.appliance();
        Weir::prepare()
            .without_manifests()
            .arg("--kubeconfig")
            .arg(kubeconfig.display())
            .args(["--pool", POOL_V4, "--pool", POOL_V6])
            .args(args.iter().copied())
            .launch(&self.lab.lb)
    }

    fn pod(&self, n: u16, app: &str) -> Pod {
        let name = format!("{app}-{n}");
        let addresses = [pod_v4(n).into(), pod_v6(n).into()];
        self.cluster
            .pod("default", &name, &[("app", app)], "n1", &addresses)
    }

    fn service(&self, name: &str) -> Value {
        self.cluster.get(&["service", name])
    }

    /// Waits for EXTERNAL-IP.
    fn address(&self, name: &str) -> IpAddr {
        let what = format!("{name} has an address");
        let found = self.cluster.wait(&what, &["service", name], |service| {
            ingress(service).is_some()
        });
        ingress(&found).unwrap()
    }

    fn wait(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait(what, &["service", name], holds)
    }

    fn ask(&self, address: IpAddr, port: u16) -> std::io::Result<String> {
        let to = SocketAddr::from((address, port));
        self.lab.client.run(move || ask(to))
    }

    fn eventually(
        &self,
        what: &str,
        address: IpAddr,
        holds: impl Fn(std::io::Result<String>) -> bool,
    ) {
        soon(what, || holds(self.ask(address, 80)));
    }

    /// How many lists of Services the API server sent as streams (KEP-3157).
    fn streamed_lists(&self) -> u64 {
        let metrics = self.cluster.kubectl(&["get", "--raw", "/metrics"]);
        let is_it = |line: &&str| {
            line.starts_with("apiserver_watch_list_duration_seconds_count{")
                && line.contains("resource=\"services\"")
        };
        let counts = metrics.lines().filter(is_it);
        counts
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// The reasons of a Service's events, oldest first.
    fn events(&self, name: &str) -> Vec<String> {
        let field = format!("involvedObject.kind=Service,involvedObject.name={name}");
        let all = self.cluster.get(&["events", "--field-selector", &field]);
        let items = all["items"].as_array().unwrap().iter();
        items
            .filter(|event| event["source"]["component"] == "weir")
            .map(|event| event["reason"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn soon(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, cluster::CONVERGED, holds);
}

fn ingress(service: &Value) -> Option<IpAddr> {
    let ip = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
    ip.as_str()?.parse().ok()
}

fn finalizers(service: &Value) -> Vec<&str> {
    let all = service["metadata"]["finalizers"].as_array();
    all.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn condition<'a>(service: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = service["status"]["conditions"].as_array()?;
    all.iter().find(|condition| condition["type"] == kind)
}

fn balancer(name: &str, app: &str, class: Option<&str>) -> String {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "LoadBalancer", "selector": {"app": app},
            "ports": [{"name": "tcp", "port": 80, "targetPort": 8080}]},
    });
    if let Some(class) = class {
        service["spec"]["loadBalancerClass"] = json!(class);
    }
    service.to_string()
}

/// LoadBalancers: "should be able to change the type and ports of a TCP service"; "should handle
/// load balancer cleanup finalizer for service".
#[test]
fn change_the_type_and_ports_of_a_tcp_service_and_cleanup_finalizer() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let weir = stage.weir(&[]);
    let _server = TcpPod::named(&stage.lab.server, pod_v4(0), 8080, "web-0");
    stage.cluster.apply(&balancer("web", "web", Some(CLASS)));
    let address = stage.address("web");
    // 0 pods: refused, at once.
    assert_eq!(
        stage.ask(address, 80).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    let found = stage.wait("web", "it is said why", |service| {
        condition(service, "weir.dev/Serving").is_some_and(|c| c["reason"] == "NoUsableEndpoint")
    });
    assert_eq!(
        found["status"]["loadBalancer"]["ingress"][0]["ipMode"],
        "Proxy"
    );
    assert_eq!(
        finalizers(&found),
        [FINALIZER],
        "a class of ours: not the standard one"
    );
    // 1 pod: an answer.
    let pod = stage.pod(0, "web");
    stage.eventually("answers", address, |said| {
        said.is_ok_and(|name| name == "web-0")
    });
    stage.wait("web", "it serves", |service| {
        condition(service, "weir.dev/Serving").is_some_and(|c| c["status"] == "True")
    });
    // Another port: the address stays, the old port closes.
    stage.cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=json",
        "-p",
        r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#,
    ]);
    soon("the new port answers", || stage.ask(address, 81).is_ok());
    stage.eventually("the old port is closed", address, |said| said.is_err());
    assert_eq!(stage.address("web"), address);
    // Back to ClusterIP: closed, address free, status clear, finalizer gone; the class is wiped by then.
    stage.cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"type": "ClusterIP", "loadBalancerClass": null}}"#,
    ]);
    let found = stage.wait("web", "it is left", |service| {
        finalizers(service).is_empty()
    });
    assert_eq!(ingress(&found), None);
    assert!(condition(&found, "weir.dev/Serving").is_none());
    soon("the port is closed", || stage.ask(address, 81).is_err());
    // And again: the finalizer comes back with the type.
    stage.cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4"}}"#,
    ]);
    stage.wait("web", "it is ours again", |service| {
        finalizers(service) == [FINALIZER] && ingress(service).is_some()
    });
    // Deleted: nothing hangs in Terminating.
    stage
        .cluster
        .kubectl(&["delete", "service", "web", "--timeout=20s"]);
    let told = stage.events("web");
    for reason in [
        "EnsuringLoadBalancer",
        "IPAllocated",
        "EnsuredLoadBalancer",
        "UnAvailableLoadBalancer",
        "DeletingLoadBalancer",
        "DeletedLoadBalancer",
    ] {
        assert!(
            told.iter().any(|found| found == reason),
            "{reason}: {told:?}"
        );
    }
    stage.cluster.end_pod(&pod);
    drop(weir);
}

/// UDP form of the same; "at 0 pods ICMP reject on the VIP".
#[test]
fn change_the_ports_of_a_udp_service_and_reject_without_pods() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let _weir = stage.weir(&[]);
    let _first = UdpPod::named(&stage.lab.server, pod_v4(0), 5300, "one");
    let _second = UdpPod::named(&stage.lab.server, pod_v4(1), 5300, "two");
    stage.cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": CLASS, "selector": {"app": "dns"},
                "ports": [{"port": 53, "protocol": "UDP", "targetPort": 5300}]}})
        .to_string(),
    );
    let address = stage.address("dns");
    let socket = udp(&stage.lab.client, (address, 53));
    soon("ICMP says that nobody is there", || {
        exchange(&socket, b"x").is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    // "should be able to preserve UDP traffic when server pod cycles": one source port throughout.
    let first = stage.pod(0, "dns");
    soon("the first answers", || {
        exchange(&socket, b"x").is_ok_and(|said| said.starts_with(b"one"))
    });
    stage.pod(1, "dns");
    stage.cluster.end_pod(&first);
    soon("the second answers", || {
        exchange(&socket, b"x").is_ok_and(|said| said.starts_with(b"two"))
    });
}

/// Without a class: only as the default provider, with the standard finalizer beside ours.
#[test]
fn services_without_a_class_are_the_default_providers() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    stage.cluster.apply(&balancer("plain", "web", None));
    stage
        .cluster
        .apply(&balancer("other", "web", Some("example.com/lb")));
    stage.cluster.apply(&balancer("ours", "web", Some(CLASS)));
    let before = stage.streamed_lists();
    let weir = stage.weir(&[]);
    stage.address("ours");
    for name in ["plain", "other"] {
        let found = stage.service(name);
        assert_eq!(
            (ingress(&found), finalizers(&found).len()),
            (None, 0),
            "{name}"
        );
    }
    weir.stop();
    let _weir = stage.weir(&["--default-provider", "true"]);
    stage.address("plain");
    let found = stage.service("plain");
    let mut both = finalizers(&found);
    both.sort_unstable();
    assert_eq!(both, [CLEANUP, FINALIZER]);
    let found = stage.service("other");
    assert_eq!((ingress(&found), finalizers(&found).len()), (None, 0));
    assert!(stage.streamed_lists() > before, "lists are pages");
}

/// A new machine, without any record: everybody keeps the address that the status names, before anybody
/// gets a new one.
#[test]
fn addresses_in_status_are_taken_up_again_by_a_machine_that_knows_nothing() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    for name in ["a", "b", "c"] {
        stage.cluster.apply(&balancer(name, "web", Some(CLASS)));
    }
    let weir = stage.weir(&[]);
    let before = ["a", "b", "c"].map(|name| stage.address(name));
    weir.stop();
    // Gone while nobody looked: its finalizer keeps it until somebody does.
    stage
        .cluster
        .kubectl(&["delete", "service", "a", "--wait=false"]);
    stage
        .cluster
        .apply(&balancer("0-first", "web", Some(CLASS)));
    let _weir = stage.weir(&[]);
    stage.address("0-first");
    assert_eq!(["b", "c"].map(|name| stage.address(name)), before[1..]);
    stage
        .cluster
        .wait("a is gone", &["service", "a"], Value::is_null);
}

/// An address in status that this appliance cannot have is not taken, and an event says so.
#[test]
fn an_address_in_status_outside_the_pools_is_replaced_with_an_event() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    stage.cluster.apply(&balancer("web", "web", Some(CLASS)));
    stage.cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--type=merge",
        "-p",
        &json!({"metadata": {"finalizers": [FINALIZER]}}).to_string(),
    ]);
    stage.cluster.kubectl(&[
        "patch",
        "service",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        &json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}).to_string(),
    ]);
    let _weir = stage.weir(&[]);
    stage.wait("web", "an address of the pool", |service| {
        ingress(service).is_some_and(|ip| ip.to_string().starts_with("10.1.0."))
    });
    soon("an event", || {
        stage.events("web").iter().any(|e| e == "AddressNotKept")
    });
}

/// Two processes: one writes, both forward; when the writer is gone the other writes.
#[test]
fn of_two_processes_one_writes_and_the_other_takes_over() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let first = stage.weir(&[]);
    stage.cluster.apply(&balancer("a", "web", Some(CLASS)));
    stage.address("a");
    let lease = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        stage
            .cluster
            .wait(what, &["lease", "weir", "-n", "weir-system"], holds)
    };
    let held = lease("the first leads", &|lease| {
        lease["spec"]["holderIdentity"].is_string()
    });
    let holder = held["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    // It goes in peace: the lease is given up, so that nobody waits for its end.
    first.stop();
    let lease_now = lease("it is given up", &|lease| {
        lease["spec"]["holderIdentity"] != *holder
    });
    assert_eq!(lease_now["spec"]["holderIdentity"], "");
    let _second = stage.weir(&[]);
    stage.cluster.apply(&balancer("b", "web", Some(CLASS)));
    stage.address("b");
}

/// A verb that RBAC does not give is named, and the rest goes on.
#[test]
fn s16_a_missing_verb_is_named_and_traffic_flows_all_the_same() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    stage.cluster.kubectl(&[
        "patch",
        "clusterrole",
        "weir",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/rules/1"}]"#,
    ]);
    let _server = TcpPod::named(&stage.lab.server, pod_v4(0), 8080, "web-0");
    stage.pod(0, "web");
    stage.cluster.apply(&balancer("web", "web", Some(CLASS)));
    let weir = stage.weir(&[]);
    // The log is JSON: quotes are escaped there.
    soon("the log names the verb", || {
        let log = weir.log();
        log.contains("cannot patch resource") && log.contains("services/status")
    });
    let (_, ready) = weir.get("/readyz?verbose");
    assert!(ready.contains("services/status"), "{ready}");
    let services = weir.services();
    let web = services.iter().find(|service| service["name"] == "web");
    let address: IpAddr = web.unwrap()["addresses"][0]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    soon("it forwards", || stage.ask(address, 80).is_ok());
}

/// The daemon is dead, and its machine gone: `weir release` leaves nothing in Terminating.
#[test]
fn release_leaves_nothing_hanging_when_the_daemon_is_dead() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let weir = stage.weir(&["--default-provider", "true"]);
    for (name, class) in [("a", Some(CLASS)), ("b", None), ("c", Some(CLASS))] {
        stage.cluster.apply(&balancer(name, "web", class));
        stage.address(name);
    }
    weir.kill();
    stage
        .cluster
        .kubectl(&["delete", "service", "c", "--wait=false"]);
    let run = |args: &[&str]| {
        let mut command: Command = stage.lab.lb.command(env!("CARGO_BIN_EXE_weir"));
        let output = command
            .arg("release")
            .arg("--kubeconfig")
            .arg(stage.cluster.appliance())
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, said) = run(&["default/a"]);
    assert_eq!((code, &*said), (Some(0), "service/default/a released\n"));
    assert!(finalizers(&stage.service("a")).is_empty());
    assert!(!finalizers(&stage.service("b")).is_empty());
    let (code, said) = run(&["--all"]);
    assert_eq!(code, Some(0), "{said}");
    stage
        .cluster
        .wait("c is gone", &["service", "c"], Value::is_null);
    for name in ["a", "b"] {
        let found = stage.service(name);
        assert_eq!(
            (ingress(&found), finalizers(&found).len()),
            (None, 0),
            "{name}"
        );
        assert!(condition(&found, "weir.dev/Serving").is_none());
    }
    let (code, said) = run(&["--all"]);
    assert!(
        code == Some(0) && said.contains("nothing to release"),
        "{said}"
    );
    let (code, _) = run(&[]);
    assert_eq!(code, Some(2));
}

/// "no connectivity disruption during rolling update", at 100 %: pods come and go under load, and the API
/// server goes away and comes back meanwhile.
#[test]
fn a_rolling_update_and_an_outage_of_the_api_server_lose_nothing() {
    if cluster::skip() {
        return;
    }
    let stage = Stage::new();
    let _weir = stage.weir(&[]);
    let _servers: Vec<TcpPod> = (0..4)
        .map(|n| TcpPod::named(&stage.lab.server, pod_v4(n), 8080, &format!("web-{n}")))
        .collect();
    stage.cluster.apply(&balancer("web", "web", Some(CLASS)));
    let mut pods: Vec<Pod> = (0..2).map(|n| stage.pod(n, "web")).collect();
    let address = stage.address("web");
    stage.eventually("answers", address, |said| said.is_ok());
    let mut live = connect(&stage.lab.client, (address, 80)).unwrap();
    let name = read_name(&mut live).unwrap();
    assert!(name.starts_with("web-"));
    let to = SocketAddr::from((address, 80));
    let load = Load::start(&stage.lab.client, 4, 200, move || ask(to).map(|_| ()));
    for round in 2..6u16 {
        pods.push(stage.pod(round % 4, "web"));
        let old = pods.remove(0);
        stage.cluster.delete_pod(&old, Duration::from_secs(30));
        stage.cluster.end_pod(&old);
        if round == 3 {
            stage.cluster.stop_api();
            std::thread::sleep(Duration::from_secs(1));
            stage.cluster.start_api();
        }
    }
    let (done, failed) = load.finish();
    assert!(done > 100 && failed.is_empty(), "{done}: {failed:?}");
}
