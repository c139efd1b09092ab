//! The health check that a Service's annotations ask for, and which of its endpoints pass.
//!
//! An endpoint is used if the EndpointSlices say so and its check has not failed. Before its first
//! verdict nothing has: a start or a scale-up waits for no check. Where no endpoint of a port passes,
//! all are used: more likely it is the check that fails, and nothing is lost by trying.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use lb_core::table::Protocol;

use super::endpoints::{Candidate, State};
use super::gate::says_no;
use super::options::{best_named, duration};
use super::ports::Served;
use super::text::shown;
use super::{LISTED, View};
use crate::annotations::{self, Meaning};
use crate::object::Service;
use crate::probe::{
    Answer, Ask, HealthCheck, INTERVAL, MAX_OF_SERVICE, MAX_PATH, THRESHOLD, TIMEOUT, Target,
    Tenant, Verdicts,
};
use crate::reason::Reason;

/// What asks for a check; each of them alone is enough.
const ASKING: [Meaning; 7] = [
    Meaning::HealthProtocol,
    Meaning::HealthPort,
    Meaning::HealthPath,
    Meaning::HealthInterval,
    Meaning::HealthTimeout,
    Meaning::Healthy,
    Meaning::Unhealthy,
];
/// The status that are good, as AWS writes them.
const GOOD_CODES: &str = "200-399";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Off,
    Tcp,
    Http,
    Https,
}

/// What is asked, and where: at the port that takes the work if none is named.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    check: Arc<HealthCheck>,
    port: Option<NonZeroU16>,
    /// An annotation that asks for it.
    name: Arc<str>,
}

/// The check of one Service, and what it has found so far.
pub(super) struct Health<'a> {
    asked: Option<Asked>,
    verdicts: &'a Verdicts,
    /// What has to be asked.
    pub(super) checks: BTreeSet<Target>,
    /// What is not, for there are too many.
    omitted: BTreeSet<SocketAddr>,
    /// Those that are not used.
    out: BTreeMap<SocketAddr, Answer>,
    /// The addresses of all that fail.
    pub(super) failing: BTreeSet<IpAddr>,
    unchecked_udp: bool,
}

impl<'a> Health<'a> {
    /// The check that `service` asks for, whose pods are dialled, or none at all.
    pub(super) fn of(service: &Service, view: View<'a>, reasons: &mut Vec<Reason>) -> Health<'a> {
        Health::new(asked(service, reasons), view.health)
    }

    /// Of one whose nodes are dialled: theirs is another health.
    pub(super) fn of_nodes(
        service: &Service,
        view: View<'a>,
        reasons: &mut Vec<Reason>,
    ) -> Health<'a> {
        let names = names(service).into_iter();
        reasons.extend(names.map(|name| Reason::AnnotationIgnored {
            annotation: shown(name),
            problem: "nodes are dialled, and their own health decides".into(),
        }));
        Health::new(None, view.health)
    }

    fn new(asked: Option<Asked>, verdicts: &'a Verdicts) -> Health<'a> {
        Health {
            asked,
            verdicts,
            checks: BTreeSet::new(),
            omitted: BTreeSet::new(),
            out: BTreeMap::new(),
            failing: BTreeSet::new(),
            unchecked_udp: false,
        }
    }

    /// Takes those of a port's endpoints out whose check fails, unless that is every one that could
    /// be used.
    pub(super) fn sort_out(
        &mut self,
        served: &Served<'_>,
        families: &mut [Vec<Candidate<'_>>; 2],
        reasons: &mut Vec<Reason>,
    ) {
        if self.asked.is_none() {
            return;
        }
        let mut failing = BTreeMap::new();
        for candidate in families.iter().flatten().filter(|c| is_usable(c)) {
            if let Some((at, answer)) = self.failure(served, candidate) {
                self.failing.insert(at.ip());
                failing.insert(candidate.address, (at, answer));
            }
        }
        if failing.is_empty() {
            return;
        }
        let passes = |c: &Candidate<'_>| is_usable(c) && !failing.contains_key(&c.address);
        if families.iter().flatten().any(passes) {
            for family in families {
                family.retain(|candidate| !failing.contains_key(&candidate.address));
            }
            self.out.extend(failing.into_values());
        } else {
            reasons.push(Reason::NoHealthyEndpoint {
                port: served.port.port.get(),
                shown: listed(&failing.into_values().collect()),
            });
        }
    }

    /// Where and how the check of `candidate` fails, which is asked from now on.
    fn failure(
        &mut self,
        served: &Served<'_>,
        candidate: &Candidate<'_>,
    ) -> Option<(SocketAddr, Answer)> {
        let asked = self.asked.as_ref()?;
        let mut at = candidate.address;
        match (asked.port, served.protocol) {
            (Some(port), _) => at.set_port(port.get()),
            (None, Protocol::Tcp) => {}
            (None, Protocol::Udp) => {
                self.unchecked_udp = true;
                return None;
            }
        }
        let target = Target::Endpoint(at, Arc::clone(&asked.check));
        if !self.checks.contains(&target) && self.checks.len() >= MAX_OF_SERVICE {
            self.omitted.insert(at);
            return None;
        }
        let verdict = self.verdicts.get(&target).copied();
        self.checks.insert(target);
        let failure = verdict.filter(|verdict| !verdict.is_good());
        failure.map(|answer| (at, answer))
    }

    /// What the owner should know of it.
    pub(super) fn explain(&self, reasons: &mut Vec<Reason>) {
        if !self.out.is_empty() {
            reasons.push(Reason::UnhealthyEndpoints {
                count: self.out.len().try_into().unwrap_or(u32::MAX),
                shown: listed(&self.out),
            });
        }
        if !self.omitted.is_empty() {
            reasons.push(Reason::EndpointsNotChecked {
                count: self.omitted.len(),
                most: MAX_OF_SERVICE,
                of: "a Service",
            });
        }
        if let Some(asked) = self.asked.as_ref().filter(|_| self.unchecked_udp) {
            reasons.push(Reason::AnnotationIgnored {
                annotation: Arc::clone(&asked.name),
                problem: "of its UDP ports: name a TCP port that tells of them with weir.dev/health-check-port".into(),
            });
        }
    }
}

/// Does it get work, or may it?
fn is_usable(candidate: &Candidate<'_>) -> bool {
    matches!(candidate.state, State::Ready | State::Serving)
}

/// The first few, and how many more.
fn listed(failing: &BTreeMap<SocketAddr, Answer>) -> Arc<str> {
    let mut text = String::new();
    for (at, answer) in failing.iter().take(LISTED) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, "{comma}{at} ");
        let _ = match answer {
            Answer::Status(status) => write!(text, "answers HTTP {status}"),
            Answer::Refused => write!(text, "refuses"),
            Answer::Silent => write!(text, "does not answer"),
            // No other is a failure of an endpoint.
            Answer::Odd | Answer::Good(_) | Answer::Draining => write!(text, "answers no HTTP"),
        };
    }
    let more = failing.len().saturating_sub(LISTED);
    if more > 0 {
        let _ = write!(text, ", and {more} more");
    }
    text.into()
}

/// The annotations of a check that are set.
fn names(service: &Service) -> Vec<&str> {
    let all = ASKING.into_iter();
    let all = all.flat_map(|meaning| annotations::of(&service.meta.annotations, meaning));
    let set = all.filter(|(_, value)| !value.trim().is_empty());
    set.map(|(name, _)| &**name).collect()
}

fn asked(service: &Service, reasons: &mut Vec<Reason>) -> Option<Asked> {
    if service.meta.annotations.is_empty() {
        return None;
    }
    codes(service, reasons);
    let name = shown(names(service).first()?);
    let ask = ask(service, reasons)?;
    let port = best_named(service, Meaning::HealthPort, reasons, |value| match value {
        "traffic-port" => Some(None),
        value => number(value).and_then(NonZeroU16::new).map(Some),
    });
    let default = HealthCheck::new(Tenant::of(&service.meta.key));
    let mut threshold = |meaning, default| {
        let parse = |value: &str| number(value).map(u32::from);
        let within = |value: &str| parse(value).filter(|count| THRESHOLD.contains(count));
        best_named(service, meaning, reasons, within).map_or(default, |(_, count)| count)
    };
    let healthy = threshold(Meaning::Healthy, default.healthy);
    let unhealthy = threshold(Meaning::Unhealthy, default.unhealthy);
    let check = HealthCheck {
        ask,
        healthy,
        unhealthy,
        ..timed(service, default, reasons)
    };
    Some(Asked {
        check: Arc::new(check),
        port: port.and_then(|(_, port)| port),
        name,
    })
}

/// The question, or none if there is to be none.
fn ask(service: &Service, reasons: &mut Vec<Reason>) -> Option<Ask> {
    let word = best_named(service, Meaning::HealthProtocol, reasons, |value| {
        Some(match &*value.to_ascii_lowercase() {
            "tcp" => Word::Tcp,
            "http" => Word::Http,
            "https" => Word::Https,
            value if says_no(value) => Word::Off,
            _ => return None,
        })
    });
    if matches!(word, Some((_, Word::Off))) {
        return None;
    }
    let path = best_named(service, Meaning::HealthPath, reasons, |value| {
        let plain = value.bytes().all(|byte| byte.is_ascii_graphic());
        let is_path = plain && value.starts_with('/') && value.len() <= MAX_PATH;
        is_path.then(|| Arc::<str>::from(value))
    });
    let wanted = match (&word, &path) {
        (Some((_, word)), _) => *word,
        // AWS's path has a meaning beside its protocol alone.
        (None, Some((name, _))) if name.starts_with(annotations::NATIVE_PREFIX) => Word::Http,
        (None, _) => Word::Tcp,
    };
    match (wanted, word, path) {
        (Word::Http, _, path) => return Some(Ask::Http(path.map_or("/".into(), |(_, path)| path))),
        (Word::Https, Some((name, _)), _) => reasons.push(Reason::BadAnnotation {
            annotation: shown(name),
            problem: "checks by TLS are not built: a connection is made and no more is asked (tcp)"
                .into(),
        }),
        (_, _, Some((name, _))) => reasons.push(Reason::AnnotationIgnored {
            annotation: shown(name),
            problem:
                "a check by tcp asks for no path; say http with weir.dev/health-check-protocol"
                    .into(),
        }),
        _ => {}
    }
    Some(Ask::Tcp)
}

/// The check with its times: the timeout is never longer than the interval.
fn timed(service: &Service, check: HealthCheck, reasons: &mut Vec<Reason>) -> HealthCheck {
    let time = |meaning, bounds: std::ops::RangeInclusive<_>, reasons: &mut _| {
        best_named(service, meaning, reasons, |value| {
            duration(value).filter(|time| bounds.contains(time))
        })
    };
    let interval = time(Meaning::HealthInterval, INTERVAL, reasons);
    let interval = interval.map_or(check.interval, |(_, interval)| interval);
    let timeout = time(Meaning::HealthTimeout, TIMEOUT, reasons);
    if let Some((name, timeout)) = timeout
        && timeout > interval
    {
        reasons.push(Reason::BadAnnotation {
            annotation: shown(name),
            problem: format!(
                "{timeout:?} is longer than the interval, {interval:?}, which is used"
            )
            .into(),
        });
    }
    let timeout = timeout.map_or(check.timeout, |(_, timeout)| timeout);
    HealthCheck {
        interval,
        timeout: timeout.min(interval),
        ..check
    }
}

/// Which status is good cannot be chosen.
fn codes(service: &Service, reasons: &mut Vec<Reason>) {
    let all = annotations::of(&service.meta.annotations, Meaning::HealthCodes);
    let others = all.filter(|(_, value)| ![GOOD_CODES, ""].contains(&value.trim()));
    reasons.extend(others.map(|(name, _)| Reason::AnnotationIgnored {
        annotation: shown(name),
        problem: "a status from 200 to 399 is good, and no other".into(),
    }));
}

/// A number in plain digits.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}
