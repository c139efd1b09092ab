//! Bytes, FINs and failures of a connected pair.

use super::machine::{Conn, failure_reason};
use super::{Action, Actions, Cause, Operation, Side};
use crate::stats::CloseReason;
use crate::time::Time;

/// Where one direction stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not connected yet.
    #[default]
    Waiting,
    /// A receive is outstanding.
    Receiving,
    /// A send of `buffered` bytes is outstanding.
    Sending,
    /// The FIN has been forwarded.
    Finished,
    /// It carries nothing any more, and no FIN was forwarded.
    Ended,
}

/// The bytes that one side sends to the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Direction {
    /// Received and not yet taken by the other side's socket.
    pub(super) buffered: u32,
    pub(super) stage: Stage,
}

impl Direction {
    /// Will this direction hand no more to its receiver's socket?
    fn is_over(self) -> bool {
        matches!(self.stage, Stage::Finished | Stage::Ended)
    }
}

impl Conn {
    /// Has exactly one side sent its FIN? (With both, the connection is over.)
    pub(super) fn is_half_closed(&self) -> bool {
        self.directions.iter().any(|d| d.stage == Stage::Finished)
    }

    pub(super) fn on_received(&mut self, now: Time, side: Side, n: u32, out: &mut Actions) {
        let direction = &mut self.directions[side.index()];
        if direction.stage != Stage::Receiving {
            return;
        }
        if n == 0 {
            return self.on_end_of_queue(now, side, out);
        }
        direction.buffered = n;
        direction.stage = Stage::Sending;
        self.active = now;
        out.push(Action::Send { side: side.peer() });
    }

    /// A receive of nothing. It is a FIN, unless the socket's error was taken before by a send or a
    /// watch: then it may only mean that the queue is used up, and a reset never becomes a FIN. The
    /// error tells: Linux says EPIPE for a RST that came after a FIN.
    fn on_end_of_queue(&mut self, now: Time, side: Side, out: &mut Actions) {
        let failure = self.failures[side.index()];
        if matches!(failure, None | Some(Cause::BrokenPipe)) {
            self.directions[side.index()].stage = Stage::Finished;
            self.active = now;
            out.push(Action::Shutdown { side: side.peer() });
        } else {
            self.directions[side.index()].stage = Stage::Ended;
        }
        self.settle(now, out);
    }

    pub(super) fn on_sent(&mut self, now: Time, side: Side, n: u32, out: &mut Actions) {
        let direction = &mut self.directions[side.peer().index()];
        if direction.stage != Stage::Sending {
            return;
        }
        if n == 0 {
            // No kernel takes nothing of something: to repeat it would spin.
            return self.on_failed(now, side, Operation::SendOrWatch, Cause::Unexpected, out);
        }
        direction.buffered = direction.buffered.saturating_sub(n);
        self.active = now;
        if direction.buffered > 0 {
            out.push(Action::Send { side });
        } else {
            direction.stage = Stage::Receiving;
            out.push(Action::Receive { side: side.peer() });
        }
    }

    /// Nothing can be sent to `side` any more. What it had sent before is still read and delivered.
    pub(super) fn on_failed(
        &mut self,
        now: Time,
        side: Side,
        operation: Operation,
        cause: Cause,
        out: &mut Actions,
    ) {
        self.failures[side.index()].get_or_insert(cause);
        self.active = now;
        if let Some(first) = self.failures[side.peer().index()] {
            // Nobody is left who could be told anything.
            return self.abort(failure_reason(side.peer(), first), out);
        }
        let towards = &mut self.directions[side.peer().index()];
        towards.buffered = 0;
        if !towards.is_over() {
            towards.stage = Stage::Ended;
        }
        let from = &mut self.directions[side.index()];
        if operation == Operation::Receive && from.stage == Stage::Receiving {
            from.stage = Stage::Ended;
        }
        self.settle(now, out);
    }

    /// A failed side with nothing left to deliver: the other one follows. Both FINs forwarded: done.
    fn settle(&mut self, now: Time, out: &mut Actions) {
        match self.failed() {
            Some(side) if self.directions[side.index()].is_over() => {
                self.start_flush(now, side.peer(), out);
            }
            // Its receive is outstanding, or follows the send that is: for as long as the other
            // side takes it.
            Some(_) => self.arm(out),
            None if self.directions.iter().all(|d| d.stage == Stage::Finished) => {
                self.close(CloseReason::Finished, out);
            }
            // A FIN: from now on the shorter timeout may hold.
            None => self.arm(out),
        }
    }
}
