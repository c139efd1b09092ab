//! One socket of a connection, and what came from it that the other one has not been sent yet.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::marks::Marks;
use crate::conn::Side;
use crate::sys::epoll::Interest;
use crate::sys::socket;
use crate::uring::{Backlog, Chain, Got, Owner, Payload, Ring};
use crate::worker::cx::Cx;
use crate::worker::pace::Pace;
use crate::worker::pipes::Bulk;
use crate::worker::token::{Kind, Token};

/// Bytes that may have come from one socket while a send of what came before is under way; past
/// it the receive is cancelled. A receive that is under way may still bring more: the kernel
/// receives up to 32 buffers in one go.
const MAX_QUEUED: u32 = 128 << 10;

/// Where the multishot receive of a lane stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Receiving {
    #[default]
    Off,
    On,
    /// Cancelled: its last completion has not come yet.
    Ending,
}

/// Is there something to splice?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ready {
    /// Not until a poll says so.
    #[default]
    No,
    /// There was much a moment ago.
    Maybe,
    /// A poll has said so: bytes, a FIN or an error.
    Told,
}

/// How a socket's queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Fin,
    Failed(Errno),
}

/// What a lane holds only while its receiver is slow.
#[derive(Debug, Default)]
pub(super) struct Slow {
    /// What is to be sent next, when no send of it is under way.
    pub(super) backlog: Option<Box<Backlog>>,
    /// What came after it.
    pub(super) stash: Vec<u8>,
    /// What was spliced; nothing waits beside it.
    pub(super) pipe: Option<Bulk>,
}

impl Slow {
    fn is_empty(&self) -> bool {
        self.backlog.is_none() && self.stash.is_empty() && self.pipe.is_none()
    }
}

/// One socket and the bytes that came from it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) socket: Option<OwnedFd>,
    pub(super) marks: Marks,
    /// How it has come of late: bulk is spliced.
    pub(super) pace: Pace,
    /// Received, and not yet handed to the machine.
    pub(super) queue: Chain,
    /// What ended the queue, behind all that is in it.
    pub(super) end: Option<End>,
    /// What became of the last send of what came from this socket, if nobody has asked yet.
    sent: Sent,
    pub(super) receiving: Receiving,
    pub(super) readable: Ready,
    pub(super) slow: Option<Box<Slow>>,
}

/// A send's result in four bytes: how much, or an error as a negative number, or none yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent(i32);

impl Sent {
    const NONE: Sent = Sent(i32::MIN);

    fn new(result: Result<u32, Errno>) -> Sent {
        Sent(match result {
            // A send takes what was received, which is far less.
            Ok(n) => i32::try_from(n).unwrap_or(i32::MAX),
            Err(errno) => -errno.raw_os_error(),
        })
    }

    fn result(self) -> Option<Result<u32, Errno>> {
        match self {
            Sent::NONE => None,
            Sent(n @ 0..) => Some(Ok(n as u32)),
            Sent(errno) => Some(Err(Errno::from_raw_os_error(-errno))),
        }
    }
}

impl Lane {
    pub(super) fn new(socket: Option<OwnedFd>) -> Lane {
        Lane {
            socket,
            marks: Marks::default(),
            pace: Pace::new(),
            queue: Chain::EMPTY,
            end: None,
            sent: Sent::NONE,
            receiving: Receiving::Off,
            readable: Ready::No,
            slow: None,
        }
    }

    /// A send of what came from this socket has ended.
    pub(super) fn note_sent(&mut self, result: Result<u32, Errno>) {
        self.sent = Sent::new(result);
    }

    /// What became of it, asked for by somebody who does not act upon it.
    pub(super) fn sent(&self) -> Option<Result<u32, Errno>> {
        self.sent.result()
    }

    /// What became of it, told once.
    pub(super) fn take_sent(&mut self) -> Option<Result<u32, Errno>> {
        std::mem::replace(&mut self.sent, Sent::NONE).result()
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Takes note of what a receive has brought.
    pub(super) fn received(&mut self, ring: &mut Ring, owner: Owner, got: Got, more: bool) {
        if !more {
            self.receiving = Receiving::Off;
        }
        match got {
            Got::Data(chain) => match &mut self.slow {
                Some(slow) => ring.move_to(chain, &mut slow.stash),
                None => ring.buffers().append(&mut self.queue, chain),
            },
            Got::End => self.end = Some(End::Fin),
            Got::Failed(errno) => self.end = Some(End::Failed(errno)),
            Got::NoBuffers => self.marks.set_starved(true),
            Got::Paused => {}
        }
        if self.marks.sending() && (self.slow.is_some() || self.queue.len() > MAX_QUEUED) {
            self.pause(ring, owner);
        }
    }

    /// Ends the receive for now.
    pub(super) fn pause(&mut self, ring: &mut Ring, owner: Owner) {
        if self.receiving == Receiving::On {
            self.receiving = Receiving::Ending;
            ring.cancel_receive(owner);
        }
    }

    /// Begins the receive, if it is wanted and not under way.
    pub(super) fn receive(&mut self, ring: &mut Ring, owner: Owner) {
        if self.marks.wanted()
            && self.receiving == Receiving::Off
            && !self.marks.starved()
            && self.end.is_none()
            && let Some(socket) = &self.socket
        {
            self.receiving = Receiving::On;
            ring.receive(owner, socket.as_fd());
        }
    }

    /// Has epoll tell of an error on a socket that is not received from.
    pub(super) fn watch(&mut self, cx: &Cx, owner: Owner) {
        let kind = match owner.side {
            Side::Downstream => Kind::Downstream,
            Side::Upstream => Kind::Upstream,
        };
        if let Some(socket) = &self.socket
            && !self.marks.watched()
        {
            // Past fs.epoll.max_user_watches only a timeout finds what this would have found.
            let token = Token::new(kind, owner.key);
            self.marks
                .set_watched(cx.watch(socket.as_fd(), token, Interest::ERRORS).is_ok());
        }
    }

    /// Keeps what a send left over; the receiver is slow from now on.
    pub(super) fn keep(&mut self, ring: &mut Ring, owner: Owner, rest: Payload) {
        let backlog = ring.copy_out(rest);
        let queue = self.queue.take();
        let slow = self.slow.get_or_insert_default();
        if !queue.is_empty() {
            ring.move_to(queue, &mut slow.stash);
        }
        if !backlog.rest().is_empty() {
            slow.backlog = Some(backlog);
        }
        self.pause(ring, owner);
    }

    /// The receiver has caught up, if it has.
    pub(super) fn settle(&mut self) {
        if self.slow.as_ref().is_some_and(|slow| slow.is_empty()) {
            self.slow = None;
        }
    }

    /// Drops what was received and not sent, and says so to nobody.
    pub(super) fn clear(&mut self, ring: &mut Ring) {
        ring.discard(Payload::Chain(self.queue.take()));
        self.slow = None;
    }

    /// Closes the socket. `busy`: something else than this lane's own receive is under way on it.
    pub(super) fn close(&mut self, ring: &mut Ring, busy: bool) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        if busy || self.marks.polls_in() || self.receiving != Receiving::Off {
            ring.cancel_all(socket.as_fd());
        }
        self.receiving = Receiving::Off;
        self.marks.set_watched(false);
        self.marks.set_error(false);
        ring.close(socket);
    }

    /// As [`Lane::close`], with a RST.
    pub(super) fn reset(&mut self, ring: &mut Ring, busy: bool) {
        if let Some(socket) = self.socket() {
            socket::linger_none(socket);
        }
        self.close(ring, busy);
    }
}

/// Sends `payload`, which came from `lane`'s side, on the other socket.
pub(super) fn send(lanes: &mut [Lane; 2], ring: &mut Ring, from: Owner, payload: Payload) {
    let to = from.side.peer().index();
    let Some(socket) = &lanes[to].socket else {
        return ring.discard(payload);
    };
    ring.send(from, socket.as_fd(), payload);
    lanes[from.side.index()].marks.set_sending(true);
}

/// Where a dial of ours goes to, for the length of a connect.
pub(super) fn connect(
    lane: &mut Lane,
    ring: &mut Ring,
    key: crate::slab::Key,
    socket: OwnedFd,
    to: SocketAddr,
) -> crate::slab::Key {
    let side = Side::Upstream;
    let flight = ring.connect(Owner { key, side }, socket.as_fd(), to);
    *lane = Lane::new(Some(socket));
    flight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_fits_in_four_bytes() {
        for result in [
            Ok(0),
            Ok(1),
            Ok(i32::MAX as u32),
            Err(Errno::PIPE),
            Err(Errno::PERM),
        ] {
            assert_eq!(Sent::new(result).result(), Some(result));
        }
        assert_eq!(Sent::NONE.result(), None);
        let mut lane = Lane::new(None);
        lane.note_sent(Ok(7));
        assert_eq!((lane.sent(), lane.take_sent()), (Some(Ok(7)), Some(Ok(7))));
        assert_eq!(lane.take_sent(), None);
    }

    #[test]
    fn an_idle_lane_is_small() {
        assert!(size_of::<Lane>() <= 40, "{}", size_of::<Lane>());
    }
}
