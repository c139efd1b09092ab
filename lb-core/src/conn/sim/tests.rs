//! Many lives, by seed and by what a fuzzer found.

use std::collections::HashMap;

use super::*;
use crate::chance::{self, OnPanic};

fn simulate(seed: u64) -> CloseReason {
    let _told = OnPanic(|| eprintln!("WEIR_SEED={seed}"));
    World::new(Chance::seed(seed)).live()
}

#[test]
fn every_promise_holds_in_hostile_orders() {
    let mut reasons = HashMap::new();
    chance::seeds(8_000, |seed| {
        *reasons.entry(simulate(seed)).or_insert(0u32) += 1;
    });
    if reasons.values().sum::<u32>() < 8_000 {
        return;
    }
    // The simulation reaches what it is meant to judge.
    for reason in [
        CloseReason::Finished,
        CloseReason::SourceDenied,
        CloseReason::ConnectFailed,
        CloseReason::NoBackend,
        CloseReason::DownstreamReset,
        CloseReason::UpstreamReset,
        CloseReason::DownstreamTimedOut,
        CloseReason::UpstreamTimedOut,
        CloseReason::IdleTimeout,
        CloseReason::HalfCloseTimeout,
        CloseReason::DrainDeadline,
        CloseReason::MemoryPressure,
    ] {
        let n = reasons.get(&reason).copied().unwrap_or(0);
        assert!(n >= 20, "{reason:?} only {n} times: {reasons:?}");
    }
}

#[test]
#[ignore = "long: make soak"]
fn every_promise_holds_for_long() {
    let played = chance::soak(|seed| {
        simulate(seed);
    });
    eprintln!("{played} lives");
}

#[test]
fn what_the_fuzzer_found_is_played_again() {
    chance::replay("conn", play);
}
