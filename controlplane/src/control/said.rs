//! What the sources say of what they read, and what that means for single Services. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::reason::Reason;
use crate::source::{Level, Problem};

/// The files and directories of which nothing is wrong any more, and what was.
pub(super) fn solved<'a>(before: &'a [Problem], now: &[Problem]) -> BTreeMap<&'a Path, &'a str> {
    fn path(problem: &Problem) -> Option<&Path> {
        (problem.level != Level::Note).then_some(&**problem.location.file)
    }
    let still: BTreeSet<_> = now.iter().filter_map(path).collect();
    let before = before
        .iter()
        .filter_map(|problem| Some((path(problem)?, &*problem.message)));
    before.filter(|(path, _)| !still.contains(path)).collect()
}

/// What a problem means for an object that has a last good version.
pub(super) fn stale(said: &Problem) -> Reason {
    let problem = said.to_string().into();
    match said.duplicate {
        true => Reason::DuplicateObject { problem },
        false => Reason::StaleObject { problem },
    }
}

/// And for the Service that uses it, whether it has one or not.
pub(super) fn stale_slice(said: &Problem) -> Reason {
    let Some(slice) = said.object.as_ref().filter(|_| !said.duplicate) else {
        return stale(said);
    };
    let Problem {
        location, message, ..
    } = said;
    Reason::StaleObject {
        problem: format!("{location}: EndpointSlice {slice}: {message}").into(),
    }
}

/// And for one that has none.
pub(super) fn malformed(problem: &Problem) -> Reason {
    Reason::Malformed {
        problem: problem.to_string().into(),
    }
}
