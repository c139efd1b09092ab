//! What an operation is and whom it is for, in the 64 bits that the kernel hands back.
//!
//! PURE. An operation that lends the kernel nothing of ours names its owner directly. One that
//! lends memory names its place in the in-flight slab, which knows the owner.

use crate::conn::Side;
use crate::slab::Key;

/// One socket of one connection. Stale once the connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The connection, in the slab of its driver.
    pub(crate) key: Key,
    /// Which of its sockets.
    pub(crate) side: Side,
}

/// The kinds of operations, as the tags tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// A poll of the epoll instance, or an operation whose completion says nothing.
    House = 0,
    Receive = 1,
    PollIn = 2,
    PollOut = 3,
    /// Lends memory: the rest is a key of the in-flight slab.
    Flight = 4,
}

/// Op (3 bits), side (1), index (28), generation (32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// Of what only a failure would be told, and nobody would act on it.
    pub(super) const NOBODY: Tag = Tag(0);
    /// Of the poll of the epoll instance.
    pub(super) const READINESS: Tag = Tag(1);

    pub(super) fn new(op: Op, owner: Owner) -> Tag {
        let Owner { key, side } = owner;
        Tag((op as u64) << 61
            | (side.index() as u64) << 60
            | u64::from(key.index()) << 32
            | u64::from(key.generation()))
    }

    /// A tag that needs no side.
    pub(super) fn keyed(op: Op, key: Key) -> Tag {
        let side = Side::Downstream;
        Tag::new(op, Owner { key, side })
    }

    pub(super) const fn from_bits(bits: u64) -> Tag {
        Tag(bits)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// `None` for a number that no tag has.
    pub(super) const fn op(self) -> Option<Op> {
        Some(match self.0 >> 61 {
            0 => Op::House,
            1 => Op::Receive,
            2 => Op::PollIn,
            3 => Op::PollOut,
            4 => Op::Flight,
            _ => return None,
        })
    }

    pub(super) fn owner(self) -> Owner {
        let key = Key::from_parts((self.0 >> 32) as u32 & 0x0FFF_FFFF, self.0 as u32);
        let side = match self.0 >> 60 & 1 {
            0 => Side::Downstream,
            _ => Side::Upstream,
        };
        Owner { key, side }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::MAX_ENTRIES;

    #[test]
    fn a_tag_gives_back_its_parts() {
        let ops = [Op::House, Op::Receive, Op::PollIn, Op::PollOut, Op::Flight];
        for op in ops {
            for key in [
                Key::from_parts(0, 0),
                Key::from_parts(MAX_ENTRIES as u32 - 1, u32::MAX),
            ] {
                for side in Side::BOTH {
                    let owner = Owner { key, side };
                    let tag = Tag::from_bits(Tag::new(op, owner).bits());
                    assert_eq!((tag.op(), tag.owner()), (Some(op), owner));
                }
            }
        }
        assert_eq!(Tag::from_bits(u64::MAX).op(), None);
        assert_eq!(Tag::NOBODY.op(), Some(Op::House));
        assert_ne!(Tag::NOBODY, Tag::READINESS);
    }
}
