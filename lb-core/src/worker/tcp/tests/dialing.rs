//! Finding a backend: what the client must never see, and what it must see at once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::harness::*;
use crate::stats::{CloseReason, ConnectError};
use crate::table::{Policy, Slot, SourceRanges};
use crate::worker::local::Local;
use crate::worker::tcp::Tcp;
use crate::worker::testing;

#[track_caller]
fn answers(proxy: &Proxy) -> Duration {
    let start = Instant::now();
    let mut client = proxy.connect();
    client.write_all(b"ping").expect("open");
    let mut back = [0; 4];
    client.read_exact(&mut back).expect("an answer");
    assert_eq!(&back, b"ping");
    start.elapsed()
}

/// Its clocks are longer than PATIENCE: what comes has waited for none of them.
fn patient() -> Policy {
    Policy {
        connect_timeout: Duration::from_secs(60),
        connect_budget: Duration::from_secs(60),
        ..policy()
    }
}

#[test]
fn a_refusal_goes_to_the_next_at_once() {
    for (down, up) in [(V4, V4), (V6, V4), (V4, V6)] {
        let (dead, held): (Vec<_>, Vec<_>) = (0..3).map(|_| refusing(up)).unzip();
        let mut backends = dead.clone();
        backends.push(backend(down, echo));
        let proxy = Proxy::start(down, &backends, patient());
        for _ in 0..20 {
            answers(&proxy);
        }
        proxy.settle_as(CloseReason::Finished, 20);
        // Marked after their first refusal, they are passed over.
        assert_eq!(proxy.connect_errors(), [(ConnectError::Refused, 3)]);
        drop(held);
    }
}

#[test]
fn a_black_hole_costs_one_try() {
    let (_full, address) = black_hole();
    let proxy = Proxy::start(V4, &[address, backend(V4, echo)], policy());
    let waits: Vec<_> = (0..6).map(|_| answers(&proxy)).collect();
    let mut slow = waits.iter().filter(|w| **w >= Duration::from_millis(240));
    assert!(
        slow.any(|w| *w < Duration::from_secs(2)),
        "one try: {waits:?}"
    );
    // The mark spares the rest.
    assert_eq!(proxy.connect_errors(), [(ConnectError::Timeout, 1)]);
    proxy.settle_as(CloseReason::Finished, 6);
}

#[test]
fn refused_everywhere_is_a_reset_at_once() {
    let (dead, _held): (Vec<_>, Vec<_>) = (0..3).map(|_| refusing(V4)).unzip();
    let proxy = Proxy::start(V4, &dead, patient());
    same(&read_to_reset(&mut proxy.connect()), b"");
    proxy.settle_as(CloseReason::ConnectFailed, 1);
    let twice = [(ConnectError::Refused, 6)];
    assert_eq!(proxy.connect_errors(), twice, "two rounds");
}

#[test]
fn black_holes_everywhere_end_with_the_budget() {
    let (_full, address) = black_hole();
    let short = Policy {
        connect_timeout: Duration::from_millis(50),
        connect_budget: Duration::from_millis(220),
        ..policy()
    };
    let proxy = Proxy::start(V4, &[address], short);
    let start = Instant::now();
    same(&read_to_reset(&mut proxy.connect()), b"");
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(215),
        "gave up early: {took:?}"
    );
    assert!(took < Duration::from_secs(5), "gave up late: {took:?}");
    proxy.settle_as(CloseReason::ConnectFailed, 1);
    let tries = proxy.counters.connect_failed(ConnectError::Timeout);
    assert!(tries.value() >= 4);
}

#[test]
fn a_backend_that_returns_is_found_though_all_are_marked() {
    let (address, held) = refusing(V4);
    let proxy = Proxy::start(V4, &[address], patient());
    read_to_reset(&mut proxy.connect());
    held.listen(8).expect("a bound socket");
    std::thread::spawn(move || {
        let (stream, _) = held.accept().expect("a caller");
        echo(stream.into());
    });
    answers(&proxy);
}

#[test]
fn a_denied_source_is_reset_and_nothing_is_dialled() {
    let dialled = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&dialled);
    let server = backend(V4, move |_| _ = seen.fetch_add(1, Ordering::SeqCst));
    let elsewhere = SourceRanges::from_prefixes([([192, 0, 2, 0].into(), 24)]);
    let denying = Policy {
        sources: elsewhere,
        ..policy()
    };
    let proxy = Proxy::start(V4, &[server], denying);
    for _ in 0..10 {
        same(&read_to_reset(&mut proxy.connect()), b"");
    }
    proxy.settle_as(CloseReason::SourceDenied, 10);
    assert_eq!(dialled.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.counters.bytes_downstream.value(), 0);
}

#[test]
fn what_a_client_sends_before_it_is_connected_arrives() {
    let (dead, _held) = refusing(V4);
    let (address, streams) = one_backend(V4);
    let proxy = Proxy::start(V4, &[dead, address], policy());
    for _ in 0..4 {
        let mut client = proxy.connect();
        client.write_all(b"request").expect("open");
        client.shutdown(std::net::Shutdown::Write).expect("open");
        let mut server = streams.recv_timeout(PATIENCE).expect("it is dialled");
        same(&read_to_fin(&mut server), b"request");
        server.write_all(b"answer").expect("open");
        drop(server);
        same(&read_to_fin(&mut client), b"answer");
    }
    proxy.settle_as(CloseReason::Finished, 4);
}

/// A worker kept busy by others comes to its timers before it comes to the event of the handshake.
#[test]
fn a_handshake_that_ended_in_time_is_no_timeout_however_late_the_worker_is() {
    let (address, streams) = one_backend(V4);
    let table = testing::table(&[testing::spec("127.0.0.1:1", &[&address.to_string()])]);
    let local = Rc::new(Local::new(Slot(0), table.get(Slot(0)).expect("one")));
    let mut cx = testing::cx();
    let mut tcp = Tcp::new();
    let listener = TcpListener::bind((V4, 0)).expect("a port");
    listener.set_nonblocking(true).expect("an option");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    tcp.on_listener(&mut cx, &local, listener.as_fd());
    let _server = streams.recv_timeout(PATIENCE).expect("it is dialled");
    cx.now = cx.now + Duration::from_secs(1);
    let token = cx.timers.pop(cx.now).expect("the timer of the try");
    tcp.on_timer(&mut cx, token);
    assert_eq!(
        local
            .counters
            .connect_errors
            .iter()
            .map(|c| c.value())
            .sum::<u64>(),
        0
    );
    assert_eq!(local.counters.connections_active.value(), 1);
    assert_eq!(cx.timers.len(), 1, "that of an idle connection");
    tcp.cut(&mut cx);
    assert!(cx.timers.is_empty());
}
