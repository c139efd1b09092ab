//! How connections are spread over the workers: by turns, exactly; a client of a frontend with
//! affinity alone by its address (`steering`).

mod common;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::*;
use lb_core::plane::Probe;
use lb_core::table::Protocol;

/// Does the kernel let this process load the program that takes turns?
fn has_turns() -> bool {
    let probe = Probe::run();
    let found = probe.optional.iter().find(|f| f.name == "BPF_PROG_LOAD");
    let lack = found.expect("it is tried").lack.as_ref();
    if let Some(lack) = lack {
        println!("SKIP: turns: {lack}");
    }
    lack.is_none()
}

fn dial(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let dialled = (0..count).map(|_| {
        let mut socket = TcpStream::connect(address).expect("a connection");
        talk(&mut socket).expect("an echo");
        socket
    });
    dialled.collect()
}

fn shares(rig: &Rig) -> Vec<u64> {
    let workers = rig.handle.stats().workers;
    workers.iter().map(|w| w.connections_active).collect()
}

#[test]
fn workers_get_connections_by_turns_at_each_port() {
    if !has_turns() {
        return;
    }
    let backend = tcp_echo();
    let addresses = [loopback(), loopback(), loopback_v6()];
    let specs = addresses.map(|address| spec(Protocol::Tcp, address, &[backend]));
    let rig = Rig::start(2, &specs);
    for address in addresses {
        for count in [8, 64, 1_000] {
            let open = dial(address, count);
            let even = count as u64 / 2;
            assert_eq!(shares(&rig), [even, even], "{address}");
            drop(open);
            eventually("connections end", || rig.handle.active().0 == 0);
        }
    }
}

#[test]
fn affinity_takes_the_turns_away_and_gives_them_back() {
    if !has_turns() {
        return;
    }
    let backend = tcp_echo();
    let address = loopback();
    let mut spec = spec(Protocol::Tcp, address, &[backend]);
    let mut rig = Rig::start(2, &[spec.clone()]);
    for (affinity, alone) in [(None, false), (Some(60), true), (None, false)] {
        spec.policy.affinity = affinity.map(Duration::from_secs);
        rig.set(&[spec.clone()]);
        let open = dial(address, 32);
        let shares = shares(&rig);
        match alone {
            true => assert!(shares.contains(&32), "{shares:?}"),
            false => assert_eq!(shares, [16, 16]),
        }
        drop(open);
        eventually("connections end", || rig.handle.active().0 == 0);
    }
}
