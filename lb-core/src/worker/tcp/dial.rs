//! The search for a backend: what was tried, what to try next, and how a try ends.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use super::connection::Connection;
use super::end::{End, cause};
use crate::conn::{Cause, Event, Side};
use crate::slab::Key;
use crate::stats::ConnectError;
use crate::sys::epoll::Interest;
use crate::sys::stream;
use crate::worker::cx::Cx;
use crate::worker::local::{Claim, Local};
use crate::worker::token::{Kind, Token};

/// A connection that has no backend yet.
#[derive(Debug)]
pub(super) struct Dial {
    client: SocketAddr,
    /// The backends tried in this round.
    tried: Vec<SocketAddr>,
    /// How often all of them have been tried.
    round: u8,
}

impl Dial {
    pub(super) fn new(client: SocketAddr) -> Dial {
        Dial {
            client,
            tried: Vec::new(),
            round: 0,
        }
    }

    /// A backend not tried in this round, and the number of the round; when all were tried, a new
    /// round begins. `None` if there is none at all.
    pub(super) fn pick(&mut self, cx: &mut Cx, local: &Local) -> Option<(Claim, u8)> {
        let mut picked = local.pick(cx, self.client, &self.tried);
        if picked.is_none() && !self.tried.is_empty() {
            self.tried.clear();
            self.round = self.round.saturating_add(1);
            picked = local.pick(cx, self.client, &self.tried);
        }
        let claim = picked?;
        self.tried.push(claim.address);
        Some((claim, self.round))
    }
}

impl Connection {
    pub(super) fn next_of_dial(&mut self, cx: &mut Cx) -> Option<Event> {
        if let Some(claim) = &self.claim
            && let Some(result) = self.ends[Side::Upstream.index()].end_connect(claim.address)
        {
            return Some(match result {
                Ok(()) => self.connected(),
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

    pub(super) fn pick(&mut self, cx: &mut Cx) -> Event {
        let picked = self
            .dial
            .as_mut()
            .and_then(|dial| dial.pick(cx, &self.local));
        match picked {
            Some((claim, round)) => {
                self.claim = Some(claim);
                Event::Picked { round }
            }
            None => Event::NoBackend,
        }
    }

    pub(super) fn connect(&mut self, cx: &mut Cx, key: Key) -> Option<Event> {
        let address = self.claim.as_ref()?.address;
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
            Ok(true) => Some(self.connected()),
            Ok(false) => None,
            Err(errno) => Some(self.connect_failed(cx, cause(errno))),
        }
    }

    fn connected(&mut self) -> Event {
        self.dial = None;
        if let Some(claim) = &self.claim {
            claim.succeeded();
        }
        Event::Connected
    }

    fn connect_failed(&mut self, cx: &mut Cx, cause: Cause) -> Event {
        drop(self.ends[Side::Upstream.index()].take());
        let reason = ConnectError::from(cause);
        self.local.counters.connect_failed(reason).add(1);
        match (self.claim.take(), cause) {
            // Ours to answer for, not the backend's.
            (_, Cause::Exhausted) => cx.counters.shed_exhausted.add(1),
            (_, Cause::NoPort) | (None, _) => {}
            (Some(claim), _) => claim.failed(cx.now),
        }
        Event::ConnectFailed(cause)
    }

    /// The try is over. With its socket still open it has not failed, but nobody answered in time.
    pub(super) fn close_upstream(&mut self, cx: &mut Cx) {
        if self.ends[Side::Upstream.index()].socket().is_some() {
            self.connect_failed(cx, Cause::TimedOut);
        }
    }
}

impl From<Cause> for ConnectError {
    fn from(cause: Cause) -> ConnectError {
        match cause {
            Cause::Refused => ConnectError::Refused,
            // Seen when the RST comes before we have looked at the handshake's end.
            Cause::Reset | Cause::BrokenPipe => ConnectError::Reset,
            Cause::TimedOut => ConnectError::Timeout,
            Cause::Unreachable => ConnectError::Unreachable,
            Cause::NoPort => ConnectError::PortsExhausted,
            Cause::Exhausted => ConnectError::DescriptorLimit,
            Cause::Unexpected => ConnectError::LocalError,
        }
    }
}
