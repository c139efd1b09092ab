//! One TCP connection, from accept to close, as a pure state machine.
//!
//! PURE. A [`Conn`] holds no byte and no descriptor: it is told what completed ([`Event`]), counts,
//! and says what to start next ([`Action`]). The words are those of a completion ring; a driver over
//! a readiness interface emulates them by trying an operation and holding it back until it is ready.
//! Owned by the driver of one worker, used on its thread alone.
//!
//! ```text
//!            Accepted{denied}                           ┌────────────────────────────┐
//!   New ───────────────────────▶ reset, Close           │ ConnectFailed, or deadline │
//!    │ Accepted                                         ▼ of this try: next backend  │
//!    └──────────▶ Picking ──Picked──▶ Connecting ───────┴────────────────────────────┘
//!                    │ NoBackend,          │ Connected
//!                    │ rounds or budget    ▼
//!                    │ spent           Relaying ──both FINs forwarded──▶ Close(Finished)
//!                    ▼                     │
//!               reset, Close               │ one side failed (RST, timeout), and all that it had
//!                                          │ sent is handed to the other side's socket
//!                                          ▼
//!                     Flushing(other side) ──acknowledged, or stalled too long──▶ reset, Close
//! ```
//!
//! While relaying, each direction is on its own:
//!
//! ```text
//!               Received{n}                        Received{0}: a FIN
//!   Receiving ──────────────▶ Sending    Receiving ────────────────────▶ Finished (Shutdown)
//!       ▲                        │
//!       └──── Sent{all of it} ───┘       the receiver failed, or the sender's queue ended
//!                                        without a FIN: ─────────────────▶ Ended
//! ```
//!
//! What holds, whatever arrives:
//!
//! - A direction has one operation outstanding: a receive, or a send of what was received. While
//!   bytes wait to be sent, nothing more is read: that is the backpressure.
//! - A FIN goes out after every byte that came before it, and only for a FIN that came in. A reset
//!   (or a timeout) of one side becomes a reset of the other, after what that side had sent before
//!   has been delivered: a reset discards the send queue (RFC 9293 s3.10.7), so it waits for the
//!   queue to be acknowledged.
//! - Nothing is promised to the client before a backend has answered, so until then another one can
//!   be tried. After that nothing is ever sent twice.
//! - [`Action::Close`] comes exactly once and last; whatever completes later is ignored.

mod actions;
mod machine;
mod relay;
#[cfg(any(test, fuzzing))]
pub mod sim;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use actions::Actions;
pub use machine::Conn;

use crate::stats::CloseReason;
use crate::time::Time;

/// One of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client's.
    Downstream,
    /// The backend's.
    Upstream,
}

impl Side {
    /// Both, downstream first.
    pub const BOTH: [Side; 2] = [Side::Downstream, Side::Upstream];

    /// The other one.
    pub const fn peer(self) -> Side {
        match self {
            Side::Downstream => Side::Upstream,
            Side::Upstream => Side::Downstream,
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Side::Downstream => 0,
            Side::Upstream => 1,
        }
    }
}

/// Which operation reported a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The outstanding receive: the receive queue is used up, nothing more will come.
    Receive,
    /// The outstanding send, or a watch for errors: the receive queue may still hold bytes, and a
    /// FIN after them.
    SendOrWatch,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nobody listens there (ECONNREFUSED).
    Refused,
    /// The peer sent RST (ECONNRESET).
    Reset,
    /// The peer sent RST after its FIN (EPIPE: Linux reports it so in CLOSE-WAIT).
    BrokenPipe,
    /// No answer: handshake, keepalive or user timeout (ETIMEDOUT).
    TimedOut,
    /// No route, or a firewall's or router's ICMP answer.
    Unreachable,
    /// No local port is free for this destination (EADDRNOTAVAIL): another one may do.
    NoPort,
    /// No descriptor or memory is free here (EMFILE, ENFILE, ENOBUFS, ENOMEM): no other backend
    /// would help.
    Exhausted,
    /// Anything else.
    Unexpected,
}

/// What completed. An event that fits no outstanding operation (it came too late) is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client was accepted; `denied`: its address is not in the source ranges.
    Accepted {
        /// Answer it with a reset and dial nothing.
        denied: bool,
    },
    /// Answers [`Action::Pick`].
    Picked {
        /// How often every usable backend has been tried before: 0 for one not tried yet.
        round: u8,
    },
    /// Answers [`Action::Pick`]: there is nobody to try.
    NoBackend,
    /// Answers [`Action::Connect`]: the handshake is done.
    Connected,
    /// Answers [`Action::Connect`]: this try is over.
    ConnectFailed(Cause),
    /// Answers [`Action::Receive`]: `n` bytes, at least one; 0 is a FIN, or the end of the queue of
    /// a side that has failed.
    Received {
        /// Who sent them.
        side: Side,
        /// How many.
        n: u32,
    },
    /// Answers [`Action::Send`]: the kernel took the first `n` bytes of what waits.
    Sent {
        /// Who they were sent to.
        side: Side,
        /// How many.
        n: u32,
    },
    /// An operation failed, or an error was seen on the socket.
    Failed {
        /// Whose socket.
        side: Side,
        /// What failed, and so what may still be read.
        operation: Operation,
        /// Why.
        cause: Cause,
    },
    /// While [`Action::AwaitFlush`] is outstanding: some was acknowledged, not all.
    FlushProgress {
        /// Whose send queue.
        side: Side,
    },
    /// Answers [`Action::AwaitFlush`]: the peer has acknowledged everything.
    Flushed {
        /// Whose send queue.
        side: Side,
    },
    /// The timer of the last [`Action::Arm`] fired. One that fires early is harmless.
    Timer,
    /// The end of a drain: whatever is open is reset.
    Cut,
    /// There is no memory for those that are idle: whatever is open is reset.
    Shed,
}

/// What to start. Actions are carried out in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Choose a backend and answer with [`Event::Picked`] or [`Event::NoBackend`].
    Pick {
        /// 0 for the first try. A later one prefers backends not tried yet.
        attempt: u8,
    },
    /// Open the upstream socket and connect it to the backend picked.
    Connect,
    /// The try has failed, or has had its time: close the upstream socket.
    CloseUpstream,
    /// Receive from this side, into an empty buffer.
    Receive {
        /// From whom.
        side: Side,
    },
    /// Send what is buffered for this side.
    Send {
        /// To whom.
        side: Side,
    },
    /// Send FIN to this side: shutdown(2) for writing. Everything before it is in the kernel.
    Shutdown {
        /// To whom.
        side: Side,
    },
    /// Wait until this side has acknowledged all that was sent (SIOCOUTQ is 0).
    AwaitFlush {
        /// Whose send queue.
        side: Side,
    },
    /// Close this side's socket with a RST (SO_LINGER 0).
    Reset {
        /// Whose socket.
        side: Side,
    },
    /// Fire [`Event::Timer`] then; replaces the timer armed before.
    Arm(Time),
    /// The connection is over: close the sockets that are left, drop the buffers, count the reason.
    Close(CloseReason),
}

/// The time limits of one connection, fixed when it is accepted: a later change of policy never
/// touches a live connection. Milliseconds inside, to keep a connection small; at most 49 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    connect_ms: u32,
    budget_ms: u32,
    idle_ms: u32,
    half_close_ms: u32,
}

impl Timeouts {
    /// `connect` bounds one try and `budget` all of them; `idle` and `half_close` count from the
    /// last byte either way, and are off when zero.
    pub fn new(connect: Duration, budget: Duration, idle: Duration, half_close: Duration) -> Self {
        let ms = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        Timeouts {
            connect_ms: ms(connect),
            budget_ms: ms(budget),
            idle_ms: ms(idle),
            half_close_ms: ms(half_close),
        }
    }

    fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms.into())
    }

    fn budget(&self) -> Duration {
        Duration::from_millis(self.budget_ms.into())
    }

    /// When a connection last active at `active` has been silent for too long.
    fn silence_ends(&self, active: Time, half_closed: bool) -> Time {
        let ms = if half_closed {
            self.half_close_ms
        } else {
            self.idle_ms
        };
        match ms {
            0 => Time::from_micros(u64::MAX),
            ms => active + Duration::from_millis(ms.into()),
        }
    }
}
