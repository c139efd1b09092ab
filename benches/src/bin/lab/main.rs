//! The comparison bench: Weir beside other load balancers, with the CPU counted.
//!
//! A run makes three network namespaces per variant ([`net`]), starts a variant and the load tool
//! ([`peers`], [`load`]) for each measurement ([`measure`]), and repeats all rows ([`rows`]) for all
//! variants in rounds ([`run`]). [`meter`] says what the CPUs did; [`report`] writes it down.
//! `benches/README.md` tells the method.

mod cli;
mod figures;
mod host;
mod judge;
mod load;
mod measure;
mod memory;
mod meter;
mod net;
mod peers;
mod report;
mod rows;
mod run;
mod stop;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;

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
    let args = cli::Args::parse();
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root: sudo make bench"
    );
    let stop = stop::Stop::listen()?;
    let report = run::run(&args, &stop)?;
    let text = report::markdown(&report);
    println!("{text}");
    report::write(&report, &text, &args.out)?;
    Ok(ExitCode::SUCCESS)
}
