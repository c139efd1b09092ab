//! The load tool: a server and a closed-loop generator, a thread each, over epoll.
//!
//! Closed loop: a connection sends its next request when it has the answer to the last, a flow
//! keeps a fixed number of datagrams in flight. The tool's own cost is what the variant `direct`
//! shows, where nothing stands between the two but a router.

pub mod client;
pub mod oneway;
pub mod poll;
pub mod server;
pub mod udp;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Echoes what it reads.
pub const ECHO: u16 = 7001;
/// Reads and throws away.
pub const SINK: u16 = 7002;
/// Writes for ever.
pub const SOURCE: u16 = 7003;
/// Echoes 64 bytes, then closes.
pub const ECHO_CLOSE: u16 = 7004;
/// Sends each datagram back.
pub const UDP_ECHO: u16 = 7005;
/// Counts datagrams.
pub const UDP_SINK: u16 = 7006;
/// The ports of each protocol, which are the same at VIP and backend.
pub const TCP_PORTS: [u16; 4] = [ECHO, SINK, SOURCE, ECHO_CLOSE];
pub const UDP_PORTS: [u16; 2] = [UDP_ECHO, UDP_SINK];

/// A small message.
pub const SMALL: usize = 64;

/// What a generator has done so far, and what it is told.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests answered, connections served, datagrams returned or delivered.
    pub ops: AtomicU64,
    /// Bytes of bulk that arrived.
    pub bytes: AtomicU64,
    /// Datagrams given up.
    pub lost: AtomicU64,
    /// Connections that failed or ended early.
    pub errors: AtomicU64,
    /// Connections that have had an answer: all of them stand once this is their number.
    pub answered: AtomicU64,
    /// Note the times that requests take.
    pub recording: AtomicBool,
    /// End.
    pub stop: AtomicBool,
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        // One writer per counter: no read-modify-write is needed.
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Whom the generator dials: round robin over sources and targets.
#[derive(Clone, Debug)]
pub struct Route {
    pub sources: Vec<Ipv4Addr>,
    pub targets: Vec<Ipv4Addr>,
}

impl Route {
    /// Source and target of the `n`th connection.
    pub fn pair(&self, n: usize, port: u16) -> (SocketAddrV4, SocketAddrV4) {
        let source = self.sources[n % self.sources.len()];
        let target = self.targets[(n / self.sources.len() + n) % self.targets.len()];
        (
            SocketAddrV4::new(source, 0),
            SocketAddrV4::new(target, port),
        )
    }
}
