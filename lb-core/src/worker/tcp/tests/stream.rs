//! Bytes: none lost, doubled, reordered or held back.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use socket2::SockRef;

use super::super::connection::{Connection, WORK_PER_TURN};
use super::super::end::RECEIVE_SIZE;
use super::harness::*;
use crate::stats::CloseReason;
use crate::worker::pipes;

/// Sends and receives at once.
#[track_caller]
pub(super) fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().expect("a descriptor");
    let bytes = bytes.to_vec();
    let sending = thread::spawn(move || {
        writer.write_all(&bytes).expect("it takes all");
        writer.shutdown(Shutdown::Write).expect("it is open");
    });
    let back = read_to_fin(&mut stream);
    sending.join().expect("sent");
    back
}

#[test]
fn every_size_comes_back_between_all_families() {
    const SIZES: [usize; 10] = [
        0,
        1,
        2,
        16_383,
        16_384,
        16_385,
        65_535,
        65_536,
        65_537,
        3 << 20,
    ];
    for (down, up) in [(V4, V4), (V6, V6), (V4, V6), (V6, V4)] {
        let proxy = Proxy::start(down, &[backend(up, echo)], policy());
        for size in SIZES {
            let bytes = pattern(size as u64, size);
            same(&exchange(proxy.connect(), &bytes), &bytes);
        }
        proxy.settle_as(CloseReason::Finished, SIZES.len() as u64);
        let sum = SIZES.iter().sum::<usize>() as u64;
        assert_eq!(proxy.counters.bytes_downstream.value(), sum);
        assert_eq!(proxy.counters.bytes_upstream.value(), sum);
        assert_eq!(proxy.connect_errors(), []);
    }
}

#[test]
fn many_transfers_both_ways_at_once() {
    const LEN: usize = 1 << 20;
    // Not an echo: each side sends its own bytes without waiting for the other's.
    let server = backend(V4, |stream| {
        same(&exchange(stream, &pattern(1, LEN)), &pattern(2, LEN));
    });
    let proxy = Proxy::start(V4, &[server], policy());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    same(
                        &exchange(proxy.connect(), &pattern(2, LEN)),
                        &pattern(1, LEN),
                    );
                }
            });
        }
    });
    proxy.settle_as(CloseReason::Finished, 32);
}

#[test]
fn single_bytes_pass_without_delay() {
    let (proxy, mut client, server) = pair(policy());
    let echoing = thread::spawn(move || echo(server));
    client.set_nodelay(true).expect("an option");
    let start = Instant::now();
    for i in 0..1_000u32 {
        let byte = [i as u8];
        client.write_all(&byte).expect("open");
        let mut back = [0];
        client.read_exact(&mut back).expect("an answer");
        assert_eq!(back, byte);
    }
    // Nagle's delay, or a delayed acknowledgement, would be 40 ms each.
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(client);
    echoing.join().expect("echo ends");
    proxy.settle_as(CloseReason::Finished, 1);
}

/// Linux ends a receive at the urgent mark, and no event tells of the byte behind it: a proxy that
/// believes a short receive would hang here, where nothing follows the mark.
#[test]
fn the_urgent_byte_stays_in_its_place() {
    for offsets in [&[0][..], &[1], &[5_000], &[9_999], &[0, 1, 2, 700, 5_000]] {
        let (proxy, mut client, mut server) = pair(policy());
        let bytes = pattern(3, 10_000);
        let mut from = 0;
        for &at in offsets {
            // In one segment: one event for what is before the mark and what is behind it.
            send(&client, &bytes[from..=at], SendFlags::OOB).expect("open");
            let mut got = vec![0; at + 1 - from];
            server.read_exact(&mut got).expect("the urgent byte too");
            same(&got, &bytes[from..=at]);
            from = at + 1;
        }
        client.write_all(&bytes[from..]).expect("open");
        client.shutdown(Shutdown::Write).expect("open");
        same(&read_to_fin(&mut server), &bytes[from..]);
        // And the other way: a server's urgent byte, to a client that takes it in line.
        SockRef::from(&client)
            .set_out_of_band_inline(true)
            .expect("an option");
        send(&server, b"answer!", SendFlags::OOB).expect("open");
        drop(server);
        same(&read_to_fin(&mut client), b"answer!");
        proxy.settle_as(CloseReason::Finished, 1);
    }
}

/// Marks in mid-stream, faster than they can be told apart.
#[test]
fn urgent_data_in_mid_stream_loses_nothing() {
    let (proxy, client, mut server) = pair(policy());
    let bytes = pattern(8, 300_000);
    let sent = bytes.clone();
    let sending = thread::spawn(move || {
        for (i, piece) in sent.chunks(997).enumerate() {
            let flags = if i % 3 == 0 {
                SendFlags::OOB
            } else {
                SendFlags::empty()
            };
            assert_eq!(send(&client, piece, flags), Ok(piece.len()));
        }
    });
    same(&read_to_fin(&mut server), &bytes);
    sending.join().expect("sent");
    drop(server);
    proxy.settle();
}

#[test]
fn a_reader_that_stalls_stops_the_sender_and_loses_nothing() {
    // More than the kernel's queues take: our own receive queue grows up to tcp_rmem's 32 MiB.
    const LEN: usize = 64 << 20;
    let (proxy, mut client, mut server) = pair(policy());
    let sending = thread::spawn(move || {
        server.write_all(&pattern(4, LEN)).expect("it takes all");
    });
    // It comes to a stop: the kernel's buffers are full, and ours (or a pipe) holds one receive.
    let read = || proxy.counters.bytes_upstream.value();
    let mut last = 0;
    until("the sender stands", || {
        let before = std::mem::replace(&mut last, read());
        thread::sleep(Duration::from_millis(100));
        before > 0 && before == last
    });
    assert!(last < LEN as u64, "nothing stopped the sender");
    assert!(!sending.is_finished());
    same(&read_to_fin(&mut client), &pattern(4, LEN));
    sending.join().expect("sent");
    drop(client);
    proxy.settle_as(CloseReason::Finished, 1);
}

#[test]
fn a_bulk_transfer_leaves_the_others_their_turn() {
    let server = backend(V4, echo);
    let proxy = Proxy::start(V4, &[server], policy());
    let bulk = proxy.connect();
    let carrier = thread::spawn(move || exchange(bulk, &pattern(5, 48 << 20)).len());
    let mut small = proxy.connect();
    while !carrier.is_finished() {
        small.write_all(b"x").expect("open");
        small.read_exact(&mut [0]).expect("an answer");
    }
    assert_eq!(carrier.join().expect("echoed"), 48 << 20);
    // Whatever the timing: no call moves more than a connection's share, and what its last receive
    // brings.
    let most = proxy.most_at_once();
    let share = WORK_PER_TURN as usize * RECEIVE_SIZE;
    assert!(
        most > 0 && most < (share + pipes::SIZE) as u64,
        "{most} bytes in one go"
    );
}

#[test]
fn an_idle_connection_is_small() {
    // With its slab entry, its timer and the wheel's links it stays within 256 bytes.
    assert!(
        size_of::<Connection>() <= 192,
        "{}",
        size_of::<Connection>()
    );
    const { assert!(RECEIVE_SIZE <= crate::worker::cx::SCRATCH) };
}
