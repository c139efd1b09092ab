//! A frontend's backends, frozen.

use std::net::SocketAddr;

use super::Backend;
use crate::balance::{Algorithm, HashKey, Index, View};

/// A frontend's backends and how one of them is chosen. Never changes; equal if its backends and
/// its algorithm are.
#[derive(Debug)]
pub struct Pool {
    /// Ascending by address, every address once. The positions that [`Pool::pick`] answers.
    pub backends: Box<[Backend]>,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    index: Index,
}

impl Pool {
    /// Freezes `backends`, which are [`canonical`], for a table of `key`.
    pub(super) fn new(backends: Vec<Backend>, algorithm: Algorithm, key: &HashKey) -> Pool {
        let index = Index::new(algorithm, backends.iter().map(Backend::candidate), key);
        Pool {
            backends: backends.into(),
            algorithm,
            index,
        }
    }

    /// Does any backend take new work? If not, the frontend is a closed port.
    pub fn has_usable(&self) -> bool {
        self.backends.iter().any(|b| b.candidate().1 > 0)
    }

    /// The backend for a client whose [hash](super::FrontendKey::hash) is `hash`, as a
    /// position in `backends`; `None` if every usable backend is skipped, or none is usable.
    pub fn pick(&self, hash: u64, view: &mut impl View) -> Option<usize> {
        self.index.pick(hash, view)
    }
}

impl PartialEq for Pool {
    fn eq(&self, other: &Pool) -> bool {
        // The index follows from these and the table's key.
        self.algorithm == other.algorithm && self.backends == other.backends
    }
}

impl Eq for Pool {}

/// One order for equal sets, whatever order they came in, so that pools compare and appliances
/// agree. v4-mapped addresses become IPv4, flow labels go. Of several entries for one address the
/// active one counts, then the heavier.
pub(super) fn canonical(backends: Vec<Backend>) -> Vec<Backend> {
    let mut backends = backends;
    for backend in &mut backends {
        let ip = backend.address.ip().to_canonical();
        match &mut backend.address {
            SocketAddr::V6(v6) if ip.is_ipv6() => v6.set_flowinfo(0),
            address => *address = SocketAddr::new(ip, address.port()),
        }
    }
    backends.sort_unstable_by_key(|b| (b.address, b.state, std::cmp::Reverse(b.weight)));
    backends.dedup_by_key(|b| b.address);
    backends
}
