//! From the objects last seen to the table and what to say of it. Pure: events in, decisions out,
//! no clock and no I/O; the task around it (`task`) has both.

mod others;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::table::{FrontendKey, Slot, Table};

use super::checked::{Checked, Checks};
use super::nodes::Nodes;
use crate::allocate::{Allocator, Record};
use crate::cluster::Cluster;
use crate::compile::Compiler;
use crate::kube_proxy::KubeProxy;
use crate::load_balancer::{EndpointCounts, LoadBalancer, Translation};
use crate::measure::NodeCounts;
use crate::object::{EndpointSlice, Event, Key, Kind, Service, SourceId};
use crate::probe::{Verdicts, Wanted};
use crate::reason::{Reason, arrange};
use crate::status::{Front, Port, ServiceStatus, State, judge};
use crate::translate::{Rules, looks_at_nodes, translate};

/// Every stage between source and publish, and what each decided.
pub(super) struct Line {
    rules: Rules,
    cluster: Cluster,
    nodes: Nodes,
    checked: Checked,
    /// Probes found something new about these.
    probed: BTreeSet<Key>,
    allocator: Allocator,
    compiler: Compiler,
    translations: BTreeMap<Key, Translation>,
    /// Who is served at each frontend.
    owners: BTreeMap<FrontendKey, Key>,
    /// What each key has of `owners` and `vips`.
    holdings: BTreeMap<Key, (Vec<FrontendKey>, Vec<IpAddr>)>,
    /// Who has each VIP.
    vips: BTreeMap<IpAddr, BTreeSet<Key>>,
    /// Whose addresses another process gives.
    followed: Option<SourceId>,
    /// Given up to others, with their names, until our finalizer is off: after that the Service itself shows it.
    yielded: BTreeMap<Key, Arc<str>>,
    kube_proxy: KubeProxy,
    /// Whose assignment changed when that changed.
    moved: BTreeSet<Key>,
    /// What is recorded is written in this revision.
    recorded: u64,
    /// The first complete list was decided on.
    complete: bool,
}

/// What one pass decided.
#[derive(Default)]
pub(super) struct Turn {
    /// The table to publish, if it changed.
    pub table: Option<Arc<Table>>,
    /// Whose status may have changed.
    pub touched: BTreeSet<Key>,
    /// The record to write first, if it changed.
    pub record: Option<Arc<Record>>,
    /// The set of VIPs changed.
    pub vips: bool,
    /// What is to be asked of nodes and pods from now on, if it changed.
    pub wanted: Option<Wanted>,
    /// And of endpoints.
    pub checks: Option<Checks>,
    /// How many nodes there are, if it may have changed.
    pub nodes: Option<NodeCounts>,
}

impl Line {
    pub(super) fn new(
        rules: Rules,
        expected: impl IntoIterator<Item = (SourceId, Kind)>,
        allocator: Allocator,
        compiler: Compiler,
    ) -> Line {
        let kube_proxy = KubeProxy::new(rules.node_port_addresses.clone());
        Line {
            rules,
            cluster: Cluster::new(expected),
            nodes: Nodes::default(),
            checked: Checked::default(),
            probed: BTreeSet::new(),
            recorded: allocator.revision(),
            allocator,
            compiler,
            translations: BTreeMap::new(),
            owners: BTreeMap::new(),
            holdings: BTreeMap::new(),
            vips: BTreeMap::new(),
            followed: None,
            yielded: BTreeMap::new(),
            kube_proxy,
            moved: BTreeSet::new(),
            complete: false,
        }
    }

    pub(super) fn apply(&mut self, source: SourceId, event: Event) {
        self.cluster.apply(source, event);
    }

    /// What probes found of nodes.
    pub(super) fn found(&mut self, verdicts: Arc<Verdicts>) {
        let touched = self.nodes.found(verdicts);
        self.probed.extend(touched);
    }

    /// And of endpoints.
    pub(super) fn found_health(&mut self, verdicts: Arc<Verdicts>) {
        let touched = self.checked.found(verdicts);
        self.probed.extend(touched);
    }

    /// Does any Service of this source that changed since the last decision look at nodes?
    pub(super) fn begins_to_look_at_nodes(&self, source: SourceId) -> bool {
        let changed = self.cluster.dirty().filter(|key| key.source == source);
        let mut services = changed.filter_map(|key| self.cluster.service(key));
        services.any(|service| looks_at_nodes(service, &self.rules))
    }

    /// A Service looks at nodes that were not listed yet, and may be soon.
    fn waits_for_nodes(&self) -> bool {
        let mut services = self.cluster.services();
        services.any(|service| {
            let source = service.meta.key.source;
            !self.cluster.has_settled_nodes(source) && looks_at_nodes(service, &self.rules)
        })
    }

    /// Another process gives the addresses of `source` and has them on its interfaces; `None`: nobody else does.
    /// [`Line::decide`] decides on it. Returns whether that is news.
    pub(super) fn follow(&mut self, source: Option<SourceId>) -> bool {
        let moved = self.allocator.follow(source);
        self.moved.extend(moved);
        std::mem::replace(&mut self.followed, source) != source
    }

    /// Every source gave its first list, and it was decided on.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Services that the deletion guard holds.
    pub(super) fn held(&self) -> usize {
        self.cluster.held().count()
    }

    pub(super) fn confirm_deletions(&mut self) -> usize {
        self.cluster.confirm_deletions()
    }

    /// The key of the Service that is named as `key` is, whatever its uid.
    pub(super) fn named(&self, key: &Key) -> Option<&Key> {
        self.cluster.named(key)
    }

    /// The Service of exactly this key.
    pub(super) fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.cluster.service(key)
    }

    /// The EndpointSlice that is named as `key` is.
    pub(super) fn slice(&self, key: &Key) -> Option<&EndpointSlice> {
        self.cluster.slice(key)
    }

    /// Is the Service that is named as `key` is one of ours?
    pub(super) fn balances(&self, key: &Key) -> bool {
        self.named(key)
            .is_some_and(|key| self.balancer(key).is_some())
    }

    /// The VIPs that are given out.
    pub(super) fn vips(&self) -> BTreeSet<IpAddr> {
        self.vips.keys().copied().collect()
    }

    /// Those of them that another process has on its interfaces.
    pub(super) fn vips_elsewhere(&self) -> BTreeSet<IpAddr> {
        let Some(source) = self.followed else {
            return BTreeSet::new();
        };
        let elsewhere = |holders: &BTreeSet<Key>| holders.iter().all(|key| key.source == source);
        let vips = self.vips.iter().filter(|(_, holders)| elsewhere(holders));
        vips.map(|(vip, _)| *vip).collect()
    }

    /// Who has this VIP.
    pub(super) fn holders(&self, vip: &IpAddr) -> impl Iterator<Item = &Key> {
        self.vips.get(vip).into_iter().flatten()
    }

    /// Who is served at this frontend.
    pub(super) fn owner(&self, frontend: &FrontendKey) -> Option<&Key> {
        self.owners.get(frontend)
    }

    /// Decides on everything that changed since the last time: nothing before the first complete
    /// list.
    pub(super) fn decide(&mut self) -> Turn {
        let mut turn = Turn::default();
        if !self.cluster.complete() || (!self.complete && self.waits_for_nodes()) {
            return turn;
        }
        let first = !std::mem::replace(&mut self.complete, true);
        // What an earlier process left on the machine is judged by the first list, even an empty one.
        turn.vips = first;
        let mut dirty = self.cluster.take_dirty();
        for key in &dirty {
            let service = self.cluster.service(key);
            self.nodes
                .note(key, service.map(|service| &**service), &self.rules);
        }
        let sources = self.cluster.take_dirty_nodes();
        if !sources.is_empty() {
            dirty.extend(self.nodes.judge(&self.cluster, &sources, &self.rules));
            turn.nodes = Some(self.nodes.counts());
        }
        turn.touched = self.note_node_ports(&dirty, &sources);
        dirty.append(&mut self.probed);
        let mut changed = std::mem::take(&mut self.moved);
        let mut translated = BTreeSet::new();
        for key in &dirty {
            if self.translate(key) {
                translated.insert(key.clone());
            }
        }
        let batch = translated.iter();
        let batch = batch.map(|key| (key.clone(), self.balancer(key)));
        let batch: Vec<_> = batch.collect();
        changed.extend(translated);
        changed.extend(self.allocator.apply(batch));
        if first {
            changed.extend(self.allocator.complete());
        }
        let mut new_table = false;
        for key in &changed {
            new_table |= self.compile(key, &mut turn);
        }
        if first {
            new_table |= self.compiler.drop_unclaimed();
        }
        turn.touched.extend(changed);
        turn.touched.extend(dirty);
        for key in self.compiler.take_affected() {
            self.note_frontends(&key);
            turn.touched.insert(key);
        }
        turn.wanted = self.nodes.wanted();
        turn.touched.append(&mut self.checked.take_touched());
        turn.checks = self.checked.wanted();
        turn.table = new_table.then(|| self.compiler.freeze());
        let revision = self.allocator.revision();
        if std::mem::replace(&mut self.recorded, revision) != revision {
            turn.record = Some(Arc::new(self.allocator.record()));
        }
        turn
    }

    /// What the key means now; whether that is news.
    fn translate(&mut self, key: &Key) -> bool {
        let left = self.left(key);
        let now = match key.kind {
            Kind::Service if left.is_some() => left,
            Kind::LoadBalancer => self.cluster.load_balancer(key).map(|balancer| Translation {
                load_balancer: Some(Arc::clone(balancer)),
                reasons: Vec::new(),
                endpoints: EndpointCounts::default(),
                probes: Vec::new(),
                checks: Vec::new(),
            }),
            _ => self.cluster.service(key).map(|service| {
                #[cfg(feature = "failpoints")]
                failpoint(key);
                let slices: Vec<_> = self.cluster.slices_of(key).cloned().collect();
                let view = self.nodes.view(key, self.checked.verdicts());
                translate(service, &slices, view, &self.rules)
            }),
        };
        let probes = now.as_ref().map_or(&[][..], |now| &now.probes);
        self.nodes.ask(key, probes);
        let checks = now.as_ref().map_or(&[][..], |now| &now.checks);
        self.checked.ask(key, checks);
        match now {
            Some(now) if self.translations.get(key) == Some(&now) => false,
            Some(now) => {
                self.translations.insert(key.clone(), now);
                true
            }
            None => self.translations.remove(key).is_some(),
        }
    }

    fn balancer(&self, key: &Key) -> Option<Arc<LoadBalancer>> {
        self.translations.get(key)?.load_balancer.clone()
    }

    /// Brings the table to come in line with what `key` means and has; whether it changed.
    fn compile(&mut self, key: &Key, turn: &mut Turn) -> bool {
        let balancer = self.balancer(key);
        let addresses = match &balancer {
            Some(_) => self.allocator.assignment(key).addresses,
            None => Vec::new(),
        };
        turn.vips |= self.note_vips(key, &addresses);
        let served = balancer
            .as_deref()
            .map(|balancer| (balancer, &addresses[..]));
        let (changed, _) = self.compiler.update(key, served);
        self.note_frontends(key);
        changed
    }

    /// Remembers what `key` holds; whether the set of all VIPs changed.
    fn note_vips(&mut self, key: &Key, addresses: &[IpAddr]) -> bool {
        let (_, held) = self.holdings.entry(key.clone()).or_default();
        let before = std::mem::replace(held, addresses.to_vec());
        // Who shares a VIP decides whose interfaces have it.
        let mut changed = self.followed.is_some() && before != addresses;
        for vip in before.iter().filter(|vip| !addresses.contains(vip)) {
            if let Some(holders) = self.vips.get_mut(vip) {
                holders.remove(key);
                if holders.is_empty() {
                    self.vips.remove(vip);
                    changed = true;
                }
            }
        }
        for vip in addresses.iter().filter(|vip| !before.contains(vip)) {
            let holders = self.vips.entry(*vip).or_default();
            changed |= holders.is_empty();
            holders.insert(key.clone());
        }
        changed
    }

    fn note_frontends(&mut self, key: &Key) {
        let now: Vec<FrontendKey> = self.compiler.frontends_of(key).map(|(f, _)| f).collect();
        let (held, addresses) = self.holdings.entry(key.clone()).or_default();
        let gone = addresses.is_empty() && now.is_empty();
        for frontend in std::mem::replace(held, now.clone()) {
            if self.owners.get(&frontend) == Some(key) {
                self.owners.remove(&frontend);
            }
        }
        self.owners
            .extend(now.into_iter().map(|frontend| (frontend, key.clone())));
        if gone {
            self.holdings.remove(key);
        }
    }

    /// What to say of `key`; `None` if it is gone. `front` says how a frontend stands, `other`
    /// what else there is to say.
    pub(super) fn status(
        &self,
        key: &Key,
        front: impl Fn(&FrontendKey, Slot) -> Front,
        other: impl IntoIterator<Item = Reason>,
    ) -> Option<ServiceStatus> {
        let Translation {
            load_balancer,
            reasons,
            endpoints,
            probes: _,
            checks: _,
        } = self.translations.get(key)?;
        let mut status = ServiceStatus {
            key: key.clone(),
            state: State::Refused,
            addresses: Vec::new(),
            ports: Vec::new(),
            endpoints: *endpoints,
            reasons: reasons.clone(),
            settling: false,
        };
        status.reasons.extend(other);
        status.reasons.extend(self.checked.reason(key));
        if self.cluster.is_held(key) {
            status.reasons.push(Reason::HeldByDeletionGuard);
        }
        match load_balancer {
            Some(balancer) => self.balanced(balancer, front, &mut status),
            None => status.ports = self.ports_asked(key),
        }
        arrange(&mut status.reasons);
        Some(status)
    }

    /// The part of a status that a load balancer adds.
    fn balanced(
        &self,
        balancer: &LoadBalancer,
        front: impl Fn(&FrontendKey, Slot) -> Front,
        status: &mut ServiceStatus,
    ) {
        let assignment = self.allocator.assignment(&status.key);
        status.reasons.extend(assignment.reasons);
        status.reasons.extend(self.compiler.reasons(&status.key));
        status.addresses = assignment.addresses;
        let ports = balancer.ports.iter().map(|port| Port {
            name: Arc::clone(&port.name),
            port: port.port,
            protocol: port.protocol,
        });
        status.ports = ports.collect();
        let fronts: Vec<Front> = self
            .compiler
            .frontends_of(&status.key)
            .map(|(frontend, slot)| front(&frontend, slot))
            .collect();
        status.settling = fronts.contains(&Front::Waiting);
        let frontends = self.compiler.frontends_of(&status.key);
        let taken = frontends.filter_map(|(frontend, _)| self.kube_proxy.takes(&frontend));
        status.reasons.extend(taken);
        let expected = status.addresses.len() * status.ports.len();
        status.state = judge(&status.addresses, &fronts, expected);
        status
            .reasons
            .extend(fronts.into_iter().filter_map(|front| match front {
                Front::Failed(reason) => Some(reason),
                Front::Open | Front::Closed | Front::Waiting => None,
            }));
    }

    /// The ports of a Service that is refused, as it lists them.
    pub(super) fn ports_asked(&self, key: &Key) -> Vec<Port> {
        use crate::object::PortProtocol;
        use lb_core::table::Protocol;
        let service = self.cluster.service(key);
        let ports = service.iter().flat_map(|service| &service.ports);
        ports
            .filter_map(|port| {
                let protocol = match port.protocol {
                    PortProtocol::Tcp => Protocol::Tcp,
                    PortProtocol::Udp => Protocol::Udp,
                    PortProtocol::Sctp => return None,
                };
                Some(Port {
                    name: Arc::clone(&port.name),
                    port: port.port,
                    protocol,
                })
            })
            .collect()
    }
}

/// # Panics
/// If `control-panic-on-trigger` is on and the Service is named `panic-trigger`.
#[cfg(feature = "failpoints")]
fn failpoint(key: &Key) {
    const POINT: &str = "control-panic-on-trigger";
    if &*key.name == "panic-trigger" && lb_core::failpoint::is_on(POINT) {
        panic!("failpoint {POINT}");
    }
}
