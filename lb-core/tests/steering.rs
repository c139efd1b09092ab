//! Affinity frontends steer by source address: one worker owns all that comes from a client.

mod common;

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::*;
use lb_core::plane::ListenerState;
use lb_core::table::{FrontendSpec, Protocol};
use socket2::{Domain, Socket, Type};

const CLIENTS: usize = 40;

/// Connections from `source` to `address`, each with an echo heard.
fn connections(address: SocketAddr, source: IpAddr) -> Vec<TcpStream> {
    (0..CLIENTS)
        .map(|_| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
            let socket = socket.expect("a socket");
            socket
                .bind(&SocketAddr::new(source, 0).into())
                .expect("a local address");
            socket.connect(&address.into()).expect("a connection");
            let mut socket = TcpStream::from(socket);
            talk(&mut socket).expect("an echo");
            socket
        })
        .collect()
}

/// As [`connections`], with flows.
fn flows(address: SocketAddr, source: IpAddr) -> Vec<UdpSocket> {
    (0..CLIENTS)
        .map(|_| {
            let socket = UdpSocket::bind((source, 0)).expect("a local address");
            socket.connect(address).expect("a route");
            ping(&socket).expect("an echo");
            socket
        })
        .collect()
}

/// Connections, or flows, of each worker.
fn shares(rig: &Rig, protocol: Protocol) -> Vec<u64> {
    let workers = rig.handle.stats().workers;
    let of = workers.iter().map(|w| match protocol {
        Protocol::Tcp => w.connections_active,
        Protocol::Udp => w.flows_active,
    });
    of.collect()
}

/// The share of each worker in what comes from `source`.
///
/// Flows stay for a while: their clients' sockets go to `held`, so that no port is used twice.
fn from(rig: &Rig, spec: &FrontendSpec, source: IpAddr, held: &mut Vec<UdpSocket>) -> Vec<u64> {
    let address = SocketAddr::new(spec.key.address, spec.key.port.get());
    let protocol = spec.key.protocol;
    let before = shares(rig, protocol);
    let after = match protocol {
        Protocol::Tcp => {
            let open = connections(address, source);
            let after = shares(rig, protocol);
            drop(open);
            eventually("connections end", || rig.handle.active().0 == 0);
            after
        }
        Protocol::Udp => {
            held.extend(flows(address, source));
            shares(rig, protocol)
        }
    };
    let shares: Vec<u64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    assert_eq!(shares.iter().sum::<u64>(), CLIENTS as u64);
    shares
}

fn steers(protocol: Protocol, address: SocketAddr, sources: &[IpAddr]) {
    let backend = match protocol {
        Protocol::Tcp => tcp_echo(),
        Protocol::Udp => udp_echo(),
    };
    let mut spec = spec(protocol, address, &[backend]);
    spec.policy.affinity = Some(Duration::from_secs(60));
    let mut rig = Rig::start(2, &[spec.clone()]);
    let mut held = Vec::new();
    let mut owners = [0, 0];
    for &source in sources {
        let shares = from(&rig, &spec, source, &mut held);
        assert!(
            shares.contains(&0),
            "{source} has pins in both workers: {shares:?}"
        );
        owners[usize::from(shares[0] == 0)] += 1;
        assert_eq!(
            from(&rig, &spec, source, &mut held),
            shares,
            "{source} went over"
        );
    }
    if sources.len() > 8 {
        assert!(
            !owners.contains(&0),
            "all clients in one worker: {owners:?}"
        );
    }

    // Off and on again, without closing: the first by turns, the second alone.
    spec.policy.affinity = None;
    rig.set(&[spec.clone()]);
    let shares = from(&rig, &spec, sources[0], &mut held);
    assert!(!shares.contains(&0), "still steered: {shares:?}");
    spec.policy.affinity = Some(Duration::from_secs(60));
    rig.set(&[spec.clone()]);
    let shares = from(&rig, &spec, sources[0], &mut held);
    assert!(shares.contains(&0), "not steered: {shares:?}");
    assert_eq!(rig.listener(&spec), ListenerState::Listening);
}

fn v4_sources() -> Vec<IpAddr> {
    (1..=16).map(|n| IpAddr::from([127, 0, 3, n])).collect()
}

#[test]
fn tcp_v4() {
    steers(Protocol::Tcp, loopback(), &v4_sources());
}

#[test]
fn tcp_v6() {
    let address = loopback_v6();
    steers(Protocol::Tcp, address, &[address.ip()]);
}

#[test]
fn udp_v4() {
    steers(Protocol::Udp, loopback(), &v4_sources());
}

#[test]
fn udp_v6() {
    let address = loopback_v6();
    steers(Protocol::Udp, address, &[address.ip()]);
}
