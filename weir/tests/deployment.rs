//! The files of deploy/kubernetes as a real API server judges them, and Weir as the pod that they describe: its
//! arguments, its credentials, its capabilities, its root file system, and the probes of the kubelet.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::cluster::stage::ingress;
use support::cluster::{self, CONVERGED, Cluster};
use support::net::{POOL_V4, pod_v4};
use support::traffic::{TcpPod, ask};
use support::*;

const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");
/// What a kubelet mounts: the account's files (the first argument), an empty directory of the node, and a root
/// file system that is only read. In a mount namespace of its own.
const MOUNTS: &str = r#"set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
ln -s "$1" /run/secrets/kubernetes.io/serviceaccount
mount -t tmpfs tmpfs /var/lib
mkdir /var/lib/weir
mount -o remount,bind,ro /
shift
exec "$@""#;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A file of the directory as JSON.
fn read(cluster: &Cluster, name: &str) -> Value {
    let all = files();
    let path = all.iter().find(|path| path.ends_with(name)).unwrap();
    let path = path.to_str().unwrap();
    let text = cluster.kubectl(&["create", "--dry-run=client", "-o", "json", "-f", path]);
    serde_json::from_str(&text).unwrap()
}

/// As a node would run it: one of the pods of a Deployment.
fn pod_of(deployment: &Value) -> Value {
    let template = &deployment["spec"]["template"];
    json!({"apiVersion": "v1", "kind": "Pod", "spec": template["spec"],
        "metadata": {"name": "weir-0", "namespace": "weir-system", "labels": template["metadata"]["labels"]}})
}

fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|word| word.as_str().unwrap()).collect()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the container as the kubelet would, but for the image, and with the laboratory's pool.
fn start(lab: &Lab, cluster: &Cluster, container: &Value, account: &Path, log: &Path) -> Running {
    let capabilities = words(&container["securityContext"]["capabilities"]["add"]);
    assert_eq!(
        words(&container["securityContext"]["capabilities"]["drop"]),
        ["ALL"]
    );
    let capabilities = capabilities.join(",+").to_lowercase();
    let mut args = words(&container["args"]);
    let pool = args.iter_mut().find(|arg| arg.starts_with("--pool="));
    let ours = format!("--pool={POOL_V4}");
    *pool.unwrap() = &ours;
    let log = std::fs::File::create(log).unwrap();
    let child = lab
        .lb
        .command("unshare")
        .args(["--mount", "sh", "-c", MOUNTS, "sh"])
        .arg(account)
        .args(["setpriv", "--no-new-privs", "--inh-caps=-all"])
        .arg(format!("--bounding-set=-all,+{capabilities}"))
        .args(["--pdeathsig", "KILL", "--"])
        .arg(env!("CARGO_BIN_EXE_weir"))
        .args(args)
        .env("KUBERNETES_SERVICE_HOST", cluster.api().ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", cluster.api().port().to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    Running(child.unwrap())
}

/// What the kubelet of that node would be answered.
fn probe(lab: &Lab, probe: &Value) -> String {
    let get = &probe["httpGet"];
    let (host, path) = (get["host"].as_str().unwrap(), get["path"].as_str().unwrap());
    let url = format!("http://{host}:{}{path}", get["port"]);
    let mut curl = lab.lb.command("curl");
    curl.args([
        "-s",
        "-o",
        "/dev/null",
        "-m",
        "2",
        "-w",
        "%{http_code}",
        &url,
    ]);
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

/// The files of the pod's ServiceAccount.
fn account(cluster: &Cluster) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let token = cluster.kubectl(&["create", "token", "weir", "-n", "weir-system"]);
    let write = |name: &str, text: &[u8]| std::fs::write(directory.path().join(name), text);
    write("token", token.trim().as_bytes()).unwrap();
    write("namespace", b"weir-system").unwrap();
    write("ca.crt", &std::fs::read(cluster.ca_file()).unwrap()).unwrap();
    directory
}

/// The API server takes every file, and the Deployment's pod; that.
fn judged(cluster: &Cluster) -> Value {
    let dry = |path: &Path| {
        cluster.kubectl(&["apply", "--dry-run=server", "-f", path.to_str().unwrap()]);
    };
    let files = files();
    assert!(files.len() >= 4, "{files:?}");
    files.iter().for_each(|path| dry(path));
    let deployment = read(cluster, "deployment.yaml");
    let pod = pod_of(&deployment);
    let file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    std::fs::write(file.path(), pod.to_string()).unwrap();
    dry(file.path());
    pod
}

/// A Service on a privileged port that answers a client, with what answers; its address.
fn served(lab: &Lab, cluster: &Cluster) -> (TcpPod, IpAddr) {
    cluster.node("n1", &[[10, 2, 0, 2].into()], &[]);
    let address = pod_v4(0);
    cluster.pod(
        "default",
        "web-0",
        &[("app", "web")],
        "n1",
        &[address.into()],
    );
    let server = TcpPod::named(&lab.server, address, 8080, "web-0");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4",
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    cluster.apply(&service.to_string());
    let service = cluster.wait("an address", &["service", "web"], |service| {
        ingress(service).is_some()
    });
    let vip: IpAddr = ingress(&service).unwrap();
    eventually("it answers", CONVERGED, || {
        let to = SocketAddr::from((vip, 80));
        matches!(lab.client.run(move || ask(to)), Ok(said) if said == "web-0")
    });
    (server, vip)
}

#[test]
fn every_file_is_taken_and_the_pod_of_the_deployment_serves_the_cluster_that_it_is_in() {
    if skip("deployment") || cluster::skip() {
        return;
    }
    let lab = Lab::new();
    let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
    cluster.apply(RBAC);
    let pod = judged(&cluster);
    let account = account(&cluster);
    let log = account.path().join("log");
    let container = &pod["spec"]["containers"][0];
    let mut weir = start(&lab, &cluster, container, account.path(), &log);
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    for kind in ["readinessProbe", "livenessProbe"] {
        let deadline = std::time::Instant::now() + CONVERGED;
        while probe(&lab, &container[kind]) != "200" {
            let ended = weir.0.try_wait().unwrap();
            let late = std::time::Instant::now() > deadline;
            assert!(ended.is_none() && !late, "{kind}: {ended:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    let (_server, vip) = served(&lab, &cluster);
    let has = || {
        lab.lb
            .out("ip", &["-o", "addr"])
            .contains(&format!(" {vip}/"))
    };
    assert!(has(), "{}", log());

    // The kubelet ends it; it leaves nothing on the node.
    let pid = rustix::process::Pid::from_raw(weir.0.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let grace = pod["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap();
    let ended = eventually_some("it ends", Duration::from_secs(grace), || {
        weir.0.try_wait().unwrap()
    });
    assert!(ended.success() && !has(), "{ended}\n{}", log());
}
