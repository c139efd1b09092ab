//! When to ask what, and what the answers make of a target. PURE: time is an argument, jitter a seed's.
//!
//! ```text
//!              first answer              same answer: asked again in an interval
//!   unasked ------------------> verdict <---.
//!      '- silence: fall times ---^  |       | verdict of the new answer
//!                                   '-> another answer, asked again soon: as often as it takes
//! ```
//!
//! What takes work away is believed after [`Pace::fall`] answers in a row, what gives it work after
//! [`Pace::rise`]. That a node drains (503) is its own word, and believed at once. Of endpoints all that
//! is not good is one answer, also the first; they are never asked sooner than in an interval.
//!
//! A target whose tenant has as many questions open as it may is parked until one of them ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Answer, Limits, Target, Tenant, Verdicts, Wanted};

/// How a kind of target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// From one question to the next, while nothing changes.
    pub interval: Duration,
    /// From an answer that is another than before to the next question; `None`: the interval.
    pub again: Option<Duration>,
    /// An answer comes within this.
    pub timeout: Duration,
    /// So many answers in a row take work away.
    pub fall: u32,
    /// So many give it.
    pub rise: u32,
    /// Answers that are not good are told apart.
    pub apart: bool,
}

/// Nodes: see the module `probe` for what this adds up to.
const NODES: Pace = Pace {
    interval: Duration::from_millis(250),
    again: Some(Duration::from_millis(25)),
    timeout: Duration::from_millis(200),
    fall: 3,
    rise: 2,
    apart: true,
};

/// Pods: whether there is a way to them changes seldom, and a Service that goes to and fro is worse
/// than one that comes back late.
const PODS: Pace = Pace {
    interval: Duration::from_millis(1_000),
    again: Some(Duration::from_millis(500)),
    timeout: Duration::from_millis(500),
    fall: 3,
    rise: 10,
    apart: true,
};

/// How `target` is asked.
pub(super) fn pace(target: &Target) -> Pace {
    match target {
        Target::Proxy(_) | Target::Port(_) => NODES,
        Target::Pods(..) => PODS,
        Target::Endpoint(_, check) => Pace {
            interval: check.interval,
            again: None,
            timeout: check.timeout,
            fall: check.unhealthy,
            rise: check.healthy,
            apart: false,
        },
    }
}

/// When a target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Due(Instant),
    /// It was due then, and waits for another of its tenant to end.
    Parked(Instant),
    /// The question is open.
    Open,
    /// There is nowhere to ask it.
    Never,
}

/// One target.
#[derive(Debug)]
struct Check {
    places: Vec<SocketAddr>,
    verdict: Option<Answer>,
    /// The last answer, if it is another than the verdict, and how often it came in a row.
    turning: Option<(Answer, u32)>,
    /// Answers that were not good, in a row: the next place is asked.
    misses: usize,
    when: When,
}

/// What one tenant has.
#[derive(Debug, Default)]
struct Lane {
    open: usize,
    parked: BTreeSet<(Instant, Target)>,
}

/// A question to be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub target: Target,
    pub at: SocketAddr,
    pub timeout: Duration,
}

/// All targets.
#[derive(Debug)]
pub(super) struct Checks {
    limits: Limits,
    all: BTreeMap<Target, Check>,
    due: BTreeSet<(Instant, Target)>,
    open: usize,
    lanes: BTreeMap<Tenant, Lane>,
    seed: u64,
}

impl Checks {
    pub(super) fn new(limits: Limits, seed: u64) -> Checks {
        Checks {
            limits,
            all: BTreeMap::new(),
            due: BTreeSet::new(),
            open: 0,
            lanes: BTreeMap::new(),
            seed,
        }
    }

    /// Asks these from now on, and nothing else. Whether a verdict went.
    pub(super) fn want(&mut self, wanted: &Wanted, now: Instant) -> bool {
        let gone = self
            .all
            .extract_if(.., |target, _| !wanted.contains_key(target));
        let gone: Vec<_> = gone.collect();
        for (target, check) in &gone {
            match check.when {
                When::Due(at) => drop(self.due.remove(&(at, target.clone()))),
                When::Parked(at) => {
                    let lane = target
                        .tenant()
                        .and_then(|tenant| self.lanes.get_mut(tenant));
                    lane.map(|lane| lane.parked.remove(&(at, target.clone())));
                }
                When::Open | When::Never => {}
            }
        }
        if !gone.is_empty() {
            // One of them may have been next in its lane.
            let tenants: Vec<Tenant> = self.lanes.keys().cloned().collect();
            tenants.iter().for_each(|tenant| self.unpark(tenant, now));
        }
        let mut first = now;
        for (target, places) in wanted {
            let check = self.all.entry(target.clone()).or_insert_with(Check::new);
            check.places.clone_from(places);
            if check.when == When::Never && !check.places.is_empty() {
                self.set_due(target, first);
                first += self.limits.stagger;
            }
        }
        gone.iter().any(|(_, check)| check.verdict.is_some())
    }

    /// When to look again; `None`: when something else happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let (first, _) = self.due.first()?;
        (self.open < self.limits.open).then_some(*first)
    }

    /// What to ask now.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        while self.open < self.limits.open
            && self.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((due, target)) = self.due.pop_first()
        {
            questions.extend(self.open(due, target));
        }
        questions
    }

    /// Opens the question that was due then, if its tenant may have one more.
    fn open(&mut self, due: Instant, target: Target) -> Option<Question> {
        let check = self.all.get_mut(&target)?;
        let turn = check.misses % check.places.len().max(1);
        let Some(at) = check.places.get(turn).copied() else {
            check.when = When::Never;
            return None;
        };
        if let Some(tenant) = target.tenant() {
            let lane = self.lanes.entry(tenant.clone()).or_default();
            if lane.open >= self.limits.open_of_one {
                check.when = When::Parked(due);
                lane.parked.insert((due, target));
                return None;
            }
            lane.open += 1;
        }
        check.when = When::Open;
        self.open += 1;
        Some(Question {
            timeout: pace(&target).timeout,
            target,
            at,
        })
    }

    /// Takes in an answer; `None`: it could not be asked, for a reason that lies here. Whether the
    /// verdict is another.
    pub(super) fn answered(
        &mut self,
        target: &Target,
        answer: Option<Answer>,
        now: Instant,
    ) -> bool {
        self.open = self.open.saturating_sub(1);
        self.leave_lane(target, now);
        let open = |check: &&mut Check| check.when == When::Open;
        let Some(check) = self.all.get_mut(target).filter(open) else {
            // Nobody wants to know any more, or somebody does again and it is asked anew.
            return false;
        };
        let before = check.verdict;
        let pace = pace(target);
        let settled = answer.is_none_or(|answer| check.take(answer, pace));
        let after = check.verdict;
        let wait = match pace.again {
            Some(again) if !settled => again,
            _ => pace
                .interval
                .max(self.limits.spacing * self.all.len() as u32),
        };
        let due = now + self.jitter(wait);
        self.set_due(target, due);
        before != after
    }

    /// A question to `target` ended.
    fn leave_lane(&mut self, target: &Target, now: Instant) {
        let Some(tenant) = target.tenant() else {
            return;
        };
        if let Some(lane) = self.lanes.get_mut(tenant) {
            lane.open = lane.open.saturating_sub(1);
        }
        self.unpark(tenant, now);
    }

    /// As many of a tenant's targets need not wait any more as it may have questions open.
    fn unpark(&mut self, tenant: &Tenant, now: Instant) {
        let Some(lane) = self.lanes.get_mut(tenant) else {
            return;
        };
        let room = self.limits.open_of_one.saturating_sub(lane.open);
        let next = std::iter::from_fn(|| lane.parked.pop_first()).take(room);
        let next: Vec<_> = next.collect();
        if lane.open == 0 && lane.parked.is_empty() {
            self.lanes.remove(tenant);
        }
        for (_, target) in next {
            self.set_due(&target, now);
        }
    }

    fn set_due(&mut self, target: &Target, due: Instant) {
        if let Some(check) = self.all.get_mut(target) {
            check.when = When::Due(due);
            self.due.insert((due, target.clone()));
        }
    }

    /// What is known of those that are wanted.
    pub(super) fn verdicts(&self) -> Verdicts {
        let known = self.all.iter();
        known
            .filter_map(|(target, check)| Some((target.clone(), check.verdict?)))
            .collect()
    }

    /// A tenth more or less, so that targets that began together do not stay together.
    fn jitter(&mut self, wait: Duration) -> Duration {
        // SplitMix64 (Steele, Lea and Flood 2014).
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let permille = 900 + ((mixed ^ (mixed >> 31)) % 201) as u32;
        wait * permille / 1_000
    }
}

impl Pace {
    /// Do they mean the same, whatever the weight?
    fn same(self, one: Answer, other: Answer) -> bool {
        match self.apart {
            true => std::mem::discriminant(&one) == std::mem::discriminant(&other),
            false => one.is_good() == other.is_good(),
        }
    }

    /// So many times in a row `answer` is needed to be the verdict after `verdict`.
    fn needed(self, verdict: Option<Answer>, answer: Answer) -> u32 {
        match (verdict, answer) {
            (_, Answer::Draining) if self.apart => 1,
            (None, Answer::Good(_)) => 1,
            (None, Answer::Silent) => self.fall,
            (None, _) if self.apart => 1,
            (Some(_), Answer::Good(_)) => self.rise,
            (_, _) => self.fall,
        }
    }
}

impl Check {
    fn new() -> Check {
        Check {
            places: Vec::new(),
            verdict: None,
            turning: None,
            misses: 0,
            when: When::Never,
        }
    }

    /// Takes in an answer; whether it is what the verdict says.
    fn take(&mut self, answer: Answer, pace: Pace) -> bool {
        self.misses = if answer.is_good() { 0 } else { self.misses + 1 };
        if self
            .verdict
            .is_some_and(|verdict| pace.same(verdict, answer))
        {
            if answer.is_good() {
                // A weight is new at once; what else is wrong with it now is no news.
                self.verdict = Some(answer);
            }
            self.turning = None;
            return true;
        }
        let times = match self.turning {
            Some((last, times)) if pace.same(last, answer) => times + 1,
            _ => 1,
        };
        let turned = times >= pace.needed(self.verdict, answer);
        if turned {
            self.verdict = Some(answer);
        }
        self.turning = (!turned).then_some((answer, times));
        turned
    }
}

#[cfg(test)]
mod tests;
