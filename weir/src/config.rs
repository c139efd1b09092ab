//! `weir config schema` and `weir config show`.

use std::process::ExitCode;

use crate::cli::ConfigCommand;
use crate::settings;

pub fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Schema => print!("{}", settings::schema()),
        ConfigCommand::Show(args) => {
            let file = settings::load(args.config.as_deref())?;
            print!("{}", settings::show(&args.layer, &file));
        }
    }
    Ok(ExitCode::SUCCESS)
}
