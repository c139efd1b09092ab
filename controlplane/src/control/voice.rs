//! What the log says of Services: one line when a state, its reasons or its addresses change, and
//! one sum after the first list. Decides only what to say; `task` says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::files::word;
use crate::object::Key;
use crate::reason::{Reason, Severity};
use crate::status::{ServiceStatus, State};

/// So many reasons are spelled out in a line.
const REASONS: usize = 3;
/// And so many characters of them at most; the admin listener has all.
const LONGEST: usize = 300;

/// How loud a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loudness {
    /// Not ours: ordinary Services of a dump must not bury the rest.
    Debug,
    /// As it should be.
    Info,
    /// Somebody has something to do.
    Warn,
}

/// What is to be said of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    loudness: Loudness,
    /// "gone", or the state.
    state: &'static str,
    /// Comma-joined.
    addresses: String,
    /// Codes, comma-joined.
    reasons: String,
    /// The messages behind the codes, as far as they fit; "" where nobody has to act.
    why: String,
}

/// What was said of each Service last.
#[derive(Debug, Default)]
pub(super) struct Voice {
    said: BTreeMap<Key, Said>,
    summed: bool,
    /// Listeners close on purpose: nothing is said of single Services any more.
    pub draining: bool,
}

impl Voice {
    /// Logs what is new of `key`, if anything is.
    pub(super) fn tell(&mut self, key: &Key, status: Option<&ServiceStatus>) {
        if let Some(said) = self.news(key, status) {
            said.log(key);
        }
    }

    fn news(&mut self, key: &Key, status: Option<&ServiceStatus>) -> Option<Said> {
        if self.draining {
            return None;
        }
        let Some(status) = status else {
            let before = self.said.remove(key)?;
            return Some(Said::gone(&before));
        };
        let on_its_way = status.state == State::Pending && status.reasons.is_empty();
        if status.settling || on_its_way {
            return None;
        }
        let now = Said::of(status);
        if self.said.get(key) == Some(&now) {
            return None;
        }
        let before = self.said.insert(key.clone(), now.clone());
        // Numbers in messages move with every pod; who wants them asks the admin listener.
        let same = |before: Said| {
            (before.state, before.addresses, before.reasons)
                == (now.state, now.addresses.clone(), now.reasons.clone())
        };
        match before.is_some_and(same) {
            true => None,
            false => Some(now),
        }
    }

    /// The sum of all Services, once: when the first list is decided on and nothing is on its way.
    pub(super) fn sum<'a>(
        &mut self,
        services: impl Iterator<Item = &'a Arc<ServiceStatus>>,
    ) -> Option<String> {
        if std::mem::replace(&mut self.summed, true) {
            return None;
        }
        let (mut all, mut not_ours) = (0_usize, 0_usize);
        let mut states: BTreeMap<State, usize> = BTreeMap::new();
        for status in services {
            all += 1;
            match is_foreign(status) {
                true => not_ours += 1,
                false => *states.entry(status.state).or_default() += 1,
            }
        }
        let parts = states.iter().map(|(state, count)| (*count, word(*state)));
        let foreign = (not_ours > 0).then_some((not_ours, "not ours"));
        let parts = parts.chain(foreign);
        let parts: Vec<_> = parts
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        Some(match parts.is_empty() {
            true => "no Services".to_owned(),
            false => format!("{all} Services: {}", parts.join(", ")),
        })
    }

    /// The sum was said, or is not due any more.
    pub(super) fn has_summed(&self) -> bool {
        self.summed
    }
}

impl Said {
    fn of(status: &ServiceStatus) -> Said {
        let ServiceStatus { reasons, .. } = status;
        let addresses: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
        // That was said once for all.
        let reasons = reasons.iter();
        let own = reasons.filter(|reason| !matches!(reason, Reason::VerbMissing { .. }));
        let reasons: Vec<&Reason> = own.collect();
        let mut codes: Vec<_> = reasons.iter().map(|reason| reason.code()).collect();
        codes.dedup();
        let troubles: Vec<&Reason> = reasons
            .into_iter()
            .filter(|reason| reason.severity() != Severity::Note)
            .collect();
        let loudness = match (is_foreign(status), troubles.is_empty()) {
            (true, _) => Loudness::Debug,
            (false, true) => Loudness::Info,
            (false, false) => Loudness::Warn,
        };
        Said {
            loudness,
            state: word(status.state),
            addresses: addresses.join(","),
            reasons: codes.join(","),
            why: shown(&troubles),
        }
    }

    fn gone(before: &Said) -> Said {
        Said {
            loudness: match before.loudness {
                Loudness::Debug => Loudness::Debug,
                Loudness::Info | Loudness::Warn => Loudness::Info,
            },
            state: "gone",
            addresses: String::new(),
            reasons: String::new(),
            why: String::new(),
        }
    }

    fn log(&self, key: &Key) {
        let (namespace, service) = (&*key.namespace, &*key.name);
        let Said {
            loudness,
            state,
            addresses,
            reasons,
            why,
        } = self;
        let (addresses, reasons) = (&**addresses, &**reasons);
        match loudness {
            Loudness::Debug => {
                tracing::debug!(
                    namespace,
                    service,
                    state,
                    addresses,
                    reasons,
                    "{key} is {state}: {why}"
                );
            }
            Loudness::Info => {
                tracing::info!(
                    namespace,
                    service,
                    state,
                    addresses,
                    reasons,
                    "{key} is {state}"
                );
            }
            Loudness::Warn => {
                tracing::warn!(
                    namespace,
                    service,
                    state,
                    addresses,
                    reasons,
                    "{key} is {state}: {why}"
                );
            }
        }
    }
}

/// It is refused because it is no affair of this appliance, and not by mistake.
fn is_foreign(status: &ServiceStatus) -> bool {
    status.state == State::Refused
        && status.reasons.iter().any(|reason| {
            matches!(
                reason,
                Reason::NotALoadBalancer { .. }
                    | Reason::ForeignClass { .. }
                    | Reason::RivalProvider { .. }
                    | Reason::Ignored { .. }
            )
        })
}

/// The first of them, cut.
fn shown(reasons: &[&Reason]) -> String {
    let first = reasons.iter().take(REASONS);
    let texts: Vec<_> = first.map(ToString::to_string).collect();
    let mut text = texts.join("; ");
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    if reasons.len() > REASONS {
        text.push_str(&format!("; and {} more", reasons.len() - REASONS));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load_balancer::EndpointCounts;

    fn key() -> Key {
        crate::testing::service("n", "web")
    }

    fn status(state: State, reasons: Vec<Reason>) -> ServiceStatus {
        ServiceStatus {
            key: key(),
            state,
            addresses: vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
            ports: Vec::new(),
            endpoints: EndpointCounts::default(),
            reasons,
            settling: false,
        }
    }

    fn not_added(problem: &str) -> Reason {
        Reason::AddressNotAdded {
            address: [192, 0, 2, 1].into(),
            problem: problem.into(),
        }
    }

    fn not_ours() -> Reason {
        Reason::NotALoadBalancer {
            kind: "ClusterIP",
            hint: "",
        }
    }

    #[test]
    fn what_is_on_its_way_is_said_when_it_arrives_and_reasons_without_a_change_of_state_too() {
        let mut voice = Voice::default();
        let mut said = |status: &ServiceStatus| voice.news(&key(), Some(status));
        let mut way = status(State::Pending, vec![not_added("x")]);
        way.settling = true;
        assert_eq!(said(&way), None, "settling");
        assert_eq!(said(&status(State::Pending, vec![])), None);
        let pending = status(State::Pending, vec![not_added("no right")]);
        let line = said(&pending).expect("a reason came");
        assert_eq!(line.loudness, Loudness::Warn);
        assert!(line.why.contains("no right"), "{}", line.why);
        assert_eq!(line.addresses, "192.0.2.1,192.0.2.2");
        assert_eq!(said(&pending), None, "once");
        let other = status(State::Pending, vec![not_added("another"), Reason::NoPorts]);
        assert_eq!(said(&other).expect("another code").state, "pending");
        let line = said(&status(State::Serving, vec![])).expect("serves");
        assert_eq!((line.loudness, &*line.why), (Loudness::Info, ""));
        let line = voice.news(&key(), None).expect("gone");
        assert_eq!(line.state, "gone");
        assert_eq!(voice.news(&key(), None), None);
    }

    #[test]
    fn what_is_not_ours_is_quiet_and_mistakes_are_not() {
        let said = |reason| Said::of(&status(State::Refused, vec![reason])).loudness;
        assert_eq!(said(not_ours()), Loudness::Debug);
        let malformed = Reason::Malformed {
            problem: "f:2:1".into(),
        };
        assert_eq!(said(malformed), Loudness::Warn);
        let note = status(State::Serving, vec![Reason::ClientAddressNotKept]);
        assert_eq!(Said::of(&note).loudness, Loudness::Info, "a note");
    }

    #[test]
    fn a_drain_is_quiet_and_lines_are_bounded() {
        let mut voice = Voice {
            draining: true,
            ..Voice::default()
        };
        let long = status(State::Pending, vec![not_added(&"é".repeat(9_999)); 5]);
        assert_eq!(voice.news(&key(), Some(&long)), None);
        let why = Said::of(&long).why;
        assert!(why.chars().count() < LONGEST + 30, "{}", why.len());
        assert!(why.ends_with("; and 2 more"), "{why}");
    }

    #[test]
    fn the_first_list_is_summed_once() {
        let mut voice = Voice::default();
        let all = [
            status(State::Serving, vec![]),
            status(State::Refused, vec![not_ours()]),
            status(State::Refused, vec![Reason::NoPorts]),
        ]
        .map(Arc::new);
        assert_eq!(
            voice.sum(all.iter()).as_deref(),
            Some("3 Services: 1 serving, 1 refused, 1 not ours")
        );
        assert_eq!(voice.sum(all.iter()), None);
    }
}
