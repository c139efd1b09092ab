//! UDP: drives the flows of one worker.
//!
//! A frontend's listener is one unconnected socket bound to its VIP and port: datagrams come in by
//! it and replies leave by it, hence from the address that the client dialled. Each flow has a
//! socket of its own, connected to its backend: the kernel sorts the replies by flow, and ICMP
//! errors find the flow that they are about.
//!
//! ```text
//!   client -> listener --recvmmsg--> inbox -> flow table --send--> the flow's socket -> backend
//!   client <- listener <-sendmmsg-- outbox <- flow table <-recvmmsg- the flow's socket <- backend
//! ```
//!
//! What a batch holds of one flow is handled together, and datagrams of one size in a row leave in
//! one send, which passes the network stack once (UDP_SEGMENT); where the stack hands several in
//! one receive (UDP_GRO), they stay together. Each keeps its boundaries, and a flow its order;
//! datagrams of different flows in one batch may overtake each other.
//!
//! Everything is level-triggered. Each event takes a bounded number of datagrams, so that a flood on one socket costs the others
//! their turn only by that much. Errors of a flow's socket are consumed by the call that reports
//! them: none can make it ready for ever.

mod downstream;
mod groups;
mod outbox;
mod runs;
mod upstream;

#[cfg(test)]
mod burst_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::cx::Cx;
use super::local::{Claim, Local};
use super::token::{Kind, Token};
use crate::balance::HashKey;
use crate::flow::{self, Closed, Flows, Rules, Timeouts};
use crate::plane::Limits;
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::sys::epoll::Readiness;
use crate::sys::udp::{self, BATCH, Batch};
use crate::time::Time;
use crate::timer::TimerId;
use crate::worker::descriptors::Use;

use groups::Groups;
use outbox::Outbox;
use runs::{MAX_BYTES, Piece};
use upstream::Pace;

/// Batches that one event of a listener takes, unless it has taken [`LISTENER_BYTES`] before.
const LISTENER_BATCHES: usize = 4;
/// Bytes after which one event of a listener takes no other batch: some 200 us of copying.
const LISTENER_BYTES: usize = 1 << 20;
/// Flows that end by their timers, or with their frontend, in one turn: closing a socket takes
/// about a microsecond.
const ENDS_PER_TURN: usize = 512;
/// A UDP exchange has no end to wait for: once nothing has come for this long, a drain is over.
const DRAIN_SILENCE: Duration = Duration::from_secs(2);

/// The driver's part of a flow.
#[derive(Debug)]
struct Upstream {
    /// Connected to the backend.
    socket: OwnedFd,
    backend: Claim,
    local: Rc<Local>,
    /// The largest datagrams, in bytes, of which several may leave for the backend in one send: a
    /// device or route that refused some is not asked again.
    largest_out: usize,
    /// As `largest_out`, from the listener to this client.
    largest_back: usize,
    /// How its replies come.
    pace: Pace,
}

/// Every flow of one worker.
pub(crate) struct Udp {
    inbox: Batch,
    groups: Groups,
    driver: Driver,
}

/// All but the inbox, so that what it holds can be lent while the rest changes.
struct Driver {
    flows: Flows<Upstream>,
    outbox: Outbox,
    /// Frontends whose flows have to end. Held, so that the number of none of them is used again.
    closing: VecDeque<Rc<Local>>,
    alarm: Option<(Time, TimerId)>,
    /// When a datagram last came from anybody.
    last_used: Time,
    /// A drain need not wait for us.
    quiet: bool,
    /// Counts turns.
    turn: u32,
    /// What `largest_out` and `largest_back` begin with: 0 where the kernel knows no UDP_SEGMENT.
    largest: usize,
}

impl Udp {
    /// `key` is of the worker's own maps: unknown to clients.
    pub(crate) fn new(limits: &Limits, key: &HashKey) -> Udp {
        let limits = flow::Limits {
            flows: limits.flows,
            flows_per_source: limits.flows_per_source,
            copy_bytes: limits.copy_bytes,
            ..flow::Limits::default()
        };
        Udp {
            inbox: Batch::with_senders(),
            groups: Groups::default(),
            driver: Driver {
                flows: Flows::new(limits, key.0),
                outbox: Outbox::default(),
                closing: VecDeque::new(),
                alarm: None,
                last_used: Time::ZERO,
                quiet: false,
                turn: 0,
                largest: if udp::can_segment() { MAX_BYTES } else { 0 },
            },
        }
    }

    /// `listener` has datagrams. Level-triggered: takes a bounded number of them, the rest is told
    /// again. During a drain only those of live flows are forwarded.
    pub(crate) fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        let mut bytes = 0;
        for _ in 0..LISTENER_BATCHES {
            self.inbox.clear();
            match self.inbox.receive(listener, BATCH) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => continue, // an error of the network's: consumed, the next may be well
            }
            bytes += self.deliver(cx, local);
            if self.inbox.room() > 0 || bytes > LISTENER_BYTES {
                return;
            }
        }
    }

    /// Forwards what the inbox holds, sender by sender. Returns how many bytes that were.
    fn deliver(&mut self, cx: &mut Cx, local: &Rc<Local>) -> usize {
        let (mut bytes, mut count, mut too_large) = (0, 0, 0);
        self.groups.clear();
        for n in 0..self.inbox.len() {
            let datagram = self.inbox.datagram(n);
            let piece = Piece::new(datagram.payload, datagram.segment);
            bytes += piece.bytes();
            count += piece.count() as u64;
            match datagram.from {
                _ if datagram.truncated => too_large += piece.count() as u64,
                Some(client) => self.groups.add(n, client),
                None => {} // an unconnected socket names every sender
            }
        }
        local.counters.datagrams_downstream.add(count);
        local.counters.bytes_downstream.add(bytes as u64);
        if too_large > 0 {
            local.counters.dropped(DropReason::TooLarge).add(too_large);
        }
        let mut pieces = Vec::with_capacity(BATCH);
        for group in 0..self.groups.len() {
            let (client, members) = self.groups.at(group);
            pieces.clear();
            pieces.extend(members.map(|n| {
                let datagram = self.inbox.datagram(n);
                Piece::new(datagram.payload, datagram.segment)
            }));
            self.driver.on_datagrams(cx, local, client, &pieces);
        }
        bytes
    }

    /// A flow's socket is ready. The token may be stale.
    pub(crate) fn on_event(&mut self, cx: &mut Cx, token: Token, _readiness: Readiness) {
        self.driver.on_upstream(cx, token.key());
    }

    /// The alarm of the flow table came.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx, _token: Token) {
        self.driver.alarm = None;
        for _ in 0..ENDS_PER_TURN {
            let Some(closed) = self.driver.flows.expire(cx.now) else {
                return;
            };
            let reason = match closed.two_way {
                true => CloseReason::TwoWayTimeout,
                false => CloseReason::OneWayTimeout,
            };
            self.driver.end(cx, closed, reason);
        }
    }

    /// `local`'s listener is closed (no usable backend, or no such frontend any more): its flows
    /// end, for there is no socket that replies could leave from.
    pub(crate) fn on_frontend_closed(&mut self, cx: &mut Cx, local: &Rc<Local>) {
        self.driver.closing.push_back(Rc::clone(local));
        self.driver.close_frontends(cx);
    }

    /// Every event of the turn was given: send what is to be sent together.
    pub(crate) fn end_turn(&mut self, cx: &mut Cx) {
        self.driver.flush();
        self.driver.turn = self.driver.turn.wrapping_add(1);
        self.driver.close_frontends(cx);
        self.driver.set_alarm(cx);
        cx.counters
            .copy_bytes
            .set(self.driver.flows.copy_bytes() as u64);
    }

    /// The deadline of the drain: every flow that is left ends now.
    pub(crate) fn cut(&mut self, cx: &mut Cx) {
        while let Some(closed) = self.driver.flows.close_any() {
            self.driver.end(cx, closed, CloseReason::DrainDeadline);
        }
    }

    /// Does no flow live?
    pub(crate) fn is_empty(&self) -> bool {
        self.driver.flows.is_empty()
    }

    /// Does no flow live that a drain must wait for?
    pub(crate) fn is_idle(&self) -> bool {
        self.driver.flows.is_empty() || self.driver.quiet
    }
}

impl Driver {
    /// Settles the account of a flow that has left the table, and closes its socket.
    fn end(&mut self, cx: &mut Cx, closed: Closed<Upstream>, reason: CloseReason) {
        let counters = &closed.part.local.counters;
        counters.flows_active.sub(1);
        counters.closed(reason).add(1);
        cx.counters.flows_active.sub(1);
        drop(closed);
        cx.descriptors.give(Use::Flow);
    }

    /// Ends flows of closed frontends, a bounded number of them. It may take several turns, for
    /// none of these flows can receive a datagram any more; one whose frontend is open again goes
    /// on.
    fn close_frontends(&mut self, cx: &mut Cx) {
        let mut left = ENDS_PER_TURN;
        while let Some(local) = self.closing.front() {
            let (id, is_open) = (local.id(), local.listener().is_some());
            while !is_open && let Some(closed) = self.flows.close_one_of(id) {
                self.end(cx, closed, CloseReason::Removed);
                left -= 1;
                if left == 0 {
                    return;
                }
            }
            self.closing.pop_front();
        }
    }

    /// Sees to it that we are called when there is something to do.
    fn set_alarm(&mut self, cx: &mut Cx) {
        let mut at = self.flows.next_deadline();
        if cx.draining {
            let silence = self.last_used + DRAIN_SILENCE;
            self.quiet = silence <= cx.now;
            if !self.quiet {
                at = Some(at.map_or(silence, |at| at.min(silence)));
            }
        }
        if !self.closing.is_empty() {
            at = Some(cx.now);
        }
        match (at, self.alarm) {
            (Some(at), Some((armed, _))) if armed <= at => {}
            (Some(at), alarm) => {
                if let Some((_, id)) = alarm {
                    cx.timers.cancel(id);
                }
                let id = cx.timers.arm(at, Token::single(Kind::Flow));
                self.alarm = Some((at, id));
            }
            // It rings in vain, once.
            (None, _) => {}
        }
    }
}

impl Rules for Local {
    fn id(&self) -> u64 {
        // An address names one frontend for as long as a flow holds on to it.
        std::ptr::from_ref(self).addr() as u64
    }

    fn epoch(&self) -> u64 {
        self.revision()
    }

    fn permits(&self, client: IpAddr) -> bool {
        self.view().policy.sources.contains(client)
    }

    fn holds(&self, backend: SocketAddr) -> bool {
        self.has_backend(backend)
    }

    fn timeouts(&self) -> Timeouts {
        let frontend = self.view();
        Timeouts {
            one_way: frontend.policy.flow_one_way_timeout,
            two_way: frontend.policy.flow_two_way_timeout,
        }
    }
}

/// What an error of sending on a flow's socket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendError {
    /// The backend cannot be reached: another one might.
    Unreachable(ConnectError),
    /// The datagram is lost, and another backend would not change that.
    Lost(DropReason),
}

impl From<Errno> for SendError {
    fn from(errno: Errno) -> SendError {
        match errno {
            Errno::CONNREFUSED => SendError::Unreachable(ConnectError::Refused),
            // EPERM and EACCES: a firewall or a prohibited route of ours on the way to it.
            Errno::HOSTUNREACH
            | Errno::NETUNREACH
            | Errno::HOSTDOWN
            | Errno::NETDOWN
            | Errno::PERM
            | Errno::ACCESS => SendError::Unreachable(ConnectError::Unreachable),
            Errno::MSGSIZE => SendError::Lost(DropReason::TooLarge),
            Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => {
                SendError::Lost(DropReason::SendBufferFull)
            }
            _ => SendError::Lost(DropReason::SendFailed),
        }
    }
}
