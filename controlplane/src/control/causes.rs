//! When what is decided on was caused, as its source dates it: the annotation
//! `endpoints.kubernetes.io/last-change-trigger-time` of EndpointSlices, as kube-proxy reads it for
//! its network programming latency. PURE: clocks are arguments.
//!
//! The time is another machine's: what its clock is wrong by is in every number, and a clock that
//! is ahead of ours gives none. It is of this change only if the version before had another: the
//! controller leaves the old one where it knows none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::object::{EndpointSlice, Key, Trigger};

/// A change that is dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// So old it was.
    age: Duration,
    /// When we heard of it.
    heard: Instant,
}

impl Cause {
    /// Since it was triggered.
    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.heard)
    }
}

/// Why a change counts from its event alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undated {
    /// No annotation.
    Absent,
    /// It is no time.
    Unreadable,
    /// It is that of the version before.
    Repeated,
    /// From before this process began: how long it took says nothing of it.
    BeforeStart,
    /// Its clock is ahead of ours.
    Future,
}

impl Undated {
    /// Its name in metrics; one of [`Undated::WORDS`].
    pub(crate) fn word(self) -> &'static str {
        let [absent, unreadable, repeated, before_start, future] = Undated::WORDS;
        match self {
            Undated::Absent => absent,
            Undated::Unreadable => unreadable,
            Undated::Repeated => repeated,
            Undated::BeforeStart => before_start,
            Undated::Future => future,
        }
    }

    /// All of them.
    pub(crate) const WORDS: [&'static str; 5] =
        ["absent", "unreadable", "repeated", "before_start", "future"];
}

/// What changed since the last decision: one entry an EndpointSlice, the oldest of its changes.
#[derive(Debug)]
pub(super) struct Causes {
    /// Microseconds since 1970.
    started: i64,
    changes: BTreeMap<Key, (Key, Result<Cause, Undated>)>,
}

impl Causes {
    /// Of a process that began at `started`, microseconds since 1970.
    pub(super) fn new(started: i64) -> Causes {
        Causes {
            started,
            changes: BTreeMap::new(),
        }
    }

    /// `slice` came in place of `before`, at `now` (microseconds since 1970), which is `heard`.
    pub(super) fn note(
        &mut self,
        slice: &EndpointSlice,
        before: Option<&EndpointSlice>,
        now: i64,
        heard: Instant,
    ) {
        let Some(service) = slice.service_key() else {
            return;
        };
        let before = before.map(|before| before.trigger);
        let cause = date(slice.trigger, before, self.started, now);
        let cause = cause.map(|age| Cause { age, heard });
        let change = self.changes.entry(slice.meta.key.clone());
        let (_, kept) = change.or_insert((service, cause));
        if kept.is_err() {
            *kept = cause;
        }
    }

    /// What was noted of the Services that `counts`; all is forgotten.
    pub(super) fn take(&mut self, counts: impl Fn(&Key) -> bool) -> Vec<Result<Cause, Undated>> {
        let changes = std::mem::take(&mut self.changes).into_values();
        let counted = changes.filter(|(service, _)| counts(service));
        counted.map(|(_, cause)| cause).collect()
    }
}

/// How long ago the change was triggered. Times are microseconds since 1970.
fn date(
    trigger: Trigger,
    before: Option<Trigger>,
    started: i64,
    now: i64,
) -> Result<Duration, Undated> {
    let triggered = match trigger {
        Trigger::Absent => return Err(Undated::Absent),
        Trigger::Unreadable => return Err(Undated::Unreadable),
        Trigger::At(_) if before == Some(trigger) => return Err(Undated::Repeated),
        Trigger::At(triggered) => triggered,
    };
    if triggered <= started {
        return Err(Undated::BeforeStart);
    }
    let age = now.checked_sub(triggered);
    let age = age.and_then(|age| u64::try_from(age).ok());
    age.map(Duration::from_micros).ok_or(Undated::Future)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::{AddressType, Kind, Meta};

    const STARTED: i64 = 1_000_000;

    #[test]
    fn what_dates_a_change_and_what_does_not() {
        use Trigger::{Absent, At, Unreadable};
        let age = |micros| Ok(Duration::from_micros(micros));
        for (trigger, before, now, expected) in [
            (At(2_000_000), None, 2_500_000, age(500_000)),
            (At(2_000_000), Some(Absent), 2_000_000, age(0)),
            (At(2_000_000), Some(At(1_999_999)), 2_000_001, age(1)),
            // Older than the one before: another machine's clock, and still this change's.
            (
                At(2_000_000),
                Some(At(3_000_000)),
                3_000_000,
                age(1_000_000),
            ),
            (Absent, Some(At(2_000_000)), 9_000_000, Err(Undated::Absent)),
            (Unreadable, None, 9_000_000, Err(Undated::Unreadable)),
            (
                At(2_000_000),
                Some(At(2_000_000)),
                9_000_000,
                Err(Undated::Repeated),
            ),
            (At(STARTED), None, 9_000_000, Err(Undated::BeforeStart)),
            (At(-5), None, 9_000_000, Err(Undated::BeforeStart)),
            (At(i64::MIN), None, i64::MAX, Err(Undated::BeforeStart)),
            (At(9_000_001), None, 9_000_000, Err(Undated::Future)),
            (At(i64::MAX), None, i64::MIN, Err(Undated::Future)),
        ] {
            let found = date(trigger, before, STARTED, now);
            assert_eq!(found, expected, "{trigger:?} {before:?} {now}");
        }
    }

    fn slice(name: &str, service: &str, trigger: Trigger) -> EndpointSlice {
        let key = crate::testing::key(Kind::EndpointSlice, "n", name);
        EndpointSlice {
            meta: Meta {
                key,
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                created: None,
                deleting: false,
                location: None,
            },
            service: Some(service.into()),
            address_type: AddressType::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            trigger,
        }
    }

    #[test]
    fn a_slice_counts_once_from_its_oldest_change_and_only_if_its_service_counts() {
        let (mut causes, heard) = (Causes::new(STARTED), Instant::now());
        let mut note = |name, service, trigger, now| {
            causes.note(&slice(name, service, trigger), None, now, heard);
        };
        note("a", "web", Trigger::Absent, 2_000_000);
        note("a", "web", Trigger::At(2_100_000), 2_200_000);
        note("a", "web", Trigger::At(2_300_000), 2_300_000);
        note("b", "web", Trigger::Absent, 2_000_000);
        note("c", "other", Trigger::At(2_000_000), 2_000_000);
        let taken = causes.take(|service| &*service.name == "web");
        let age = Duration::from_micros(100_000);
        assert_eq!(taken, [Ok(Cause { age, heard }), Err(Undated::Absent)]);
        let later = heard + Duration::from_secs(1);
        assert_eq!(
            Cause { age, heard }.elapsed(later),
            age + Duration::from_secs(1)
        );
        assert_eq!(causes.take(|_| true), []);
    }

    proptest! {
        #[test]
        fn no_time_is_ever_counted_from_before_the_start_or_from_the_future(
            trigger in any::<i64>(), started in any::<i64>(), now in any::<i64>(),
        ) {
            if let Ok(age) = date(Trigger::At(trigger), None, started, now) {
                prop_assert!(trigger > started && trigger <= now);
                prop_assert_eq!(age.as_micros() as i128, i128::from(now) - i128::from(trigger));
            }
        }
    }
}
