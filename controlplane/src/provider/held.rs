//! What the writer keeps of one Service: the last word of it, what was written, and whether that was undone. PURE.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Intent;
use super::contest::{Contest, News};
use super::plan::{self, Step};
use crate::object::Service;

/// What we wrote is held for newer than what is heard for so long. After that an API server whose versions went
/// back is believed.
const BELIEF: Duration = Duration::from_secs(30);

/// One Service.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) intent: Intent,
    wrote: Option<Wrote>,
    pub(super) contest: Contest,
}

/// The last write.
#[derive(Clone, Copy, Debug)]
struct Wrote {
    /// Of what was written.
    mark: u64,
    /// The version that it made.
    version: u64,
    at: Instant,
}

impl Held {
    pub(super) fn new(intent: Intent) -> Held {
        Held {
            intent,
            wrote: None,
            contest: Contest::default(),
        }
    }

    /// What is to be written, whether it may be written now or not.
    pub(super) fn next(&self) -> Option<Step> {
        plan::next(&self.intent, self.contest.is_on())
    }

    /// When that may be written, and whether it is more than news of its health. Whoever leaves waits for nobody.
    pub(super) fn due(&self, now: Instant) -> Option<(Instant, bool)> {
        let urgent = match self.next()? {
            Step::Publish(status) => status.ingress.is_some(),
            Step::Claim(_) | Step::Release(_) => true,
        };
        let not_before = self.contest.not_before(now);
        let at = not_before.filter(|_| self.intent.ours).unwrap_or(now);
        Some((at, urgent))
    }

    /// There is news. A Service as it was before our last write is not.
    pub(super) fn hear(&mut self, intent: Intent, now: Instant) {
        let service = match self.is_older(&intent.service, now) {
            true => Arc::clone(&self.intent.service),
            false => Arc::clone(&intent.service),
        };
        self.intent = Intent { service, ..intent };
    }

    /// `step` was written, which made `service` of it, if that can be read.
    pub(super) fn wrote(&mut self, step: &Step, service: Option<&Arc<Service>>, now: Instant) {
        match step {
            Step::Release(_) => self.contest = Contest::default(),
            Step::Claim(_) | Step::Publish(_) => self.contest.wrote(now),
        }
        self.wrote = service.map(|service| Wrote {
            mark: mark(step),
            version: service.stored.version.0,
            at: now,
        });
        if let Some(service) = service
            && self.intent.service.stored.version.0 <= service.stored.version.0
        {
            self.intent.service = Arc::clone(service);
        }
    }

    /// Was the last write undone: is the same to be written again, and the Service newer than that write? Each write
    /// is undone once.
    pub(super) fn judge(&mut self, now: Instant) -> Option<Undone> {
        let wrote = self.wrote?;
        let version = self.intent.service.stored.version.0;
        let is_news = version > wrote.version || version == 0;
        if !is_news || self.next().is_none_or(|step| mark(&step) != wrote.mark) {
            return None;
        }
        self.wrote = None;
        Some(Undone {
            news: self.contest.undone(now),
        })
    }

    fn is_older(&self, service: &Service, now: Instant) -> bool {
        let (held, heard) = (&self.intent.service.stored, &service.stored);
        self.wrote.is_some_and(|wrote| now < wrote.at + BELIEF) && heard.version.0 < held.version.0
    }
}

/// A write was undone, and perhaps that is a contest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undone {
    pub(super) news: Option<News>,
}

/// Two steps that write the same have the same.
fn mark(step: &Step) -> u64 {
    // Compared with another of this process alone.
    let mut hasher = DefaultHasher::new();
    step.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::FINALIZER;
    use crate::provider::tests::{intent, read, status};
    use crate::status::State;

    const SECOND: Duration = Duration::from_secs(1);

    /// The Service at a version, with an address in its status.
    fn service(version: u64, ip: &str) -> Arc<Service> {
        read(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "uid": "u-1", "finalizers": [FINALIZER],
                "resourceVersion": version.to_string()},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": "weir.dev/l4"},
            "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "Proxy"}]}},
        }))
    }

    fn heard(version: u64, ip: &str) -> Intent {
        intent(
            &service(version, ip),
            true,
            &status(State::Serving, &["192.0.2.1"]),
        )
    }

    /// One that wrote its address, and made version 2 of it.
    fn written(now: Instant) -> (Held, Step) {
        let mut held = Held::new(heard(1, "198.51.100.9"));
        let step = held.next().expect("another's address stands there");
        held.wrote(&step, Some(&service(2, "192.0.2.1")), now);
        (held, step)
    }

    #[test]
    fn what_was_before_our_write_undoes_nothing_and_what_came_after_does_once() {
        let now = Instant::now();
        let (mut held, step) = written(now);
        // The watch is late.
        held.hear(heard(1, "198.51.100.9"), now);
        assert_eq!(held.judge(now), None);
        assert_ne!(held.next(), Some(step), "nor is it written again");
        held.hear(heard(3, "192.0.2.1"), now);
        assert_eq!(held.judge(now), None, "what we wrote stands");
        held.hear(heard(4, "198.51.100.9"), now);
        assert_eq!(held.judge(now), Some(Undone { news: None }));
        assert_eq!(held.judge(now), None);
    }

    #[test]
    fn the_same_step_again_is_a_write_that_was_undone() {
        let now = Instant::now();
        let mut held = Held::new(heard(1, "198.51.100.9"));
        let mut news = Vec::new();
        for round in 0..4 {
            let version = 2 + 2 * round;
            let at = now + SECOND * u32::try_from(round).expect("small");
            let step = held.next().expect("to be written");
            // Whoever writes over it keeps the conditions that we do not have here either.
            held.wrote(&step, Some(&service(version, "192.0.2.1")), at);
            held.hear(heard(version + 1, "198.51.100.9"), at);
            news.push(held.judge(at).map(|undone| undone.news));
            assert_eq!(held.judge(at), None, "once");
            if round == 2 {
                break;
            }
        }
        let pause = Duration::from_secs(30);
        assert_eq!(
            news,
            [Some(None), Some(None), Some(Some(News::Begins(pause)))]
        );
        let later = now + SECOND * 2;
        let (at, _) = held.due(later).expect("it is to be written");
        assert_eq!(at, later + pause, "and not before");
        // Whoever leaves waits for nobody, and takes nothing of another's away.
        held.hear(
            intent(
                &service(9, "198.51.100.9"),
                false,
                &status(State::Refused, &[]),
            ),
            later,
        );
        assert_eq!(held.due(later), Some((later, true)));
        assert!(matches!(held.next(), Some(Step::Release(_))));
    }

    #[test]
    fn a_server_whose_versions_went_back_is_believed_after_a_while() {
        let now = Instant::now();
        let (mut held, _) = written(now);
        let version = |held: &Held| held.intent.service.stored.version.0;
        held.hear(heard(1, "198.51.100.9"), now + BELIEF - SECOND);
        assert_eq!(version(&held), 2);
        held.hear(heard(1, "198.51.100.9"), now + BELIEF);
        assert_eq!(version(&held), 1);
        let mut late = Held::new(heard(7, "198.51.100.9"));
        let step = late.next().expect("to be written");
        late.wrote(&step, Some(&service(6, "192.0.2.1")), now);
        assert_eq!(version(&late), 7, "the watch was faster than the answer");
    }
}
