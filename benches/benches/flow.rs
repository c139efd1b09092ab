//! The UDP flow table of one worker with 1,000,000 flows: a datagram of a flow that lives, and one
//! that opens a flow (and the end of another, so that the number stays).
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use benches::mixed;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_core::flow::{FlowId, Flows, Limits, Rules, Timeouts, Verdict};
use lb_core::time::Time;

/// One frontend that never changes.
struct Open;

const TIMEOUTS: Timeouts = Timeouts {
    one_way: Duration::from_secs(30),
    two_way: Duration::from_secs(120),
};

impl Rules for Open {
    fn id(&self) -> u64 {
        1
    }
    fn epoch(&self) -> u64 {
        1
    }
    fn permits(&self, _: IpAddr) -> bool {
        true
    }
    fn holds(&self, _: SocketAddr) -> bool {
        true
    }
    fn timeouts(&self) -> Timeouts {
        TIMEOUTS
    }
}

fn client(n: u64) -> SocketAddr {
    let address = Ipv4Addr::from(0x0a00_0000 + (n % 65_536) as u32);
    SocketAddr::from((address, 1_024 + (n / 65_536) as u16))
}

fn open(flows: &mut Flows<u64>, now: Time, n: u64) -> FlowId {
    match flows.datagram(now, client(n), &Open) {
        Verdict::Open { admission, .. } => {
            let backend = SocketAddr::from(([192, 0, 2, 1], 53));
            flows.open(now, admission, backend, n)
        }
        other => panic!("{n}: {other:?}"),
    }
}

fn filled(count: u64) -> Flows<u64> {
    let limits = Limits {
        flows: 2_000_000,
        flows_per_source: 64,
        ..Limits::default()
    };
    let mut flows = Flows::new(limits, [42; 16]);
    let now = Time::from_micros(1);
    for n in 0..count {
        let flow = open(&mut flows, now, n);
        if n % 2 == 0 {
            flows.replied(now, flow, TIMEOUTS);
        }
    }
    flows
}

fn flow(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    for count in [1_000, 1_000_000] {
        let mut flows = filled(count);
        let now = Time::from_micros(2);
        group.bench_function(BenchmarkId::new("datagram of a living one", count), |b| {
            let mut n = 0;
            b.iter(|| {
                n = mixed(n);
                match flows.datagram(now, client(n % count), &Open) {
                    Verdict::Forward(flow) => black_box(flow),
                    other => panic!("{other:?}"),
                }
            });
        });
        group.bench_function(BenchmarkId::new("open one, close one", count), |b| {
            // Those opened here live beside the first ones.
            let mut n = count;
            let mut last = open(&mut flows, now, n);
            b.iter(|| {
                n = count + (n + 1 - count) % count;
                flows.close(last);
                last = open(&mut flows, now, n);
            });
            flows.close(last);
        });
    }
    group.finish();
}

criterion_group!(benches, flow);
criterion_main!(benches);
