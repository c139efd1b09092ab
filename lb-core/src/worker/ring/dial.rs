//! The tries of a connection that has no backend yet.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::Io;
use super::connection::Connection;
use super::lane::{self, Lane};
use crate::conn::{Cause, Event, Side};
use crate::slab::Key;
use crate::sys::stream;
use crate::uring::{Owner, Readable};
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
        let socket = match stream::tcp_socket(address) {
            Ok(socket) => socket,
            Err(errno) => return Some(self.connect_failed(cx, cause(errno))),
        };
        match cx.sources.is_empty(address) {
            true => {
                let upstream = &mut self.lanes[Side::Upstream.index()];
                let flight = lane::connect(upstream, &mut io.ring, key, socket, address);
                self.session.set_flight(flight);
                None
            }
            false => self.connect_from(cx, io, key, socket, address),
        }
    }

    /// Connects from one of the sources that the settings name. Which of them has a port left only
    /// the connect itself tells, so that this one is a system call, and the ring polls its end.
    fn connect_from(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        socket: OwnedFd,
        to: SocketAddr,
    ) -> Option<Event> {
        let random = cx.rng.next();
        let sources = cx.sources.order(to, random);
        let started = stream::start_connect_from(socket.as_fd(), to, sources);
        self.lanes[Side::Upstream.index()] = Lane::new(Some(socket));
        match started {
            Ok(true) => return Some(self.session.connected()),
            Ok(false) => {}
            Err(errno) => return Some(self.connect_failed(cx, cause(errno))),
        }
        self.poll_connect(io, key);
        None
    }

    fn poll_connect(&mut self, io: &mut Io, key: Key) {
        // As every poll for room: under the side that the bytes would come from.
        let side = Side::Downstream;
        self.lanes[side.index()].marks.set_polls_out(true);
        if let Some(socket) = self.lanes[Side::Upstream.index()].socket() {
            io.ring.poll(Owner { key, side }, socket, Readable::Out);
        }
    }

    /// The poll of a connect has ended; it may be that of a try before this one.
    pub(super) fn note_writable(&mut self, io: &mut Io, key: Key) {
        let upstream = self.lanes[Side::Upstream.index()].socket();
        if self.session.is_connecting() {
            return;
        }
        if let (Some(socket), Some(to)) = (upstream, self.session.backend()) {
            match stream::connect_again(socket, to) {
                Err(Errno::ALREADY) => self.poll_connect(io, key),
                result => self.session.set_result(result),
            }
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
        self.lanes[Side::Downstream.index()]
            .marks
            .set_polls_out(false);
        self.session.forget_flight();
    }
}
