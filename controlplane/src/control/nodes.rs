//! What Services that are dialled by way of nodes look at: the nodes of each source, judged, and what
//! probes found. Pure; part of the line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::measure::NodeCounts;
use crate::nodes::NodeSet;
use crate::object::{Key, Service, SourceId};
use crate::probe::{Probe, Verdicts, Wanted, add};
use crate::translate::{Rules, View, looks_at_nodes};

/// The nodes, and who looks at them.
#[derive(Default)]
pub(super) struct Nodes {
    sets: BTreeMap<(SourceId, Arc<str>), NodeSet>,
    /// Where none was ever listed.
    unknown: NodeSet,
    verdicts: Arc<Verdicts>,
    /// Services whose meaning depends on nodes.
    lookers: BTreeSet<Key>,
    /// What each of them has to know.
    probes: BTreeMap<Key, Vec<Probe>>,
    /// `probes` changed since the last [`Nodes::wanted`].
    changed: bool,
}

impl Nodes {
    /// What there is to see for the Service of this key, and of the `health` of endpoints.
    pub(super) fn view<'a>(&'a self, key: &Key, health: &'a Verdicts) -> View<'a> {
        let set = self.sets.get(&(key.source, Arc::clone(&key.cluster)));
        View {
            nodes: set.unwrap_or(&self.unknown),
            verdicts: &self.verdicts,
            health,
        }
    }

    /// Notes whether the Service of this key, or `None` if it is gone, looks at nodes.
    pub(super) fn note(&mut self, key: &Key, service: Option<&Service>, rules: &Rules) {
        match service.is_some_and(|service| looks_at_nodes(service, rules)) {
            true => self.lookers.insert(key.clone()),
            false => self.lookers.remove(key),
        };
    }

    /// Notes what the Service of this key has to know.
    pub(super) fn ask(&mut self, key: &Key, probes: &[Probe]) {
        let before = self.probes.get(key).map_or(&[][..], Vec::as_slice);
        if before == probes {
            return;
        }
        self.changed = true;
        match probes.is_empty() {
            true => drop(self.probes.remove(key)),
            false => drop(self.probes.insert(key.clone(), probes.to_vec())),
        }
    }

    /// What has to be asked, if that changed since the last time.
    pub(super) fn wanted(&mut self) -> Option<Wanted> {
        std::mem::take(&mut self.changed).then(|| {
            let mut wanted = Wanted::new();
            let all = self.probes.values().flatten();
            all.for_each(|probe| add(&mut wanted, probe));
            wanted
        })
    }

    /// Takes in what probes found; the Services that may mean something else now.
    pub(super) fn found(&mut self, verdicts: Arc<Verdicts>) -> BTreeSet<Key> {
        let before = std::mem::replace(&mut self.verdicts, verdicts);
        let is_news = |probe: &Probe| {
            let now = self.verdicts.get(&probe.target);
            now != before.get(&probe.target)
        };
        let touched = self.probes.iter();
        touched
            .filter(|(_, probes)| probes.iter().any(is_news))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Judges the nodes of these sources anew; the Services that may mean something else now.
    pub(super) fn judge(
        &mut self,
        cluster: &Cluster,
        sources: &BTreeSet<SourceId>,
        rules: &Rules,
    ) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        for source in sources {
            let sets = sets_of(cluster, *source, rules);
            let mut before = BTreeMap::new();
            self.sets.retain(|(of, name), set| {
                let is_here = of == source;
                if is_here {
                    before.insert((*of, Arc::clone(name)), std::mem::take(set));
                }
                !is_here
            });
            if before != sets {
                let here = self.lookers.iter().filter(|key| key.source == *source);
                touched.extend(here.cloned());
            }
            self.sets.extend(sets);
        }
        touched
    }

    /// How many nodes there are.
    pub(super) fn counts(&self) -> NodeCounts {
        let mut counts = NodeCounts::default();
        for set in self.sets.values() {
            let leaving = set.targets.iter().filter(|node| node.leaving).count();
            counts.leaving += leaving;
            counts.eligible += set.targets.len() - leaving;
            let out = set.out;
            counts.out += (out.excluded + out.deselected + out.unaddressed) as usize;
        }
        counts
    }
}

fn sets_of(
    cluster: &Cluster,
    source: SourceId,
    rules: &Rules,
) -> BTreeMap<(SourceId, Arc<str>), NodeSet> {
    let mut nodes: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
    // A source of one cluster has none but "".
    nodes.insert(Arc::default(), Vec::new());
    for node in cluster.nodes() {
        let key = &node.meta.key;
        if key.source == source {
            let here = nodes.entry(Arc::clone(&key.cluster)).or_default();
            here.push(node);
        }
    }
    let known = cluster.knows_nodes(source);
    let sets = nodes.into_iter();
    sets.map(|(name, nodes)| ((source, name), NodeSet::new(known, nodes, rules)))
        .collect()
}
