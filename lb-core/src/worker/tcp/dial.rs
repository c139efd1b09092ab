//! The tries of a connection that has no backend yet.

use std::os::fd::AsFd;

use super::connection::Connection;
use super::end::End;
use crate::conn::{Cause, Event, Side};
use crate::slab::Key;
use crate::sys::epoll::Interest;
use crate::sys::stream;
use crate::worker::cx::Cx;
use crate::worker::session::cause;
use crate::worker::token::{Kind, Token};

impl Connection {
    pub(super) fn next_of_dial(&mut self, cx: &mut Cx) -> Option<Event> {
        if let Some(backend) = self.session.backend()
            && let Some(result) = self.ends[Side::Upstream.index()].end_connect(backend)
        {
            return Some(match result {
                Ok(()) => self.session.connected(),
                Err(errno) => self.connect_failed(cx, cause(errno)),
            });
        }
        // A client that reset before anything was promised; but what it had sent is delivered.
        let downstream = &mut self.ends[Side::Downstream.index()];
        match downstream.fails_with_unread() {
            true => None,
            false => downstream.reported(),
        }
    }

    /// As [`Connection::next_of_dial`], when a try has had its time: its event may not have been
    /// handled yet, and then it is this worker that is late, not the backend.
    pub(super) fn late_of_dial(&mut self, cx: &mut Cx) -> Option<Event> {
        self.ends[Side::Upstream.index()].expect_writable();
        self.next_of_dial(cx)
    }

    pub(super) fn connect(&mut self, cx: &mut Cx, key: Key) -> Option<Event> {
        let address = self.session.backend()?;
        let random = cx.rng.next();
        let end = &mut self.ends[Side::Upstream.index()];
        let result = stream::tcp_socket(address).and_then(|socket| {
            // Watched from here on: a socket that has not begun to connect counts as hung up.
            let sources = cx.sources.order(address, random);
            let done = stream::start_connect_from(socket.as_fd(), address, sources)?;
            let token = Token::new(Kind::Upstream, key);
            cx.watch(socket.as_fd(), token, Interest::STREAM)?;
            *end = End::new(Side::Upstream, Some(socket));
            Ok(done)
        });
        match result {
            Ok(true) => Some(self.session.connected()),
            Ok(false) => None,
            Err(errno) => Some(self.connect_failed(cx, cause(errno))),
        }
    }

    fn connect_failed(&mut self, cx: &mut Cx, cause: Cause) -> Event {
        drop(self.ends[Side::Upstream.index()].take());
        self.session.connect_failed(cx, cause)
    }

    /// The try is over. With its socket still open it has not failed, but nobody answered in time.
    pub(super) fn close_upstream(&mut self, cx: &mut Cx) {
        if self.ends[Side::Upstream.index()].socket().is_some() {
            self.connect_failed(cx, Cause::TimedOut);
        }
    }
}
