//! One connection goes through four workers of both engines, in the middle of everything.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Exported;
use crate::slab::Key;
use crate::sys::clock;
use crate::sys::epoll::Events;
use crate::table::Slot;
use crate::uring::{Ring, Size};
use crate::worker::TcpDriver;
use crate::worker::cx::Cx;
use crate::worker::local::Local;
use crate::worker::ring::RingTcp;
use crate::worker::tcp::Tcp;
use crate::worker::testing;
use crate::worker::token::{Kind, Token};

/// What each side sends.
const BYTES: usize = 6 << 20;

struct Worker {
    cx: Cx,
    tcp: TcpDriver,
    events: Events,
}

impl Worker {
    fn epoll() -> Worker {
        Worker::of(TcpDriver::Epoll(Tcp::new()))
    }

    fn ring() -> Worker {
        let ring = RingTcp::new(Ring::new(Size::default()).expect("io_uring"));
        Worker::of(TcpDriver::Ring(Box::new(ring)))
    }

    fn of(tcp: TcpDriver) -> Worker {
        let mut cx = testing::cx();
        cx.descriptors.allow(1_000);
        Worker {
            cx,
            tcp,
            events: Events::with_capacity(64),
        }
    }

    fn turn(&mut self) {
        let Worker { cx, tcp, events } = self;
        cx.now = clock::now();
        cx.descriptors.begin_turn();
        let pause = Duration::from_micros(200);
        let pause = match tcp {
            TcpDriver::Epoll(_) => pause,
            TcpDriver::Ring(ring) => {
                ring.wait(cx, pause).expect("a ring");
                Duration::ZERO
            }
        };
        cx.poller().wait(events, pause).expect("epoll");
        for (bits, ready) in (0..events.len()).filter_map(|n| events.at(n)) {
            let token = Token::from_bits(bits);
            assert!(matches!(
                token.kind(),
                Some(Kind::Downstream | Kind::Upstream)
            ));
            match tcp {
                TcpDriver::Epoll(tcp) => tcp.on_event(cx, token, ready),
                TcpDriver::Ring(tcp) => tcp.on_event(token),
            }
        }
        while let Some(token) = cx.timers.pop(cx.now) {
            match tcp {
                TcpDriver::Epoll(tcp) => tcp.on_timer(cx, token),
                TcpDriver::Ring(tcp) => tcp.on_timer(cx, token),
            }
        }
        match tcp {
            TcpDriver::Epoll(tcp) => tcp.end_turn(cx),
            TcpDriver::Ring(tcp) => tcp.end_turn(cx),
        }
    }

    /// Gives the connection up; `None` if it is over.
    fn give(&mut self, key: Key) -> Option<Exported> {
        for _ in 0..1_000 {
            if let TcpDriver::Ring(tcp) = &mut self.tcp {
                tcp.quiesce(key);
            }
            let given = match &mut self.tcp {
                TcpDriver::Epoll(tcp) => tcp.export(&mut self.cx, key),
                TcpDriver::Ring(tcp) => tcp.export(&mut self.cx, key),
            };
            if given.is_some() || self.is_idle() {
                return given;
            }
            self.turn();
        }
        panic!("never quiet");
    }

    fn take(&mut self, exported: Exported) -> Key {
        self.cx.descriptors.begin_turn();
        match &mut self.tcp {
            TcpDriver::Epoll(tcp) => tcp.adopt(&mut self.cx, exported),
            TcpDriver::Ring(tcp) => tcp.adopt(&mut self.cx, exported),
        }
        .expect("there is room")
    }

    fn is_idle(&self) -> bool {
        match &self.tcp {
            TcpDriver::Epoll(tcp) => tcp.is_idle(),
            TcpDriver::Ring(tcp) => tcp.is_idle(),
        }
    }

    /// Nothing of the connection is left here.
    fn check(&mut self) {
        assert!(self.is_idle());
        assert_eq!(self.cx.counters.connections_active.value(), 0);
        assert_eq!(self.cx.counters.descriptors.value(), 0);
        self.turn();
        if let TcpDriver::Ring(_) = &self.tcp {
            assert_eq!(self.cx.counters.ring_buffers.value(), 0);
            assert_eq!(self.cx.counters.ring_in_flight.value(), 0);
        }
    }
}

/// A peer that sends a pattern and then FIN, and reads slowly.
struct Peer {
    stream: TcpStream,
    unsent: VecDeque<u8>,
    got: Vec<u8>,
    at_end: bool,
}

impl Peer {
    fn new(stream: TcpStream, seed: u32) -> Peer {
        stream.set_nonblocking(true).expect("an option");
        Peer {
            stream,
            unsent: pattern(seed).into(),
            got: Vec::new(),
            at_end: false,
        }
    }

    fn go_on(&mut self, piece: usize) {
        let (next, _) = self.unsent.as_slices();
        if !next.is_empty() {
            match self.stream.write(next) {
                Ok(n) => _ = self.unsent.drain(..n),
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
            if self.unsent.is_empty() {
                self.stream.shutdown(Shutdown::Write).expect("open");
            }
        }
        let mut buffer = vec![0; piece];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.at_end = true,
            Ok(n) => self.got.extend_from_slice(&buffer[..n]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }
}

fn pattern(seed: u32) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(BYTES)
    .collect()
}

#[test]
fn a_connection_can_be_handed_over_at_any_time() {
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = backend.local_addr().expect("bound").to_string();
    let table = testing::table(&[testing::spec("127.0.0.1:1", &[&to])]);
    let local = Rc::new(Local::new(Slot(0), table.get(Slot(0)).expect("a frontend")));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("an option");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");

    let mut workers = [
        Worker::ring(),
        Worker::epoll(),
        Worker::ring(),
        Worker::ring(),
    ];
    let mut key = Key::from_parts(0, 0);
    let Worker { cx, tcp, .. } = &mut workers[0];
    cx.descriptors.begin_turn();
    match tcp {
        TcpDriver::Ring(tcp) => tcp.on_listener(cx, &local, listener.as_fd()),
        TcpDriver::Epoll(_) => unreachable!("the first is a ring"),
    }
    workers[0].turn();
    let (server, _) = backend.accept().expect("it calls");
    let mut peers = [Peer::new(client, 1), Peer::new(server, 2)];

    let (mut at, mut handed_over, mut turns) = (0, 0, 0_u32);
    let end = Instant::now() + Duration::from_secs(40);
    while !peers.iter().all(|peer| peer.at_end) {
        assert!(
            Instant::now() < end,
            "not in time; handed over {handed_over} times"
        );
        turns += 1;
        // By turns a peer that keeps up and one that does not.
        let slow = turns / 64 % 2 == 0;
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.go_on(if slow == (n == 0) { 700 } else { 20_000 });
        }
        workers[at].turn();
        if turns.is_multiple_of(5)
            && let Some(exported) = workers[at].give(key)
        {
            workers[at].check();
            at = (at + 1) % workers.len();
            key = workers[at].take(exported);
            handed_over += 1;
        }
    }
    assert!(handed_over > 20, "{handed_over} times");
    assert!(peers[0].got == pattern(2) && peers[1].got == pattern(1));
    while !workers[at].is_idle() {
        assert!(Instant::now() < end, "it never ends");
        workers[at].turn();
    }
    for worker in &mut workers {
        worker.check();
    }
}
