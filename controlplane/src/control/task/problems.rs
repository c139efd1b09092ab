//! What the sources say of what they read, and cannot read: logged, and kept for the Services that it concerns.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Task;
use crate::control::denied::Denied;
use crate::control::said::solved;
use crate::object::Key;
use crate::source::{Level, Problem, kubernetes};

/// Problems of one object that its status names; the sources' own list has them all.
const SAID_OF_ONE: usize = 5;

impl Task<'_> {
    /// The sources have something new to say.
    pub(super) fn problems(&mut self, problems: Vec<Problem>) {
        let known: HashSet<&Problem> = self.problems.iter().collect();
        for problem in &problems {
            if !known.contains(problem) {
                match problem.level {
                    Level::Note => tracing::info!("{problem}"),
                    Level::Outage | Level::Error => tracing::warn!("{problem}"),
                }
            }
        }
        for (path, before) in solved(&self.problems, &problems) {
            tracing::info!(
                "{}: nothing is wrong any more; it was: {before}",
                path.display()
            );
        }
        let mut said: BTreeMap<Key, Vec<Problem>> = BTreeMap::new();
        let mut said_of_slices: BTreeMap<Key, Vec<Problem>> = BTreeMap::new();
        for problem in problems
            .iter()
            .filter(|problem| problem.level == Level::Error)
        {
            let (all, key) = match (&problem.service, &problem.object) {
                (Some(service), _) => (&mut said_of_slices, service),
                (None, Some(object)) => (&mut said, object),
                (None, None) => continue,
            };
            let said = all.entry(key.clone()).or_default();
            // 10,000 files may each define an object anew.
            if said.len() < SAID_OF_ONE {
                said.push(problem.clone());
            }
        }
        let services = self.said_of_slices.keys().chain(said_of_slices.keys());
        let services = services.filter_map(|key| self.line.named(key));
        let objects = self.said.keys().chain(said.keys());
        let mut touched: BTreeSet<Key> = objects.chain(services).cloned().collect();
        touched.extend(self.denied());
        self.said = said;
        self.said_of_slices = said_of_slices;
        self.problems = problems.into();
        self.refresh(&touched);
        self.show();
    }

    /// Looks at what the API server does not let us read; the Services that may concern, if that changed.
    fn denied(&mut self) -> BTreeSet<Key> {
        let Some(cluster) = &self.settings.kubernetes else {
            return BTreeSet::new();
        };
        let now = Denied::of(&cluster.watches.all());
        match std::mem::replace(&mut self.denied, now) == self.denied {
            true => BTreeSet::new(),
            false => self.line.keys(kubernetes::SOURCE),
        }
    }
}
