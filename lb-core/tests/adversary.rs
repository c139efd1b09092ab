//! Everything at once: clients and backends that misbehave at random while the table changes at
//! random. What is promised holds for each of them, and afterwards nothing is left.
//!
//! From a seed that is printed; `WEIR_SEED` repeats one (threads still race), `WEIR_SOAK` is how
//! many seconds to go on.

mod common;
mod hostile;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use hostile::{Clients, Random, World};
use lb_core::balance::Algorithm;
use lb_core::stats::CloseReason;
use lb_core::table::{Backend, BackendState, FrontendSpec, Protocol, SourceRanges};

fn seed() -> u64 {
    let given = std::env::var("WEIR_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()) * 0x9E37_79B9);
    println!("WEIR_SEED={seed}");
    seed
}

fn duration() -> Duration {
    let given = std::env::var("WEIR_SOAK").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(given.unwrap_or(5))
}

/// Both tests count the descriptors of the process.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// What the process has open: pipes' ends, and other descriptors.
fn descriptors() -> (usize, usize) {
    let open = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
    let names = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let (pipes, others): (Vec<_>, Vec<_>) =
        names.partition(|name| name.to_string_lossy().starts_with("pipe:"));
    (pipes.len(), others.len())
}

/// Ends of empty pipes that a worker may keep for the next bulk.
const SPARE: u64 = 32;

/// Another state of a frontend, or none.
fn mutate(random: &mut Random, spec: &mut FrontendSpec, pool: &[SocketAddr]) {
    let share = random.below(4);
    let backends = pool.iter().filter(|_| random.below(4) < share);
    spec.backends = backends
        .copied()
        .collect::<Vec<_>>()
        .into_iter()
        .map(|address| Backend {
            address,
            weight: random.below(4) as u16,
            state: match random.below(5) {
                0 => BackendState::Draining,
                _ => BackendState::Active,
            },
        })
        .collect();
    spec.algorithm = match random.below(5) {
        0 => Algorithm::Consistent,
        1 => Algorithm::Maglev,
        2 => Algorithm::RoundRobin,
        3 => Algorithm::Random,
        _ => Algorithm::LeastConnections,
    };
    spec.policy.affinity = (random.below(3) == 0).then_some(Duration::from_secs(1));
    spec.policy.sources = match random.below(8) {
        0 => SourceRanges::none(),
        _ => SourceRanges::any(),
    };
    if random.below(6) == 0 {
        let name = format!("owner-{}", random.below(3));
        spec.owner.name = name.as_str().into();
    }
}

/// Changes the table at random for as long as the test lasts; the first frontend is never removed
/// and keeps its owner, so that its counters can be checked at the end.
fn churn(random: &mut Random, rig: &mut Rig, specs: &[FrontendSpec], pool: &[SocketAddr]) {
    let end = Instant::now() + duration();
    while Instant::now() < end {
        for (i, spec) in specs.iter().enumerate() {
            let mut changed = spec.clone();
            mutate(random, &mut changed, pool);
            if i == 0 {
                changed.owner = spec.owner.clone();
            }
            match i > 0 && random.below(8) == 0 {
                true => _ = rig.builder.remove(&spec.key),
                false => _ = rig.builder.set(changed).expect("a valid frontend"),
            }
        }
        rig.publish(&[]);
        thread::sleep(Duration::from_millis(random.below(30)));
    }
    // A healthy moment for those who are under way.
    rig.set(specs);
}

/// Nothing lives, nothing is open that was not before, and no worker spins.
fn nothing_is_left(rig: &mut Rig, specs: &[FrontendSpec], before: (usize, usize)) {
    eventually("all have ended", || rig.handle.active() == (0, 0));
    let totals = rig.handle.stats().frontends[&(specs[0].key, specs[0].owner.clone())].clone();
    let closed: u64 = CloseReason::ALL.iter().map(|r| totals.closed(*r)).sum();
    assert_eq!(totals.connections_opened + totals.flows_opened, closed);
    assert_eq!((totals.connections_active, totals.flows_active), (0, 0));
    for spec in specs {
        rig.builder.remove(&spec.key);
    }
    rig.set(&[]);
    for worker in rig.handle.stats().workers {
        assert_eq!(worker.descriptors, 0);
        assert!(worker.pipe_descriptors <= SPARE);
        assert_eq!(worker.listeners, 0);
        assert_eq!((worker.connections_active, worker.flows_active), (0, 0));
        assert_eq!(worker.copy_bytes, 0);
    }
    let workers = rig.handle.stats().workers;
    let spare: u64 = workers.iter().map(|w| w.pipe_descriptors).sum();
    let left = (before.0 + spare as usize, before.1);
    eventually("every descriptor is closed, but for spare pipes", || {
        descriptors() == left
    });
    let turns = |rig: &Rig| rig.handle.stats().workers.iter().map(|w| w.turns).sum();
    let begun: u64 = turns(rig);
    thread::sleep(Duration::from_millis(1_000));
    let turned = turns(rig) - begun;
    assert!(turned < 40, "{turned} turns with nothing to do");
}

fn print_totals(rig: &Rig, spec: &FrontendSpec) {
    let stats = rig.handle.stats();
    let totals = &stats.frontends[&(spec.key, spec.owner.clone())];
    let ended = CloseReason::ALL
        .iter()
        .map(|r| (r.label(), totals.closed(*r)));
    let ended: Vec<_> = ended.filter(|(_, n)| *n > 0).collect();
    println!(
        "the first frontend: {ended:?}, failed dials {:?}",
        totals.connect_errors
    );
}

#[test]
fn connections() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut random = Random(seed());
    let world = Arc::new(World::default());
    let mut pool: Vec<_> = (0..4)
        .map(|n| hostile::server(&world, Ipv4Addr::LOCALHOST, n == 0))
        .collect();
    pool.push(loopback());
    let (_full, hole) = hostile::black_hole();
    pool.push(hole);
    let specs: Vec<_> = (0..3)
        .map(|_| {
            let mut spec = spec(Protocol::Tcp, loopback(), &pool[..5]);
            spec.policy.connect_timeout = Duration::from_millis(100);
            spec
        })
        .collect();
    let addresses = specs
        .iter()
        .map(|s| (s.key.address, s.key.port.get()).into());
    let clients = Clients::new(&world, addresses.collect());
    let mut rig = Rig::start(2, &[]);
    let before = descriptors();
    rig.set(&specs);
    let threads = clients.start(12, &mut random);
    churn(&mut random, &mut rig, &specs, &pool);
    clients.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a client thread");
    }
    eventually("every server has ended", || {
        world.serving.load(Ordering::SeqCst) == 0
    });
    print_totals(&rig, &specs[0]);
    world.check();
    nothing_is_left(&mut rig, &specs, before);
    rig.plane.stop();
}

/// A backend that dies and comes back at the same port, and tells nobody what it is not asked.
fn udp_server(stop: &Arc<AtomicBool>, mut random: Random) -> SocketAddr {
    let address = loopback();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut buffer = [0; 4_096];
        while !stop.load(Ordering::Relaxed) {
            let Ok(socket) = UdpSocket::bind(address) else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            let dies = Instant::now() + Duration::from_millis(20 + random.below(400));
            let patience = Some(Duration::from_millis(10));
            socket.set_read_timeout(patience).expect("an option");
            while Instant::now() < dies && !stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                for _ in 0..random.below(3) {
                    let _ = socket.send_to(&buffer[..n], from);
                }
            }
            drop(socket);
            thread::sleep(Duration::from_millis(random.below(20)));
        }
    });
    address
}

/// Clients one after the other, each with an address that no other ever had. What comes back must
/// be what this one sent, from where it was sent to.
fn udp_clients(
    addresses: &[SocketAddr],
    next: &AtomicU64,
    answered: &AtomicU64,
    stop: &AtomicBool,
    mut random: Random,
) {
    let mut buffer = [0; 4_096];
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed) + 1;
        let [a, b, c] = [n / 62_500, n / 250 % 250, n % 250].map(|part| part as u8);
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 1 + a, b, 1 + c), 0)).expect("a socket");
        let to = addresses[random.below(addresses.len() as u64) as usize];
        let patience = Some(Duration::from_millis(3));
        socket.set_read_timeout(patience).expect("an option");
        let mut sent = Vec::new();
        for _ in 0..random.below(12) {
            let mut payload = vec![0; 16 + random.below(2_500) as usize];
            payload[..8].copy_from_slice(&n.to_le_bytes());
            payload[8..16].copy_from_slice(&random.next().to_le_bytes());
            let _ = socket.send_to(&payload, to);
            sent.push(payload);
            for _ in 0..random.below(4) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else {
                    break;
                };
                assert_eq!(from, to, "an answer from elsewhere");
                let is_ours = sent.iter().any(|payload| payload[..] == buffer[..len]);
                assert!(is_ours, "client {n} got what it never sent");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn flows() {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut random = Random(seed());
    // Counted before the servers: they open and close their sockets as they like, until `stop`.
    let mut rig = Rig::start(2, &[]);
    let before = descriptors();
    let stop = Arc::new(AtomicBool::new(false));
    let mut pool: Vec<_> = (0..4).map(|_| udp_server(&stop, random.fork())).collect();
    pool.push(loopback());
    let specs: Vec<_> = (0..3)
        .map(|_| {
            let mut spec = spec(Protocol::Udp, loopback(), &pool);
            spec.policy.flow_one_way_timeout = Duration::from_millis(300);
            spec.policy.flow_two_way_timeout = Duration::from_millis(600);
            spec
        })
        .collect();
    let addresses: Vec<SocketAddr> = specs
        .iter()
        .map(|s| (s.key.address, NonZeroU16::get(s.key.port)).into())
        .collect();
    rig.set(&specs);
    let (next, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            let random = random.fork();
            scope.spawn(|| udp_clients(&addresses, &next, &answered, &stop, random));
        }
        churn(&mut random, &mut rig, &specs, &pool);
        stop.store(true, Ordering::Relaxed);
    });
    let (clients, answers) = (next.into_inner(), answered.into_inner());
    println!("{clients} clients, {answers} answers");
    assert!(
        answers > clients / 2,
        "{answers} answers to {clients} clients"
    );
    print_totals(&rig, &specs[0]);
    nothing_is_left(&mut rig, &specs, before);
    rig.plane.stop();
}
