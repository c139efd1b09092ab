//! Ten thousand Services with a hundred thousand endpoints on a real API server: `make bench-scale` prints
//! how long everything takes there and what it costs; that nothing is lost meanwhile is a test as any
//! other. The objects are written once and kept as etcd's data in target/kubernetes.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::cluster::{self, Cluster};
use support::net::pod_v4;
use support::traffic::{Load, TcpPod, ask, dial_from, name_behind};
use support::weir::Weir;
use support::*;

const RBAC: &str = include_str!("../../deploy/kubernetes/rbac.yaml");
const BINDINGS: &str = include_str!("support/cluster/appliance.yaml");
/// What is kept is of this form; another number, and it is made anew.
const FORM: u32 = 1;
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// 16,384 addresses.
const POOL: &str = "10.1.64.0/18";
/// How often an endpoint's change is timed.
const CHANGES: usize = 300;
/// Between two looks at the metrics.
const POLL: Duration = Duration::from_millis(200);
const CHURN: Duration = Duration::from_secs(60);
const CHANGES_PER_SECOND: usize = 200;
const CONNECTIONS_PER_SECOND: u32 = 500;
const WRITERS: usize = 8;
const CLIENTS: u32 = 16;
/// Addresses of theirs: from one alone most ports would soon be in TIME_WAIT, and the kernel look long for a free one.
const SOURCES: usize = 8;
/// The Service that is asked, and the one whose endpoints change while it is timed.
const ASKED: usize = 4_000;

#[test]
#[ignore = "minutes, and a machine that does nothing else: make bench-scale"]
fn ten_thousand_services_with_a_hundred_thousand_endpoints() {
    if skip("scale") || cluster::skip() {
        return;
    }
    let lab = Lab::new();
    lab.client.ip(&["route", "add", POOL, "via", "10.1.0.1"]);
    for turn in 0..SOURCES {
        let address = format!("{}/24", source(turn));
        lab.client.ip(&["addr", "add", &address, "dev", "eth0"]);
    }
    let kept = kept(&lab);
    let cluster = Cluster::prepare()
        .inside(&lab.lb, [10, 2, 0, 1].into())
        .restore(&kept)
        .launch();
    // They would take a core for themselves; in a cluster of this size they have machines of their own.
    cluster.stop_controllers();
    let cluster = Arc::new(cluster);
    let _pods: Vec<TcpPod> = (0..4)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 8080, &format!("pod-{n}")))
        .collect();

    let (weir, address) = started(&cluster, &lab);
    programmed(&cluster, &lab, address);
    churned(&cluster, &lab, &weir, address);
    say_memory(&weir, "at the end");
}

/// Starts Weir and prints how long everything took.
fn started(cluster: &Cluster, lab: &Lab) -> (Weir, SocketAddr) {
    let begun = Instant::now();
    let weir = Weir::prepare()
        .without_manifests()
        .arg("--kubeconfig")
        .arg(cluster.appliance().display())
        .args(["--pool", POOL, "--workers", "1"])
        .spawn(&lab.lb);
    let since = |what: &str| println!("{:>8.2} s  {what}", begun.elapsed().as_secs_f64());
    // A page of metrics of so many Services is megabytes and has its price: asked for seldom.
    let until = |what: &str, within: u64, holds: &mut dyn FnMut() -> bool| {
        eventually(what, Duration::from_secs(within), || {
            let done = holds();
            std::thread::sleep(if done { Duration::ZERO } else { POLL });
            done
        });
        since(what);
    };
    until("the admin interface answers", 30, &mut || {
        weir.admin_answers()
    });
    let lists = || weir.metric("weir_watch_lists_total", &[]);
    until("both lists are complete", 120, &mut || lists() >= 2.0);
    let arrived = begun.elapsed();
    let listeners = || weir.metric("weir_worker_listeners", &[]);
    until("every Service is listened for", 120, &mut || {
        listeners() >= SERVICES as f64
    });
    let synced = begun.elapsed().saturating_sub(arrived);
    println!(
        "cold sync after the lists: {:.2} s (goal 10)",
        synced.as_secs_f64()
    );
    let writes = || weir.metric("weir_kubernetes_writes_total", &["result=\"ok\""]);
    until("every EXTERNAL-IP is written", 900, &mut || {
        // A finalizer and a status each.
        writes() >= 2.0 * SERVICES as f64
    });
    say_memory(&weir, "after the start");
    let found = cluster.get(&["service", &name(ASKED)]);
    let ip = &found["status"]["loadBalancer"]["ingress"][0]["ip"];
    let ip: Ipv4Addr = ip.as_str().unwrap().parse().unwrap();
    (weir, (ip, 80).into())
}

/// Prints how long it takes from a write to the API server to the first connection that goes where it
/// says.
fn programmed(cluster: &Arc<Cluster>, lab: &Lab, address: SocketAddr) {
    let cluster = Arc::clone(cluster);
    let mut times = lab.client.run(move || {
        let changes = (0..CHANGES).map(|change| {
            let pod = (change % 2) as u16;
            let wanted = format!("pod-{pod}");
            let begun = Instant::now();
            replace(&cluster, &slice(ASKED, &[pod_v4(pod)]));
            // The first change finds endpoints that answer nobody.
            while ask(address).ok().as_ref() != Some(&wanted) {
                let late = begun.elapsed() > Duration::from_secs(10);
                assert!(!late, "change {change} has no effect");
                std::thread::sleep(Duration::from_micros(500));
            }
            let took = begun.elapsed();
            std::thread::sleep(Duration::from_millis(20));
            took
        });
        changes.collect::<Vec<Duration>>()
    });
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "a change, from the API write to the first connection that follows it: p50 {:.1?}, p99 {:.1?}, longest {:.1?} of {CHANGES} (goal: p99 100 ms)",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// Changes endpoints of everybody, the asked one's too, under load.
fn churned(cluster: &Arc<Cluster>, lab: &Lab, weir: &Weir, address: SocketAddr) {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            let cluster = Arc::clone(cluster);
            std::thread::spawn(move || {
                let every = Duration::from_secs(1) * WRITERS as u32 / CHANGES_PER_SECOND as u32;
                let mut next = Instant::now();
                let mut turn = writer;
                while !stop.load(Ordering::Relaxed) {
                    replace(&cluster, &change(turn));
                    done.fetch_add(1, Ordering::Relaxed);
                    turn += WRITERS;
                    next += every;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        })
        .collect();
    let (began, cpu, everybody) = (Instant::now(), weir.cpu(), spent());
    let turn = Arc::new(AtomicUsize::new(0));
    let load = Load::start(&lab.client, CLIENTS, CONNECTIONS_PER_SECOND, move || {
        let source = source(turn.fetch_add(1, Ordering::Relaxed));
        name_behind(dial_from(source.into(), 0, address)?).map(drop)
    });
    std::thread::sleep(CHURN);
    let (asked, failed) = load.finish();
    stop.store(true, Ordering::Relaxed);
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "churn: {:.0} changes/s (goal {CHANGES_PER_SECOND}) under {:.0} connections/s (goal {CONNECTIONS_PER_SECOND}) for {seconds:.0} s: {} lost; {:.0} % of a CPU",
        done.load(Ordering::Relaxed) as f64 / seconds,
        asked as f64 / seconds,
        failed.len(),
        (weir.cpu() - cpu).as_secs_f64() / seconds * 100.0
    );
    let mut spent: Vec<(String, f64)> = spent()
        .into_iter()
        .map(|(name, now)| {
            let before = everybody.get(&name).copied().unwrap_or_default();
            (name, (now - before) / seconds * 100.0)
        })
        .filter(|(_, share)| *share >= 1.0)
        .collect();
    spent.sort_by(|a, b| b.1.total_cmp(&a.1));
    let spent: Vec<String> = spent
        .into_iter()
        .map(|(name, share)| format!("{name} {share:.0} %"))
        .collect();
    println!("of a CPU meanwhile: {}", spent.join(", "));
    assert!(asked > 0 && failed.is_empty(), "{asked}: {failed:?}");
}

/// Seconds of CPU that processes have used so far, by their names.
fn spent() -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        // Gone meanwhile, or no process.
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else {
            continue;
        };
        let Some((name, rest)) = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'))
        else {
            continue;
        };
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse().unwrap_or(0)).sum();
        *all.entry(name.to_owned()).or_default() += ticks as f64 / 100.0;
    }
    all
}

/// The change of this number: every twentieth is the asked one's, of which two of four pods are there.
fn change(number: usize) -> Value {
    if number.is_multiple_of(20) {
        let pods = [number / 20, number / 20 + 1].map(|n| pod_v4((n % 4) as u16));
        return slice(ASKED, &pods);
    }
    // Anybody but the asked one.
    let service = (number * 7_919) % (SERVICES - 1);
    let service = service + usize::from(service >= ASKED);
    slice(
        service,
        &[nobody(number % SERVICES, 0), nobody(number % SERVICES, 1)],
    )
}

/// The client's address for this turn.
fn source(turn: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, 0, 16 + (turn % SOURCES) as u8)
}

fn say_memory(weir: &Weir, when: &str) {
    println!(
        "memory {when}: {} MiB resident, {} MiB at the most (goals 256 and 512)",
        weir.proc_status("VmRSS") / 1024,
        weir.proc_status("VmHWM") / 1024
    );
}

fn name(service: usize) -> String {
    format!("svc-{service:05}")
}

fn slice_name(service: usize) -> String {
    format!("{}-0", name(service))
}

/// An address of a pod that does not exist.
fn nobody(service: usize, endpoint: usize) -> Ipv4Addr {
    let n = (service * ENDPOINTS + endpoint) as u32;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + n)
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4",
            "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80, "targetPort": 8080}]},
    })
}

fn slice(number: usize, addresses: &[Ipv4Addr]) -> Value {
    let endpoints = addresses.iter();
    let endpoints = endpoints.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": slice_name(number), "namespace": "default",
            "labels": {"kubernetes.io/service-name": name(number)}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// The folder with etcd's data, made if it is not there.
fn kept(lab: &Lab) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes");
    let kept = root.join(format!("scale-{FORM}"));
    if kept.is_dir() {
        return kept;
    }
    let begun = Instant::now();
    let cluster = Cluster::prepare()
        .inside(&lab.lb, [10, 2, 0, 1].into())
        .launch();
    cluster.apply(RBAC);
    cluster.apply(BINDINGS);
    let left = Mutex::new((0..SERVICES).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let next = || left.lock().unwrap().pop();
                while let Some(number) = next() {
                    let all: Vec<_> = (0..ENDPOINTS).map(|n| nobody(number, n)).collect();
                    create(&cluster, &service(number));
                    create(&cluster, &slice(number, &all));
                }
            });
        }
    });
    println!("{SERVICES} Services written in {:.0?}", begun.elapsed());
    // In one step: what is there is whole.
    let beside = root.join(format!("scale-{FORM}.{}", std::process::id()));
    cluster.save(&beside);
    std::fs::rename(&beside, &kept).unwrap();
    kept
}

/// Where the objects of a kind are.
fn collection(object: &Value) -> String {
    match object["kind"].as_str().unwrap() {
        "Service" => "/api/v1/namespaces/default/services".to_owned(),
        _ => "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices".to_owned(),
    }
}

fn create(cluster: &Cluster, object: &Value) {
    let made = cluster.call("POST", &collection(object), object);
    assert!(made.is_object(), "{object}");
}

fn replace(cluster: &Cluster, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{name}", collection(object));
    let replaced = cluster.call("PUT", &path, object);
    assert!(replaced.is_object(), "{object}");
}
