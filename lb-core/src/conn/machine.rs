//! The phases of a connection: admission, the tries, the timers, the end.

use std::time::Duration;

use super::relay::{Direction, Stage};
use super::{Action, Actions, Cause, Event, Side, Timeouts};
use crate::stats::CloseReason;
use crate::time::Time;

/// How often every backend is tried before a connection is refused, as long as none of them costs
/// waiting. The second round is for the backend that was just restarting.
const ROUNDS: u8 = 2;

/// Tries of one connection at most. Where each fails at once, as without a route, they are made in
/// one go: some 10 us each that the other connections wait.
pub(super) const MAX_TRIES: u8 = 32;

/// A side that is to be reset but takes nothing of what was sent before is reset without it after
/// this. It bounds a peer that never reads; one that reads slowly starts it anew.
const FLUSH_STALL: Duration = Duration::from_secs(60);

const NEVER: Time = Time::from_micros(u64::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    New,
    Picking,
    Connecting,
    Relaying,
    /// One side has failed; this other one is reset when it has acknowledged what it was sent.
    Flushing(Side),
    Closed,
}

/// One connection. See the [module](super) for its states.
#[derive(Debug)]
pub struct Conn {
    pub(super) phase: Phase,
    pub(super) directions: [Direction; 2],
    /// The first failure seen on each side.
    pub(super) failures: [Option<Cause>; 2],
    /// Tries so far.
    attempt: u8,
    /// Rounds over all backends so far.
    round: u8,
    /// A try of this round ended by its deadline: the next round cannot spin.
    waited: bool,
    last_cause: Option<Cause>,
    timeouts: Timeouts,
    /// The last byte either way; before the relay, when the try began.
    pub(super) active: Time,
    /// When all tries end; once connected, unused.
    budget_ends: Time,
    /// What the driver's timer is set to.
    armed: Time,
}

impl Conn {
    /// A connection about to be accepted.
    pub fn new(timeouts: Timeouts) -> Conn {
        Conn {
            phase: Phase::New,
            directions: [Direction::default(); 2],
            failures: [None; 2],
            attempt: 0,
            round: 0,
            waited: false,
            last_cause: None,
            timeouts,
            active: Time::ZERO,
            budget_ends: NEVER,
            armed: NEVER,
        }
    }

    /// Has [`Action::Close`] been said?
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Takes what completed and appends what to start next to `out`, at most four actions.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Actions) {
        match (self.phase, event) {
            (Phase::Closed, _) => {}
            (Phase::New, Event::Accepted { denied: true }) => {
                out.push(Action::Reset {
                    side: Side::Downstream,
                });
                self.close(CloseReason::SourceDenied, out);
            }
            (Phase::New, Event::Accepted { denied: false }) => {
                self.active = now;
                self.budget_ends = now + self.timeouts.budget();
                self.pick(out);
            }
            (Phase::Picking, Event::Picked { round }) => self.on_picked(now, round, out),
            (Phase::Picking, Event::NoBackend) => self.give_up(out),
            (Phase::Connecting, Event::Connected) => self.start_relay(now, out),
            (Phase::Connecting, Event::ConnectFailed(cause)) => {
                self.on_connect_failed(now, cause, out);
            }
            (
                Phase::Picking | Phase::Connecting,
                Event::Failed {
                    side: Side::Downstream,
                    cause,
                    ..
                },
            ) => self.abort(failure_reason(Side::Downstream, cause), out),
            (Phase::Relaying, Event::Received { side, n }) => {
                self.on_received(now, side, n, out);
            }
            (Phase::Relaying, Event::Sent { side, n }) => self.on_sent(now, side, n, out),
            (
                Phase::Relaying,
                Event::Failed {
                    side,
                    operation,
                    cause,
                },
            ) => self.on_failed(now, side, operation, cause, out),
            (Phase::Flushing(target), Event::Failed { side, .. }) if side == target => {
                self.end_flush(out)
            }
            (Phase::Flushing(target), Event::Flushed { side }) if side == target => {
                self.end_flush(out);
            }
            (Phase::Flushing(target), Event::FlushProgress { side }) if side == target => {
                self.active = now;
            }
            (_, Event::Timer) => self.on_timer(now, out),
            (_, Event::Cut) => self.abort(CloseReason::DrainDeadline, out),
            (_, Event::Shed) => self.abort(CloseReason::MemoryPressure, out),
            // A completion of an operation that nobody waits for any more.
            _ => {}
        }
    }

    /// When it wants its timer, as [`Action::Arm`] said last; the end of time: not at all.
    pub fn armed(&self) -> Time {
        self.armed
    }

    /// Relays it, with neither side failed? Then another driver can take it over.
    pub fn is_relaying(&self) -> bool {
        self.phase == Phase::Relaying && self.failed().is_none()
    }

    /// When the last byte moved, of one that has a backend.
    pub fn silent_since(&self) -> Option<Time> {
        let has_backend = matches!(self.phase, Phase::Relaying | Phase::Flushing(_));
        has_backend.then_some(self.active)
    }

    /// Do bytes wait in it that their receiver does not take?
    pub fn is_stalled(&self) -> bool {
        let sends = self.directions.iter().any(|d| d.stage == Stage::Sending);
        sends || matches!(self.phase, Phase::Flushing(_))
    }

    /// Has this side's FIN been forwarded?
    pub fn has_finished(&self, side: Side) -> bool {
        self.directions[side.index()].stage == Stage::Finished
    }

    /// `n` bytes of `side` that nobody was told of wait beside those that do: of a driver that
    /// receives ahead, and gives the connection up.
    pub fn add_buffered(&mut self, side: Side, n: u32) {
        let direction = &mut self.directions[side.index()];
        if matches!(direction.stage, Stage::Receiving | Stage::Sending) && n > 0 {
            direction.stage = Stage::Sending;
            direction.buffered += n;
        }
    }

    /// What a driver has to start that takes a relaying connection over: all that is outstanding.
    pub fn resume(&mut self, out: &mut Actions) {
        for side in Side::BOTH {
            match self.directions[side.index()].stage {
                Stage::Receiving => out.push(Action::Receive { side }),
                Stage::Sending => out.push(Action::Send { side: side.peer() }),
                Stage::Waiting | Stage::Finished | Stage::Ended => {}
            }
        }
        self.armed = NEVER;
        self.arm(out);
    }

    fn pick(&mut self, out: &mut Actions) {
        self.phase = Phase::Picking;
        out.push(Action::Pick {
            attempt: self.attempt,
        });
    }

    fn on_picked(&mut self, now: Time, round: u8, out: &mut Actions) {
        if round > self.round {
            if round >= ROUNDS && !self.waited {
                return self.give_up(out);
            }
            self.round = round;
            self.waited = false;
        }
        self.phase = Phase::Connecting;
        self.active = now;
        out.push(Action::Connect);
        self.arm(out);
    }

    fn on_connect_failed(&mut self, now: Time, cause: Cause, out: &mut Actions) {
        out.push(Action::CloseUpstream);
        self.last_cause = Some(cause);
        self.waited |= cause == Cause::TimedOut;
        self.attempt += 1;
        let hopeless = cause == Cause::Exhausted || self.attempt >= MAX_TRIES;
        if hopeless || now >= self.budget_ends {
            self.give_up(out);
        } else {
            self.pick(out);
        }
    }

    /// No backend will have it: the client gets a RST, at once.
    fn give_up(&mut self, out: &mut Actions) {
        let reason = match self.last_cause {
            None => CloseReason::NoBackend,
            Some(Cause::Exhausted) => CloseReason::DescriptorLimit,
            Some(Cause::NoPort | Cause::Unexpected) => CloseReason::LocalError,
            Some(_) => CloseReason::ConnectFailed,
        };
        out.push(Action::Reset {
            side: Side::Downstream,
        });
        self.close(reason, out);
    }

    fn start_relay(&mut self, now: Time, out: &mut Actions) {
        self.phase = Phase::Relaying;
        self.active = now;
        for side in Side::BOTH {
            self.directions[side.index()].stage = Stage::Receiving;
            out.push(Action::Receive { side });
        }
        self.arm(out);
    }

    /// One side has failed and all that it sent is in the other one's send queue.
    pub(super) fn start_flush(&mut self, now: Time, side: Side, out: &mut Actions) {
        self.phase = Phase::Flushing(side);
        self.active = now;
        out.push(Action::AwaitFlush { side });
        self.arm(out);
    }

    /// The side that has failed while the other one still takes what it had sent.
    pub(super) fn failed(&self) -> Option<Side> {
        let failed = |side: &Side| self.failures[side.index()].is_some();
        Side::BOTH.into_iter().find(failed)
    }

    /// One side has failed, and the other does not take what that had sent before.
    fn end_failed(&mut self, out: &mut Actions) {
        if let Some(side) = self.failed() {
            let cause = self.failures[side.index()].unwrap_or(Cause::Unexpected);
            self.abort(failure_reason(side, cause), out);
        }
    }

    fn end_flush(&mut self, out: &mut Actions) {
        if let Phase::Flushing(target) = self.phase {
            let failed = target.peer();
            let cause = self.failures[failed.index()].unwrap_or(Cause::Unexpected);
            out.push(Action::Reset { side: target });
            self.close(failure_reason(failed, cause), out);
        }
    }

    /// Resets whatever is open.
    pub(super) fn abort(&mut self, reason: CloseReason, out: &mut Actions) {
        match self.phase {
            Phase::New | Phase::Picking | Phase::Closed => {}
            Phase::Connecting | Phase::Relaying | Phase::Flushing(_) => out.push(Action::Reset {
                side: Side::Upstream,
            }),
        }
        out.push(Action::Reset {
            side: Side::Downstream,
        });
        self.close(reason, out);
    }

    pub(super) fn close(&mut self, reason: CloseReason, out: &mut Actions) {
        self.phase = Phase::Closed;
        out.push(Action::Close(reason));
    }

    /// The timer is lazy: bytes do not move it. When it fires, what happened since decides.
    fn on_timer(&mut self, now: Time, out: &mut Actions) {
        self.armed = NEVER;
        if now < self.deadline() {
            return self.arm(out);
        }
        match self.phase {
            Phase::New | Phase::Picking | Phase::Closed => {}
            Phase::Connecting => self.on_connect_failed(now, Cause::TimedOut, out),
            Phase::Relaying if self.failed().is_some() => self.end_failed(out),
            Phase::Relaying if self.is_half_closed() => {
                self.abort(CloseReason::HalfCloseTimeout, out);
            }
            Phase::Relaying => self.abort(CloseReason::IdleTimeout, out),
            Phase::Flushing(_) => self.end_flush(out),
        }
    }

    /// When something must happen if nothing completes before.
    fn deadline(&self) -> Time {
        match self.phase {
            Phase::New | Phase::Picking | Phase::Closed => NEVER,
            Phase::Connecting => (self.active + self.timeouts.connect()).min(self.budget_ends),
            Phase::Relaying => {
                let half = self.is_half_closed();
                let silence_ends = self.timeouts.silence_ends(self.active, half);
                match self.failed() {
                    Some(_) => silence_ends.min(self.active + FLUSH_STALL),
                    None => silence_ends,
                }
            }
            Phase::Flushing(_) => self.active + FLUSH_STALL,
        }
    }

    /// Sets the driver's timer, if it would fire too late.
    pub(super) fn arm(&mut self, out: &mut Actions) {
        let deadline = self.deadline();
        if deadline < self.armed {
            self.armed = deadline;
            out.push(Action::Arm(deadline));
        }
    }
}

/// The reason of a connection that ended because `side` failed.
pub(super) fn failure_reason(side: Side, cause: Cause) -> CloseReason {
    match (side, cause) {
        (Side::Downstream, Cause::TimedOut | Cause::Unreachable) => CloseReason::DownstreamTimedOut,
        (Side::Upstream, Cause::TimedOut | Cause::Unreachable) => CloseReason::UpstreamTimedOut,
        (Side::Downstream, _) => CloseReason::DownstreamReset,
        (Side::Upstream, _) => CloseReason::UpstreamReset,
    }
}
