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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::SourceId;
    use crate::source::parse::Reader;

    fn service(name: &str, port: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    }

    /// A directory of these files.
    fn scan(files: &[(&str, String)]) -> Scan {
        let mut reader = Reader::new(SourceId(0), Arc::default());
        let mut scan = Scan {
            listed: true,
            ..Scan::default()
        };
        for (name, text) in files {
            let path = Arc::new(PathBuf::from(name));
            let file = File::read(&path, text.as_bytes(), &mut reader, None);
            scan.files.insert(path, file);
        }
        scan
    }

    fn shown(events: &[Event]) -> Vec<String> {
        let show = |event: &Event| match event {
            Event::Init(kind) => format!("init {kind:?}"),
            Event::Apply(object) => format!("apply {}", object.key()),
            Event::Delete(key) => format!("delete {key}"),
            Event::InitDone(kind) => format!("done {kind:?}"),
            Event::Unavailable(kind) => format!("no {kind:?}"),
        };
        events.iter().map(show).collect()
    }

    #[test]
    fn a_directory_that_was_never_listed_says_nothing() {
        let nothing = Scan::default();
        assert!(diff(&nothing, &nothing).is_empty());
    }

    #[test]
    fn an_empty_directory_is_a_complete_list() {
        let events = diff(&Scan::default(), &scan(&[]));
        assert_eq!(
            shown(&events),
            [
                "init Service",
                "init EndpointSlice",
                "init Node",
                "done Service",
                "done EndpointSlice",
                "done Node"
            ]
        );
    }

    #[test]
    fn a_change_is_a_list_and_no_change_is_nothing() {
        let before = scan(&[("a.yaml", service("a", 80)), ("b.yaml", service("b", 80))]);
        assert!(diff(&before, &before.clone()).is_empty());
        let moved = scan(&[
            ("a.yaml", format!("# moved\n{}", service("a", 80))),
            ("b.yaml", service("b", 80)),
        ]);
        assert!(diff(&before, &moved).is_empty(), "a place is no content");
        let after = scan(&[("b.yaml", service("b", 81))]);
        let events = shown(&diff(&before, &after));
        assert_eq!(events.len(), 7);
        assert_eq!(events[3], "apply default/b");
        assert!(!events.iter().any(|event| event.starts_with("delete")));
    }

    #[test]
    fn the_first_file_wins_and_both_are_named() {
        let twice = scan(&[("2.yaml", service("a", 82)), ("1.yaml", service("a", 81))]);
        let objects = twice.objects();
        let Some(Object::Service(used)) = objects.into_values().next() else {
            panic!("not read");
        };
        assert_eq!(used.ports[0].port.get(), 81);
        let said: Vec<String> = twice
            .all_problems()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "2.yaml:2:1: Service default/a is also defined in 1.yaml:2:1, which is used; remove one of the two"
            ]
        );
    }
}
