//! What a TCP connection is apart from its sockets: its machine, its backend, its search for one,
//! its timer, its account. Both drivers have it in common.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::cx::Cx;
use super::local::{Claim, Local};
use super::room::Room;
use super::token::{Kind, Token};
use crate::conn::{Cause, Conn, Event, Side, Timeouts};
use crate::slab::Key;
use crate::stats::{CloseReason, ConnectError};
use crate::sys::stream;
use crate::time::Time;
use crate::timer::TimerId;

pub(super) const NEVER: Time = Time::from_micros(u64::MAX);

/// How soon a send queue is looked at again while it is to become empty; half as long again each
/// time, up to [`FLUSH_POLL_MAX`]. There is no event for it. A delayed acknowledgement (40 ms) is
/// seen some 10 ms after it came.
const FLUSH_POLL: Duration = Duration::from_millis(1);
const FLUSH_POLL_MAX: Duration = Duration::from_millis(64);

/// A connection that has no backend yet.
#[derive(Debug)]
struct Dial {
    client: SocketAddr,
    /// The backends tried in this round.
    tried: Vec<SocketAddr>,
    /// How often all of them have been tried.
    round: u8,
    /// The try under way, where completions tell of it.
    flight: Option<Key>,
    /// What became of it.
    result: Option<Result<(), Errno>>,
}

impl Dial {
    /// A backend not tried in this round, and the number of the round; when all were tried, a new
    /// round begins. `None` if there is none at all.
    fn pick(&mut self, cx: &mut Cx, local: &Local) -> Option<(Claim, u8)> {
        let mut picked = local.pick(cx, self.client, &self.tried);
        if picked.is_none() && !self.tried.is_empty() {
            self.tried.clear();
            self.round = self.round.saturating_add(1);
            picked = local.pick(cx, self.client, &self.tried);
        }
        let claim = picked?;
        if self.tried.is_empty() {
            // Mostly it stays with one, and thousands may dial at once.
            self.tried.reserve_exact(1);
        }
        self.tried.push(claim.address);
        Some((claim, self.round))
    }
}

/// A send queue that is to become empty.
#[derive(Debug)]
struct Flush {
    side: Side,
    left: u32,
    pause: Duration,
}

/// The phases of a connection that most of its life is not in.
#[derive(Debug)]
enum Passing {
    Dial(Dial),
    Flush(Flush),
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing can be done until something completes.
    Waits,
    /// It has had its share of the turn.
    HasMore,
    /// It is over; every socket is closed, or will be before the worker sleeps.
    Closed(CloseReason),
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// A completion will tell, or nothing has to.
    Waits,
    /// It has completed at once.
    Completed(Event),
    /// It was the last.
    Closed(CloseReason),
}

/// One connection without its sockets.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) machine: Conn,
    pub(super) local: Rc<Local>,
    /// Counts as active at its backend.
    claim: Option<Claim>,
    /// Boxed: an idle connection has none.
    passing: Option<Box<Passing>>,
    timer: Option<TimerId>,
}

impl Session {
    pub(super) fn new(local: &Rc<Local>, timeouts: Timeouts) -> Session {
        Session::adopted(Conn::new(timeouts), Rc::clone(local), None)
    }

    /// Of a connection that was taken over.
    pub(super) fn adopted(machine: Conn, local: Rc<Local>, claim: Option<Claim>) -> Session {
        Session {
            machine,
            local,
            claim,
            passing: None,
            timer: None,
        }
    }

    /// Is it neither dialling nor flushing, and relays?
    pub(super) fn can_be_exported(&self) -> bool {
        self.machine.is_relaying() && self.passing.is_none()
    }

    /// Gives everything up.
    pub(super) fn export(mut self, cx: &mut Cx) -> (Conn, Rc<Local>, Option<Claim>) {
        if let Some(id) = self.timer.take() {
            cx.timers.cancel(id);
        }
        (self.machine, self.local, self.claim)
    }

    /// Since when it has been idle, if it may go for want of memory.
    pub(super) fn idle_since(&self, room: &Room, now: Time) -> Option<Time> {
        let since = self.machine.silent_since()?;
        let stalled = self.machine.is_stalled();
        room.may_go(now, since, stalled).then_some(since)
    }

    /// The search for a backend begins.
    pub(super) fn begin_dial(&mut self, client: SocketAddr) {
        self.passing = Some(Box::new(Passing::Dial(Dial {
            client,
            tried: Vec::new(),
            round: 0,
            flight: None,
            result: None,
        })));
    }

    fn dial(&mut self) -> Option<&mut Dial> {
        match self.passing.as_deref_mut() {
            Some(Passing::Dial(dial)) => Some(dial),
            _ => None,
        }
    }

    /// Has it no backend yet?
    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.passing.as_deref(), Some(Passing::Dial(_)))
    }

    /// Is a connect under way whose completion has not come?
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.passing.as_deref(), Some(Passing::Dial(dial)) if dial.flight.is_some())
    }

    /// Is this not the first try?
    pub(super) fn is_retrying(&self) -> bool {
        matches!(self.passing.as_deref(),
            Some(Passing::Dial(dial)) if dial.tried.len() > 1 || dial.round > 0)
    }

    /// The try under way is this one.
    pub(super) fn set_flight(&mut self, flight: Key) {
        if let Some(dial) = self.dial() {
            dial.flight = Some(flight);
            dial.result = None;
        }
    }

    /// A try has ended; it may be one that nobody waits for any more.
    pub(super) fn note_connected(&mut self, flight: Key, result: Result<(), Errno>) {
        if let Some(dial) = self.dial()
            && dial.flight == Some(flight)
        {
            dial.flight = None;
            dial.result = Some(result);
        }
    }

    /// What became of the try, where no completion of the connect itself tells.
    pub(super) fn set_result(&mut self, result: Result<(), Errno>) {
        if let Some(dial) = self.dial() {
            dial.result = Some(result);
        }
    }

    /// What became of the try, told once.
    pub(super) fn take_result(&mut self) -> Option<Result<(), Errno>> {
        self.dial()?.result.take()
    }

    /// Nobody waits for the try under way any more.
    pub(super) fn forget_flight(&mut self) {
        if let Some(dial) = self.dial() {
            dial.flight = None;
            dial.result = None;
        }
    }

    /// The backend that was picked.
    pub(super) fn backend(&self) -> Option<SocketAddr> {
        self.claim.as_ref().map(|claim| claim.address)
    }

    pub(super) fn pick(&mut self, cx: &mut Cx) -> Event {
        let picked = match self.passing.as_deref_mut() {
            Some(Passing::Dial(dial)) => dial.pick(cx, &self.local),
            _ => None,
        };
        match picked {
            Some((claim, round)) => {
                self.claim = Some(claim);
                Event::Picked { round }
            }
            None => Event::NoBackend,
        }
    }

    pub(super) fn connected(&mut self) -> Event {
        self.passing = None;
        if let Some(claim) = &self.claim {
            claim.succeeded();
        }
        Event::Connected
    }

    /// Settles the account of a try that has failed; its socket is the caller's to close.
    pub(super) fn connect_failed(&mut self, cx: &mut Cx, cause: Cause) -> Event {
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

    /// Counts bytes received.
    pub(super) fn count(&self, event: Event) {
        if let Event::Received { side, n } = event {
            let counter = match side {
                Side::Downstream => &self.local.counters.bytes_downstream,
                Side::Upstream => &self.local.counters.bytes_upstream,
            };
            counter.add(n.into());
        }
    }

    /// Which side's send queue has to become empty?
    pub(super) fn flushes(&self) -> Option<Side> {
        match self.passing.as_deref() {
            Some(Passing::Flush(flush)) => Some(flush.side),
            _ => None,
        }
    }

    pub(super) fn await_flush(
        &mut self,
        cx: &mut Cx,
        key: Key,
        side: Side,
        socket: Option<BorrowedFd<'_>>,
    ) -> Option<Event> {
        self.passing = Some(Box::new(Passing::Flush(Flush {
            side,
            left: u32::MAX,
            pause: FLUSH_POLL,
        })));
        let event = self.poll_flush(socket);
        if !matches!(event, Some(Event::Flushed { .. })) {
            self.set_timer(cx, key);
        }
        event
    }

    /// Looks at the send queue that is to become empty.
    pub(super) fn poll_flush(&mut self, socket: Option<BorrowedFd<'_>>) -> Option<Event> {
        let Some(Passing::Flush(flush)) = self.passing.as_deref_mut() else {
            return None;
        };
        let side = flush.side;
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

    /// The machine wants its timer.
    pub(super) fn arm(&mut self, cx: &mut Cx, key: Key) {
        self.set_timer(cx, key);
    }

    /// The timer came. The first one is that of the connect: a connection that lives on has the
    /// kernel watch over its backend's silence from then on, and one that is over is spared four
    /// system calls.
    /// `is_bounded` is the driver's to keep: does the kernel watch?
    pub(super) fn timer_came(
        &mut self,
        cx: &Cx,
        upstream: Option<BorrowedFd<'_>>,
        is_bounded: &mut bool,
    ) {
        self.timer = None;
        if let Some(upstream) = upstream.filter(|_| !*is_bounded && !self.is_dialling()) {
            *is_bounded = true;
            // Only what cannot fail on a TCP socket.
            let _ = stream::bound_silence(upstream, cx.limits.peer_timeout);
        }
    }

    /// Sets the wheel to the next thing that the machine or a flush waits for.
    fn set_timer(&mut self, cx: &mut Cx, key: Key) {
        let flush = match self.passing.as_deref() {
            Some(Passing::Flush(flush)) => cx.now + flush.pause,
            _ => NEVER,
        };
        let at = self.machine.armed().min(flush);
        if at == NEVER {
            return;
        }
        let moved = self.timer.is_some_and(|id| cx.timers.rearm(id, at));
        if !moved {
            self.timer = Some(cx.timers.arm(at, Token::new(Kind::Downstream, key)));
        }
    }

    /// It is over.
    pub(super) fn end(&mut self, cx: &mut Cx) {
        if let Some(id) = self.timer.take() {
            cx.timers.cancel(id);
        }
        self.claim = None;
        self.passing = None;
    }
}

/// What an error of a TCP socket means (tcp(7), connect(2), ip(7)).
pub(super) fn cause(errno: Errno) -> Cause {
    match errno {
        Errno::CONNREFUSED => Cause::Refused,
        Errno::CONNRESET | Errno::CONNABORTED => Cause::Reset,
        Errno::PIPE => Cause::BrokenPipe,
        Errno::TIMEDOUT => Cause::TimedOut,
        Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN
        | Errno::HOSTDOWN
        | Errno::ACCESS
        | Errno::PERM => Cause::Unreachable,
        Errno::ADDRNOTAVAIL | Errno::ADDRINUSE | Errno::AGAIN => Cause::NoPort,
        // ENOSPC is fs.epoll.max_user_watches.
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC => {
            Cause::Exhausted
        }
        _ => Cause::Unexpected,
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
