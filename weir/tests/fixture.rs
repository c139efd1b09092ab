//! The cluster that other tests stand on is a real one: its controller, its access control, its data, and
//! the ways in which it can fail.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::cluster::{Cluster, Endpoint};
use support::net::{pod_v4, pod_v6};
use support::*;

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

const WEB_OF_BOTH_FAMILIES: &str = "
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv6, IPv4]
  selector: {app: web}
  ports: [{port: 80}]
";

const APPLIANCE_READS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: appliance}
rules: [{apiGroups: [''], resources: [services, configmaps], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: appliance}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: appliance}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: appliance}]
";

#[test]
fn the_real_controller_makes_slices_of_pods_whose_status_the_test_writes() {
    if cluster::skip() {
        return;
    }
    let cluster = Cluster::start();
    let version: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["version", "-o", "json"])).unwrap();
    assert_eq!(
        version["serverVersion"]["gitVersion"], version["clientVersion"]["gitVersion"],
        "one build"
    );
    cluster.node(
        "n1",
        &[[10, 2, 0, 2].into()],
        &[("topology.kubernetes.io/zone", "a")],
    );
    let (v4, v6): (IpAddr, IpAddr) = (pod_v4(0).into(), pod_v6(0).into());
    let pod = cluster.pod("default", "web-0", &[("app", "web")], "n1", &[v4, v6]);
    let expect = |service, what, expected: &[&Endpoint]| {
        cluster.wait_endpoints("default", service, what, |found| {
            found.iter().eq(expected.iter().copied())
        });
    };

    cluster.apply(WEB);
    let ready = Endpoint {
        address: v4,
        ready: true,
        serving: true,
        terminating: false,
        node: Some("n1".into()),
    };
    expect("web", "ready", &[&ready]);
    let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]);
    let annotations = &slices["items"][0]["metadata"]["annotations"];
    assert!(
        annotations["endpoints.kubernetes.io/last-change-trigger-time"].is_string(),
        "it knows when the Pod became ready: {slices:#}"
    );

    cluster.apply(WEB_OF_BOTH_FAMILIES);
    let ready_v6 = Endpoint {
        address: v6,
        ..ready.clone()
    };
    expect("both", "ready in both families", &[&ready, &ready_v6]);

    cluster.set_ready(&pod, false);
    let unready = Endpoint {
        ready: false,
        serving: false,
        ..ready.clone()
    };
    expect("web", "unready", &[&unready]);

    cluster.set_ready(&pod, true);
    expect("web", "ready again", &[&ready]);

    cluster.delete_pod(&pod, Duration::from_secs(300));
    let terminating = Endpoint {
        ready: false,
        terminating: true,
        ..ready
    };
    expect("web", "serving and terminating", &[&terminating]);

    cluster.end_pod(&pod);
    expect("web", "empty", &[]);
}

#[test]
fn a_stopped_api_server_keeps_its_data_and_a_saved_one_gives_them_to_another() {
    if cluster::skip() {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(WEB);
    let before = cluster.get(&["service", "web"]);

    cluster.stop_api();
    let refused = TcpStream::connect(cluster.api()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    cluster.start_api();
    assert_eq!(cluster.get(&["service", "web"]), before);
    cluster.node("n1", &[], &[]);
    cluster.pod(
        "default",
        "web-0",
        &[("app", "web")],
        "n1",
        &[pod_v4(0).into()],
    );
    cluster.wait_endpoints(
        "default",
        "web",
        "there: the controllers are back",
        |found| found.len() == 1,
    );

    let saved = tempfile::tempdir().unwrap();
    cluster.save(saved.path());
    let another = Cluster::prepare().restore(saved.path()).launch();
    assert_eq!(another.get(&["service", "web"]), before);
}

#[test]
fn a_user_may_do_what_its_role_says_and_no_more() {
    if cluster::skip() {
        return;
    }
    let cluster = Cluster::start();
    let appliance = |args: &[&str]| cluster.try_kubectl(&cluster.appliance(), args);
    let list = ["get", "services"];
    let refused = appliance(&list).unwrap_err();
    assert!(
        refused.contains("cannot list resource \"services\"") && refused.contains("\"appliance\""),
        "{refused}"
    );

    cluster.apply(APPLIANCE_READS);
    let allowed = eventually_some("the role is in force", SOON, || appliance(&list).ok());
    assert!(allowed.contains("kubernetes"), "{allowed}");
    let refused = appliance(&["delete", "service", "kubernetes"]).unwrap_err();
    assert!(refused.contains("cannot delete resource"), "{refused}");

    std::fs::write(cluster.token_file(), "expired").unwrap();
    let unknown = appliance(&list).unwrap_err();
    assert!(unknown.contains("Unauthorized"), "{unknown}");
}

#[test]
fn the_appliance_reaches_it_from_its_namespace_by_a_way_that_can_break() {
    if skip("fixture") || cluster::skip() {
        return;
    }
    let lab = Lab::new();
    let cluster = Cluster::start_in(&lab.server, [10, 2, 0, 2].into());
    cluster.apply(APPLIANCE_READS);
    let way = cluster.breakable();
    let kubeconfig = cluster.appliance_by(&way);
    // As Weir does: from its own namespace.
    let kubectl = |args: &[&str]| {
        let mut command = cluster.program_in(&lab.lb, "kubectl");
        command.arg("--kubeconfig").arg(&kubeconfig).args(args);
        command
    };
    let answers = || {
        let question = ["get", "configmaps", "--request-timeout=2s"];
        kubectl(&question).output().unwrap().status.success()
    };
    eventually("the role is in force", SOON, answers);

    // A watch that dies in silence: it goes on, and hears nothing.
    let watch = ["get", "configmaps", "--watch-only", "--output=name"];
    let mut watch = Watch::start(kubectl(&watch));
    let mut made = 0;
    eventually("the watch hears of changes", SOON, || {
        made += 1;
        cluster.kubectl(&["create", "configmap", &format!("heard-{made}")]);
        watch.lines() > 0
    });
    way.silence();
    let heard = watch.lines();
    cluster.kubectl(&["create", "configmap", "missed"]);
    assert!(!answers(), "a new connection is silent too");
    assert!(watch.runs(), "nobody has told it");
    assert_eq!(watch.lines(), heard);
    way.heal();
    assert!(answers(), "a new connection passes");
    assert!(
        watch.runs() && watch.lines() == heard,
        "the old one is lost"
    );

    way.cut();
    eventually("the watch is told of a cut", SOON, || !watch.runs());
    let dialled = way.accepted();
    assert!(!answers(), "cut");
    assert!(way.accepted() > dialled);
    way.heal();
    assert!(answers(), "healed");
    drop(way);
    assert!(!answers(), "gone");
}

/// What it sets in the child that is killed: the file to write the address into.
const VICTIM: &str = "WEIR_FIXTURE_VICTIM";

#[test]
fn a_killed_test_leaves_nothing_running() {
    if cluster::skip() {
        return;
    }
    if let Some(file) = std::env::var_os(VICTIM) {
        let cluster = Cluster::start();
        std::fs::write(file, cluster.api().to_string()).unwrap();
        loop {
            std::thread::park();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("address");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_test_leaves_nothing_running"])
        .env(VICTIM, &file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let api: SocketAddr = eventually_some("its cluster", Duration::from_secs(90), || {
        std::fs::read_to_string(&file).ok()?.parse().ok()
    });
    let etcd = SocketAddr::new(api.ip(), 2379);
    let listens = |address: &SocketAddr| TcpStream::connect(address).is_ok();
    assert!([api, etcd].iter().all(listens));
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("nothing listens", SOON, || ![api, etcd].iter().any(listens));
}

/// `kubectl get --watch`, and what it has printed.
struct Watch {
    child: Child,
    printed: tempfile::NamedTempFile,
}

impl Watch {
    fn start(mut command: Command) -> Watch {
        let printed = tempfile::NamedTempFile::new().unwrap();
        let child = command.stdout(printed.reopen().unwrap()).spawn().unwrap();
        Watch { child, printed }
    }

    fn lines(&self) -> usize {
        let text = std::fs::read_to_string(self.printed.path()).unwrap();
        text.lines().count()
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
