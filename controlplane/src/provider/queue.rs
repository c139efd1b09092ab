//! Whose turn it is: one attempt at a time for each Service, longer pauses after failures, and a
//! pause after each success, so that a Service whose pods come and go is not written all the time.
//! PURE: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::object::Key;

/// After the first failure; twice as long after each further one (cloud-provider's service
/// controller: 5 s to 300 s).
const FIRST: Duration = Duration::from_secs(5);
/// And never longer than this.
const LONGEST: Duration = Duration::from_secs(300);
/// Between two writes of one Service that are only news of its health.
const SPACING: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Place {
    /// When it may be tried; `None`: it is not waiting.
    due: Option<Instant>,
    /// Not before this, whatever is new.
    not_before: Option<Instant>,
    failures: u32,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    places: BTreeMap<Key, Place>,
    order: BTreeSet<(Instant, Key)>,
}

impl Queue {
    /// There is news of `key`. `urgent`: more than its health changes.
    pub(super) fn add(&mut self, key: &Key, urgent: bool, now: Instant) {
        let place = self.places.entry(key.clone()).or_default();
        let at = match (place.failures, urgent, place.not_before) {
            // What failed may succeed with what is new, but not a hundred times a second.
            (1.., ..) => place.due.unwrap_or(now),
            (0, false, Some(not_before)) => now.max(not_before),
            (0, ..) => now,
        };
        if let Some(due) = place.due {
            self.order.remove(&(due, key.clone()));
        }
        let at = place.due.map_or(at, |due| due.min(at));
        place.due = Some(at);
        self.order.insert((at, key.clone()));
    }

    /// `key` is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(due) = self.places.remove(key).and_then(|place| place.due) {
            self.order.remove(&(due, key.clone()));
        }
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(due, _)| *due)
    }

    /// Takes the one that has been due longest.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Key> {
        let (due, _) = self.order.first()?;
        if *due > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        if let Some(place) = self.places.get_mut(&key) {
            place.due = None;
        }
        Some(key)
    }

    /// Its write went well.
    pub(super) fn succeeded(&mut self, key: &Key, now: Instant) {
        if let Some(place) = self.places.get_mut(key) {
            place.failures = 0;
            place.not_before = Some(now + SPACING);
        }
    }

    /// Its write failed; it is tried again later. Returns after how long.
    pub(super) fn failed(&mut self, key: &Key, now: Instant) -> Duration {
        let Some(place) = self.places.get_mut(key) else {
            return FIRST;
        };
        place.failures = place.failures.saturating_add(1);
        let doublings = (place.failures - 1).min(16);
        let pause = FIRST.saturating_mul(1 << doublings).min(LONGEST);
        if let Some(due) = place.due {
            self.order.remove(&(due, key.clone()));
        }
        place.due = Some(now + pause);
        self.order.insert((now + pause, key.clone()));
        pause
    }
}
