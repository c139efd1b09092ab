//! Many worlds, by seed and by what a fuzzer found.

use super::*;
use crate::chance::{self, OnPanic};

fn simulate(seed: u64) -> u64 {
    let _told = OnPanic(|| eprintln!("WEIR_SEED={seed}"));
    let key = seed.to_le_bytes().repeat(2).try_into().expect("16 bytes");
    let mut world = World::new(Chance::seed(seed), key);
    let steps = if cfg!(miri) { 100 } else { 1_500 };
    for _ in 0..steps {
        world.step();
    }
    world.end();
    world.answered
}

#[test]
fn invariants_hold_in_a_hostile_world() {
    let (mut answered, mut worlds) = (0, 0);
    chance::seeds(60, |seed| {
        answered += simulate(seed);
        worlds += 1;
    });
    assert!(
        worlds < 60 || answered > 10_000,
        "the world must mostly work: {answered}"
    );
}

#[test]
#[ignore = "long: make soak"]
fn invariants_hold_for_long() {
    let played = chance::soak(|seed| {
        simulate(seed);
    });
    eprintln!("{played} worlds");
}

#[test]
fn what_the_fuzzer_found_is_played_again() {
    chance::replay("flow", play);
}
