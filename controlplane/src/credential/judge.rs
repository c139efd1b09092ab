//! When to ask for another token (PURE; time and chance are arguments).

use std::time::Duration;

use super::token::Token;

/// Between two looks at the kubeconfig: somebody may have put another token there.
const LOOK: Duration = Duration::from_secs(30);
/// Between two tries at the most.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// What to do about a token now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing for so long.
    Wait(Duration),
    /// Ask for another.
    Renew,
}

/// What to do at `now`, seconds since 1970. It is due after 60 to 80 % of its life, as `chance` (from
/// 0 to 1) has it, so that many appliances do not ask at once; a fifth is left for tries that fail. It
/// is asked for after its end too: the API server takes a token for a minute more, and clocks differ.
pub(super) fn next(token: &Token, now: u64, chance: f64) -> Next {
    let due = token.issued + (token.life() as f64 * (0.6 + 0.2 * chance.clamp(0.0, 1.0))) as u64;
    match due.saturating_sub(now) {
        0 => Next::Renew,
        left => Next::Wait(Duration::from_secs(left).min(LOOK)),
    }
}

/// How long to wait after a try that failed: a tenth of what is left, between a second and five
/// minutes; long after its end as long as between two looks.
pub(super) fn retry(token: &Token, now: u64) -> Duration {
    if now > token.expires.saturating_add(60) {
        return LOOK;
    }
    let left = Duration::from_secs(token.expires.saturating_sub(now));
    (left / 10).clamp(Duration::from_secs(1), LONGEST_RETRY)
}

/// How long to wait where there is nothing to renew, or nothing to renew it with.
pub(super) fn idle() -> Duration {
    LOOK
}

#[cfg(test)]
mod tests {
    use super::super::token::Account;
    use super::*;

    fn token(issued: u64, expires: u64) -> Token {
        Token {
            account: Account {
                namespace: "weir-system".into(),
                name: "weir".into(),
            },
            issued,
            expires,
        }
    }

    #[test]
    fn a_token_is_renewed_between_three_and_four_fifths_of_its_life() {
        let token = token(1_000, 2_000);
        let wait = |seconds| Next::Wait(Duration::from_secs(seconds));
        for (now, chance, expected) in [
            (0, 0.0, wait(30)),
            (1_000, 0.0, wait(30)),
            (1_590, 0.0, wait(10)),
            (1_599, 0.0, wait(1)),
            (1_600, 0.0, Next::Renew),
            (1_600, 1.0, wait(30)),
            (1_799, 1.0, wait(1)),
            (1_800, 1.0, Next::Renew),
            (1_800, 7.0, Next::Renew),
            (1_999, 0.5, Next::Renew),
            (2_000, 0.5, Next::Renew),
            (u64::MAX, 0.5, Next::Renew),
        ] {
            assert_eq!(next(&token, now, chance), expected, "{now} {chance}");
        }
    }

    #[test]
    fn tries_come_closer_as_the_end_does() {
        let token = token(0, 100_000);
        let seconds = |now| retry(&token, now).as_secs();
        assert_eq!([seconds(60_000), seconds(98_000)], [300, 200]);
        assert_eq!(
            [seconds(99_995), seconds(100_060), seconds(100_061)],
            [1, 1, 30]
        );
    }
}
