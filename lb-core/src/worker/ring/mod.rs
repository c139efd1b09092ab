//! TCP by completions: drives the connections of one worker on its io_uring.
//!
//! All completions of a turn are taken in first: each is noted at its connection, which becomes
//! *dirty*. Then every dirty connection runs once: so what came in several pieces leaves in one
//! send, and all sends of a turn enter the kernel together. The machine ([`crate::conn`]) is the
//! one that the epoll driver runs.
//!
//! Memory that many share waits for nobody: bytes stay in provided buffers only while a send that
//! does not wait is under way. What finds no room is copied into memory of the connection's own,
//! and its receive is cancelled until that is sent.

mod bulk;
mod connection;
mod dial;
mod export;
mod lane;
mod marks;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::connections::{ACCEPTS_PER_TURN, Connections};
use super::cx::Cx;
use super::export::Exported;
use super::local::Local;
use super::pipes::Bulk;
use super::token::{Kind, Token};
use crate::conn::Side;
use crate::slab::Key;
use crate::sys::clock;
use crate::time::Time;
use crate::uring::{Completion, Counts, Got, Owner, Payload, Ring};
use connection::Connection;

/// From so many completions a turn on, and with so many connects and sends in flight, a caller is let in for eight
/// completions. The kernel works on some 20 at a time and keeps the rest to itself, and a connection that begins
/// takes five: else of thousands who come at once a thousand would dial before the first is served.
const BUSY: usize = 16;
const FLIGHTS: usize = 128;
/// Completions taken in in one turn.
const COMPLETIONS: usize = 1_024;
/// After this the dirty ones that are left go on in the next turn.
const RUN_TIME: Duration = Duration::from_millis(2);
/// Connections run between two looks at the clock.
const RUNS_PER_LOOK: usize = 32;

/// How long after one side's FIN its socket is watched for a reset: most connections are over by
/// then, and have saved the system call.
const WATCH_AFTER: Duration = Duration::from_millis(4);

/// What has just come from one socket, on its way to the other.
#[derive(Debug)]
pub(super) enum Fresh {
    /// By the ring.
    Received(Payload),
    /// So many bytes, at the start of the worker's scratch buffer.
    Copied(usize),
    Piped(Bulk),
}

impl Fresh {
    /// How many bytes.
    pub(super) fn len(&self) -> u32 {
        match self {
            Fresh::Received(payload) => payload.len(),
            Fresh::Copied(n) => *n as u32,
            Fresh::Piped(bulk) => bulk.held(),
        }
    }
}

/// What all connections of a worker use.
pub(super) struct Io {
    pub(super) ring: Ring,
    /// Sockets to be watched for errors, and when, oldest first.
    late: VecDeque<(Time, Owner)>,
}

impl Io {
    /// This side has sent its FIN: should it reset after that, no receive tells.
    pub(super) fn watch_later(&mut self, cx: &Cx, owner: Owner) {
        self.late.push_back((cx.now + WATCH_AFTER, owner));
    }
}

/// Every connection of one worker, and its ring.
pub(crate) struct RingTcp {
    io: Io,
    /// When the timer comes by which the first of those is watched; past: none is set.
    alarm: Time,
    /// In line: the dirty ones, of which something has completed.
    connections: Connections<Connection>,
    /// How much has completed in this turn.
    completed: usize,
    /// Receives that found no buffer, to be begun again when there are some.
    starved: VecDeque<Owner>,
}

impl RingTcp {
    pub(crate) fn new(ring: Ring) -> RingTcp {
        RingTcp {
            io: Io {
                ring,
                late: VecDeque::new(),
            },
            alarm: Time::ZERO,
            connections: Connections::new(),
            completed: 0,
            starved: VecDeque::new(),
        }
    }

    /// Submits what the last turn asked for, sleeps until something completes, and takes it in.
    /// Says whether the epoll instance, which the ring polls, has events.
    ///
    /// # Errors
    /// None that could heal.
    pub(super) fn wait(&mut self, cx: &mut Cx, timeout: Duration) -> Result<bool, Errno> {
        self.io.ring.poll_readiness(cx.poller().as_fd());
        self.io.ring.wait(timeout)?;
        let mut readable = false;
        self.completed = 0;
        for _ in 0..COMPLETIONS {
            let Some(completion) = self.io.ring.next() else {
                break;
            };
            cx.counters.events.add(1);
            self.completed += 1;
            match completion {
                Completion::Readiness => readable = true,
                completion => self.on_completion(completion),
            }
        }
        Ok(readable)
    }

    /// `listener` has callers.
    pub(crate) fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        let most = match self.completed {
            BUSY.. if self.io.ring.in_flight() >= FLIGHTS => self.completed / 8,
            _ => ACCEPTS_PER_TURN,
        };
        let most = most.min(ACCEPTS_PER_TURN);
        self.connections
            .accept(cx, &mut self.io, local, listener, most);
    }

    /// Something of ours has completed. It may be for a connection that is gone.
    fn on_completion(&mut self, completion: Completion) {
        let owner = match &completion {
            Completion::Received { owner, .. }
            | Completion::Sent { owner, .. }
            | Completion::Connected { owner, .. }
            | Completion::Ready { owner, .. } => *owner,
            Completion::Readiness | Completion::Nothing => return,
        };
        if let Completion::Received {
            got: Got::NoBuffers,
            ..
        } = &completion
        {
            self.starved.push_back(owner);
        }
        match self.connections.get_mut(owner.key) {
            Some(connection) => {
                connection.note(&mut self.io, owner, completion);
                self.connections.line_up(owner.key);
            }
            None => self.discard(completion),
        }
    }

    /// For a connection that is gone. A receive that was completing when it was to be cancelled
    /// goes on, and would keep the socket: it is cancelled again.
    fn discard(&mut self, completion: Completion) {
        match completion {
            Completion::Received { owner, got, more } => {
                if let Got::Data(chain) = got {
                    self.io.ring.discard(Payload::Chain(chain));
                }
                if more {
                    self.io.ring.cancel_receive(owner);
                }
            }
            Completion::Sent { rest, .. } => self.io.ring.discard(rest),
            _ => {}
        }
    }

    /// A timer of ours came. The token may be stale.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, token: Token) {
        self.connections.on_timer(cx, &mut self.io, token.key());
    }

    /// Every completion of the turn was noted: those concerned run, each once, for as long as the
    /// turn may last.
    pub(crate) fn end_turn(&mut self, cx: &mut Cx) {
        let begun = cx.now;
        for n in 0..self.connections.lined_up() {
            if n % RUNS_PER_LOOK == RUNS_PER_LOOK - 1 {
                cx.now = clock::now();
                if cx.now.since(begun) > RUN_TIME {
                    break;
                }
            }
            self.connections.run_first(cx, &mut self.io);
        }
        self.connections.close_idle(cx, &mut self.io);
        self.feed();
        self.watch_late(cx);
        self.count(cx);
    }

    fn count(&mut self, cx: &Cx) {
        let ring = &mut self.io.ring;
        let counters = &cx.counters;
        let Counts {
            submissions_full,
            no_buffers,
            cancels,
            overflows,
        } = ring.counts();
        counters.ring_full.set(submissions_full);
        counters.ring_no_buffers.set(no_buffers);
        counters.ring_cancels.set(cancels);
        counters.ring_overflows.set(overflows);
        counters.ring_buffers.set(ring.buffers().lent().into());
        counters.ring_in_flight.set(ring.in_flight() as u64);
    }

    /// Begins to watch those that are half-closed still.
    fn watch_late(&mut self, cx: &mut Cx) {
        while let Some(&(at, owner)) = self.io.late.front() {
            if at > cx.now {
                // The wake itself means nothing: a turn is all that it takes.
                if self.alarm <= cx.now {
                    self.alarm = at;
                    cx.timers.arm(at, Token::single(Kind::Wake));
                }
                return;
            }
            self.io.late.pop_front();
            if let Some(connection) = self.connections.get_mut(owner.key) {
                connection.watch(cx, owner);
            }
        }
    }

    /// epoll has found an error on a socket that is watched for it.
    pub(crate) fn on_event(&mut self, token: Token) {
        let side = match token.kind() {
            Some(Kind::Upstream) => Side::Upstream,
            _ => Side::Downstream,
        };
        if let Some(connection) = self.connections.get_mut(token.key()) {
            connection.note_error(side);
            self.connections.line_up(token.key());
        }
    }

    /// Begins the receives again that had found no buffer, now that this turn's are given back.
    fn feed(&mut self) {
        if self.starved.is_empty() || self.io.ring.buffers().is_short() {
            return;
        }
        for _ in 0..self.starved.len() {
            let Some(owner) = self.starved.pop_front() else {
                return;
            };
            if let Some(connection) = self.connections.get_mut(owner.key) {
                connection.resume(&mut self.io, owner);
            }
        }
    }

    /// Memory is short: `count` of those that have been idle for the longest are to go.
    pub(crate) fn shed(&mut self, count: usize) {
        self.connections.shed(count);
    }

    /// Is there work that no completion will tell of? The worker must not sleep then.
    pub(crate) fn has_work(&self) -> bool {
        self.connections.has_work()
    }

    /// The deadline of the drain: every connection that is left ends now.
    pub(crate) fn cut(&mut self, cx: &mut Cx) {
        self.connections.cut(cx, &mut self.io);
    }

    /// Begins to give a connection up, or goes on with that: what is under way ends.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the upgrade that asks for it comes later")
    )]
    pub(crate) fn quiesce(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.quiesce(&mut self.io);
        }
    }

    /// Gives a quiesced connection up; `None` if it is gone, or something is still under way, or
    /// it is busy with what ends by itself soon (a dial, a flush).
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the upgrade that asks for it comes later")
    )]
    pub(crate) fn export(&mut self, cx: &mut Cx, key: Key) -> Option<Exported> {
        let connection = self.connections.get_mut(key)?;
        if !connection.is_quiet() || !connection.quiescing {
            return None;
        }
        let connection = self.connections.give_up(cx, key)?;
        connection.export(cx, &mut self.io.ring)
    }

    /// Takes a connection over.
    ///
    /// # Errors
    /// There are no descriptors for it: as it was.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the upgrade that asks for it comes later")
    )]
    pub(crate) fn adopt(&mut self, cx: &mut Cx, exported: Exported) -> Result<Key, Box<Exported>> {
        let key = self
            .connections
            .take_over(cx, exported, Connection::adopted)?;
        self.connections
            .with(cx, &mut self.io, key, |connection, cx, io| {
                connection.resume_all(cx, io, key)
            });
        Ok(key)
    }

    /// Does no connection live?
    pub(crate) fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }
}
