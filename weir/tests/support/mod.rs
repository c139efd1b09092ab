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

pub mod cluster;
pub mod http;
pub mod machine;
pub mod manifest;
pub mod net;
pub mod stream;
pub mod traffic;
pub mod weir;
pub mod wire;

use std::time::{Duration, Instant};

#[allow(unused_imports)]
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

/// A length for `make test`, and the longer one of `make soak`.
pub fn long(short: u64, soak: u64) -> u64 {
    if std::env::var_os("WEIR_SOAK").is_some() {
        soak
    } else {
        short
    }
}

/// The ways a client reaches a server: each VIP family with backends of each family.
pub fn families() -> [(bool, bool); 4] {
    [(false, false), (true, true), (false, true), (true, false)]
}

/// A pod's address of a family.
pub fn pod(v6: bool, n: u16) -> std::net::IpAddr {
    if v6 {
        net::pod_v6(n).into()
    } else {
        net::pod_v4(n).into()
    }
}

/// A Service on one VIP family with one pod of the other or the same; the address to dial.
pub fn one_pod(
    weir: &Weir,
    name: &str,
    vip_v6: bool,
    pod_is_v6: bool,
    port: u16,
) -> std::net::SocketAddr {
    let family = if vip_v6 {
        "ipFamilies: [IPv6]"
    } else {
        "ipFamilies: [IPv4]"
    };
    let built = manifest::service(name)
        .spec(family)
        .tcp(port)
        .endpoints([pod(pod_is_v6, 0)], port);
    std::net::SocketAddr::new(weir.serve(&built)[0], port)
}

/// As much as a wait for something that is due at once may take; tests say it instead of sleeping.
pub const SOON: Duration = Duration::from_secs(20);
