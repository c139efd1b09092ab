//! The forwarding table: what the data plane reads, and nothing else tells it.
//!
//! PURE. A [`Table`] is an immutable value. The control plane keeps one [`TableBuilder`], changes
//! what changed, and freezes; the new table shares every unchanged part with the one before.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::Algorithm;

/// The transport protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
}

/// VIP, port and protocol: the key of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The VIP.
    pub address: IpAddr,
    /// The port that clients dial.
    pub port: NonZeroU16,
    /// The protocol.
    pub protocol: Protocol,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(
            f,
            "{}/{protocol}",
            SocketAddr::new(self.address, self.port.get())
        )
    }
}

/// Who a frontend belongs to. Opaque here: labels of metrics and words of logs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The tenant.
    pub group: Arc<str>,
    /// The name inside the tenant.
    pub name: Arc<str>,
    /// The port's name or number.
    pub port: Arc<str>,
}

/// May a backend take new work?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Picked for new connections and flows.
    Active,
    /// Never picked; its UDP flows go on. (TCP connections outlive any change.)
    Draining,
}

/// One dialable address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Where to connect.
    pub address: SocketAddr,
    /// Share of new work relative to the other backends of the pool, 0 to 65,535; 0 takes none.
    pub weight: u16,
    /// May it take new work?
    pub state: BackendState,
}

/// What clients may do, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may connect.
    pub sources: SourceRanges,
    /// How long a client stays with its backend after its last new connection; `None`: not at all.
    pub affinity: Option<Duration>,
    /// Deadline of one connect attempt.
    pub connect_timeout: Duration,
    /// Deadline of all attempts together.
    pub connect_budget: Duration,
    /// An open TCP connection without a byte either way is closed after this; zero: never.
    pub idle_timeout: Duration,
    /// As `idle_timeout`, once one side has sent its FIN.
    pub half_close_timeout: Duration,
    /// A UDP flow that has seen no reply expires after this.
    pub flow_one_way_timeout: Duration,
    /// A UDP flow that has seen a reply expires after this.
    pub flow_two_way_timeout: Duration,
}

/// What the builder takes for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendSpec {
    /// Where clients dial.
    pub key: FrontendKey,
    /// Whose it is.
    pub owner: Owner,
    /// Who is served first when not all fit: lower is older is first.
    pub precedence: u64,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// The backends, in any order, of either family.
    pub backends: Vec<Backend>,
    /// The rest.
    pub policy: Policy,
}

/// The addresses that may connect. Placeholder body.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SourceRanges(Option<Arc<[(IpAddr, IpAddr)]>>);

/// Placeholder.
pub struct Table;
