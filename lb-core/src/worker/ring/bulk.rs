//! A direction that carries bulk: spliced through a pipe instead of received into buffers.
//!
//! The ring has no splice of its own that does not go through a thread, so that these are system
//! calls, when a poll of the ring says that there is something to do.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::connection::Connection;
use super::lane::{End, Lane, Ready, Receiving};
use super::{Fresh, Io};
use crate::conn::{Event, Operation, Side};
use crate::slab::Key;
use crate::sys::stream;
use crate::uring::{Backlog, Owner, Payload, Readable};
use crate::worker::cx::Cx;
use crate::worker::pipes::{self, Bulk, Filled, Kept};
use crate::worker::session::cause;

/// The most that is copied at once where there is no pipe to be had: as much as waits for one slow
/// receiver.
const COPY: usize = 64 << 10;
/// After a splice of fewer bytes a poll is cheaper than another splice that finds nothing.
const SHORT: u32 = 64 << 10;

impl Lane {
    /// Completes a receive of bulk, if it can be. The multishot receive ends first: it would take
    /// the bytes away.
    pub(super) fn splice(&mut self, cx: &mut Cx, io: &mut Io, owner: Owner) -> Option<Fresh> {
        if self.receiving != Receiving::Off {
            self.pause(&mut io.ring, owner);
            return None;
        }
        let socket = self.socket.as_ref()?;
        let mut fresh = None;
        if self.readable != Ready::No {
            match cx.pipes.fill(&mut cx.descriptors, cx.now, socket.as_fd()) {
                Filled::Bytes(bulk) => {
                    self.readable = match bulk.held() < SHORT {
                        true => Ready::No,
                        false => Ready::Maybe,
                    };
                    return Some(Fresh::Piped(bulk));
                }
                // A FIN or an urgent mark: a copy tells which, and takes the byte behind the mark.
                Filled::Nothing if self.readable == Ready::Told => fresh = self.copy(cx),
                Filled::Nothing => self.readable = Ready::No,
                Filled::NoPipe => {
                    cx.counters.bulk_copied.add(1);
                    fresh = self.copy(cx);
                }
                Filled::Failed(errno) => self.end = Some(End::Failed(errno)),
            }
        }
        if fresh.is_none() && self.end.is_none() {
            self.poll_in(io, owner);
        }
        fresh
    }

    /// Copies what there is into the worker's scratch buffer.
    fn copy(&mut self, cx: &mut Cx) -> Option<Fresh> {
        let socket = self.socket.as_ref()?;
        match stream::receive(socket.as_fd(), &mut cx.scratch[..COPY]) {
            Ok(0) => self.end = Some(End::Fin),
            Ok(n) => {
                self.readable = Ready::Maybe;
                return Some(Fresh::Copied(n));
            }
            Err(Errno::AGAIN) => self.readable = Ready::No,
            Err(errno) => self.end = Some(End::Failed(errno)),
        }
        None
    }

    fn poll_in(&mut self, io: &mut Io, owner: Owner) {
        if let Some(socket) = &self.socket
            && !self.marks.polls_in()
        {
            self.marks.set_polls_in(true);
            io.ring.poll(owner, socket.as_fd(), Readable::In);
        }
    }

    /// A poll has ended.
    pub(super) fn ready(&mut self, what: Readable) {
        match what {
            Readable::In => {
                self.marks.set_polls_in(false);
                self.readable = Ready::Told;
            }
            Readable::Out => {
                self.marks.set_polls_out(false);
                self.marks.set_writable(true);
            }
        }
    }
}

impl Connection {
    /// Sends what was just spliced from `from`; what finds no room waits.
    pub(super) fn send_piped(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        from: Side,
        bulk: Bulk,
    ) -> Option<Event> {
        let (n, bulk) = match self.drain(from, bulk) {
            Ok(drained) => drained,
            Err(event) => return Some(event),
        };
        let owner = Owner { key, side: from };
        if bulk.held() == 0 {
            cx.pipes.give(bulk);
        } else {
            match cx.pipes.keep(&cx.descriptors, bulk) {
                Ok(Kept::Piped(bulk)) => self.keep_piped(io, owner, bulk),
                Ok(Kept::Copied(bytes)) => self.keep_copied(io, owner, bytes.into(), n == 0),
                Err(errno) => return Some(failed(from.peer(), errno)),
            }
        }
        sent(from.peer(), n)
    }

    /// As [`Connection::send_piped`], of `n` bytes in the scratch buffer.
    pub(super) fn send_copied(
        &mut self,
        cx: &mut Cx,
        io: &mut Io,
        key: Key,
        from: Side,
        n: usize,
    ) -> Option<Event> {
        let socket = self.lanes[from.peer().index()].socket()?;
        let bytes = &cx.scratch[..n];
        let n = match stream::transmit(socket, bytes) {
            Ok(n) => {
                self.lanes[from.index()].marks.set_cut_short(false);
                n
            }
            Err(Errno::AGAIN) => 0,
            Err(errno) => {
                let errno = pipes::told(errno, self.lanes[from.index()].marks.cut_short());
                return Some(failed(from.peer(), errno));
            }
        };
        if n < bytes.len() {
            let owner = Owner { key, side: from };
            self.keep_copied(io, owner, bytes[n..].to_vec(), n == 0);
        }
        sent(from.peer(), n)
    }

    /// Sends what waits in a pipe, if there is room now.
    pub(super) fn send_waiting(&mut self, cx: &mut Cx, io: &mut Io, from: Owner) -> Option<Event> {
        let lane = &mut self.lanes[from.side.index()];
        if !(lane.marks.draining() && lane.marks.writable()) {
            return None;
        }
        let bulk = lane.slow.as_mut()?.pipe.take()?;
        let to = from.side.peer();
        let (n, bulk) = match self.drain(from.side, bulk) {
            Ok(drained) => drained,
            Err(event) => {
                self.lanes[from.side.index()].marks.set_draining(false);
                return Some(event);
            }
        };
        match bulk.held() {
            0 => {
                cx.pipes.give(bulk);
                self.lanes[from.side.index()].settle();
            }
            _ => self.keep_piped(io, from, bulk),
        }
        if n > 0 {
            self.lanes[from.side.index()].marks.set_draining(false);
        }
        sent(to, n)
    }

    /// What was moved, and the pipe with what it holds still.
    fn drain(&mut self, from: Side, mut bulk: Bulk) -> Result<(u32, Bulk), Event> {
        let to = from.peer();
        let Some(socket) = self.lanes[to.index()].socket() else {
            return Err(failed(to, Errno::PIPE));
        };
        let result = bulk.drain(socket);
        let lane = &mut self.lanes[from.index()];
        match result {
            Ok(n) => {
                lane.marks.set_cut_short(bulk.held() > 0);
                Ok((n as u32, bulk))
            }
            Err(Errno::AGAIN) => Ok((0, bulk)),
            // Nobody will have them: the pipe is closed, not pooled.
            Err(errno) => Err(failed(to, pipes::told(errno, lane.marks.cut_short()))),
        }
    }

    /// Bytes wait in their pipe until there is room.
    fn keep_piped(&mut self, io: &mut Io, from: Owner, bulk: Bulk) {
        let lane = &mut self.lanes[from.side.index()];
        lane.slow.get_or_insert_default().pipe = Some(bulk);
        lane.marks.set_draining(true);
        lane.marks.set_writable(false);
        if lane.marks.polls_out() {
            return;
        }
        lane.marks.set_polls_out(true);
        if let Some(socket) = self.lanes[from.side.peer().index()].socket() {
            io.ring.poll(from, socket, Readable::Out);
        }
    }

    /// Bytes wait in memory. With `now` the send that the machine waits for has not completed: it
    /// goes on.
    fn keep_copied(&mut self, io: &mut Io, from: Owner, bytes: Vec<u8>, now: bool) {
        let payload = Payload::Backlog(Backlog::new(bytes));
        match now {
            true => super::lane::send(&mut self.lanes, &mut io.ring, from, payload),
            false => self.lanes[from.side.index()].keep(&mut io.ring, from, payload),
        }
    }
}

fn sent(side: Side, n: impl TryInto<u32>) -> Option<Event> {
    let n = n.try_into().unwrap_or(u32::MAX);
    (n > 0).then_some(Event::Sent { side, n })
}

fn failed(side: Side, errno: Errno) -> Event {
    Event::Failed {
        side,
        operation: Operation::SendOrWatch,
        cause: cause(errno),
    }
}
