//! How each list and watch fares, for readiness and metrics: written by the source, read by anybody
//! at any time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::reading::Refusal;
use super::scope::Scope;

/// After this without a word from the API server, what is served may be out of date. A watch that
/// is well hears something every 8 s at least.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// What the objects of a scope are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// There are none yet.
    #[default]
    Nothing,
    /// The state directory: they are as old as the last run.
    Kept,
    /// A complete list of the API server.
    Listed,
}

/// One list and watch.
#[derive(Clone, Debug)]
pub struct Watch {
    /// When it began.
    pub begun: Instant,
    /// When the API server last said anything.
    pub contact: Option<Instant>,
    /// What its objects are from.
    pub origin: Origin,
    /// What is wrong now.
    pub failure: Option<Failure>,
    /// Complete lists so far.
    pub lists: u64,
    /// Failures so far, by their code.
    pub failures: BTreeMap<&'static str, u64>,
    /// Refused objects so far, by their code; once more with every list that has them.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Watch {
    /// Since the last word of the API server, or since it began.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.contact.unwrap_or(self.begun))
    }
}

/// All lists and watches; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<Mutex<BTreeMap<Scope, Watch>>>);

impl Watches {
    /// As they are now.
    pub fn all(&self) -> BTreeMap<Scope, Watch> {
        self.lock().clone()
    }

    pub(super) fn begin(&self, scope: &Scope) {
        let watch = Watch {
            begun: Instant::now(),
            contact: None,
            origin: Origin::Nothing,
            failure: None,
            lists: 0,
            failures: Failure::CODES.iter().map(|code| (*code, 0)).collect(),
            refused: Refusal::ALL
                .iter()
                .map(|refusal| (refusal.code(), 0))
                .collect(),
        };
        // What a source that ended by a panic counted goes on.
        let mut all = self.lock();
        let watch = match all.remove(scope) {
            Some(before) => Watch {
                lists: before.lists,
                failures: before.failures,
                refused: before.refused,
                ..watch
            },
            None => watch,
        };
        all.insert(scope.clone(), watch);
    }

    pub(super) fn contact(&self, scope: &Scope) {
        self.on(scope, |watch| watch.contact = Some(Instant::now()));
    }

    pub(super) fn listed(&self, scope: &Scope) {
        self.on(scope, |watch| {
            watch.lists += 1;
            watch.origin = Origin::Listed;
        });
    }

    pub(super) fn kept(&self) {
        for watch in self.lock().values_mut() {
            if watch.origin == Origin::Nothing {
                watch.origin = Origin::Kept;
            }
        }
    }

    /// Counts it; `said` if it is to be shown.
    pub(super) fn failed(&self, scope: &Scope, failure: &Failure, said: bool) {
        self.on(scope, |watch| {
            *watch.failures.entry(failure.code()).or_default() += 1;
            if said {
                watch.failure = Some(failure.clone());
            }
        });
    }

    pub(super) fn well(&self, scope: &Scope) {
        self.on(scope, |watch| watch.failure = None);
    }

    pub(super) fn refused(&self, scope: &Scope, refusal: Refusal) {
        self.on(scope, |watch| {
            *watch.refused.entry(refusal.code()).or_default() += 1;
        });
    }

    fn on(&self, scope: &Scope, change: impl FnOnce(&mut Watch)) {
        if let Some(watch) = self.lock().get_mut(scope) {
            change(watch);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Scope, Watch>> {
        // Nothing panics while it holds the lock; were it so, the data would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
