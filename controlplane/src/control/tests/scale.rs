//! Endpoints of many Services that change all the time, told by a scripted API server: a real one
//! with etcd cannot say a thousand changes a second on the machine that also has the load.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::*;

const CHANGES_PER_SECOND: u32 = 1_000;
const CONNECTIONS_PER_SECOND: u32 = 500;
/// A Service has so many endpoints, or one or two less.
const ENDPOINTS: usize = 10;
/// What the endpoints of the asked Service say, by turns.
const NAMES: [&str; 2] = ["one", "two"];
/// The Service that is asked.
const ASKED: &str = "asked";

#[test]
fn k9_a_thousand_changes_a_second_lose_nothing() {
    churn(64, 500, Duration::from_secs(2));
}

#[test]
#[ignore = "a minute, and a machine that does nothing else: make soak"]
fn k9_a_thousand_changes_a_second_of_ten_thousand_services() {
    // How long a change takes is printed and not judged: it is of the machine, and of the build.
    let Churned { changes, grown, .. } = churn(128, 10_000, Duration::from_secs(60));
    assert!(changes >= 59_000, "{changes} changes");
    assert!(grown < 32 << 10, "{grown} KiB more than at half time");
}

/// What came of it.
struct Churned {
    changes: usize,
    /// From a change to the first connection that follows it, ascending.
    times: Vec<Duration>,
    /// KiB resident at the end beyond those at half time; of the whole test.
    grown: u64,
}

/// Changes endpoints of `services` under load, for `time`. Asserts that no connection is lost, that each change
/// takes effect, and that in the end every Service is as it was written last.
fn churn(net: u8, services: usize, time: Duration) -> Churned {
    let server = Server::start();
    let backends = NAMES.map(|name| (name, backend(name)));
    for number in 0..services {
        server.put(service(&name(number)));
        server.put(slice(&name(number), &nobody(number)));
    }
    server.put(service(ASKED));
    server.put(slice(ASKED, &[backends[0].1]));
    let bench = of_cluster(net, &server);
    let all = services + 1;
    eventually("all serving", || {
        let snapshot = bench.desk().snapshot();
        (snapshot.counts.get(&State::Serving) == Some(&all)).then_some(())
    });
    let vip = bench.serving(ASKED);
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let ((written, churned), (asked, failed)) = thread::scope(|scope| {
        let load = scope.spawn(|| load(vip, &stop));
        let writer = scope.spawn(|| write_all(&server, services, &stop));
        let (mut times, mut half) = (Vec::new(), None);
        while begun.elapsed() < time {
            times.push(follow(&server, vip, backends[(times.len() + 1) % 2]));
            if begun.elapsed() > time / 2 {
                half.get_or_insert_with(resident);
            }
            thread::sleep(Duration::from_millis(20));
        }
        let grown = resident().saturating_sub(half.unwrap_or_default());
        stop.store(true, Ordering::Relaxed);
        times.sort_unstable();
        let (changes, written) = writer.join().expect("writes");
        let churned = Churned {
            changes: changes + times.len(),
            times,
            grown,
        };
        ((written, churned), load.join().expect("asks"))
    });
    let took = begun.elapsed().as_secs_f64();
    let times = [50, 99, 100].map(|percent| at(&churned.times, percent));
    println!(
        "{:.0} changes/s under {:.0} connections/s: {} lost; p50, p99 and longest of a change {times:.1?}; {} KiB grown",
        churned.changes as f64 / took,
        f64::from(asked) / took,
        failed.len(),
        churned.grown
    );
    assert!(asked > 0 && failed.is_empty(), "{asked}: {failed:?}");
    eventually("as it was written last", || {
        let snapshot = bench.desk().snapshot();
        let same = snapshot.services().filter(|status| {
            let number = status.key.name.strip_prefix("s-");
            let number = number.and_then(|number| number.parse::<usize>().ok());
            number.is_some_and(|number| written[number] == status.endpoints.ready as usize)
        });
        (same.count() == services).then_some(())
    });
    churned
}

/// Of ascending times, the one that so many percent are not above.
fn at(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() - 1) * percent / 100]
}

/// A control plane of this cluster with one worker: 10,000 listeners are descriptors enough.
fn of_cluster(net: u8, server: &Server) -> Bench {
    let Bench {
        directory,
        mut settings,
        control,
        plane,
        ..
    } = Bench::start(net);
    control.expect("running").stop();
    plane.stop();
    let kubeconfig = kubeconfig(server, directory.path(), "");
    let access = kubernetes::Access::Kubeconfig(kubeconfig);
    let connection = kubernetes::Connection::start(access).expect("a way to it");
    let state_dir = settings.state_dir.clone();
    settings.directories.clear();
    let range = format!("127.51.{net}.0/18").parse().expect("range");
    settings.pools = Pools::new([(None, vec![range])], []).expect("pools");
    settings.kubernetes = Some(kubernetes::Settings::new(connection, Vec::new(), state_dir));
    Bench::with(directory, settings, 1)
}

/// Has the asked Service served by `backend` alone; how long it takes until clients are.
fn follow(server: &Server, vip: IpAddr, (name, backend): (&str, SocketAddr)) -> Duration {
    let begun = Instant::now();
    server.put(slice(ASKED, &[backend]));
    eventually("followed", || (ask(vip).ok()? == name).then_some(()));
    begun.elapsed()
}

/// Asks all the time; how often, and what failed.
fn load(vip: IpAddr, stop: &AtomicBool) -> (u32, Vec<String>) {
    let (mut asked, mut failed) = (0, Vec::new());
    paced(CONNECTIONS_PER_SECOND, stop, || {
        asked += 1;
        match ask(vip) {
            Ok(name) if NAMES.contains(&&*name) => {}
            other => failed.push(format!("{other:?}")),
        }
    });
    (asked, failed)
}

/// Changes the endpoints of one Service after another; how many changes, and how many endpoints each Service has
/// in the end.
fn write_all(server: &Server, services: usize, stop: &AtomicBool) -> (usize, Vec<usize>) {
    let mut change = services;
    let mut written: Vec<_> = (0..services).map(|number| nobody(number).len()).collect();
    paced(CHANGES_PER_SECOND, stop, || {
        let (number, endpoints) = (change * 7_919 % services, nobody(change));
        server.put(slice(&name(number), &endpoints));
        written[number] = endpoints.len();
        change += 1;
    });
    (change - services, written)
}

/// Endpoints of this change alone, where nobody answers.
fn nobody(change: usize) -> Vec<SocketAddr> {
    let first = u32::from(Ipv4Addr::new(127, 96, 0, 1));
    let endpoints = (0..ENDPOINTS - change % 3).map(|n| {
        let n = (change * ENDPOINTS + n) as u32 % (1 << 20);
        SocketAddr::from((Ipv4Addr::from(first + n), 9))
    });
    endpoints.collect()
}

/// So often a second, until it is told to stop; what is late is made up for.
fn paced(per_second: u32, stop: &AtomicBool, mut act: impl FnMut()) {
    let every = Duration::from_secs(1) / per_second;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        act();
        next += every;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// KiB of this process.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("VmRSS").parse().expect("a number")
}

fn name(service: usize) -> String {
    format!("s-{service}")
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "p", "port": 7_000}]},
    })
}

/// All endpoints have the port of the first.
fn slice(name: &str, endpoints: &[SocketAddr]) -> Value {
    let port = endpoints.first().map(SocketAddr::port);
    let endpoints = endpoints.iter().map(|one| json!({"addresses": [one.ip()]}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"), "namespace": "n", "uid": format!("{name}-1"),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": port}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
