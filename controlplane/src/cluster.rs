//! The objects last seen: the only store (PURE). Owned by the control task.
//!
//! Sources are kept apart by their ids. Slices are indexed by the name of their Service, whichever
//! comes first, so that any order of events gives the same state. A list is applied as a
//! difference: what it no longer has goes at its end, and there is never an empty moment.
//!
//! The deletion guard: a list that lacks more than half, and at least five, of the Services that
//! its source had is more likely a mistake (a truncated dump, the wrong cluster, an etcd restored
//! from nothing) than a wish. Those Services are *held*, with their EndpointSlices: they are served
//! on until they return or a person confirms. An explicit deletion is always obeyed.

mod map;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::map::{Entry, Id, Map, missing, of_source, put};
use crate::load_balancer::LoadBalancer;
use crate::object::{EndpointSlice, Event, Key, Kind, Node, Object, Service, SourceId};

/// The guard never holds fewer Services than this.
pub const GUARD_LEAST: usize = 5;

/// What is known of one kind of one source.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    /// Counts lists.
    number: u64,
    /// `Init` came, `InitDone` did not yet.
    in_progress: bool,
    /// A list was completed at least once.
    complete: bool,
    /// None is to be waited for.
    unavailable: bool,
}

/// The store.
#[derive(Debug, Default)]
pub struct Cluster {
    services: Map<Service>,
    slices: Map<EndpointSlice>,
    nodes: Map<Node>,
    load_balancers: Map<LoadBalancer>,
    /// Service -> its slices.
    slices_of: BTreeMap<Id, BTreeSet<Id>>,
    listings: BTreeMap<(SourceId, Kind), Listing>,
    dirty: BTreeSet<Key>,
    /// Whose nodes changed. A list of 5,000 nodes is one such change.
    nodes_dirty: BTreeSet<SourceId>,
}

impl Cluster {
    /// A store that is complete once each of `expected` was listed.
    pub fn new(expected: impl IntoIterator<Item = (SourceId, Kind)>) -> Cluster {
        let listings = expected
            .into_iter()
            .map(|what| (what, Listing::default()))
            .collect();
        Cluster {
            listings,
            ..Cluster::default()
        }
    }

    /// Takes in one event. An object whose source is not that of the channel it came by is not
    /// taken in: a source never touches another's.
    pub fn apply(&mut self, source: SourceId, event: Event) {
        match event {
            Event::Init(kind) => {
                let listing = self.listings.entry((source, kind)).or_default();
                listing.number += 1;
                listing.in_progress = true;
            }
            Event::Apply(object) if object.key().source == source => self.apply_object(object),
            Event::Delete(key) if key.source == source => self.delete(&key),
            Event::Apply(_) | Event::Delete(_) => {}
            Event::InitDone(kind) => self.finish(source, kind),
            Event::Unavailable(kind) => {
                let listing = self.listings.entry((source, kind)).or_default();
                listing.unavailable = true;
            }
        }
    }

    /// Every expected kind of every source was listed at least once.
    pub fn complete(&self) -> bool {
        let mut all = self.listings.values();
        all.all(|listing| listing.complete || listing.unavailable)
    }

    /// The nodes of this source were listed, or are not to be waited for.
    pub fn has_settled_nodes(&self, source: SourceId) -> bool {
        let listing = self.listings.get(&(source, Kind::Node));
        listing.is_some_and(|listing| listing.complete || listing.unavailable)
    }

    /// The nodes of this source were listed.
    pub fn knows_nodes(&self, source: SourceId) -> bool {
        let listing = self.listings.get(&(source, Kind::Node));
        listing.is_some_and(|listing| listing.complete)
    }

    /// The sources whose nodes changed since this was last asked.
    pub fn take_dirty_nodes(&mut self) -> BTreeSet<SourceId> {
        std::mem::take(&mut self.nodes_dirty)
    }

    /// The keys of Services and ready-made load balancers that may translate differently than
    /// when this was last asked; also of those that are gone. Nodes are asked for by themselves.
    pub fn take_dirty(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.dirty)
    }

    /// As [`Cluster::take_dirty`], and they stay.
    pub fn dirty(&self) -> impl Iterator<Item = &Key> {
        self.dirty.iter()
    }

    /// The Service of exactly this key, uid included.
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        let entry = self.services.get(&Id::of(key))?;
        (entry.object.meta.key == *key).then_some(&entry.object)
    }

    /// The key of the Service that is named as `key` is, whatever its uid.
    pub fn named(&self, key: &Key) -> Option<&Key> {
        let entry = self.services.get(&Id::of(key))?;
        Some(&entry.object.meta.key)
    }

    /// All Services, held ones too, in order of source and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|entry| &entry.object)
    }

    /// The EndpointSlice that is named as `key` is, whatever its uid.
    pub fn slice(&self, key: &Key) -> Option<&EndpointSlice> {
        let entry = self.slices.get(&Id::of(key))?;
        Some(&entry.object)
    }

    /// The EndpointSlices of the Service named by `key`, in order of their names.
    pub fn slices_of<'a>(
        &'a self,
        key: &Key,
    ) -> impl Iterator<Item = &'a Arc<EndpointSlice>> + use<'a> {
        let ids = self.slices_of.get(&Id::of(key));
        let ids = ids.into_iter().flatten();
        ids.filter_map(|id| self.slices.get(id).map(|entry| &entry.object))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().map(|entry| &entry.object)
    }

    /// The ready-made load balancer of exactly this key.
    pub fn load_balancer(&self, key: &Key) -> Option<&Arc<LoadBalancer>> {
        let entry = self.load_balancers.get(&Id::of(key))?;
        (entry.object.key == *key).then_some(&entry.object)
    }

    /// The Services that the deletion guard holds.
    pub fn held(&self) -> impl Iterator<Item = &Key> {
        let held = self.services.values().filter(|entry| entry.held);
        held.map(|entry| &entry.object.meta.key)
    }

    /// Does the deletion guard hold this Service?
    pub fn is_held(&self, key: &Key) -> bool {
        let entry = self.services.get(&Id::of(key));
        entry.is_some_and(|entry| entry.held && entry.object.meta.key == *key)
    }

    /// A person says that everything held was meant to go. Returns how many Services went.
    pub fn confirm_deletions(&mut self) -> usize {
        let held: Vec<Key> = self.held().cloned().collect();
        for key in &held {
            self.remove_service(&Id::of(key));
        }
        self.sweep_held_slices();
        held.len()
    }

    fn apply_object(&mut self, object: Object) {
        let id = Id::of(object.key());
        let listing = (object.key().source, object.key().kind);
        let seen = self
            .listings
            .get(&listing)
            .map_or(0, |listing| listing.number);
        match object {
            Object::Service(object) => self.apply_service(id, object, seen),
            Object::EndpointSlice(object) => self.apply_slice(id, object, seen),
            Object::Node(object) => {
                let source = id.source;
                if put(&mut self.nodes, id, object, seen).changed {
                    self.nodes_dirty.insert(source);
                }
            }
            Object::LoadBalancer(object) => {
                let key = object.key.clone();
                let put = put(&mut self.load_balancers, id, object, seen);
                if put.changed {
                    self.dirty.extend(put.old.map(|old| old.key.clone()));
                    self.dirty.insert(key);
                }
            }
        }
    }

    fn apply_service(&mut self, id: Id, object: Arc<Service>, seen: u64) {
        let key = object.meta.key.clone();
        let put = put(&mut self.services, id.clone(), object, seen);
        if put.changed {
            // Made anew under its old name: the old one is gone, and the new one is another.
            self.dirty.extend(put.old.map(|old| old.meta.key.clone()));
            self.dirty.insert(key);
            self.settle_held_slices(&id);
        }
    }

    fn apply_slice(&mut self, id: Id, object: Arc<EndpointSlice>, seen: u64) {
        let service = object.service.as_ref().map(|name| id.service(name));
        let put = put(&mut self.slices, id.clone(), object, seen);
        if !put.changed {
            return;
        }
        let old = put
            .old
            .and_then(|old| Some(id.service(old.service.as_ref()?)));
        if old != service
            && let Some(old) = old
        {
            self.unlink(&old, &id);
        }
        if let Some(service) = service {
            self.mark(&service);
            self.slices_of
                .entry(service.clone())
                .or_default()
                .insert(id);
            self.settle_held_slices(&service);
        }
    }

    /// A Service that returned, and has slices that returned or are new, has no use for the others
    /// that were held with it. During a list its end decides, so that none is missed in between.
    fn settle_held_slices(&mut self, service: &Id) {
        let listing = self.listings.get(&(service.source, Kind::EndpointSlice));
        let in_list = listing.is_some_and(|listing| listing.in_progress);
        if in_list || self.services.get(service).is_none_or(|entry| entry.held) {
            return;
        }
        let slices = self.slices_of.get(service).into_iter().flatten();
        let is_held = |id: &&Id| self.slices.get(*id).is_some_and(|entry| entry.held);
        let (held, fresh): (Vec<&Id>, Vec<&Id>) = slices.partition(is_held);
        if fresh.is_empty() {
            return;
        }
        let held: Vec<Id> = held.into_iter().cloned().collect();
        held.iter().for_each(|id| self.remove_slice(id));
    }

    fn delete(&mut self, key: &Key) {
        let id = Id::of(key);
        // The deletion of an object that was made anew since says nothing about the new one.
        match key.kind {
            Kind::Service => {
                if self.service(key).is_some() {
                    self.remove_service(&id);
                }
            }
            Kind::EndpointSlice => {
                let entry = self.slices.get(&id);
                if entry.is_some_and(|entry| entry.object.meta.key == *key) {
                    self.remove_slice(&id);
                }
            }
            Kind::Node => {
                let entry = self.nodes.get(&id);
                if entry.is_some_and(|entry| entry.object.meta.key == *key) {
                    self.nodes.remove(&id);
                    self.nodes_dirty.insert(key.source);
                }
            }
            Kind::LoadBalancer => {
                if self.load_balancer(key).is_some() {
                    self.load_balancers.remove(&id);
                    self.dirty.insert(key.clone());
                }
            }
        }
    }

    /// The end of a list: what it did not name is gone, or held.
    fn finish(&mut self, source: SourceId, kind: Kind) {
        let Some(listing) = self.listings.get_mut(&(source, kind)) else {
            return;
        };
        if !std::mem::take(&mut listing.in_progress) {
            return;
        }
        let first = !std::mem::replace(&mut listing.complete, true);
        let number = listing.number;
        match kind {
            Kind::Service => {
                self.finish_services(source, number);
                self.sweep_slices(source);
            }
            Kind::EndpointSlice => self.sweep_slices(source),
            Kind::Node => {
                let missing = missing(&self.nodes, source, number);
                if first || !missing.is_empty() {
                    missing.iter().for_each(|id| drop(self.nodes.remove(id)));
                    self.nodes_dirty.insert(source);
                }
            }
            Kind::LoadBalancer => {
                for id in missing(&self.load_balancers, source, number) {
                    let old = self.load_balancers.remove(&id);
                    self.dirty.extend(old.map(|old| old.object.key.clone()));
                }
            }
        }
    }

    fn finish_services(&mut self, source: SourceId, number: u64) {
        let missing: Vec<Id> = missing(&self.services, source, number)
            .into_iter()
            .filter(|id| self.services.get(id).is_some_and(|entry| !entry.held))
            .collect();
        let all = of_source(&self.services, source);
        let judged = all.filter(|(_, entry)| !entry.held).count();
        let suspicious = missing.len() >= GUARD_LEAST && missing.len() * 2 > judged;
        for id in missing {
            if !suspicious {
                self.remove_service(&id);
            } else if let Some(entry) = self.services.get_mut(&id) {
                entry.held = true;
                self.dirty.insert(entry.object.meta.key.clone());
            }
        }
    }

    /// Removes the slices that the last complete list of them did not name, but for those of
    /// Services that are held, or may be at the end of a list that is in progress: which list ends
    /// first is chance.
    fn sweep_slices(&mut self, source: SourceId) {
        let listing = |kind| {
            let listing = self.listings.get(&(source, kind));
            listing.copied().unwrap_or_default()
        };
        let (services, slices) = (listing(Kind::Service), listing(Kind::EndpointSlice));
        if slices.in_progress {
            return;
        }
        for id in missing(&self.slices, source, slices.number) {
            let Some(entry) = self.slices.get_mut(&id) else {
                continue;
            };
            let service = entry.object.service.as_ref().map(|name| id.service(name));
            let service = service.and_then(|service| self.services.get(&service));
            let undecided =
                |service: &Entry<Service>| services.in_progress && service.seen != services.number;
            if service.is_some_and(|service| service.held || undecided(service)) {
                entry.held = true;
            } else {
                self.remove_slice(&id);
            }
        }
    }

    fn sweep_held_slices(&mut self) {
        let held = self.slices.iter().filter(|(_, entry)| entry.held);
        let held: Vec<Id> = held.map(|(id, _)| id.clone()).collect();
        held.iter().for_each(|id| self.remove_slice(id));
    }

    fn remove_service(&mut self, id: &Id) {
        let old = self.services.remove(id);
        self.dirty
            .extend(old.map(|old| old.object.meta.key.clone()));
    }

    fn remove_slice(&mut self, id: &Id) {
        let Some(old) = self.slices.remove(id) else {
            return;
        };
        if let Some(name) = &old.object.service {
            self.unlink(&id.service(name), id);
        }
    }

    fn unlink(&mut self, service: &Id, slice: &Id) {
        self.mark(service);
        if let Some(slices) = self.slices_of.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.slices_of.remove(service);
            }
        }
    }

    fn mark(&mut self, service: &Id) {
        let service = self.services.get(service);
        self.dirty
            .extend(service.map(|service| service.object.meta.key.clone()));
    }
}

#[cfg(test)]
mod tests;
