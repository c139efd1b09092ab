//! Log lines. One line per change of state, JSON unless a person watches, and never a wait: what
//! the sink does not take is counted and dropped (`sink`).

mod json;
mod sink;

use std::io::IsTerminal;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::exit::Usage;
use crate::settings::LogFormat;
pub use sink::Dropped;
use sink::Sink;

/// Lines that wait for the sink at most: what a start with 2,000 Services says at once.
const QUEUE_LINES: usize = 4096;

/// The API server's client, as its log lines name it; mute unless asked for.
const CLIENT: &str = "kube_client";

/// The running log; kept until the end of the process.
#[derive(Debug)]
pub struct Telemetry {
    sink: Sink,
}

impl Telemetry {
    /// Starts to log to standard error, through a thread of its own.
    ///
    /// # Errors
    ///
    /// The filter does not parse, or a log was started before.
    pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<Telemetry> {
        let json = match format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stderr().is_terminal(),
        };
        let filter = parse_filter(filter).map_err(|error| Usage(format!("log filter: {error}")))?;
        let notice = if json { json::dropped } else { text_dropped };
        let sink = Sink::start(std::io::stderr(), QUEUE_LINES, notice)?;
        let builder = fmt().with_env_filter(filter).with_writer(sink.clone());
        let started = match json {
            true => builder.event_format(json::Json).try_init(),
            false => builder
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                .try_init(),
        };
        started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))?;
        Ok(Telemetry { sink })
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> Dropped {
        self.sink.dropped()
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        // The last lines, if the sink takes them; a blocked one does not hold the exit.
        self.sink.flush(Duration::from_millis(200));
    }
}

/// Reads which lines are wanted: levels, and `target=level` pairs, separated by commas.
///
/// # Errors
///
/// What is wrong and what is right. A bare word that is no level would be taken for a target, and
/// every other target would be mute: it is a mistake, too.
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    let words = text.split(',').map(str::trim);
    let mut bare =
        words.filter(|word| !word.is_empty() && !word.contains(['=', '[', ']', '{', '}']));
    if let Some(word) = bare.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(format!(
            "{word} is no level: error, warn, info, debug, trace, or target=level"
        ));
    }
    let filter = EnvFilter::try_new(text).map_err(|error| {
        format!("filter {text:?}: {error}; write for example info or weir=debug")
    })?;
    // It says every failed request once more, without an end; the source says what fails and when.
    Ok(
        match (text.contains(CLIENT), format!("{CLIENT}=off").parse()) {
            (false, Ok(mute)) => filter.add_directive(mute),
            _ => filter,
        },
    )
}

fn text_dropped(lines: u64) -> String {
    format!("WARN the log was blocked: {lines} lines were dropped\n")
}
