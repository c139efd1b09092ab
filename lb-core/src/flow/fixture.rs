//! What the tests and the simulation of the flows are made with.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::*;

/// Rules that a test writes down.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    pub(super) frontend: u64,
    pub(super) epoch: u64,
    pub(super) denied: Vec<IpAddr>,
    pub(super) backends: Vec<SocketAddr>,
    pub(super) timeouts: Timeouts,
}

impl Rules for Fixed {
    fn id(&self) -> u64 {
        self.frontend
    }
    fn epoch(&self) -> u64 {
        self.epoch
    }
    fn permits(&self, client: IpAddr) -> bool {
        !self.denied.contains(&client)
    }
    fn holds(&self, backend: SocketAddr) -> bool {
        self.backends.contains(&backend)
    }
    fn timeouts(&self) -> Timeouts {
        self.timeouts
    }
}

pub(super) fn backend(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 53))
}

pub(super) fn client(source: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, source], port))
}

pub(super) fn rules() -> Fixed {
    Fixed {
        frontend: 1,
        epoch: 1,
        denied: vec![],
        backends: vec![backend(1), backend(2)],
        timeouts: Timeouts {
            one_way: Duration::from_secs(30),
            two_way: Duration::from_secs(120),
        },
    }
}
