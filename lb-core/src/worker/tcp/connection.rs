//! One connection: carries out what its machine says, and tells it what completed.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::backlog::Fresh;
use super::end::{End, RECEIVE_SIZE};
use crate::conn::{Action, Actions, Event, Side, Timeouts};
use crate::slab::Key;
use crate::stats::CloseReason;
use crate::sys::epoll::{Interest, Readiness};
use crate::sys::{socket, stream};
use crate::worker::connections::Drive;
use crate::worker::cx::Cx;
use crate::worker::export::{Exported, ExportedEnd};
use crate::worker::local::Local;
use crate::worker::session::{Done, Outcome, Session};
use crate::worker::token::{Kind, Token};

/// Receives of [`RECEIVE_SIZE`], and sends of what had waited, of one connection in one go: 1 MiB
/// at the most, some 0.2 ms. What is left waits for the others' turn.
pub(super) const WORK_PER_TURN: u32 = 16;

/// A connection and its two sockets. An idle one has no buffer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) ends: [End; 2],
    /// It stands in the list of those with work left over.
    in_line: bool,
    /// The kernel gives up a silent backend.
    is_bounded: bool,
    /// Whose operations are tried first; alternates.
    first: Side,
}

impl Drive for Connection {
    type Io = ();

    fn new(local: &Rc<Local>, socket: OwnedFd, timeouts: Timeouts) -> Connection {
        let ends = [
            End::new(Side::Downstream, Some(socket)),
            End::new(Side::Upstream, None),
        ];
        Connection::with(Session::new(local, timeouts), ends)
    }

    fn session(&self) -> &Session {
        &self.session
    }

    fn in_line(&mut self) -> &mut bool {
        &mut self.in_line
    }

    fn deny(&mut self, cx: &mut Cx, _: &mut (), key: Key) -> Outcome {
        self.go(cx, key, Event::Accepted { denied: true })
    }

    fn admit(&mut self, cx: &mut Cx, _: &mut (), key: Key, client: SocketAddr) -> Outcome {
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
        self.session.begin_dial(client);
        self.go(cx, key, Event::Accepted { denied: false })
    }

    fn on_timer(&mut self, cx: &mut Cx, _: &mut (), key: Key) -> Outcome {
        let upstream = self.ends[Side::Upstream.index()].socket();
        self.session.timer_came(cx, upstream, &mut self.is_bounded);
        let event = match self.session.is_dialling() {
            true => self.late_of_dial(cx),
            false => self.poll_flush(),
        };
        if let Some(event) = event
            && let Some(reason) = self.apply(cx, key, event, Fresh::None)
        {
            return Outcome::Closed(reason);
        }
        self.go(cx, key, Event::Timer)
    }

    fn cut(&mut self, cx: &mut Cx, _: &mut (), key: Key) -> Outcome {
        self.go(cx, key, Event::Cut)
    }

    fn shed(&mut self, cx: &mut Cx, _: &mut (), key: Key) -> Outcome {
        match self.session.idle_since(&cx.room, cx.now) {
            Some(_) => self.go(cx, key, Event::Shed),
            None => Outcome::Waits,
        }
    }

    fn run(&mut self, cx: &mut Cx, _: &mut (), key: Key) -> Outcome {
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
}

impl Connection {
    fn with(session: Session, ends: [End; 2]) -> Connection {
        Connection {
            session,
            ends,
            in_line: false,
            is_bounded: false,
            first: Side::Downstream,
        }
    }

    /// Gives everything up; `None` if it was over already.
    pub(super) fn export(mut self, cx: &mut Cx) -> Option<Exported> {
        let waiting = self.ends.each_mut().map(End::take_waiting);
        let sockets = self.ends.each_mut().map(End::take);
        let ([Some(client), Some(backend)], [Ok(to_client), Ok(to_backend)]) = (sockets, waiting)
        else {
            return None;
        };
        cx.unwatch(client.as_fd());
        cx.unwatch(backend.as_fd());
        let ends = [(client, to_backend), (backend, to_client)];
        let (machine, local, claim) = self.session.export(cx);
        Some(Exported {
            machine,
            local,
            claim,
            ends: ends.map(|(socket, unsent)| ExportedEnd { socket, unsent }),
        })
    }

    /// What was given up elsewhere.
    pub(super) fn adopted(exported: Exported) -> Connection {
        let Exported {
            machine,
            local,
            claim,
            ends: [client, backend],
        } = exported;
        let ends = [
            End::adopted(Side::Downstream, client.socket, &backend.unsent),
            End::adopted(Side::Upstream, backend.socket, &client.unsent),
        ];
        Connection::with(Session::adopted(machine, local, claim), ends)
    }

    /// Goes on with it.
    pub(super) fn resume(&mut self, cx: &mut Cx, key: Key) -> Outcome {
        for (side, kind) in [
            (Side::Downstream, Kind::Downstream),
            (Side::Upstream, Kind::Upstream),
        ] {
            let watched = self.ends[side.index()].socket().map_or(Ok(()), |socket| {
                cx.watch(socket, Token::new(kind, key), Interest::STREAM)
            });
            if watched.is_err() {
                self.close(cx);
                return Outcome::Closed(CloseReason::LocalError);
            }
        }
        let mut out = Actions::new();
        self.session.machine.resume(&mut out);
        for action in out.as_slice() {
            let done = self.act(cx, key, *action, &mut Fresh::None);
            debug_assert_eq!(done, Done::Waits, "nothing here completes at once");
        }
        self.run(cx, &mut (), key)
    }

    /// epoll has news of one socket.
    pub(super) fn note(&mut self, side: Side, ready: Readiness) {
        self.ends[side.index()].note(ready);
    }

    fn go(&mut self, cx: &mut Cx, key: Key, event: Event) -> Outcome {
        match self.apply(cx, key, event, Fresh::None) {
            Some(reason) => Outcome::Closed(reason),
            None => self.run(cx, &mut (), key),
        }
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
        // An action that completed while it was carried out.
        let mut next = None;
        while let Some(happened) = event {
            out.clear();
            self.session.machine.step(cx.now, happened, &mut out);
            for action in useful(out.as_slice()) {
                match self.act(cx, key, *action, &mut fresh) {
                    Done::Waits => {}
                    Done::Completed(event) => next = Some(event),
                    Done::Closed(reason) => return Some(reason),
                }
            }
            event = next.take();
        }
        None
    }

    /// The next operation that can complete. What a receive brings is sent, or kept in a backlog,
    /// by the very next action.
    fn next_completion(&mut self, cx: &mut Cx) -> Option<(Event, Fresh)> {
        if self.session.is_dialling() {
            return self.next_of_dial(cx).map(without_bytes);
        }
        self.first = self.first.peer();
        for side in [self.first, self.first.peer()] {
            let end = &mut self.ends[side.index()];
            if let Some(event) = end.send_backlog(&mut cx.pipes) {
                return Some(without_bytes(event));
            }
            if let Some((event, fresh)) = end.receive(cx) {
                self.session.count(event);
                return Some((event, fresh));
            }
            // While more is received, or what was received waits, the receives come upon the
            // error in its place: after the bytes and the FIN that preceded it.
            let still_read = end.receiving || self.ends[side.peer().index()].sending;
            if (!still_read || self.session.flushes() == Some(side))
                && let Some(event) = self.ends[side.index()].reported()
            {
                return Some(without_bytes(event));
            }
        }
        None
    }

    /// Carries out one action. `fresh` was just received.
    fn act(&mut self, cx: &mut Cx, key: Key, action: Action, fresh: &mut Fresh) -> Done {
        let completed = match action {
            Action::Pick { .. } => Some(self.session.pick(cx)),
            Action::Connect => self.connect(cx, key),
            Action::Send { side } => self.send(cx, side, std::mem::take(fresh)),
            Action::AwaitFlush { side } => {
                let socket = self.ends[side.index()].socket();
                self.session.await_flush(cx, key, side, socket)
            }
            Action::CloseUpstream => {
                self.close_upstream(cx);
                None
            }
            Action::Receive { side } => {
                self.ends[side.index()].receiving = true;
                None
            }
            Action::Shutdown { side } => {
                if let Some(socket) = self.ends[side.index()].socket() {
                    stream::shutdown_write(socket);
                }
                None
            }
            Action::Reset { side } => {
                if let Some(socket) = self.ends[side.index()].take() {
                    socket::reset(socket);
                }
                None
            }
            Action::Arm(_) => {
                self.session.arm(cx, key);
                None
            }
            Action::Close(reason) => {
                self.close(cx);
                return Done::Closed(reason);
            }
        };
        completed.map_or(Done::Waits, Done::Completed)
    }

    fn send(&mut self, cx: &mut Cx, side: Side, fresh: Fresh) -> Option<Event> {
        let end = &mut self.ends[side.index()];
        match fresh {
            // What waits already.
            Fresh::None => {
                end.sending = true;
                None
            }
            Fresh::Copied(n) => end.send_fresh(&cx.scratch[..n]),
            Fresh::Piped(bulk) => end.send_piped(cx, bulk),
        }
    }

    fn poll_flush(&mut self) -> Option<Event> {
        let side = self.session.flushes()?;
        self.session.poll_flush(self.ends[side.index()].socket())
    }

    fn close(&mut self, cx: &mut Cx) {
        self.session.end(cx);
        for end in &mut self.ends {
            drop(end.take());
        }
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
