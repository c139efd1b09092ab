//! The goals of the proxy tier, and what a run says about them. PURE.

use std::fmt::Write;

use crate::cli::Mode;
use crate::figures::{Spread, short};
use crate::judge::{self, Ratio};
use crate::measure::Sample;
use crate::rows;
use crate::run::{Report, Table};

/// What a goal is measured against.
#[derive(Clone, Copy, Debug)]
enum Against {
    /// The best proxy of the same run.
    Best,
    /// One of them.
    Peer(&'static str),
    /// A number of bytes.
    Bytes,
}

/// One goal: a factor, or a number of bytes.
#[derive(Clone, Copy, Debug)]
struct Goal {
    what: &'static str,
    mode: Mode,
    rows: &'static [&'static str],
    against: Against,
    per_cpu: bool,
    at: f64,
}

const fn goal(
    what: &'static str,
    mode: Mode,
    rows: &'static [&'static str],
    against: Against,
    at: f64,
) -> Goal {
    Goal {
        what,
        mode,
        rows,
        against,
        per_cpu: false,
        at,
    }
}

const fn per_cpu(goal: Goal) -> Goal {
    Goal {
        per_cpu: true,
        ..goal
    }
}

const BULK: &[&str] = &["bulk8-down", "bulk8-up"];
const CONN: &[&str] = &["conn-client", "conn-server"];

const GOALS: &[Goal] = {
    use Against::{Best, Bytes, Peer};
    use Mode::{Isolate, Spread};
    &[
        per_cpu(goal(
            "bulk, 8 streams, per LB CPU",
            Isolate,
            BULK,
            Best,
            1.3,
        )),
        per_cpu(goal(
            "bulk, 8 streams, per LB CPU",
            Isolate,
            BULK,
            Peer("haproxy"),
            2.6,
        )),
        goal("bulk, 8 streams, rate", Spread, BULK, Best, 1.5),
        goal("requests", Isolate, &["rr64"], Best, 1.3),
        goal("requests", Spread, &["rr64"], Best, 1.2),
        goal("64 KiB requests", Isolate, &["rr64k"], Best, 1.1),
        per_cpu(goal("connections per LB CPU", Isolate, CONN, Best, 1.3)),
        goal("connections, rate", Spread, &["conn-client"], Best, 1.15),
        goal("one request at a time, p50", Isolate, &["one64"], Best, 1.0),
        goal(
            "idle, bytes per connection",
            Isolate,
            &["idle4k", "idle9k"],
            Bytes,
            256.0,
        ),
        goal("UDP one-way", Isolate, &["udp-oneway"], Peer("nginx"), 2.0),
        goal("UDP echo", Isolate, &["udp-echo"], Peer("nginx"), 1.6),
        goal(
            "UDP, 512 single flows",
            Isolate,
            &["udp-512"],
            Peer("nginx"),
            1.3,
        ),
    ]
};

/// Goal -> figure, a column per Weir variant; only what was measured.
pub fn markdown(report: &Report) -> String {
    let weirs = report.labels(|column| column.is_weir);
    if weirs.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n## Goals\n\n| goal | mode | against | at least | {} |\n|---|---|---|---:|{}\n",
        weirs.join(" | "),
        "---:|".repeat(weirs.len())
    );
    for goal in GOALS {
        for row in goal
            .rows
            .iter()
            .filter(|row| measured(report, goal.mode, row))
        {
            let (against, at) = match goal.against {
                Against::Best => ("best", format!("{:.2}x", goal.at)),
                Against::Peer(peer) => (peer, format!("{:.2}x", goal.at)),
                Against::Bytes => ("-", format!("at most {} B", short(goal.at))),
            };
            let mode = goal.mode.name();
            let _ = write!(
                text,
                "| {} ({row}) | {mode} | {against} | {at} |",
                goal.what
            );
            for weir in &weirs {
                let _ = write!(text, " {} |", figure(report, goal, row, weir));
            }
            text.push('\n');
        }
    }
    text += &services(report, &weirs);
    text
}

fn measured(report: &Report, mode: Mode, name: &str) -> bool {
    table(report, mode).is_some_and(|table| table.rows.iter().any(|row| row.row == name))
}

fn table(report: &Report, mode: Mode) -> Option<&Table> {
    report.tables.iter().find(|table| table.mode == mode)
}

/// What was reached, bold if it is the goal.
fn figure(report: &Report, goal: &Goal, name: &str, weir: &str) -> String {
    let found = || {
        let row = rows::named(name)?;
        let table = table(report, goal.mode)?;
        let measured = table.rows.iter().find(|measured| measured.row == name)?;
        if let Against::Bytes = goal.against {
            let bytes = judge::median(measured, weir, |s: &Sample| s.value)?;
            return Some((bytes <= goal.at, format!("{} B", short(bytes))));
        }
        let rivals = match goal.against {
            Against::Peer(peer) => vec![peer],
            _ => report.labels(|column| column.is_rival),
        };
        let ratio = rivals
            .iter()
            .filter_map(|rival| judge::against(&row, measured, weir, rival, goal.per_cpu))
            .min_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median))?;
        Some((ratio.ratio.median >= goal.at, times(&ratio)))
    };
    match found() {
        None => "-".into(),
        Some((true, text)) => format!("**{text}**"),
        Some((false, text)) => text,
    }
}

fn times(ratio: &Ratio) -> String {
    let Spread { median, low, high } = ratio.ratio;
    format!("{median:.2}x {} ({low:.2}-{high:.2})", ratio.against)
}

/// What 10,000 Services cost beside one.
fn services(report: &Report, weirs: &[&str]) -> String {
    let Some(table) = table(report, Mode::Isolate) else {
        return String::new();
    };
    let mut text = String::new();
    for (many, one) in [("svc10k-rr64", "rr64"), ("svc10k-conn", "conn-client")] {
        if !measured(report, Mode::Isolate, many) {
            continue;
        }
        let _ = write!(
            text,
            "| 10,000 Services beside one ({many}) | isolate | {one} | - |"
        );
        for weir in weirs {
            let rate = |name: &str| {
                let measured = table.rows.iter().find(|measured| measured.row == name)?;
                judge::median(measured, weir, |s| s.value)
            };
            let cell = match (rate(many), rate(one)) {
                (Some(many), Some(one)) if one > 0.0 => format!("{:.2}x", many / one),
                _ => "-".into(),
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_is_about_rows_that_its_mode_measures() {
        for goal in GOALS {
            let measured = rows::select(&[], goal.mode).expect("the mode's rows");
            for name in goal.rows {
                assert!(measured.iter().any(|row| row.name == *name), "{name}");
            }
        }
    }
}
