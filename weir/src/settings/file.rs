//! The settings file: one YAML document, read whole, every error with its place.

use std::fs;
use std::path::Path;

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

use super::layer::Layer;
use super::problem::{Problem, near};

/// Bytes of a settings file that are read at most. Ten pools and every setting are below 4 KiB.
const SIZE_LIMIT: u64 = 1024 * 1024;

/// Reads the file at `path`; no path is an empty layer.
///
/// # Errors
///
/// The file cannot be read, or says something that is no setting.
pub fn load(path: Option<&Path>) -> Result<Layer, Problem> {
    let Some(path) = path else {
        return Ok(Layer::default());
    };
    let name = path.display().to_string();
    let unreadable =
        |error: std::io::Error| Problem::unlocated(&name, &format!("cannot be read: {error}"));
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > SIZE_LIMIT {
        return Err(Problem::unlocated(
            &name,
            "is larger than 1 MiB: no settings file is",
        ));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    parse(&name, &text)
}

/// Reads `text`, which stands in the file `name`.
///
/// # Errors
///
/// With line, column and excerpt; an unknown key with the near one that may be meant.
pub fn parse(name: &str, text: &str) -> Result<Layer, Problem> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Layer::default());
    }
    serde_saphyr::from_str(text).map_err(|error| locate(name, text, &error))
}

fn locate(name: &str, text: &str, error: &Error) -> Problem {
    let error = error.without_snippet();
    let message = match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => match near(field, expected) {
            Some(near) => format!("unknown setting {field:?}; did you mean {near:?}?"),
            None => format!("unknown setting {field:?}; `weir config schema` lists what there is"),
        },
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => match near(variant, expected) {
            Some(near) => format!("{variant:?} is not possible here; did you mean {near:?}?"),
            None => format!(
                "{variant:?} is not possible here; write one of {}",
                expected.join(", ")
            ),
        },
        other => without_place(&UserMessageFormatter.format_message(other)).to_owned(),
    };
    match error.location() {
        Some(place) => Problem::located(name, text, place.line(), place.column(), &message),
        None => Problem::unlocated(name, &message),
    }
}

/// The parser's message without the place that it ends with: ours is said before it.
fn without_place(message: &str) -> &str {
    match message.rsplit_once(" at line ") {
        Some((before, place))
            if place
                .replace(", column ", "")
                .chars()
                .all(|c| c.is_ascii_digit()) =>
        {
            before
        }
        _ => message,
    }
}
