//! Does another undo what we write? Then we write ever less often, and it is said. PURE: time is an argument.
//!
//! ```text
//!            undone, the third time in a minute             the pause is over: one write
//!   Calm ------------------------------------------> Waits ------------------------------> Tries
//!    ^                                                  ^    undone: a pause twice as long   |  |
//!    |                                                  '-----------------------------------'  |
//!    '-------------------- it stands for as long as the pause, and five minutes at least ------'
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// So many writes that were undone ...
const FEW: u32 = 3;
/// ... within this make a contest: a person who edits a status by hand is none.
const WINDOW: Duration = Duration::from_secs(60);
/// The first pause; twice as long after each further write that was undone.
const FIRST: Duration = Duration::from_secs(30);
/// And never longer than this.
const LONGEST: Duration = Duration::from_secs(3_600);
/// A write that stands for this long, and for as long as the pause before it, ends the contest.
const STANDS: Duration = Duration::from_secs(300);

/// How it stands with one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contest {
    /// Nobody undoes what we write, or not often: so many since then.
    Calm { undone: u32, since: Option<Instant> },
    /// Nothing is written until then.
    Waits { pause: Duration, until: Instant },
    /// It was written once more, then.
    Tries { pause: Duration, since: Instant },
}

/// What is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// There is a contest: nothing is written for so long.
    Begins(Duration),
    /// It goes on: nothing is written for so long.
    GoesOn(Duration),
    /// It is over.
    Ends,
}

impl Default for Contest {
    fn default() -> Contest {
        Contest::Calm {
            undone: 0,
            since: None,
        }
    }
}

impl Contest {
    /// Is there one?
    pub(super) fn is_on(&self) -> bool {
        !matches!(self, Contest::Calm { .. })
    }

    /// When the next write may be, if not now.
    pub(super) fn not_before(&self, now: Instant) -> Option<Instant> {
        match *self {
            Contest::Waits { until, .. } if now < until => Some(until),
            _ => None,
        }
    }

    /// When it is over if nothing is undone.
    pub(super) fn ends(&self) -> Option<Instant> {
        match *self {
            Contest::Tries { pause, since } => Some(since + pause.max(STANDS)),
            Contest::Calm { .. } | Contest::Waits { .. } => None,
        }
    }

    /// We wrote.
    pub(super) fn wrote(&mut self, now: Instant) {
        if let Contest::Waits { pause, .. } = *self {
            *self = Contest::Tries { pause, since: now };
        }
    }

    /// What we wrote was undone.
    pub(super) fn undone(&mut self, now: Instant) -> Option<News> {
        let (next, news) = match *self {
            Contest::Calm { undone, since } => {
                let recent = since.filter(|since| now.duration_since(*since) <= WINDOW);
                let undone = recent.map_or(1, |_| undone + 1);
                let since = Some(recent.unwrap_or(now));
                match undone < FEW {
                    true => (Contest::Calm { undone, since }, None),
                    false => (waits(FIRST, now), Some(News::Begins(FIRST))),
                }
            }
            // Nothing of ours was there to be undone.
            Contest::Waits { .. } => (*self, None),
            Contest::Tries { pause, .. } => {
                let pause = (pause * 2).min(LONGEST);
                (waits(pause, now), Some(News::GoesOn(pause)))
            }
        };
        *self = next;
        news
    }

    /// Time has passed.
    pub(super) fn look(&mut self, now: Instant) -> Option<News> {
        let ends = self.ends()?;
        (now >= ends).then(|| {
            *self = Contest::default();
            News::Ends
        })
    }
}

fn waits(pause: Duration, now: Instant) -> Contest {
    Contest::Waits {
        pause,
        until: now + pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn k21_every_state_has_its_answer_to_everything() {
        let now = Instant::now();
        let at = |seconds: u32| now + SECOND * seconds;
        let calm = |undone, since| Contest::Calm { undone, since };
        let waits = |pause: u64, until| Contest::Waits {
            pause: Duration::from_secs(pause),
            until,
        };
        let tries = |pause: u64, since| Contest::Tries {
            pause: Duration::from_secs(pause),
            since,
        };
        let begins = Some(News::Begins(FIRST));
        let goes_on = |pause| Some(News::GoesOn(Duration::from_secs(pause)));
        // State, then what undone, wrote and look make of it at second 1,000.
        for (state, undone, wrote, look) in [
            (
                calm(0, None),
                (calm(1, Some(at(1_000))), None),
                calm(0, None),
                (calm(0, None), None),
            ),
            (
                calm(2, Some(at(940))),
                (waits(30, at(1_030)), begins),
                calm(2, Some(at(940))),
                (calm(2, Some(at(940))), None),
            ),
            (
                calm(2, Some(at(939))),
                (calm(1, Some(at(1_000))), None),
                calm(2, Some(at(939))),
                (calm(2, Some(at(939))), None),
            ),
            (
                waits(30, at(999)),
                (waits(30, at(999)), None),
                tries(30, at(1_000)),
                (waits(30, at(999)), None),
            ),
            (
                tries(30, at(701)),
                (waits(60, at(1_060)), goes_on(60)),
                tries(30, at(701)),
                (tries(30, at(701)), None),
            ),
            (
                tries(30, at(700)),
                (waits(60, at(1_060)), goes_on(60)),
                tries(30, at(700)),
                (calm(0, None), Some(News::Ends)),
            ),
            (
                tries(600, at(401)),
                (waits(1_200, at(2_200)), goes_on(1_200)),
                tries(600, at(401)),
                (tries(600, at(401)), None),
            ),
            (
                tries(3_000, at(0)),
                (waits(3_600, at(4_600)), goes_on(3_600)),
                tries(3_000, at(0)),
                (tries(3_000, at(0)), None),
            ),
        ] {
            let (mut a, mut b, mut c) = (state, state, state);
            let news = a.undone(at(1_000));
            assert_eq!((a, news), undone, "{state:?} undone");
            b.wrote(at(1_000));
            assert_eq!(b, wrote, "{state:?} wrote");
            let news = c.look(at(1_000));
            assert_eq!((c, news), look, "{state:?} look");
        }
    }

    #[test]
    fn a_war_is_a_handful_of_writes() {
        let start = Instant::now();
        let (mut contest, mut now, mut writes) = (Contest::default(), start, 0);
        while now < start + Duration::from_secs(24 * 3_600) {
            match contest.not_before(now) {
                Some(until) => now = until,
                None => {
                    contest.wrote(now);
                    writes += 1;
                    // Undone within a millisecond, each time.
                    now += Duration::from_millis(1);
                    contest.undone(now);
                    assert_eq!(contest.is_on(), writes >= FEW);
                }
            }
        }
        assert!((20..40).contains(&writes), "{writes} in a day");
    }
}
