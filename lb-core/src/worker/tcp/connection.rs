//! One connection: carries out what its machine says, and tells it what completed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::backlog::Fresh;
use super::dial::Dial;
use super::end::{End, RECEIVE_SIZE};
use super::flush::Flush;
use crate::conn::{Action, Actions, Conn, Event, Side, Timeouts};
use crate::slab::Key;
use crate::stats::CloseReason;
use crate::sys::epoll::{Interest, Readiness};
use crate::sys::{socket, stream};
use crate::time::Time;
use crate::timer::TimerId;
use crate::worker::cx::Cx;
use crate::worker::local::{Claim, Local};
use crate::worker::token::{Kind, Token};

/// Receives of [`RECEIVE_SIZE`], and sends of what had waited, of one connection in one go: 1 MiB
/// at the most, some 0.2 ms. What is left waits for the others' turn.
pub(super) const WORK_PER_TURN: u32 = 16;

/// A connection and its two sockets. An idle one has no buffer and, once connected, no [`Dial`].
#[derive(Debug)]
pub(super) struct Connection {
    machine: Conn,
    pub(super) ends: [End; 2],
    pub(super) local: Rc<Local>,
    /// Counts as active at its backend.
    pub(super) claim: Option<Claim>,
    pub(super) dial: Option<Box<Dial>>,
    /// A send queue that is to become empty.
    pub(super) flush: Option<Box<Flush>>,
    pub(super) timer: Option<TimerId>,
    /// When the machine wants its timer.
    pub(super) deadline: Time,
    /// An action that completed while it was carried out; `None` between calls.
    pub(super) next: Option<Event>,
    /// It stands in the list of those with work left over.
    pub(super) is_queued: bool,
    /// The kernel gives up a silent backend.
    is_bounded: bool,
    /// Whose operations are tried first; alternates.
    first: Side,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing can be done until an event.
    Waits,
    /// It has had its share of the turn.
    HasMore,
    /// It is over; every socket is closed.
    Closed(CloseReason),
}

impl Connection {
    pub(super) fn new(local: &Rc<Local>, socket: OwnedFd, timeouts: Timeouts) -> Connection {
        Connection {
            machine: Conn::new(timeouts),
            ends: [
                End::new(Side::Downstream, Some(socket)),
                End::new(Side::Upstream, None),
            ],
            local: Rc::clone(local),
            claim: None,
            dial: None,
            flush: None,
            timer: None,
            deadline: NEVER,
            next: None,
            is_queued: false,
            is_bounded: false,
            first: Side::Downstream,
        }
    }

    /// The client may not connect.
    pub(super) fn deny(&mut self, cx: &mut Cx, key: Key) -> Outcome {
        self.go(cx, key, Event::Accepted { denied: true })
    }

    /// The client may connect: the search for a backend begins.
    pub(super) fn admit(&mut self, cx: &mut Cx, key: Key, client: SocketAddr) -> Outcome {
        let downstream = &mut self.ends[Side::Downstream.index()];
        let token = Token::new(Kind::Downstream, key);
        let watched = downstream
            .socket()
            .map_or(Ok(()), |socket| cx.watch(socket, token, Interest::STREAM));
        if watched.is_err() {
            // Out of memory, or of fs.epoll.max_user_watches.
            if let Some(socket) = downstream.take() {
                socket::reset(socket);
            }
            return Outcome::Closed(CloseReason::LocalError);
        }
        self.dial = Some(Box::new(Dial::new(client)));
        self.go(cx, key, Event::Accepted { denied: false })
    }

    /// epoll has news of one socket.
    pub(super) fn note(&mut self, side: Side, ready: Readiness) {
        self.ends[side.index()].note(ready);
    }

    /// The timer came: the machine's, or the one that looks at a send queue.
    pub(super) fn on_timer(&mut self, cx: &mut Cx, key: Key) -> Outcome {
        self.timer = None;
        self.deadline = NEVER;
        self.bound_silence(cx);
        let event = match self.dial {
            Some(_) => self.late_of_dial(cx),
            None => self.poll_flush(),
        };
        if let Some(event) = event
            && let Some(reason) = self.apply(cx, key, event, Fresh::None)
        {
            return Outcome::Closed(reason);
        }
        self.go(cx, key, Event::Timer)
    }

    /// Has the kernel give up a backend that falls silent (an accepted socket has that from its
    /// listener). It takes four system calls, so a connection that ends before its first timer is
    /// spared them: that of its connect, which the machine leaves armed.
    fn bound_silence(&mut self, cx: &Cx) {
        if self.dial.is_none()
            && !self.is_bounded
            && let Some(socket) = self.ends[Side::Upstream.index()].socket()
        {
            // No error that a TCP socket gives: the timeout was checked when the plane started.
            let _ = stream::bound_silence(socket, cx.limits.peer_timeout);
            self.is_bounded = true;
        }
    }

    /// Ends it now.
    pub(super) fn cut(&mut self, cx: &mut Cx, key: Key) -> Outcome {
        self.go(cx, key, Event::Cut)
    }

    fn go(&mut self, cx: &mut Cx, key: Key, event: Event) -> Outcome {
        match self.apply(cx, key, event, Fresh::None) {
            Some(reason) => Outcome::Closed(reason),
            None => self.run(cx, key),
        }
    }

    /// Does what can be done, up to its share of a turn.
    pub(super) fn run(&mut self, cx: &mut Cx, key: Key) -> Outcome {
        let mut done = 0;
        while done < WORK_PER_TURN {
            let Some((event, fresh)) = self.next_completion(cx) else {
                return Outcome::Waits;
            };
            done += work(event);
            if let Some(reason) = self.apply(cx, key, event, fresh) {
                return Outcome::Closed(reason);
            }
        }
        Outcome::HasMore
    }

    /// Tells the machine and carries out what it says, and so on while that completes at once.
    /// Ends: tries are bounded in number, and no other operation leads to another by itself.
    /// `fresh` is what `event` brought; what the machine has no use for is dropped.
    fn apply(
        &mut self,
        cx: &mut Cx,
        key: Key,
        event: Event,
        mut fresh: Fresh,
    ) -> Option<CloseReason> {
        let mut event = Some(event);
        let mut out = Actions::new();
        while let Some(happened) = event {
            out.clear();
            self.machine.step(cx.now, happened, &mut out);
            for action in useful(out.as_slice()) {
                if let Some(reason) = self.act(cx, key, *action, &mut fresh) {
                    return Some(reason);
                }
            }
            event = self.next.take();
        }
        None
    }

    /// The next operation that can complete. What a receive brings is sent, or kept in a backlog,
    /// by the very next action.
    fn next_completion(&mut self, cx: &mut Cx) -> Option<(Event, Fresh)> {
        if self.dial.is_some() {
            return self.next_of_dial(cx).map(without_bytes);
        }
        self.first = self.first.peer();
        for side in [self.first, self.first.peer()] {
            let end = &mut self.ends[side.index()];
            if let Some(event) = end.send_backlog(&mut cx.pipes) {
                return Some(without_bytes(event));
            }
            if let Some((event, fresh)) = end.receive(cx) {
                self.count(event);
                return Some((event, fresh));
            }
            // While more is received, or what was received waits, the receives come upon the
            // error in its place: after the bytes and the FIN that preceded it.
            let still_read = end.receiving || self.ends[side.peer().index()].sending;
            if (!still_read || self.is_flushing(side))
                && let Some(event) = self.ends[side.index()].reported()
            {
                return Some(without_bytes(event));
            }
        }
        None
    }

    fn count(&self, event: Event) {
        if let Event::Received { side, n } = event {
            let counter = match side {
                Side::Downstream => &self.local.counters.bytes_downstream,
                Side::Upstream => &self.local.counters.bytes_upstream,
            };
            counter.add(n.into());
        }
    }

    /// Carries out one action; the reason, if it was the last.
    fn act(
        &mut self,
        cx: &mut Cx,
        key: Key,
        action: Action,
        fresh: &mut Fresh,
    ) -> Option<CloseReason> {
        match action {
            Action::Pick { .. } => self.next = Some(self.pick(cx)),
            Action::Connect => self.next = self.connect(cx, key),
            Action::CloseUpstream => self.close_upstream(cx),
            Action::Receive { side } => self.ends[side.index()].receiving = true,
            Action::Send { side } => self.send(cx, side, std::mem::take(fresh)),
            Action::Shutdown { side } => {
                if let Some(socket) = self.ends[side.index()].socket() {
                    stream::shutdown_write(socket);
                }
            }
            Action::AwaitFlush { side } => self.await_flush(cx, key, side),
            Action::Reset { side } => {
                if let Some(socket) = self.ends[side.index()].take() {
                    socket::reset(socket);
                }
            }
            Action::Arm(at) => {
                self.deadline = at;
                self.set_timer(cx, key);
            }
            Action::Close(reason) => {
                self.close(cx);
                return Some(reason);
            }
        }
        None
    }

    fn send(&mut self, cx: &mut Cx, side: Side, fresh: Fresh) {
        let end = &mut self.ends[side.index()];
        match fresh {
            // What waits already.
            Fresh::None => end.sending = true,
            Fresh::Copied(n) => self.next = end.send_fresh(&cx.scratch[..n]),
            Fresh::Piped(bulk) => self.next = end.send_piped(cx, bulk),
        }
    }

    fn close(&mut self, cx: &mut Cx) {
        if let Some(id) = self.timer.take() {
            cx.timers.cancel(id);
        }
        for end in &mut self.ends {
            drop(end.take());
        }
        self.claim = None;
    }
}

fn without_bytes(event: Event) -> (Event, Fresh) {
    (event, Fresh::None)
}

/// Without the second FIN's shutdown(2), when close(2), which is next, sends that FIN as well.
/// (A close sends RST only when bytes are unread, and after the other side's FIN there are none.)
fn useful(actions: &[Action]) -> &[Action] {
    match actions {
        [Action::Shutdown { .. }, rest @ ..] if rest == [Action::Close(CloseReason::Finished)] => {
            rest
        }
        all => all,
    }
}

/// What an operation counts for in the share of a turn.
fn work(event: Event) -> u32 {
    match event {
        Event::Received { n, .. } => n.div_ceil(RECEIVE_SIZE as u32).max(1),
        _ => 1,
    }
}

pub(super) const NEVER: Time = Time::from_micros(u64::MAX);
