//! One endpoint of one frontend changes: from the new spec to a frozen table and what a worker
//! learns by comparing. Must not grow with the number of frontends.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use benches::{KEY, backends, frontend};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_core::balance::Algorithm;
use lb_core::table::{Table, TableBuilder};

fn rebuild(c: &mut Criterion) {
    let mut group = c.benchmark_group("rebuild for one endpoint of 10");
    for size in [100, 1_000, 10_000] {
        let mut builder = TableBuilder::new(KEY);
        for n in 0..size {
            let spec = frontend(n, Algorithm::Consistent, backends(n * 16, 10, &[1]));
            builder.set(spec).expect("a valid frontend");
        }
        let mut table = builder.freeze();
        group.bench_function(BenchmarkId::new("frontends", size), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                let n = turn % size;
                let count = 9 + turn / size % 2;
                let spec = frontend(n, Algorithm::Consistent, backends(n * 16, count, &[1]));
                builder.set(spec).expect("a valid frontend");
                let next = builder.freeze();
                let mut told = 0;
                Table::diff(&table, &next, |_, _, _| told += 1);
                table = next;
                black_box(told)
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("rebuild a maglev pool");
    group.sample_size(10);
    for size in [16, 128, 1_000] {
        let mut builder = TableBuilder::new(KEY);
        group.bench_function(BenchmarkId::new("backends", size), |b| {
            let mut turn = 0;
            b.iter(|| {
                turn += 1;
                let count = size - turn % 2;
                builder.set(frontend(1, Algorithm::Maglev, backends(0, count, &[1])))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rebuild);
criterion_main!(benches);
