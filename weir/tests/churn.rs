//! Everything at once against the real binary: TCP clients and servers that misbehave at random,
//! UDP clients that come and go, endpoints that change under them. What is promised holds for each,
//! and afterwards nothing is left: no connection, flow, descriptor, pipe, slot or buffer.
//!
//! From a seed that is printed; `WEIR_SEED` repeats one (threads still race), `WEIR_SOAK` is how
//! many seconds to go on.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../lb-core/tests/hostile/mod.rs"]
#[allow(dead_code)]
mod hostile;
mod support;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hostile::{Clients, Random, World};
use support::manifest::{Service, Slice, ready, service};
use support::net::pod_v4;
use support::traffic::*;
use support::*;

fn seed() -> u64 {
    let given = std::env::var("WEIR_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()) * 0x9E37_79B9);
    println!("WEIR_SEED={seed}");
    seed
}

fn duration() -> Duration {
    let given = std::env::var("WEIR_SOAK").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(given.unwrap_or(8))
}

/// A Service of one port whose pods listen wherever they found a free port.
fn over(name: &str, protocol: &'static str, pods: &[SocketAddr]) -> Service {
    let mut svc = service(name).port("p", protocol, 80);
    for pod in pods {
        svc.slices.push(Slice {
            family: "IPv4",
            ports: vec![("p".into(), protocol, pod.port())],
            endpoints: vec![ready(&pod.ip().to_string())],
        });
    }
    svc
}

/// What the process has open: pipes' ends, and other descriptors.
fn open(weir: &Weir) -> (usize, usize) {
    let pipes = weir.pipe_ends();
    (pipes, weir.descriptors() - pipes)
}

/// What was sent by anybody, as hashes: an answer that comes late finds another client at its port.
type Sent = Mutex<HashSet<u64>>;

fn hash(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

fn udp_client(to: SocketAddr, random: &mut Random, answered: &AtomicU64, sent: &Sent) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut buffer = [0; 65_536];
    for _ in 0..random.below(20) {
        let most = [1, 100, 1_400, 9_000, 60_000][random.below(5) as usize];
        let mut data = vec![0; random.below(most) as usize];
        Pattern::new(random.next()).fill(&mut data);
        sent.lock().unwrap().insert(hash(&data));
        // A port without endpoints says so.
        let _ = socket.send(&data);
        if random.below(3) > 0
            && let Ok(n) = socket.recv(&mut buffer)
        {
            let is_ours = sent.lock().unwrap().contains(&hash(&buffer[..n]));
            assert!(is_ours, "{n} bytes came back that were never sent");
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn nothing_is_left_after_a_churn_of_hostile_clients() {
    if skip("churn") {
        return;
    }
    churn(Weir::prepare());
}

/// The same with rings of 16 entries and 8 buffers.
#[cfg(feature = "failpoints")]
#[test]
fn r8_nothing_is_left_after_a_churn_over_tiny_rings() {
    if skip("churn, tiny rings") {
        return;
    }
    churn(Weir::prepare().env("WEIR_TEST_RING", "16,8")).ring_ran_full();
}

fn churn(start: weir::Start) -> Weir {
    let lab = Lab::new();
    let flows = [
        "--flow-one-way-timeout",
        "1s",
        "--flow-two-way-timeout",
        "2s",
    ];
    let weir = start.pools().args(flows).launch(&lab.lb);
    println!("engine: {}", weir.engine());
    let mut random = Random(seed());

    let world = Arc::new(World::default());
    let pods: Vec<SocketAddr> = (0..4)
        .map(|n| {
            let world = world.clone();
            let server = move || hostile::server(&world, pod_v4(n), n == 0);
            lab.server.run(server)
        })
        .collect();
    let echoes: Vec<UdpPod> = (0..3)
        .map(|n| UdpPod::echo(&lab.server, pod_v4(n), 7_000))
        .collect();
    let echoes: Vec<SocketAddr> = echoes.iter().map(|pod| pod.address).collect();
    let (calm, wild) = (over("calm", "TCP", &pods), over("wild", "TCP", &pods));
    let datagrams = over("datagrams", "UDP", &echoes);
    let [calm_vip, wild_vip, udp_vip] =
        [&calm, &wild, &datagrams].map(|svc| SocketAddr::new(weir.serve(svc)[0], 80));
    // Who asked last may still be about to go: the least of some looks.
    let mut before = open(&weir);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(10));
        before = before.min(open(&weir));
    }

    let clients = Clients::new(&world, vec![calm_vip, wild_vip]);
    let stop = clients.stop.clone();
    let fork = random.fork();
    let tcp = lab.client.run(move || {
        let mut fork = fork;
        clients.start(10, &mut fork)
    });
    let answered = Arc::new(AtomicU64::new(0));
    let sent = Arc::new(Sent::default());
    let udp: Vec<_> = (0..3)
        .map(|_| {
            let (stop, answered, sent): (Arc<AtomicBool>, _, _) =
                (stop.clone(), answered.clone(), sent.clone());
            let mut random = random.fork();
            lab.client.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    udp_client(udp_vip, &mut random, &answered, &sent);
                }
            })
        })
        .collect();
    let end = Instant::now() + duration();
    let mut most = before;
    while Instant::now() < end {
        most.0 = most.0.max(weir.pipe_ends());
        most.1 = most.1.max(weir.descriptors());
        // None, some or all of them; a port without any closes.
        for (name, protocol, all) in [("wild", "TCP", &pods), ("datagrams", "UDP", &echoes)] {
            let share = random.below(4);
            let some: Vec<_> = all
                .iter()
                .copied()
                .filter(|_| random.below(3) < share)
                .collect();
            weir.apply(&over(name, protocol, &some));
        }
        std::thread::sleep(Duration::from_millis(50 + random.below(200)));
    }
    weir.serve(&wild);
    weir.serve(&datagrams);
    stop.store(true, Ordering::Relaxed);
    for thread in tcp.into_iter().chain(udp) {
        thread.join().unwrap();
    }
    eventually("every server has ended", Duration::from_secs(40), || {
        world.serving.load(Ordering::SeqCst) == 0
    });
    world.check();
    let answers = answered.load(Ordering::Relaxed);
    println!("{answers} datagrams answered");
    assert!(answers > 100, "{answers} datagrams answered");

    weir.nothing_in_use();
    let opened = weir.metric("weir_connections_opened_total", &[])
        + weir.metric("weir_udp_flows_opened_total", &[]);
    let closed = weir.metric("weir_connections_closed_total", &[]);
    assert_eq!(opened, closed, "each has ended for a reason");
    // The last one who asked for the metrics may still be about to go.
    let mut left = open(&weir);
    let deadline = Instant::now() + SOON;
    while left != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        left = open(&weir);
    }
    println!("before {before:?} (pipes' ends, others), at most {most:?}, after {left:?}");
    assert!(most.0 > before.0, "no bulk went through a pipe");
    assert_eq!(left, before, "descriptors are left over");
    // Rest: nobody is woken for what is over.
    let cpu = weir.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let spent = weir.cpu() - cpu;
    assert!(
        spent < Duration::from_millis(60),
        "{spent:?} of CPU in a second"
    );
    weir
}
