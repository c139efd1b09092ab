//! The forwarding table: what the data plane reads, and nothing else tells it.
//!
//! PURE. A [`Table`] is an immutable value. The control plane keeps one [`TableBuilder`], changes
//! what changed, and freezes; the new table shares every unchanged part with the one before, by
//! pointer: frontends, their pools, their policies, and the tree that holds them ([`Radix`]). So a
//! worker that compares the table it runs with the next pays for the difference alone.

mod builder;
mod pool;
mod radix;
mod sources;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Algorithm, client_hash, tuple_hash};

pub use crate::balance::HashKey;
pub use builder::{MAX_POOL_BACKENDS, MAX_TIMEOUT, TableBuilder, TableError};
pub use pool::Pool;
pub use radix::{Iter as RadixIter, Radix};
pub use sources::SourceRanges;

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

impl FrontendKey {
    /// The hash by which `client` is given a backend here; with `by_client_only` (affinity) every
    /// connection of a client has the same.
    pub fn hash(&self, key: &HashKey, client: SocketAddr, by_client_only: bool) -> u64 {
        if by_client_only {
            return client_hash(key, client.ip());
        }
        let to = SocketAddr::new(self.address, self.port.get());
        let protocol = match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        tuple_hash(key, client, to, protocol)
    }
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

impl Backend {
    /// As balancing sees it: an address, and a weight that is 0 if it takes no new work.
    pub(crate) fn candidate(&self) -> (SocketAddr, u16) {
        match self.state {
            BackendState::Active => (self.address, self.weight),
            BackendState::Draining => (self.address, 0),
        }
    }
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

/// A frontend as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Where clients dial.
    pub key: FrontendKey,
    /// Whose it is.
    pub owner: Owner,
    /// Who is served first when not all fit: lower first, then by `key`.
    pub precedence: u64,
    /// Its backends.
    pub pool: Arc<Pool>,
    /// The rest.
    pub policy: Arc<Policy>,
}

/// A frontend's place in the table: dense, and its own while the frontend lives. Given to another
/// frontend after that, which [`Table::diff`] tells as the end of one and the start of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The forwarding table. Made by [`TableBuilder::freeze`] alone.
///
/// Two tables are equal if they have the same frontends in the same slots under one key; the
/// generation does not count.
#[derive(Clone, Debug)]
pub struct Table {
    /// One more than the table's before it; the first is 1.
    pub generation: u64,
    /// The key of every hash that decides a backend.
    pub hash_key: HashKey,
    frontends: Radix<Arc<Frontend>>,
    len: usize,
}

impl Table {
    /// The frontend at `slot`.
    pub fn get(&self, slot: Slot) -> Option<&Arc<Frontend>> {
        self.frontends.get(slot.0)
    }

    /// Every frontend, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Arc<Frontend>)> {
        self.frontends.iter().map(|(i, f)| (Slot(i), f))
    }

    /// How many frontends there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No frontend at all?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `changed(slot, before, after)` for every frontend that is not the same in both. Both
    /// are `Some` only for one frontend (one key) that changed in its slot; else one ended, or one
    /// began. Whatever ended or changed comes first, then what began, each by slot: a slot that
    /// passed to another frontend, and a frontend that moved to another slot, end before they begin.
    ///
    /// Costs what differs, not what there is: parts shared by pointer are not entered.
    pub fn diff<'a>(
        old: &'a Table,
        new: &'a Table,
        mut changed: impl FnMut(Slot, Option<&'a Arc<Frontend>>, Option<&'a Arc<Frontend>>),
    ) {
        let mut began = Vec::new();
        Radix::diff(&old.frontends, &new.frontends, |i, before, after| {
            let slot = Slot(i);
            match (before, after) {
                (Some(a), Some(b)) if a.key == b.key => changed(slot, before, after),
                _ => {
                    if before.is_some() {
                        changed(slot, before, None);
                    }
                    if after.is_some() {
                        began.push((slot, after));
                    }
                }
            }
        });
        for (slot, after) in began {
            changed(slot, None, after);
        }
    }
}

impl PartialEq for Table {
    fn eq(&self, other: &Table) -> bool {
        self.len == other.len
            && self.hash_key == other.hash_key
            && self.frontends == other.frontends
    }
}

impl Eq for Table {}

#[cfg(test)]
mod tests;
