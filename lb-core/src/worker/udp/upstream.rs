//! From the backend to the client.

use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::{Driver, SendError};
use crate::flow::{FlowId, Rules};
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::worker::cx::Cx;

/// Datagrams that one event of a flow takes.
const FLOW_BATCH: usize = 16;
/// Calls that one event of a flow costs at most: an error, then what lies behind it.
const MAX_CALLS: usize = 3;

impl Driver {
    /// A flow's socket has replies, or an error to tell.
    pub(super) fn on_upstream(&mut self, cx: &mut Cx, flow: FlowId) {
        for _ in 0..MAX_CALLS {
            if self.outbox.room() == 0 {
                self.outbox.flush();
            }
            let Some(upstream) = self.flows.part(flow) else {
                return;
            };
            match self.outbox.receive(upstream.socket.as_fd(), FLOW_BATCH) {
                Ok(_) => return self.answer(cx, flow),
                Err(Errno::AGAIN) => return,
                Err(errno) => match SendError::from(errno) {
                    SendError::Unreachable(why) => self.on_refusal(cx, flow, why),
                    // Consumed; what lies behind it is still to be read.
                    SendError::Lost(_) => {}
                },
            }
        }
    }

    /// The replies just received wait in the outbox: says where they go.
    fn answer(&mut self, cx: &mut Cx, flow: FlowId) {
        let Some(upstream) = self.flows.part(flow) else {
            return;
        };
        let local = Rc::clone(&upstream.local);
        upstream.backend.succeeded();
        self.last_used = cx.now;
        let timeouts = local.timeouts();
        match (self.flows.replied(cx.now, flow, timeouts), local.listener()) {
            (Some(client), Some(listener)) => self.outbox.address(&local, &listener, client),
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
}
