//! What the micro benches measure with: pools, load balancers and a worker's view, all made from
//! numbers, so that every run measures the same.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use controlplane::load_balancer::{Addressing, LoadBalancer, Port};
use controlplane::object::{Key, Kind, SourceId};
use lb_core::balance::{Algorithm, View};
use lb_core::table::{
    Backend, BackendState, FrontendKey, FrontendSpec, HashKey, Owner, Policy, Protocol,
    SourceRanges,
};

/// The key of every bench.
pub const KEY: HashKey = HashKey([42; 16]);

/// A worker that skips nobody: the usual case.
#[derive(Debug, Default)]
pub struct Free {
    random: u64,
    ticket: u64,
}

impl View for Free {
    fn skip(&self, _: usize) -> bool {
        false
    }

    fn active(&self, i: usize) -> u32 {
        i as u32 % 7
    }

    fn random(&mut self) -> u64 {
        self.random = mixed(self.random);
        self.random
    }

    fn round(&mut self) -> u64 {
        self.ticket = self.ticket.wrapping_add(1);
        self.ticket
    }
}

/// The next of a sequence without a visible order (splitmix64).
pub fn mixed(state: u64) -> u64 {
    let x = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `count` backends from the `first`th on, their weights by turns those of `weights`.
pub fn backends(first: u32, count: u32, weights: &[u16]) -> Vec<Backend> {
    (0..count)
        .zip(weights.iter().cycle())
        .map(|(n, &weight)| Backend {
            address: SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + first + n), 8080)),
            weight,
            state: BackendState::Active,
        })
        .collect()
}

/// The `n`th VIP.
pub fn vip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xc612_0000 + n))
}

/// The `n`th frontend with these backends.
pub fn frontend(n: u32, algorithm: Algorithm, backends: Vec<Backend>) -> FrontendSpec {
    FrontendSpec {
        key: FrontendKey {
            address: vip(n),
            port: NonZeroU16::MIN,
            protocol: Protocol::Tcp,
        },
        owner: Owner {
            group: "bench".into(),
            name: "bench".into(),
            port: "1".into(),
        },
        precedence: u64::from(n),
        algorithm,
        backends,
        policy: Policy {
            sources: SourceRanges::any(),
            affinity: None,
            connect_timeout: Duration::from_millis(250),
            connect_budget: Duration::from_secs(3),
            idle_timeout: Duration::ZERO,
            half_close_timeout: Duration::from_secs(300),
            flow_one_way_timeout: Duration::from_secs(30),
            flow_two_way_timeout: Duration::from_secs(120),
        },
    }
}

/// The `n`th load balancer: one port with `endpoints` backends.
pub fn balancer(n: u32, endpoints: u32) -> LoadBalancer {
    LoadBalancer {
        key: Key {
            source: SourceId(0),
            cluster: "".into(),
            kind: Kind::Service,
            namespace: "bench".into(),
            name: format!("service-{n:05}").into(),
            uid: "".into(),
        },
        created: Some(i64::from(n)),
        addressing: Addressing::Fixed(Vec::new()),
        ports: vec![Port {
            name: "http".into(),
            port: NonZeroU16::MIN,
            protocol: Protocol::Tcp,
            v4: backends(n * endpoints, endpoints, &[1]),
            v6: Vec::new(),
        }],
        algorithm: Algorithm::Consistent,
        affinity: None,
        published: Vec::new(),
        sources: None,
        idle_timeout: None,
    }
}
