//! Bytes between two sockets: just received, or waiting for room.

use crate::worker::pipes::{Bulk, Kept};

/// What a receive has just brought.
#[derive(Debug, Default)]
pub(super) enum Fresh {
    #[default]
    None,
    /// So many bytes, at the start of the worker's scratch buffer.
    Copied(usize),
    Piped(Bulk),
}

/// What was received and found no room at the other socket. There only while it waits.
#[derive(Debug)]
pub(super) enum Backlog {
    /// Exactly as large as it has to be.
    Bytes { bytes: Box<[u8]>, sent: usize },
    /// In the kernel's own pages.
    Pipe(Bulk),
}

impl Backlog {
    /// A copy of `bytes`, if there are any.
    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Box<Backlog>> {
        (!bytes.is_empty()).then(|| {
            Box::new(Backlog::Bytes {
                bytes: bytes.into(),
                sent: 0,
            })
        })
    }

    /// What [`Pipes::keep`](crate::worker::pipes::Pipes::keep) made of it.
    pub(super) fn of_kept(kept: Kept) -> Box<Backlog> {
        Box::new(match kept {
            Kept::Piped(bulk) => Backlog::Pipe(bulk),
            Kept::Copied(bytes) => Backlog::Bytes { bytes, sent: 0 },
        })
    }

    /// How many bytes wait.
    pub(super) fn left(&self) -> usize {
        match self {
            Backlog::Bytes { bytes, sent } => bytes.len() - sent,
            Backlog::Pipe(bulk) => bulk.held() as usize,
        }
    }
}
