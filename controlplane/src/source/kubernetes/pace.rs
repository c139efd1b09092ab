//! Does the API server answer in time? One that is slow breaks no request, and everything that is
//! served or shown is that much older: it has to be found and said.
//!
//! Each answer is judged by the time until it begins: lists, watches, writes and looks at the Lease
//! alike, of which there are some in every few seconds. One late answer is everyday life (a server
//! compacts, a leader is elected); a few of ten are not.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// An answer that begins later is late. Kubernetes' own objective is 1 s for 99 of 100 requests
/// (SIG Scalability, "API call latency").
pub const LATE: Duration = Duration::from_secs(1);
/// So many answers are judged together.
const LOOKED_AT: usize = 10;
/// With so many late ones among them the API server is slow, and with none it is well again.
const TOO_MANY: usize = 3;

/// How the answers come; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Judge>>);

/// What was seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answers so far.
    pub count: u64,
    /// Late ones among them, and those that never came.
    pub late: u64,
    /// The slowest of the last ten.
    pub slowest: Duration,
    /// The API server is slow now.
    pub is_slow: bool,
}

impl Pace {
    /// An answer began after so long, or was not waited for any longer.
    pub(crate) fn answered(&self, after: Duration) {
        let mut judge = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turned = judge.hear(after);
        let slowest = judge.seen.slowest;
        drop(judge);
        match turned {
            Some(true) => tracing::warn!(
                "the API server answers late: of its last {LOOKED_AT} answers {TOO_MANY} or more began after more than {}s, the slowest after {:.1}s; what is served and shown is that much older: look at its load, its etcd's disk, and the network between",
                LATE.as_secs(),
                slowest.as_secs_f64()
            ),
            Some(false) => tracing::info!(
                "the API server answers in time again: none of its last {LOOKED_AT} answers was late"
            ),
            None => {}
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Answers {
        let judge = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        judge.seen
    }
}

/// PURE.
#[derive(Debug, Default)]
struct Judge {
    last: VecDeque<Duration>,
    seen: Answers,
}

impl Judge {
    /// True: it is slow from now on; false: no longer.
    fn hear(&mut self, after: Duration) -> Option<bool> {
        self.last.push_back(after);
        if self.last.len() > LOOKED_AT {
            self.last.pop_front();
        }
        let late = self.last.iter().filter(|after| **after > LATE).count();
        let is_slow = match self.seen.is_slow {
            true => late > 0,
            false => late >= TOO_MANY,
        };
        let turned = (is_slow != self.seen.is_slow).then_some(is_slow);
        self.seen = Answers {
            count: self.seen.count + 1,
            late: self.seen.late + u64::from(after > LATE),
            slowest: self.last.iter().max().copied().unwrap_or_default(),
            is_slow,
        };
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hears answers, `L` late and `.` in time; what each turned, `S` slow, `W` well, `-` nothing.
    fn heard(judge: &mut Judge, answers: &str) -> String {
        let turned = answers.chars().map(|answer| {
            let after = match answer {
                'L' => LATE + Duration::from_millis(1),
                _ => LATE,
            };
            match judge.hear(after) {
                Some(true) => 'S',
                Some(false) => 'W',
                None => '-',
            }
        });
        turned.collect()
    }

    #[test]
    fn three_late_of_ten_are_said_once_and_ten_in_time_end_it() {
        for (answers, turned) in [
            ("L", "-"),
            ("LL", "--"),
            ("LLL", "--S"),
            ("LLLLL", "--S--"),
            ("L....L...L", "---------S"),
            // The first is forgotten when the third comes.
            ("L....L....L", "-----------"),
            ("LLL..........", "--S---------W"),
            ("LLL.........L..........", "--S-------------------W"),
            ("LLL..........LL", "--S---------W--"),
            ("LLL..........LLL", "--S---------W--S"),
        ] {
            assert_eq!(heard(&mut Judge::default(), answers), turned, "{answers}");
        }
    }

    #[test]
    fn all_are_counted_and_the_slowest_is_of_the_last_ten() {
        let mut judge = Judge::default();
        judge.hear(Duration::from_secs(9));
        heard(&mut judge, ".........");
        let seen = judge.seen;
        assert_eq!((seen.count, seen.late), (10, 1));
        assert_eq!(seen.slowest, Duration::from_secs(9));
        judge.hear(Duration::from_millis(3));
        assert_eq!(judge.seen.slowest, LATE);
        assert!(!judge.seen.is_slow);
    }
}
