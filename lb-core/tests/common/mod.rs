//! What the tests of real workers have in common: tables, servers that play backends, deadlines.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_core::balance::{Algorithm, HashKey};
use lb_core::plane::{Config, Engine, Handle, ListenerState, Plane};
use lb_core::table::{
    Backend, BackendState, FrontendKey, FrontendSpec, Owner, Policy, Protocol, SourceRanges, Table,
    TableBuilder,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Everything here happens in milliseconds; a machine that is busy otherwise gets this long.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn backend(address: SocketAddr) -> Backend {
    Backend {
        address,
        weight: 1,
        state: BackendState::Active,
    }
}

pub fn spec(protocol: Protocol, address: SocketAddr, backends: &[SocketAddr]) -> FrontendSpec {
    FrontendSpec {
        key: FrontendKey {
            address: address.ip(),
            port: NonZeroU16::new(address.port()).expect("a port"),
            protocol,
        },
        owner: Owner {
            group: "group".into(),
            name: "name".into(),
            port: address.port().to_string().into(),
        },
        precedence: 0,
        algorithm: Algorithm::Consistent,
        backends: backends.iter().copied().map(backend).collect(),
        policy: Policy {
            sources: SourceRanges::any(),
            affinity: None,
            connect_timeout: Duration::from_millis(250),
            connect_budget: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(3_600),
            half_close_timeout: Duration::from_secs(60),
            flow_one_way_timeout: Duration::from_secs(30),
            flow_two_way_timeout: Duration::from_secs(120),
        },
    }
}

/// The engine that WEIR_ENGINE asks for, by the names that `weir serve --engine` knows.
pub fn engine() -> Engine {
    match std::env::var("WEIR_ENGINE").as_deref() {
        Err(_) | Ok("auto") => Engine::Auto,
        Ok("epoll") => Engine::Epoll,
        Ok("io_uring") => Engine::IoUring,
        Ok(other) => panic!("WEIR_ENGINE={other}: choose auto, epoll or io_uring"),
    }
}

/// A plane and the table that it is fed with.
pub struct Rig {
    pub builder: TableBuilder,
    pub plane: Plane,
    pub handle: Handle,
}

impl Rig {
    /// Starts `workers` on these frontends and waits until they run them.
    pub fn start(workers: usize, specs: &[FrontendSpec]) -> Rig {
        let mut builder = TableBuilder::new(HashKey([7; 16]));
        for spec in specs {
            builder.set(spec.clone()).expect("a valid frontend");
        }
        let table = builder.freeze();
        let config = Config {
            workers,
            engine: engine(),
            ..Config::default()
        };
        let plane = Plane::start(config, Arc::clone(&table)).expect("a plane");
        let handle = plane.handle();
        let rig = Rig {
            builder,
            plane,
            handle,
        };
        rig.wait(&table);
        rig
    }

    /// Publishes these frontends' new states, and does not wait.
    pub fn publish(&mut self, specs: &[FrontendSpec]) -> Arc<Table> {
        for spec in specs {
            self.builder.set(spec.clone()).expect("a valid frontend");
        }
        let table = self.builder.freeze();
        self.handle.publish(Arc::clone(&table));
        table
    }

    /// Publishes, and waits until every worker runs it.
    pub fn set(&mut self, specs: &[FrontendSpec]) {
        let table = self.publish(specs);
        self.wait(&table);
    }

    pub fn remove(&mut self, spec: &FrontendSpec) {
        self.builder.remove(&spec.key);
        self.set(&[]);
    }

    fn wait(&self, table: &Table) {
        let runs = self.handle.wait(table.generation, DEADLINE);
        assert!(runs, "generation {} never ran", table.generation);
    }

    /// The state of a frontend's listener in its worst worker.
    pub fn listener(&self, spec: &FrontendSpec) -> ListenerState {
        let slot = self
            .builder
            .slot(&spec.key)
            .expect("a frontend of the table");
        self.handle.report().listener(slot)
    }
}

/// Asks until `done` says yes.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// An address at which nobody listens.
pub fn unused(ip: IpAddr) -> SocketAddr {
    // A port that both protocols have free, out of the range that clients are given.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 131;
        let address = SocketAddr::new(ip, 12_000 + (n % 20_000) as u16);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

pub fn loopback() -> SocketAddr {
    unused([127, 0, 0, 1].into())
}

pub fn loopback_v6() -> SocketAddr {
    unused(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST))
}

/// A TCP server that sends back what it gets; lives as long as the process.
pub fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { continue };
            let small = thread::Builder::new().stack_size(64 << 10);
            let _ = small.spawn(move || {
                let mut buffer = [0; 4_096];
                while let Ok(n @ 1..) = socket.read(&mut buffer) {
                    if socket.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A UDP server that sends back what it gets; lives as long as the process.
pub fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("its address");
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..n], from);
            }
        }
    });
    address
}

/// Sends a line and reads it back.
pub fn talk(socket: &mut TcpStream) -> io::Result<()> {
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.write_all(b"hello")?;
    let mut answer = [0; 5];
    socket.read_exact(&mut answer)?;
    match &answer == b"hello" {
        true => Ok(()),
        false => Err(ErrorKind::InvalidData.into()),
    }
}

/// A whole exchange over a connection of its own.
pub fn exchange(address: SocketAddr) -> io::Result<()> {
    let mut socket = TcpStream::connect_timeout(&address, DEADLINE)?;
    talk(&mut socket)
}

/// Sends a datagram and waits for it to come back.
pub fn ping(socket: &UdpSocket) -> io::Result<()> {
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send(b"ping")?;
    let mut answer = [0; 16];
    let n = socket.recv(&mut answer)?;
    match &answer[..n] == b"ping" {
        true => Ok(()),
        false => Err(ErrorKind::InvalidData.into()),
    }
}

/// A UDP client of its own port.
pub fn udp_client(address: SocketAddr) -> UdpSocket {
    let any: IpAddr = match address.is_ipv6() {
        true => std::net::Ipv6Addr::UNSPECIFIED.into(),
        false => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).expect("a socket");
    socket.connect(address).expect("a route");
    socket
}

/// Lowers the soft limit to what is open, and takes every gap below it.
pub fn exhaust() -> Vec<OwnedFd> {
    let limit = getrlimit(Resource::Nofile);
    let probe =
        rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("a last one");
    let lowered = Rlimit {
        current: Some(rustix::fd::AsRawFd::as_raw_fd(&probe) as u64 + 16),
        ..limit
    };
    setrlimit(Resource::Nofile, lowered).expect("a lower limit is allowed to all");
    let mut filler = vec![probe];
    while let Ok(fd) = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()) {
        filler.push(fd);
    }
    filler
}
