//! Giving a connection up, and taking one over.
//!
//! Receives and sends are under way at almost any time: they are cancelled first, which their
//! completions tell of, and nothing new is begun meanwhile.

use std::os::fd::AsFd;

use super::Io;
use super::connection::Connection;
use super::lane::{End, Lane, Receiving};
use crate::conn::{Actions, Event, Side};
use crate::slab::Key;
use crate::time::Time;
use crate::uring::{Backlog, Owner, Ring};
use crate::worker::connections::Drive;
use crate::worker::cx::Cx;
use crate::worker::export::{Exported, ExportedEnd};
use crate::worker::session::{Done, Outcome, Session};

impl Connection {
    /// Begins nothing any more, and ends what is under way. To be repeated until that has worked:
    /// what is just completing cannot be cancelled, and may go on.
    pub(super) fn quiesce(&mut self, io: &mut Io) {
        self.quiescing = true;
        for side in Side::BOTH {
            let lane = &self.lanes[side.index()];
            if let Some(socket) = &lane.socket
                && (self.is_busy(side) || lane.receiving != Receiving::Off || lane.marks.polls_in())
            {
                io.ring.cancel_all(socket.as_fd());
            }
        }
    }

    /// Is nothing under way, and can somebody else go on?
    pub(super) fn is_quiet(&self) -> bool {
        let is_quiet = |lane: &Lane| {
            let failed = matches!(lane.end, Some(End::Failed(_)));
            let failed = failed || matches!(lane.sent(), Some(Err(_)));
            let busy = lane.marks.sending() || lane.marks.polls_in() || lane.marks.polls_out();
            !busy && !failed && lane.receiving == Receiving::Off
        };
        self.session.can_be_exported() && self.lanes.iter().all(is_quiet)
    }

    /// Gives everything up.
    pub(super) fn export(mut self, cx: &mut Cx, ring: &mut Ring) -> Option<Exported> {
        let unsent = Side::BOTH.map(|side| self.unsent(cx.now, ring, side));
        for lane in &mut self.lanes {
            if let Some(socket) = lane.socket.as_ref().filter(|_| lane.marks.watched()) {
                cx.unwatch(socket.as_fd());
            }
        }
        let [client, backend] = self.lanes.map(|lane| lane.socket);
        let (machine, local, claim) = self.session.export(cx);
        let [from_client, from_backend] = unsent;
        let ends = [(client?, from_client?), (backend?, from_backend?)];
        Some(Exported {
            machine,
            local,
            claim,
            ends: ends.map(|(socket, unsent)| ExportedEnd { socket, unsent }),
        })
    }

    /// What came from `side` and was not sent; the machine is told of what it did not know of. A
    /// FIN is not: the socket goes on telling of it.
    fn unsent(&mut self, now: Time, ring: &mut Ring, side: Side) -> Option<Vec<u8>> {
        let lane = &mut self.lanes[side.index()];
        if let Some(Ok(n)) = lane.take_sent() {
            let side = side.peer();
            let mut out = Actions::new();
            let sent = Event::Sent { side, n };
            self.session.machine.step(now, sent, &mut out);
        }
        let mut bytes = Vec::new();
        let mut ahead = Vec::new();
        if let Some(slow) = lane.slow.take() {
            if let Some(backlog) = &slow.backlog {
                bytes.extend_from_slice(backlog.rest());
            }
            if let Some(mut bulk) = slow.pipe {
                bytes.extend_from_slice(&bulk.read_out().ok()?);
            }
            ahead = slow.stash;
        }
        ring.move_to(lane.queue.take(), &mut ahead);
        self.session.machine.add_buffered(side, ahead.len() as u32);
        bytes.append(&mut ahead);
        Some(bytes)
    }

    /// What was given up elsewhere.
    pub(super) fn adopted(exported: Exported) -> Connection {
        let Exported {
            machine,
            local,
            claim,
            ends,
        } = exported;
        let session = Session::adopted(machine, local, claim);
        let lanes = ends.map(|end| {
            let mut lane = Lane::new(Some(end.socket));
            if !end.unsent.is_empty() {
                let slow = lane.slow.get_or_insert_default();
                slow.backlog = Some(Backlog::new(end.unsent));
            }
            lane
        });
        Connection::with(session, lanes)
    }

    /// Goes on with it.
    pub(super) fn resume_all(&mut self, cx: &mut Cx, io: &mut Io, key: Key) -> Outcome {
        for side in Side::BOTH {
            if self.session.machine.has_finished(side) {
                io.watch_later(cx, Owner { key, side });
            }
        }
        let mut out = Actions::new();
        self.session.machine.resume(&mut out);
        for action in out.as_slice() {
            let done = self.act(cx, io, key, *action, &mut None);
            debug_assert_eq!(done, Done::Waits, "nothing here completes at once");
        }
        self.run(cx, io, key)
    }
}
