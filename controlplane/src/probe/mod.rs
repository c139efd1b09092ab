//! Do the nodes answer? Asked several times a second of every node that a Service dials at its node
//! ports, and, for Services that may choose, of the pods behind it. And do endpoints? Asked of those
//! whose Service says so by annotation, as often as it says.
//!
//! `translate` says what it has to know of each Service ([`Probe`], [`Target::Endpoint`]) and reads what
//! was found ([`Verdicts`]); the control task puts the questions of all Services together. Nodes and
//! endpoints are asked by two tasks of the same code, so that no tenant's endpoints keep a node waiting.
//!
//! - `health` (PURE): what a Service may say of its endpoints' check, and how much of it there may be;
//! - `checks` (PURE): when to ask what, and what the answers make of a target;
//! - `answer` (PURE): the head of an HTTP response;
//! - `run`: the thin I/O around them, on the control task's runtime.
//!
//! # How long it takes
//!
//! A node that dies is found within 0.93 s at most (K20): it is asked every 250 ms (a tenth more or
//! less), has 200 ms to answer, and is asked twice more, 25 ms apart. The data plane tries another
//! backend meanwhile. More than 250 targets are asked less often: 1,000 questions a second are the
//! most.

mod answer;
mod checks;
mod health;
mod run;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::object::SourceId;

pub use self::health::{
    Ask, HealthCheck, INTERVAL, MAX_OF_ALL, MAX_OF_SERVICE, MAX_OF_TENANT, MAX_PATH, THRESHOLD,
    TIMEOUT, Tenant,
};
pub(crate) use self::run::{Prober, start};

/// The port of kube-proxy's own health (`--healthz-bind-address`).
pub const KUBE_PROXY_PORT: u16 = 10_256;

/// Something that is asked again and again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A service proxy's health: HTTP GET /healthz here.
    Proxy(SocketAddr),
    /// A node port: a connection.
    Port(SocketAddr),
    /// Are pods of this node reachable? A connection to any of its endpoints; that they refuse is an
    /// answer too.
    Pods(SourceId, Arc<str>, Arc<str>),
    /// An endpoint, at the port that is asked.
    Endpoint(SocketAddr, Arc<HealthCheck>),
}

impl Target {
    /// Every word of [`Target::kind`] for nodes.
    pub const NODE_KINDS: [&str; 3] = ["proxy", "port", "pods"];
    /// And for endpoints.
    pub const ENDPOINT_KINDS: [&str; 1] = ["endpoint"];

    /// The word for it in metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Proxy(_) => "proxy",
            Target::Port(_) => "port",
            Target::Pods(..) => "pods",
            Target::Endpoint(..) => "endpoint",
        }
    }

    /// For whom alone it is asked.
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        match self {
            Target::Proxy(_) | Target::Port(_) | Target::Pods(..) => None,
            Target::Endpoint(_, check) => Some(&check.tenant),
        }
    }
}

/// How much one task asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Questions that are open at once.
    open: usize,
    /// And those of one tenant.
    open_of_one: usize,
    /// Each target more makes every interval at least so long.
    spacing: Duration,
    /// Targets that come together are first asked so far apart.
    stagger: Duration,
    /// News waits this long for more.
    settle: Duration,
}

/// Of nodes: 1,000 questions a second at the most. Their first answers come close together.
pub(crate) const NODES: Limits = Limits {
    open: 256,
    open_of_one: 256,
    spacing: Duration::from_millis(1),
    stagger: Duration::ZERO,
    settle: Duration::from_millis(10),
};

/// Of endpoints: as many again. Eight tenants whose endpoints are all silent do not yet keep a ninth
/// waiting. Verdicts that turn as fast as annotations allow cost ten decisions a second, not more.
pub(crate) const ENDPOINTS: Limits = Limits {
    open: 256,
    open_of_one: 32,
    spacing: Duration::from_millis(1),
    stagger: Duration::from_millis(1),
    settle: Duration::from_millis(100),
};

/// A question that a Service has: of what, and where to ask it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Of what.
    pub target: Target,
    /// Where. For [`Target::Pods`] one of several.
    pub at: SocketAddr,
}

/// What is to be asked, and where; see [`add`].
pub type Wanted = BTreeMap<Target, Vec<SocketAddr>>;

/// So many endpoints of a node are tried before its pods count as unreachable.
pub const ENDPOINTS_TRIED: usize = 4;

/// Puts one Service's question to the others'.
pub fn add(wanted: &mut Wanted, probe: &Probe) {
    let places = wanted.entry(probe.target.clone()).or_default();
    if let Err(at) = places.binary_search(&probe.at) {
        places.insert(at, probe.at);
        // The same ones whatever the order in which they come.
        places.truncate(ENDPOINTS_TRIED);
    }
}

/// What one answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// 200, or a connection; with the weight that the service proxy gives itself.
    Good(Option<u16>),
    /// 503: it wants no new work, and may do the old.
    Draining,
    /// Connection refused: somebody is there, and nobody listens.
    Refused,
    /// HTTP, and neither 200 nor 503; or none.
    Odd,
    /// Of an endpoint: HTTP, and not 200 to 399.
    Status(u16),
    /// No answer in time, or no way there.
    Silent,
}

impl Answer {
    /// Every word of [`Answer::word`].
    pub const WORDS: [&str; 5] = ["good", "draining", "refused", "odd", "silent"];
    /// The word for a question that could not be asked: this machine is short of something.
    pub const UNASKED: &str = "unasked";

    /// The word for it in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Answer::Good(_) => "good",
            Answer::Draining => "draining",
            Answer::Refused => "refused",
            Answer::Odd | Answer::Status(_) => "odd",
            Answer::Silent => "silent",
        }
    }

    /// Does it give work?
    pub fn is_good(self) -> bool {
        matches!(self, Answer::Good(_))
    }
}

/// What the answers of each target make of it. What is not here has not been asked often enough.
pub type Verdicts = BTreeMap<Target, Answer>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_endpoints_the_same_few_are_tried_in_whatever_order_they_come() {
        let target = Target::Pods(SourceId(0), "".into(), "n".into());
        let at = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
        let of = |order: &[u8]| {
            let mut wanted = Wanted::new();
            for n in order {
                let probe = Probe {
                    target: target.clone(),
                    at: at(*n),
                };
                add(&mut wanted, &probe);
            }
            wanted
        };
        let few = of(&[1, 2, 3, 4]);
        assert_eq!(of(&[9, 4, 2, 3, 1, 1, 7]), few);
        assert_eq!(of(&[1, 2, 3, 4, 5, 6]), few);
        assert_eq!(few[&target], [at(1), at(2), at(3), at(4)]);
    }
}
