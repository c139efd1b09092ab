//! Where objects come from. A source turns what it watches into [`Event`](crate::object::Event)s
//! and hands them on over one bounded channel; it decides nothing.
//!
//! - `text` and `place`: text -> JSON values with their places (only they know the YAML parser);
//! - `field`: typed, bounded reading of one JSON value, with the path of what is wrong;
//! - `parse`: JSON value -> [`Object`](crate::object::Object), the same for every source;
//! - `file`: one file's text -> objects and problems;
//! - `scan`: a directory's files as a value; what changed between two (PURE);
//! - `directory`: the thin I/O around it;
//! - `kubernetes`: an API server.
//!
//! Everything read here is hostile: it is bounded, never a panic, and one bad object spoils no
//! other.

pub mod directory;
mod field;
pub mod file;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod kubernetes;
pub mod parse;
mod place;
pub mod scan;
mod text;

pub use field::{FieldError, FieldProblem, JsonPath};

use std::fmt;

use crate::object::{Key, Location};

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something was left out on purpose, an object of a kind that is not read.
    Note,
    /// What should be read cannot be: nobody's mistake in an object.
    Outage,
    /// Something is not as its writer wants it.
    Error,
}

/// Something a source has to say about what it reads. The list of all of them is replaced with
/// every scan: a problem that is gone was solved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// How bad it is.
    pub level: Level,
    /// Where. Line and column are 1 if it is the file or directory as a whole; 0 if it is no file
    /// but a path on an API server.
    pub location: Location,
    /// The object in question, as far as its name can be read.
    pub object: Option<Key>,
    /// The Service that uses the object in question, if that is an EndpointSlice; without uid, which
    /// a slice does not say.
    pub service: Option<Key>,
    /// Another object of the same name is used instead.
    pub duplicate: bool,
    /// What is wrong and what happens now, on one line.
    pub message: String,
    /// The lines of the source around the place; empty for a file as a whole.
    pub excerpt: String,
}

impl fmt::Display for Problem {
    /// `FILE:LINE:COLUMN: MESSAGE`, without the excerpt; `PATH: MESSAGE` of a file or directory as
    /// a whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Location { file, line, column } = &self.location;
        let is_whole = self.object.is_none() && self.excerpt.is_empty();
        if is_whole && (*line, *column) == (1, 1) {
            return write!(f, "{}: {}", file.display(), self.message);
        }
        write!(f, "{}: {}", self.location, self.message)
    }
}
