//! TCP: drives the connections of one worker.
//!
//! A listener's callers are admitted ([`Tcp::on_listener`]); each becomes a [`Connection`], whose
//! machine ([`crate::conn`]) decides everything. Sockets are registered once, edge-triggered.
//!
//! What a connection costs: one entry of the slab and one of the timer wheel. Bytes go through
//! the worker's one scratch buffer straight to the other socket, or, once a direction is bulk
//! ([`super::pace`]), through a pipe ([`super::pipes`]). Only what finds no room there is kept, at
//! most 64 KiB of memory per direction or a pipe of the kernel's pages, and only until it is sent:
//! nothing more is read meanwhile.

mod backlog;
mod connection;
mod dial;
mod end;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::cx::Cx;
use super::descriptors::{Accepted, Use};
use super::export::Exported;
use super::local::Local;
use super::room::Shedder;
use super::session::Outcome;
use super::token::{Kind, Token};
use crate::conn::{Side, Timeouts};
use crate::plane::Limits;
use crate::slab::{Key, Slab};
use crate::sys::clock;
use crate::sys::epoll::Readiness;
use connection::Connection;

/// Callers taken from one listener before the others have their turn.
const ACCEPTS_PER_TURN: usize = 32;
/// After this the busy ones leave the turn to events, which may be for the others.
const BUSY_TIME: Duration = Duration::from_millis(2);

/// Every connection of one worker.
#[derive(Debug)]
pub(crate) struct Tcp {
    connections: Slab<Connection>,
    /// Those that have had their share of this turn and have work left.
    busy: VecDeque<Key>,
    shedder: Shedder,
}

impl Tcp {
    pub(crate) fn new(_limits: &Limits) -> Tcp {
        Tcp {
            connections: Slab::new(),
            busy: VecDeque::new(),
            shedder: Shedder::default(),
        }
    }

    /// `listener` has callers. Level-triggered: takes a bounded number of them, the rest is told
    /// again.
    pub(crate) fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        for _ in 0..ACCEPTS_PER_TURN {
            match cx.accept(local, listener) {
                Accepted::Connection(socket, client) => self.admit(cx, local, socket, client),
                Accepted::Shed => {}
                Accepted::Empty => return,
            }
        }
    }

    fn admit(&mut self, cx: &mut Cx, local: &Rc<Local>, socket: OwnedFd, client: SocketAddr) {
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
        let connection = Connection::new(local, socket, timeouts);
        let key = self.connections.insert(connection);
        self.with(cx, key, |connection, cx| match denied {
            true => connection.deny(cx, key),
            false => connection.admit(cx, key, client),
        });
    }

    /// A socket of ours is ready. The token may be stale.
    pub(crate) fn on_event(&mut self, cx: &mut Cx, token: Token, readiness: Readiness) {
        let side = match token.kind() {
            Some(Kind::Upstream) => Side::Upstream,
            _ => Side::Downstream,
        };
        let key = token.key();
        self.with(cx, key, |connection, cx| {
            connection.note(side, readiness);
            // One in the list waits for the end of the turn.
            match connection.is_queued {
                true => Outcome::Waits,
                false => connection.run(cx, key),
            }
        });
    }

    /// A timer of ours came. The token may be stale.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, token: Token) {
        let key = token.key();
        self.with(cx, key, |connection, cx| connection.on_timer(cx, key));
    }

    /// Every event of the turn was given: those that had more to do than their share go on, each
    /// once, in turn, for as long as the turn may last.
    pub(crate) fn end_turn(&mut self, cx: &mut Cx) {
        self.close_idle(cx);
        let begun = cx.now;
        for _ in 0..self.busy.len() {
            let Some(key) = self.busy.pop_front() else {
                return;
            };
            self.with(cx, key, |connection, cx| {
                connection.is_queued = false;
                connection.run(cx, key)
            });
            cx.now = clock::now();
            if cx.now.since(begun) > BUSY_TIME {
                return;
            }
        }
    }

    /// Memory is short: `count` of those that have been idle for the longest are to go.
    pub(crate) fn shed(&mut self, count: usize) {
        self.shedder.begin(count);
    }

    fn close_idle(&mut self, cx: &mut Cx) {
        let (now, room) = (cx.now, &cx.room);
        self.shedder.look(&self.connections, |connection| {
            connection.session.idle_since(room, now)
        });
        let mut gone = 0;
        while let Some(key) = self.shedder.next_doomed(gone) {
            self.with(cx, key, |connection, cx| connection.shed(cx, key));
            gone += 1;
        }
    }

    /// Is there work that no event will tell of? The worker must not sleep then.
    pub(crate) fn has_work(&self) -> bool {
        !self.busy.is_empty() || self.shedder.is_busy()
    }

    /// The deadline of the drain: every connection that is left ends now.
    pub(crate) fn cut(&mut self, cx: &mut Cx) {
        for key in self.connections.keys() {
            self.with(cx, key, |connection, cx| connection.cut(cx, key));
        }
    }

    /// Gives a connection up between two operations; `None` if it is gone, or busy with what ends
    /// by itself soon (a dial, a flush).
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the upgrade that asks for it comes later")
    )]
    pub(crate) fn export(&mut self, cx: &mut Cx, key: Key) -> Option<Exported> {
        self.connections
            .get(key)
            .filter(|connection| connection.session.can_be_exported())?;
        let exported = self.connections.remove(key)?.export(cx);
        cx.counters.connections_active.sub(1);
        cx.descriptors.give(Use::Connection);
        exported
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
        if !cx.descriptors.take(Use::Connection) {
            return Err(Box::new(exported));
        }
        cx.counters.connections_active.add(1);
        let key = self.connections.insert(Connection::adopted(exported));
        self.with(cx, key, |connection, cx| connection.resume(cx, key));
        Ok(key)
    }

    /// Does no connection live?
    pub(crate) fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// Lets one connection do something, and takes note of where it stands then.
    fn with(
        &mut self,
        cx: &mut Cx,
        key: Key,
        act: impl FnOnce(&mut Connection, &mut Cx) -> Outcome,
    ) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match act(connection, cx) {
            Outcome::Waits => {}
            Outcome::HasMore => {
                if !connection.is_queued {
                    connection.is_queued = true;
                    self.busy.push_back(key);
                }
            }
            Outcome::Closed(reason) => {
                let counters = &connection.session.local.counters;
                counters.closed(reason).add(1);
                counters.connections_active.sub(1);
                cx.counters.connections_active.sub(1);
                cx.descriptors.give(Use::Connection);
                self.connections.remove(key);
            }
        }
    }
}
