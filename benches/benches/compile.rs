//! A cluster of 10,000 load balancers with 10 endpoints each: compiled from nothing, told once
//! more, and one endpoint's change.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::IpAddr;

use benches::{KEY, balancer, vip};
use controlplane::compile::{Compiler, Defaults};
use controlplane::load_balancer::LoadBalancer;
use criterion::{Criterion, criterion_group, criterion_main};

const BALANCERS: u32 = 10_000;
const ENDPOINTS: u32 = 10;

fn tell(compiler: &mut Compiler, cluster: &[(LoadBalancer, IpAddr)]) -> usize {
    let update = |(lb, vip): &(LoadBalancer, IpAddr)| compiler.update(&lb.key, Some((lb, &[*vip])));
    cluster
        .iter()
        .map(update)
        .filter(|(changed, _)| *changed)
        .count()
}

fn compile(c: &mut Criterion) {
    let cluster: Vec<_> = (0..BALANCERS)
        .map(|n| (balancer(n, ENDPOINTS), vip(n)))
        .collect();
    let mut group = c.benchmark_group("compile 10,000 load balancers, 100,000 endpoints");
    group.sample_size(10);
    group.bench_function("from nothing", |b| {
        b.iter(|| {
            let mut compiler = Compiler::new(KEY, Defaults::default());
            assert_eq!(tell(&mut compiler, &cluster), cluster.len());
            compiler.freeze()
        });
    });
    let mut compiler = Compiler::new(KEY, Defaults::default());
    tell(&mut compiler, &cluster);
    group.bench_function("told once more", |b| {
        b.iter(|| assert_eq!(tell(&mut compiler, &cluster), 0));
    });
    group.bench_function("one endpoint", |b| {
        let (mut lb, vip) = cluster[5_000].clone();
        let whole = lb.ports[0].v4.clone();
        let mut turn = 0;
        b.iter(|| {
            turn += 1;
            lb.ports[0].v4 = whole[turn % 2..].to_vec();
            black_box(compiler.update(&lb.key, Some((&lb, &[vip]))));
            compiler.freeze()
        });
    });
    group.finish();
}

criterion_group!(benches, compile);
criterion_main!(benches);
