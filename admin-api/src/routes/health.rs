//! `/livez` (and `/healthz`): should this process be restarted? `/readyz`: does it serve what it
//! was told to? Text, one line per check with `?verbose`, as Kubernetes' own components answer.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;

use crate::Appliance;
use crate::view::{Check, Level};

pub(super) async fn livez(
    State(appliance): State<Arc<dyn Appliance>>,
    RawQuery(query): RawQuery,
) -> (StatusCode, String) {
    answer("livez", &appliance.liveness(), verbose(query))
}

pub(super) async fn readyz(
    State(appliance): State<Arc<dyn Appliance>>,
    RawQuery(query): RawQuery,
) -> (StatusCode, String) {
    answer("readyz", &appliance.readiness(), verbose(query))
}

/// `?verbose`, `?verbose=1`, `?verbose=true`.
fn verbose(query: Option<String>) -> bool {
    let query = query.unwrap_or_default();
    let mut parts = query.split('&');
    parts.any(|part| matches!(part, "verbose" | "verbose=" | "verbose=1" | "verbose=true"))
}

fn answer(name: &str, checks: &[Check], verbose: bool) -> (StatusCode, String) {
    let worst = checks.iter().map(|check| check.level).max();
    let failed = worst == Some(Level::Failed);
    let status = match failed {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    if !verbose && !failed {
        return (status, "ok\n".to_owned());
    }
    let mut text = String::new();
    for check in checks {
        if verbose || check.level == Level::Failed {
            let (mark, word) = match check.level {
                Level::Good => ('+', "ok"),
                Level::Warning => ('!', "warning"),
                Level::Failed => ('-', "failed"),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{mark}]{} {word}: {}", check.name, check.message);
        }
    }
    let verdict = match worst {
        Some(Level::Failed) => "failed",
        Some(Level::Warning) => "passed with warnings",
        _ => "passed",
    };
    let _ = writeln!(text, "{name} check {verdict}");
    (status, text)
}
