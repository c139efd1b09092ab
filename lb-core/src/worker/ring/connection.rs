//! One connection: notes what completed, tells its machine, and submits what that says.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::lane::{self, End, Lane};
use super::{Fresh, Io};
use crate::conn::{Action, Actions, Event, Operation, Side, Timeouts};
use crate::slab::Key;
use crate::stats::CloseReason;
use crate::sys::stream;
use crate::uring::{Backlog, Completion, MAX_PIECES, Owner, Payload, Ring};
use crate::worker::connections::Drive;
use crate::worker::cx::Cx;
use crate::worker::local::Local;
use crate::worker::pipes;
use crate::worker::session::{Done, Outcome, Session, cause};

/// Completions that one connection acts upon in one go.
const WORK_PER_TURN: u32 = 16;

/// A connection and its two sockets. An idle one has no buffer and, once connected, no dial.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: Session,
    /// By the side that they come from.
    pub(super) lanes: [Lane; 2],
    /// It is dirty.
    in_line: bool,
    /// It is to be given up: nothing more is begun.
    pub(super) quiescing: bool,
    /// The kernel gives up a silent backend.
    is_bounded: bool,
    /// Whose completions are looked at first; alternates.
    first: Side,
}

impl Drive for Connection {
    type Io = Io;

    fn new(local: &Rc<Local>, socket: OwnedFd, timeouts: Timeouts) -> Connection {
        let lanes = [Lane::new(Some(socket)), Lane::new(None)];
        Connection::with(Session::new(local, timeouts), lanes)
    }

    fn session(&self) -> &Session {
        &self.session
    }

    fn in_line(&mut self) -> &mut bool {
        &mut self.in_line
    }

    fn deny(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        self.go(cx, io, key, Event::Accepted { denied: true })
    }

    fn admit(&mut self, cx: &mut Cx, io: &mut Io, key: Key, client: SocketAddr) -> Outcome {
        self.session.begin_dial(client);
        self.go(cx, io, key, Event::Accepted { denied: false })
    }

    fn on_timer(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        let upstream = self.lanes[Side::Upstream.index()].socket();
        self.session.timer_came(cx, upstream, &mut self.is_bounded);
        let event = match self.session.is_dialling() {
            true => self.next_of_dial(cx),
            false => self.poll_flush(),
        };
        if let Some(event) = event
            && let Some(reason) = self.apply(cx, io, key, event, None)
        {
            return Outcome::Closed(reason);
        }
        self.go(cx, io, key, Event::Timer)
    }

    fn cut(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        self.go(cx, io, key, Event::Cut)
    }

    fn shed(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        match self.session.idle_since(&cx.room, cx.now) {
            Some(_) => self.go(cx, io, key, Event::Shed),
            None => Outcome::Waits,
        }
    }

    fn run(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        let mut done = 0;
        while done < WORK_PER_TURN && !self.quiescing {
            let Some((event, fresh)) = self.next_completion(cx, io, key) else {
                return Outcome::Waits;
            };
            done += work(event);
            if let Some(reason) = self.apply(cx, io, key, event, fresh) {
                return Outcome::Closed(reason);
            }
        }
        match self.quiescing {
            true => Outcome::Waits,
            false => Outcome::HasMore,
        }
    }
}

impl Connection {
    pub(super) fn with(session: Session, lanes: [Lane; 2]) -> Connection {
        Connection {
            session,
            lanes,
            in_line: false,
            quiescing: false,
            is_bounded: false,
            first: Side::Downstream,
        }
    }

    /// Takes note of what completed.
    pub(super) fn note(&mut self, io: &mut Io, owner: Owner, completion: Completion) {
        let lane = &mut self.lanes[owner.side.index()];
        match completion {
            Completion::Received { got, more, .. } => lane.received(&mut io.ring, owner, got, more),
            Completion::Sent { result, rest, .. } => self.note_sent(io, owner, result, rest),
            Completion::Connected { flight, result, .. } => {
                self.session.note_connected(flight, result);
            }
            Completion::Ready { what, .. } => {
                lane.ready(what);
                if self.session.is_dialling() {
                    self.note_writable(io, owner.key);
                }
            }
            Completion::Readiness | Completion::Nothing => {}
        }
    }

    /// A send of what came from `from` has ended.
    fn note_sent(&mut self, io: &mut Io, from: Owner, result: Result<u32, Errno>, rest: Payload) {
        let lane = &mut self.lanes[from.side.index()];
        lane.marks.set_sending(false);
        match result {
            Ok(n) => {
                if !rest.is_empty() {
                    lane.keep(&mut io.ring, from, rest);
                }
                lane.note_sent(Ok(n));
                lane.marks.set_cut_short(false);
            }
            // The send of provided buffers does not wait; one of our own memory does.
            Err(Errno::AGAIN | Errno::INTR | Errno::CANCELED) => {
                lane.keep(&mut io.ring, from, rest);
                if self.quiescing {
                    return;
                }
                let backlog = lane.slow.as_mut().and_then(|slow| slow.backlog.take());
                if let Some(backlog) = backlog {
                    lane::send(
                        &mut self.lanes,
                        &mut io.ring,
                        from,
                        Payload::Backlog(backlog),
                    );
                }
            }
            Err(errno) => {
                io.ring.discard(rest);
                lane.note_sent(Err(pipes::told(errno, lane.marks.cut_short())));
            }
        }
    }

    /// There are buffers again.
    pub(super) fn resume(&mut self, io: &mut Io, owner: Owner) {
        let lane = &mut self.lanes[owner.side.index()];
        lane.marks.set_starved(false);
        lane.receive(&mut io.ring, owner);
    }

    /// Is something under way on this side's socket that its own lane does not know of?
    pub(super) fn is_busy(&self, side: Side) -> bool {
        let connects = side == Side::Upstream && self.session.is_connecting();
        let peer = &self.lanes[side.peer().index()];
        connects || peer.marks.sending() || peer.marks.polls_out()
    }

    fn go(&mut self, cx: &mut Cx, io: &mut Io, key: Key, event: Event) -> Outcome {
        match self.apply(cx, io, key, event, None) {
            Some(reason) => Outcome::Closed(reason),
            None => self.run(cx, io, key),
        }
    }

    /// Tells the machine and carries out what it says, and so on while that completes at once.
    /// Ends: tries are bounded in number, and no other operation leads to another by itself.
    fn apply(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        event: Event,
        mut fresh: Option<Fresh>,
    ) -> Option<CloseReason> {
        let mut event = Some(event);
        let mut out = Actions::new();
        // An action that completed while it was carried out.
        let mut next = None;
        while let Some(happened) = event {
            out.clear();
            self.session.machine.step(cx.now, happened, &mut out);
            let actions = out.as_slice();
            for (n, action) in actions.iter().enumerate() {
                // A FIN right before the close: that sends it.
                let is_last = matches!(actions.get(n + 1), Some(Action::Close(_)));
                if matches!(action, Action::Shutdown { .. }) && is_last {
                    continue;
                }
                match self.act(cx, io, key, *action, &mut fresh) {
                    Done::Waits => {}
                    Done::Completed(event) => next = Some(event),
                    Done::Closed(reason) => return Some(reason),
                }
            }
            // Nobody is left to send it to.
            if let Some(Fresh::Received(unwanted)) = fresh.take() {
                io.ring.discard(unwanted);
            }
            event = next.take();
        }
        None
    }

    /// The next thing that has completed, as the machine sees it, with the bytes received.
    fn next_completion(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
    ) -> Option<(Event, Option<Fresh>)> {
        if self.session.is_dialling() {
            return Some((self.next_of_dial(cx)?, None));
        }
        // First the sends: one that took a socket's error came before the receive that then found
        // the end of its queue, and says that this was no FIN.
        for side in Side::BOTH {
            if let Some(result) = self.lanes[side.index()].take_sent() {
                return Some((sent(side.peer(), result), None));
            }
        }
        self.first = self.first.peer();
        for side in [self.first, self.first.peer()] {
            let owner = Owner { key, side };
            if let Some(event) = self.send_waiting(cx, io, owner) {
                return Some((event, None));
            }
            let lane = &mut self.lanes[side.index()];
            if lane.marks.wanted()
                && let Some((event, fresh)) = receive(cx, lane, io, owner)
            {
                self.session.count(event);
                return Some((event, fresh));
            }
            if let Some(event) = self.reported(side) {
                return Some((event, None));
            }
        }
        None
    }

    /// The error that a watch has found, unless an operation has taken it since. Of a side whose
    /// send queue is to become empty, also the one that a receive has taken: nobody else asks.
    pub(super) fn reported(&mut self, side: Side) -> Option<Event> {
        let flushes = self.session.flushes() == Some(side);
        let lane = &mut self.lanes[side.index()];
        if flushes && let Some(End::Failed(errno)) = lane.end {
            return Some(failed(side, Operation::SendOrWatch, errno));
        }
        if !lane.marks.error() {
            return None;
        }
        lane.marks.set_error(false);
        let errno = stream::take_error(lane.socket()?).err()?;
        Some(failed(side, Operation::SendOrWatch, errno))
    }

    /// Carries out one action. `fresh` was just received.
    pub(super) fn act(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        action: Action,
        fresh: &mut Option<Fresh>,
    ) -> Done {
        let completed = match action {
            Action::Pick { .. } => Some(self.session.pick(cx)),
            Action::Connect => self.connect(cx, io, key),
            Action::Send { side } => self.send(cx, io, key, side.peer(), fresh.take()),
            Action::AwaitFlush { side } => {
                self.lanes[side.index()].watch(cx, Owner { key, side });
                self.await_flush(cx, key, side)
            }
            Action::CloseUpstream => {
                self.close_upstream(cx, io);
                None
            }
            Action::Receive { side } => {
                let lane = &mut self.lanes[side.index()];
                lane.marks.set_wanted(true);
                lane.settle();
                lane.receive_ahead(&mut io.ring, Owner { key, side });
                None
            }
            Action::Shutdown { side } => {
                self.shut(cx, io, key, side);
                None
            }
            Action::Reset { side } => {
                let busy = self.is_busy(side);
                self.lanes[side.index()].reset(&mut io.ring, busy);
                None
            }
            Action::Arm(_) => {
                self.session.arm(cx, key);
                None
            }
            Action::Close(reason) => {
                self.close(cx, io);
                return Done::Closed(reason);
            }
        };
        completed.map_or(Done::Waits, Done::Completed)
    }

    /// Sends what came from `from`: just now, or what waits.
    fn send(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        from: Side,
        fresh: Option<Fresh>,
    ) -> Option<Event> {
        let owner = Owner { key, side: from };
        let payload = match fresh {
            Some(Fresh::Received(payload)) => payload,
            Some(Fresh::Piped(bulk)) => {
                return self.send_piped(cx, io, key, from, bulk);
            }
            Some(Fresh::Copied(n)) => {
                return self.send_copied(cx, io, key, from, n);
            }
            None => {
                let lane = &mut self.lanes[from.index()];
                let slow = lane.slow.as_mut()?;
                lane.marks.set_draining(slow.pipe.is_some());
                Payload::Backlog(slow.backlog.take()?)
            }
        };
        lane::send(&mut self.lanes, &mut io.ring, owner, payload);
        None
    }

    /// Sends FIN to `side`. Its peer has nothing more to say, unless it resets: that is watched.
    fn shut(&mut self, cx: &Cx, io: &mut Io, key: Key, side: Side) {
        if let Some(socket) = self.lanes[side.index()].socket() {
            stream::shutdown_write(socket);
        }
        let side = side.peer();
        io.watch_later(cx, Owner { key, side });
    }

    /// Has epoll tell of an error of this side from now on.
    pub(super) fn watch(&mut self, cx: &Cx, owner: Owner) {
        self.lanes[owner.side.index()].watch(cx, owner);
    }

    /// epoll has found an error.
    pub(super) fn note_error(&mut self, side: Side) {
        self.lanes[side.index()].marks.set_error(true);
    }

    fn await_flush(&mut self, cx: &mut Cx, key: Key, side: Side) -> Option<Event> {
        let socket = self.lanes[side.index()].socket();
        self.session.await_flush(cx, key, side, socket)
    }

    fn poll_flush(&mut self) -> Option<Event> {
        let side = self.session.flushes()?;
        let socket = self.lanes[side.index()].socket();
        self.session.poll_flush(socket)
    }

    fn close(&mut self, cx: &mut Cx, io: &mut Io) {
        for side in Side::BOTH {
            let busy = self.is_busy(side);
            self.lanes[side.index()].close(&mut io.ring, busy);
            self.lanes[side.index()].clear(&mut io.ring);
        }
        self.session.end(cx);
    }
}

impl Lane {
    /// Begins the receive, unless something that came before waits to be handed on.
    fn receive_ahead(&mut self, ring: &mut Ring, owner: Owner) {
        if self.queue.is_empty() && self.slow.is_none() && !self.pace.is_bulk() {
            self.receive(ring, owner);
        }
    }
}

/// Completes the receive that the machine waits for, if it can be.
fn receive(
    cx: &mut Cx,
    lane: &mut Lane,
    io: &mut Io,
    owner: Owner,
) -> Option<(Event, Option<Fresh>)> {
    let side = owner.side;
    let mut fresh = held(lane, &mut io.ring);
    if fresh.is_none() && lane.end.is_none() {
        match lane.pace.is_bulk() {
            true => fresh = lane.splice(cx, io, owner),
            false => lane.receive(&mut io.ring, owner),
        }
    }
    let event = match (&fresh, lane.end) {
        (Some(fresh), _) => {
            let n = fresh.len();
            lane.pace.note(n as usize);
            Event::Received { side, n }
        }
        (None, Some(End::Fin)) => Event::Received { side, n: 0 },
        (None, Some(End::Failed(errno))) => failed(side, Operation::Receive, errno),
        (None, None) => return None,
    };
    lane.marks.set_wanted(false);
    Some((event, fresh))
}

/// What has come before it was asked for.
fn held(lane: &mut Lane, ring: &mut Ring) -> Option<Fresh> {
    if let Some(slow) = &mut lane.slow
        && !slow.stash.is_empty()
    {
        let bytes = std::mem::take(&mut slow.stash);
        return Some(Fresh::Received(Payload::Backlog(Backlog::new(bytes))));
    }
    if lane.queue.is_empty() {
        return None;
    }
    let chain = ring.buffers().split(&mut lane.queue, MAX_PIECES);
    Some(Fresh::Received(Payload::Chain(chain)))
}

/// What an event counts for in the share of a turn.
fn work(event: Event) -> u32 {
    const PIECE: u32 = 64 << 10;
    match event {
        Event::Received { n, .. } => n.div_ceil(PIECE).max(1),
        _ => 1,
    }
}

fn sent(side: Side, result: Result<u32, Errno>) -> Event {
    match result {
        Ok(n) => Event::Sent { side, n },
        Err(errno) => failed(side, Operation::SendOrWatch, errno),
    }
}

fn failed(side: Side, operation: Operation, errno: Errno) -> Event {
    Event::Failed {
        side,
        operation,
        cause: cause(errno),
    }
}
