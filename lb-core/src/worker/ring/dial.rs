//! The tries of a connection that has no backend yet.

use std::os::fd::AsFd;

use super::Io;
use super::connection::Connection;
use super::lane;
use crate::conn::{Cause, Event, Side};
use crate::slab::Key;
use crate::sys::stream;
use crate::uring::Owner;
use crate::worker::cx::Cx;
use crate::worker::session::cause;

impl Connection {
    pub(super) fn next_of_dial(&mut self, cx: &mut Cx) -> Option<Event> {
        if let Some(result) = self.session.take_result() {
            let upstream = self.lanes[Side::Upstream.index()].socket();
            let to = self.session.backend();
            let result = match (result, upstream, to) {
                (Ok(()), Some(socket), Some(to)) => stream::check_other(socket, to),
                (result, ..) => result,
            };
            return Some(match result {
                Ok(()) => self.session.connected(),
                Err(errno) => self.connect_failed(cx, cause(errno)),
            });
        }
        // A client that reset before anything was promised; but what it had sent is delivered.
        let side = Side::Downstream;
        match self.lanes[side.index()].socket() {
            Some(socket) if stream::unread(socket) > 0 => None,
            _ => self.reported(side),
        }
    }

    pub(super) fn connect(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Option<Event> {
        let address = self.session.backend()?;
        // Most tries end within a round trip; a client that leaves meanwhile is seen by the first
        // receive. One whose search goes on is watched.
        if self.session.is_retrying() {
            let side = Side::Downstream;
            self.lanes[side.index()].watch(cx, Owner { key, side });
        }
        let random = cx.rng.next();
        let socket = stream::tcp_socket(address).and_then(|socket| {
            stream::bound_silence(socket.as_fd(), cx.limits.peer_timeout)?;
            // One a try: should it have no port left, the next try draws again.
            if let Some(source) = cx.sources.order(address, random).next() {
                stream::bind_source(socket.as_fd(), source)?;
            }
            Ok(socket)
        });
        match socket {
            Ok(socket) => {
                let upstream = &mut self.lanes[Side::Upstream.index()];
                let flight = lane::connect(upstream, &mut io.ring, key, socket, address);
                self.session.set_flight(flight);
                None
            }
            Err(errno) => Some(self.connect_failed(cx, cause(errno))),
        }
    }

    fn connect_failed(&mut self, cx: &mut Cx, cause: Cause) -> Event {
        self.session.connect_failed(cx, cause)
    }

    /// The try is over. With its claim still held it has not failed, but nobody answered in time.
    pub(super) fn close_upstream(&mut self, cx: &mut Cx, io: &mut Io) {
        if self.session.backend().is_some() {
            self.connect_failed(cx, Cause::TimedOut);
        }
        let busy = self.is_busy(Side::Upstream);
        self.lanes[Side::Upstream.index()].close(&mut io.ring, busy);
        self.session.forget_flight();
    }
}
