//! `weir serve`.
use crate::cli::ServeArgs;
use crate::settings::{self, Settings};
use crate::telemetry::Telemetry;
use std::process::ExitCode;
pub fn run(args: Box<ServeArgs>) -> anyhow::Result<ExitCode> {
    let file = settings::load(args.config.as_deref())?;
    let settings = Settings::new(args.layer, file);
    let t = Telemetry::start(settings.log_format, &settings.log)?;
    tracing::info!(x = 1, "hello {:?}", settings);
    println!("{}", t.dropped().count());
    Ok(ExitCode::SUCCESS)
}
