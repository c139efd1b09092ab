//! Where an annotation stands: its file is read once more, when somebody asks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use controlplane::object::Location;
use controlplane::source::file::place_of_annotation;

/// The texts of the files that were asked about.
#[derive(Default)]
pub struct Places(BTreeMap<Arc<PathBuf>, Option<String>>);

impl Places {
    /// Where `annotation` of the object that stands at `object` is; none if its file cannot be read any
    /// more.
    pub fn of(&mut self, object: Option<&Location>, annotation: &str) -> Option<Location> {
        let object = object?;
        let file = Arc::clone(&object.file);
        let text = self.0.entry(file);
        let text = text.or_insert_with(|| fs::read_to_string(&*object.file).ok());
        Some(place_of_annotation(text.as_deref()?, object, annotation))
    }
}
