//! The connections of one worker, whichever driver moves their bytes: they are let in, stand in
//! line for their share of a turn, are cut, closed for want of memory, given up and taken over, and
//! are counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::cx::Cx;
use super::descriptors::{Accepted, Use};
use super::export::Exported;
use super::local::Local;
use super::room::Shedder;
use super::session::{Outcome, Session};
use crate::conn::Timeouts;
use crate::slab::{Key, Slab};

/// Callers taken from one listener before the others have their turn.
pub(crate) const ACCEPTS_PER_TURN: usize = 32;

/// One connection, as a driver has it.
pub(crate) trait Drive {
    /// What all connections of a worker move their bytes by.
    type Io;

    fn new(local: &Rc<Local>, socket: OwnedFd, timeouts: Timeouts) -> Self;

    fn session(&self) -> &Session;

    /// Whether it stands in line.
    fn in_line(&mut self) -> &mut bool;

    /// The client may not connect.
    fn deny(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key) -> Outcome;

    /// The client may connect: the search for a backend begins.
    fn admit(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key, client: SocketAddr) -> Outcome;

    /// The timer came: the machine's, or the one that looks at a send queue.
    fn on_timer(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key) -> Outcome;

    /// Does what can be done, up to its share of a turn.
    fn run(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key) -> Outcome;

    /// Ends it now.
    fn cut(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key) -> Outcome;

    /// Ends it for want of memory, if it is still idle.
    fn shed(&mut self, cx: &mut Cx, io: &mut Self::Io, key: Key) -> Outcome;
}

/// Every connection of one worker.
#[derive(Debug)]
pub(crate) struct Connections<C> {
    all: Slab<C>,
    /// Those that have something to do, each once.
    line: VecDeque<Key>,
    shedder: Shedder,
}

impl<C: Drive> Connections<C> {
    pub(crate) fn new() -> Connections<C> {
        Connections {
            all: Slab::new(),
            line: VecDeque::new(),
            shedder: Shedder::default(),
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut C> {
        self.all.get_mut(key)
    }

    /// `listener` has callers. Level-triggered: takes at most so many of them, the rest is told
    /// again.
    pub(crate) fn accept(
        &mut self,
        cx: &mut Cx,
        io: &mut C::Io,
        local: &Rc<Local>,
        listener: BorrowedFd<'_>,
        most: usize,
    ) {
        for _ in 0..most {
            match cx.accept(local, listener) {
                Accepted::Connection(socket, client) => self.admit(cx, io, local, socket, client),
                Accepted::Shed => {}
                Accepted::Empty => return,
            }
        }
    }

    fn admit(
        &mut self,
        cx: &mut Cx,
        io: &mut C::Io,
        local: &Rc<Local>,
        socket: OwnedFd,
        client: SocketAddr,
    ) {
        #[cfg(feature = "failpoints")]
        crate::failpoint::accepted();
        let policy = local.policy();
        let timeouts = Timeouts::new(
            policy.connect_timeout,
            policy.connect_budget,
            policy.idle_timeout,
            policy.half_close_timeout,
        );
        let denied = !policy.sources.contains(client.ip());
        drop(policy);
        local.counters.connections_active.add(1);
        cx.counters.connections_active.add(1);
        let key = self.all.insert(C::new(local, socket, timeouts));
        self.with(cx, io, key, |connection, cx, io| match denied {
            true => connection.deny(cx, io, key),
            false => connection.admit(cx, io, key, client),
        });
    }

    /// A timer of ours came. The key may be stale.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, io: &mut C::Io, key: Key) {
        self.with(cx, io, key, |connection, cx, io| {
            connection.on_timer(cx, io, key)
        });
    }

    /// Puts one at the end of the line, if it stands nowhere in it.
    pub(crate) fn line_up(&mut self, key: Key) {
        if let Some(connection) = self.all.get_mut(key)
            && !std::mem::replace(connection.in_line(), true)
        {
            self.line.push_back(key);
        }
    }

    /// How many stand in line.
    pub(crate) fn lined_up(&self) -> usize {
        self.line.len()
    }

    /// Runs the first of the line.
    pub(crate) fn run_first(&mut self, cx: &mut Cx, io: &mut C::Io) {
        let Some(key) = self.line.pop_front() else {
            return;
        };
        self.with(cx, io, key, |connection, cx, io| {
            *connection.in_line() = false;
            connection.run(cx, io, key)
        });
    }

    /// Memory is short: `count` of those that have been idle for the longest are to go.
    pub(crate) fn shed(&mut self, count: usize) {
        self.shedder.begin(count);
    }

    /// Closes some of those that are to go.
    pub(crate) fn close_idle(&mut self, cx: &mut Cx, io: &mut C::Io) {
        let (now, room) = (cx.now, &cx.room);
        self.shedder.look(&self.all, |connection| {
            connection.session().idle_since(room, now)
        });
        let mut gone = 0;
        while let Some(key) = self.shedder.next_doomed(gone) {
            self.with(cx, io, key, |connection, cx, io| {
                connection.shed(cx, io, key)
            });
            gone += 1;
        }
    }

    /// Is there work that no event will tell of? The worker must not sleep then.
    pub(crate) fn has_work(&self) -> bool {
        !self.line.is_empty() || self.shedder.is_busy()
    }

    /// The deadline of the drain: every connection that is left ends now.
    pub(crate) fn cut(&mut self, cx: &mut Cx, io: &mut C::Io) {
        for key in self.all.keys() {
            self.with(cx, io, key, |connection, cx, io| {
                connection.cut(cx, io, key)
            });
        }
    }

    /// Takes one out, which is over or is to live on elsewhere: it is no longer this worker's.
    pub(crate) fn give_up(&mut self, cx: &mut Cx, key: Key) -> Option<C> {
        let connection = self.all.remove(key)?;
        cx.counters.connections_active.sub(1);
        cx.descriptors.give(Use::Connection);
        Some(connection)
    }

    /// Takes one over, to be resumed by [`Connections::with`].
    ///
    /// # Errors
    /// There are no descriptors for it: as it was.
    pub(crate) fn take_over(
        &mut self,
        cx: &mut Cx,
        exported: Exported,
        adopt: impl FnOnce(Exported) -> C,
    ) -> Result<Key, Box<Exported>> {
        if !cx.descriptors.take(Use::Connection) {
            return Err(Box::new(exported));
        }
        cx.counters.connections_active.add(1);
        Ok(self.all.insert(adopt(exported)))
    }

    /// Does no connection live?
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Lets one connection do something, and takes note of where it stands then.
    pub(crate) fn with(
        &mut self,
        cx: &mut Cx,
        io: &mut C::Io,
        key: Key,
        act: impl FnOnce(&mut C, &mut Cx, &mut C::Io) -> Outcome,
    ) {
        let Some(connection) = self.all.get_mut(key) else {
            return;
        };
        match act(connection, cx, io) {
            Outcome::Waits => {}
            Outcome::HasMore => self.line_up(key),
            Outcome::Closed(reason) => {
                let counters = &connection.session().local.counters;
                counters.closed(reason).add(1);
                counters.connections_active.sub(1);
                self.give_up(cx, key);
            }
        }
    }
}
