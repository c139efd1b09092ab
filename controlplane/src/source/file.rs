//! One file: its text -> the objects that stand in it, and what is wrong with the rest. Of a file
//! that was read before, the last good content is kept where the new one is refused: the whole of
//! it if the text does not parse, one object if only that object is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::field::{FieldError, Step};
use super::parse::{ObjectError, Reader};
use super::place::{Position, excerpt, locate};
use super::text::{self, Document, Format};
use super::{Level, Problem};
use crate::object::{Key, Kind, Location, Object};

/// Largest file that is read, in bytes. A dump of 100,000 endpoints has some 40 MiB.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most problems that are listed of one file.
const MAX_PROBLEMS: usize = 100;

/// Names an object within a source, whatever its uid.
pub type Name = (Kind, Arc<str>, Arc<str>);

/// The name of a key's object.
pub fn name_of(key: &Key) -> Name {
    (key.kind, Arc::clone(&key.namespace), Arc::clone(&key.name))
}

/// What is in use of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct File {
    /// SHA-256 of the content that was read last, good or bad; `None` if it could not be read.
    pub digest: Option<[u8; 32]>,
    /// The objects in use, each the last good one.
    pub objects: BTreeMap<Name, Object>,
    /// What is to say about it.
    pub problems: Vec<Problem>,
}

impl File {
    /// Reads `content`. `before` is what was in use of this file.
    pub fn read(
        path: &Arc<PathBuf>,
        content: &[u8],
        reader: &mut Reader,
        before: Option<&File>,
    ) -> File {
        let digest: [u8; 32] = Sha256::digest(content).into();
        if let Some(before) = before.filter(|before| before.digest == Some(digest)) {
            return before.clone();
        }
        let nothing = BTreeMap::new();
        let old = before.map_or(&nothing, |before| &before.objects);
        let mut reading = Reading::new(path, reader, old);
        match std::str::from_utf8(content) {
            Ok(text) => reading.text(text.trim_start_matches('\u{feff}')),
            Err(error) => {
                reading.unreadable(&format!(
                    "is not UTF-8 text from byte {}",
                    error.valid_up_to()
                ));
            }
        }
        reading.into_file(digest)
    }

    /// The file cannot be read at all: what was in use stays.
    pub fn unreadable(path: &Arc<PathBuf>, problem: &str, before: Option<&File>) -> File {
        let objects = before.map_or_else(BTreeMap::new, |before| before.objects.clone());
        let mut file = File {
            digest: None,
            objects,
            problems: Vec::new(),
        };
        file.problems
            .push(whole(path, keeping(problem, file.objects.len())));
        file
    }

    /// As `unreadable`, and not to be tried again before its content changes.
    pub fn broken(
        path: &Arc<PathBuf>,
        content: &[u8],
        problem: &str,
        before: Option<&File>,
    ) -> File {
        File {
            digest: Some(Sha256::digest(content).into()),
            ..File::unreadable(path, problem, before)
        }
    }
}

/// A problem of a file (or directory) as a whole.
pub(super) fn whole(path: &Arc<PathBuf>, message: String) -> Problem {
    Problem {
        level: Level::Error,
        location: place(path, Position::START),
        object: None,
        service: None,
        duplicate: false,
        message,
        excerpt: String::new(),
    }
}

fn place(path: &Arc<PathBuf>, at: Position) -> Location {
    Location {
        file: Arc::clone(path),
        line: at.line,
        column: at.column,
    }
}

/// Where in the text of its file the annotation `name` of the object at `object` stands, or as much of the
/// way there as there is.
pub fn place_of_annotation(text: &str, object: &Location, name: &str) -> Location {
    let at = Position {
        line: object.line,
        column: object.column,
    };
    let path = ["metadata", "annotations", name].map(|field| Step::Field(field.to_owned()));
    let text = text.trim_start_matches('\u{feff}');
    place(&object.file, locate(text, at, &path))
}

fn keeping(problem: &str, kept: usize) -> String {
    match kept {
        0 => problem.to_owned(),
        kept => format!("{problem}; its last good content ({kept} objects) stays in use"),
    }
}

/// A file that is being read.
struct Reading<'a> {
    path: &'a Arc<PathBuf>,
    reader: &'a mut Reader,
    old: &'a BTreeMap<Name, Object>,
    objects: BTreeMap<Name, Object>,
    problems: Vec<Problem>,
    unlisted: usize,
    skipped: BTreeMap<String, (usize, Position)>,
    /// An object was refused of which not even the name can be read.
    nameless: bool,
}

impl<'a> Reading<'a> {
    fn new(
        path: &'a Arc<PathBuf>,
        reader: &'a mut Reader,
        old: &'a BTreeMap<Name, Object>,
    ) -> Reading<'a> {
        Reading {
            path,
            reader,
            old,
            objects: BTreeMap::new(),
            problems: Vec::new(),
            unlisted: 0,
            skipped: BTreeMap::new(),
            nameless: false,
        }
    }

    fn text(&mut self, text: &str) {
        let json = self.path.extension().is_some_and(|ext| ext == "json");
        let format = if json { Format::Json } else { Format::Yaml };
        match text::decode(text, format) {
            Ok(documents) => {
                for document in &documents {
                    self.document(text, document);
                }
            }
            Err(error) => {
                self.objects.clone_from(self.old);
                let message = keeping(&error.message, self.old.len());
                self.problem(text, error.at, (None, None), message);
            }
        }
    }

    fn unreadable(&mut self, problem: &str) {
        self.objects.clone_from(self.old);
        let message = keeping(problem, self.old.len());
        self.problems.push(whole(self.path, message));
    }

    fn document(&mut self, text: &str, document: &Document) {
        let item_kind = match list_of(&document.value) {
            Some(item_kind) => item_kind,
            None => return self.object(text, &document.value, document.at),
        };
        let items = match document.value.get("items") {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => return,
            Some(_) => {
                self.nameless = true;
                let message = "items: is not a list".to_owned();
                return self.problem(text, document.at, (None, None), message);
            }
        };
        for (index, item) in items.iter().enumerate() {
            let at = document.items.get(index).copied().unwrap_or(document.at);
            match item_kind {
                // A typed list's items say no kind of their own (ServiceList from an API server).
                Some((api_version, kind)) if item.get("kind").is_none() && item.is_object() => {
                    let mut item = item.clone();
                    item["apiVersion"] = Value::from(api_version);
                    item["kind"] = Value::from(kind);
                    self.object(text, &item, at);
                }
                _ => self.object(text, item, at),
            }
        }
    }

    fn object(&mut self, text: &str, value: &Value, at: Position) {
        let location = place(self.path, at);
        match self.reader.object(value, Some(location)) {
            Ok(object) => self.keep(object),
            Err(ObjectError::Skipped { api_version, kind }) => {
                let unread = format!("{api_version} {kind}");
                self.skipped.entry(unread).or_insert((0, at)).0 += 1;
            }
            Err(ObjectError::Field(error)) => self.refuse(text, value, at, &error),
        }
    }

    fn keep(&mut self, object: Object) {
        let name = name_of(object.key());
        if let Some(first) = self.objects.get(&name) {
            let problem = duplicate(&object, first);
            self.push(problem);
            return;
        }
        // An object that did not change stays the very same, so that it costs nothing from here
        // on. Its place may be stale by that until it changes; so it is the same only at the same
        // place.
        let same = self
            .old
            .get(&name)
            .filter(|old| **old == object && old.location() == object.location());
        let object = same.cloned().unwrap_or(object);
        self.objects.insert(name, object);
    }

    fn refuse(&mut self, text: &str, value: &Value, at: Position, error: &FieldError) {
        let key = self.reader.key_of(value);
        let mut service = self.reader.service_of(value);
        let mut message = error.to_string();
        match &key {
            Some(key) => {
                let name = name_of(key);
                if let Some(old) = self.old.get(&name) {
                    message.push_str("; the last good version stays in use");
                    let old = old.clone();
                    // What is in use says whose it is.
                    if let Object::EndpointSlice(slice) = &old {
                        service = slice.service_key();
                    }
                    self.objects.entry(name).or_insert(old);
                }
            }
            None => self.nameless = true,
        }
        if self.problems.len() >= MAX_PROBLEMS {
            self.unlisted += 1;
            return;
        }
        let at = locate(text, at, &error.path.0);
        self.problem(text, at, (key, service), message);
    }

    /// `about`: the object, and the Service that uses it.
    fn problem(
        &mut self,
        text: &str,
        at: Position,
        about: (Option<Key>, Option<Key>),
        message: String,
    ) {
        let (object, service) = about;
        let excerpt = excerpt(text, at);
        self.push(Problem {
            level: Level::Error,
            location: place(self.path, at),
            object,
            service,
            duplicate: false,
            message,
            excerpt,
        });
    }

    fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.unlisted += 1;
        }
    }

    fn into_file(mut self, digest: [u8; 32]) -> File {
        if self.nameless {
            // Nobody knows which object that was: none may be taken for deleted.
            for (name, object) in self.old {
                self.objects
                    .entry(name.clone())
                    .or_insert_with(|| object.clone());
            }
        }
        for (unread, (count, at)) in std::mem::take(&mut self.skipped).into_iter().take(20) {
            self.problems.push(Problem {
                level: Level::Note,
                location: place(self.path, at),
                object: None,
                service: None,
                duplicate: false,
                message: format!("{unread} is not read here: {count} skipped"),
                excerpt: String::new(),
            });
        }
        if self.unlisted > 0 {
            let message = format!("{} more problems are not listed", self.unlisted);
            self.problems.push(whole(self.path, message));
        }
        File {
            digest: Some(digest),
            objects: self.objects,
            problems: self.problems,
        }
    }
}

/// `second` is left out because `first` has its name. Both places are named.
pub(super) fn duplicate(second: &Object, first: &Object) -> Problem {
    let unknown = || place(&Arc::default(), Position::START);
    let first_at = first.location().cloned().unwrap_or_else(unknown);
    let second_at = second.location().cloned().unwrap_or_else(unknown);
    let key = first.key();
    Problem {
        level: Level::Error,
        message: format!(
            "{} {key} is also defined in {first_at}, which is used; remove one of the two",
            kind_name(key.kind)
        ),
        location: second_at,
        object: Some(key.clone()),
        service: match first {
            Object::EndpointSlice(slice) => slice.service_key(),
            Object::Service(_) | Object::Node(_) | Object::LoadBalancer(_) => None,
        },
        duplicate: true,
        excerpt: String::new(),
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "Service",
        Kind::EndpointSlice => "EndpointSlice",
        Kind::Node => "Node",
        Kind::LoadBalancer => "LoadBalancer",
    }
}

/// apiVersion and kind that the entries of a typed list have.
type ItemKind = (&'static str, &'static str);

/// Is this a list, and of what? `Some(None)` for a `kind: List`, whose entries say it themselves.
fn list_of(value: &Value) -> Option<Option<ItemKind>> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("apiVersion")?, text("kind")?) {
        ("v1", "List") => Some(None),
        ("v1", "ServiceList") => Some(Some(("v1", "Service"))),
        ("v1", "NodeList") => Some(Some(("v1", "Node"))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => {
            Some(Some(("discovery.k8s.io/v1", "EndpointSlice")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
