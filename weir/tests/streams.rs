//! Every byte on every path: streams in every close order at awkward sizes, over both address
//! families and across them, by whatever engine WEIR_ENGINE names: moved by splice, and copied
//! because the kernel refuses pipes, shrinks them, or because rings and buffers are tiny. Rows T1,
//! T3, T4, T8, R4, R8 and R9 of the fault catalogue.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use support::machine::{Settings, engines};
use support::stream::*;
use support::*;

const MIB: u64 = 1 << 20;

/// Around the sizes of buffers and pipes: nothing, a byte, 16 KiB, 64 KiB, 256 KiB and 1 MiB, each
/// with a byte less and a byte more.
const AWKWARD: [u64; 14] = [
    0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1_048_575,
    1_048_576, 1_048_577,
];

/// A user that owns nothing else on this machine: the kernel counts pipes for each user.
const USER: u32 = 64_117;

/// A peer behind a VIP for each way between the families.
struct Ways {
    peers: Vec<Peer>,
    vips: Vec<SocketAddr>,
}

impl Ways {
    fn open(lab: &Lab, weir: &Weir) -> Ways {
        let (mut peers, mut vips) = (Vec::new(), Vec::new());
        for (n, (vip_v6, pod_v6)) in families().into_iter().enumerate() {
            let port = 9000 + n as u16;
            peers.push(Peer::serve(&lab.server, pod(pod_v6, 0), port));
            vips.push(one_pod(weir, &format!("way{n}"), vip_v6, pod_v6, port));
        }
        Ways { peers, vips }
    }

    fn all(&self) -> Vec<(SocketAddr, &Peer)> {
        self.vips.iter().copied().zip(&self.peers).collect()
    }

    /// Over one way only, the `n`th.
    fn one(&self, n: usize) -> Vec<(SocketAddr, &Peer)> {
        vec![(self.vips[n], &self.peers[n])]
    }
}

/// How bulk is moved.
enum Moves {
    Spliced,
    Copied,
    /// As it comes; over a tiny ring.
    #[cfg_attr(not(feature = "failpoints"), expect(dead_code))]
    Either,
}

/// The whole of it: every order and size over each way, then single bytes and mixed streams.
#[track_caller]
fn everything(lab: &Lab, weir: &Weir, moves: Moves) {
    println!("engine: {}", weir.engine());
    let ways = Ways::open(lab, weir);
    // Spare pipes stay for a moment.
    let mut pipes = 0.0;
    let mut then_look = |vips: &[(SocketAddr, &Peer)], plans| {
        play(&lab.client, vips, plans, 6);
        pipes = weir.metric("weir_worker_pipe_descriptors", &[]).max(pipes);
    };
    for n in 0..4 {
        let id = 1 + n as u64 * 10_000;
        let plans = every_order(id, &Close::ALL, &AWKWARD, Writes::Large);
        then_look(&ways.one(n), plans);
    }
    let small = [0, 1, 700, 16_385];
    let plans = every_order(50_001, &Close::ALL, &small, Writes::Single);
    then_look(&ways.all(), plans);
    let mixed = [900_001, 2_500_000];
    let plans = every_order(60_001, &Close::ALL, &mixed, Writes::Mixed);
    then_look(&ways.all(), plans);
    let copied = weir.metric("weir_worker_bulk_copied_total", &[]);
    println!("ends of pipes: {pipes}; copied for want of a pipe: {copied}");
    match moves {
        Moves::Spliced => assert!(pipes > 0.0 && copied == 0.0, "bulk was not spliced"),
        Moves::Copied => assert!(pipes == 0.0 && copied > 0.0, "bulk was not copied"),
        Moves::Either => {}
    }
    nothing_lives(weir);
}

/// No connection, and nothing that a connection holds.
#[track_caller]
fn nothing_lives(weir: &Weir) {
    eventually("weir holds no connection", SOON, || {
        weir.metric("weir_connections_active", &[]) == 0.0
    });
    weir.nothing_in_use();
}

#[test]
fn t1_t3_t4_t8_every_close_order_at_awkward_sizes_on_every_family() {
    if skip("streams") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    everything(&lab, &weir, Moves::Spliced);
}

#[test]
fn t8_gigabytes_in_every_close_order() {
    if skip("gigabytes") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let ways = Ways::open(&lab, &weir);
    let size = long(48 * MIB, 1024 * MIB);
    // Bulk one way, a byte or as much the other way.
    let plans = every_order(1, &Close::ALL, &[size + 1, 1], Writes::Large);
    play(&lab.client, &ways.all(), plans, 4);
    nothing_lives(&weir);
}

/// Messages one at a time, large ones between small ones: a direction turns bulk and back, again
/// and again, and at each message nothing may stay behind.
#[test]
fn t8_directions_turn_bulk_and_back_between_messages() {
    if skip("bulk and back") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let rounds = long(6, 200);
    for (n, (vip_v6, pod_v6)) in families().into_iter().enumerate() {
        let port = 9100 + n as u16;
        let _echo = traffic::TcpPod::echo(&lab.server, pod(pod_v6, 0), port);
        let vip = one_pod(&weir, &format!("turns{n}"), vip_v6, pod_v6, port);
        let mut client = traffic::connect(&lab.client, vip).unwrap();
        let mut writer = client.try_clone().unwrap();
        let large = [
            16_385,
            65_536,
            65_537,
            131_071,
            262_144,
            262_145,
            700_000,
            2 * MIB,
        ];
        for round in 0..rounds {
            for big in large {
                let small = (0..12).map(|i| 1 + (round * 37 + i * 211) % 1_500);
                for size in small.chain([big, big + round]) {
                    let seed = round << 32 | size;
                    let sender = std::thread::spawn({
                        let mut writer = writer.try_clone().unwrap();
                        move || {
                            let mut data = vec![0; size as usize];
                            Bytes::new(seed).fill(&mut data);
                            writer.write_all(&data)
                        }
                    });
                    let mut back = vec![0; size as usize];
                    client.read_exact(&mut back).unwrap();
                    sender.join().unwrap().unwrap();
                    let wrong = Bytes::new(seed).differ(&back, &mut Vec::new());
                    assert_eq!(wrong, None, "{size} bytes in round {round} by {vip}");
                }
            }
        }
        writer.flush().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the end");
    }
    nothing_lives(&weir);
}

/// The kernel refuses a user's pipes altogether.
#[test]
fn r4_without_pipes_the_same_bytes_arrive() {
    if skip("r4 refused") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare().pools().unprivileged(USER).launch(&lab.lb);
    let limit = Settings::change(&[("fs/pipe-user-pages-hard", "1")]);
    assert!(is_refused_pipes(USER), "the limit is not in force");
    everything(&lab, &weir, Moves::Copied);
    drop(limit);
}

/// The kernel gives a user pipes of a page or two.
#[test]
fn r4_with_shrunken_pipes_the_same_bytes_arrive() {
    if skip("r4 shrunken") {
        return;
    }
    let lab = Lab::new();
    let limit = Settings::change(&[("fs/pipe-user-pages-soft", "8")]);
    let weir = Weir::prepare()
        .pools()
        .unprivileged(USER + 1)
        .launch(&lab.lb);
    everything(&lab, &weir, Moves::Copied);
    drop(limit);
}

/// Does a program of this user get no pipe?
fn is_refused_pipes(uid: u32) -> bool {
    // A shell needs one for a pipeline.
    let status = std::process::Command::new("setpriv")
        .args([&format!("--reuid={uid}"), "--clear-groups"])
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .args(["sh", "-c", "true | true"])
        .output()
        .unwrap();
    !status.status.success()
}

/// A ring of few entries and few buffers overflows at every turn; without a ring there is nothing
/// to shrink, and the rest holds all the same.
#[cfg(feature = "failpoints")]
#[test]
fn r8_tiny_rings_and_few_buffers_lose_nothing() {
    if skip("r8") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--workers", "1"])
        .env("WEIR_TEST_RING", "8,4")
        .launch(&lab.lb);
    everything(&lab, &weir, Moves::Either);
    weir.ring_ran_full();
}

/// Every engine of this build that can run here does, under its own name, and says so.
#[test]
fn r9_every_engine_serves_and_says_its_name() {
    if skip("r9 engines") {
        return;
    }
    let lab = Lab::new();
    for engine in engines() {
        let weir = Weir::prepare()
            .pools()
            .args(["--engine", &engine])
            .launch(&lab.lb);
        assert_eq!(weir.engine(), engine);
        let rings = weir.open("anon_inode:[io_uring]");
        assert_eq!(rings > 0, engine == "io_uring", "{rings} rings");
        let ways = Ways::open(&lab, &weir);
        let plans = every_order(1, &Close::ALL, &[0, 1, 65_537, 300_000], Writes::Large);
        play(&lab.client, &ways.all(), plans, 6);
        nothing_lives(&weir);
        weir.stop();
    }
}

/// The kernel forbids io_uring to everybody but root, as many distributions do: the other engine
/// serves, nothing is lost, and who insists is told.
#[test]
fn r9_where_io_uring_is_forbidden_epoll_serves() {
    if skip("r9 forbidden") {
        return;
    }
    let lab = Lab::new();
    let _limit = Settings::change(&[("kernel/io_uring_disabled", "1")]);
    let weir = Weir::prepare()
        .pools()
        .args(["--engine", "auto"])
        .unprivileged(USER)
        .launch(&lab.lb);
    assert_eq!(weir.engine(), "epoll", "{}", weir.log());
    let ways = Ways::open(&lab, &weir);
    let plans = every_order(1, &Close::ALL, &[0, 1, 65_537, 300_000], Writes::Large);
    play(&lab.client, &ways.all(), plans, 6);
    nothing_lives(&weir);
    drop(weir);
    let mut insists = Weir::prepare()
        .pools()
        .args(["--engine", "io_uring"])
        .unprivileged(USER)
        .spawn(&lab.lb);
    let status = insists.wait_exit(Duration::from_secs(10));
    assert!(!status.success());
    let log = insists.log();
    assert!(log.contains("io_uring") && log.contains("epoll"), "{log}");
}

/// What a relay does wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    ChangesAByte,
    LosesTheTail,
    RepeatsAChunk,
    EndsResetsByFin,
    HoldsBackTheFin,
}

/// One direction of a wrong relay.
fn relay(mut from: TcpStream, mut to: TcpStream, fault: Fault) {
    let mut buffer = vec![0; 16_384];
    let mut total = 0;
    let mut held: Option<Vec<u8>> = None;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if matches!(fault, Fault::ChangesAByte) && (total..total + n).contains(&50_000) {
                    buffer[50_000 - total] ^= 1;
                }
                total += n;
                let chunk = buffer[..n].to_vec();
                if matches!(fault, Fault::LosesTheTail) {
                    // Always a chunk behind.
                    let Some(chunk) = held.replace(chunk) else {
                        continue;
                    };
                    let _ = to.write_all(&chunk);
                    continue;
                }
                let times = if matches!(fault, Fault::RepeatsAChunk) && total > 50_000 {
                    2
                } else {
                    1
                };
                (0..times).for_each(|_| drop(to.write_all(&chunk)));
            }
            Err(_) if matches!(fault, Fault::EndsResetsByFin) => break,
            Err(_) => {
                traffic::reset(to.try_clone().unwrap());
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    }
    if let Some(mut tail) = held {
        tail.pop();
        let _ = to.write_all(&tail);
    }
    if !matches!(fault, Fault::HoldsBackTheFin) {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        std::thread::sleep(Duration::from_secs(6));
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Whatever a proxy can do wrong here, the streams of this file notice.
#[test]
fn the_streams_notice_every_kind_of_fault() {
    if skip("streams notice") {
        return;
    }
    let lab = Lab::new();
    let peer = Peer::serve(&lab.server, pod(false, 0), 9_000);
    let faults = [
        Fault::None,
        Fault::ChangesAByte,
        Fault::LosesTheTail,
        Fault::RepeatsAChunk,
        Fault::EndsResetsByFin,
        Fault::HoldsBackTheFin,
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        let address: SocketAddr = format!("10.1.0.1:{}", 9_100 + n).parse().unwrap();
        let listener = lab.lb.run(move || TcpListener::bind(address).unwrap());
        let upstream = peer.pod.address;
        lab.lb.spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let server = TcpStream::connect(upstream).unwrap();
                let (a, b) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || relay(a, b, fault));
                std::thread::spawn(move || relay(server, client, fault));
            }
        });
        let close = match fault {
            Fault::EndsResetsByFin => Close::ResetByServer,
            _ => Close::ClientFirst,
        };
        let plan = Plan {
            id: n as u64 + 1,
            up: 200_000,
            down: 300_000,
            close,
            writes: Writes::Large,
        };
        let (vips, patience) = ([(address, &peer)], Duration::from_secs(4));
        let played = catch_unwind(AssertUnwindSafe(|| {
            play_within(&lab.client, &vips, vec![plan], 1, patience);
        }));
        assert_eq!(played.is_ok(), matches!(fault, Fault::None), "{fault:?}");
    }
}
