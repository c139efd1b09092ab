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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KEY: HashKey = HashKey([5; 16]);

    fn client(n: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, n])
    }

    fn backend(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn pins(capacity: usize) -> Pins {
        Pins::new(capacity, Duration::from_secs(10), &KEY)
    }

    #[test]
    fn a_pin_lives_for_the_timeout_after_its_last_use() {
        let mut pins = pins(4);
        pins.pin(client(1), backend(1), at(0)).unwrap();
        assert_eq!(pins.lookup(client(1), at(9), |_| true), Some(backend(1)));
        assert_eq!(pins.next_expiry(), Some(at(19)));
        assert_eq!(pins.lookup(client(1), at(18), |_| true), Some(backend(1)));
        assert_eq!(pins.lookup(client(1), at(28), |_| true), None);
        assert!(pins.is_empty());
    }

    #[test]
    fn a_pin_to_an_unusable_backend_is_dropped() {
        let mut pins = pins(4);
        pins.pin(client(1), backend(1), at(0)).unwrap();
        assert_eq!(pins.lookup(client(1), at(1), |b| b != backend(1)), None);
        // It stays dropped, were the backend to come back.
        assert_eq!(pins.lookup(client(1), at(1), |_| true), None);
        pins.pin(client(1), backend(2), at(1)).unwrap();
        assert_eq!(pins.lookup(client(1), at(2), |_| true), Some(backend(2)));
    }

    #[test]
    fn full_refuses_the_new_and_keeps_the_old() {
        let mut pins = pins(2);
        pins.pin(client(1), backend(1), at(0)).unwrap();
        pins.pin(client(2), backend(1), at(5)).unwrap();
        assert_eq!(pins.pin(client(3), backend(1), at(9)), Err(Full));
        // A pinned client may still change its backend.
        assert_eq!(pins.pin(client(2), backend(2), at(9)), Ok(()));
        // The first has expired and makes room.
        assert_eq!(pins.pin(client(3), backend(1), at(10)), Ok(()));
        assert_eq!(pins.lookup(client(1), at(10), |_| true), None);
        assert_eq!(pins.lookup(client(2), at(10), |_| true), Some(backend(2)));
        assert_eq!(
            Pins::new(0, Duration::MAX, &KEY).pin(client(1), backend(1), at(0)),
            Err(Full)
        );
    }

    #[test]
    fn one_client_in_both_notations_has_one_pin() {
        let mut pins = pins(2);
        pins.pin("::ffff:198.51.100.1".parse().unwrap(), backend(1), at(0))
            .unwrap();
        assert_eq!(pins.lookup(client(1), at(0), |_| true), Some(backend(1)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Lookup(u8, u8),
        Pin(u8, u8),
        Expire(usize),
        Timeout(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..12, 0u8..4).prop_map(|(c, b)| Step::Lookup(c, b)),
            4 => (0u8..12, 0u8..4).prop_map(|(c, b)| Step::Pin(c, b)),
            1 => (0usize..4).prop_map(Step::Expire),
            1 => (1u64..15).prop_map(Step::Timeout),
        ]
    }

    /// Client -> backend, last use; oldest first where a choice is made.
    #[derive(Default)]
    struct Naive {
        pins: BTreeMap<IpAddr, (SocketAddr, u64, u64)>,
        uses: u64,
    }

    impl Naive {
        fn put(&mut self, client: IpAddr, backend: SocketAddr, now: u64) {
            self.uses += 1;
            self.pins.insert(client, (backend, now, self.uses));
        }

        fn expire(&mut self, now: u64, timeout: u64, budget: usize) -> usize {
            let mut over: Vec<_> = self.pins.iter().map(|(c, p)| (p.2, p.1, *c)).collect();
            over.sort_unstable();
            over.truncate(budget);
            over.retain(|&(_, used, _)| now - used >= timeout);
            for (_, _, client) in &over {
                self.pins.remove(client);
            }
            over.len()
        }
    }

    proptest! {
        #[test]
        fn is_the_naive_map(
            steps in proptest::collection::vec((step(), 0u64..4), 0..if cfg!(miri) { 20 } else { 200 }),
            capacity in 0usize..8,
        ) {
            let mut pins = pins(capacity);
            let (mut naive, mut now, mut timeout) = (Naive::default(), 0, 10);
            for (step, elapsed) in steps {
                now += elapsed;
                match step {
                    Step::Lookup(c, dead) => {
                        let usable = |b: SocketAddr| b != backend(dead);
                        let pin = naive.pins.remove(&client(c));
                        let kept = pin.filter(|p| now - p.1 < timeout && usable(p.0)).map(|p| p.0);
                        if let Some(b) = kept {
                            naive.put(client(c), b, now);
                        }
                        prop_assert_eq!(pins.lookup(client(c), at(now), usable), kept);
                    }
                    Step::Pin(c, b) => {
                        let known = naive.pins.contains_key(&client(c));
                        let room = naive.pins.len() < capacity
                            || known
                            || naive.expire(now, timeout, 1) > 0;
                        if room {
                            naive.put(client(c), backend(b), now);
                        }
                        prop_assert_eq!(pins.pin(client(c), backend(b), at(now)).is_ok(), room);
                    }
                    Step::Expire(budget) => {
                        let expected = naive.expire(now, timeout, budget);
                        prop_assert_eq!(pins.expire(at(now), budget), expected);
                    }
                    Step::Timeout(seconds) => {
                        timeout = seconds;
                        pins.set_timeout(Duration::from_secs(seconds));
                    }
                }
                prop_assert_eq!(pins.len(), naive.pins.len());
                prop_assert!(pins.pins.len() <= capacity);
                let first = naive.pins.values().map(|p| (p.2, p.1)).min();
                prop_assert_eq!(pins.next_expiry(), first.map(|(_, used)| at(used + timeout)));
            }
        }
    }
}
