//! How Weir stands against the others in a row. PURE.

use serde::{Deserialize, Serialize};

use crate::cli::Mode;
use crate::figures::Spread;
use crate::measure::Sample;
use crate::rows::{Metric, Row};
use crate::run::Measured;

/// A CPU that is less in use than this was not the limit: the load was.
pub const BUSY: f64 = 0.9;

/// One variant against another: above 1 it is better, whatever the row's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Whom it is compared with.
    pub against: String,
    /// The ratio of the medians, and the lowest and highest of a single round.
    pub ratio: Spread,
    /// The row is judged by the work per second of the load balancer's CPU.
    pub per_cpu: bool,
}

/// `label` against the best of `rivals` that took part.
pub fn against_best(
    mode: Mode,
    row: &Row,
    measured: &Measured,
    label: &str,
    rivals: &[&str],
) -> Option<Ratio> {
    let per_cpu = judged_per_cpu(mode, row, measured, label, rivals);
    let mut all: Vec<Ratio> = rivals
        .iter()
        .filter_map(|rival| against(row, measured, label, rival, per_cpu))
        .collect();
    all.sort_by(|a, b| a.ratio.median.total_cmp(&b.ratio.median));
    all.into_iter().next()
}

/// Does somebody in this row leave the load balancer's CPU more than a tenth idle? Then rates
/// say what the load can do.
fn judged_per_cpu(
    mode: Mode,
    row: &Row,
    measured: &Measured,
    label: &str,
    rivals: &[&str],
) -> bool {
    mode == Mode::Isolate
        && matches!(row.metric, Metric::Rate | Metric::Bulk)
        && rivals
            .iter()
            .chain([&label])
            .filter_map(|label| median(measured, label, |s| s.lb_used))
            .any(|used| used < BUSY)
}

/// `label` against `rival`, per CPU or by the row's own figure.
pub fn against(
    row: &Row,
    measured: &Measured,
    label: &str,
    rival: &str,
    per_cpu: bool,
) -> Option<Ratio> {
    let figure = |sample: &Sample| {
        if per_cpu {
            sample.cpu_each
        } else {
            sample.value
        }
    };
    let rising = !per_cpu && row.metric.higher_is_better();
    let quotient = |own: f64, other: f64| {
        let (above, below) = if rising { (own, other) } else { (other, own) };
        (below > 0.0).then(|| above / below)
    };
    let rounds: Vec<f64> = samples(measured, label)
        .iter()
        .filter_map(|own| {
            let same = |other: &&Sample| other.round == own.round;
            let other = samples(measured, rival).iter().find(same)?;
            quotient(figure(own), figure(other))
        })
        .collect();
    let of_rounds = Spread::of(&rounds)?;
    let median = quotient(
        median(measured, label, figure)?,
        median(measured, rival, figure)?,
    )?;
    Some(Ratio {
        against: rival.to_owned(),
        ratio: Spread {
            median,
            low: of_rounds.low.min(median),
            high: of_rounds.high.max(median),
        },
        per_cpu,
    })
}

/// The median of `figure` over the rounds of one variant.
pub fn median(measured: &Measured, label: &str, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
    spread(measured, label, figure).map(|spread| spread.median)
}

/// Median and range of `figure` over the rounds of one variant.
pub fn spread(measured: &Measured, label: &str, figure: impl Fn(&Sample) -> f64) -> Option<Spread> {
    let values: Vec<f64> = samples(measured, label).iter().map(figure).collect();
    Spread::of(&values)
}

fn samples<'a>(measured: &'a Measured, label: &str) -> &'a [Sample] {
    measured.samples.get(label).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value, CPU of each operation, and how busy the CPU was.
    type Round = (f64, f64, f64);

    fn measured(all: &[(&str, &[Round])]) -> Measured {
        let samples = all
            .iter()
            .map(|(label, rounds)| {
                let rounds = rounds.iter().enumerate();
                let samples = rounds.map(|(round, &(value, cpu_each, lb_used))| Sample {
                    round,
                    value,
                    cpu_each,
                    lb_used,
                    ..Sample::default()
                });
                (label.to_string(), samples.collect())
            })
            .collect();
        Measured {
            row: String::new(),
            samples,
            failures: Vec::new(),
        }
    }

    fn row(name: &str) -> Row {
        let all = crate::rows::all();
        all.into_iter().find(|row| row.name == name).expect("a row")
    }

    #[test]
    fn a_busy_row_is_judged_by_its_rate_against_the_best() {
        let found = measured(&[
            (
                "weir",
                &[(120.0, 9.0, 1.0), (130.0, 9.0, 1.0), (110.0, 9.0, 1.0)],
            ),
            ("slow", &[(50.0, 20.0, 1.0); 3]),
            (
                "fast",
                &[
                    (100.0, 10.0, 0.95),
                    (100.0, 10.0, 0.95),
                    (110.0, 10.0, 0.95),
                ],
            ),
        ]);
        let best = against_best(
            Mode::Isolate,
            &row("rr64"),
            &found,
            "weir",
            &["slow", "fast", "absent"],
        );
        let best = best.expect("all there");
        assert_eq!((best.against.as_str(), best.per_cpu), ("fast", false));
        assert_eq!(
            (best.ratio.median, best.ratio.low, best.ratio.high),
            (1.2, 1.0, 1.3)
        );
    }

    #[test]
    fn a_row_that_the_load_limits_is_judged_per_cpu() {
        let found = measured(&[
            ("weir", &[(100.0, 5.0, 0.5)]),
            ("peer", &[(100.0, 10.0, 1.0)]),
        ]);
        let by = |mode| against_best(mode, &row("bulk8-down"), &found, "weir", &["peer"]);
        let isolate = by(Mode::Isolate).expect("both there");
        assert_eq!((isolate.ratio.median, isolate.per_cpu), (2.0, true));
        let spread = by(Mode::Spread).expect("both there");
        assert_eq!((spread.ratio.median, spread.per_cpu), (1.0, false));
    }

    #[test]
    fn less_is_better_for_times_and_memory() {
        let found = measured(&[("weir", &[(50.0, 0.0, 0.0)]), ("peer", &[(75.0, 0.0, 0.0)])]);
        for name in ["one64", "idle4k"] {
            let ratio = against_best(Mode::Isolate, &row(name), &found, "weir", &["peer"]);
            assert_eq!(ratio.expect("both there").ratio.median, 1.5);
        }
    }

    #[test]
    fn rounds_pair_by_number_and_nothing_follows_from_nobody() {
        let mut found = measured(&[
            ("weir", &[(10.0, 0.0, 1.0), (20.0, 0.0, 1.0)]),
            ("peer", &[(10.0, 0.0, 1.0)]),
        ]);
        found.samples.get_mut("peer").expect("peer")[0].round = 1;
        let ratio = against(&row("rr64"), &found, "weir", "peer", false).expect("both there");
        assert_eq!(ratio.ratio.high, 2.0);
        assert_eq!(against(&row("rr64"), &found, "weir", "absent", false), None);
    }
}
