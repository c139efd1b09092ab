//! Draining real workers: nobody who got through is reset, what lives may finish, then it ends.

mod common;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use lb_core::stats::CloseReason;
use lb_core::table::Protocol;

/// Clients storm in while the drain begins. Each is either served or never gets through; none
/// finishes its handshake and is reset then.
#[test]
fn who_got_through_is_served() {
    let spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let address: SocketAddr = (spec.key.address, spec.key.port.get()).into();
    let rig = Rig::start(2, &[spec]);
    let served = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let served = Arc::clone(&served);
            thread::spawn(move || {
                loop {
                    let Ok(mut socket) = TcpStream::connect_timeout(&address, DEADLINE) else {
                        return;
                    };
                    talk(&mut socket).expect("it got through and was reset");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("many are served", || served.load(Ordering::Relaxed) > 200);
    rig.handle.drain(DEADLINE);
    for client in clients {
        client.join().expect("a client was reset");
    }
    eventually("it is drained", || rig.handle.is_drained());
    assert_eq!(rig.handle.active(), (0, 0));
    let refused = TcpStream::connect(address).expect_err("it is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn what_lives_may_finish_until_the_deadline() {
    let tcp = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let udp = spec(Protocol::Udp, loopback(), &[udp_echo()]);
    let address: SocketAddr = (tcp.key.address, tcp.key.port.get()).into();
    let mut rig = Rig::start(2, &[tcp.clone(), udp.clone()]);
    let connect = || {
        let mut socket = TcpStream::connect(address).expect("a connection");
        talk(&mut socket).expect("an echo");
        socket
    };
    let (mut first, mut second) = (connect(), connect());
    let flow = udp_client((udp.key.address, udp.key.port.get()).into());
    ping(&flow).expect("an echo");

    rig.handle.drain(Duration::from_secs(2));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        talk(&mut first).expect("it may finish");
        ping(&flow).expect("so may a flow");
    }
    let refused = TcpStream::connect(address).expect_err("closed to new ones");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // A table that comes now opens nothing.
    let late = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    rig.set(std::slice::from_ref(&late));
    exchange((late.key.address, late.key.port.get()).into()).expect_err("nothing new");

    drop(first);
    eventually("the first has finished", || rig.handle.active().0 == 1);
    assert!(!rig.handle.is_drained());
    eventually("the deadline", || rig.handle.is_drained());
    assert!(
        begun.elapsed() >= Duration::from_millis(1_900),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    let cut = second.read(&mut [0; 1]).expect_err("cut is no clean end");
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
    let totals = &rig.handle.stats().frontends[&(tcp.key, tcp.owner.clone())];
    assert_eq!(totals.closed(CloseReason::DrainDeadline), 1);
    rig.plane.stop();
}

/// A second call moves the end, to now if need be.
#[test]
fn the_end_of_a_drain_can_be_moved() {
    let spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let address: SocketAddr = (spec.key.address, spec.key.port.get()).into();
    let rig = Rig::start(2, &[spec]);
    let mut socket = TcpStream::connect(address).expect("a connection");
    talk(&mut socket).expect("an echo");
    rig.handle.drain(Duration::from_secs(600));
    thread::sleep(Duration::from_millis(400));
    talk(&mut socket).expect("it may finish");
    assert!(!rig.handle.is_drained());
    rig.handle.drain(Duration::ZERO);
    eventually("it is drained", || rig.handle.is_drained());
}

#[test]
fn an_idle_plane_is_drained_as_soon_as_handshakes_have_ended() {
    let rig = Rig::start(2, &[spec(Protocol::Tcp, loopback(), &[tcp_echo()])]);
    let begun = Instant::now();
    rig.handle.drain(Duration::from_secs(600));
    eventually("it is drained", || rig.handle.is_drained());
    // Handshakes under way have their time even where none is known of.
    assert!(begun.elapsed() >= Duration::from_millis(240));
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

/// Flows that are silent end with their listeners, many of them over several turns: only then is
/// it over.
#[test]
fn drained_means_that_no_flow_is_left() {
    let spec = spec(Protocol::Udp, loopback(), &[udp_echo()]);
    let address: SocketAddr = (spec.key.address, spec.key.port.get()).into();
    let rig = Rig::start(1, &[spec]);
    let clients: Vec<_> = (0..1_500).map(|_| udp_client(address)).collect();
    for client in &clients {
        ping(client).expect("an echo");
    }
    assert_eq!(rig.handle.active(), (0, 1_500));
    rig.handle.drain(Duration::from_secs(600));
    eventually("it is drained", || rig.handle.is_drained());
    assert_eq!(rig.handle.active(), (0, 0));
}

/// The kernel ends a ring behind its thread's back and by a signal: to threads of the plane alone.
#[test]
fn planes_that_come_and_go_interrupt_nobody() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let wait = Some(Duration::from_millis(20));
    socket.set_read_timeout(wait).expect("timeout");
    for round in 0..30 {
        let spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
        let rig = Rig::start(1, &[spec]);
        for _ in 0..2 {
            let error = socket.recv(&mut [0]).expect_err("nobody sends");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "round {round}");
        }
        rig.plane.stop();
        let error = socket.recv(&mut [0]).expect_err("nobody sends");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "round {round}");
    }
}
