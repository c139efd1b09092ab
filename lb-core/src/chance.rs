//! Where a simulation takes its decisions from: a seed, or the bytes that a fuzzer made up.
//!
//! Only in test and fuzzing builds. One world serves both: a seed draws a life at random, a fuzzer
//! steers it byte by byte, and what a fuzzer found is played again from its file by `cargo test`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A source of decisions.
#[derive(Debug)]
pub struct Chance<'a> {
    /// What decides, as long as there is some; after it the state.
    bytes: &'a [u8],
    state: u64,
}

impl<'a> Chance<'a> {
    /// Decides by a seed.
    pub fn seed(seed: u64) -> Chance<'static> {
        Chance {
            bytes: &[],
            state: seed,
        }
    }

    /// Decides by these bytes; when they are used up, by a seed that is always the same, so that
    /// whatever was begun comes to its end.
    pub fn bytes(bytes: &'a [u8]) -> Chance<'a> {
        Chance { bytes, state: 0 }
    }

    /// Are no bytes left?
    pub fn is_spent(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A number below `n`, which is not 0. Takes a byte of input for a small `n`, up to eight for
    /// a large one, so that a fuzzer's change of one byte is one other decision.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw(n - 1) % n
    }

    /// Yes, in `percent` of all cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn draw(&mut self, most: u64) -> u64 {
        if self.bytes.is_empty() {
            return self.split_mix();
        }
        let bytes = (u64::BITS - most.leading_zeros()).div_ceil(8).max(1) as usize;
        let taken = self.bytes.len().min(bytes);
        let (now, later) = self.bytes.split_at(taken);
        self.bytes = later;
        now.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    /// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    fn split_mix(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Plays `usual` seeds, few under Miri, which is some thousand times slower. `WEIR_SEED` plays that
/// one alone.
pub fn seeds(usual: u64, mut play: impl FnMut(u64)) {
    match std::env::var("WEIR_SEED") {
        Ok(seed) => play(seed.parse().expect("WEIR_SEED is a number")),
        Err(_) => (0..if cfg!(miri) { 3 } else { usual }).for_each(play),
    }
}

/// Plays seeds that [`seeds`] does not reach, for `WEIR_SOAK` seconds (60 without); says how many.
pub fn soak(mut play: impl FnMut(u64)) -> u64 {
    let seconds = std::env::var("WEIR_SOAK").ok();
    let seconds = seconds.map_or(60, |s| s.parse().expect("WEIR_SOAK is a number"));
    let end = Instant::now() + Duration::from_secs(seconds);
    // Other seeds at every soak: the failing one is printed.
    let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = first.map_or(1 << 40, |now| now.as_secs() << 24);
    let mut played = 0;
    while Instant::now() < end {
        play(first + played);
        played += 1;
    }
    played
}

/// Plays every file of `fuzz/seeds/NAME`: what a fuzzer found worth keeping.
pub fn replay(name: &str, mut play: impl FnMut(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(name);
    let files = fs::read_dir(&directory).expect("the fuzzer's seeds are there");
    let mut played = 0;
    for file in files.take(if cfg!(miri) { 3 } else { usize::MAX }) {
        let path = file.expect("a file of it").path();
        let bytes = fs::read(&path).expect("it can be read");
        let told = OnPanic(|| eprintln!("while it played {}", path.display()));
        play(&bytes);
        drop(told);
        played += 1;
    }
    assert!(played > 0, "{} is empty", directory.display());
}

/// Says something if the thread panics before it is dropped.
#[derive(Debug)]
pub struct OnPanic<F: Fn()>(pub F);

impl<F: Fn()> Drop for OnPanic<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0();
        }
    }
}
