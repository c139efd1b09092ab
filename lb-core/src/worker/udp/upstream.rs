//! From the backend to the client.

use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::{Driver, SendError};
use crate::flow::{FlowId, Rules};
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::sys::udp::{self, BATCH};
use crate::worker::cx::Cx;

/// Receives that one event of a flow takes.
const FLOW_BATCH: usize = BATCH / 2;
/// Calls that one event of a flow costs at most: an error, then what lies behind it.
const MAX_CALLS: usize = 3;
/// A flow that once had several replies waiting is taken to have them again until so many times in
/// a row it had one.
const BURSTS: u8 = 32;

/// How a flow's replies come. One receive of one datagram takes two thirds of the time of a batch
/// that finds one (1.0 us against 1.5 us on loopback), so that batches are for those who fill them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// The turn of the last receive.
    turn: u32,
    /// Receives until it is no longer taken to send in bursts.
    bursts: u8,
    /// Receives may give several datagrams in one. Stays: what the kernel has joined by then would
    /// come without a word of it.
    joins: bool,
}

impl Pace {
    /// Do several replies wait? Taken to be so of a flow that was read in the turn before, too.
    fn expects_many(&mut self, turn: u32) -> bool {
        let again = turn.wrapping_sub(self.turn) == 1;
        self.turn = turn;
        again || self.bursts > 0
    }

    /// So many came at once. Says whether from now on they shall come joined.
    fn note(&mut self, got: usize) -> bool {
        if got <= 1 {
            self.bursts = self.bursts.saturating_sub(1);
            return false;
        }
        self.bursts = BURSTS;
        !std::mem::replace(&mut self.joins, true)
    }
}

impl Driver {
    /// A flow's socket has replies, or an error to tell.
    pub(super) fn on_upstream(&mut self, cx: &mut Cx, flow: FlowId) {
        for _ in 0..MAX_CALLS {
            if self.outbox.room() == 0 {
                self.flush();
            }
            let Some(upstream) = self.flows.part_mut(flow) else {
                return;
            };
            let socket = upstream.socket.as_fd();
            let got = match upstream.pace.expects_many(self.turn) {
                true => self.outbox.receive(socket, FLOW_BATCH),
                false => self.outbox.receive_one(socket, upstream.pace.joins),
            };
            match got {
                Ok(got) => return self.answer(cx, flow, got),
                Err(Errno::AGAIN) => return,
                Err(errno) => match SendError::from(errno) {
                    SendError::Unreachable(why) => self.on_refusal(cx, flow, why),
                    // Consumed; what lies behind it is still to be read.
                    SendError::Lost(_) => {}
                },
            }
        }
    }

    /// The `got` replies just received wait in the outbox: says where they go.
    fn answer(&mut self, cx: &mut Cx, flow: FlowId, got: usize) {
        let Some(upstream) = self.flows.part_mut(flow) else {
            return;
        };
        if upstream.pace.note(got) {
            udp::join_received(upstream.socket.as_fd());
        }
        let local = Rc::clone(&upstream.local);
        upstream.backend.succeeded();
        self.last_used = cx.now;
        let timeouts = local.timeouts();
        match (self.flows.replied(cx.now, flow, timeouts), local.listener()) {
            (Some(client), Some(listener)) => self.outbox.address(&local, listener, client, flow),
            _ => {
                self.outbox.discard(&local, DropReason::NoFlow);
                if let Some(closed) = self.flows.close(flow) {
                    self.end(cx, closed, CloseReason::Removed);
                }
            }
        }
    }

    /// The backend refused what was sent before. With a copy of it, another backend gets that
    /// now; without, the flow moves at its next datagram.
    fn on_refusal(&mut self, cx: &mut Cx, flow: FlowId, why: ConnectError) {
        let left = self.leave(cx, flow, why);
        match left.payload {
            Some(copy) if self.relocate(cx, flow, left.backend).is_ok() => {
                self.send_copy(cx, flow, &copy);
            }
            _ => self.count_lost(flow),
        }
    }

    /// Sends the replies that wait.
    pub(super) fn flush(&mut self) {
        self.outbox.flush(&mut self.flows);
    }
}
