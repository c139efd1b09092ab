//! How writing to the API server fares, for readiness: who writes, and what is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::api::Refusal;
use crate::measure;
use crate::object::Key;
use crate::reason::Reason;

/// Refusals that are remembered one by one; all of one kind are one.
const MOST: usize = 8;

/// What there is to say; clones are one place.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    leads: bool,
    holder: String,
    refused: BTreeMap<&'static str, String>,
    /// And of single Services, one a Service at most.
    services: BTreeMap<Key, Arc<str>>,
    /// Services that another writes too.
    contested: BTreeMap<Key, Reason>,
    /// Services that are left to another provider.
    left: BTreeMap<Key, Reason>,
}

impl Health {
    /// One line, and whether it is as it should be.
    pub fn say(&self) -> (bool, String) {
        let state = self.lock().clone();
        let who = match (state.leads, &*state.holder) {
            (true, _) => "this process writes the status of Services".to_owned(),
            (false, "") => "nobody is known to write the status of Services".to_owned(),
            (false, holder) => format!(
                "{holder:?} writes the status of Services; this process forwards, and keeps their addresses off its interfaces"
            ),
        };
        let is_known = state.leads || !state.holder.is_empty();
        let rivals = [
            some_of(&state.left, "left to another provider"),
            some_of(&state.contested, "written by another too"),
        ];
        let wrong = state.refused.into_values();
        let wrong: Vec<String> = wrong.chain(rivals.into_iter().flatten()).collect();
        match wrong.is_empty() {
            true => (is_known, who),
            false => (false, format!("{who}; {}", wrong.join("; "))),
        }
    }

    /// Sets the numbers, at the moment of a scrape.
    pub fn measure(&self) {
        let state = self.lock();
        measure::rivals(state.left.len(), state.contested.len());
    }

    /// Who writes, as the Lease says.
    pub(super) fn leader(&self, leads: bool, holder: &str) {
        let mut state = self.lock();
        state.leads = leads;
        holder.clone_into(&mut state.holder);
    }

    /// How the last write to `what` went.
    pub(super) fn wrote(&self, what: &'static str, refusal: Option<&Refusal>) {
        let mut state = self.lock();
        match refusal {
            // These are answers like any other.
            None | Some(Refusal::NotFound | Refusal::Conflict(_)) => {
                state.refused.remove(what);
            }
            Some(refusal) if state.refused.len() < MOST => {
                state.refused.insert(what, format!("{what}: {refusal}"));
            }
            Some(_) => {}
        }
    }

    /// What of this Service cannot be written, and what is undone, if anything.
    pub fn of(&self, key: &Key) -> Vec<Reason> {
        let state = self.lock();
        let problem = state.services.get(key).cloned();
        let unwritten = problem.map(|problem| Reason::NotWritten { problem });
        let contested = state.contested.get(key).cloned();
        unwritten.into_iter().chain(contested).collect()
    }

    /// `key` is left to another provider, or is not any more. Returns whether it is the first.
    pub(super) fn left(&self, key: &Key, to: Option<&Reason>) -> bool {
        let left = &mut self.lock().left;
        match to {
            Some(reason) => {
                left.insert(key.clone(), reason.clone());
                left.len() == 1
            }
            None => {
                left.remove(key);
                false
            }
        }
    }

    /// Another writes `key` too, or does not any more.
    pub(super) fn contest(&self, key: &Key, reason: Option<Reason>) {
        let contested = &mut self.lock().contested;
        match reason {
            Some(reason) => drop(contested.insert(key.clone(), reason)),
            None => drop(contested.remove(key)),
        }
    }

    /// How the last write of `key` to `what` went.
    pub(super) fn wrote_of(&self, key: &Key, what: &'static str, refusal: Option<&Refusal>) {
        self.wrote(what, refusal);
        let mut state = self.lock();
        match refusal {
            None | Some(Refusal::NotFound | Refusal::Conflict(_)) => {
                state.services.remove(key);
            }
            Some(refusal) => {
                let problem = format!("{what}: {refusal}").into();
                state.services.insert(key.clone(), problem);
            }
        }
    }

    /// `key` is gone.
    pub(super) fn forget(&self, key: &Key) {
        let mut state = self.lock();
        state.services.remove(key);
        state.contested.remove(key);
        state.left.remove(key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each of its fields is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many there are, and the first of them with why.
fn some_of(services: &BTreeMap<Key, Reason>, what: &str) -> Option<String> {
    let (key, reason) = services.first_key_value()?;
    let count = services.len();
    Some(format!(
        "{count} Services are {what}, {key} first: {reason}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_said_until_it_is_not() {
        let health = Health::default();
        assert!(!health.say().0, "nobody is known to write");
        health.leader(false, "other");
        assert_eq!(
            health.say(),
            (
                true,
                "\"other\" writes the status of Services; this process forwards, and keeps their addresses off its interfaces"
                    .into()
            )
        );
        health.leader(true, "us");
        let forbidden = Refusal::Forbidden("cannot patch services/status".into());
        health.wrote("services/status", Some(&forbidden));
        let (good, text) = health.say();
        assert!(
            !good && text.contains("services/status: cannot patch"),
            "{text}"
        );
        let key = Key {
            uid: "1".into(),
            ..crate::testing::service("shop", "web")
        };
        health.wrote_of(&key, "services/status", Some(&forbidden));
        let said = format!("{:?}", health.of(&key));
        assert!(
            said.contains("services/status: cannot patch"),
            "the Service says so too"
        );
        health.wrote_of(&key, "services", None);
        assert_eq!(health.of(&key), []);
        health.wrote_of(&key, "services/status", Some(&forbidden));
        health.forget(&key);
        assert_eq!(health.of(&key), []);
        health.wrote("services", None);
        assert!(!health.say().0);
        health.wrote("services/status", Some(&Refusal::NotFound));
        assert!(health.say().0);
    }
}
