//! Waiting until a peer has acknowledged all that it was sent, and the timer of a connection.

use std::time::Duration;

use super::connection::{Connection, NEVER};
use crate::conn::{Event, Side};
use crate::slab::Key;
use crate::sys::stream;
use crate::worker::cx::Cx;
use crate::worker::token::{Kind, Token};

/// How soon a send queue is looked at again while it is to become empty; half as long again each
/// time, up to [`FLUSH_POLL_MAX`]. There is no event for it. A delayed acknowledgement (40 ms) is
/// seen some 10 ms after it came.
const FLUSH_POLL: Duration = Duration::from_millis(1);
const FLUSH_POLL_MAX: Duration = Duration::from_millis(64);

/// A send queue that is to become empty.
#[derive(Debug)]
pub(super) struct Flush {
    side: Side,
    left: u32,
    pause: Duration,
}

impl Connection {
    /// Does this side's send queue have to become empty?
    pub(super) fn is_flushing(&self, side: Side) -> bool {
        self.flush.as_ref().is_some_and(|flush| flush.side == side)
    }

    pub(super) fn await_flush(&mut self, cx: &mut Cx, key: Key, side: Side) {
        self.flush = Some(Box::new(Flush {
            side,
            left: u32::MAX,
            pause: FLUSH_POLL,
        }));
        self.next = self.poll_flush();
        if !matches!(self.next, Some(Event::Flushed { .. })) {
            self.set_timer(cx, key);
        }
    }

    /// Looks at the send queue that is to become empty.
    pub(super) fn poll_flush(&mut self) -> Option<Event> {
        let flush = self.flush.as_mut()?;
        let side = flush.side;
        let socket = self.ends[side.index()].socket();
        // A socket that cannot say is as good as empty: the error follows.
        let left = socket.map_or(0, |s| stream::unacknowledged(s).unwrap_or(0));
        let progress = left < flush.left;
        flush.left = left;
        flush.pause = (flush.pause * 3 / 2).min(FLUSH_POLL_MAX);
        match left {
            0 => Some(Event::Flushed { side }),
            _ => progress.then_some(Event::FlushProgress { side }),
        }
    }

    /// Sets the wheel to the next thing that the machine or a flush waits for.
    pub(super) fn set_timer(&mut self, cx: &mut Cx, key: Key) {
        let flush = self.flush.as_ref().map_or(NEVER, |f| cx.now + f.pause);
        let at = self.deadline.min(flush);
        if at == NEVER {
            return;
        }
        let moved = self.timer.is_some_and(|id| cx.timers.rearm(id, at));
        if !moved {
            self.timer = Some(cx.timers.arm(at, Token::new(Kind::Downstream, key)));
        }
    }
}
