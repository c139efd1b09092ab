//! How long to wait before the next try (PURE; the randomness is an argument).

use std::time::Duration;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_millis(100);
/// The longest while nobody answers: a try costs nobody anything, and the server that is back is to
/// be found within 5 s, one that hangs in its handshake included.
const LONGEST_UNANSWERED: Duration = Duration::from_millis(1_500);
/// The longest after an answer that is a refusal.
const LONGEST: Duration = Duration::from_secs(30);

/// Whether somebody answered at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody.
    None,
    /// Somebody, with a refusal or nonsense.
    Refusal,
}

/// Failures in a row, of one sort.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    last: Option<Answer>,
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: from half of what is due to all of it, as `chance` (0 to 1)
    /// has it, so that many that failed together do not return together.
    pub(super) fn wait(&mut self, answer: Answer, chance: f64) -> Duration {
        if self.last.replace(answer) != Some(answer) {
            self.failures = 0;
        }
        let longest = match answer {
            Answer::None => LONGEST_UNANSWERED,
            Answer::Refusal => LONGEST,
        };
        let due = FIRST * 2_u32.pow(self.failures.min(16));
        self.failures += 1;
        due.min(longest).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_limit_and_begin_anew() {
        let mut backoff = Backoff::default();
        let mut wait = |answer| backoff.wait(answer, 1.0).as_millis();
        let waits: Vec<_> = (0..7).map(|_| wait(Answer::None)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_500, 1_500, 1_500]);
        let waits: Vec<_> = (0..11).map(|_| wait(Answer::Refusal)).collect();
        assert_eq!(waits[..3], [100, 200, 400], "another sort of failure");
        assert_eq!(waits[9..], [30_000, 30_000]);
        backoff.reset();
        assert_eq!(backoff.wait(Answer::Refusal, 0.0).as_millis(), 50);
        for _ in 0..10_000 {
            assert!(backoff.wait(Answer::Refusal, 0.5) <= LONGEST);
        }
    }
}
