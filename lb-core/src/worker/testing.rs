//! Tables, and a worker's parts, for the tests of this module.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Algorithm, HashKey};
use crate::table::{
    Backend, BackendState, FrontendKey, FrontendSpec, Owner, Policy, Protocol, SourceRanges, Table,
    TableBuilder,
};

use super::cx::Cx;
use super::descriptors::Descriptors;
use crate::plane::Limits;
use crate::stats::WorkerCounters;
use crate::sys::epoll::Poller;
use crate::time::Time;

/// A TCP frontend at `address` with active backends of weight 1.
pub(crate) fn spec(address: &str, backends: &[&str]) -> FrontendSpec {
    let address: SocketAddr = address.parse().expect("an address");
    let backends = backends.iter().map(|backend| Backend {
        address: backend.parse().expect("an address"),
        weight: 1,
        state: BackendState::Active,
    });
    FrontendSpec {
        key: FrontendKey {
            address: address.ip(),
            port: NonZeroU16::new(address.port()).expect("a port"),
            protocol: Protocol::Tcp,
        },
        owner: Owner {
            group: "group".into(),
            name: "name".into(),
            port: "port".into(),
        },
        precedence: 0,
        algorithm: Algorithm::Consistent,
        backends: backends.collect(),
        policy: Policy {
            sources: SourceRanges::any(),
            affinity: None,
            connect_timeout: Duration::from_millis(250),
            connect_budget: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(3_600),
            half_close_timeout: Duration::from_secs(60),
            flow_one_way_timeout: Duration::from_secs(30),
            flow_two_way_timeout: Duration::from_secs(120),
        },
    }
}

/// The first table with these frontends.
pub(crate) fn table(specs: &[FrontendSpec]) -> Arc<Table> {
    let mut builder = TableBuilder::new(HashKey([7; 16]));
    for spec in specs {
        builder.set(spec.clone()).expect("a valid frontend");
    }
    builder.freeze()
}

/// A worker's parts, alone in the world and at the start of time, with room for 16 pins.
pub(crate) fn cx() -> Cx {
    let counters: Arc<[_]> = [Arc::new(WorkerCounters::default())].into();
    let mut descriptors = Descriptors::new(Arc::clone(&counters), 0).expect("a descriptor");
    descriptors.allow(1_000);
    descriptors.begin_turn();
    Cx::new(
        Time::ZERO,
        Poller::new().expect("epoll"),
        descriptors,
        Arc::clone(&counters[0]),
        HashKey([7; 16]),
        Rc::new(Limits {
            pins: 16,
            ..Limits::default()
        }),
        1,
    )
}
