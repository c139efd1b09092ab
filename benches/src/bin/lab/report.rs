//! What was measured, for people (Markdown) and programs (JSON).

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::cli::Mode;
use crate::figures::{Spread, short};
use crate::judge::{self, BUSY, Ratio};
use crate::measure::Sample;
use crate::rows::{self, Row};
use crate::run::{Measured, Report, Table, cpu_unit};

/// Stands before and after what the bench writes into a document.
const MARK: &str = "<!-- last full run -->";

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

/// Puts `text` between the marks of a document.
pub fn into_readme(path: &Path, text: &str) -> Result<()> {
    let document = std::fs::read_to_string(path)?;
    let parts: Vec<&str> = document.split(MARK).collect();
    ensure!(
        parts.len() == 3,
        "{} needs two lines {MARK}",
        path.display()
    );
    // A level further down than where it stands alone.
    let text = text.trim().replace("\n## ", "\n### ");
    let text = format!("{}{MARK}\n\n{text}\n\n{MARK}{}", parts[0], parts[2]);
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
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
    for column in &report.variants {
        let _ = writeln!(text, "- {}: {}", column.label, column.version);
    }
    for absent in &report.absent {
        let _ = writeln!(text, "\nWithout {absent}");
    }
    for table in &report.tables {
        text += &mode_table(report, table);
    }
    text
}

fn mode_table(report: &Report, table: &Table) -> String {
    let labels = report.labels(|_| true);
    let duels = duels(report);
    let mut heads: Vec<String> = labels.iter().map(ToString::to_string).collect();
    heads.extend(
        duels
            .iter()
            .map(|duel| format!("{} / {}", duel.weir, duel.name)),
    );
    let mut text = format!(
        "\n## {}\n\n| row | {} |\n|---|",
        table.mode.name(),
        heads.join(" | ")
    );
    text += &"---:|".repeat(heads.len());
    text.push('\n');
    for measured in &table.rows {
        let Some(row) = rows::named(&measured.row) else {
            continue;
        };
        let _ = write!(text, "| {}, {} |", row.name, row.metric.unit());
        for label in &labels {
            let _ = write!(text, " {} |", cell(measured, label, |s| s.value));
        }
        for duel in &duels {
            let ratio = judge::against_best(table.mode, &row, measured, duel.weir, &duel.rivals);
            let _ = write!(
                text,
                " {} |",
                ratio.map_or_else(|| "-".into(), |r| times(&r))
            );
        }
        text.push('\n');
        if row.metric != rows::Metric::Memory {
            text += &cpu_line(table.mode, &row, measured, &labels);
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
        if let Some(row) = rows::named(&measured.row) {
            let _ = writeln!(text, "- {}: {}", row.name, row.what);
        }
    }
    text
}

/// A column of ratios.
struct Duel<'a> {
    weir: &'a str,
    name: &'a str,
    rivals: Vec<&'a str>,
}

/// Each Weir against the best of the others, and against the first Weir.
fn duels(report: &Report) -> Vec<Duel<'_>> {
    let rivals = report.labels(|column| column.is_rival);
    let weirs = report.labels(|column| column.is_weir);
    let best = weirs
        .iter()
        .filter(|_| !rivals.is_empty())
        .map(|weir| Duel {
            weir,
            name: "best",
            rivals: rivals.clone(),
        });
    let own = weirs.iter().skip(1).map(|weir| Duel {
        weir,
        name: weirs[0],
        rivals: vec![weirs[0]],
    });
    best.chain(own).collect()
}

/// "1.25x haproxy (1.20-1.31)", with a mark if it is per CPU.
fn times(ratio: &Ratio) -> String {
    let Spread { median, low, high } = ratio.ratio;
    let mark = if ratio.per_cpu { " per CPU" } else { "" };
    format!("{median:.2}x {}{mark} ({low:.2}-{high:.2})", ratio.against)
}

/// The CPU of each; a star where it was more than a tenth idle, so that the load was the limit.
fn cpu_line(mode: Mode, row: &Row, measured: &Measured, labels: &[&str]) -> String {
    let of = match mode {
        Mode::Isolate => "LB CPU",
        Mode::Spread => "LB threads",
    };
    let mut text = format!("| &nbsp; {of}, {} |", cpu_unit(row));
    for label in labels {
        let figure = judge::median(measured, label, |s| s.cpu_each).filter(|&cpu| cpu > 0.0);
        let used = judge::median(measured, label, |s| s.lb_used);
        let star = if mode == Mode::Isolate && used.is_some_and(|used| used < BUSY) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_keeps_what_is_outside_its_marks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("README.md");
        std::fs::write(&path, format!("before\n{MARK}\nold\n{MARK}\nafter\n")).expect("written");
        for text in ["first", "## second\n\n## third\n"] {
            into_readme(&path, text).expect("two marks");
        }
        let document = std::fs::read_to_string(&path).expect("readable");
        let between = "## second\n\n### third";
        assert_eq!(
            document,
            format!("before\n{MARK}\n\n{between}\n\n{MARK}\nafter\n")
        );
        std::fs::write(&path, "no marks").expect("written");
        assert!(into_readme(&path, "text").is_err());
    }
}
