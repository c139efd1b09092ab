//! The process runs out of descriptors. Alone in its process: the limit is the process's.

mod common;

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::*;
use lb_core::stats::CloseReason;
use lb_core::table::Protocol;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// CPU time that the whole process has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn sockets(n: usize) -> Vec<socket2::Socket> {
    let stream = socket2::Type::STREAM;
    let socket = |_| socket2::Socket::new(socket2::Domain::IPV4, stream, None).expect("a socket");
    (0..n).map(socket).collect()
}

/// The whole process uses next to nothing for a while.
fn rests(when: &str) {
    let (begun, used) = (Instant::now(), cpu_time());
    std::thread::sleep(Duration::from_millis(500));
    let share = (cpu_time() - used).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.05, "{when}: {:.0} % of a CPU", share * 100.0);
}

/// Something else in the process takes every descriptor: callers are shed at once and counted, no
/// worker spins, those who live are not touched, and service is back as soon as descriptors are.
#[test]
fn accept_without_descriptors() {
    let spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let address: SocketAddr = (spec.key.address, spec.key.port.get()).into();
    let rig = Rig::start(2, std::slice::from_ref(&spec));
    let mut alive: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut socket = TcpStream::connect(address).expect("a connection");
            talk(&mut socket).expect("an echo");
            socket
        })
        .collect();
    // The clients' own sockets, made while that is possible.
    let (callers, waiting) = (sockets(50), sockets(8));
    let before = getrlimit(Resource::Nofile);
    let filler: Vec<OwnedFd> = exhaust();

    for caller in &callers {
        caller.set_read_timeout(Some(DEADLINE)).expect("an option");
        let begun = Instant::now();
        // Reset before or after connect returns; but soon, and never in silence.
        let told = caller.connect(&address.into()).and_then(|()| {
            caller
                .recv(&mut [std::mem::MaybeUninit::uninit(); 1])
                .map(drop)
        });
        assert!(told.is_err(), "served without descriptors");
        assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    }
    let shed: u64 = rig
        .handle
        .stats()
        .workers
        .iter()
        .map(|w| w.shed_exhausted)
        .sum();
    assert_eq!(shed, callers.len() as u64);

    rests("after shedding");
    for socket in &mut alive {
        talk(socket).expect("who lives is not touched");
    }

    // Below what is open, not even the reserve helps: callers wait, and nobody spins for them.
    let below = Rlimit {
        current: Some(3),
        ..before
    };
    setrlimit(Resource::Nofile, below).expect("a lower limit is allowed to all");
    for caller in &waiting {
        let _ = caller.connect(&address.into());
    }
    rests("with callers that wait");
    for socket in &mut alive {
        talk(socket).expect("who lives is not touched");
    }

    setrlimit(Resource::Nofile, before).expect("back to the old limit");
    drop(filler);
    drop(callers);
    let begun = Instant::now();
    for caller in waiting {
        let mut caller = TcpStream::from(caller);
        talk(&mut caller).expect("who waited is served");
    }
    exchange(address).expect("served again");
    assert!(begun.elapsed() < DEADLINE / 4, "{:?}", begun.elapsed());
    let totals = &rig.handle.stats().frontends[&(spec.key, spec.owner.clone())];
    assert_eq!(totals.closed(CloseReason::DescriptorLimit), shed);
}
