//! What an idle connection costs: of the process's memory, its timer included.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use common::{DEADLINE, Rig, spec, unused};
use lb_core::table::Protocol;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections before the first measurement: what is there once is paid for.
const FIRST: usize = 1_000;
const MORE: usize = 3_000;
/// Of them under way together: what a burst leaves with the allocator counts too.
const AT_ONCE: usize = 128;
/// Bytes for each.
const MOST: usize = 240;

/// Resident memory of this process, in bytes: counted page by page, for the figure of statm may be
/// a few hundred pages behind.
fn resident() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("proc is mounted");
    let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = rss.and_then(|rss| rss.trim().strip_suffix(" kB"));
    1_024
        * kib
            .and_then(|kib| kib.parse::<usize>().ok())
            .expect("a number")
}

/// Raises the limit of open descriptors as far as it goes, and says how far.
fn raise_nofile() -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("its own hard limit");
    maximum.unwrap_or(u64::MAX)
}

/// Opens connections, [`AT_ONCE`] of them under way together, and has a byte go each way through
/// each.
fn open(at: SocketAddr, servers: &mpsc::Receiver<TcpStream>, count: usize) -> Vec<TcpStream> {
    let mut ends = Vec::with_capacity(2 * count);
    while ends.len() < 2 * count {
        let more = AT_ONCE.min(count - ends.len() / 2);
        let mut clients: Vec<_> = (0..more)
            .map(|_| TcpStream::connect(at).expect("it listens"))
            .collect();
        let mut byte = [7];
        for client in &mut clients {
            client.write_all(&byte).expect("open");
        }
        for _ in 0..more {
            let mut server = servers.recv_timeout(DEADLINE).expect("it is dialled");
            server.read_exact(&mut byte).expect("it comes");
            server.write_all(&byte).expect("open");
            ends.push(server);
        }
        for client in &mut clients {
            client.read_exact(&mut byte).expect("it comes");
        }
        ends.append(&mut clients);
    }
    ends
}

#[test]
fn an_idle_connection_takes_at_most_240_bytes() {
    // Each is four sockets of this process: the client's, the backend's and two between.
    let needed = 4 * (FIRST + MORE) as u64 + 200;
    if raise_nofile() < needed {
        eprintln!("skipped: cannot open {needed} descriptors");
        return;
    }
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = backend.local_addr().expect("bound");
    let (give, servers) = mpsc::sync_channel(16);
    thread::spawn(move || backend.incoming().flatten().try_for_each(|s| give.send(s)));
    let at = unused("127.0.0.1".parse().expect("an address"));
    let rig = Rig::start(1, &[spec(Protocol::Tcp, at, &[to])]);
    let _first = open(at, &servers, FIRST);
    let mut more = Vec::with_capacity(2 * MORE);
    // Its own memory, so that the vector's is no part of the figure.
    more.resize_with(2 * MORE, || None);
    let before = resident();
    for (place, end) in more.iter_mut().zip(open(at, &servers, MORE)) {
        *place = Some(end);
    }
    let each = resident().saturating_sub(before) / MORE;
    let live = rig.handle.stats().workers[0].connections_active;
    assert_eq!(live, (FIRST + MORE) as u64);
    eprintln!("{each} bytes of the process for an idle connection");
    assert!((100..=MOST).contains(&each), "{each} bytes each");
}
