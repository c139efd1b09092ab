//! TCP: drives the connections of one worker.
//!
//! A listener's callers are admitted ([`super::connections`]); each becomes a [`Connection`], whose
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

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use super::connections::{ACCEPTS_PER_TURN, Connections, Drive};
use super::cx::Cx;
use super::export::Exported;
use super::local::Local;
use super::session::Outcome;
use super::token::{Kind, Token};
use crate::conn::Side;
use crate::slab::Key;
use crate::sys::clock;
use crate::sys::epoll::Readiness;
use connection::Connection;

/// After this the busy ones leave the turn to events, which may be for the others.
const BUSY_TIME: Duration = Duration::from_millis(2);

/// Every connection of one worker.
#[derive(Debug)]
pub(crate) struct Tcp {
    /// In line: those that have had their share of this turn and have work left.
    connections: Connections<Connection>,
}

impl Tcp {
    pub(crate) fn new() -> Tcp {
        Tcp {
            connections: Connections::new(),
        }
    }

    /// `listener` has callers.
    pub(crate) fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        self.connections
            .accept(cx, &mut (), local, listener, ACCEPTS_PER_TURN);
    }

    /// A socket of ours is ready. The token may be stale.
    pub(crate) fn on_event(&mut self, cx: &mut Cx, token: Token, readiness: Readiness) {
        let side = match token.kind() {
            Some(Kind::Upstream) => Side::Upstream,
            _ => Side::Downstream,
        };
        let key = token.key();
        self.connections
            .with(cx, &mut (), key, |connection, cx, io| {
                connection.note(side, readiness);
                // One in line waits for the end of the turn.
                match *connection.in_line() {
                    true => Outcome::Waits,
                    false => connection.run(cx, io, key),
                }
            });
    }

    /// A timer of ours came. The token may be stale.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, token: Token) {
        self.connections.on_timer(cx, &mut (), token.key());
    }

    /// Every event of the turn was given: those that had more to do than their share go on, each
    /// once, in turn, for as long as the turn may last.
    pub(crate) fn end_turn(&mut self, cx: &mut Cx) {
        self.connections.close_idle(cx, &mut ());
        let begun = cx.now;
        for _ in 0..self.connections.lined_up() {
            self.connections.run_first(cx, &mut ());
            cx.now = clock::now();
            if cx.now.since(begun) > BUSY_TIME {
                return;
            }
        }
    }

    /// Memory is short: `count` of those that have been idle for the longest are to go.
    pub(crate) fn shed(&mut self, count: usize) {
        self.connections.shed(count);
    }

    /// Is there work that no event will tell of? The worker must not sleep then.
    pub(crate) fn has_work(&self) -> bool {
        self.connections.has_work()
    }

    /// The deadline of the drain: every connection that is left ends now.
    pub(crate) fn cut(&mut self, cx: &mut Cx) {
        self.connections.cut(cx, &mut ());
    }

    /// Gives a connection up between two operations; `None` if it is gone, or busy with what ends
    /// by itself soon (a dial, a flush).
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the upgrade that asks for it comes later")
    )]
    pub(crate) fn export(&mut self, cx: &mut Cx, key: Key) -> Option<Exported> {
        let connection = self.connections.get_mut(key)?;
        if !connection.session.can_be_exported() {
            return None;
        }
        self.connections.give_up(cx, key)?.export(cx)
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
            .with(cx, &mut (), key, |connection, cx, _| {
                connection.resume(cx, key)
            });
        Ok(key)
    }

    /// Does no connection live?
    pub(crate) fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }
}
