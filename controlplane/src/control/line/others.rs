//! What stands outside a Service and decides on it: another provider that it was given up to, what the API server
//! does not let us read, and kube-proxy on this machine. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Line;
use crate::control::denied::Denied;
use crate::kube_proxy::{Mode, NodePort};
use crate::load_balancer::{EndpointCounts, Translation};
use crate::object::{Key, Service, SourceId};
use crate::reason::Reason;
use crate::source::kubernetes::SOURCE;
use crate::translate::{is_admitted, is_ours, left_to, looks_at_nodes};

impl Line {
    /// These are another provider's from now on. [`Line::decide`] decides on it.
    pub(in crate::control) fn give_up(&mut self, keys: BTreeMap<Key, Arc<str>>) {
        self.probed.extend(keys.keys().cloned());
        self.yielded.extend(keys);
    }

    /// Is the Service of this key ours to serve with addresses from the pools?
    pub(in crate::control) fn is_ours(&self, service: &Service) -> bool {
        !self.yielded.contains_key(&service.meta.key) && is_ours(service, &self.rules)
    }

    /// What a Service means that was given up.
    pub(super) fn left(&mut self, key: &Key) -> Option<Translation> {
        let service = self.cluster.service(key);
        if !service.is_some_and(|service| service.stored.finalizer) {
            self.yielded.remove(key);
        }
        let rival = self.yielded.get(key)?;
        let evidence = format!("\"{rival}\" undoes what this appliance writes");
        Some(Translation {
            load_balancer: None,
            reasons: vec![left_to(evidence, &self.rules)],
            endpoints: EndpointCounts::default(),
            probes: Vec::new(),
            checks: Vec::new(),
        })
    }

    /// What is denied that concerns the Service of this key.
    pub(in crate::control) fn denied(&self, key: &Key, denied: &Denied) -> Vec<Reason> {
        let service = self.cluster.service(key);
        let service = service.filter(|service| is_admitted(service, &self.rules));
        let reasons = service.map(|service| {
            let looks = looks_at_nodes(service, &self.rules);
            denied.concerning(service, looks).collect()
        });
        reasons.unwrap_or_default()
    }

    /// So kube-proxy works here. Whom that concerns.
    pub(in crate::control) fn kube_proxy(&mut self, mode: Option<Mode>) -> BTreeSet<Key> {
        self.kube_proxy.mode = mode;
        self.taken(|_| true)
    }

    /// Notes the node ports of what changed, and the addresses of nodes if they did. Whose frontends that concerns.
    pub(super) fn note_node_ports(
        &mut self,
        dirty: &BTreeSet<Key>,
        nodes: &BTreeSet<SourceId>,
    ) -> BTreeSet<Key> {
        let mut changed = BTreeSet::new();
        // kube-proxy serves the cluster that it stands in, and no directory.
        for key in dirty.iter().filter(|key| key.source == SOURCE) {
            let service = self.cluster.service(key).map(Arc::as_ref);
            changed.append(&mut self.kube_proxy.note(key, service));
        }
        let nodes_changed = nodes.contains(&SOURCE);
        if nodes_changed {
            let nodes = self.cluster.nodes();
            let nodes = nodes.filter(|node| node.meta.key.source == SOURCE);
            let addresses = nodes.flat_map(|node| node.addresses.iter().copied());
            self.kube_proxy.nodes = addresses.collect();
        }
        match nodes_changed || (self.kube_proxy.is_there() && !changed.is_empty()) {
            true => self.taken(|port| nodes_changed || changed.contains(port)),
            false => BTreeSet::new(),
        }
    }

    /// Whose frontends are at these ports.
    fn taken(&self, is_one: impl Fn(&NodePort) -> bool) -> BTreeSet<Key> {
        let owners = self.owners.iter();
        let owners = owners.filter(|(frontend, _)| is_one(&(frontend.port, frontend.protocol)));
        owners.map(|(_, key)| key.clone()).collect()
    }

    /// The keys of all Services of `source`.
    pub(in crate::control) fn keys(&self, source: SourceId) -> BTreeSet<Key> {
        let keys = self.cluster.services().map(|service| &service.meta.key);
        keys.filter(|key| key.source == source).cloned().collect()
    }
}
