//! `weir version`: what this build is, and what of it this machine lets run.

use std::process::ExitCode;

use lb_core::plane::{Driver, Engine, Finding, Probe, choose};
use serde_json::{Value, json};

use crate::cli::{Output, VersionArgs};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    match args.output {
        Output::Text => println!("weir {VERSION}"),
        Output::Json => {
            let kernel = rustix::system::uname();
            let probe = Probe::run();
            let value = json!({
                "name": "weir",
                "version": VERSION,
                "commit": option_env!("WEIR_COMMIT").unwrap_or("unknown"),
                "architecture": std::env::consts::ARCH,
                "kernel": kernel.release().to_string_lossy(),
                "engine": auto(&probe),
                "engines": Driver::ALL.map(|driver| engine(driver, &probe)),
                "probe": found(&probe),
            });
            println!("{value}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--engine auto` would run here.
fn auto(probe: &Probe) -> Value {
    match choose(Engine::Auto, probe) {
        Ok(chosen) => json!({ "name": chosen.driver.label(), "why": chosen.why }),
        Err(error) => json!({ "name": null, "why": error.to_string() }),
    }
}

/// Can `--engine` ask for this one here?
fn engine(driver: Driver, probe: &Probe) -> Value {
    let asked = match driver {
        Driver::IoUring => Engine::IoUring,
        Driver::Epoll => Engine::Epoll,
    };
    let name = driver.label();
    match choose(asked, probe) {
        Ok(_) => json!({ "name": name, "available": true }),
        Err(error) => json!({ "name": name, "available": false, "why": error.to_string() }),
    }
}

/// Everything that was tried.
pub fn found(probe: &Probe) -> Vec<Value> {
    let all = probe.io_uring.iter().chain(&probe.optional);
    let entry = |finding: &Finding| match &finding.lack {
        None => json!({ "name": finding.name, "available": true }),
        Some(lack) => json!({
            "name": finding.name,
            "available": false,
            "errno": lack.errno,
            "why": lack.to_string(),
        }),
    };
    all.map(entry).collect()
}
