//! A worker's turn without the worker: the driver over real sockets, in the test's own thread,
//! with a clock that can jump. Backends are pumped between turns.

use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Udp;
use crate::balance::{Algorithm, HashKey};
use crate::plane::Limits;
use crate::slab::Key;
use crate::stats::{CloseReason, DropReason, WorkerCounters};
use crate::sys::epoll::{Events, Interest, Poller};
use crate::sys::socket;
use crate::table::{
    Backend, BackendState, FrontendKey, FrontendSpec, Owner, Policy, Protocol, Slot, SourceRanges,
    TableBuilder,
};
use crate::time::Time;
use crate::worker::cx::Cx;
use crate::worker::descriptors::Descriptors;
use crate::worker::local::Local;
use crate::worker::token::{Kind, Token};

/// Nothing that a test waits for takes this long.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// A backend that remembers what it got, and echoes what does not begin with `silent`.
pub(super) struct Echo {
    socket: UdpSocket,
    pub(super) got: Vec<(SocketAddr, Vec<u8>)>,
}

impl Echo {
    pub(super) fn at(address: &str) -> Echo {
        let socket = UdpSocket::bind(address).expect("bind a backend");
        socket.set_nonblocking(true).expect("nonblocking");
        Echo {
            socket,
            got: vec![],
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    pub(super) fn payloads(&self) -> Vec<&[u8]> {
        self.got.iter().map(|(_, p)| &p[..]).collect()
    }

    fn pump(&mut self) {
        let mut buffer = vec![0; 65_536];
        // An error is an ICMP message about one of our own replies.
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            let payload = buffer[..len].to_vec();
            if !payload.starts_with(b"silent") {
                self.socket.send_to(&payload, from).expect("echo");
            }
            self.got.push((from, payload));
        }
    }
}

struct Front {
    spec: FrontendSpec,
    builder: TableBuilder,
    local: Rc<Local>,
    listener: Rc<OwnedFd>,
}

pub(super) struct Rig {
    pub(super) cx: Cx,
    pub(super) udp: Udp,
    pub(super) backends: Vec<Echo>,
    fronts: Vec<Front>,
    events: Events,
    /// `None`: only jumps move the clock.
    start: Option<Instant>,
    jumped: Duration,
}

impl Rig {
    pub(super) fn new(limits: Limits) -> Rig {
        let counters: Arc<WorkerCounters> = Arc::default();
        let workers: Arc<[_]> = Arc::new([Arc::clone(&counters)]);
        let mut descriptors = Descriptors::new(workers, 0).expect("reserve");
        descriptors.allow(10_000);
        let limits = Rc::new(limits);
        let cx = Cx::new(
            Time::ZERO,
            Poller::new().expect("epoll"),
            descriptors,
            counters,
            HashKey([1; 16]),
            Rc::clone(&limits),
            7,
        );
        Rig {
            udp: Udp::new(&limits, &cx.pin_key),
            cx,
            backends: vec![],
            fronts: vec![],
            events: Events::with_capacity(64),
            start: Some(Instant::now()),
            jumped: Duration::ZERO,
        }
    }

    /// Starts a backend.
    pub(super) fn echo(&mut self, address: &str) -> SocketAddr {
        self.backends.push(Echo::at(address));
        self.backends[self.backends.len() - 1].address()
    }

    /// The running backend at `address`.
    pub(super) fn backend(&self, address: SocketAddr) -> &Echo {
        let found = self.backends.iter().find(|b| b.address() == address);
        found.expect("runs")
    }

    /// Ends the backend at `address`: its port is closed. Returns how many datagrams it got.
    pub(super) fn kill(&mut self, address: SocketAddr) -> usize {
        let at = self.backends.iter().position(|b| b.address() == address);
        self.backends.remove(at.expect("runs")).got.len()
    }

    /// Opens a frontend on a free port of `vip`.
    pub(super) fn frontend(&mut self, vip: &str, pool: &[SocketAddr]) -> SocketAddr {
        let any = SocketAddr::new(vip.parse().expect("an address"), 0);
        let listener = Rc::new(socket::listen_udp(any).expect("listen"));
        let copy = UdpSocket::from(listener.try_clone().expect("clone"));
        let bound = copy.local_addr().expect("bound");
        let spec = FrontendSpec {
            key: FrontendKey {
                address: bound.ip(),
                port: NonZeroU16::new(bound.port()).expect("bound"),
                protocol: Protocol::Udp,
            },
            owner: Owner {
                group: "test".into(),
                name: vip.into(),
                port: "udp".into(),
            },
            precedence: 0,
            algorithm: Algorithm::Consistent,
            backends: pool.iter().copied().map(active).collect(),
            policy: policy(),
        };
        let mut builder = TableBuilder::new(self.cx.hash_key);
        builder.set(spec.clone()).expect("valid");
        let frontend = builder.frontend(&spec.key).expect("set");
        let local = Rc::new(Local::new(Slot(self.fronts.len() as u32), frontend));
        local.set_listener(Some(Rc::clone(&listener)));
        let token = Token::new(Kind::Listener, Key::from_parts(self.fronts.len() as u32, 0));
        self.cx
            .watch(listener.as_fd(), token, Interest::READ)
            .expect("watch");
        self.fronts.push(Front {
            spec,
            builder,
            local,
            listener,
        });
        bound
    }

    fn front(&mut self, vip: SocketAddr) -> &mut Front {
        self.fronts
            .iter_mut()
            .find(|f| f.spec.key.address == vip.ip() && f.spec.key.port.get() == vip.port())
            .expect("opened")
    }

    /// Publishes a change of one frontend.
    pub(super) fn change(&mut self, vip: SocketAddr, change: impl FnOnce(&mut FrontendSpec)) {
        let front = self.front(vip);
        change(&mut front.spec);
        front.builder.set(front.spec.clone()).expect("valid");
        let frontend = front.builder.frontend(&front.spec.key).expect("set");
        front.local.update(frontend);
    }

    /// As the worker does when a frontend has no usable backend.
    pub(super) fn close(&mut self, vip: SocketAddr) {
        let front = self.front(vip);
        front.local.set_listener(None);
        let (local, listener) = (Rc::clone(&front.local), Rc::clone(&front.listener));
        self.cx.unwatch(listener.as_fd());
        self.udp.on_frontend_closed(&mut self.cx, &local);
    }

    /// As the worker does when the frontend has a usable backend again.
    pub(super) fn open(&mut self, vip: SocketAddr) {
        let front = self.front(vip);
        front.local.set_listener(Some(Rc::clone(&front.listener)));
    }

    pub(super) fn dropped(&mut self, vip: SocketAddr, reason: DropReason) -> u64 {
        self.front(vip).local.counters.dropped(reason).value()
    }

    pub(super) fn closed(&mut self, vip: SocketAddr, reason: CloseReason) -> u64 {
        self.front(vip).local.counters.closed(reason).value()
    }

    pub(super) fn local(&mut self, vip: SocketAddr) -> Rc<Local> {
        Rc::clone(&self.front(vip).local)
    }

    /// From now on time passes by jumps alone; it stands at a whole millisecond.
    pub(super) fn stop_clock(&mut self) {
        let now = self.jumped + self.start.take().map_or(Duration::ZERO, |s| s.elapsed());
        self.jumped = Duration::from_millis(now.as_millis() as u64 + 1);
    }

    /// Lets time pass at once.
    pub(super) fn jump(&mut self, by: Duration) {
        self.jumped += by;
    }

    /// Hands over what waits at `vip` before anything else happens.
    pub(super) fn read(&mut self, vip: SocketAddr) {
        let front = self.front(vip);
        let (local, listener) = (Rc::clone(&front.local), Rc::clone(&front.listener));
        self.udp.on_listener(&mut self.cx, &local, listener.as_fd());
    }

    /// One turn, then the backends. Returns how many events there were.
    pub(super) fn turn(&mut self) -> usize {
        self.cx
            .poller()
            .wait(&mut self.events, Duration::from_millis(1))
            .expect("epoll");
        let now = self.jumped + self.start.map_or(Duration::ZERO, |s| s.elapsed());
        self.cx.now = Time::ZERO + now;
        self.cx.descriptors.begin_turn();
        for n in 0..self.events.len() {
            let (bits, readiness) = self.events.at(n).expect("in range");
            let token = Token::from_bits(bits);
            match token.kind() {
                Some(Kind::Listener) => {
                    let front = &self.fronts[token.key().index() as usize];
                    let (local, fd) = (Rc::clone(&front.local), Rc::clone(&front.listener));
                    self.udp.on_listener(&mut self.cx, &local, fd.as_fd());
                }
                Some(Kind::Flow) => self.udp.on_event(&mut self.cx, token, readiness),
                other => panic!("event of {other:?}"),
            }
        }
        while let Some(token) = self.cx.timers.pop(self.cx.now) {
            self.udp.on_timer(&mut self.cx, token);
        }
        self.udp.end_turn(&mut self.cx);
        for backend in &mut self.backends {
            backend.pump();
        }
        self.events.len()
    }

    pub(super) fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.turn();
        }
    }

    /// Turns until `done`.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Rig) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            self.turn();
        }
    }

    /// What `client` receives next, and from whom.
    pub(super) fn receive(&mut self, client: &UdpSocket) -> (SocketAddr, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        let mut got = None;
        self.until("a reply", |_| {
            got = client.recv_from(&mut buffer).ok();
            got.is_some()
        });
        let (len, from) = got.expect("until it came");
        (from, buffer[..len].to_vec())
    }

    /// Sends to `vip` and gets the very same back from there.
    pub(super) fn exchange(&mut self, client: &UdpSocket, vip: SocketAddr, payload: &[u8]) {
        client.send_to(payload, vip).expect("send");
        let (from, reply) = self.receive(client);
        assert_eq!(from, vip);
        assert!(reply == payload, "{} bytes differ", payload.len());
    }
}

pub(super) fn active(address: SocketAddr) -> Backend {
    Backend {
        address,
        weight: 1,
        state: BackendState::Active,
    }
}

fn policy() -> Policy {
    Policy {
        sources: SourceRanges::any(),
        affinity: None,
        connect_timeout: Duration::from_millis(250),
        connect_budget: Duration::from_secs(2),
        idle_timeout: Duration::ZERO,
        half_close_timeout: Duration::from_secs(60),
        flow_one_way_timeout: Duration::from_secs(30),
        flow_two_way_timeout: Duration::from_secs(120),
    }
}

/// A client on a port of its own.
pub(super) fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("bind a client");
    socket.set_nonblocking(true).expect("nonblocking");
    socket
}
