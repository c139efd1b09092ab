//! Bugs on request, for tests that ask what a bug of ours would do. Only with the cargo feature
//! `failpoints`, which no released build has.
//!
//! WEIR_FAILPOINT names one, or none; it is read once per process. WEIR_TEST_RING makes the io_uring
//! of each worker a tiny one, as `entries,buffers`: what happens when its queues are full.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A worker panics when the process's third connection is accepted.
const WORKER_PANIC: &str = "worker-panic-on-accept-3";

static ACCEPTED: AtomicU32 = AtomicU32::new(0);

/// Is the failpoint `name` asked for?
pub fn is_on(name: &str) -> bool {
    static ASKED: OnceLock<Option<String>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| std::env::var("WEIR_FAILPOINT").ok());
    asked.as_deref() == Some(name)
}

/// The entries of the submission queue and the number of provided buffers asked for; each a power
/// of two.
pub(crate) fn ring() -> Option<(u32, u16)> {
    let asked = std::env::var("WEIR_TEST_RING").ok()?;
    let (entries, buffers) = asked.split_once(',')?;
    Some((entries.parse().ok()?, buffers.parse().ok()?))
}

/// A worker has accepted a connection.
///
/// # Panics
/// If `worker-panic-on-accept-3` is on, at the third of the process.
pub(crate) fn accepted() {
    if is_on(WORKER_PANIC) && ACCEPTED.fetch_add(1, Ordering::Relaxed) == 2 {
        panic!("failpoint {WORKER_PANIC}");
    }
}
