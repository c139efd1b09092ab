//! When to ask what, and what the answers make of it. PURE: time is an argument, jitter a seed's.
//!
//! ```text
//!              first answer              same answer: asked again in an interval
//!   unasked ------------------> verdict <---.
//!      '- silence: fall times ---^  |       | verdict of the new answer
//!                                   '-> another answer, asked again soon: as often as it takes
//! ```
//!
//! What takes work away from a node is believed after [`Pace::fall`] answers in a row, what gives it
//! work after [`Pace::rise`]. That it drains (503) is its own word, and believed at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Answer, Target, Verdicts, Wanted};

/// Questions that are open at once.
const MOST_OPEN: usize = 256;
/// Each target more makes the interval at least so long: 1,000 questions a second.
const SPACING: Duration = Duration::from_millis(1);

/// How a kind of target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// From one question to the next, while nothing changes.
    pub interval: Duration,
    /// From an answer that is another than before to the next question.
    pub again: Duration,
    /// An answer comes within this.
    pub timeout: Duration,
    /// So many answers in a row take work away.
    pub fall: u32,
    /// So many give it.
    pub rise: u32,
}

/// Nodes: see the module `probe` for what this adds up to.
const NODES: Pace = Pace {
    interval: Duration::from_millis(250),
    again: Duration::from_millis(25),
    timeout: Duration::from_millis(200),
    fall: 3,
    rise: 2,
};

/// Pods: whether there is a way to them changes seldom, and a Service that goes to and fro is worse
/// than one that comes back late.
const PODS: Pace = Pace {
    interval: Duration::from_millis(1_000),
    again: Duration::from_millis(500),
    timeout: Duration::from_millis(500),
    fall: 3,
    rise: 10,
};

/// How `target` is asked.
pub(super) fn pace(target: &Target) -> Pace {
    match target {
        Target::Proxy(_) | Target::Port(_) => NODES,
        Target::Pods(..) => PODS,
    }
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
    /// When it is asked next; `None` while it is.
    due: Option<Instant>,
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
    all: BTreeMap<Target, Check>,
    due: BTreeSet<(Instant, Target)>,
    open: usize,
    seed: u64,
}

impl Checks {
    pub(super) fn new(seed: u64) -> Checks {
        Checks {
            all: BTreeMap::new(),
            due: BTreeSet::new(),
            open: 0,
            seed,
        }
    }

    /// Asks these from now on, and nothing else. Whether a verdict went.
    pub(super) fn want(&mut self, wanted: &Wanted, now: Instant) -> bool {
        let before = self.all.len();
        let mut lost = false;
        let due = &mut self.due;
        self.all.retain(|target, check| {
            let kept = wanted.contains_key(target);
            if !kept && let Some(at) = check.due {
                due.remove(&(at, target.clone()));
            }
            lost |= !kept && check.verdict.is_some();
            kept
        });
        debug_assert!(self.all.len() <= before);
        for (target, places) in wanted {
            match self.all.get_mut(target) {
                Some(check) => check.places.clone_from(places),
                None => {
                    let check = Check {
                        places: places.clone(),
                        verdict: None,
                        turning: None,
                        misses: 0,
                        due: Some(now),
                    };
                    self.all.insert(target.clone(), check);
                    self.due.insert((now, target.clone()));
                }
            }
        }
        lost
    }

    /// When to look again; `None`: when something else happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let (first, _) = self.due.first()?;
        (self.open < MOST_OPEN).then_some(*first)
    }

    /// What to ask now.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        while self.open < MOST_OPEN
            && self.due.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, target)) = self.due.pop_first()
        {
            let Some(check) = self.all.get_mut(&target) else {
                continue;
            };
            check.due = None;
            let turn = check.misses % check.places.len().max(1);
            let Some(at) = check.places.get(turn).copied() else {
                continue;
            };
            self.open += 1;
            questions.push(Question {
                timeout: pace(&target).timeout,
                target,
                at,
            });
        }
        questions
    }

    /// Takes in an answer. Whether the verdict is another.
    pub(super) fn answered(&mut self, target: &Target, answer: Answer, now: Instant) -> bool {
        self.open = self.open.saturating_sub(1);
        let Some(check) = self.all.get_mut(target).filter(|check| check.due.is_none()) else {
            // Nobody wants to know any more, or somebody does again and it is asked anew.
            return false;
        };
        let before = check.verdict;
        let pace = pace(target);
        let settled = check.take(answer, pace);
        let after = check.verdict;
        let wait = match settled {
            true => pace.interval.max(SPACING * self.all.len() as u32),
            false => pace.again,
        };
        let due = now + self.jitter(wait);
        if let Some(check) = self.all.get_mut(target) {
            check.due = Some(due);
        }
        self.due.insert((due, target.clone()));
        before != after
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

impl Check {
    /// Takes in an answer; whether it is what the verdict says.
    fn take(&mut self, answer: Answer, pace: Pace) -> bool {
        let is_good = matches!(answer, Answer::Good(_));
        self.misses = if is_good { 0 } else { self.misses + 1 };
        if self.verdict.is_some_and(|verdict| verdict.is_as(answer)) {
            // A weight is new at once.
            self.verdict = Some(answer);
            self.turning = None;
            return true;
        }
        let times = match self.turning {
            Some((last, times)) if last.is_as(answer) => times + 1,
            _ => 1,
        };
        let needed = match (self.verdict, answer) {
            (_, Answer::Draining) => 1,
            (None, Answer::Silent) => pace.fall,
            (None, _) => 1,
            (Some(_), Answer::Good(_)) => pace.rise,
            (Some(_), _) => pace.fall,
        };
        let turned = times >= needed;
        if turned {
            self.verdict = Some(answer);
        }
        self.turning = (!turned).then_some((answer, times));
        turned
    }
}

#[cfg(test)]
mod tests;
