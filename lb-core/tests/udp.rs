//! UDP through a running plane of two workers: what only threads, real time and the listeners can
//! show.
// One option of a test's own socket has no safe name: see `send_in_segments`.
#![allow(unsafe_code)]

mod common;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lb_core::balance::{Algorithm, HashKey};
use lb_core::plane::{Config, Handle, Limits, Plane};
use lb_core::stats::{CloseReason, DropReason};
use lb_core::table::{
    Backend, BackendState, FrontendKey, FrontendSpec, Owner, Policy, Protocol, SourceRanges,
    TableBuilder,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Echoes, but for what begins with `silent`; ends when dropped.
struct Echo {
    address: SocketAddr,
    got: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(address: &str) -> Echo {
        let socket = UdpSocket::bind(address).expect("bind a backend");
        let address = socket.local_addr().expect("bound");
        let (got, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (Arc::clone(&got), Arc::clone(&stop));
        let wait = Some(Duration::from_millis(20));
        socket.set_read_timeout(wait).expect("timeout");
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !end.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    count.fetch_add(1, Ordering::Relaxed);
                    if !buffer[..len].starts_with(b"silent") {
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                }
            }
        });
        Echo {
            address,
            got,
            stop,
            thread: Some(thread),
        }
    }

    fn got(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the backend ends well");
        }
    }
}

fn spec(vip: SocketAddr, backends: &[SocketAddr]) -> FrontendSpec {
    let backends = backends.iter().map(|&address| Backend {
        address,
        weight: 1,
        state: BackendState::Active,
    });
    FrontendSpec {
        key: FrontendKey {
            address: vip.ip(),
            port: NonZeroU16::new(vip.port()).expect("a port"),
            protocol: Protocol::Udp,
        },
        owner: Owner {
            group: "test".into(),
            name: "udp".into(),
            port: "echo".into(),
        },
        precedence: 0,
        algorithm: Algorithm::Consistent,
        backends: backends.collect(),
        policy: Policy {
            sources: SourceRanges::any(),
            affinity: None,
            connect_timeout: Duration::from_millis(250),
            connect_budget: Duration::from_secs(2),
            idle_timeout: Duration::ZERO,
            half_close_timeout: Duration::from_secs(60),
            flow_one_way_timeout: Duration::from_secs(30),
            flow_two_way_timeout: Duration::from_secs(120),
        },
    }
}

struct Rig {
    plane: Option<Plane>,
    handle: Handle,
    builder: TableBuilder,
}

impl Rig {
    fn start(limits: Limits, specs: &[FrontendSpec]) -> Rig {
        let mut builder = TableBuilder::new(HashKey([5; 16]));
        for spec in specs {
            builder.set(spec.clone()).expect("valid");
        }
        let config = Config {
            workers: 2,
            pin: false,
            limits,
            engine: common::engine(),
        };
        let table = builder.freeze();
        let generation = table.generation;
        let plane = Plane::start(config, table).expect("starts");
        let handle = plane.handle();
        assert!(handle.wait(generation, DEADLINE));
        Rig {
            plane: Some(plane),
            handle,
            builder,
        }
    }

    /// Publishes, and waits until every worker runs it.
    fn publish(&mut self, spec: &FrontendSpec) {
        self.builder.set(spec.clone()).expect("valid");
        let table = self.builder.freeze();
        let generation = table.generation;
        self.handle.publish(table);
        assert!(self.handle.wait(generation, DEADLINE));
    }

    fn flows(&self) -> u64 {
        self.handle.active().1
    }

    fn descriptors(&self) -> u64 {
        let stats = self.handle.stats();
        stats.workers.iter().map(|w| w.descriptors).sum()
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        let stats = self.handle.stats();
        stats.frontends.values().map(|f| f.closed(reason)).sum()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let stats = self.handle.stats();
        stats.frontends.values().map(|f| f.dropped(reason)).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(plane) = self.plane.take() {
            plane.stop();
        }
    }
}

fn free_port(address: &str) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).expect("bind");
    socket.local_addr().expect("bound")
}

/// A client that hears from `vip` alone, and of its port being closed.
fn client(address: &str, vip: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("bind a client");
    socket.connect(vip).expect("connect");
    socket.set_read_timeout(Some(DEADLINE)).expect("timeout");
    socket
}

fn exchange(client: &UdpSocket, payload: &[u8]) -> io::Result<()> {
    client.send(payload)?;
    let mut buffer = vec![0; 65_536];
    let len = client.recv(&mut buffer)?;
    assert!(buffer[..len] == *payload, "another reply");
    Ok(())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn two_workers_serve_many_clients_and_every_size() {
    let echoes = [Echo::start("127.0.0.1:0"), Echo::start("127.0.0.1:0")];
    let vip = free_port("127.0.0.1");
    let pool = [echoes[0].address, echoes[1].address];
    let rig = Rig::start(Limits::default(), &[spec(vip, &pool)]);
    let clients: Vec<_> = (0..100).map(|_| client("127.0.0.1", vip)).collect();
    for (n, client) in clients.iter().enumerate() {
        for size in [0, 1, 1472, 1473, 9000, 65_507] {
            exchange(client, &vec![n as u8; size]).expect("answered");
        }
    }
    assert_eq!(rig.flows(), 100);
    assert_eq!(rig.descriptors(), 100);
    let stats = rig.handle.stats();
    assert!(stats.workers.iter().all(|w| w.flows_active > 10));
    assert!(echoes.iter().all(|e| e.got() > 100));
}

#[test]
fn without_a_backend_the_port_is_closed_and_opens_again() {
    let echo = Echo::start("127.0.0.1:0");
    let vip = free_port("127.0.0.1");
    let full = spec(vip, &[echo.address]);
    let empty = spec(vip, &[]);
    let mut rig = Rig::start(Limits::default(), std::slice::from_ref(&full));
    let client = client("127.0.0.1", vip);
    exchange(&client, b"one").expect("answered");
    rig.publish(&empty);
    until("no flow left", || rig.flows() == 0);
    let refused = exchange(&client, b"two").expect_err("a closed port");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(rig.descriptors(), 0);
    rig.publish(&full);
    exchange(&client, b"three").expect("answered");
    assert_eq!(echo.got(), 2);
}

#[test]
fn once_its_removal_runs_a_backend_under_steady_traffic_gets_nothing_more() {
    let old = Echo::start("127.0.0.1:0");
    let new = Echo::start("127.0.0.1:0");
    let vip = free_port("127.0.0.1");
    let both = spec(vip, &[old.address, new.address]);
    let mut rig = Rig::start(Limits::default(), &[both]);
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..16)
        .map(|n| {
            let (stop, client) = (Arc::clone(&stop), client("127.0.0.1", vip));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // One-way for half of them: nothing but the table can move these flows.
                    let payload: &[u8] = if n % 2 == 0 { b"silent" } else { b"echo" };
                    client.send(payload).expect("send");
                    thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    until("traffic to both", || old.got() > 200 && new.got() > 200);
    rig.publish(&spec(vip, &[new.address]));
    // What was sent before lies in the backend's own queue; let it read that.
    let mut last = u64::MAX;
    until("its queue is read", || {
        let before = std::mem::replace(&mut last, old.got());
        thread::sleep(Duration::from_millis(50));
        before == last
    });
    let (old_got, new_got) = (old.got(), new.got());
    until("traffic goes on", || new.got() > new_got + 1_000);
    assert_eq!(old.got(), old_got);
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("no send failed");
    }
    assert_eq!(rig.flows(), 16);
    assert_eq!(rig.descriptors(), 16);
}

#[test]
fn timers_end_flows_on_time_and_nothing_stays_open() {
    let echo = Echo::start("127.0.0.1:0");
    let vip = free_port("127.0.0.1");
    let mut short = spec(vip, &[echo.address]);
    short.policy.flow_one_way_timeout = Duration::from_millis(300);
    short.policy.flow_two_way_timeout = Duration::from_secs(4);
    let rig = Rig::start(Limits::default(), &[short]);
    let clients: Vec<_> = (0..20).map(|_| client("127.0.0.1", vip)).collect();
    for client in &clients[..10] {
        client.send(b"silent").expect("send");
    }
    let mut last = Instant::now();
    for client in &clients[10..] {
        last = Instant::now();
        exchange(client, b"echo").expect("answered");
    }
    until("one-way flows over", || {
        rig.closed(CloseReason::OneWayTimeout) == 10
    });
    assert_eq!(rig.closed(CloseReason::TwoWayTimeout), 0);
    until("two-way flows over", || rig.flows() == 0);
    let took = last.elapsed();
    assert!(took >= Duration::from_secs(4), "early: {took:?}");
    assert_eq!(rig.closed(CloseReason::TwoWayTimeout), 10);
    assert_eq!(rig.descriptors(), 0);
}

#[test]
fn a_flood_leaves_known_flows_alone_and_a_new_one_gets_in() {
    let echoes = [Echo::start("127.0.0.1:0"), Echo::start("127.0.0.1:0")];
    let vip = free_port("127.0.0.1");
    let pool = [echoes[0].address, echoes[1].address];
    let limits = Limits {
        flows: 1_000,
        ..Limits::default()
    };
    let rig = Rig::start(limits, &[spec(vip, &pool)]);
    let known: Vec<_> = (0..20).map(|_| client("127.0.0.1", vip)).collect();
    for client in &known {
        exchange(client, b"known").expect("answered");
    }
    for n in 0..50_000u32 {
        let [_, b, c, d] = (n + 0x10_0001).to_be_bytes();
        let source = UdpSocket::bind(SocketAddr::from(([127, b, c, d], 0))).expect("bind");
        source.send_to(b"silent", vip).expect("send");
    }
    let ended = Instant::now();
    let newcomer = client("127.0.0.1", vip);
    let wait = Some(Duration::from_millis(50));
    newcomer.set_read_timeout(wait).expect("timeout");
    until("a new flow", || exchange(&newcomer, b"new").is_ok());
    assert!(ended.elapsed() < Duration::from_secs(10));
    for client in &known {
        exchange(client, b"known").expect("answered");
    }
    // Each known flow is the very one that was opened before the flood.
    assert_eq!(rig.closed(CloseReason::TwoWayTimeout), 0);
    assert!(rig.flows() <= 2_000);
    assert!(rig.closed(CloseReason::Shed) + rig.dropped(DropReason::FlowLimit) > 1_000);
}

#[test]
fn a_drain_ends_soon_after_the_last_datagram() {
    let echo = Echo::start("127.0.0.1:0");
    let vip = free_port("127.0.0.1");
    let rig = Rig::start(Limits::default(), &[spec(vip, &[echo.address])]);
    let known = client("127.0.0.1", vip);
    exchange(&known, b"one").expect("answered");
    rig.handle.drain(Duration::from_secs(60));
    // TCP listeners close after a quarter of a second; those of UDP must not.
    thread::sleep(Duration::from_millis(400));
    exchange(&known, b"two").expect("a known flow goes on");
    until("drained", || rig.handle.is_drained());
    assert_eq!(rig.flows(), 0);
    assert_eq!(rig.descriptors(), 0);
}

#[test]
fn a_drain_ends_at_its_deadline_however_much_comes() {
    let echo = Echo::start("127.0.0.1:0");
    let vip = free_port("127.0.0.1");
    let rig = Rig::start(Limits::default(), &[spec(vip, &[echo.address])]);
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (stop, client) = (Arc::clone(&stop), client("127.0.0.1", vip));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Refused once the port is closed.
                    let _ = client.send(b"silent");
                }
            })
        })
        .collect();
    until("flows", || rig.flows() == 4);
    let asked = Instant::now();
    rig.handle.drain(Duration::from_secs(1));
    until("drained", || rig.handle.is_drained());
    assert!(asked.elapsed() >= Duration::from_millis(900));
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.join().expect("ends");
    }
    assert_eq!(rig.descriptors(), 0);
}

/// Sends of `socket` are split by the kernel into datagrams of `segment` bytes; 0: none is.
fn send_in_segments(socket: &UdpSocket, segment: libc::c_int) {
    // SAFETY: the option's value is an int that outlives the call, of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const segment).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "UDP_SEGMENT, of Linux 4.18");
}

/// What a sender with segmentation offload gives, in either direction: (bytes, segment) of each
/// send; 0 for a plain one.
const SENDS: [(usize, usize); 8] = [
    (12_000, 1_200),
    (5_037, 1_200),
    (0, 0),
    (1_200, 0),
    (64, 1),
    (1_200, 0),
    (60_001, 1_000),
    (9_000, 4_500),
];

/// The datagrams of all [`SENDS`], each other than its neighbours.
fn datagrams() -> Vec<Vec<u8>> {
    let mut found = vec![];
    for (n, &(bytes, segment)) in SENDS.iter().enumerate() {
        let data = content(n, bytes);
        match segment {
            0 => found.push(data),
            _ => found.extend(data.chunks(segment).map(<[u8]>::to_vec)),
        }
    }
    found
}

fn content(n: usize, bytes: usize) -> Vec<u8> {
    let byte = |at: usize| (at / 3 + at * 7 + n * 13) as u8;
    (0..bytes).map(byte).collect()
}

fn send_all(socket: &UdpSocket, to: SocketAddr) {
    for (n, &(bytes, segment)) in SENDS.iter().enumerate() {
        send_in_segments(socket, segment as libc::c_int);
        let sent = socket.send_to(&content(n, bytes), to).expect("send");
        assert_eq!(sent, bytes);
    }
    send_in_segments(socket, 0);
}

fn receive_all(socket: &UdpSocket, what: &str) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    let mut last = None;
    for (n, expected) in datagrams().iter().enumerate() {
        let got = socket.recv_from(&mut buffer);
        let (len, from) = got.unwrap_or_else(|e| panic!("{what}: datagram {n}: {e}"));
        assert_eq!(len, expected.len(), "{what}: size of datagram {n}");
        assert!(buffer[..len] == *expected, "{what}: bytes of datagram {n}");
        last = Some(from);
    }
    last.expect("some came")
}

#[test]
fn u3_what_a_sender_has_joined_keeps_its_boundaries_both_ways() {
    for (vip, backend) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("127.0.0.1", "::1"),
        ("::1", "127.0.0.1"),
    ] {
        let what = format!("{vip} to {backend}");
        let server = UdpSocket::bind((backend, 0)).expect("bind");
        let large = |socket: &UdpSocket| {
            let socket = socket2::SockRef::from(socket);
            socket.set_recv_buffer_size(1 << 20).expect("a buffer");
            let wait = Some(DEADLINE);
            socket.set_read_timeout(wait).expect("timeout");
        };
        large(&server);
        let vip = free_port(vip);
        let address = server.local_addr().expect("bound");
        let rig = Rig::start(Limits::default(), &[spec(vip, &[address])]);
        let client = UdpSocket::bind((vip.ip(), 0)).expect("bind");
        large(&client);
        // Twice: a flow knows its backend, and its own pace, only after the first.
        for _ in 0..2 {
            send_all(&client, vip);
            let flow = receive_all(&server, &format!("{what}, out"));
            send_all(&server, flow);
            let from = receive_all(&client, &format!("{what}, back"));
            assert_eq!(from, vip);
        }
        let stats = rig.handle.stats();
        let totals = stats.frontends.values().next().expect("the frontend");
        let count = 2 * datagrams().len() as u64;
        assert_eq!(totals.datagrams_downstream, count);
        assert_eq!(totals.datagrams_upstream, count);
        assert_eq!(
            DropReason::ALL
                .iter()
                .map(|r| totals.dropped(*r))
                .sum::<u64>(),
            0
        );
        assert_eq!(rig.flows(), 1);
    }
}
