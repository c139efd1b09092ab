//! What was measured, for people (Markdown) and programs (JSON).

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::Mode;
use crate::figures::{Spread, short};
use crate::judge::{self, BUSY, Ratio};
use crate::measure::Sample;
use crate::rows::{self, Row};
use crate::run::{Column, Measured, Report, Table, cpu_unit};

/// Writes `latest.json` and `latest.md` into `dir`.
pub fn write(report: &Report, text: &str, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let json = serde_json::to_string_pretty(report)?;
    for (name, content) in [("latest.json", json.as_str()), ("latest.md", text)] {
        let path = dir.join(name);
        std::fs::write(&path, content)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The tables.
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}, {} cores, {} GiB, Linux {}, {}. Medians of {} rounds of {} s (lowest-highest).\n",
        machine.cpu,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.date,
        report.rounds,
        report.seconds
    );
    for absent in &report.absent {
        let _ = writeln!(text, "\nWithout {absent}");
    }
    for table in &report.tables {
        text += &mode_table(report, table);
    }
    text
}

fn mode_table(report: &Report, table: &Table) -> String {
    let all = rows::all();
    let labels: Vec<&str> = report.variants.iter().map(|v| v.label.as_str()).collect();
    let weirs: Vec<&str> = of(report, |column| column.is_weir);
    let rivals: Vec<&str> = of(report, |column| column.is_rival);
    let mut heads: Vec<String> = labels.iter().map(ToString::to_string).collect();
    if !rivals.is_empty() {
        heads.extend(weirs.iter().map(|weir| format!("{weir} / best")));
    }
    let mut text = format!(
        "\n## {}\n\n| row | {} |\n|---|",
        table.mode.name(),
        heads.join(" | ")
    );
    text += &"---:|".repeat(heads.len());
    text.push('\n');
    for measured in &table.rows {
        let Some(row) = all.iter().find(|row| row.name == measured.row) else {
            continue;
        };
        let _ = write!(text, "| {}, {} |", row.name, row.metric.unit());
        for label in &labels {
            let _ = write!(text, " {} |", cell(measured, label, |s| s.value));
        }
        if !rivals.is_empty() {
            for weir in &weirs {
                let ratio = judge::against_best(table.mode, row, measured, weir, &rivals);
                let _ = write!(
                    text,
                    " {} |",
                    ratio.map_or_else(|| "-".into(), |r| times(&r))
                );
            }
        }
        text.push('\n');
        if table.mode == Mode::Isolate && row.metric != rows::Metric::Memory {
            text += &cpu_line(row, measured, &labels);
        }
        for (what, count) in [
            ("lost", (|s| s.lost as f64) as fn(&Sample) -> f64),
            ("errors", |s| s.errors as f64),
        ] {
            if measured.samples.values().flatten().any(|s| count(s) > 0.0) {
                let _ = write!(text, "| &nbsp; {what} in a round |");
                for label in &labels {
                    let _ = write!(text, " {} |", cell(measured, label, count));
                }
                text.push('\n');
            }
        }
    }
    text.push('\n');
    for failure in table.rows.iter().flat_map(|row| &row.failures) {
        let _ = writeln!(text, "Failed: {failure}");
    }
    for measured in &table.rows {
        if let Some(row) = all.iter().find(|row| row.name == measured.row) {
            let _ = writeln!(text, "- {}: {}", row.name, row.what);
        }
    }
    text
}

fn of(report: &Report, which: impl Fn(&Column) -> bool) -> Vec<&str> {
    let columns = report.variants.iter().filter(|column| which(column));
    columns.map(|column| column.label.as_str()).collect()
}

/// "1.25x haproxy (1.20-1.31)", with a mark if it is per CPU.
fn times(ratio: &Ratio) -> String {
    let Spread { median, low, high } = ratio.ratio;
    let mark = if ratio.per_cpu { " per CPU" } else { "" };
    format!("{median:.2}x {}{mark} ({low:.2}-{high:.2})", ratio.against)
}

/// The CPU of each; a star where it was more than a tenth idle, so that the load was the limit.
fn cpu_line(row: &Row, measured: &Measured, labels: &[&str]) -> String {
    let mut text = format!("| &nbsp; LB CPU, {} |", cpu_unit(row));
    for label in labels {
        let figure = judge::median(measured, label, |s| s.cpu_each);
        let used = judge::median(measured, label, |s| s.lb_used);
        let star = if used.is_some_and(|used| used < BUSY) {
            "*"
        } else {
            ""
        };
        let _ = write!(
            text,
            " {}{star} |",
            figure.map_or_else(|| "-".into(), short)
        );
    }
    text.push('\n');
    text
}

fn cell(measured: &Measured, label: &str, figure: impl Fn(&Sample) -> f64) -> String {
    match judge::spread(measured, label, figure) {
        None => "-".into(),
        Some(Spread { median, low, high }) if low == high => short(median),
        Some(Spread { median, low, high }) => {
            format!("{} ({}-{})", short(median), short(low), short(high))
        }
    }
}
