//! Who writes: the rules of a Lease (coordination.k8s.io/v1), as client-go's leader election has them.
//! PURE: time is an argument.
//!
//! A lease that another holds has ended when it was not seen to change for its duration, by our own
//! monotonic clock: clocks of two hosts are never compared. Who holds it stops by itself when it
//! could not renew for [`RENEW_DEADLINE`], which is before anybody else may take it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// How long a lease is good for without a change.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// The holder stops after so long without a renewal.
pub(super) const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// Longest identity, in bytes.
const MAX_TEXT: usize = 256;

/// A lease as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// "": nobody.
    holder: String,
    renewed: String,
    acquired: String,
    duration: Option<Duration>,
    transitions: i64,
    version: String,
}

impl Record {
    /// Reads the stored object; what cannot be read is as if nobody held it.
    pub(super) fn read(value: &Value) -> Record {
        let spec = &value["spec"];
        let text = |value: &Value| -> String {
            let text = value.as_str().unwrap_or_default();
            text.chars().take(MAX_TEXT).collect()
        };
        Record {
            holder: text(&spec["holderIdentity"]),
            renewed: text(&spec["renewTime"]),
            acquired: text(&spec["acquireTime"]),
            duration: spec["leaseDurationSeconds"]
                .as_u64()
                .map(Duration::from_secs),
            transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
            version: text(&value["metadata"]["resourceVersion"]),
        }
    }
}

/// What to do with a lease now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Another holds it.
    Wait,
    /// Write this; whoever was faster makes it fail.
    Put(Value),
}

/// One process's view of a lease.
#[derive(Debug)]
pub(super) struct Election {
    identity: String,
    namespace: String,
    name: String,
    seen: Record,
    /// When `seen` was first seen.
    since: Option<Instant>,
    /// The last time that ours was written, counted from before it was sent.
    renewed: Option<Instant>,
}

impl Election {
    pub(super) fn new(identity: &str, namespace: &str, name: &str) -> Election {
        Election {
            identity: identity.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            seen: Record::default(),
            since: None,
            renewed: None,
        }
    }

    /// Where it is stored.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    /// Where one is made.
    pub(super) fn collection(&self) -> String {
        let namespace = &self.namespace;
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
    }

    /// Do we lead at this moment?
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }

    /// Until when we lead, if nothing is heard any more.
    pub(super) fn leads_until(&self) -> Option<Instant> {
        let renewed = self.renewed.filter(|_| self.seen.holder == self.identity);
        renewed.map(|at| at + RENEW_DEADLINE)
    }

    /// Who leads, as far as is known; "" if nobody.
    pub(super) fn holder(&self) -> &str {
        &self.seen.holder
    }

    /// Does another lead, as far as is known?
    pub(super) fn is_anothers(&self) -> bool {
        !self.seen.holder.is_empty() && self.seen.holder != self.identity
    }

    /// What was found; `None`: there is no lease yet.
    pub(super) fn act(&mut self, found: Option<Record>, now: Instant, wall: &str) -> Act {
        let Some(found) = found else {
            self.seen = Record::default();
            return Act::Put(self.object(&Record::default(), wall));
        };
        if self.since.is_none() || found != self.seen {
            self.seen = found;
            self.since = Some(now);
        }
        let is_ours = self.seen.holder == self.identity;
        let duration = self.seen.duration.unwrap_or(DURATION);
        let since = self.since.unwrap_or(now);
        let ended = now.saturating_duration_since(since) >= duration;
        match is_ours || self.seen.holder.is_empty() || ended {
            true => Act::Put(self.object(&self.seen, wall)),
            false => Act::Wait,
        }
    }

    /// What we wrote was stored as this; it was sent at `sent`.
    pub(super) fn wrote(&mut self, stored: Record, sent: Instant) {
        self.seen = stored;
        self.since = Some(sent);
        self.renewed = Some(sent);
    }

    /// The object that gives it up, if it is ours to give.
    pub(super) fn release(&mut self, now: Instant, wall: &str) -> Option<Value> {
        if !self.leads(now) {
            return None;
        }
        self.renewed = None;
        let mut object = self.object(&self.seen, wall);
        object["spec"]["holderIdentity"] = json!("");
        object["spec"]["leaseDurationSeconds"] = json!(1);
        Some(object)
    }

    fn object(&self, before: &Record, wall: &str) -> Value {
        let is_ours = before.holder == self.identity;
        let (acquired, transitions) = match (is_ours, before.version.is_empty()) {
            (true, _) => (&*before.acquired, before.transitions),
            (false, true) => (wall, 0),
            (false, false) => (wall, before.transitions.saturating_add(1)),
        };
        let mut object = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "namespace": self.namespace, "name": self.name },
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION.as_secs(),
                "renewTime": wall,
                "acquireTime": acquired,
                "leaseTransitions": transitions,
            },
        });
        if !before.version.is_empty() {
            object["metadata"]["resourceVersion"] = json!(before.version);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: &str = "2026-11-25T12:00:00.000000Z";

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// The lease as the API server has it: a write under an old version is refused.
    #[derive(Default)]
    struct Stored {
        value: Option<Value>,
        version: u64,
    }

    impl Stored {
        fn found(&self) -> Option<Record> {
            self.value.as_ref().map(Record::read)
        }

        fn put(&mut self, mut object: Value) -> bool {
            let under = object["metadata"]["resourceVersion"]
                .as_str()
                .map(str::to_owned);
            let current = self.value.as_ref().map(|_| self.version.to_string());
            if under != current {
                return false;
            }
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.value = Some(object);
            true
        }

        fn turn(&mut self, election: &mut Election, now: Instant) -> bool {
            if let Act::Put(object) = election.act(self.found(), now, WALL)
                && self.put(object)
                && let Some(stored) = self.found()
            {
                election.wrote(stored, now);
            }
            election.leads(now)
        }
    }

    fn two() -> (Election, Election, Stored) {
        let election = |identity| Election::new(identity, "weir-system", "weir");
        (election("a"), election("b"), Stored::default())
    }

    #[test]
    fn the_first_leads_and_the_other_waits_for_the_duration_without_a_change() {
        let (mut a, mut b, mut lease) = two();
        let start = Instant::now();
        assert!(lease.turn(&mut a, start) && !lease.turn(&mut b, start));
        // Renewed all the time: never taken.
        for n in 1..100 {
            let now = start + second(2 * n);
            assert!(lease.turn(&mut a, now) && !lease.turn(&mut b, now), "{n}");
        }
        let last = start + second(198);
        // a is frozen. It has stopped by itself before b may begin.
        assert!(a.leads(last + second(9)) && !a.leads(last + second(10)));
        assert!(!lease.turn(&mut b, last + second(14)));
        assert!(lease.turn(&mut b, last + second(15)));
        assert_eq!(
            lease.value.as_ref().expect("stored")["spec"]["leaseTransitions"],
            1
        );
        // Thawed, it finds another's, and waits.
        assert!(!lease.turn(&mut a, last + second(16)));
        assert_eq!(a.holder(), "b");
    }

    #[test]
    fn a_clock_of_another_host_decides_nothing() {
        let (mut a, mut b, mut lease) = two();
        let start = Instant::now();
        lease.turn(&mut a, start);
        // However old the time in it looks, it counts from when it was first seen here.
        if let Some(value) = &mut lease.value {
            value["spec"]["renewTime"] = json!("1999-01-01T00:00:00.000000Z");
        }
        let late = start + second(1_000);
        assert!(!lease.turn(&mut b, late));
        assert!(!lease.turn(&mut b, late + second(14)));
        assert!(lease.turn(&mut b, late + second(15)));
    }

    #[test]
    fn what_is_given_up_is_taken_at_once() {
        let (mut a, mut b, mut lease) = two();
        let start = Instant::now();
        lease.turn(&mut a, start);
        lease.turn(&mut b, start);
        assert!(b.release(start, WALL).is_none(), "it is not b's to give");
        let object = a.release(start + second(1), WALL).expect("it leads");
        assert!(lease.put(object) && !a.leads(start + second(1)));
        assert!(lease.turn(&mut b, start + second(2)));
    }

    #[test]
    fn of_two_that_take_it_at_once_one_is_refused() {
        let (mut a, mut b, mut lease) = two();
        let now = Instant::now();
        let (Act::Put(of_a), Act::Put(of_b)) = (a.act(None, now, WALL), b.act(None, now, WALL))
        else {
            panic!("there is none yet");
        };
        assert!(lease.put(of_a) && !lease.put(of_b));
        assert!(!b.leads(now));
        assert!(!lease.turn(&mut b, now));
    }

    #[test]
    fn garbage_in_a_lease_is_nobodys() {
        let (mut a, ..) = two();
        for value in [
            json!(7),
            json!({"spec": 7}),
            json!({"spec": {"holderIdentity": 7,
            "leaseDurationSeconds": -1, "leaseTransitions": "x"}, "metadata": []}),
        ] {
            let found = Record::read(&value);
            assert!(matches!(
                a.act(Some(found), Instant::now(), WALL),
                Act::Put(_)
            ));
        }
        // A duration of years from somebody else is his to renew, and no overflow.
        let long = json!({"metadata": {"resourceVersion": "1"},
            "spec": {"holderIdentity": "x", "leaseDurationSeconds": u64::MAX, "leaseTransitions": i64::MAX}});
        let now = Instant::now();
        assert_eq!(a.act(Some(Record::read(&long)), now, WALL), Act::Wait);
    }
}
