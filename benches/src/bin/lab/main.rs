//! The comparison bench: Weir beside other load balancers, with the CPU counted.
//!
//! A run makes three network namespaces per variant ([`net`]), starts a variant and the load tool
//! ([`peers`], [`load`]) for each measurement ([`measure`]), and repeats all rows ([`rows`]) for all
//! variants in rounds ([`run`]). [`meter`] says what the CPUs did; [`report`] writes it down.
//! `benches/README.md` tells the method.

mod baseline;
mod cli;
mod figures;
mod goals;
mod host;
mod judge;
mod load;
mod measure;
mod memory;
mod meter;
mod net;
mod peers;
mod plot;
mod report;
mod rows;
mod run;
#[cfg(test)]
mod smoke;
mod stop;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use baseline::{Baseline, Verdict};
use clap::Parser;
use cli::Args;
use run::Report;

fn main() -> ExitCode {
    match lab() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn lab() -> Result<ExitCode> {
    let mut args = Args::parse();
    if args.quick {
        args.shorten();
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root: sudo make bench"
    );
    let stop = stop::Stop::listen()?;
    let report = run::run(&args, &stop)?;
    let mut text = report::markdown(&report);
    if !args.quick {
        text += &goals::markdown(&report);
    }
    let code = judge_by_baseline(&args, &report, &mut text)?;
    println!("{text}");
    report::write(&report, &text, &args.out)?;
    plot::write(&report, &args.out)?;
    if let Some(readme) = &args.readme {
        let pictures: String = report
            .tables
            .iter()
            .map(|table| table.mode.name())
            .map(|mode| format!("![{mode}](results/{mode}.svg)\n"))
            .collect();
        report::into_readme(readme, &format!("{pictures}\n{text}"))?;
    }
    Ok(code)
}

/// Compares the short form with the committed ratios, or writes them anew.
fn judge_by_baseline(args: &Args, report: &Report, text: &mut String) -> Result<ExitCode> {
    if args.write_baseline {
        Baseline::of(report).write(&args.baseline)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.quick {
        return Ok(ExitCode::SUCCESS);
    }
    let Some(baseline) = Baseline::read(&args.baseline)? else {
        *text += &format!("\nNo baseline at {}.\n", args.baseline.display());
        return Ok(ExitCode::SUCCESS);
    };
    let moves = baseline.compare(report);
    *text += &baseline::text(&moves);
    let worse = moves.iter().any(|one| one.verdict == Verdict::Worse);
    Ok(if worse && args.strict {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
