//! The committed ratios of the short form, and which of them moved. PURE but for the file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::Machine;
use crate::judge::{self, Ratio};
use crate::rows;
use crate::run::{Report, Table};

/// Ranges must be this far apart before a ratio has moved: what separate runs of one build differ
/// by beyond what their rounds do.
const TOLERANCE: f64 = 0.05;

/// Ratios of Weir against the best of the others, by mode, row and variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Baseline {
    pub machine: Machine,
    pub ratios: BTreeMap<String, BTreeMap<String, BTreeMap<String, Ratio>>>,
}

impl Baseline {
    pub fn of(report: &Report) -> Baseline {
        let rivals = report.labels(|column| column.is_rival);
        let mut ratios = BTreeMap::<_, BTreeMap<_, BTreeMap<_, _>>>::new();
        for table in &report.tables {
            for measured in &table.rows {
                let Some(row) = rows::named(&measured.row) else {
                    continue;
                };
                for weir in report.labels(|column| column.is_weir) {
                    let best = judge::against_best(table.mode, &row, measured, weir, &rivals);
                    let Some(best) = best else { continue };
                    ratios
                        .entry(table.mode.name().to_owned())
                        .or_default()
                        .entry(measured.row.clone())
                        .or_default()
                        .insert(weir.to_owned(), best);
                }
            }
        }
        Baseline {
            machine: report.machine.clone(),
            ratios,
        }
    }

    /// The committed one, or none if there is no file.
    pub fn read(path: &Path) -> Result<Option<Baseline>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let baseline = serde_json::from_str(&text)
            .with_context(|| format!("{} is no baseline", path.display()))?;
        Ok(Some(baseline))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Every ratio that this run has too, as it was and as it is.
    pub fn compare(&self, report: &Report) -> Vec<Move> {
        let mut moves = Vec::new();
        for table in &report.tables {
            let Some(rows) = self.ratios.get(table.mode.name()) else {
                continue;
            };
            for (row, weirs) in rows {
                for (weir, before) in weirs {
                    moves.extend(compare(table, row, weir, before));
                }
            }
        }
        moves
    }
}

/// A ratio then and now: against the same peer, judged the same way.
#[derive(Clone, Debug)]
pub struct Move {
    pub name: String,
    pub before: Ratio,
    pub now: Ratio,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    Same,
}

fn compare(table: &Table, name: &str, weir: &str, before: &Ratio) -> Option<Move> {
    let row = rows::named(name)?;
    let measured = table.rows.iter().find(|measured| measured.row == name)?;
    let now = judge::against(&row, measured, weir, &before.against, before.per_cpu)?;
    Some(Move {
        name: format!("{} {name} {weir}", table.mode.name()),
        verdict: verdict(before, &now),
        before: before.clone(),
        now,
    })
}

/// Moved means that the ranges of the rounds do not meet, and are some way apart.
fn verdict(before: &Ratio, now: &Ratio) -> Verdict {
    if now.ratio.high < before.ratio.low * (1.0 - TOLERANCE) {
        Verdict::Worse
    } else if now.ratio.low > before.ratio.high * (1.0 + TOLERANCE) {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

/// What the comparison says, for people.
pub fn text(moves: &[Move]) -> String {
    let mut text =
        String::from("\n## Against the baseline\n\n| row | then | now | |\n|---|---:|---:|---|\n");
    for one in moves {
        let verdict = match one.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "**worse**",
            Verdict::Same => "",
        };
        let (then, now) = (one.before.ratio.median, one.now.ratio.median);
        text += &format!(
            "| {} / {} | {then:.2} | {now:.2} | {verdict} |\n",
            one.name, one.now.against
        );
    }
    let worse = moves.iter().filter(|m| m.verdict == Verdict::Worse).count();
    text += &match worse {
        0 => "\nNothing is worse beyond the noise.\n".to_owned(),
        n => format!("\n{n} worse beyond the noise.\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Spread;

    fn ratio(low: f64, median: f64, high: f64) -> Ratio {
        Ratio {
            against: "peer".into(),
            ratio: Spread { median, low, high },
            per_cpu: false,
        }
    }

    #[test]
    fn a_ratio_moved_when_its_range_left_the_old_one_by_more_than_the_tolerance() {
        let before = ratio(1.0, 1.1, 1.2);
        for (now, expected) in [
            (ratio(0.8, 0.9, 0.94), Verdict::Worse),
            (ratio(0.8, 0.9, 0.96), Verdict::Same),
            (ratio(1.0, 1.1, 1.2), Verdict::Same),
            (ratio(1.25, 1.3, 1.4), Verdict::Same),
            (ratio(1.27, 1.3, 1.4), Verdict::Better),
        ] {
            assert_eq!(verdict(&before, &now), expected, "{now:?}");
        }
    }

    #[test]
    fn the_text_names_what_is_worse() {
        let one = Move {
            name: "isolate rr64 weir".into(),
            before: ratio(1.0, 1.1, 1.2),
            now: ratio(0.5, 0.6, 0.7),
            verdict: Verdict::Worse,
        };
        let text = text(&[one]);
        assert!(text.contains("| isolate rr64 weir / peer | 1.10 | 0.60 | **worse** |"));
        assert!(text.contains("1 worse beyond the noise"));
    }
}
