//! A worker of one frontend that has this driver alone, backends and clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::balance::{Algorithm, HashKey};
use crate::plane::Limits;
use crate::slab::Key;
use crate::stats::{CloseReason, ConnectError, FrontendCounters, WorkerCounters};
use crate::sys::clock;
use crate::sys::epoll::{Events, Interest, Poller};
use crate::sys::eventfd::Wake;
use crate::sys::socket::listen_tcp;
use crate::table::{
    Backend, BackendState, Frontend, FrontendKey, FrontendSpec, Owner, Policy, Protocol,
    SourceRanges, TableBuilder,
};
use crate::worker::cx::Cx;
use crate::worker::descriptors::Descriptors;
use crate::worker::local::Local;
use crate::worker::tcp::Tcp;
use crate::worker::token::{Kind, Token};

/// Nothing here may take longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

pub(super) fn policy() -> Policy {
    Policy {
        sources: SourceRanges::any(),
        affinity: None,
        connect_timeout: Duration::from_millis(250),
        connect_budget: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(600),
        half_close_timeout: Duration::from_secs(60),
        flow_one_way_timeout: Duration::from_secs(30),
        flow_two_way_timeout: Duration::from_secs(120),
    }
}

/// The worker, on its thread.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    pub(super) counters: Arc<FrontendCounters>,
    pub(super) worker: Arc<WorkerCounters>,
    /// The most bytes that one call of the driver received.
    most: Arc<AtomicU64>,
    wake: Arc<Wake>,
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) fn start(at: IpAddr, backends: &[SocketAddr], policy: Policy) -> Proxy {
        Proxy::within(4_096, at, backends, policy)
    }

    /// As [`Proxy::start`], with so many descriptors for traffic.
    pub(super) fn within(
        descriptors: u64,
        at: IpAddr,
        backends: &[SocketAddr],
        policy: Policy,
    ) -> Proxy {
        let wake = Arc::new(Wake::new().expect("eventfd"));
        let (cut, stop) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (tell, told) = mpsc::channel();
        let backends = backends.to_vec();
        let most = Arc::new(AtomicU64::new(0));
        let at_most = Arc::clone(&most);
        let flags = (Arc::clone(&wake), Arc::clone(&cut), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let listener = listen_tcp(SocketAddr::new(at, 0), PATIENCE).expect("a listener");
            let address = local_address(&listener);
            let frontend = frontend(address, &backends, policy);
            let mut worker = Worker::new(&frontend, at_most, descriptors);
            let counters = (
                Arc::clone(&worker.local.counters),
                Arc::clone(&worker.cx.counters),
            );
            tell.send((address, counters)).expect("the test waits");
            let (wake, cut, stop) = flags;
            worker.run(&listener, &wake, &cut, &stop);
        });
        let (address, (counters, worker)) = told.recv_timeout(PATIENCE).expect("it starts");
        Proxy {
            address,
            counters,
            worker,
            most,
            wake,
            cut,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the proxy listens");
        patient(stream)
    }

    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.wake.ring();
    }

    pub(super) fn most_at_once(&self) -> u64 {
        self.most.load(Ordering::SeqCst)
    }

    /// The pipes that exist now, spare ones too.
    pub(super) fn pipes(&self) -> u64 {
        self.worker.pipe_descriptors.value() / 2
    }

    pub(super) fn closed(&self, reason: CloseReason) -> u64 {
        self.counters.closed(reason).value()
    }

    /// The failed tries to connect: each reason that there was, and how often.
    pub(super) fn connect_errors(&self) -> Vec<(ConnectError, u64)> {
        let all = ConnectError::ALL.iter();
        all.map(|reason| (*reason, self.counters.connect_failed(*reason).value()))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// Waits until every connection has ended, and checks that each was counted and left nothing.
    #[track_caller]
    pub(super) fn settle(&self) {
        let sum = || self.counters.closed.iter().map(|c| c.value()).sum::<u64>();
        until("every connection ends", || {
            self.counters.connections_active.value() == 0
                && self.worker.connections_active.value() == 0
                && sum() == self.counters.connections_opened.value()
        });
        assert_eq!(self.worker.descriptors.value(), 0);
        assert!(self.pipes() <= 16, "only spare pipes outlive connections");
    }

    /// As [`Proxy::settle`], for connections that all ended for one reason.
    #[track_caller]
    pub(super) fn settle_as(&self, reason: CloseReason, times: u64) {
        self.settle();
        let ended: Vec<_> = CloseReason::ALL
            .iter()
            .map(|r| (r.label(), self.closed(*r)))
            .filter(|(_, n)| *n > 0)
            .collect();
        assert_eq!(ended, [(reason.label(), times)]);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the worker panicked");
        }
        if !std::thread::panicking() {
            assert_eq!(self.pipes(), 0, "pipes left over");
        }
    }
}

fn local_address(listener: &impl AsFd) -> SocketAddr {
    SockRef::from(listener)
        .local_addr()
        .ok()
        .and_then(|a| a.as_socket())
        .expect("a bound socket")
}

fn frontend(address: SocketAddr, backends: &[SocketAddr], policy: Policy) -> Arc<Frontend> {
    let label = || Arc::from("test");
    let key = FrontendKey {
        address: address.ip(),
        port: NonZeroU16::new(address.port()).expect("bound"),
        protocol: Protocol::Tcp,
    };
    let backend = |&address: &SocketAddr| Backend {
        address,
        weight: 1,
        state: BackendState::Active,
    };
    let mut builder = TableBuilder::new(HashKey([7; 16]));
    let spec = FrontendSpec {
        key,
        owner: Owner {
            group: label(),
            name: label(),
            port: label(),
        },
        precedence: 0,
        algorithm: Algorithm::RoundRobin,
        backends: backends.iter().map(backend).collect(),
        policy,
    };
    builder.set(spec).expect("a valid frontend");
    let table = builder.freeze();
    let (_, frontend) = table.iter().next().expect("the one");
    Arc::clone(frontend)
}

struct Worker {
    cx: Cx,
    tcp: Tcp,
    local: Rc<Local>,
    most: Arc<AtomicU64>,
}

impl Worker {
    fn new(frontend: &Arc<Frontend>, most: Arc<AtomicU64>, allowance: u64) -> Worker {
        let counters = Arc::new(WorkerCounters::default());
        let all: Arc<[Arc<WorkerCounters>]> = Arc::new([Arc::clone(&counters)]);
        let mut descriptors = Descriptors::new(all, 0).expect("a descriptor");
        descriptors.allow(allowance);
        let limits = Limits::default();
        let tcp = Tcp::new();
        let cx = Cx::new(
            clock::now(),
            Poller::new().expect("epoll"),
            descriptors,
            counters,
            HashKey([7; 16]),
            Rc::new(limits),
            1,
        );
        let slot = crate::table::Slot(0);
        Worker {
            cx,
            tcp,
            local: Rc::new(Local::new(slot, frontend)),
            most,
        }
    }

    fn run(&mut self, listener: &impl AsFd, wake: &Wake, cut: &AtomicBool, stop: &AtomicBool) {
        let listening = Token::new(Kind::Listener, Key::from_parts(0, 0));
        let (cx, tcp) = (&mut self.cx, &mut self.tcp);
        cx.watch(listener.as_fd(), listening, Interest::READ)
            .expect("epoll");
        cx.watch(wake.as_fd(), Token::single(Kind::Wake), Interest::READ)
            .expect("epoll");
        let mut events = Events::with_capacity(64);
        while !stop.load(Ordering::SeqCst) {
            let timer = cx
                .timers
                .next()
                .map_or(PATIENCE, |at| at.since(clock::now()));
            let wait = if tcp.has_work() {
                Duration::ZERO
            } else {
                timer
            };
            cx.poller().wait(&mut events, wait).expect("epoll");
            cx.now = clock::now();
            cx.descriptors.begin_turn();
            for index in 0..events.len() {
                let (bits, ready) = events.at(index).expect("in range");
                let token = Token::from_bits(bits);
                let before = received(&self.local);
                match token.kind() {
                    Some(Kind::Listener) => tcp.on_listener(cx, &self.local, listener.as_fd()),
                    Some(Kind::Downstream | Kind::Upstream) => tcp.on_event(cx, token, ready),
                    _ => _ = wake.drain(),
                }
                self.most
                    .fetch_max(received(&self.local) - before, Ordering::SeqCst);
            }
            tcp.end_turn(cx);
            while let Some(token) = cx.timers.pop(cx.now) {
                tcp.on_timer(cx, token);
            }
            if cut.swap(false, Ordering::SeqCst) {
                tcp.cut(cx);
                assert!(tcp.is_idle());
                assert!(cx.timers.is_empty(), "timers left over");
            }
        }
        assert!(!tcp.is_idle() || cx.timers.is_empty(), "timers left over");
    }
}

fn received(local: &Local) -> u64 {
    local.counters.bytes_downstream.value() + local.counters.bytes_upstream.value()
}

/// A server that runs `serve` on a thread of its own for each connection.
pub(super) fn backend(at: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((at, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(patient(stream)));
        }
    });
    address
}

/// A server that hands its one connection to the test.
pub(super) fn one_backend(at: IpAddr) -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (give, take) = mpsc::channel();
    let give = std::sync::Mutex::new(give);
    let address = backend(at, move |stream| {
        let _ = give.lock().expect("no panic").send(stream);
    });
    (address, take)
}

/// A client and the server's end of its connection through a proxy.
pub(super) fn pair(policy: Policy) -> (Proxy, TcpStream, TcpStream) {
    pair_within(4_096, policy)
}

/// As [`pair`], with so many descriptors for the proxy's traffic.
pub(super) fn pair_within(descriptors: u64, policy: Policy) -> (Proxy, TcpStream, TcpStream) {
    let (address, streams) = one_backend(V4);
    let proxy = Proxy::within(descriptors, V4, &[address], policy);
    let client = proxy.connect();
    let server = streams.recv_timeout(PATIENCE).expect("it is dialled");
    (proxy, client, server)
}

/// Sends back what comes, and a FIN after the FIN.
pub(super) fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 50_000];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A port where nobody listens; bound, so that nobody else comes to.
pub(super) fn refusing(at: IpAddr) -> (SocketAddr, socket2::Socket) {
    let any = SocketAddr::new(at, 0);
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(any),
        socket2::Type::STREAM,
        None,
    )
    .expect("a socket");
    socket.bind(&any.into()).expect("a port");
    (local_address(&socket), socket)
}

pub(super) fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    stream.set_write_timeout(Some(PATIENCE)).expect("an option");
    stream
}

/// Closes with RST.
pub(super) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("an option");
}

/// Waits until the peer's kernel has all that was written.
pub(super) fn flushed(stream: &TcpStream) {
    until("all is acknowledged", || {
        crate::sys::stream::unacknowledged(stream.as_fd()) == Ok(0)
    });
}

#[track_caller]
pub(super) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `len` bytes that do not repeat with any block size (SplitMix64 of `seed`).
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.extend((z ^ (z >> 27)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Reads to the FIN; panics on a reset.
#[track_caller]
pub(super) fn read_to_fin(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a FIN, no reset");
    bytes
}

/// Reads to a reset; panics on a FIN.
#[track_caller]
pub(super) fn read_to_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).expect_err("a reset, no FIN");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    bytes
}

/// Waits for a reset on a stream whose FIN was read.
#[track_caller]
pub(super) fn reset_follows(stream: &TcpStream) {
    until("a reset", || {
        matches!(stream.take_error(), Ok(Some(e))
            if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
    });
}

#[track_caller]
pub(super) fn same(got: &[u8], want: &[u8]) {
    assert_eq!(got.len(), want.len(), "length");
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    assert_eq!(at, None, "first byte that differs");
}

/// An address whose SYNs are dropped: a listener with a full queue, kept full by what is returned.
pub(super) fn black_hole() -> (Vec<socket2::Socket>, SocketAddr) {
    let (address, listener) = refusing(V4);
    listener.listen(0).expect("a bound socket");
    let mut held = vec![listener];
    for _ in 0..4 {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        let _ = socket.connect(&address.into());
        held.push(socket);
    }
    (held, address)
}
