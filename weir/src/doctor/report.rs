//! What is printed.

use serde_json::{Value, json};

use super::check::{Check, Verdict};

/// The worst of all.
pub fn worst(checks: &[Check]) -> Verdict {
    let verdicts = checks.iter().map(|check| check.verdict);
    verdicts.max().unwrap_or(Verdict::Ok)
}

/// A line for each, with what to say and the fix below it.
pub fn table(checks: &[Check]) -> String {
    let widths = checks.iter().map(|check| check.name.chars().count());
    let name = widths.max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let verdict = check.verdict.label();
        text.push_str(&format!(
            "{verdict:<4}  {:<name$}  {}\n",
            check.name, check.value
        ));
        for (word, line) in [("", &check.why), ("fix: ", &check.fix)] {
            if !line.is_empty() {
                text.push_str(&format!("      {word}{line}\n"));
            }
        }
    }
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let (ok, warn) = (count(Verdict::Ok), count(Verdict::Warn));
    let fail = count(Verdict::Fail);
    text.push_str(&format!("\n{ok} ok, {warn} warn, {fail} fail\n"));
    text
}

/// One object.
pub fn json(checks: &[Check]) -> Value {
    let each = checks.iter().map(|check| {
        json!({
            "name": check.name,
            "value": check.value,
            "verdict": check.verdict.label(),
            "why": (!check.why.is_empty()).then_some(&check.why),
            "fix": (!check.fix.is_empty()).then_some(&check.fix),
        })
    });
    json!({
        "verdict": worst(checks).label(),
        "checks": each.collect::<Vec<_>>(),
    })
}
