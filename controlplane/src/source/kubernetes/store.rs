//! What the API server said last, and what the control task has to hear of it (PURE). Owned by the
//! source's one task.
//!
//! A list is taken in when it is complete, and handed on whole: `Init`, every object of the kind,
//! `InitDone`. So a list that breaks off, or one namespace's among several, never shows half of
//! anything, and an object that cannot be read keeps its last good version.
//!
//! EndpointSlices that a list lacks wait for a list of Services that began after it: if those
//! vanished too, whoever judges that (`cluster`, the deletion guard) has to hear of them first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::reading::{Refusal, Refused};
use super::scope::{Scope, path_of};
use crate::object::{Event, Key, Kind, Location, Object};
use crate::source::{Level, Problem};

/// Objects of one kind that are kept; the design is for 10,000 Services and 100,000 endpoints.
pub(super) const MAX_OBJECTS: usize = 200_000;
/// Problems of single objects that are kept.
const MAX_PROBLEMS: usize = 1_000;

/// An object's namespace and name.
pub(super) type Name = (Arc<str>, Arc<str>);

fn name_of(key: &Key) -> Name {
    (Arc::clone(&key.namespace), Arc::clone(&key.name))
}

/// A complete list of one scope.
#[derive(Debug, Default)]
pub(super) struct List {
    /// What was read.
    pub objects: Vec<Object>,
    /// What was not.
    pub refused: Vec<Refused>,
    /// The number of the order that it follows: see [`Store::order`].
    pub order: u64,
}

/// One kind.
#[derive(Debug, Default)]
struct Known {
    /// In use.
    objects: BTreeMap<Name, Object>,
    /// Scopes that gave a list, and the order that it followed.
    listed: BTreeMap<Scope, u64>,
    /// How many scopes there are.
    scopes: usize,
    /// Handed on at least once: events are worth handing on.
    complete: bool,
    /// Not in the last list of their scope, and waiting.
    missing: BTreeSet<Name>,
    /// What the last list or event said of single objects.
    problems: BTreeMap<Name, Problem>,
    /// Refused without a name that can be read, by scope.
    nameless: BTreeMap<Scope, usize>,
}

/// All kinds.
#[derive(Debug)]
pub(super) struct Store {
    kinds: BTreeMap<Kind, Known>,
    /// Every list that is asked for has a number: what began before it is not what was asked for.
    order: u64,
    /// The lists of Services that EndpointSlices wait for follow at least this order.
    waiting: Option<u64>,
    max_objects: usize,
}

impl Store {
    pub(super) fn new(scopes: &[Scope]) -> Store {
        let mut store = Store {
            kinds: BTreeMap::new(),
            order: 0,
            waiting: None,
            max_objects: MAX_OBJECTS,
        };
        scopes.iter().for_each(|scope| store.add(scope));
        store
    }

    /// One more scope.
    pub(super) fn add(&mut self, scope: &Scope) {
        self.kinds.entry(scope.kind).or_default().scopes += 1;
    }

    /// As `new`, with room for so many of a kind.
    #[cfg(test)]
    pub(super) fn with_room(scopes: &[Scope], max_objects: usize) -> Store {
        Store {
            max_objects,
            ..Store::new(scopes)
        }
    }

    /// Asks for lists of everything; returns the number that they are to follow.
    pub(super) fn order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// EndpointSlices wait for lists of Services that follow this order.
    pub(super) fn waiting(&self) -> Option<u64> {
        self.waiting
    }

    /// Every kind was handed on at least once, but for nodes, which may never be listed.
    pub(super) fn complete(&self) -> bool {
        self.needed().all(|known| known.complete)
    }

    /// Every list came from the API server, but for those of nodes.
    pub(super) fn is_listed(&self) -> bool {
        self.needed().all(Known::is_listed)
    }

    /// This kind was handed on at least once.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|known| known.complete)
    }

    fn needed(&self) -> impl Iterator<Item = &Known> {
        let needed = self.kinds.iter().filter(|(kind, _)| **kind != Kind::Node);
        needed.map(|(_, known)| known)
    }

    /// Everything in use.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.kinds.values().flat_map(|known| known.objects.values())
    }

    /// Takes in a complete list.
    pub(super) fn listed(&mut self, scope: &Scope, list: List) -> Vec<Event> {
        let max_objects = self.max_objects;
        let Some(known) = self.kinds.get_mut(&scope.kind) else {
            return Vec::new();
        };
        known.listed.insert(scope.clone(), list.order);
        let fresh = known.take_list(scope, list, max_objects);
        if !known.is_listed() && !known.complete {
            return Vec::new();
        }
        match scope.kind {
            Kind::EndpointSlice if known.complete && self.has_to_wait() => {
                // What is there is there; what is not waits.
                fresh.into_iter().map(Event::Apply).collect()
            }
            Kind::Service => self.services_listed(),
            kind => self.hand_on(&[kind]),
        }
    }

    /// EndpointSlices are missing, and Services are watched: asks for a list of these.
    fn has_to_wait(&mut self) -> bool {
        let missing = |known: &Known| !known.missing.is_empty();
        let slices = self.kinds.get(&Kind::EndpointSlice).is_some_and(missing);
        let services = self.kinds.get(&Kind::Service);
        if !slices || services.is_none_or(|services| !services.complete) {
            return false;
        }
        self.waiting = Some(self.order());
        true
    }

    fn services_listed(&mut self) -> Vec<Event> {
        let services = self.kinds.get(&Kind::Service);
        let follows = |order: u64| services.is_some_and(|services| services.follows(order));
        match self.waiting {
            Some(order) if follows(order) => {
                self.waiting = None;
                self.hand_on(&[Kind::Service, Kind::EndpointSlice])
            }
            _ => self.hand_on(&[Kind::Service]),
        }
    }

    /// Services do not answer: EndpointSlices that are missing wait no longer.
    pub(super) fn wait_no_longer(&mut self) -> Vec<Event> {
        match self.waiting.take() {
            Some(_) => self.hand_on(&[Kind::EndpointSlice]),
            None => Vec::new(),
        }
    }

    /// Takes in what was kept over a restart, for the kinds that were not listed yet.
    pub(super) fn restore(&mut self, objects: Vec<Object>) -> Vec<Event> {
        let kinds: Vec<Kind> = self.kinds.keys().copied().collect();
        let open = kinds.into_iter().filter(|kind| !self.kinds[kind].complete);
        let open: Vec<Kind> = open.collect();
        for object in objects {
            let kind = object.key().kind;
            let name = name_of(object.key());
            if let Some(known) = self.kinds.get_mut(&kind)
                && open.contains(&kind)
                && !known.has_listed(object.key())
                && known.objects.len() < self.max_objects
            {
                known.objects.entry(name).or_insert(object);
            }
        }
        self.hand_on(&open)
    }

    /// The lists of these kinds, overlapping, so that what is missing is judged by all of them.
    fn hand_on(&mut self, kinds: &[Kind]) -> Vec<Event> {
        let mut events: Vec<Event> = kinds.iter().copied().map(Event::Init).collect();
        for kind in kinds {
            if let Some(known) = self.kinds.get_mut(kind) {
                for name in std::mem::take(&mut known.missing) {
                    known.objects.remove(&name);
                }
                known.complete = true;
                events.extend(known.objects.values().cloned().map(Event::Apply));
            }
        }
        events.extend(kinds.iter().copied().map(Event::InitDone));
        events
    }

    /// Takes in an object as it is now.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn applied(&mut self, object: Object) -> Result<Option<Event>, Box<Refused>> {
        let max_objects = self.max_objects;
        let Some(known) = self.kinds.get_mut(&object.key().kind) else {
            return Ok(None);
        };
        let name = name_of(object.key());
        if known.objects.len() >= max_objects && !known.objects.contains_key(&name) {
            return Err(Box::new(too_many(object.key(), max_objects)));
        }
        known.problems.remove(&name);
        known.missing.remove(&name);
        let is_news = known.put(name, &object);
        Ok((is_news && known.complete).then_some(Event::Apply(object)))
    }

    /// Takes in that an object cannot be read: its last good version stays.
    pub(super) fn refused(&mut self, scope: &Scope, refused: &Refused) {
        if let Some(known) = self.kinds.get_mut(&scope.kind) {
            known.note(scope, refused);
        }
    }

    /// Takes in a deletion.
    pub(super) fn deleted(&mut self, key: &Key) -> Option<Event> {
        let known = self.kinds.get_mut(&key.kind)?;
        let name = name_of(key);
        known.problems.remove(&name);
        let is_known = |object: &Object| object.key() == key;
        if known.objects.get(&name).is_some_and(is_known) {
            known.objects.remove(&name);
            known.missing.remove(&name);
            return known.complete.then(|| Event::Delete(key.clone()));
        }
        None
    }

    /// What there is to say of single objects.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let all = self.kinds.iter().flat_map(|(kind, known)| {
            let named = known.problems.values().cloned();
            let nameless = known.nameless.iter().filter(|(_, count)| **count > 0);
            let nameless = nameless.map(|(scope, count)| {
                let message = format!("{count} objects are refused that do not even say their name");
                at(scope.path(), message)
            });
            let more = known.problems.len() >= MAX_PROBLEMS;
            let more = more.then(|| {
                let everywhere = Scope {
                    kind: *kind,
                    namespace: None,
                };
                let message = format!("{MAX_PROBLEMS} objects are refused; what more there are is counted and not listed");
                at(everywhere.path(), message)
            });
            named.chain(nameless).chain(more)
        });
        all.collect()
    }
}

impl Known {
    fn is_listed(&self) -> bool {
        self.listed.len() == self.scopes
    }

    /// Is this of a scope that gave a list?
    fn has_listed(&self, key: &Key) -> bool {
        self.listed.keys().any(|scope| scope.holds(key))
    }

    fn follows(&self, order: u64) -> bool {
        self.is_listed() && self.listed.values().all(|follows| *follows >= order)
    }

    /// Replaces what is known of `scope`; what the list lacks is missing. Returns what is new.
    fn take_list(&mut self, scope: &Scope, list: List, max_objects: usize) -> Vec<Object> {
        let is_here = |name: &Name| {
            let here = |namespace: &Arc<str>| *namespace == name.0;
            scope.namespace.as_ref().is_none_or(here)
        };
        self.problems.retain(|name, _| !is_here(name));
        self.nameless.remove(scope);
        let mut seen: BTreeSet<Name> = BTreeSet::new();
        for refused in &list.refused {
            // Its last good version stays, unless it was made anew meanwhile.
            if let Some(key) = &refused.key
                && self
                    .objects
                    .get(&name_of(key))
                    .is_some_and(|known| known.key() == key)
            {
                seen.insert(name_of(key));
            }
            self.note(scope, refused);
        }
        let mut fresh = Vec::new();
        // What is in use before what is new, so that nobody's many take another's out of use.
        let in_use = |object: &Object| self.objects.contains_key(&name_of(object.key()));
        let (old, new): (Vec<_>, Vec<_>) = list.objects.into_iter().partition(in_use);
        for object in old.into_iter().chain(new) {
            let name = name_of(object.key());
            if self.objects.len() >= max_objects && !self.objects.contains_key(&name) {
                self.note(scope, &too_many(object.key(), max_objects));
                continue;
            }
            if self.put(name.clone(), &object) {
                fresh.push(object);
            }
            seen.insert(name);
        }
        let all = self.objects.keys().filter(|name| is_here(name));
        let gone: Vec<Name> = all.filter(|name| !seen.contains(*name)).cloned().collect();
        self.missing.retain(|name| !is_here(name));
        self.missing.extend(gone);
        fresh
    }

    /// Whether it is another than before. One that is the same is kept as it was, in one copy.
    fn put(&mut self, name: Name, object: &Object) -> bool {
        if self.objects.get(&name) == Some(object) {
            return false;
        }
        self.objects.insert(name, object.clone());
        true
    }

    fn note(&mut self, scope: &Scope, refused: &Refused) {
        let Some(key) = &refused.key else {
            *self.nameless.entry(scope.clone()).or_default() += 1;
            return;
        };
        let name = name_of(key);
        if self.problems.len() >= MAX_PROBLEMS && !self.problems.contains_key(&name) {
            return;
        }
        let is_it = |known: &Object| known.key() == key;
        let kept = match self.objects.get(&name).is_some_and(is_it) {
            true => "; its last good version stays in use",
            false => "",
        };
        let problem = Problem {
            object: Some(key.clone()),
            service: refused.service.clone(),
            ..at(
                path_of(key.kind, &key.namespace, &key.name),
                format!("{}{kept}", refused.message),
            )
        };
        self.problems.insert(name, problem);
    }
}

fn too_many(key: &Key, most: usize) -> Refused {
    Refused {
        refusal: Refusal::TooMany,
        key: Some(key.clone()),
        service: None,
        message: format!("is refused: there are more than {most} of its kind"),
    }
}

/// Something to say of what has this path on the API server.
pub(super) fn at(path: String, message: String) -> Problem {
    Problem {
        level: Level::Error,
        location: Location {
            file: Arc::new(PathBuf::from(path)),
            line: 0,
            column: 0,
        },
        object: None,
        service: None,
        duplicate: false,
        message,
        excerpt: String::new(),
    }
}
