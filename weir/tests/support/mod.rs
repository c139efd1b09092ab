//! What every end-to-end test stands on: network namespaces, the real binary in one of them,
//! manifests, and small servers and clients that check what they carry.
//!
//! The laboratory: a client, the appliance and the servers, each in a namespace of its own.
//!
//! ```text
//!   client 10.1.0.2 --- 10.1.0.1 appliance 10.2.0.1 --- 10.2.0.2 + pods 10.2.0.11..  servers
//!          fd01::2  --- fd01::1            fd02::1  --- fd02::2  + pods fd02::11..
//! ```
//!
//! VIPs come from 10.1.0.64/26 and fd01::64:0/112, on the client's own link.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod manifest;
pub mod net;
pub mod traffic;
pub mod weir;

use std::time::{Duration, Instant};

pub use net::Lab;
pub use weir::Weir;

/// Asks again until it holds; fails the test with `what` when the deadline passes.
#[track_caller]
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As [`eventually`], for something that becomes available.
#[track_caller]
pub fn eventually_some<T>(what: &str, within: Duration, mut get: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(what, within, || {
        found = get();
        found.is_some()
    });
    found.unwrap()
}

/// True, with a line that says why, where the machine lacks what namespaces need.
pub fn skip(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return false;
    }
    println!("SKIP: {test}: network namespaces need root");
    true
}

/// `seconds` of the test's own bound in CI; tests say how long each wait may take instead of sleeping.
pub const SOON: Duration = Duration::from_secs(5);
