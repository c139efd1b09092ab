//! The in-flight slab: owns what an operation lends the kernel, from its submission until its final
//! completion, through cancel, error and the death of who asked for it.
//!
//! What the kernel was given a pointer to lies behind a [`Pinned`], in the bytes of a [`Backlog`] or in the provided
//! buffers, so that it stays where it is however the slab grows.

use std::net::SocketAddr;

use socket2::SockAddr;

use super::buffers::{Buffers, Chain};
use super::pinned::Pinned;
use super::tag::Owner;
use crate::slab::{Key, Slab};

/// Buffers that one send takes at most.
pub(crate) const MAX_PIECES: usize = 16;

/// Bytes of our own memory that wait to be sent.
#[derive(Debug)]
pub(crate) struct Backlog {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Backlog {
    /// Waits with all of `bytes`.
    pub(crate) fn new(bytes: Vec<u8>) -> Box<Backlog> {
        Box::new(Backlog {
            bytes: bytes.into(),
            sent: 0,
        })
    }

    /// What is not sent yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The first `n` bytes of the rest are sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.bytes.len());
    }
}

/// What a send sends.
#[derive(Debug)]
pub(crate) enum Payload {
    /// As it was received.
    Chain(Chain),
    /// Copied out of the way.
    Backlog(Box<Backlog>),
}

impl Payload {
    /// How many bytes are left of it.
    pub(crate) fn len(&self) -> u32 {
        match self {
            Payload::Chain(chain) => chain.len(),
            Payload::Backlog(backlog) => backlog.rest().len() as u32,
        }
    }

    /// Is nothing left of it?
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A message of several pieces, as sendmsg(2) wants it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Message {
    header: libc::msghdr,
    pieces: [libc::iovec; MAX_PIECES],
}

impl Message {
    /// The pieces of `chain`, which has at most [`MAX_PIECES`].
    fn new(buffers: &Buffers, chain: &Chain) -> Pinned<Message> {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut message = Box::new(Message {
            // SAFETY: all-zero is a valid value of this plain C structure.
            header: unsafe { std::mem::zeroed() },
            pieces: [none; MAX_PIECES],
        });
        let mut count = 0;
        for (piece, place) in buffers.pieces(chain).zip(&mut message.pieces) {
            place.iov_base = piece.as_ptr().cast_mut().cast();
            place.iov_len = piece.len();
            count += 1;
        }
        message.header.msg_iovlen = count;
        let message = Pinned::new(message);
        let at = message.as_ptr();
        // SAFETY: `message` owns what is there, and nobody else knows of it yet. The header points to the pieces behind
        // it from now on, which is why nothing may say that it alone does.
        unsafe { (*at).header.msg_iov = (&raw mut (*at).pieces).cast() };
        message
    }
}

/// One operation in flight and what it has lent.
#[derive(Debug)]
pub(super) enum Flight {
    Send {
        owner: Owner,
        payload: Payload,
        /// Read by the kernel with a chain of several pieces.
        #[expect(dead_code, reason = "held for the kernel, which has a pointer to it")]
        message: Option<Pinned<Message>>,
    },
    Connect {
        owner: Owner,
        #[cfg_attr(not(test), expect(dead_code, reason = "held for the kernel, as above"))]
        address: Pinned<[u8]>,
    },
}

/// Where a send's bytes are.
pub(super) enum Lent {
    Bytes(*const u8, u32),
    Message(*const libc::msghdr),
}

/// So many flights, and the allocator maps their memory by itself: it goes back to the system as it is released.
const BITS: u32 = 13;
/// Places that are kept while nothing is in flight.
const KEPT: u32 = 256;

/// Every operation of one ring that has lent something.
///
/// When thousands of connections begin at once, each has a connect or a send under way: half a megabyte for 9,000 of
/// them. That goes as soon as nothing is in flight, or an idle connection would have a fifth more to bear.
#[derive(Debug, Default)]
pub(super) struct Flights(Slab<Flight, BITS>);

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes over `payload`; its key, and where its bytes stay until [`Flights::land`].
    pub(super) fn send(
        &mut self,
        owner: Owner,
        payload: Payload,
        buffers: &Buffers,
    ) -> (Key, Lent) {
        let mut message = None;
        let lent = match &payload {
            Payload::Backlog(backlog) => bytes(backlog.rest()),
            Payload::Chain(chain) => {
                let mut pieces = buffers.pieces(chain);
                match (pieces.next(), pieces.next()) {
                    (None, _) => bytes(&[]),
                    (Some(only), None) => bytes(only),
                    (Some(_), Some(_)) => {
                        let several = message.insert(Message::new(buffers, chain));
                        // Its header is what it begins with.
                        Lent::Message(several.as_ptr().cast_const().cast())
                    }
                }
            }
        };
        let key = self.0.insert(Flight::Send {
            owner,
            payload,
            message,
        });
        (key, lent)
    }

    /// Takes over an address; its key, and where it stays until [`Flights::land`].
    pub(super) fn connect(
        &mut self,
        owner: Owner,
        to: SocketAddr,
    ) -> (Key, *const libc::sockaddr, libc::socklen_t) {
        let storage = SockAddr::from(to);
        let len = storage.len();
        // SAFETY: the first `len` bytes of the storage, which lives to the end of this call.
        let bytes = unsafe { std::slice::from_raw_parts(storage.as_ptr().cast(), len as usize) };
        // Not the whole storage: thousands of connects may be under way at once.
        let address: Pinned<[u8]> = Pinned::new(bytes.into());
        let at: *const u8 = address.as_ptr().cast_const().cast();
        let key = self.0.insert(Flight::Connect { owner, address });
        (key, at.cast(), len)
    }

    /// The final completion has come: the kernel gives back what it was lent.
    pub(super) fn land(&mut self, key: Key) -> Option<Flight> {
        let landed = self.0.remove(key);
        self.0.release(KEPT);
        landed
    }
}

fn bytes(bytes: &[u8]) -> Lent {
    Lent::Bytes(bytes.as_ptr(), bytes.len() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Side;

    fn owner() -> Owner {
        Owner {
            key: Key::from_parts(3, 7),
            side: Side::Upstream,
        }
    }

    /// What was lent stays where the kernel was told that it is, whatever comes and goes.
    #[test]
    fn what_is_lent_stays_in_its_place() {
        let buffers = Buffers::new(4, 16);
        let mut flights = Flights::default();
        let mut lent = Vec::new();
        for n in 0..100u8 {
            let payload = Payload::Backlog(Backlog::new(vec![n; 10]));
            let (key, Lent::Bytes(at, len)) = flights.send(owner(), payload, &buffers) else {
                panic!("a backlog is one piece");
            };
            lent.push((key, at, len, n));
            if n % 3 == 0 {
                let (key, ..) = lent.remove(usize::from(n) / 2 % lent.len());
                assert!(matches!(flights.land(key), Some(Flight::Send { .. })));
                assert!(flights.land(key).is_none(), "it landed");
            }
        }
        assert_eq!(flights.len(), lent.len());
        for (key, at, len, n) in lent {
            // SAFETY: the slab keeps the backlog until it lands, below.
            let bytes = unsafe { std::slice::from_raw_parts(at, len as usize) };
            assert_eq!(bytes, [n; 10]);
            let landed = flights.land(key);
            let Some(Flight::Send {
                payload: Payload::Backlog(mut backlog),
                ..
            }) = landed
            else {
                panic!("a send of a backlog");
            };
            backlog.advance(4);
            assert_eq!(backlog.rest(), [n; 6]);
        }
        assert!(flights.is_empty());
    }

    #[test]
    fn a_chain_of_several_pieces_is_a_message() {
        let mut buffers = Buffers::new(4, 16);
        let mut chain = buffers.received(0, 16);
        let later = buffers.received(1, 3);
        buffers.append(&mut chain, later);
        let mut flights = Flights::default();
        let (key, Lent::Message(header)) = flights.send(owner(), Payload::Chain(chain), &buffers)
        else {
            panic!("two pieces");
        };
        // SAFETY: the slab keeps the message until it lands, below.
        let lens: Vec<_> = unsafe {
            let header = &*header;
            std::slice::from_raw_parts(header.msg_iov, header.msg_iovlen)
        }
        .iter()
        .map(|piece| piece.iov_len)
        .collect();
        assert_eq!(lens, [16, 3]);
        let Some(Flight::Send {
            payload: Payload::Chain(chain),
            ..
        }) = flights.land(key)
        else {
            panic!("a send of a chain");
        };
        assert_eq!(chain.len(), 19);
        buffers.give(chain);
        assert_eq!(buffers.lent(), 0);
    }

    #[test]
    fn the_memory_of_many_goes_with_the_last_and_keys_stay_stale() {
        let to: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let mut flights = Flights::default();
        let many = if cfg!(miri) { 300 } else { 20_000 };
        let keys: Vec<Key> = (0..many).map(|_| flights.connect(owner(), to).0).collect();
        assert_eq!(flights.0.places(), many);
        for key in &keys {
            assert!(flights.land(*key).is_some());
        }
        assert_eq!(flights.0.places(), 0);
        let (key, ..) = flights.connect(owner(), to);
        assert!(
            keys.iter()
                .all(|old| *old != key && flights.land(*old).is_none())
        );
        assert!(flights.land(key).is_some());
        assert_eq!(flights.0.places(), 1, "kept");
    }

    #[test]
    fn an_address_stays_too() {
        let mut flights = Flights::default();
        let to: SocketAddr = "192.0.2.1:80".parse().expect("an address");
        let (key, at, len) = flights.connect(owner(), to);
        for _ in 0..50 {
            flights.connect(owner(), to);
        }
        assert!(!at.is_null() && len as usize == size_of::<libc::sockaddr_in>());
        let Some(Flight::Connect { address, .. }) = flights.land(key) else {
            panic!("a connect");
        };
        let family = (libc::AF_INET as u16).to_ne_bytes();
        assert_eq!(address.as_ptr().cast_const().cast(), at);
        // SAFETY: `address` owns as many bytes, and they live to the end of this test.
        let bytes = unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len as usize) };
        assert_eq!(bytes[..8], [family[0], family[1], 0, 80, 192, 0, 2, 1]);
    }
}
