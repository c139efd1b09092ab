//! The cost of choosing a backend, by algorithm and pool size.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use benches::{Free, KEY, backends, frontend, mixed};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_core::balance::Algorithm;
use lb_core::table::{Pool, TableBuilder};

fn pool(algorithm: Algorithm, size: u32, weights: &[u16]) -> Arc<Pool> {
    let spec = frontend(1, algorithm, backends(0, size, weights));
    let key = spec.key;
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec).expect("a valid frontend");
    let made = builder.frontend(&key).expect("just set");
    Arc::clone(&made.pool)
}

fn pick(c: &mut Criterion) {
    let cases: [(&str, Algorithm, &[u16]); 7] = [
        ("consistent", Algorithm::Consistent, &[1]),
        (
            "consistent, 4 weights",
            Algorithm::Consistent,
            &[1, 2, 5, 100],
        ),
        ("maglev", Algorithm::Maglev, &[1]),
        ("round-robin", Algorithm::RoundRobin, &[1]),
        (
            "round-robin, 4 weights",
            Algorithm::RoundRobin,
            &[1, 2, 5, 100],
        ),
        ("random", Algorithm::Random, &[1]),
        ("least-connections", Algorithm::LeastConnections, &[1]),
    ];
    let mut group = c.benchmark_group("pick");
    for (name, algorithm, weights) in cases {
        for size in [10, 100, 1_000] {
            let pool = pool(algorithm, size, weights);
            group.bench_function(BenchmarkId::new(name, size), |b| {
                let (mut view, mut hash) = (Free::default(), 0);
                b.iter(|| {
                    hash = mixed(hash);
                    black_box(pool.pick(hash, &mut view))
                });
            });
        }
    }
    group.finish();

    c.bench_function("key_hash", |b| {
        let key = frontend(1, Algorithm::Consistent, Vec::new()).key;
        let client: SocketAddr = ([198, 51, 100, 1], 40_000).into();
        b.iter(|| black_box(&key).hash(&KEY, black_box(client), false));
    });
}

criterion_group!(benches, pick);
criterion_main!(benches);
