//! Many datagrams at once: what leaves together, and that nobody can tell.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use super::rig::{Rig, client};
use super::runs::MAX_BYTES;
use crate::flow::FlowId;
use crate::plane::Limits;
use crate::sys::udp::{self, BATCH, Batch, Sheet};

fn rig() -> Rig {
    Rig::new(Limits::default())
}

/// (bytes, segment) of everything that waits at `socket`, and who sent the last.
fn received(socket: &UdpSocket) -> (Vec<(usize, usize)>, Option<SocketAddr>) {
    let mut batch = Batch::with_senders();
    let (mut found, mut from) = (vec![], None);
    while batch.receive(socket.as_fd(), BATCH).is_ok() {
        for n in 0..batch.len() {
            let datagram = batch.datagram(n);
            found.push((datagram.payload.len(), datagram.segment));
            from = datagram.from;
        }
        batch.clear();
    }
    (found, from)
}

/// A backend, or a client, that sees what came in one piece.
fn joining(address: &str) -> UdpSocket {
    let socket = client(address);
    udp::join_received(socket.as_fd());
    socket
}

/// The one flow of a rig.
const FLOW: FlowId = FlowId::from_parts(0, 0);

#[test]
fn bursts_of_mixed_sizes_of_many_clients_come_whole_and_in_order() {
    for (vip, backend) in [
        ("127.0.0.1", "127.0.0.1:0"),
        ("::1", "[::1]:0"),
        ("::1", "127.0.0.1:0"),
    ] {
        let mut rig = rig();
        let pool = [rig.echo(backend), rig.echo(backend)];
        let vip_address = rig.frontend(vip, &pool);
        let clients: Vec<_> = (0..7).map(|_| client(vip)).collect();
        let sizes = [100, 100, 40, 0, 100, 100, 100, 1400, 2500, 2500, 1, 3, 3, 3];
        for round in 0..3 {
            let payload = |who: usize, n: usize| vec![(who * 50 + n + round) as u8; sizes[n]];
            for n in 0..sizes.len() {
                for (who, client) in clients.iter().enumerate() {
                    client.send_to(&payload(who, n), vip_address).expect("send");
                }
            }
            for (who, client) in clients.iter().enumerate() {
                for n in 0..sizes.len() {
                    let (from, reply) = rig.receive(client);
                    assert_eq!(from, vip_address);
                    assert!(reply == payload(who, n), "client {who} datagram {n}");
                }
            }
        }
        let count = (3 * sizes.len() * clients.len()) as u64;
        let bytes = (3 * sizes.iter().sum::<usize>() * clients.len()) as u64;
        let counters = &rig.local(vip_address).counters;
        assert_eq!(counters.datagrams_downstream.value(), count);
        assert_eq!(counters.datagrams_upstream.value(), count);
        assert_eq!(counters.bytes_downstream.value(), bytes);
        assert_eq!(counters.bytes_upstream.value(), bytes);
    }
}

#[test]
fn equal_datagrams_of_a_flow_leave_in_one_send_both_ways() {
    let mut rig = rig();
    let (backend, client) = (joining("127.0.0.1"), joining("127.0.0.1"));
    let address = backend.local_addr().expect("bound");
    let vip = rig.frontend("127.0.0.1", &[address]);
    let other = self::client("127.0.0.1");
    for round in 0..2 {
        for n in 0..20 {
            client.send_to(&[n; 100], vip).expect("send");
            let larger = vec![n; 50 + 5 * usize::from(n)];
            other.send_to(&larger, vip).expect("send");
        }
        client.send_to(&[99; 37], vip).expect("send");
        rig.turn();
        let (found, _) = received(&backend);
        // The very first goes alone: nobody knows yet whether there is someone to take it.
        let expected = match round {
            0 => vec![(100, 0), (1937, 100)],
            _ => vec![(2037, 100)],
        };
        // Each of the other's is larger than the one before, so that each goes alone.
        let others = (0..20).map(|n| (50 + 5 * n, 0));
        assert_eq!(found, Vec::from_iter(expected.into_iter().chain(others)));
    }
    // Of a flow that has several replies waiting when it is read in two turns in a row.
    let flow = rig.udp.driver.flows.part(FLOW).expect("the client's");
    let flow = UdpSocket::from(flow.socket.try_clone().expect("clone"));
    let flow = flow.local_addr().expect("bound");
    for _ in 0..30 {
        backend.send_to(&[7; 200], flow).expect("reply");
    }
    rig.turns(3);
    let (found, from) = received(&client);
    assert_eq!(found, [(200, 0), (29 * 200, 200)]);
    assert_eq!(from, Some(vip));
}

#[test]
fn what_comes_joined_leaves_joined_or_apart_with_the_same_boundaries() {
    for joined in [true, false] {
        let mut rig = rig();
        let backend = joining("127.0.0.1");
        let pool = [backend.local_addr().expect("bound")];
        let vip = rig.frontend("127.0.0.1", &pool);
        let client = match joined {
            true => joining("127.0.0.1"),
            false => client("127.0.0.1"),
        };
        client.send_to(b"first", vip).expect("send");
        rig.turn();
        let (_, flow) = received(&backend);
        let flow = flow.expect("who sent it");
        client.connect(vip).expect("connect");
        let data: Vec<u8> = (0..1037u32).map(|n| (n % 251) as u8).collect();
        udp::send_run(client.as_fd(), &[&data[..700], &data[700..]], 100).expect("send");
        rig.turn();
        assert_eq!(received(&backend).0, [(1037, 100)]);
        let local = rig.local(vip);
        assert_eq!(local.counters.datagrams_downstream.value(), 12);

        // The flow asks for joined replies once it has seen several at a time: from then on the
        // kernel leaves them in one piece.
        for _ in 0..2 {
            let (mut sheet, before) = (Sheet::default(), local.counters.datagrams_upstream.value());
            let mut draft = sheet.start();
            draft.add(flow, &[&data[..]], Some(100));
            draft.add(flow, &[&data[..250]], None);
            draft.add(flow, &[&data[..1000]], Some(500));
            assert_eq!(draft.send(backend.as_fd(), 0).expect("replies"), 3);
            rig.until("forwarded", |_| {
                local.counters.datagrams_upstream.value() == before + 14
            });
            rig.turns(2);
            let datagrams = received(&client).0.into_iter();
            let sizes: Vec<usize> = datagrams
                .flat_map(|(bytes, segment)| match segment {
                    0 => vec![bytes],
                    _ => Vec::from_iter(vec![0; bytes].chunks(segment).map(<[u8]>::len)),
                })
                .collect();
            let expected = [vec![100; 10], vec![37, 250, 500, 500]].concat();
            assert_eq!(sizes, expected, "joined: {joined}");
        }
        assert_eq!(local.counters.bytes_upstream.value(), 2 * (1037 + 1250));
    }
}

#[test]
fn a_socket_that_cannot_send_several_at_once_sends_them_singly_from_then_on() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let client = client("127.0.0.1");
    rig.exchange(&client, vip, b"first");
    // The kernel segments nothing without checksums.
    let listener = rig.local(vip).listener().expect("open");
    udp::without_checksums(listener.as_fd());
    let upstream = rig.udp.driver.flows.part(FLOW).expect("the flow");
    assert_eq!(
        (upstream.largest_out, upstream.largest_back),
        (MAX_BYTES, MAX_BYTES)
    );
    udp::without_checksums(upstream.socket.as_fd());
    for _ in 0..2 {
        for size in [900, 300, 300, 300, 20, 300, 300] {
            client.send_to(&vec![size as u8; size], vip).expect("send");
        }
        for size in [900, 300, 300, 300, 20, 300, 300] {
            assert_eq!(rig.receive(&client), (vip, vec![size as u8; size]));
        }
        let upstream = rig.udp.driver.flows.part(FLOW).expect("the flow");
        assert_eq!((upstream.largest_out, upstream.largest_back), (299, 299));
    }
    let counters = &rig.local(vip).counters;
    assert!(counters.drops.iter().all(|c| c.value() == 0));
    assert_eq!(counters.datagrams_downstream.value(), 15);
}
