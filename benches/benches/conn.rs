//! The TCP state machine alone: one connection's whole life, and one message relayed.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use lb_core::conn::{Actions, Conn, Event, Side, Timeouts};
use lb_core::time::Time;

const D: Side = Side::Downstream;
const U: Side = Side::Upstream;

fn timeouts() -> Timeouts {
    let seconds = Duration::from_secs;
    Timeouts::new(
        Duration::from_millis(250),
        seconds(3),
        seconds(3_600),
        seconds(300),
    )
}

fn run(conn: &mut Conn, out: &mut Actions, events: &[Event]) {
    for event in events {
        out.clear();
        conn.step(Time::from_micros(1), *black_box(event), out);
        black_box(out.as_slice());
    }
}

const START: [Event; 3] = [
    Event::Accepted { denied: false },
    Event::Picked { round: 0 },
    Event::Connected,
];
const REQUEST: [Event; 2] = [
    Event::Received { side: D, n: 64 },
    Event::Sent { side: U, n: 64 },
];
const REPLY: [Event; 2] = [
    Event::Received { side: U, n: 64 },
    Event::Sent { side: D, n: 64 },
];
const END: [Event; 2] = [
    Event::Received { side: U, n: 0 },
    Event::Received { side: D, n: 0 },
];

fn conn(c: &mut Criterion) {
    let mut group = c.benchmark_group("conn");
    let mut out = Actions::new();
    group.bench_function("a life: accept, request, reply, close (9 steps)", |b| {
        b.iter(|| {
            let mut conn = Conn::new(timeouts());
            run(&mut conn, &mut out, &START);
            run(&mut conn, &mut out, &REQUEST);
            run(&mut conn, &mut out, &REPLY);
            run(&mut conn, &mut out, &END);
            assert!(conn.is_closed());
        });
    });
    group.bench_function("one message relayed (2 steps)", |b| {
        let mut conn = Conn::new(timeouts());
        run(&mut conn, &mut out, &START);
        b.iter(|| run(&mut conn, &mut out, &REQUEST));
    });
    group.finish();
}

criterion_group!(benches, conn);
criterion_main!(benches);
