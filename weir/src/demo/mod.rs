//! `weir demo`.
use crate::cli::DemoArgs;
use std::process::ExitCode;
pub fn run(_args: DemoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built")
}
