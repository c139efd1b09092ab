//! What an event or a timer is about, in the 64 bits that the kernel hands back.

use crate::slab::Key;

/// The kinds of things that events come for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The worker's own eventfd.
    Wake = 1,
    /// A listening socket; as a timer: its frontend wants another look.
    Listener = 2,
    /// The client's socket of a connection; as a timer: the connection's.
    Downstream = 3,
    /// The backend's socket of a connection.
    Upstream = 4,
    /// A flow's upstream socket; as a timer: the flow's.
    Flow = 5,
    /// As a timer: the worker's own housekeeping.
    House = 6,
}

/// A kind (4 bits), an index (28) and a generation (32): names one entry of one slab, and is
/// stale once that entry is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u64);

impl Token {
    pub(crate) const fn new(kind: Kind, key: Key) -> Token {
        Token((kind as u64) << 60 | (key.index() as u64) << 32 | key.generation() as u64)
    }

    /// The token of something of which a worker has one only.
    pub(crate) const fn single(kind: Kind) -> Token {
        Token::new(kind, Key::from_parts(0, 0))
    }

    /// `None` for a number that no token has.
    pub(crate) const fn kind(self) -> Option<Kind> {
        Some(match self.0 >> 60 {
            1 => Kind::Wake,
            2 => Kind::Listener,
            3 => Kind::Downstream,
            4 => Kind::Upstream,
            5 => Kind::Flow,
            6 => Kind::House,
            _ => return None,
        })
    }

    /// The entry, in the slab of what `kind` says.
    pub(crate) const fn key(self) -> Key {
        Key::from_parts((self.0 >> 32) as u32 & 0x0FFF_FFFF, self.0 as u32)
    }

    pub(crate) const fn from_bits(bits: u64) -> Token {
        Token(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::MAX_ENTRIES;

    #[test]
    fn a_token_gives_back_its_parts() {
        let kinds = [
            Kind::Wake,
            Kind::Listener,
            Kind::Downstream,
            Kind::Upstream,
            Kind::Flow,
            Kind::House,
        ];
        for kind in kinds {
            for key in [
                Key::from_parts(0, 0),
                Key::from_parts(MAX_ENTRIES as u32 - 1, u32::MAX),
                Key::from_parts(5, 7),
            ] {
                let token = Token::from_bits(Token::new(kind, key).bits());
                assert_eq!(token.kind(), Some(kind));
                assert_eq!(token.key(), key);
            }
        }
        assert_eq!(Token::from_bits(0).kind(), None);
        assert_eq!(Token::from_bits(u64::MAX).kind(), None);
    }
}
