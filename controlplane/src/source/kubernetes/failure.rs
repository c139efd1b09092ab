//! Why a list or watch does not work: a closed set, and for each what to do.

use std::sync::Arc;
use std::time::Duration;

use super::backoff::Answer;

/// Text of others is cut after this.
const LONGEST: usize = 200;

/// Why a list or a watch failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kubeconfig, or what it names, cannot be used.
    #[error("{problem}")]
    Unconfigured {
        /// What is wrong and what is right.
        problem: String,
    },
    /// No connection, no handshake, or one that was cut.
    #[error(
        "the API server {server} cannot be reached: {problem}; check that it runs, its address and certificate-authority in the kubeconfig, and the network between"
    )]
    Unreachable {
        /// Its address.
        server: Arc<str>,
        /// As the client says it.
        problem: String,
    },
    /// A connection that says nothing.
    #[error(
        "the API server did not say what it should within {}s; the connection is given up and made anew",
        after.as_secs()
    )]
    Silent {
        /// For so long.
        after: Duration,
    },
    /// 401.
    #[error(
        "the API server does not know us (401 Unauthorized): the token or certificate expired or was revoked; renew what the kubeconfig names, it is read anew with every try"
    )]
    Unauthorized,
    /// 403.
    #[error(
        "forbidden: {verb} {resource}{}; grant the verb {verb:?} on {resource:?} to Weir's user or service account{}: {message}",
        place(namespace),
        role(namespace)
    )]
    Forbidden {
        /// list or watch.
        verb: &'static str,
        /// As RBAC names it.
        resource: &'static str,
        /// "" for all.
        namespace: String,
        /// The server's words.
        message: String,
    },
    /// 410: what was asked for is too old.
    #[error("what was seen last is too old for the API server (410 Gone); listed anew")]
    Gone,
    /// 429 or 5xx.
    #[error("the API server cannot answer now ({status}): {message}")]
    Busy {
        /// The status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// Another refusal.
    #[error("the API server refuses ({status}): {message}")]
    Refused {
        /// The status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// An answer that no API server gives.
    #[error(
        "what answers does not speak as an API server: {problem}; check the server's address in the kubeconfig, and proxies between"
    )]
    Garbage {
        /// What is odd about it.
        problem: String,
    },
    /// The versions of what it sends went backwards.
    #[error(
        "the API server's versions went back: it was restored from a backup, or is another one; listed anew"
    )]
    WentBack,
}

fn place(namespace: &str) -> String {
    match namespace {
        "" => String::new(),
        namespace => format!(" in namespace {namespace:?}"),
    }
}

fn role(namespace: &str) -> &'static str {
    match namespace {
        "" => " by a ClusterRole",
        _ => " by a Role there",
    }
}

impl Failure {
    /// Names it in metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Failure::Unconfigured { .. } => "unconfigured",
            Failure::Unreachable { .. } => "unreachable",
            Failure::Silent { .. } => "silent",
            Failure::Unauthorized => "unauthorized",
            Failure::Forbidden { .. } => "forbidden",
            Failure::Gone => "gone",
            Failure::Busy { .. } => "busy",
            Failure::Refused { .. } => "refused",
            Failure::Garbage { .. } => "garbage",
            Failure::WentBack => "went_back",
        }
    }

    /// Every code, for metrics that begin at zero.
    pub const CODES: [&'static str; 10] = [
        "unconfigured",
        "unreachable",
        "silent",
        "unauthorized",
        "forbidden",
        "gone",
        "busy",
        "refused",
        "garbage",
        "went_back",
    ];

    /// Did anybody answer?
    pub(super) fn answer(&self) -> Answer {
        match self {
            Failure::Unreachable { .. } | Failure::Silent { .. } => Answer::None,
            _ => Answer::Refusal,
        }
    }

    /// An answer's status that is no success, and its body's words.
    pub(super) fn of_status(status: u16, message: &str, asked: &Asked) -> Failure {
        let message = said(message);
        match status {
            401 => Failure::Unauthorized,
            403 => Failure::Forbidden {
                verb: asked.verb,
                resource: asked.resource,
                namespace: asked.namespace.clone(),
                message,
            },
            410 => Failure::Gone,
            429 | 500..=599 => Failure::Busy { status, message },
            _ => Failure::Refused { status, message },
        }
    }
}

/// What was asked, for the messages of refusals.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub verb: &'static str,
    pub resource: &'static str,
    /// "" for all.
    pub namespace: String,
}

/// Somebody's words for a message: one line, escaped, cut.
pub(super) fn said(text: &str) -> String {
    let line = text.trim().chars().take(LONGEST);
    let mut shown: String = line.flat_map(char::escape_debug).collect();
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    match shown.is_empty() {
        true => "no word of why".to_owned(),
        false => shown,
    }
}

/// The message of a Status that a server sent, or the text itself.
pub(super) fn message_of(body: &[u8]) -> String {
    let status = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    match status["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_which_verb_on_what_and_what_to_do() {
        let asked = Asked {
            verb: "watch",
            resource: "endpointslices.discovery.k8s.io",
            namespace: "shop".to_owned(),
        };
        let failure = Failure::of_status(403, "no\nway\x1b[2J \"x\"", &asked);
        let text = failure.to_string();
        for part in [
            "watch endpointslices.discovery.k8s.io in namespace \"shop\"",
            "grant the verb \"watch\" on \"endpointslices.discovery.k8s.io\"",
            r#"no\nway\u{1b}[2J "x""#,
        ] {
            assert!(text.contains(part), "{text} lacks {part}");
        }
        assert_eq!(text.lines().count(), 1);
        assert_eq!(Failure::of_status(503, "", &asked).code(), "busy");
        assert_eq!(Failure::of_status(404, "", &asked).code(), "refused");
        assert_eq!(Failure::of_status(410, "", &asked), Failure::Gone);
        assert!(said(&"é".repeat(9_999)).chars().count() <= LONGEST);
    }

    #[test]
    fn words_are_the_statuss_or_the_texts() {
        assert_eq!(message_of(br#"{"kind":"Status","message":"m"}"#), "m");
        assert_eq!(message_of(b"<html>"), "<html>");
    }
}
