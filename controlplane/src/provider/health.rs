//! How writing to the API server fares, for readiness: who writes, and what is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::api::Refusal;
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
        if state.refused.is_empty() {
            return (state.leads || !state.holder.is_empty(), who);
        }
        let refused: Vec<String> = state.refused.into_values().collect();
        (false, format!("{who}; {}", refused.join("; ")))
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

    /// What of this Service cannot be written, if anything.
    pub fn of(&self, key: &Key) -> Option<Reason> {
        let problem = self.lock().services.get(key).cloned()?;
        Some(Reason::NotWritten { problem })
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
        self.lock().services.remove(key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each of its fields is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            source: crate::object::SourceId(0),
            cluster: "".into(),
            kind: crate::object::Kind::Service,
            namespace: "shop".into(),
            name: "web".into(),
            uid: "1".into(),
        };
        health.wrote_of(&key, "services/status", Some(&forbidden));
        let said = health.of(&key).map(|reason| reason.to_string());
        assert!(
            said.is_some_and(|said| said.contains("services/status: cannot patch")),
            "the Service says so too"
        );
        health.wrote_of(&key, "services", None);
        assert_eq!(health.of(&key), None);
        health.wrote_of(&key, "services/status", Some(&forbidden));
        health.forget(&key);
        assert_eq!(health.of(&key), None);
        health.wrote("services", None);
        assert!(!health.say().0);
        health.wrote("services/status", Some(&Refusal::NotFound));
        assert!(health.say().0);
    }
}
