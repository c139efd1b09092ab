//! `weir version`.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::{Output, VersionArgs};

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    match args.output {
        Output::Text => println!("weir {VERSION}"),
        Output::Json => {
            let kernel = rustix::system::uname();
            let value = json!({
                "name": "weir",
                "version": VERSION,
                "commit": option_env!("WEIR_COMMIT").unwrap_or("unknown"),
                "architecture": std::env::consts::ARCH,
                "kernel": kernel.release().to_string_lossy(),
                "engines": ["epoll"],
            });
            println!("{value}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
