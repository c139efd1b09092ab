//! One socket of a connection, and what came from it that the other one has not been sent yet.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

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
    /// Received, and not yet handed to the machine.
    pub(super) queue: Chain,
    /// What ended the queue, behind all that is in it.
    pub(super) end: Option<End>,
    pub(super) receiving: Receiving,
    /// epoll watches the socket for errors.
    pub(super) watched: bool,
    /// It has reported one that nobody has taken yet.
    pub(super) error: bool,
    /// It ended for want of a buffer, and is begun again when there are some.
    pub(super) starved: bool,
    /// The machine waits for what comes from this socket.
    pub(super) wanted: bool,
    /// A send of what came from this socket is under way.
    pub(super) sending: bool,
    /// What became of it.
    pub(super) sent: Option<Result<u32, Errno>>,
    pub(super) slow: Option<Box<Slow>>,
    /// How it has come of late: bulk is spliced.
    pub(super) pace: Pace,
    pub(super) readable: Ready,
    /// The socket is polled for something to splice.
    pub(super) polls_in: bool,
    /// The other socket is polled for room.
    pub(super) polls_out: bool,
    /// There is room, as the last poll says.
    pub(super) writable: bool,
    /// A send of what waits in a pipe is outstanding.
    pub(super) draining: bool,
    /// The last splice of what came from this socket moved less than there was: if an error ended
    /// it, the kernel has told nobody.
    pub(super) cut_short: bool,
}

impl Lane {
    pub(super) fn new(socket: Option<OwnedFd>) -> Lane {
        Lane {
            socket,
            queue: Chain::EMPTY,
            end: None,
            receiving: Receiving::Off,
            watched: false,
            error: false,
            starved: false,
            wanted: false,
            sending: false,
            sent: None,
            slow: None,
            pace: Pace::new(),
            readable: Ready::No,
            polls_in: false,
            polls_out: false,
            writable: false,
            draining: false,
            cut_short: false,
        }
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
            Got::NoBuffers => self.starved = true,
            Got::Paused => {}
        }
        if self.sending && (self.slow.is_some() || self.queue.len() > MAX_QUEUED) {
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
        if self.wanted
            && self.receiving == Receiving::Off
            && !self.starved
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
            && !self.watched
        {
            // Past fs.epoll.max_user_watches only a timeout finds what this would have found.
            let token = Token::new(kind, owner.key);
            self.watched = cx.watch(socket.as_fd(), token, Interest::ERRORS).is_ok();
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
        if busy || self.polls_in || self.receiving != Receiving::Off {
            ring.cancel_all(socket.as_fd());
        }
        self.receiving = Receiving::Off;
        self.watched = false;
        self.error = false;
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
    lanes[from.side.index()].sending = true;
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
