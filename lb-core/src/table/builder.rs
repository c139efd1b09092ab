//! The one way to a [`Table`]: validates, keeps what did not change, freezes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::pool::{self, Pool};
use super::radix::Radix;
use super::{Backend, Frontend, FrontendKey, FrontendSpec, HashKey, Policy, Slot, Table};
use crate::balance::{Algorithm, MAX_MAGLEV_BACKENDS};

/// The most backends of one pool: at 65,536 a consistent pick costs some 70 us, and nothing that
/// is one Service is larger.
pub const MAX_POOL_BACKENDS: usize = 65_536;

/// The longest timeout of a policy: a year. Longer is a mistake in units.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 86_400);

/// Why a frontend cannot stand in a table. The builder is unchanged then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The VIP is unspecified, multicast or broadcast.
    #[error("{frontend}: clients cannot dial this address; choose a unicast address")]
    BadAddress {
        /// Which frontend.
        frontend: FrontendKey,
    },
    /// A backend's address is unspecified, multicast or broadcast, or its port is 0.
    #[error(
        "{frontend}: backend {backend} cannot be dialled; it needs a unicast address and a port"
    )]
    BadBackend {
        /// Which frontend.
        frontend: FrontendKey,
        /// Which backend.
        backend: SocketAddr,
    },
    /// A backend is the frontend itself: every connection would come back for ever.
    #[error("{frontend}: a backend is the frontend itself; remove it")]
    Loop {
        /// Which frontend.
        frontend: FrontendKey,
    },
    /// The pool is larger than its algorithm's limit.
    #[error("{frontend}: {count} backends; {algorithm:?} takes {most} at most")]
    TooManyBackends {
        /// Which frontend.
        frontend: FrontendKey,
        /// How many distinct ones.
        count: usize,
        /// How many are possible.
        most: usize,
        /// With which algorithm.
        algorithm: Algorithm,
    },
    /// A timeout is zero where that has no meaning, or longer than [`MAX_TIMEOUT`].
    #[error("{frontend}: {name} of {found:?} must be {} to {MAX_TIMEOUT:?}", if *zero { "0 (never)" } else { "above 0" })]
    BadTimeout {
        /// Which frontend.
        frontend: FrontendKey,
        /// The field of [`Policy`].
        name: &'static str,
        /// What it says.
        found: Duration,
        /// May it be zero?
        zero: bool,
    },
    /// The deadline of one try is past the deadline of all.
    #[error("{frontend}: connect_timeout {timeout:?} is longer than connect_budget {budget:?}")]
    BudgetTooShort {
        /// Which frontend.
        frontend: FrontendKey,
        /// Of one try.
        timeout: Duration,
        /// Of all tries.
        budget: Duration,
    },
}

/// Holds the table to come; owned by whoever publishes.
#[derive(Debug)]
pub struct TableBuilder {
    /// The table as it would be frozen now.
    next: Table,
    slots: BTreeMap<FrontendKey, Slot>,
    /// Slots of frontends removed since the last freeze. One that comes back before the next takes
    /// its own again: to the workers it has never been away, and its listeners stay open.
    removed: BTreeMap<FrontendKey, Slot>,
    /// Slots below the highest that nobody has. The lowest is given first: slots stay dense.
    free: BTreeSet<Slot>,
}

impl TableBuilder {
    /// An empty builder whose tables hash with `key`.
    pub fn new(key: HashKey) -> TableBuilder {
        TableBuilder {
            next: Table {
                generation: 0,
                hash_key: key,
                frontends: Radix::new(),
                len: 0,
            },
            slots: BTreeMap::new(),
            removed: BTreeMap::new(),
            free: BTreeSet::new(),
        }
    }

    /// A builder that goes on where `table` ends: its frontends keep their slots, and the next
    /// generation follows its. Costs what the table holds.
    pub fn resume(table: &Table) -> TableBuilder {
        let slots: BTreeMap<_, _> = table.iter().map(|(slot, f)| (f.key, slot)).collect();
        let used: BTreeSet<Slot> = slots.values().copied().collect();
        let end = used.last().map_or(0, |slot| slot.0 + 1);
        TableBuilder {
            next: table.clone(),
            slots,
            free: (0..end).map(Slot).filter(|s| !used.contains(s)).collect(),
            removed: BTreeMap::new(),
        }
    }

    /// Adds the frontend, or replaces the one of its key. Answers whether anything changed: a spec
    /// that says what stands already keeps the very same `Arc`s, and one that differs keeps the
    /// pool or the policy that did not.
    ///
    /// # Errors
    /// If the spec cannot be served; what stood before stands unchanged.
    pub fn set(&mut self, spec: FrontendSpec) -> Result<bool, TableError> {
        let FrontendSpec {
            key,
            owner,
            precedence,
            algorithm,
            backends,
            policy,
        } = spec;
        let key = canonical(key);
        let backends = pool::canonical(backends);
        check_frontend(key)?;
        check_pool(key, algorithm, &backends)?;
        check_policy(key, &policy)?;

        let present = self.frontend(&key);
        let pool = match present.map(|f| &f.pool) {
            Some(p) if p.algorithm == algorithm && *p.backends == *backends => Arc::clone(p),
            _ => Arc::new(Pool::new(backends, algorithm, &self.next.hash_key)),
        };
        let policy = match present.map(|f| &f.policy) {
            Some(p) if **p == policy => Arc::clone(p),
            _ => Arc::new(policy),
        };
        let frontend = Frontend {
            key,
            owner,
            precedence,
            pool,
            policy,
        };
        if present.is_some_and(|p| **p == frontend) {
            return Ok(false);
        }
        let slot = self.slot_for(key);
        self.next.frontends.set(slot.0, Some(Arc::new(frontend)));
        Ok(true)
    }

    /// Takes the frontend out; answers whether it was there.
    pub fn remove(&mut self, key: &FrontendKey) -> bool {
        let key = canonical(*key);
        let Some(slot) = self.slots.remove(&key) else {
            return false;
        };
        self.next.frontends.set(slot.0, None);
        self.next.len -= 1;
        self.removed.insert(key, slot);
        true
    }

    /// Every frontend that stands in the next table.
    pub fn keys(&self) -> impl Iterator<Item = FrontendKey> {
        self.slots.keys().copied()
    }

    /// The slot of a frontend that stands in the next table.
    pub fn slot(&self, key: &FrontendKey) -> Option<Slot> {
        self.slots.get(&canonical(*key)).copied()
    }

    /// A frontend as it stands in the next table.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Arc<Frontend>> {
        self.next.get(self.slot(key)?)
    }

    /// The table as it is now, one generation on. Costs one `Arc` and what was
    /// removed, whatever the size.
    pub fn freeze(&mut self) -> Arc<Table> {
        self.free
            .extend(std::mem::take(&mut self.removed).into_values());
        self.next.generation += 1;
        Arc::new(self.next.clone())
    }

    fn slot_for(&mut self, key: FrontendKey) -> Slot {
        if let Some(slot) = self.slots.get(&key) {
            return *slot;
        }
        // With no free slot below, the used and the removed ones are 0 to their number. A table
        // never has 2^32 frontends: they would be many times the memory of any machine.
        let given = self.next.len + self.removed.len();
        let slot = self
            .removed
            .remove(&key)
            .or_else(|| self.free.pop_first())
            .unwrap_or(Slot(given as u32));
        self.slots.insert(key, slot);
        self.next.len += 1;
        slot
    }
}

fn canonical(key: FrontendKey) -> FrontendKey {
    FrontendKey {
        address: key.address.to_canonical(),
        ..key
    }
}

/// Could this address be one machine's?
fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn check_frontend(frontend: FrontendKey) -> Result<(), TableError> {
    if is_unicast(frontend.address) {
        Ok(())
    } else {
        Err(TableError::BadAddress { frontend })
    }
}

fn check_pool(
    frontend: FrontendKey,
    algorithm: Algorithm,
    backends: &[Backend],
) -> Result<(), TableError> {
    let most = match algorithm {
        Algorithm::Maglev => MAX_MAGLEV_BACKENDS,
        Algorithm::Consistent
        | Algorithm::RoundRobin
        | Algorithm::Random
        | Algorithm::LeastConnections => MAX_POOL_BACKENDS,
    };
    if backends.len() > most {
        return Err(TableError::TooManyBackends {
            frontend,
            count: backends.len(),
            most,
            algorithm,
        });
    }
    let itself = SocketAddr::new(frontend.address, frontend.port.get());
    for backend in backends.iter().map(|b| b.address) {
        if !is_unicast(backend.ip()) || backend.port() == 0 {
            return Err(TableError::BadBackend { frontend, backend });
        }
        if backend == itself {
            return Err(TableError::Loop { frontend });
        }
    }
    Ok(())
}

fn check_policy(frontend: FrontendKey, policy: &Policy) -> Result<(), TableError> {
    let Policy {
        sources: _,
        affinity,
        connect_timeout,
        connect_budget,
        idle_timeout,
        half_close_timeout,
        flow_one_way_timeout,
        flow_two_way_timeout,
    } = policy;
    let timeouts = [
        ("affinity", affinity.unwrap_or(MAX_TIMEOUT), false),
        ("connect_timeout", *connect_timeout, false),
        ("connect_budget", *connect_budget, false),
        ("idle_timeout", *idle_timeout, true),
        ("half_close_timeout", *half_close_timeout, true),
        ("flow_one_way_timeout", *flow_one_way_timeout, false),
        ("flow_two_way_timeout", *flow_two_way_timeout, false),
    ];
    for (name, found, zero) in timeouts {
        if found > MAX_TIMEOUT || (found.is_zero() && !zero) {
            return Err(TableError::BadTimeout {
                frontend,
                name,
                found,
                zero,
            });
        }
    }
    if connect_timeout > connect_budget {
        return Err(TableError::BudgetTooShort {
            frontend,
            timeout: *connect_timeout,
            budget: *connect_budget,
        });
    }
    Ok(())
}
