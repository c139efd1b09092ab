//! The whole run: rounds over rows over variants, so that each row's variants are measured within
//! seconds of each other and the machine's drift meets all of them alike.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cli::{Args, Mode};
use crate::figures::short;
use crate::host::{Machine, Settings};
use crate::measure::{Bench, Sample};
use crate::meter::Meter;
use crate::net::Topology;
use crate::peers::{self, Variant};
use crate::rows::{self, Row};
use crate::stop::Stop;

/// Everything that a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub machine: Machine,
    pub seconds: f64,
    pub rounds: usize,
    /// In the order of the tables.
    pub variants: Vec<Column>,
    /// Who could not take part, and why.
    pub absent: Vec<String>,
    pub tables: Vec<Table>,
}

impl Report {
    /// The labels of some variants, in the order of the tables.
    pub fn labels(&self, which: impl Fn(&Column) -> bool) -> Vec<&str> {
        let columns = self.variants.iter().filter(|column| which(column));
        columns.map(|column| column.label.as_str()).collect()
    }
}

/// One variant that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Column {
    pub label: String,
    /// What its program says about itself.
    pub version: String,
    pub is_weir: bool,
    /// A proxy that terminates connections, and is not Weir.
    pub is_rival: bool,
}

/// The rows of one mode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    pub mode: Mode,
    pub rows: Vec<Measured>,
}

/// One row: for each variant by its label, a sample per round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub row: String,
    pub samples: BTreeMap<String, Vec<Sample>>,
    /// Who failed, and how.
    pub failures: Vec<String>,
}

/// Measures what `args` ask for.
pub fn run(args: &Args, stop: &Stop) -> Result<Report> {
    crate::net::sweep();
    let machine = Machine::look();
    let _settings = Settings::apply(stop)?;
    let meter = Meter::start(2)?;
    let asked = if args.peers.is_empty() {
        peers::all()
    } else {
        args.peers.clone()
    };
    let (mut variants, mut columns, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for variant in asked {
        match variant.available(&args.weir) {
            Ok(version) => {
                columns.push(Column {
                    label: variant.label.clone(),
                    version,
                    is_weir: variant.is_weir(),
                    is_rival: variant.is_rival(),
                });
                variants.push(variant);
            }
            Err(reason) => {
                eprintln!("without {variant}: {reason}");
                absent.push(format!("{variant}: {reason}"));
            }
        }
    }
    let bench = Bench {
        meter: &meter,
        stop,
        weir: &args.weir,
        warmup: Duration::from_secs_f64(args.warmup),
        time: Duration::from_secs_f64(args.seconds),
        during: args.during.as_deref(),
    };
    look_around(&bench)?;
    let mut tables = Vec::new();
    for &mode in &args.mode {
        let rows = rows::select(&args.tests, mode).map_err(anyhow::Error::msg)?;
        tables.push(table(&bench, args, mode, &rows, &variants)?);
    }
    Ok(Report {
        machine,
        seconds: args.seconds,
        rounds: args.rounds,
        variants: columns,
        absent,
        tables,
    })
}

/// Says so if the machine does something else.
fn look_around(bench: &Bench<'_>) -> Result<()> {
    let before = bench.meter.read();
    bench.stop.sleep(Duration::from_millis(500))?;
    let used = bench.meter.read().used_since(&before);
    if used.iter().any(|&used| used > 0.1) {
        let used: Vec<String> = used.iter().map(|u| format!("{:.0} %", u * 100.0)).collect();
        eprintln!(
            "the machine is not quiet: {} of its CPUs are in use without us; compare ratios only",
            used.join(" and ")
        );
    }
    Ok(())
}

fn table(
    bench: &Bench<'_>,
    args: &Args,
    mode: Mode,
    rows: &[Row],
    variants: &[Variant],
) -> Result<Table> {
    let mut measured: Vec<Measured> = rows
        .iter()
        .map(|row| Measured {
            row: row.name.into(),
            samples: BTreeMap::new(),
            failures: Vec::new(),
        })
        .collect();
    let topologies = variants
        .iter()
        .map(|_| {
            let topology = Topology::new(mode, args.nice)?;
            topology.use_cubic()?;
            Ok(topology)
        })
        .collect::<Result<Vec<Topology>>>()?;
    for round in 1..=args.rounds {
        for (row, measured) in rows.iter().zip(&mut measured) {
            for (variant, topology) in variants.iter().zip(&topologies) {
                if !variant.takes_part(row) {
                    continue;
                }
                one(
                    bench,
                    row,
                    variant,
                    topology,
                    measured,
                    (round, args.rounds),
                )?;
            }
        }
    }
    Ok(Table {
        mode,
        rows: measured,
    })
}

fn one(
    bench: &Bench<'_>,
    row: &Row,
    variant: &Variant,
    topology: &Topology,
    measured: &mut Measured,
    (round, rounds): (usize, usize),
) -> Result<()> {
    let head = format!(
        "{:<8} {round}/{rounds} {:<12} {:<22}",
        topology.mode.name(),
        row.name,
        variant.label
    );
    match bench.measure(row, variant, topology) {
        Ok(mut sample) => {
            sample.round = round;
            eprintln!("{head} {}", line(row, &sample));
            let all = measured.samples.entry(variant.label.clone()).or_default();
            all.push(sample);
        }
        Err(error) => {
            // Asked to end: the caller takes everything down.
            bench.stop.sleep(Duration::ZERO)?;
            let error = format!("{error:#}").replace('\n', "; ");
            eprintln!("{head} failed: {error}");
            measured.failures.push(format!("round {round}: {error}"));
        }
    }
    Ok(())
}

/// A sample as one line of progress.
fn line(row: &Row, sample: &Sample) -> String {
    let mut text = format!("{:>8} {:<8}", short(sample.value), row.metric.unit());
    if sample.lb_used > 0.0 {
        text += &format!(
            " cpu {:>7} {}, lb {:>3.0} % load {:>3.0} %",
            short(sample.cpu_each),
            cpu_unit(row),
            sample.lb_used * 100.0,
            sample.load_used * 100.0
        );
    }
    if sample.p99_us > 0.0 {
        text += &format!(
            ", p50 {} p99 {} us",
            short(sample.p50_us),
            short(sample.p99_us)
        );
    }
    for (count, what) in [(sample.lost, "lost"), (sample.errors, "errors")] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text
}

/// The unit of [`Sample::cpu_each`].
pub fn cpu_unit(row: &Row) -> &'static str {
    match row.metric {
        rows::Metric::Bulk => "ms/GiB",
        _ => "us/op",
    }
}
