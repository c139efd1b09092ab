//! Which backend a client is kept with.
//!
//! PURE. One [`Pins`] per frontend that asks for affinity and per worker; the listeners steer by
//! source address, so one worker sees all connections of a client. A pin lives until its client
//! has opened no connection for the timeout, or until its backend takes no new work any more.
//! Bounded: at capacity a new client is not pinned (the hash by client address keeps it together
//! as well as it can), and nobody's pin is thrown out for it, so a flood of clients cannot unpin
//! the others.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::table::HashKey;
use crate::time::Time;

/// No client can be pinned: every pin is taken by one that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all affinity pins are in use; raise the limit or shorten the affinity timeout")]
pub struct Full;

/// The pins of one frontend in one worker.
#[derive(Debug)]
pub struct Pins {
    timeout: Duration,
    capacity: usize,
    /// Places in `pins`. Keyed: clients choose their addresses, at least under IPv6.
    places: HashMap<IpAddr, u32, Keyed>,
    /// A list in order of last use runs through it, so that what expires first is at its head.
    pins: Vec<Pin>,
    /// Unused entries of `pins`.
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Pin {
    client: IpAddr,
    backend: SocketAddr,
    used: Time,
    older: u32,
    newer: u32,
}

/// The end of the list.
const NONE: u32 = u32::MAX;

impl Pins {
    /// At most `capacity` pins (no more than 2^32 - 1), each for `timeout` after its client's last
    /// new connection. Memory is taken as pins are, some 120 bytes each. `key` guards against chosen
    /// addresses and may be any secret.
    pub fn new(capacity: usize, timeout: Duration, key: &HashKey) -> Pins {
        Pins {
            timeout,
            capacity: capacity.min(NONE as usize),
            places: HashMap::with_hasher(Keyed(*key)),
            pins: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    /// How many clients are pinned, those included that have expired and were not collected yet.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Nobody is pinned?
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The policy has changed: from now on every pin, old ones too, lives for `timeout`.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The backend of `client`, for a connection that it opens now: the pin lives for another
    /// timeout. A pin that has expired, or whose backend is not `usable` any more, is dropped; the
    /// caller picks anew and [pins](Pins::pin).
    pub fn lookup(
        &mut self,
        client: IpAddr,
        now: Time,
        usable: impl Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        let client = client.to_canonical();
        let place = *self.places.get(&client)?;
        let pin = &self.pins[place as usize];
        let backend = pin.backend;
        if self.is_over(pin, now) || !usable(backend) {
            self.remove(place);
            return None;
        }
        self.touch(place, now);
        Some(backend)
    }

    /// Keeps `client` with `backend`, in place of any pin that it has.
    ///
    /// # Errors
    /// [`Full`] if every pin is another client's and alive; nothing changes then.
    pub fn pin(&mut self, client: IpAddr, backend: SocketAddr, now: Time) -> Result<(), Full> {
        let client = client.to_canonical();
        if let Some(&place) = self.places.get(&client) {
            self.pins[place as usize].backend = backend;
            self.touch(place, now);
            return Ok(());
        }
        if self.places.len() >= self.capacity && self.expire(now, 1) == 0 {
            return Err(Full);
        }
        let pin = Pin {
            client,
            backend,
            used: now,
            older: NONE,
            newer: NONE,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.pins[place as usize] = pin;
                place
            }
            None => {
                self.pins.push(pin);
                self.pins.len() as u32 - 1
            }
        };
        self.places.insert(client, place);
        self.append(place);
        Ok(())
    }

    /// Drops up to `budget` expired pins, longest unused first; answers how many.
    pub fn expire(&mut self, now: Time, budget: usize) -> usize {
        let mut dropped = 0;
        while dropped < budget && self.oldest != NONE {
            if !self.is_over(&self.pins[self.oldest as usize], now) {
                break;
            }
            self.remove(self.oldest);
            dropped += 1;
        }
        dropped
    }

    /// When the first pin expires, if none is used before.
    pub fn next_expiry(&self) -> Option<Time> {
        let oldest = self.pins.get(self.oldest as usize)?;
        Some(oldest.used + self.timeout)
    }

    fn is_over(&self, pin: &Pin, now: Time) -> bool {
        now.since(pin.used) >= self.timeout
    }

    fn touch(&mut self, place: u32, now: Time) {
        self.unlink(place);
        self.pins[place as usize].used = now;
        self.append(place);
    }

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        let client = self.pins[place as usize].client;
        self.places.remove(&client);
        self.free.push(place);
    }

    fn append(&mut self, place: u32) {
        let older = std::mem::replace(&mut self.newest, place);
        match self.pins.get_mut(older as usize) {
            Some(pin) => pin.newer = place,
            None => self.oldest = place,
        }
        let pin = &mut self.pins[place as usize];
        (pin.older, pin.newer) = (older, NONE);
    }

    fn unlink(&mut self, place: u32) {
        let Pin { older, newer, .. } = self.pins[place as usize];
        match self.pins.get_mut(older as usize) {
            Some(pin) => pin.newer = newer,
            None => self.oldest = newer,
        }
        match self.pins.get_mut(newer as usize) {
            Some(pin) => pin.older = older,
            None => self.newest = older,
        }
    }
}

/// SipHash-1-3 under our key, for std's map.
#[derive(Clone, Debug)]
struct Keyed(HashKey);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0.0)
    }
}

#[cfg(test)]
mod tests {}
