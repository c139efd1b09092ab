//! What the flow table and its driver say to each other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::FlowId;
#[cfg(doc)]
use super::Flows;

/// What one worker's flows may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows in all; each costs a descriptor.
    pub flows: usize,
    /// Flows of one client address, over all frontends and ports.
    pub flows_per_source: usize,
    /// Bytes of kept datagrams in all.
    pub copy_bytes: usize,
    /// A one-way flow younger than this is never shed: its reply may be on the way. It also
    /// bounds what a flood costs: at most `flows / one_way_grace` new sockets a second once full.
    pub one_way_grace: Duration,
}

impl Default for Limits {
    /// 65,536 flows, 16,384 of one source, 4 MiB of copies, 100 ms of grace.
    fn default() -> Limits {
        Limits {
            flows: 65_536,
            flows_per_source: 16_384,
            copy_bytes: 4 << 20,
            one_way_grace: Duration::from_millis(100),
        }
    }
}

/// How long a flow may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Since the last datagram, before the first reply.
    pub one_way: Duration,
    /// Since the last datagram of either side, after it.
    pub two_way: Duration,
}

impl Timeouts {
    pub(super) fn of(self, two_way: bool) -> Duration {
        if two_way { self.two_way } else { self.one_way }
    }
}

/// What the flows ask of the frontend that a datagram came to.
pub trait Rules {
    /// The frontend's number, never used again for another one while flows of it live.
    fn id(&self) -> u64;
    /// Changes whenever `permits` or `holds` might answer differently.
    fn epoch(&self) -> u64;
    /// May this client talk to the frontend?
    fn permits(&self, client: IpAddr) -> bool;
    /// Is the backend still in the pool, in whatever state?
    fn holds(&self, backend: SocketAddr) -> bool;
    /// The timeouts of now.
    fn timeouts(&self) -> Timeouts;
}

/// Why a datagram is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The frontend does not admit the client.
    SourceDenied,
    /// The worker has no room for a new flow.
    FlowLimit,
    /// The client has no room for a new flow.
    SourceFlowLimit,
}

/// A promise that the table has room for one flow; spent by [`Flows::open`].
#[derive(Debug)]
pub struct Admission {
    pub(super) frontend: u64,
    pub(super) client: SocketAddr,
    pub(super) epoch: u64,
    pub(super) timeouts: Timeouts,
}

/// A flow that has ended, with the driver's part of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed<T> {
    /// Its frontend's number.
    pub frontend: u64,
    /// Had it seen a reply?
    pub two_way: bool,
    /// What the driver had put in.
    pub part: T,
}

/// What to do with a datagram.
#[derive(Debug)]
pub enum Verdict<T> {
    /// Send it on this flow, then report [`Flows::sent`] or [`Flows::refused`].
    Forward(FlowId),
    /// The flow's backend has vanished or refused: pick another (not `avoid`, if there is any
    /// other), report [`Flows::moved`], then go on as for `Forward`. Without one,
    /// [`Flows::close`].
    Move {
        /// The flow.
        flow: FlowId,
        /// The backend that refused, if that is why.
        avoid: Option<SocketAddr>,
    },
    /// Pick a backend and [`Flows::open`] a flow, or let the admission go.
    Open {
        /// Room for it.
        admission: Admission,
        /// The flow that made room.
        shed: Option<Closed<T>>,
    },
    /// Discard it.
    Drop {
        /// Why.
        reason: Refusal,
        /// The flow that ends with it.
        closed: Option<Closed<T>>,
    },
}

/// A backend's refusal, as the flow sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Who refused.
    pub backend: SocketAddr,
    /// The datagram that it refused, if kept: to be sent to another backend, before any
    /// newer one.
    pub copy: Option<Vec<u8>>,
}
