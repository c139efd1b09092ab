//! An error with its place: `file:line:column: message`, and the line itself with a mark.

use std::fmt;

/// What is wrong in a file, and where. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    text: String,
}

/// Characters of a line that an excerpt shows.
const EXCERPT_WIDTH: usize = 120;

impl Problem {
    /// A problem of the file as a whole.
    pub fn unlocated(file: &str, message: &str) -> Problem {
        Problem {
            text: format!("{file}: {message}"),
        }
    }

    /// A problem at one place of `source`, the file's text.
    pub fn located(file: &str, source: &str, line: u64, column: u64, message: &str) -> Problem {
        let mut text = format!("{file}:{line}:{column}: {message}");
        let index = usize::try_from(line)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        if let Some(found) = source.lines().nth(index) {
            text.push_str(&excerpt(found, line, column));
        }
        Problem { text }
    }
}

fn excerpt(line: &str, number: u64, column: u64) -> String {
    // Control characters of a hostile file do not reach the terminal.
    let shown: String = line
        .chars()
        .take(EXCERPT_WIDTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let column = usize::try_from(column)
        .unwrap_or(usize::MAX)
        .saturating_sub(1);
    let mut text = format!("\n  {number} | {shown}");
    if column < EXCERPT_WIDTH {
        let margin = number.to_string().len();
        text.push_str(&format!("\n  {:margin$} | {:column$}^", "", ""));
    }
    text
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Problem {}

/// The one of `known` that `word` is most likely meant to be, if any is near.
pub fn near<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let squeeze = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let wanted = squeeze(word);
    let scored = known.iter().map(|name| {
        let score = strsim::jaro_winkler(&wanted, &squeeze(name));
        (score, *name)
    });
    // Jaro-Winkler of two unrelated setting names stays below 0.75; of one typo it is above 0.9.
    scored
        .filter(|(score, _)| *score > 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
