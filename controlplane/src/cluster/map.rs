//! Objects of one kind by name, each with what the lists said of it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::object::{Key, SourceId};

/// An object's name in the store: its key without the kind, which is the map's, and without the
/// uid, which is the entry's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub source: SourceId,
    pub cluster: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl Id {
    pub fn of(key: &Key) -> Id {
        Id {
            source: key.source,
            cluster: Arc::clone(&key.cluster),
            namespace: Arc::clone(&key.namespace),
            name: Arc::clone(&key.name),
        }
    }

    /// The Service that a slice of this id belongs to.
    pub fn service(&self, name: &Arc<str>) -> Id {
        Id {
            name: Arc::clone(name),
            ..self.clone()
        }
    }

    /// The least id of a source.
    pub fn first_of(source: SourceId) -> Id {
        let empty: Arc<str> = Arc::default();
        Id {
            source,
            cluster: Arc::clone(&empty),
            namespace: Arc::clone(&empty),
            name: empty,
        }
    }
}

/// An object and whether the list in progress has named it.
#[derive(Debug)]
pub(super) struct Entry<T> {
    pub object: Arc<T>,
    /// The number of the list (or of the time between two) that saw it last.
    pub seen: u64,
    /// Missing from its last list, and served on.
    pub held: bool,
}

pub(super) type Map<T> = BTreeMap<Id, Entry<T>>;

/// What `put` did.
pub(super) struct Put<T> {
    /// What stood there before, if it differs.
    pub old: Option<Arc<T>>,
    pub changed: bool,
}

/// Stores `object`; it is seen now and no longer held.
pub(super) fn put<T: PartialEq>(map: &mut Map<T>, id: Id, object: Arc<T>, seen: u64) -> Put<T> {
    let Some(entry) = map.get_mut(&id) else {
        let held = false;
        map.insert(id, Entry { object, seen, held });
        return Put {
            old: None,
            changed: true,
        };
    };
    entry.seen = seen;
    let released = std::mem::take(&mut entry.held);
    let same = Arc::ptr_eq(&entry.object, &object) || entry.object == object;
    let old = std::mem::replace(&mut entry.object, object);
    Put {
        changed: released || !same,
        old: (!same).then_some(old),
    }
}

pub(super) fn of_source<T>(
    map: &Map<T>,
    source: SourceId,
) -> impl Iterator<Item = (&Id, &Entry<T>)> {
    map.range((Bound::Included(Id::first_of(source)), Bound::Unbounded))
        .take_while(move |(id, _)| id.source == source)
}

/// What the list of this number did not name. Objects that came since are of that number too.
pub(super) fn missing<T>(map: &Map<T>, source: SourceId, number: u64) -> Vec<Id> {
    of_source(map, source)
        .filter(|(_, entry)| entry.seen != number)
        .map(|(id, _)| id.clone())
        .collect()
}
