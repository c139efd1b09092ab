//! How many flows each client address has, and the keyed hash that keeps clients from choosing
//! where they land.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip::SipHasher13;

use super::chain::{Chain, Order};
use super::index::{Entries, Index, Key};
use super::slots::Slots;
use crate::slab::Slab;

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

/// An address, whether written as IPv4 or mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Address(Ipv6Addr);

impl Address {
    fn new(address: IpAddr) -> Address {
        match address {
            IpAddr::V4(v4) => Address(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => Address(v6),
        }
    }

    #[cfg(any(test, fuzzing))]
    fn ip(self) -> IpAddr {
        IpAddr::V6(self.0).to_canonical()
    }
}

impl Key for Address {
    fn feed(&self, hasher: &mut impl Hasher) {
        hasher.write(&self.0.octets());
    }
}

#[derive(Debug)]
struct Source {
    address: Address,
    flows: usize,
    one_way: Chain,
    /// The next source of the index's chain.
    after: u32,
}

impl Entries<Address> for Slab<Source> {
    fn is(&self, at: u32, key: &Address) -> bool {
        source(self, at).is_some_and(|source| source.address == *key)
    }

    fn after(&self, at: u32) -> u32 {
        source(self, at).map_or(0, |source| source.after)
    }

    fn set_after(&mut self, at: u32, after: u32) {
        if let Some(source) = self.key_at(at).and_then(|key| self.get_mut(key)) {
            source.after = after;
        }
    }
}

fn source(all: &Slab<Source>, at: u32) -> Option<&Source> {
    all.get(all.key_at(at)?)
}

#[derive(Debug)]
pub(super) struct Sources {
    limit: usize,
    index: Index,
    all: Slab<Source>,
}

impl Sources {
    /// `most` is how many there may be.
    pub(super) fn new(limit: usize, most: usize, hash: KeyedHash) -> Sources {
        Sources {
            limit,
            index: Index::new(most, hash),
            all: Slab::new(),
        }
    }

    fn find(&self, address: Address) -> Option<(u32, &Source)> {
        let at = self.index.find(&self.all, &address)?;
        Some((at, source(&self.all, at)?))
    }

    fn find_mut(&mut self, address: Address) -> Option<(u32, &mut Source)> {
        let at = self.index.find(&self.all, &address)?;
        let key = self.all.key_at(at)?;
        Some((at, self.all.get_mut(key)?))
    }

    pub(super) fn is_full(&self, address: IpAddr) -> bool {
        let found = self.find(Address::new(address));
        found.is_some_and(|(_, source)| source.flows >= self.limit)
    }

    pub(super) fn oldest_one_way(&self, address: IpAddr) -> Option<u32> {
        self.find(Address::new(address))?.1.one_way.first()
    }

    /// A new flow, one-way.
    pub(super) fn add<T>(&mut self, address: IpAddr, slots: &mut Slots<T>, index: u32) {
        let address = Address::new(address);
        if let Some((_, source)) = self.find_mut(address) {
            source.flows += 1;
            return slots.push(&mut source.one_way, Order::Source, index);
        }
        let mut source = Source {
            address,
            flows: 1,
            one_way: Chain::default(),
            after: 0,
        };
        slots.push(&mut source.one_way, Order::Source, index);
        let at = self.all.insert(source).index();
        self.index.insert(&mut self.all, &address, at);
    }

    /// A one-way flow has become two-way.
    pub(super) fn established<T>(&mut self, address: IpAddr, slots: &mut Slots<T>, index: u32) {
        if let Some((_, source)) = self.find_mut(Address::new(address)) {
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
        let address = Address::new(address);
        let Some((at, source)) = self.find_mut(address) else {
            return;
        };
        if !two_way {
            slots.unlink(&mut source.one_way, Order::Source, index);
        }
        source.flows -= 1;
        if source.flows == 0 {
            self.index.remove(&mut self.all, &address, at);
            if let Some(key) = self.all.key_at(at) {
                self.all.remove(key);
            }
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn counts(&self) -> std::collections::HashMap<IpAddr, usize> {
        let sources = self.all.iter().map(|(_, source)| source);
        sources.map(|s| (s.address.ip(), s.flows)).collect()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn chains(&self) -> impl Iterator<Item = (IpAddr, &Chain)> {
        let sources = self.all.iter().map(|(_, source)| source);
        sources.map(|s| (s.address.ip(), &s.one_way))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
