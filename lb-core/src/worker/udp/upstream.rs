//! From the backend to the client.

use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::{Driver, SendError};
use crate::flow::{FlowId, Rules};
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::sys::epoll::Interest;
use crate::sys::udp::{self, BATCH};
use crate::worker::cx::Cx;
use crate::worker::token::{Kind, Token};

/// Receives that one event of a flow takes.
const FLOW_BATCH: usize = BATCH / 2;
/// Calls that one event of a flow costs at most: an error, then what lies behind it, and one more
/// where the outbox ran full.
const MAX_CALLS: usize = 4;

impl Driver {
    /// A flow's socket has replies, or an error to tell: edge-triggered, so that it is read until
    /// it is found empty; past the bound, it is told again.
    pub(super) fn on_upstream(&mut self, cx: &mut Cx, flow: FlowId) {
        let mut left = FLOW_BATCH;
        for _ in 0..MAX_CALLS {
            if self.outbox.room() == 0 {
                self.flush();
            }
            let Some(upstream) = self.flows.part(flow) else {
                return;
            };
            let wanted = left.min(self.outbox.room());
            match self.outbox.receive(upstream.socket.as_fd(), wanted) {
                Ok(got) => {
                    self.answer(cx, flow, got);
                    if got < wanted {
                        return;
                    }
                    left -= got;
                    if left == 0 {
                        break;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(errno) => match SendError::from(errno) {
                    SendError::Unreachable(why) => self.on_refusal(cx, flow, why),
                    // Consumed; what lies behind it is still to be read.
                    SendError::Lost(_) => {}
                },
            }
        }
        self.ask_again(cx, flow);
    }

    /// Has epoll look at the flow's socket anew: ready, it is in the next wait's events.
    fn ask_again(&mut self, cx: &mut Cx, flow: FlowId) {
        let Some(upstream) = self.flows.part(flow) else {
            return;
        };
        let token = Token::new(Kind::Flow, flow);
        if cx
            .rewatch(upstream.socket.as_fd(), token, Interest::DATAGRAMS)
            .is_err()
            && let Some(closed) = self.flows.close(flow)
        {
            // No memory in the kernel: nobody would ever read its replies.
            self.end(cx, closed, CloseReason::LocalError);
        }
    }

    /// The `got` replies just received wait in the outbox: says where they go.
    fn answer(&mut self, cx: &mut Cx, flow: FlowId, got: usize) {
        let Some(upstream) = self.flows.part_mut(flow) else {
            return;
        };
        if got > 1 && !upstream.joins {
            // One that sends in bursts: where the network can, take them in one piece.
            upstream.joins = true;
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
