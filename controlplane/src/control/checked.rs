//! Which endpoints are asked for their health, for whom, and what was found. Pure; part of the line.
//!
//! A namespace has a bound, and so has the process. Who is asked is asked on, whoever comes later;
//! who finds no room is asked as soon as there is some, and its Services say so meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::object::Key;
use crate::probe::{MAX_OF_ALL, MAX_OF_TENANT, Target, Tenant, Verdicts, Wanted};
use crate::reason::Reason;

/// What is asked from now on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Checks {
    pub(super) wanted: Wanted,
    /// How many more there are, for which there is no room.
    pub(super) omitted: usize,
}

/// How many may be asked.
#[derive(Clone, Copy)]
struct Bounds {
    of_tenant: usize,
    of_all: usize,
}

/// All targets that Services name.
pub(super) struct Checked {
    bounds: Bounds,
    /// What each Service has to know; sorted.
    services: BTreeMap<Key, Vec<Target>>,
    /// Who has to know it.
    askers: BTreeMap<Target, BTreeSet<Key>>,
    asked: BTreeSet<Target>,
    /// How many of `asked` are of each tenant.
    of_tenant: BTreeMap<Tenant, usize>,
    /// Those that find no room.
    waiting: BTreeMap<Tenant, BTreeSet<Target>>,
    verdicts: Arc<Verdicts>,
    /// Something changed since the last [`Checked::wanted`].
    changed: bool,
    /// Whose share of `waiting` changed.
    touched: BTreeSet<Key>,
}

impl Default for Checked {
    fn default() -> Checked {
        Checked::within(Bounds {
            of_tenant: MAX_OF_TENANT,
            of_all: MAX_OF_ALL,
        })
    }
}

impl Checked {
    fn within(bounds: Bounds) -> Checked {
        Checked {
            bounds,
            services: BTreeMap::new(),
            askers: BTreeMap::new(),
            asked: BTreeSet::new(),
            of_tenant: BTreeMap::new(),
            waiting: BTreeMap::new(),
            verdicts: Arc::default(),
            changed: false,
            touched: BTreeSet::new(),
        }
    }

    /// What was found.
    pub(super) fn verdicts(&self) -> &Verdicts {
        &self.verdicts
    }

    /// Notes what the Service of this key has to know; sorted.
    pub(super) fn ask(&mut self, key: &Key, targets: &[Target]) {
        let before = self.services.remove(key).unwrap_or_default();
        if !targets.is_empty() {
            self.services.insert(key.clone(), targets.to_vec());
        }
        if before == targets {
            return;
        }
        self.changed = true;
        for target in &before {
            if targets.binary_search(target).is_err() {
                self.leave(key, target);
            }
        }
        for target in targets {
            if before.binary_search(target).is_err() {
                self.join(key, target);
            }
        }
        self.fill();
    }

    fn join(&mut self, key: &Key, target: &Target) {
        let askers = self.askers.entry(target.clone()).or_default();
        let is_new = askers.is_empty();
        askers.insert(key.clone());
        if is_new && let Some(tenant) = target.tenant() {
            let waiting = self.waiting.entry(tenant.clone()).or_default();
            waiting.insert(target.clone());
        }
        if !self.asked.contains(target) {
            self.touched.insert(key.clone());
        }
    }

    fn leave(&mut self, key: &Key, target: &Target) {
        let Some(askers) = self.askers.get_mut(target) else {
            return;
        };
        askers.remove(key);
        self.touched.insert(key.clone());
        if !askers.is_empty() {
            return;
        }
        self.askers.remove(target);
        let Some(tenant) = target.tenant() else {
            return;
        };
        if self.asked.remove(target) {
            if let Some(count) = self.of_tenant.get_mut(tenant) {
                *count -= 1;
                if *count == 0 {
                    self.of_tenant.remove(tenant);
                }
            }
        } else if let Some(waiting) = self.waiting.get_mut(tenant) {
            waiting.remove(target);
            if waiting.is_empty() {
                self.waiting.remove(tenant);
            }
        }
    }

    /// Asks of those that wait as many as there is room for.
    fn fill(&mut self) {
        let Checked {
            bounds,
            askers,
            asked,
            of_tenant,
            waiting,
            touched,
            ..
        } = self;
        waiting.retain(|tenant, waiting| {
            while asked.len() < bounds.of_all {
                let count = of_tenant.get(tenant).copied().unwrap_or_default();
                if count >= bounds.of_tenant {
                    break;
                }
                let Some(target) = waiting.pop_first() else {
                    break;
                };
                of_tenant.insert(tenant.clone(), count + 1);
                touched.extend(askers.get(&target).into_iter().flatten().cloned());
                asked.insert(target);
            }
            !waiting.is_empty()
        });
    }

    /// What has to be asked, if that may have changed since the last time.
    pub(super) fn wanted(&mut self) -> Option<Checks> {
        let places = |target: &Target| match target {
            Target::Endpoint(at, _) => vec![*at],
            Target::Proxy(_) | Target::Port(_) | Target::Pods(..) => Vec::new(),
        };
        std::mem::take(&mut self.changed).then(|| {
            let asked = self.asked.iter();
            Checks {
                wanted: asked
                    .map(|target| (target.clone(), places(target)))
                    .collect(),
                omitted: self.waiting.values().map(BTreeSet::len).sum(),
            }
        })
    }

    /// Takes in what was found; the Services that may mean something else now.
    pub(super) fn found(&mut self, verdicts: Arc<Verdicts>) -> BTreeSet<Key> {
        let before = std::mem::replace(&mut self.verdicts, verdicts);
        let news = self.verdicts.iter();
        let news = news.filter(|(target, verdict)| before.get(target) != Some(*verdict));
        let lost = before.keys();
        let lost = lost.filter(|target| !self.verdicts.contains_key(target));
        let askers = news.map(|(target, _)| target).chain(lost);
        let askers = askers.filter_map(|target| self.askers.get(target));
        askers.flatten().cloned().collect()
    }

    /// Whose [`Checked::reason`] may be another since this was last asked.
    pub(super) fn take_touched(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.touched)
    }

    /// What the owner of this Service should know of those that find no room.
    pub(super) fn reason(&self, key: &Key) -> Option<Reason> {
        let waiting = self.waiting.get(&Tenant::of(key))?;
        let targets = self.services.get(key)?;
        let count = targets
            .iter()
            .filter(|target| waiting.contains(target))
            .count();
        let (most, of) = match self.asked.len() < self.bounds.of_all {
            true => (self.bounds.of_tenant, "a namespace"),
            false => (self.bounds.of_all, "this appliance"),
        };
        (count > 0).then_some(Reason::EndpointsNotChecked { count, most, of })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::probe::{Answer, HealthCheck};

    const BOUNDS: Bounds = Bounds {
        of_tenant: 4,
        of_all: 6,
    };

    fn key(tenant: u8, service: u8) -> Key {
        crate::testing::service(&format!("n{tenant}"), &format!("s{service}"))
    }

    fn targets(key: &Key, hosts: &[u8]) -> Vec<Target> {
        let check = Arc::new(HealthCheck::new(Tenant::of(key)));
        let hosts: BTreeSet<u8> = hosts.iter().copied().collect();
        let of = |host| Target::Endpoint(([10, 0, 0, host], 80).into(), Arc::clone(&check));
        hosts.into_iter().map(of).collect()
    }

    /// What is asked, as (tenant, host).
    fn asked(checked: &Checked) -> Vec<(String, String)> {
        let all = checked.asked.iter().filter_map(|target| match target {
            Target::Endpoint(at, check) => {
                Some((check.tenant.namespace.to_string(), at.ip().to_string()))
            }
            _ => None,
        });
        all.collect()
    }

    #[test]
    fn who_is_asked_is_asked_on_and_who_waits_comes_when_there_is_room() {
        let mut checked = Checked::within(BOUNDS);
        let (a, b, c) = (key(0, 0), key(1, 0), key(1, 1));
        checked.ask(&b, &targets(&b, &[1, 2, 3, 4, 5]));
        assert_eq!(asked(&checked).len(), 4, "of one namespace");
        let said = |checked: &Checked, key: &Key| checked.reason(key);
        let of_tenant = Reason::EndpointsNotChecked {
            count: 1,
            most: 4,
            of: "a namespace",
        };
        assert_eq!(said(&checked, &b), Some(of_tenant));
        checked.ask(&a, &targets(&a, &[1, 2, 3]));
        assert_eq!(asked(&checked).len(), 6, "of all");
        let of_all = Reason::EndpointsNotChecked {
            count: 1,
            most: 6,
            of: "this appliance",
        };
        assert_eq!(said(&checked, &a), Some(of_all.clone()));
        assert_eq!(said(&checked, &b), Some(of_all));
        // Shared within the namespace: nothing more is asked, and it stays when the first goes.
        checked.ask(&c, &targets(&c, &[1]));
        assert_eq!(said(&checked, &c), None);
        assert_eq!(checked.wanted().expect("it changed").omitted, 2);
        checked.take_touched();
        checked.ask(&b, &[]);
        assert_eq!(checked.take_touched(), [a.clone(), b.clone()].into());
        assert_eq!(said(&checked, &a), None);
        let ip = |n: u8| format!("10.0.0.{n}");
        let n0 = [1, 2, 3].map(|n| ("n0".to_owned(), ip(n)));
        let mut all = n0.to_vec();
        all.push(("n1".to_owned(), ip(1)));
        let mut found = asked(&checked);
        found.sort();
        assert_eq!(found, all);
        let now = checked.wanted().expect("it changed");
        assert_eq!((now.wanted.len(), now.omitted), (4, 0));
        assert_eq!(checked.wanted(), None);
    }

    #[test]
    fn verdicts_concern_those_who_asked() {
        let mut checked = Checked::within(BOUNDS);
        let (a, b, c) = (key(0, 0), key(1, 0), key(1, 1));
        for (key, hosts) in [(&a, &[1][..]), (&b, &[1, 2]), (&c, &[2, 3])] {
            checked.ask(key, &targets(key, hosts));
        }
        let of = |key: &Key, host, answer| (targets(key, &[host]).remove(0), answer);
        let good = Answer::Good(None);
        let first: Verdicts = [of(&a, 1, good), of(&b, 2, Answer::Refused)].into();
        let both = [a.clone(), b.clone(), c.clone()];
        assert_eq!(checked.found(Arc::new(first)), both.into());
        let second: Verdicts = [of(&a, 1, Answer::Silent), of(&b, 2, Answer::Refused)].into();
        assert_eq!(checked.found(Arc::new(second)), [a.clone()].into());
        let third: Verdicts = [of(&a, 1, Answer::Silent)].into();
        assert_eq!(checked.found(Arc::new(third)), [b, c].into());
        assert_eq!(checked.verdicts().len(), 1);
    }

    proptest! {
        /// Whatever Services come and go: the bounds hold, nobody who is asked is put out for another,
        /// nobody waits beside room, and every target is in one of the two places.
        #[test]
        fn bounds_hold_and_nobody_is_put_out(
            steps in prop::collection::vec((0..3_u8, 0..2_u8, prop::collection::vec(0..6_u8, 0..6)), 1..40)
        ) {
            let mut checked = Checked::within(BOUNDS);
            let mut model: BTreeMap<Key, Vec<Target>> = BTreeMap::new();
            for (tenant, service, hosts) in steps {
                let key = key(tenant, service);
                let wanted = targets(&key, &hosts);
                let before = checked.asked.clone();
                checked.ask(&key, &wanted);
                model.insert(key, wanted);
                let named: BTreeSet<Target> = model.values().flatten().cloned().collect();
                prop_assert!(checked.asked.len() <= BOUNDS.of_all);
                for target in before.intersection(&named) {
                    prop_assert!(checked.asked.contains(target));
                }
                let waiting: BTreeSet<Target> = checked.waiting.values().flatten().cloned().collect();
                prop_assert!(checked.asked.is_disjoint(&waiting));
                let both: BTreeSet<Target> = checked.asked.union(&waiting).cloned().collect();
                prop_assert_eq!(&both, &named);
                for tenant in named.iter().filter_map(Target::tenant) {
                    let of = |all: &BTreeSet<Target>| {
                        all.iter().filter(|target| target.tenant() == Some(tenant)).count()
                    };
                    let (asked, waits) = (of(&checked.asked), of(&waiting));
                    prop_assert!(asked <= BOUNDS.of_tenant);
                    prop_assert_eq!(checked.of_tenant.get(tenant).copied().unwrap_or(0), asked);
                    let room = asked < BOUNDS.of_tenant && checked.asked.len() < BOUNDS.of_all;
                    prop_assert!(waits == 0 || !room);
                }
                for (key, targets) in &model {
                    let short = targets.iter().filter(|target| waiting.contains(target)).count();
                    let said = match checked.reason(key) {
                        Some(Reason::EndpointsNotChecked { count, .. }) => count,
                        _ => 0,
                    };
                    prop_assert_eq!(said, short);
                }
            }
        }
    }
}
