//! A completion ring, as hostile as io_uring(7) allows: operations complete short, early, late or
//! in another order than they were submitted in; a multishot receive delivers several chunks before
//! anyone looks, and ends when it likes; a cancel loses its race or wins it.
//!
//! What it keeps: completions of one socket are posted in the order in which its operations took
//! effect. Which of them took the socket's error is therefore known before what came after it.

use std::collections::VecDeque;

use super::socket::{Socket, Taken};
use crate::chance::Chance;
use crate::conn::{Cause, Side};
use crate::slab::Key;

/// An operation with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Of the upstream socket.
    Connect,
    /// Into buffers that the kernel takes from a ring of them.
    Receive {
        from: Side,
        multishot: bool,
    },
    Send {
        to: Side,
        waiting: u64,
    },
    /// Until the socket has an error.
    Watch {
        of: Side,
    },
}

impl Op {
    fn socket(self) -> Side {
        match self {
            Op::Connect => Side::Upstream,
            Op::Receive { from: side, .. } | Op::Send { to: side, .. } | Op::Watch { of: side } => {
                side
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Connected,
    ConnectFailed(Cause),
    Taken(Taken),
    /// No buffer was left (ENOBUFS).
    NoBuffer,
    Sent(u64),
    SendFailed(Cause),
    /// There is an error to be read, or was.
    Seen,
    Cancelled,
}

/// What is posted for an operation; the last, unless `more` follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) key: Key,
    pub(super) outcome: Outcome,
    pub(super) more: bool,
}

#[derive(Debug)]
struct Active {
    key: Key,
    op: Op,
    cancelling: bool,
}

#[derive(Debug)]
pub(super) struct Kernel {
    active: Vec<Active>,
    /// Posted, and not looked at by the driver.
    posted: [VecDeque<Completion>; 2],
    /// That receives may take.
    pub(super) buffers: u64,
    buffer_size: u64,
}

impl Kernel {
    pub(super) fn new(chance: &mut Chance<'_>) -> Kernel {
        Kernel {
            active: Vec::new(),
            posted: Default::default(),
            buffers: 1 + chance.below(8),
            buffer_size: [256, 1_024, 4_096, 16_384][chance.below(4) as usize],
        }
    }

    /// Has it neither work nor news?
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty() && self.posted.iter().all(VecDeque::is_empty)
    }

    pub(super) fn submit(&mut self, key: Key, op: Op) {
        let cancelling = false;
        self.active.push(Active {
            key,
            op,
            cancelling,
        });
    }

    /// Asks an operation to end; it may have ended, or go on for a while.
    pub(super) fn cancel(&mut self, key: Key) {
        if let Some(active) = self.active.iter_mut().find(|active| active.key == key) {
            active.cancelling = true;
        }
    }

    /// Lets one operation do something, if it can.
    pub(super) fn work(&mut self, sockets: &mut [Socket; 2], chance: &mut Chance<'_>) {
        let Some(last) = self.active.len().checked_sub(1) else {
            return;
        };
        let i = chance.below(last as u64 + 1) as usize;
        let Active {
            key,
            op,
            cancelling,
        } = self.active[i];
        let done = match cancelling && chance.percent(50) {
            true => Some((Outcome::Cancelled, false)),
            false => self.execute(op, sockets, chance),
        };
        let Some((outcome, more)) = done else {
            return;
        };
        if !more {
            self.active.remove(i);
        }
        let posted = &mut self.posted[op.socket().index()];
        posted.push_back(Completion { key, outcome, more });
    }

    fn execute(
        &mut self,
        op: Op,
        sockets: &mut [Socket; 2],
        chance: &mut Chance<'_>,
    ) -> Option<(Outcome, bool)> {
        match op {
            Op::Connect => match chance.below(6) {
                0..=1 => {
                    let causes = [Cause::Refused, Cause::Unreachable, Cause::NoPort];
                    let cause = causes[chance.below(3) as usize];
                    Some((Outcome::ConnectFailed(cause), false))
                }
                2..=3 => Some((Outcome::Connected, false)),
                // The handshake goes on.
                _ => None,
            },
            Op::Receive { from, multishot } => {
                let socket = &mut sockets[from.index()];
                if socket.queue > 0 && self.buffers == 0 {
                    return Some((Outcome::NoBuffer, false));
                }
                let taken = socket.receive(self.buffer_size, chance)?;
                let bytes = matches!(taken, Taken::Bytes(_));
                self.buffers -= u64::from(bytes);
                // A multishot may end for reasons of the kernel's own.
                let more = multishot && bytes && !chance.percent(5);
                Some((Outcome::Taken(taken), more))
            }
            Op::Send { to, waiting } => {
                let sent = sockets[to.index()].send(waiting, chance)?;
                Some((sent.map_or_else(Outcome::SendFailed, Outcome::Sent), false))
            }
            Op::Watch { of } => {
                let socket = &sockets[of.index()];
                (socket.error.is_some() || socket.dead).then_some((Outcome::Seen, false))
            }
        }
    }

    /// One completion: those of one socket come in their order, those of two in any.
    pub(super) fn reap(&mut self, chance: &mut Chance<'_>) -> Option<Completion> {
        let [downstream, upstream] = &mut self.posted;
        let (first, second) = match chance.percent(50) {
            true => (downstream, upstream),
            false => (upstream, downstream),
        };
        first.pop_front().or_else(|| second.pop_front())
    }
}
