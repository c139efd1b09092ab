//! Finds entries of a slab by a key: a hash table of chains that run through the entries
//! themselves.
//!
//! The number of chains is fixed when it is made, after the most entries there may be, so that it
//! never grows, never rehashes and never sweeps: no insert takes longer than another. Its memory
//! is four bytes a chain, which the system only gives once a chain is used. The hash is keyed, so
//! that clients cannot make one chain long.

use std::hash::{BuildHasher, Hasher};

use super::sources::KeyedHash;

/// Past so many chains they get longer instead: 64 MiB of addresses.
const MAX_CHAINS: usize = 1 << 24;

/// The entries that an [`Index`] runs through.
pub(super) trait Entries<K> {
    /// Is `key` the key of the entry at `at`?
    fn is(&self, at: u32, key: &K) -> bool;
    /// The next of its chain, as [`Index`] wrote it.
    fn after(&self, at: u32) -> u32;
    /// Notes the next of its chain.
    fn set_after(&mut self, at: u32, after: u32);
}

#[derive(Debug)]
pub(super) struct Index {
    /// The first of each chain, plus one; zero for none.
    heads: Vec<u32>,
    hash: KeyedHash,
}

impl Index {
    /// For up to `most` entries, or more at longer chains.
    pub(super) fn new(most: usize, hash: KeyedHash) -> Index {
        let chains = most.clamp(1, MAX_CHAINS).next_power_of_two();
        Index {
            heads: vec![0; chains],
            hash,
        }
    }

    /// The entry with this key.
    pub(super) fn find<K: Key>(&self, entries: &impl Entries<K>, key: &K) -> Option<u32> {
        let mut link = self.heads[self.chain(key)];
        while let Some(at) = link.checked_sub(1) {
            if entries.is(at, key) {
                return Some(at);
            }
            link = entries.after(at);
        }
        None
    }

    /// Adds the entry at `at`, of which there must be no other with the same key.
    pub(super) fn insert<K: Key>(&mut self, entries: &mut impl Entries<K>, key: &K, at: u32) {
        let chain = self.chain(key);
        entries.set_after(at, self.heads[chain]);
        self.heads[chain] = at + 1;
    }

    /// Takes the entry at `at` out, if it is in.
    pub(super) fn remove<K: Key>(&mut self, entries: &mut impl Entries<K>, key: &K, at: u32) {
        let chain = self.chain(key);
        let after = entries.after(at);
        let mut link = self.heads[chain];
        if link == at + 1 {
            self.heads[chain] = after;
            return;
        }
        while let Some(before) = link.checked_sub(1) {
            link = entries.after(before);
            if link == at + 1 {
                return entries.set_after(before, after);
            }
        }
    }

    fn chain(&self, key: &impl Key) -> usize {
        let mut hasher = self.hash.build_hasher();
        key.feed(&mut hasher);
        hasher.finish() as usize & (self.heads.len() - 1)
    }
}

/// What entries are found by.
pub(super) trait Key {
    /// Gives what is hashed: equal keys give the same. In one write, which is what the hash is
    /// quick at.
    fn feed(&self, hasher: &mut impl Hasher);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Keys by place; a removed one keeps its key, as a slot that is used again may.
    #[derive(Default)]
    struct List(Vec<(u16, u32)>);

    impl Key for u16 {
        fn feed(&self, hasher: &mut impl Hasher) {
            hasher.write(&self.to_ne_bytes());
        }
    }

    impl Entries<u16> for List {
        fn is(&self, at: u32, key: &u16) -> bool {
            self.0[at as usize].0 == *key
        }

        fn after(&self, at: u32) -> u32 {
            self.0[at as usize].1
        }

        fn set_after(&mut self, at: u32, after: u32) {
            self.0[at as usize].1 = after;
        }
    }

    proptest! {
        /// Against a map; with few chains, so that they are long.
        #[test]
        fn as_a_map(chains in 0..9usize, steps in prop::collection::vec(0..60u16, 1..300)) {
            let mut index = Index::new(chains, KeyedHash::new([3; 16]));
            let mut list = List::default();
            let mut model = std::collections::HashMap::new();
            for key in steps {
                match model.remove(&key) {
                    Some(at) => {
                        index.remove(&mut list, &key, at);
                        // Twice is as once.
                        index.remove(&mut list, &key, at);
                    }
                    None => {
                        let at = list.0.len() as u32;
                        list.0.push((key, 77));
                        index.insert(&mut list, &key, at);
                        model.insert(key, at);
                    }
                }
                for key in 0..60 {
                    prop_assert_eq!(index.find(&list, &key), model.get(&key).copied());
                }
            }
        }
    }
}
