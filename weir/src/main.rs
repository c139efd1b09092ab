//! Weir, a userspace L4 load balancer for Kubernetes Services: the one binary, daemon and command
//! line.
//!
//! `main` parses the command line and hands over; every command returns its exit code (`exit`).
//! `serve` wires control plane, data plane and admin listener together and is the only place that
//! knows all three. `settings` reads one file, the environment and the flags into one value.
//! `check` judges files, `doctor` the machine, both without root. `telemetry` writes lines that
//! delay nobody.

mod check;
mod cli;
mod config;
mod demo;
mod doctor;
mod exit;
mod kubeconfig;
mod release;
mod serve;
mod settings;
mod telemetry;
mod version;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // clap itself ends with 2 for bad usage, and with 0 for help and version.
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Kubeconfig(args) => kubeconfig::run(&args),
        Command::Release(args) => release::run(&args),
        Command::Config(command) => config::run(command),
        Command::Version(args) => version::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weir: {error:#}");
        exit::of(&error)
    })
}
