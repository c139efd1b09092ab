//! How a Service wants its connections treated: algorithm, affinity, idle timeout. A value that
//! does not parse leaves the appliance's default, with a reason.

use std::sync::Arc;
use std::time::Duration;

use lb_core::balance::Algorithm;

use crate::annotations::{self, LABEL_SERVICE_PROXY_NAME, Meaning, NATIVE_PREFIX};
use crate::object::Service;
use crate::reason::Reason;

use super::addressing::outranked;
use super::gate::{attributes, says_no};
use super::text::shown;
use super::{Backends, Rules};

/// sessionAffinityConfig.clientIP.timeoutSeconds: 1 to 86400, default 10800 (core/v1).
const AFFINITY: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// Bounds of `weir.dev/idle-timeout`: a week is longer than any keep-alive waits, and a
/// connection must not hold memory for ever because a tenant wrote so.
const IDLE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

/// Names that Weir writes onto Services itself: not read, and no slip of the pen either.
const WRITTEN: &[&str] = &["weir.dev/allocated-from", "weir.dev/announced-by"];

/// spec.sessionAffinity, else AWS's `stickiness.enabled`. A timeout that the API would not let in
/// is taken to the nearest bound.
pub fn affinity(service: &Service) -> Option<Duration> {
    if let Some(timeout) = service.client_ip_affinity {
        return Some(timeout.clamp(*AFFINITY.start(), *AFFINITY.end()));
    }
    attributes(service)
        .any(|(_, key, value)| key == "stickiness.enabled" && !says_no(value))
        .then_some(AFFINITY_DEFAULT)
}

/// The most frontends of a Service with a maglev table each: 32 MiB, and a second to build them.
pub const MAX_MAGLEV_FRONTENDS: usize = 16;

/// The balancing algorithm of a Service with so many `frontends`, or the default.
pub fn algorithm(service: &Service, frontends: usize, reasons: &mut Vec<Reason>) -> Algorithm {
    let asked = best(service, Meaning::Algorithm, reasons, |value| {
        Some(match value {
            "consistent" => Algorithm::Consistent,
            "maglev" => Algorithm::Maglev,
            "round-robin" => Algorithm::RoundRobin,
            "random" => Algorithm::Random,
            "least-connections" => Algorithm::LeastConnections,
            _ => return None,
        })
    });
    match asked.unwrap_or_default() {
        Algorithm::Maglev if frontends > MAX_MAGLEV_FRONTENDS => {
            let (count, most) = (frontends, MAX_MAGLEV_FRONTENDS);
            reasons.push(Reason::MaglevTooManyPorts { count, most });
            Algorithm::Consistent
        }
        algorithm => algorithm,
    }
}

/// What is dialled. A Service that belongs to another service proxy has no node ports.
pub fn backends(service: &Service, rules: &Rules, reasons: &mut Vec<Reason>) -> Backends {
    let asked = best(service, Meaning::Backends, reasons, |value| {
        Some(match value {
            "pods" => Backends::Pods,
            "nodes" => Backends::Nodes,
            "auto" => Backends::Auto,
            _ => return None,
        })
    });
    match service.meta.labels.contains_key(LABEL_SERVICE_PROXY_NAME) {
        true => Backends::Pods,
        false => asked.unwrap_or(rules.backends),
    }
}

/// When idle TCP connections close, or `None` for the appliance's default.
pub fn idle_timeout(service: &Service, reasons: &mut Vec<Reason>) -> Option<Duration> {
    best(service, Meaning::IdleTimeout, reasons, |value| {
        duration(value).filter(|timeout| IDLE.contains(timeout))
    })
}

/// The best-ranked value of `meaning` that parses.
fn best<T: PartialEq>(
    service: &Service,
    meaning: Meaning,
    reasons: &mut Vec<Reason>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    best_named(service, meaning, reasons, parse).map(|(_, value)| value)
}

/// And the annotation that says it.
pub(super) fn best_named<'a, T: PartialEq>(
    service: &'a Service,
    meaning: Meaning,
    reasons: &mut Vec<Reason>,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<(&'a str, T)> {
    let mut chosen: Option<(&str, T)> = None;
    for (name, value) in annotations::of(&service.meta.annotations, meaning) {
        let value = value.trim();
        if value.is_empty() {
            continue;
        }
        match (parse(value), &chosen) {
            (None, _) => reasons.push(Reason::BadAnnotation {
                annotation: shown(name),
                problem: format!("\"{}\" is not {}", shown(value), expected(meaning)).into(),
            }),
            (Some(value), None) => chosen = Some((name, value)),
            (Some(value), Some((first, best))) if value != *best => {
                reasons.push(outranked(name, first));
            }
            (Some(_), Some(_)) => {}
        }
    }
    chosen
}

fn expected(meaning: Meaning) -> &'static str {
    match meaning {
        Meaning::Algorithm => {
            "one of consistent, maglev, round-robin, random, least-connections; consistent is used"
        }
        Meaning::Backends => "one of pods, nodes, auto; what --backends says is used",
        Meaning::HealthProtocol => {
            "tcp, http or none; http is used where a path is given, else tcp"
        }
        Meaning::HealthPort => "a port from 1 to 65535, or traffic-port, which is used",
        Meaning::HealthPath => {
            "a path that begins with / and has 1,024 characters of ASCII without blanks at most; / is used"
        }
        Meaning::HealthInterval => "a time from 1s to 300s; 5s is used",
        Meaning::HealthTimeout => {
            "a time from 1s to 60s; 2s is used, or the interval if it is shorter"
        }
        Meaning::Healthy => "a number from 1 to 10; 2 is used",
        Meaning::Unhealthy => "a number from 1 to 10; 3 is used",
        _ => "a time from 1s to 168h, as in 90s or 1h30m; the default is used",
    }
}

/// Seconds as a bare number, or numbers with the units h, m, s as Go writes them (`1h30m`).
pub(super) fn duration(text: &str) -> Option<Duration> {
    let number = |digits: &str| -> Option<u64> {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    if text.is_empty() {
        return None;
    }
    let mut seconds = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let at = rest.find(['h', 'm', 's'])?;
        let unit = match rest.as_bytes()[at] {
            b'h' => 3600,
            b'm' => 60,
            _ => 1,
        };
        seconds = seconds.checked_add(number(&rest[..at])?.checked_mul(unit)?)?;
        rest = &rest[at + 1..];
    }
    Some(Duration::from_secs(seconds))
}

/// Annotations that are read and change nothing, and slips of the pen in our own names.
pub fn ignored(service: &Service, reasons: &mut Vec<Reason>) {
    let mut note = |name: &str, problem: Arc<str>| {
        reasons.push(Reason::AnnotationIgnored {
            annotation: shown(name),
            problem,
        });
    };
    const DRAIN: &str = "connections of a removed endpoint are never cut";
    for (meaning, problem) in [
        (Meaning::DrainTimeout, DRAIN),
        (
            Meaning::Interface,
            "the appliance's settings choose the interface (--vip-interface)",
        ),
        (Meaning::Hostname, "no host name is published"),
    ] {
        for (name, _) in annotations::of(&service.meta.annotations, meaning) {
            note(name, problem.into());
        }
    }
    for (name, key, _) in attributes(service) {
        if key.starts_with("deregistration_delay.") {
            note(name, DRAIN.into());
        }
    }
    for name in service.meta.annotations.keys().map(|name| &**name) {
        let known = annotations::meaning_of(name).is_some() || WRITTEN.contains(&name);
        if name.starts_with(NATIVE_PREFIX) && !known {
            note(name, unknown(name));
        }
    }
}

fn unknown(name: &str) -> Arc<str> {
    let near = annotations::TABLE
        .iter()
        .filter(|known| known.is_native())
        .map(|known| (strsim::jaro_winkler(known.name, name), known.name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, near)) if likeness > 0.9 => {
            format!("no such annotation is known; is {near} meant?").into()
        }
        _ => "no such annotation is known".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_go_durations() {
        for (text, expected) in [
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("90s", Some(90)),
            ("1h30m", Some(5400)),
            ("1m1s", Some(61)),
            ("", None),
            ("s", None),
            ("1.5h", None),
            ("-1s", None),
            ("10x", None),
            ("1h30", None),
            ("5 m", None),
            ("99999999999999999999", None),
            ("18446744073709551615h", None),
            ("１s", None),
        ] {
            assert_eq!(
                duration(text),
                expected.map(Duration::from_secs),
                "{text:?}"
            );
        }
    }
}
