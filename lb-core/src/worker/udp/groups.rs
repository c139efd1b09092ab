//! The datagrams of a batch, sorted by who sent them.
//!
//! PURE. Each sender's stay in their order; senders come in the order of their first one. So a
//! flow is looked up once for all that it brought, and what leaves by it can leave together,
//! however the senders' datagrams were mixed on the wire.

use std::net::{IpAddr, SocketAddr};

use crate::sys::udp::BATCH;

const BUCKETS: usize = (2 * BATCH).next_power_of_two();
/// End of a chain, or an empty bucket.
const NONE: u8 = u8::MAX;

// Everything is counted in bytes.
const _: () = assert!(BATCH < NONE as usize);

#[derive(Clone, Copy, Debug)]
struct Group {
    sender: SocketAddr,
    first: u8,
    last: u8,
}

/// Reused from batch to batch.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Vec<Group>,
    /// A datagram's successor of the same sender.
    next: [u8; BATCH],
    /// Groups by hash, with linear probing. The hash is no secret: all that a forger of colliding
    /// senders gains is that a batch takes BATCH^2 / 2 comparisons.
    buckets: [u8; BUCKETS],
}

impl Default for Groups {
    fn default() -> Groups {
        Groups {
            groups: Vec::with_capacity(BATCH),
            next: [NONE; BATCH],
            buckets: [NONE; BUCKETS],
        }
    }
}

impl Groups {
    /// Forgets them all.
    pub(super) fn clear(&mut self) {
        if !self.groups.is_empty() {
            self.groups.clear();
            self.buckets = [NONE; BUCKETS];
        }
    }

    /// Datagram `n`, below [`BATCH`], is of `sender`; `n` grows from call to call.
    pub(super) fn add(&mut self, n: usize, sender: SocketAddr) {
        let at = self.group_of(sender, n as u8);
        let group = &mut self.groups[at];
        self.next[usize::from(group.last)] = n as u8;
        group.last = n as u8;
        self.next[n] = NONE;
    }

    /// The sender's group: made, with nothing but `n` in it, if there is none.
    fn group_of(&mut self, sender: SocketAddr, n: u8) -> usize {
        let mut bucket = hash(&sender);
        loop {
            match self.buckets[bucket] {
                NONE => break,
                at if self.groups[usize::from(at)].sender == sender => return usize::from(at),
                _ => bucket = (bucket + 1) % BUCKETS,
            }
        }
        let at = self.groups.len();
        self.buckets[bucket] = at as u8;
        self.groups.push(Group {
            sender,
            first: n,
            last: n,
        });
        at
    }

    /// How many senders there are.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// A sender, and its datagrams in order.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(super) fn at(&self, group: usize) -> (SocketAddr, impl Iterator<Item = usize>) {
        let Group { sender, first, .. } = self.groups[group];
        let step = |n: &u8| Some(self.next[usize::from(*n)]).filter(|&next| next != NONE);
        let chain = std::iter::successors(Some(first), step);
        (sender, chain.map(usize::from))
    }
}

/// Where to look first.
fn hash(sender: &SocketAddr) -> usize {
    let address = match sender.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(29)
        }
    };
    // Fibonacci hashing (Knuth 6.4): the upper bits of the product are the mixed ones.
    let mixed = (address << 16 ^ u64::from(sender.port())).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> (64 - BUCKETS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sender(n: u8) -> SocketAddr {
        match n % 2 {
            0 => SocketAddr::from(([10, 0, 0, n / 16], 1_000 + u16::from(n))),
            _ => SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)], 53)),
        }
    }

    proptest! {
        /// Against sorting by the first appearance; reused, so that nothing is left of before.
        #[test]
        fn as_a_stable_sort(batches in prop::collection::vec(
            prop::collection::vec(0u8..40, 0..=BATCH), 1..5)
        ) {
            let mut groups = Groups::default();
            for batch in batches {
                groups.clear();
                for (n, who) in batch.iter().enumerate() {
                    groups.add(n, sender(*who));
                }
                let found: Vec<_> = (0..groups.len())
                    .map(|at| groups.at(at))
                    .map(|(sender, chain)| (sender, chain.collect::<Vec<_>>()))
                    .collect();
                let mut expected: Vec<(SocketAddr, Vec<usize>)> = vec![];
                for (n, who) in batch.iter().enumerate() {
                    match expected.iter_mut().find(|(s, _)| *s == sender(*who)) {
                        Some((_, chain)) => chain.push(n),
                        None => expected.push((sender(*who), vec![n])),
                    }
                }
                prop_assert_eq!(found, expected);
            }
        }
    }
}
