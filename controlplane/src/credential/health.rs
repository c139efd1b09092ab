//! How the appliance's own token fares, for readiness and metrics: written by the renewal, read by
//! anybody at any time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::token::Token;

const EXPIRY: &str = "weir_token_expiry_timestamp_seconds";
const RENEWALS: &str = "weir_token_renewals_total";

/// How the token fares; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    token: Option<Token>,
    failure: Option<String>,
    renewed: u64,
    failed: u64,
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This one is in use; `None`: none that we renew. Of another one than before nothing has failed.
    pub(super) fn uses(&self, token: Option<Token>) {
        let mut state = self.lock();
        if state.token != token {
            state.failure = None;
        }
        state.token = token;
    }

    pub(super) fn renewed(&self, token: Token) {
        let mut state = self.lock();
        state.token = Some(token);
        state.failure = None;
        state.renewed += 1;
    }

    /// Whether that is news.
    pub(super) fn failed(&self, failure: String) -> bool {
        let mut state = self.lock();
        state.failed += 1;
        let is_news = state.failure.as_ref() != Some(&failure);
        state.failure = Some(failure);
        is_news
    }

    /// What to say of it at `now`, seconds since 1970, and whether all is well; `None`: there is
    /// none that we renew.
    pub fn say(&self, now: u64) -> Option<(bool, String)> {
        let state = self.lock();
        let token = state.token.as_ref()?;
        let until = when(token.expires);
        let account = &token.account;
        Some(match &state.failure {
            _ if now >= token.expires => (
                false,
                format!(
                    "the token of {account} expired at {until}: write a new one by `weir kubeconfig --force`"
                ),
            ),
            Some(failure) => (
                false,
                format!(
                    "the token of {account} is good until {until} and is not renewed: {failure}"
                ),
            ),
            None => (
                true,
                format!("the token of {account} is good until {until}, and is renewed before"),
            ),
        })
    }

    /// Sets the metrics, if there is a token that we renew.
    pub fn measure(&self) {
        let state = self.lock();
        let Some(token) = &state.token else { return };
        // Exact up to 2^53.
        gauge!(EXPIRY).set(token.expires as f64);
        counter!(RENEWALS, "result" => "ok").absolute(state.renewed);
        counter!(RENEWALS, "result" => "failed").absolute(state.failed);
    }
}

/// Says what each number is.
pub fn describe() {
    describe_gauge!(
        EXPIRY,
        Unit::Seconds,
        "When the appliance's own token expires, seconds since 1970."
    );
    describe_counter!(
        RENEWALS,
        Unit::Count,
        "Tries to renew the appliance's own token, by result."
    );
}

/// For people.
fn when(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "the end of time".to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::token::Account;
    use super::*;

    #[test]
    fn a_token_that_is_not_renewed_is_said_long_before_it_ends() {
        let health = Health::default();
        assert_eq!(health.say(0), None, "none that is ours to renew");
        let token = |expires| Token {
            account: Account {
                namespace: "weir-system".into(),
                name: "weir".into(),
            },
            issued: 0,
            expires,
        };
        health.uses(Some(token(1_000)));
        let (good, text) = health.say(1).expect("a token");
        assert!(
            good && text.contains("weir-system/weir is good until 1970-01-01T00:16:40Z"),
            "{text}"
        );
        assert!(health.failed("forbidden".to_owned()), "news");
        assert!(!health.failed("forbidden".to_owned()));
        let (good, text) = health.say(2).expect("a token");
        assert!(!good && text.contains("not renewed: forbidden"), "{text}");
        let (good, text) = health.say(1_000).expect("a token");
        assert!(
            !good && text.contains("expired at") && text.contains("weir kubeconfig --force"),
            "{text}"
        );
        health.uses(Some(token(1_000)));
        assert!(!health.say(2).expect("a token").0, "the same one");
        health.uses(Some(token(1_500)));
        assert!(
            health.say(2).expect("a token").0,
            "somebody put another there"
        );
        health.renewed(token(2_000));
        assert!(health.say(1_000).expect("a token").0);
        health.uses(None);
        assert_eq!(health.say(0), None);
        assert_eq!(when(u64::MAX), "the end of time");
    }
}
