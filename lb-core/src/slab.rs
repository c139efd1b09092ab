//! A slab whose keys go stale.
//!
//! PURE. A [`Key`] is an index and the generation of what was put there, so that an event which
//! was queued for something since removed finds nothing, instead of what took its place. It grows
//! without moving what it holds.

use crate::chunks::Chunks;

/// Names one entry of one [`Slab`], and no later entry in its place (until 2^32 have come and gone).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// The key of its two halves, as [`Key::index`] and [`Key::generation`] gave them.
    pub const fn from_parts(index: u32, generation: u32) -> Key {
        Key { index, generation }
    }

    /// Which place; below [`MAX_ENTRIES`].
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which of the entries that held this place.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// The most entries a slab holds: an index fits in the 28 bits that a token has for it.
pub const MAX_ENTRIES: usize = 1 << 28;

/// End of the list of vacant places.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Place<T> {
    Vacant { next: u32 },
    Occupied(T),
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    place: Place<T>,
}

/// Entries at stable indices; a removed one's place is used again under a new generation. It grows by 2^`BITS` entries at
/// a time.
#[derive(Debug)]
pub struct Slab<T, const BITS: u32 = 8> {
    entries: Chunks<Entry<T>, BITS>,
    vacant: u32,
    len: usize,
    /// Of a place that was never used.
    generation: u32,
}

impl<T, const BITS: u32> Default for Slab<T, BITS> {
    fn default() -> Self {
        Slab::new()
    }
}

impl<T, const BITS: u32> Slab<T, BITS> {
    /// An empty slab; allocates nothing.
    pub const fn new() -> Self {
        Slab {
            entries: Chunks::new(),
            vacant: NONE,
            len: 0,
            generation: 0,
        }
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Holds it nothing?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `value` in, and says where.
    ///
    /// # Panics
    /// Past [`MAX_ENTRIES`], which descriptor limits keep far away.
    pub fn insert(&mut self, value: T) -> Key {
        self.insert_with(|_| value)
    }

    /// As [`Slab::insert`], for a value that holds its own key.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        let index = self.vacant;
        let key = match self.entries.get(index as usize) {
            Some(entry) => Key::from_parts(index, entry.generation),
            None => {
                assert!(self.entries.len() < MAX_ENTRIES, "slab is full");
                Key::from_parts(self.entries.len() as u32, self.generation)
            }
        };
        let value = make(key);
        match self.entries.get_mut(index as usize) {
            Some(entry) => {
                if let Place::Vacant { next } = entry.place {
                    self.vacant = next;
                }
                entry.place = Place::Occupied(value);
            }
            None => self.entries.push(Entry {
                generation: self.generation,
                place: Place::Occupied(value),
            }),
        }
        self.len += 1;
        key
    }

    /// The key of what is at `index`, if anything is.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        matches!(entry.place, Place::Occupied(_)).then(|| Key::from_parts(index, entry.generation))
    }

    /// The entry, unless it was removed.
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.index as usize) {
            Some(Entry {
                generation,
                place: Place::Occupied(value),
            }) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// As [`Slab::get`], to be changed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.index as usize) {
            Some(Entry {
                generation,
                place: Place::Occupied(value),
            }) if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the entry out; its key, and every copy of it, is stale from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let next = self.vacant;
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation || matches!(entry.place, Place::Vacant { .. }) {
            return None;
        }
        entry.generation = entry.generation.wrapping_add(1);
        let place = std::mem::replace(&mut entry.place, Place::Vacant { next });
        self.vacant = key.index;
        self.len -= 1;
        match place {
            Place::Occupied(value) => Some(value),
            Place::Vacant { .. } => None,
        }
    }

    /// Gives its memory back if it is empty and has more than `places`; every key stays stale. Looks at each place, of
    /// which as many entries were there at once since this last did something.
    pub fn release(&mut self, places: u32) {
        if !self.is_empty() || self.places() <= places {
            return;
        }
        let generations = self.entries.iter().map(|entry| entry.generation);
        // Each was counted up when its place was left: it is beyond every key that was given out.
        self.generation = generations.fold(self.generation, u32::max);
        self.entries = Chunks::new();
        self.vacant = NONE;
    }

    /// How many places it has, vacant ones too: every index is below.
    pub fn places(&self) -> u32 {
        self.entries.len() as u32
    }

    /// What is at `index`, if anything is.
    pub fn at(&self, index: u32) -> Option<(Key, &T)> {
        let entry = self.entries.get(index as usize)?;
        match &entry.place {
            Place::Occupied(value) => Some((Key::from_parts(index, entry.generation), value)),
            Place::Vacant { .. } => None,
        }
    }

    /// Every entry with its key, by index.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| {
                let Place::Occupied(value) = &entry.place else {
                    return None;
                };
                Some((Key::from_parts(index as u32, entry.generation), value))
            })
    }

    /// The keys of every entry, so that they can be changed or removed one by one.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u16),
        Remove(usize),
        Look(usize),
        Release(u32),
        /// All, one by one.
        Empty,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u16>().prop_map(Step::Insert),
            2 => any::<usize>().prop_map(Step::Remove),
            2 => any::<usize>().prop_map(Step::Look),
            1 => (0u32..4).prop_map(Step::Release),
            1 => Just(Step::Empty),
        ]
    }

    proptest! {
        /// Against a map from every key that was ever given out: live ones find their value, all
        /// others find nothing.
        #[test]
        fn as_a_map_of_keys(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 20 } else { 200 })) {
            let mut slab: Slab<u16, 2> = Slab::new();
            let mut model: HashMap<Key, u16> = HashMap::new();
            let mut given: Vec<Key> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(value) => {
                        let key = slab.insert(value);
                        prop_assert!(model.insert(key, value).is_none(), "a live key twice");
                        prop_assert!(!given.contains(&key), "a stale key came back");
                        given.push(key);
                    }
                    Step::Remove(at) if !given.is_empty() => {
                        let key = given[at % given.len()];
                        prop_assert_eq!(slab.remove(key), model.remove(&key));
                    }
                    Step::Look(at) if !given.is_empty() => {
                        let key = given[at % given.len()];
                        prop_assert_eq!(slab.get(key), model.get(&key));
                        prop_assert_eq!(slab.get_mut(key), model.get_mut(&key));
                    }
                    Step::Remove(_) | Step::Look(_) => {}
                    Step::Release(places) => {
                        let before = slab.places();
                        slab.release(places);
                        let kept = !model.is_empty() || before <= places;
                        prop_assert_eq!(slab.places(), if kept { before } else { 0 });
                    }
                    Step::Empty => {
                        for key in given.iter() {
                            prop_assert_eq!(slab.remove(*key), model.remove(key));
                        }
                    }
                }
                prop_assert_eq!(slab.len(), model.len());
                prop_assert_eq!(slab.is_empty(), model.is_empty());
                let listed: HashMap<Key, u16> = slab.iter().map(|(k, v)| (k, *v)).collect();
                prop_assert_eq!(&listed, &model);
            }
        }
    }

    #[test]
    fn an_entry_adds_little() {
        assert!(size_of::<Entry<Option<Box<u64>>>>() <= 24);
    }

    #[test]
    fn a_value_can_hold_its_own_key() {
        let mut slab: Slab<Key> = Slab::new();
        let first = slab.insert_with(|key| key);
        slab.remove(first);
        let second = slab.insert_with(|key| key);
        assert_eq!(slab.get(second), Some(&second));
        assert_eq!(first.index(), second.index());
        assert_ne!(first, second);
    }
}
