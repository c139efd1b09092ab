//! How many flows each client address has, and the keyed hash that keeps clients from choosing
//! where they land.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::chain::{Chain, Order};
use super::slots::Slots;

/// SipHash-1-3 under a secret key: colliding keys cannot be computed without it.
#[derive(Clone)]
pub(super) struct KeyedHash([u8; 16]);

impl KeyedHash {
    pub(super) fn new(seed: [u8; 16]) -> KeyedHash {
        KeyedHash(seed)
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}

impl std::fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyedHash(..)")
    }
}

#[derive(Debug, Default)]
struct Source {
    flows: usize,
    one_way: Chain,
}

#[derive(Debug)]
pub(super) struct Sources {
    limit: usize,
    by_address: HashMap<IpAddr, Source, KeyedHash>,
}

impl Sources {
    pub(super) fn new(limit: usize, hash: KeyedHash) -> Sources {
        Sources {
            limit,
            by_address: HashMap::with_hasher(hash),
        }
    }

    pub(super) fn is_full(&self, address: IpAddr) -> bool {
        self.by_address
            .get(&address.to_canonical())
            .is_some_and(|s| s.flows >= self.limit)
    }

    pub(super) fn oldest_one_way(&self, address: IpAddr) -> Option<u32> {
        self.by_address
            .get(&address.to_canonical())?
            .one_way
            .first()
    }

    /// A new flow, one-way.
    pub(super) fn add<T>(&mut self, address: IpAddr, slots: &mut Slots<T>, index: u32) {
        let source = self.by_address.entry(address.to_canonical()).or_default();
        source.flows += 1;
        slots.push(&mut source.one_way, Order::Source, index);
    }

    /// A one-way flow has become two-way.
    pub(super) fn established<T>(&mut self, address: IpAddr, slots: &mut Slots<T>, index: u32) {
        if let Some(source) = self.by_address.get_mut(&address.to_canonical()) {
            slots.unlink(&mut source.one_way, Order::Source, index);
        }
    }

    /// A flow ends.
    pub(super) fn remove<T>(
        &mut self,
        address: IpAddr,
        slots: &mut Slots<T>,
        index: u32,
        two_way: bool,
    ) {
        let address = address.to_canonical();
        if let Some(source) = self.by_address.get_mut(&address) {
            if !two_way {
                slots.unlink(&mut source.one_way, Order::Source, index);
            }
            source.flows -= 1;
            if source.flows == 0 {
                self.by_address.remove(&address);
            }
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn counts(&self) -> HashMap<IpAddr, usize> {
        let sources = self.by_address.iter();
        sources.map(|(ip, source)| (*ip, source.flows)).collect()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn chains(&self) -> impl Iterator<Item = (IpAddr, &Chain)> {
        let sources = self.by_address.iter();
        sources.map(|(ip, source)| (*ip, &source.one_way))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }
}
