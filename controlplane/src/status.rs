//! What became of every Service, and why: one value that anybody may read and nobody waits for.
//!
//! Owned and changed by the control task alone. A [`Snapshot`] is a clone whose cost does not grow
//! with the number of Services; the control task stores one after every change ([`Board`]).
//!
//! # States
//!
//! ```text
//!   refused   it is not served as it stands: the object has to change
//!   pending   it will be served once something else changes: an address becomes free, a listener
//!             opens, a worker takes up the table
//!   closed    it has its addresses and no usable endpoint: clients are refused at once
//!   degraded  some of its addresses and ports serve, others cannot
//!   serving   every port that has a usable endpoint listens in every worker, on an address that
//!             is on the machine
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use arc_swap::ArcSwap;
use lb_core::table::{Protocol, Radix};

use crate::load_balancer::EndpointCounts;
use crate::object::Key;
use crate::reason::Reason;
use crate::source::Problem;

/// What became of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Every port that has a usable endpoint listens everywhere.
    Serving,
    /// Some of it serves, some of it cannot.
    Degraded,
    /// Addresses, and no usable endpoint.
    Closed,
    /// Something else has to change first.
    Pending,
    /// The object has to change first.
    Refused,
}

/// One port, as clients dial it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// "" where none is given.
    pub name: Arc<str>,
    /// Its number.
    pub port: NonZeroU16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Which.
    pub key: Key,
    /// What became of it.
    pub state: State,
    /// Its VIPs, in the order of its families.
    pub addresses: Vec<IpAddr>,
    /// Its ports that are served, or would be.
    pub ports: Vec<Port>,
    /// Its endpoints by state.
    pub endpoints: EndpointCounts,
    /// Why, and what else its owner should know; what has to change first is first.
    pub reasons: Vec<Reason>,
    /// It is on its way: the workers or the machine have not said yet how it fares.
    pub settling: bool,
}

impl ServiceStatus {
    /// Of a Service of which there is nothing but why.
    pub(crate) fn without(key: &Key, state: State, reasons: Vec<Reason>) -> ServiceStatus {
        ServiceStatus {
            key: key.clone(),
            state,
            addresses: Vec::new(),
            ports: Vec::new(),
            endpoints: EndpointCounts::default(),
            reasons,
            settling: false,
        }
    }
}

/// Everything the control plane has to say at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) services: Radix<Arc<ServiceStatus>>,
    /// How many Services are in each state.
    pub counts: BTreeMap<State, usize>,
    /// How many Services are on their way to listening.
    pub settling: usize,
    /// Every source gave its first complete list.
    pub complete: bool,
    /// Services that the deletion guard holds.
    pub held: usize,
    /// What the sources have to say about what they read.
    pub problems: Arc<[Problem]>,
    /// Why the state directory could not be written, if it could not.
    pub state_problem: Option<Arc<str>>,
    /// What was found damaged in the state directory at the start.
    pub state_notes: Arc<[String]>,
    /// The generation published last.
    pub published: u64,
    /// Times that the control task was started anew after a panic.
    pub restarts: u64,
}

impl Snapshot {
    /// Every Service, in no order that means anything.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceStatus>> {
        self.services.iter().map(|(_, status)| status)
    }
}

/// Where the control task shows its snapshot; clones are one place.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<ArcSwap<Snapshot>>);

impl Board {
    /// The snapshot shown last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub(crate) fn show(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

/// The statuses as the control task keeps them.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    places: BTreeMap<Key, u32>,
    free: BTreeSet<u32>,
    all: Radix<Arc<ServiceStatus>>,
    counts: BTreeMap<State, usize>,
    settling: usize,
}

impl Statuses {
    /// Puts a Service's status, or takes it away. Returns whether anything changed.
    pub(crate) fn set(&mut self, key: &Key, status: Option<ServiceStatus>) -> bool {
        let before = self.of(key).cloned();
        if before.as_deref() == status.as_ref() {
            return false;
        }
        if let Some(before) = &before
            && let Some(count) = self.counts.get_mut(&before.state)
        {
            *count -= 1;
            self.settling -= usize::from(before.settling);
        }
        match status {
            Some(status) => {
                *self.counts.entry(status.state).or_default() += 1;
                self.settling += usize::from(status.settling);
                let place = self.place(key);
                self.all.set(place, Some(Arc::new(status)));
            }
            None => {
                if let Some(place) = self.places.remove(key) {
                    self.all.set(place, None);
                    self.free.insert(place);
                }
            }
        }
        true
    }

    pub(crate) fn of(&self, key: &Key) -> Option<&Arc<ServiceStatus>> {
        self.all.get(*self.places.get(key)?)
    }

    /// Writes the statuses into `snapshot`, which shares them.
    pub(crate) fn fill(&self, snapshot: &mut Snapshot) {
        snapshot.services = self.all.clone();
        snapshot.counts = self.counts.clone();
        snapshot.settling = self.settling;
    }

    fn place(&mut self, key: &Key) -> u32 {
        if let Some(place) = self.places.get(key) {
            return *place;
        }
        let place = self.free.pop_first();
        // Without a gap the places are 0..len. There are never 2^32 Services.
        let place = place.unwrap_or(self.places.len() as u32);
        self.places.insert(key.clone(), place);
        place
    }
}

/// One VIP and port, as its workers and the machine see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Every worker listens, and the address is there.
    Open,
    /// It has no usable backend.
    Closed,
    /// Not every worker runs the table yet.
    Waiting,
    /// It cannot be served now.
    Failed(Reason),
}

/// What became of a Service that has a load balancer, from its fronts.
pub(crate) fn judge(addresses: &[IpAddr], fronts: &[Front], expected: usize) -> State {
    let is = |wanted: fn(&Front) -> bool| fronts.iter().filter(|front| wanted(front)).count();
    let open = is(|front| matches!(front, Front::Open));
    let closed = is(|front| matches!(front, Front::Closed));
    let failed = is(|front| matches!(front, Front::Failed(_)));
    let missing = expected.saturating_sub(fronts.len()) + failed;
    if addresses.is_empty() || is(|front| matches!(front, Front::Waiting)) > 0 {
        return State::Pending;
    }
    match (open > 0, missing > 0, closed > 0) {
        (true, false, _) => State::Serving,
        (true, true, _) => State::Degraded,
        (false, false, true) => State::Closed,
        (false, ..) => State::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        crate::testing::service("n", name)
    }

    fn status(name: &str, state: State) -> ServiceStatus {
        ServiceStatus {
            key: key(name),
            state,
            addresses: Vec::new(),
            ports: Vec::new(),
            endpoints: EndpointCounts::default(),
            reasons: Vec::new(),
            settling: false,
        }
    }

    #[test]
    fn states_of_fronts() {
        let failed = || Front::Failed(Reason::NoPorts);
        let here: [IpAddr; 1] = [IpAddr::from([192, 0, 2, 1])];
        let cases = [
            (vec![Front::Open], 1, State::Serving),
            (vec![Front::Open, Front::Closed], 2, State::Serving),
            (vec![Front::Open, failed()], 2, State::Degraded),
            (vec![Front::Open], 2, State::Degraded),
            (vec![Front::Open, Front::Waiting], 2, State::Pending),
            (vec![Front::Closed], 1, State::Closed),
            (vec![Front::Closed, failed()], 2, State::Pending),
            (vec![failed()], 1, State::Pending),
            (vec![], 1, State::Pending),
        ];
        for (fronts, expected, state) in cases {
            assert_eq!(judge(&here, &fronts, expected), state, "{fronts:?}");
            assert_eq!(judge(&[], &fronts, expected), State::Pending, "{fronts:?}");
        }
    }

    #[test]
    fn statuses_share_and_count() {
        let mut all = Statuses::default();
        assert!(all.set(&key("a"), Some(status("a", State::Serving))));
        assert!(!all.set(&key("a"), Some(status("a", State::Serving))));
        assert!(all.set(&key("b"), Some(status("b", State::Closed))));
        let mut before = Snapshot::default();
        all.fill(&mut before);
        assert!(all.set(&key("a"), None));
        assert!(!all.set(&key("a"), None));
        assert!(all.set(&key("c"), Some(status("c", State::Closed))));
        let mut after = Snapshot::default();
        all.fill(&mut after);
        let names = |snapshot: &Snapshot| -> Vec<String> {
            snapshot
                .services()
                .map(|s| s.key.name.to_string())
                .collect()
        };
        assert_eq!(names(&before), ["a", "b"], "a snapshot does not change");
        assert_eq!(names(&after), ["c", "b"], "a place is given again");
        assert_eq!(after.counts[&State::Closed], 2);
        assert_eq!(after.counts[&State::Serving], 0);
    }
}
