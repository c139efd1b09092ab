//! Frontends that do not fit into the descriptor limit. Alone in its process: the limit is the
//! process's.

mod common;

use common::*;
use lb_core::plane::ListenerState;
use lb_core::table::{FrontendSpec, Protocol};
use rustix::process::{Resource, Rlimit, setrlimit};

#[test]
fn the_oldest_frontends_are_served() {
    let backend = tcp_echo();
    let limit = Rlimit {
        current: Some(100),
        maximum: Some(100),
    };
    setrlimit(Resource::Nofile, limit).expect("a lower limit is allowed to all");
    // 100 - 25 in reserve - 2 x 3 for the workers; of 69, 52 for listeners of 2 workers: 26.
    const FIT: usize = 26;
    let specs: Vec<FrontendSpec> = (0..FIT + 4)
        .map(|n| {
            let mut spec = spec(Protocol::Tcp, loopback(), &[backend]);
            // The newest first in the table: slots must not decide.
            spec.precedence = 1_000 - n as u64;
            spec
        })
        .collect();
    let mut rig = Rig::start(2, &specs);
    let served = |rig: &Rig, spec: &FrontendSpec| match rig.listener(spec) {
        ListenerState::Listening => true,
        ListenerState::OverLimit => false,
        other => panic!("{other:?}"),
    };
    for (n, spec) in specs.iter().enumerate() {
        assert_eq!(served(&rig, spec), n >= 4, "frontend {n}");
    }
    let address = |spec: &FrontendSpec| (spec.key.address, spec.key.port.get()).into();
    exchange(address(&specs[FIT + 3])).expect("served");
    exchange(address(&specs[3])).expect_err("over the limit");

    // An older one goes: the oldest of those that waited takes its place.
    rig.remove(&specs[10]);
    for (n, spec) in specs.iter().enumerate().filter(|&(n, _)| n != 10) {
        assert_eq!(served(&rig, spec), n >= 3, "frontend {n}");
    }
    exchange(address(&specs[3])).expect("served now");

    // It comes back, and is served before those that came after it.
    rig.set(&[specs[10].clone()]);
    for (n, spec) in specs.iter().enumerate() {
        assert_eq!(served(&rig, spec), n >= 4, "frontend {n}");
    }

    // All fit again.
    for spec in &specs[..4] {
        rig.remove(spec);
    }
    assert!(specs[4..].iter().all(|spec| served(&rig, spec)));
}
