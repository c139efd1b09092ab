//! A directory's files as one value, and what changed between two of them (PURE).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::Problem;
use super::file::{self, File, Name};
use crate::object::{Event, Kind, Object};

/// The kinds that a directory lists. Their order is that of the events.
pub const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

/// What is in use of every file. Files are in order of their names: of two objects of one name
/// that of the first file is used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// By file.
    pub files: BTreeMap<Arc<PathBuf>, File>,
    /// What is wrong with the directory as a whole.
    pub problems: Vec<Problem>,
    /// The directory was listed at least once.
    pub listed: bool,
}

impl Scan {
    /// The objects in use, each name once.
    pub fn objects(&self) -> BTreeMap<&Name, &Object> {
        let mut objects = BTreeMap::new();
        for (name, object) in self.files.values().flat_map(|file| &file.objects) {
            objects.entry(name).or_insert(object);
        }
        objects
    }

    /// Everything there is to say: the directory's problems, the files' own, and objects that
    /// stand in two files.
    pub fn all_problems(&self) -> Vec<Problem> {
        let mut problems = self.problems.clone();
        let mut seen: BTreeMap<&Name, &Object> = BTreeMap::new();
        for file in self.files.values() {
            problems.extend(file.problems.iter().cloned());
            for (name, object) in &file.objects {
                if let Some(first) = seen.get(name) {
                    problems.push(file::duplicate(object, first));
                } else {
                    seen.insert(name, object);
                }
            }
        }
        problems
    }
}

/// What a consumer that saw `old` has to hear to know `new`: nothing if nothing changed, else every
/// object, as a list. A directory cannot say that an object was deleted on purpose, so no deletion
/// is ever sent: `cluster` judges what is missing from the list.
pub fn diff(old: &Scan, new: &Scan) -> Vec<Event> {
    if !new.listed {
        return Vec::new();
    }
    let objects = new.objects();
    if old.listed && old.objects() == objects {
        return Vec::new();
    }
    // The lists of all kinds overlap, so that whoever judges the Services that are missing from
    // theirs can still keep the EndpointSlices that vanished with them.
    let begin = KINDS.into_iter().map(Event::Init);
    let apply = objects.into_values().cloned().map(Event::Apply);
    let end = KINDS.into_iter().map(Event::InitDone);
    begin.chain(apply).chain(end).collect()
}
