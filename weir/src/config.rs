//! `weir config schema` and `weir config show`.

use std::process::ExitCode;

use clap::CommandFactory;
use clap::parser::ValueSource;

use crate::cli::{Cli, ConfigCommand};
use crate::settings;

pub fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Schema => print!("{}", settings::schema()),
        ConfigCommand::Show(args) => {
            let file = settings::load(args.config.as_deref())?;
            let matches = Cli::command().get_matches();
            let show = matches
                .subcommand_matches("config")
                .and_then(|matches| matches.subcommand_matches("show"));
            let is_flag = |id: &str| {
                show.and_then(|show| show.value_source(id)) == Some(ValueSource::CommandLine)
            };
            print!("{}", settings::show(&args.layer, &file, is_flag));
        }
    }
    Ok(ExitCode::SUCCESS)
}
