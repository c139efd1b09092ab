//! Load balancers with their addresses -> the forwarding table.
//!
//! PURE; owned by the control task. Told what changed, the compiler changes that in the table to
//! come and shares the rest: one endpoint's change is one new pool. What it is told twice changes
//! nothing, and in whatever order it is told, the same frontends with the same content come out.
//!
//! Two load balancers may ask for one frontend (addresses from settings are not handed out one by
//! one). All claims are kept, the oldest is served, the others say so; when it goes, the next is
//! served without having to be told again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_core::balance::Algorithm;
use lb_core::table::{
    FrontendKey, FrontendSpec, HashKey, Owner, Policy, Slot, SourceRanges, Table, TableBuilder,
    TableError,
};

use crate::load_balancer::{LoadBalancer, Port};
use crate::object::Key;
use crate::reason::Reason;

/// What a load balancer that does not say otherwise gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Deadline of one connect attempt. 250 ms is past any round trip inside a site and short of
    /// the second after which a lost SYN is sent again (RFC 6298 s2).
    pub connect_timeout: Duration,
    /// Deadline of all attempts together: 3 s, while a client still waits.
    pub connect_budget: Duration,
    /// Idle TCP connections: 1 h. Below the 2 h 4 min that RFC 5382 s5 asks of a NAT, because both
    /// sides see a close here and open again, where a NAT forgets in silence.
    pub idle_timeout: Duration,
    /// Idle TCP connections that one side has closed: 5 min.
    pub half_close_timeout: Duration,
    /// UDP flows without a reply: 30 s (nf_conntrack_udp_timeout).
    pub flow_one_way_timeout: Duration,
    /// UDP flows with one: 120 s (nf_conntrack_udp_timeout_stream; RFC 4787 s4.3 asks for that at
    /// the least).
    pub flow_two_way_timeout: Duration,
}

impl Default for Defaults {
    fn default() -> Defaults {
        Defaults {
            connect_timeout: Duration::from_millis(250),
            connect_budget: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(3_600),
            half_close_timeout: Duration::from_secs(300),
            flow_one_way_timeout: Duration::from_secs(30),
            flow_two_way_timeout: Duration::from_secs(120),
        }
    }
}

/// Turns load balancers into the table. One per process.
#[derive(Debug)]
pub struct Compiler {
    defaults: Defaults,
    builder: TableBuilder,
    /// What each load balancer asks for, in its order, and how old it is.
    wanted: BTreeMap<Key, (Arc<Rank>, Vec<FrontendKey>)>,
    /// Who asks for each frontend, oldest first; the first is served. Never an empty list. Any
    /// number of tenants may ask for one: nothing walks a list for each of them.
    claims: BTreeMap<FrontendKey, BTreeMap<Arc<Rank>, Claim>>,
    /// Where somebody else is served, or otherwise: the reasons of all who ask may have changed.
    affected: BTreeSet<FrontendKey>,
}

#[derive(Debug)]
struct Claim {
    spec: FrontendSpec,
    /// What is said of it while it is the first.
    remark: Option<Reason>,
}

/// Who is older: by creation, those that do not say after those that do, then by key.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    undated: bool,
    created: Option<i64>,
    key: Key,
}

impl Compiler {
    /// A compiler whose tables hash with `key`.
    pub fn new(key: HashKey, defaults: Defaults) -> Compiler {
        Compiler {
            defaults,
            builder: TableBuilder::new(key),
            wanted: BTreeMap::new(),
            claims: BTreeMap::new(),
            affected: BTreeSet::new(),
        }
    }

    /// A compiler that goes on where `table` ends, knowing nothing of whom its frontends are for:
    /// they stay until [`Compiler::drop_unclaimed`].
    pub fn resume(table: &Table, defaults: Defaults) -> Compiler {
        Compiler {
            builder: TableBuilder::resume(table),
            ..Compiler::new(table.hash_key, defaults)
        }
    }

    /// Takes out the frontends that nobody asks for: what a table held that was resumed. Answers
    /// whether there were any.
    pub fn drop_unclaimed(&mut self) -> bool {
        let unclaimed: Vec<FrontendKey> = self
            .builder
            .keys()
            .filter(|key| !self.claims.contains_key(key))
            .collect();
        for key in &unclaimed {
            self.builder.remove(key);
        }
        !unclaimed.is_empty()
    }

    /// The load balancer of `key` as it is now with the addresses that it holds, or `None` for one
    /// that is gone. Answers whether the table to come changed, and what its owner should know (as
    /// [`Compiler::reasons`] does). It may change what others should know: see
    /// [`Compiler::take_affected`].
    pub fn update(
        &mut self,
        key: &Key,
        balancer: Option<(&LoadBalancer, &[IpAddr])>,
    ) -> (bool, Vec<Reason>) {
        let specs = balancer.map_or_else(Vec::new, |(lb, vips)| self.specs(key, lb, vips));
        let wanted: Vec<FrontendKey> = specs.iter().map(|s| s.key).collect();
        let created = balancer.and_then(|(lb, _)| lb.created);
        let rank = Arc::new(Rank {
            undated: created.is_none(),
            created,
            key: key.clone(),
        });
        let mut changed = false;
        let before = self.wanted.remove(key);
        if let Some((old, frontends)) = &before {
            let kept: BTreeSet<&FrontendKey> = wanted.iter().collect();
            for frontend in frontends.iter().filter(|f| !kept.contains(f)) {
                changed |= self.withdraw(*frontend, old);
            }
        }
        let old = before.map(|(old, _)| old).filter(|old| *old != rank);
        for spec in specs {
            changed |= self.claim(&rank, old.as_ref(), spec);
        }
        if !wanted.is_empty() {
            self.wanted.insert(key.clone(), (rank, wanted));
        }
        (changed, self.reasons(key))
    }

    /// What the owner of `key` should know of its frontends; canonical order.
    pub fn reasons(&self, key: &Key) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = self
            .wanted_by(key)
            .filter_map(|(frontend, rank, first)| {
                if rank.key == *key {
                    return first.remark.clone();
                }
                Some(Reason::FrontendTaken {
                    frontend,
                    holder: rank.key.clone(),
                })
            })
            .collect();
        reasons.sort_unstable();
        reasons
    }

    /// The load balancers whose reasons or frontends may have changed since the last call, by
    /// their own update or that of another.
    pub fn take_affected(&mut self) -> BTreeSet<Key> {
        let affected = std::mem::take(&mut self.affected);
        let lists = affected.iter().filter_map(|f| self.claims.get(f));
        lists
            .flat_map(BTreeMap::keys)
            .map(|rank| rank.key.clone())
            .collect()
    }

    /// The frontends that are served for `key`, with their slots in the next table.
    pub fn frontends_of(&self, key: &Key) -> impl Iterator<Item = (FrontendKey, Slot)> {
        self.wanted_by(key)
            .filter(move |(_, rank, _)| rank.key == *key)
            .filter_map(|(frontend, ..)| Some((frontend, self.builder.slot(&frontend)?)))
    }

    /// The table as it is now, one generation on.
    pub fn freeze(&mut self) -> Arc<Table> {
        self.builder.freeze()
    }

    /// Each frontend that `key` asks for, with the claim that is served and whose that is.
    fn wanted_by(&self, key: &Key) -> impl Iterator<Item = (FrontendKey, &Arc<Rank>, &Claim)> {
        let wanted = self.wanted.get(key).map(|(_, frontends)| frontends);
        wanted.into_iter().flatten().filter_map(|frontend| {
            let (rank, first) = self.claims.get(frontend)?.first_key_value()?;
            Some((*frontend, rank, first))
        })
    }

    fn withdraw(&mut self, frontend: FrontendKey, rank: &Arc<Rank>) -> bool {
        let Some(list) = self.claims.get_mut(&frontend) else {
            return false;
        };
        let was_first = is_first(list, rank);
        list.remove(rank);
        // Who waited behind somebody else than the first hears nothing new.
        was_first && self.settle(frontend)
    }

    /// Takes in a claim; `old` is the rank that its load balancer had, if it was another.
    fn claim(&mut self, rank: &Arc<Rank>, old: Option<&Arc<Rank>>, spec: FrontendSpec) -> bool {
        let frontend = spec.key;
        let list = self.claims.entry(frontend).or_default();
        if list.get(rank).is_some_and(|claim| claim.spec == spec) {
            return false;
        }
        let was_first = old.is_some_and(|old| is_first(list, old));
        if let Some(old) = old {
            list.remove(old);
        }
        let remark = None;
        list.insert(Arc::clone(rank), Claim { spec, remark });
        (was_first || is_first(list, rank)) && self.settle(frontend)
    }

    /// Brings the table in line with the first claim of `frontend`, which is new or was changed;
    /// answers whether the table changed.
    fn settle(&mut self, frontend: FrontendKey) -> bool {
        let first = self
            .claims
            .get_mut(&frontend)
            .and_then(BTreeMap::first_entry);
        let Some(mut first) = first else {
            self.claims.remove(&frontend);
            return self.builder.remove(&frontend);
        };
        self.affected.insert(frontend);
        let first = first.get_mut();
        let (changed, remark) = install(&mut self.builder, &first.spec);
        first.remark = remark;
        changed
    }

    /// What `balancer` asks for: each of its ports on each of its addresses.
    fn specs(&self, key: &Key, balancer: &LoadBalancer, vips: &[IpAddr]) -> Vec<FrontendSpec> {
        let precedence = balancer
            .created
            // The order of i64 in u64.
            .map_or(u64::MAX, |seconds| seconds.cast_unsigned() ^ (1 << 63));
        let policy = self.policy(balancer);
        let mut seen = BTreeSet::new();
        let mut specs = Vec::with_capacity(balancer.ports.len() * vips.len());
        for port in &balancer.ports {
            let owner = owner(key, port);
            for vip in vips.iter().map(IpAddr::to_canonical) {
                let frontend = FrontendKey {
                    address: vip,
                    port: port.port,
                    protocol: port.protocol,
                };
                // An address given twice is one address.
                if !seen.insert(frontend) {
                    continue;
                }
                let backends = if vip.is_ipv4() { &port.v4 } else { &port.v6 };
                specs.push(FrontendSpec {
                    key: frontend,
                    owner: owner.clone(),
                    precedence,
                    algorithm: balancer.algorithm,
                    backends: backends.clone(),
                    policy: policy.clone(),
                });
            }
        }
        specs
    }

    fn policy(&self, balancer: &LoadBalancer) -> Policy {
        let Defaults {
            connect_timeout,
            connect_budget,
            idle_timeout,
            half_close_timeout,
            flow_one_way_timeout,
            flow_two_way_timeout,
        } = self.defaults;
        let sources = balancer.sources.as_ref().map(|ranges| {
            SourceRanges::from_prefixes(ranges.iter().map(|r| (r.addr(), r.prefix_len())))
        });
        Policy {
            sources: sources.unwrap_or_else(SourceRanges::any),
            affinity: balancer.affinity,
            connect_timeout,
            connect_budget,
            idle_timeout: balancer.idle_timeout.unwrap_or(idle_timeout),
            half_close_timeout,
            flow_one_way_timeout,
            flow_two_way_timeout,
        }
    }
}

fn is_first(list: &BTreeMap<Arc<Rank>, Claim>, rank: &Arc<Rank>) -> bool {
    list.first_key_value()
        .is_some_and(|(first, _)| first == rank)
}

fn owner(key: &Key, port: &Port) -> Owner {
    Owner {
        group: Arc::clone(&key.namespace),
        name: Arc::clone(&key.name),
        port: if port.name.is_empty() {
            port.port.to_string().into()
        } else {
            Arc::clone(&port.name)
        },
    }
}

/// Puts `spec` into the table, or takes its frontend out if it cannot be served: yesterday's
/// backends may be somebody else's today. A Maglev pool that has outgrown its table is served by
/// consistent hash instead: to go dark for one endpoint more would be worse.
fn install(builder: &mut TableBuilder, spec: &FrontendSpec) -> (bool, Option<Reason>) {
    let frontend = spec.key;
    let error = match builder.set(spec.clone()) {
        Ok(changed) => return (changed, None),
        Err(error) => error,
    };
    if let TableError::TooManyBackends {
        algorithm: Algorithm::Maglev,
        count,
        most,
        ..
    } = error
    {
        let instead = FrontendSpec {
            algorithm: Algorithm::Consistent,
            ..spec.clone()
        };
        if let Ok(changed) = builder.set(instead) {
            let remark = Reason::MaglevPoolTooLarge {
                frontend,
                count,
                most,
            };
            return (changed, Some(remark));
        }
    }
    let remark = Reason::FrontendInvalid {
        problem: error.to_string().into(),
    };
    (builder.remove(&frontend), Some(remark))
}

#[cfg(test)]
mod tests;
