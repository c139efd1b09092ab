//! Bugs on request, for tests that ask what a bug of ours would do. Only with the cargo feature
//! `failpoints`, which no released build has.
//!
//! WEIR_FAILPOINT names one, or none; it is read once per process.

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

/// A worker has accepted a connection.
///
/// # Panics
/// If `worker-panic-on-accept-3` is on, at the third of the process.
pub(crate) fn accepted() {
    if is_on(WORKER_PANIC) && ACCEPTED.fetch_add(1, Ordering::Relaxed) == 2 {
        panic!("failpoint {WORKER_PANIC}");
    }
}
