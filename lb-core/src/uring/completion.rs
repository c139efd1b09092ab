//! What the ring has to tell, in types.

use io_uring::cqueue;
use rustix::io::Errno;

use super::buffers::Chain;
use super::flights::{Flight, Payload};
use super::ring::Ring;
use super::tag::{Op, Owner, Tag};
use crate::slab::Key;

/// What became of an operation.
#[derive(Debug)]
pub(crate) enum Completion {
    /// The epoll instance has events.
    Readiness,
    /// A multishot receive; without `more` it has ended.
    Received { owner: Owner, got: Got, more: bool },
    /// A send has ended; what it did not send is given back.
    Sent {
        owner: Owner,
        result: Result<u32, Errno>,
        rest: Payload,
    },
    /// A connect has ended. `flight` tells one try from another.
    Connected {
        owner: Owner,
        flight: Key,
        result: Result<(), Errno>,
    },
    /// A poll has ended: the socket is ready, or has failed, or the poll was cancelled.
    Ready { owner: Owner, what: Readable },
    /// Nothing that anybody waits for.
    Nothing,
}

/// What a receive has brought.
#[derive(Debug)]
pub(crate) enum Got {
    /// Bytes, at least one.
    Data(Chain),
    /// A FIN, or the end of the queue of a socket that has failed.
    End,
    /// It was cancelled, or ended by itself: nothing is wrong with the socket.
    Paused,
    /// No provided buffer was left.
    NoBuffers,
    /// The socket has failed.
    Failed(Errno),
}

/// What a poll was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readable {
    /// Something to receive.
    In,
    /// Room to send.
    Out,
}

impl Ring {
    /// Takes one entry of the completion queue for what it is.
    pub(super) fn decode(&mut self, entry: &cqueue::Entry) -> Completion {
        let tag = Tag::from_bits(entry.user_data());
        let (owner, flags, result) = (tag.owner(), entry.flags(), outcome(entry.result()));
        let more = cqueue::more(flags);
        match tag.op() {
            None => Completion::Nothing,
            Some(Op::House) if tag == Tag::READINESS => {
                self.polls_readiness = false;
                Completion::Readiness
            }
            Some(Op::House) => Completion::Nothing,
            Some(Op::Receive) => {
                let got = self.received(result, flags);
                Completion::Received { owner, got, more }
            }
            Some(Op::PollIn) => Completion::Ready {
                owner,
                what: Readable::In,
            },
            Some(Op::PollOut) => Completion::Ready {
                owner,
                what: Readable::Out,
            },
            Some(Op::Flight) => self.landed(owner.key, result),
        }
    }

    fn received(&mut self, result: Result<u32, Errno>, flags: u32) -> Got {
        let buffer = cqueue::buffer_select(flags);
        match (result, buffer) {
            (Ok(n), Some(id)) if n > 0 => Got::Data(self.buffers.received(id, n)),
            (result, Some(id)) => {
                // A buffer with nothing in it.
                let empty = self.buffers.received(id, 0);
                self.buffers.give(empty);
                self.without_data(result)
            }
            (result, None) => self.without_data(result),
        }
    }

    fn without_data(&mut self, result: Result<u32, Errno>) -> Got {
        match result {
            Ok(_) => Got::End,
            Err(Errno::NOBUFS) => {
                self.counts.no_buffers += 1;
                Got::NoBuffers
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::AGAIN) => Got::Paused,
            Err(errno) => Got::Failed(errno),
        }
    }

    fn landed(&mut self, key: Key, result: Result<u32, Errno>) -> Completion {
        match self.flights.land(key) {
            Some(Flight::Send {
                owner, mut payload, ..
            }) => {
                if let Ok(n) = result {
                    match &mut payload {
                        Payload::Chain(chain) => self.buffers.consume(chain, n),
                        Payload::Backlog(backlog) => backlog.advance(n as usize),
                    }
                }
                let rest = payload;
                Completion::Sent {
                    owner,
                    result,
                    rest,
                }
            }
            Some(Flight::Connect { owner, .. }) => Completion::Connected {
                owner,
                flight: key,
                result: result.map(drop),
            },
            None => Completion::Nothing,
        }
    }
}

fn outcome(result: i32) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}
