//! A driver over the ring of `kernel`, in the least code that is right: what a real one must do.
//!
//! What of it [`Conn`](crate::conn::Conn) relies on, and a real driver must keep:
//!
//! - What a multishot receive brings before the machine asks is kept in its order; a failure of the
//!   receive is told in its place, after the bytes.
//! - Every error that an operation took from a socket is told: one that is swallowed (with a
//!   cancelled operation, say) would let the next receive of nothing pass for a FIN.
//! - What the operations of one socket say is told in the order of the ring, but for the bytes of
//!   the receive, which may wait: a send that took the error is told before the end that follows.
//! - Once our FIN is sent to a side, nobody takes that socket's error but its receive until the
//!   machine was told of the other FIN: the error no longer says whether one came before it.
//! - Buffers belong to the kernel until the last completion of their operation.

use std::collections::VecDeque;

use super::kernel::{Completion, Kernel, Op, Outcome};
use super::socket::{Socket, Taken};
use crate::chance::Chance;
use crate::conn::{Cause, Event, Operation, Side};
use crate::slab::{Key, Slab};

/// Received bytes: where they stand in their stream.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    at: u64,
    n: u64,
}

#[derive(Clone, Copy, Debug)]
enum Arrived {
    Bytes(Chunk),
    End,
    Failed(Cause),
}

/// The direction that starts at a side.
#[derive(Debug, Default)]
struct Lane {
    receive: Option<Key>,
    cancelled: bool,
    starved: bool,
    /// Came, and the machine was not told yet.
    inbox: VecDeque<Arrived>,
    /// Nothing more will come.
    over: bool,
    /// The machine was told so.
    ended: bool,
    /// The machine waits for a receive.
    wants: bool,
    /// The machine was told, and the other side has not taken it yet.
    outbox: VecDeque<Chunk>,
    /// The machine waits for a send.
    sending: bool,
    send: Option<Key>,
    /// How much came in all.
    at: u64,
}

impl Lane {
    fn take(&mut self, n: u64, buffers: &mut u64) {
        let mut left = n;
        while let Some(chunk) = self.outbox.front_mut().filter(|_| left > 0) {
            let taken = left.min(chunk.n);
            (chunk.at, chunk.n) = (chunk.at + taken, chunk.n - taken);
            left -= taken;
            if chunk.n == 0 {
                self.outbox.pop_front();
                *buffers += 1;
            }
        }
        assert_eq!(left, 0, "more was sent than there was");
    }

    fn waiting(&self) -> u64 {
        self.outbox.iter().map(|chunk| chunk.n).sum()
    }
}

/// A driver of one connection.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) kernel: Kernel,
    /// Every operation that the kernel has not said its last of.
    flights: Slab<Op>,
    lanes: [Lane; 2],
    connect: Option<Key>,
    pub(super) connected: bool,
    pub(super) flushing: Option<Side>,
    /// Was this side's socket closed?
    pub(super) gone: [bool; 2],
    watches: [Option<Key>; 2],
    watched: [bool; 2],
    pending: VecDeque<Event>,
    multishot: bool,
    /// Watches for errors from the start, not only where no receive does.
    eager: bool,
    /// Chunks in an inbox that stop the receive.
    cap: usize,
    buffers: u64,
}

impl Driver {
    pub(super) fn new(chance: &mut Chance<'_>) -> Driver {
        let kernel = Kernel::new(chance);
        Driver {
            buffers: kernel.buffers,
            kernel,
            flights: Slab::new(),
            lanes: Default::default(),
            connect: None,
            connected: false,
            flushing: None,
            gone: [false; 2],
            watches: [None; 2],
            watched: [false; 2],
            pending: VecDeque::new(),
            multishot: chance.percent(70),
            eager: chance.percent(30),
            cap: 1 + chance.below(4) as usize,
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.connect.is_some()
    }

    pub(super) fn wants(&self, side: Side) -> bool {
        self.lanes[side.index()].wants
    }

    /// Does the machine wait for a send to `side`?
    pub(super) fn is_sending(&self, side: Side) -> bool {
        self.lanes[side.peer().index()].sending
    }

    /// Is there nothing from `side` that is still to be sent on?
    pub(super) fn is_empty(&self, side: Side) -> bool {
        self.lanes[side.index()].outbox.is_empty()
    }

    // What the machine says.

    pub(super) fn connect(&mut self) {
        assert!(self.connect.is_none() && !self.connected, "connects twice");
        self.connect = Some(self.submit(Op::Connect));
    }

    pub(super) fn close_upstream(&mut self) {
        if let Some(key) = self.connect.take() {
            self.kernel.cancel(key);
        }
    }

    pub(super) fn receive(&mut self, side: Side) {
        let lane = &mut self.lanes[side.index()];
        assert!(!lane.wants && !lane.sending, "two operations outstanding");
        assert!(lane.outbox.is_empty(), "bytes would be overtaken");
        assert!(!lane.ended, "reads past the end");
        lane.wants = true;
    }

    pub(super) fn send(&mut self, side: Side) {
        let lane = &mut self.lanes[side.peer().index()];
        assert!(!lane.wants && !lane.sending, "two operations outstanding");
        assert!(!lane.outbox.is_empty(), "nothing to send");
        assert!(!self.gone[side.index()], "sends to a closed socket");
        lane.sending = true;
    }

    pub(super) fn reset(&mut self, side: Side) {
        if side == Side::Upstream {
            self.close_upstream();
        }
        self.gone[side.index()] = true;
        let towards = &self.lanes[side.peer().index()];
        let of = [
            self.lanes[side.index()].receive,
            towards.send,
            self.watches[side.index()],
        ];
        of.into_iter()
            .flatten()
            .for_each(|key| self.kernel.cancel(key));
        self.drop_inbox(side);
        self.drop_outbox(side.peer());
    }

    pub(super) fn close(&mut self) {
        for side in Side::BOTH {
            if !self.gone[side.index()] {
                self.reset(side);
            }
        }
    }

    // What the kernel says.

    /// One turn's completions: all of them, before anything is told or started.
    pub(super) fn take_in(&mut self, sockets: &mut [Socket; 2], chance: &mut Chance<'_>) {
        for _ in 0..1 + chance.below(8) {
            let Some(completion) = self.kernel.reap(chance) else {
                return;
            };
            self.complete(completion, sockets);
            // What nobody waits for any more is told once more.
            if !completion.more && chance.percent(2) {
                self.complete(completion, sockets);
            }
        }
    }

    fn complete(&mut self, completion: Completion, sockets: &mut [Socket; 2]) {
        let Completion { key, outcome, more } = completion;
        let Some(&op) = self.flights.get(key) else {
            return;
        };
        if !more {
            self.flights.remove(key);
        }
        match op {
            Op::Connect => self.on_connect(key, outcome),
            Op::Receive { from, .. } => self.on_receive(from, outcome, more),
            Op::Send { to, .. } => self.on_send(to, outcome, sockets),
            Op::Watch { of } => self.on_watch(of, outcome, sockets),
        }
    }

    fn on_connect(&mut self, key: Key, outcome: Outcome) {
        // A try that was given up ends with its operation, whatever that says.
        if self.connect != Some(key) {
            return;
        }
        self.connect = None;
        match outcome {
            Outcome::Connected => {
                self.connected = true;
                self.pending.push_back(Event::Connected);
            }
            Outcome::ConnectFailed(cause) => {
                self.pending.push_back(Event::ConnectFailed(cause));
            }
            other => panic!("a connect ends with {other:?}"),
        }
    }

    fn on_receive(&mut self, from: Side, outcome: Outcome, more: bool) {
        let gone = self.gone[from.index()];
        let lane = &mut self.lanes[from.index()];
        if !more {
            (lane.receive, lane.cancelled) = (None, false);
        }
        let arrived = match outcome {
            Outcome::Taken(Taken::Bytes(n)) => {
                let at = lane.at;
                lane.at += n;
                if gone {
                    self.kernel.buffers += 1;
                    return;
                }
                Arrived::Bytes(Chunk { at, n })
            }
            Outcome::Taken(Taken::End) => Arrived::End,
            Outcome::Taken(Taken::Failed(cause)) => Arrived::Failed(cause),
            Outcome::NoBuffer => {
                lane.starved = true;
                return;
            }
            Outcome::Cancelled => return,
            other => panic!("a receive says {other:?}"),
        };
        lane.over |= !matches!(arrived, Arrived::Bytes(_));
        lane.inbox.push_back(arrived);
    }

    fn on_send(&mut self, to: Side, outcome: Outcome, sockets: &[Socket; 2]) {
        let lane = &mut self.lanes[to.peer().index()];
        lane.send = None;
        if self.gone[to.index()] {
            return self.drop_outbox(to.peer());
        }
        lane.sending = false;
        match outcome {
            Outcome::Sent(n) => {
                let first = lane.outbox.front().map(|chunk| chunk.at);
                let sent = sockets[to.index()].written - n;
                assert_eq!(first, Some(sent), "bytes out of order");
                lane.take(n, &mut self.kernel.buffers);
                let n = u32::try_from(n).expect("a few buffers");
                self.pending.push_back(Event::Sent { side: to, n });
            }
            Outcome::SendFailed(cause) => {
                self.drop_outbox(to.peer());
                self.fail(to, cause);
            }
            other => panic!("a send ends with {other:?}"),
        }
    }

    fn on_watch(&mut self, of: Side, outcome: Outcome, sockets: &mut [Socket; 2]) {
        self.watches[of.index()] = None;
        if outcome != Outcome::Seen || self.gone[of.index()] {
            return;
        }
        let socket = &mut sockets[of.index()];
        if !self.is_plain(of, socket) {
            self.watched[of.index()] = false;
        } else if let Some(cause) = socket.error.take() {
            self.fail(of, cause);
        }
    }

    /// Does this side's error say whether a FIN came before it?
    fn is_plain(&self, of: Side, socket: &Socket) -> bool {
        let lane = &self.lanes[of.index()];
        !socket.fin_sent || (lane.over && lane.inbox.is_empty())
    }

    fn fail(&mut self, side: Side, cause: Cause) {
        self.pending.push_back(Event::Failed {
            side,
            operation: Operation::SendOrWatch,
            cause,
        });
    }

    // What the machine is told.

    /// Something that completed; until `None`, before anything is started.
    pub(super) fn next_event(&mut self, chance: &mut Chance<'_>) -> Option<Event> {
        if let Some(event) = self.pending.pop_front() {
            return Some(event);
        }
        if !self.connected {
            // The client gives up; but what it had sent before is delivered.
            return self.failure_of(Side::Downstream, true);
        }
        for side in Side::BOTH {
            if self.wants(side)
                && let Some(event) = self.arrival(side, chance)
            {
                return Some(event);
            }
        }
        self.failure_of(self.flushing?, false)
    }

    fn failure_of(&mut self, side: Side, is_next: bool) -> Option<Event> {
        let lane = &mut self.lanes[side.index()];
        match lane.inbox.back() {
            Some(Arrived::Failed(cause)) if !is_next || lane.inbox.len() == 1 => {
                let cause = *cause;
                lane.inbox.pop_back();
                Some(Event::Failed {
                    side,
                    operation: Operation::Receive,
                    cause,
                })
            }
            _ => None,
        }
    }

    /// What a receive from `side` brings: one chunk, or all that stand together.
    fn arrival(&mut self, side: Side, chance: &mut Chance<'_>) -> Option<Event> {
        let lane = &mut self.lanes[side.index()];
        let first = lane.inbox.pop_front()?;
        lane.wants = false;
        let mut chunk = match first {
            Arrived::Bytes(chunk) => chunk,
            Arrived::End => {
                lane.ended = true;
                return Some(Event::Received { side, n: 0 });
            }
            Arrived::Failed(cause) => {
                lane.ended = true;
                return Some(Event::Failed {
                    side,
                    operation: Operation::Receive,
                    cause,
                });
            }
        };
        let all = chance.percent(70);
        let mut n = 0;
        loop {
            n += chunk.n;
            lane.outbox.push_back(chunk);
            chunk = match lane.inbox.front() {
                Some(Arrived::Bytes(next)) if all => *next,
                _ => break,
            };
            lane.inbox.pop_front();
        }
        let n = u32::try_from(n).expect("a few buffers");
        Some(Event::Received { side, n })
    }

    // What is started.

    /// Ends a turn: a send per direction that has something, receives where there is room.
    pub(super) fn start(&mut self, sockets: &[Socket; 2]) {
        for side in Side::BOTH {
            self.start_send(side.peer());
            self.start_receive(side);
            self.start_watch(side, &sockets[side.index()]);
        }
    }

    fn start_send(&mut self, to: Side) {
        let lane = &self.lanes[to.peer().index()];
        if lane.sending && lane.send.is_none() && !self.gone[to.index()] {
            let waiting = lane.waiting();
            let key = self.submit(Op::Send { to, waiting });
            self.lanes[to.peer().index()].send = Some(key);
        }
    }

    fn start_receive(&mut self, from: Side) {
        let (connected, multishot) = (self.connected, self.multishot);
        let lane = &mut self.lanes[from.index()];
        let full = lane.inbox.len() >= self.cap;
        if let Some(key) = lane.receive.filter(|_| full && !lane.cancelled) {
            lane.cancelled = true;
            return self.kernel.cancel(key);
        }
        let open = !self.gone[from.index()] && (connected || from == Side::Downstream);
        let asked = lane.wants || multishot;
        let fed = !lane.starved || self.kernel.buffers > 0;
        if open && asked && fed && !full && !lane.over && lane.receive.is_none() {
            let key = self.submit(Op::Receive { from, multishot });
            let lane = &mut self.lanes[from.index()];
            (lane.receive, lane.starved) = (Some(key), false);
        }
    }

    fn start_watch(&mut self, of: Side, socket: &Socket) {
        let i = of.index();
        let due = (self.eager || self.lanes[i].over) && self.is_plain(of, socket);
        if due && self.connected && !self.watched[i] && !self.gone[i] {
            self.watched[i] = true;
            self.watches[i] = Some(self.submit(Op::Watch { of }));
        }
    }

    fn submit(&mut self, op: Op) -> Key {
        let key = self.flights.insert(op);
        self.kernel.submit(key, op);
        key
    }

    fn drop_inbox(&mut self, side: Side) {
        let arrived = std::mem::take(&mut self.lanes[side.index()].inbox);
        let held = arrived.iter().filter(|a| matches!(a, Arrived::Bytes(_)));
        self.kernel.buffers += held.count() as u64;
    }

    /// Unless the kernel still reads from it.
    fn drop_outbox(&mut self, from: Side) {
        let lane = &mut self.lanes[from.index()];
        if lane.send.is_none() {
            self.kernel.buffers += std::mem::take(&mut lane.outbox).len() as u64;
        }
    }

    /// Is nothing left over: no operation, no buffer?
    pub(super) fn check_clean(&self) {
        assert!(self.flights.is_empty(), "an operation is left over");
        assert_eq!(self.kernel.buffers, self.buffers, "a buffer is left over");
    }
}
