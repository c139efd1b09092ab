//! A seeded simulation: two peers and a kernel that completes in every hostile order. After each
//! step the promises of the module's head are checked. `WEIR_SEED` repeats one run.

use super::*;
use crate::stats::CloseReason;
use std::time::Duration;

struct Rng(u64);

impl Rng {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// How a peer ends its stream, after all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Fin,
    Reset,
    FinThenReset,
    Vanish,
    Silence,
}

/// One socket of ours, as Linux keeps it, and the peer behind it.
#[derive(Debug)]
struct Socket {
    ending: Ending,
    /// Bytes the peer has yet to send.
    to_come: u64,
    /// In the receive queue.
    queue: u64,
    fin_arrived: bool,
    /// sk_err: taken by whoever asks first.
    error: Option<Cause>,
    /// RST or timeout: nothing can be sent any more.
    dead: bool,
    was_reset_by_peer: bool,
    /// We read the FIN.
    fin_read: bool,
    /// Taken from the receive queue in all.
    read: u64,
    /// In the send queue, not acknowledged.
    unacked: u64,
    /// Taken by the send queue in all.
    written: u64,
    fin_sent: bool,
    reset_sent: bool,
    /// The peer acknowledges nothing any more.
    stalled: bool,
}

impl Socket {
    fn new(rng: &mut Rng) -> Socket {
        let ending = match rng.below(10) {
            0..=3 => Ending::Fin,
            4..=5 => Ending::Reset,
            6..=7 => Ending::FinThenReset,
            8 => Ending::Vanish,
            _ => Ending::Silence,
        };
        Socket {
            ending,
            to_come: rng.below(4) * rng.below(100_000),
            queue: 0,
            fin_arrived: false,
            error: None,
            dead: false,
            was_reset_by_peer: false,
            fin_read: false,
            read: 0,
            unacked: 0,
            written: 0,
            fin_sent: false,
            reset_sent: false,
            stalled: rng.chance(5),
        }
    }

    /// The peer, or the network, does something.
    fn progress(&mut self, rng: &mut Rng) {
        if self.dead {
            return;
        }
        if !self.stalled && self.unacked > 0 && rng.chance(60) {
            self.unacked -= 1 + rng.below(self.unacked);
        }
        if self.to_come > 0 {
            let n = 1 + rng.below(self.to_come);
            self.to_come -= n;
            self.queue += n;
            return;
        }
        match self.ending {
            Ending::Fin => self.fin_arrived = true,
            Ending::FinThenReset if !self.fin_arrived => self.fin_arrived = true,
            Ending::FinThenReset | Ending::Reset => {
                let cause = match self.fin_arrived {
                    true => Cause::BrokenPipe,
                    false => Cause::Reset,
                };
                self.die(cause);
            }
            Ending::Vanish => self.die(Cause::TimedOut),
            Ending::Silence => {}
        }
    }

    fn die(&mut self, cause: Cause) {
        self.dead = true;
        self.was_reset_by_peer = true;
        self.error = Some(cause);
        self.unacked = 0;
    }

    /// recv(2), in the order of tcp_recvmsg: queue, FIN, error, end.
    fn receive(&mut self, side: Side, rng: &mut Rng) -> Option<Event> {
        if self.queue > 0 {
            let n = 1 + rng.below(self.queue.min(65_536));
            self.queue -= n;
            self.read += n;
            let n = u32::try_from(n).expect("at most 64 KiB");
            return Some(Event::Received { side, n });
        }
        if self.fin_arrived {
            self.fin_read = true;
            return Some(Event::Received { side, n: 0 });
        }
        if let Some(cause) = self.error.take() {
            return Some(failed(side, Operation::Receive, cause));
        }
        self.dead.then_some(Event::Received { side, n: 0 })
    }

    fn send(&mut self, side: Side, waiting: u64, rng: &mut Rng) -> Event {
        if self.dead {
            let cause = self.error.take().unwrap_or(Cause::BrokenPipe);
            return failed(side, Operation::SendOrWatch, cause);
        }
        let n = 1 + rng.below(waiting);
        self.unacked += n;
        self.written += n;
        let n = u32::try_from(n).expect("at most what was received");
        Event::Sent { side, n }
    }
}

fn failed(side: Side, operation: Operation, cause: Cause) -> Event {
    Event::Failed {
        side,
        operation,
        cause,
    }
}

/// What is outstanding in the direction that starts at a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    None,
    Receive,
    Send,
}

struct World {
    rng: Rng,
    now: Time,
    conn: Conn,
    sockets: [Socket; 2],
    ops: [Op; 2],
    /// The driver's buffer of each direction, by the side it was received from.
    buffers: [u64; 2],
    picked: bool,
    connecting: bool,
    connected: bool,
    flushing: Option<Side>,
    flush_stalled: bool,
    timer: Option<Time>,
    cut_by_timer: bool,
    closed: Option<CloseReason>,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed);
        let ms = Duration::from_millis;
        let timeouts = Timeouts::new(ms(250), ms(1000), ms(300_000), ms(30_000));
        World {
            sockets: [Socket::new(&mut rng), Socket::new(&mut rng)],
            now: Time::from_micros(rng.below(1_000_000)),
            rng,
            conn: Conn::new(timeouts),
            ops: [Op::None; 2],
            buffers: [0; 2],
            picked: false,
            connecting: false,
            connected: false,
            flushing: None,
            flush_stalled: false,
            timer: None,
            cut_by_timer: false,
            closed: None,
            log: Vec::new(),
        }
    }

    fn run(&mut self) {
        self.step(Event::Accepted { denied: false });
        let mut steps = 0;
        while self.closed.is_none() {
            steps += 1;
            assert!(steps < 20_000, "does not end");
            if let Some(event) = self.next_event() {
                self.step(event);
            }
        }
        // Completions that come after the end are ignored.
        for side in Side::BOTH {
            self.step(Event::Received { side, n: 3 });
            self.step(Event::Sent { side, n: 3 });
            self.step(failed(side, Operation::Receive, Cause::Reset));
            self.step(Event::Flushed { side });
        }
        self.step(Event::Timer);
        self.check_end();
    }

    /// Chooses what happens next; time passes when nothing does.
    fn next_event(&mut self) -> Option<Event> {
        self.now = self.now + Duration::from_micros(self.rng.below(200));
        if let Some(at) = self.timer.filter(|at| *at <= self.now) {
            self.timer = None;
            self.flush_stalled = self.flushing.is_some() && at <= self.now;
            return Some(Event::Timer);
        }
        if self.picked {
            return Some(self.try_connect());
        }
        let side = Side::BOTH[usize::from(self.rng.chance(50))];
        match self.rng.below(8) {
            0..=1 if self.connected || side == Side::Downstream => {
                self.sockets[side.index()].progress(&mut self.rng);
                None
            }
            2..=4 if self.connected => self.complete(side),
            5 if self.connected => self.watch(side),
            6 if self.flushing == Some(side) => self.flush(side),
            7 if self.rng.chance(2) => {
                // An early timer, or a long silence.
                if self.rng.chance(50) {
                    return Some(Event::Timer);
                }
                self.now = self.timer.unwrap_or(self.now);
                None
            }
            _ => None,
        }
    }

    fn try_connect(&mut self) -> Event {
        if !self.connecting {
            return Event::NoBackend;
        }
        match self.rng.below(4) {
            0 => {
                self.picked = false;
                Event::ConnectFailed(Cause::Refused)
            }
            1 => {
                self.now = self.timer.expect("a try has a deadline");
                self.timer = None;
                self.picked = false;
                Event::Timer
            }
            _ => {
                self.picked = false;
                self.connected = true;
                Event::Connected
            }
        }
    }

    fn complete(&mut self, side: Side) -> Option<Event> {
        let i = side.index();
        let event = match self.ops[i] {
            Op::None => None,
            Op::Receive => self.sockets[i].receive(side, &mut self.rng),
            Op::Send => {
                let peer = side.peer();
                let waiting = self.buffers[i];
                Some(self.sockets[peer.index()].send(peer, waiting, &mut self.rng))
            }
        }?;
        self.ops[i] = Op::None;
        match event {
            Event::Received { n, .. } => self.buffers[i] += u64::from(n),
            Event::Sent { n, .. } => self.buffers[i] -= u64::from(n),
            _ => {}
        }
        Some(event)
    }

    /// SO_ERROR read at any time, also before the queue was drained.
    fn watch(&mut self, side: Side) -> Option<Event> {
        let cause = self.sockets[side.index()].error.take()?;
        Some(failed(side, Operation::SendOrWatch, cause))
    }

    fn flush(&mut self, side: Side) -> Option<Event> {
        let socket = &self.sockets[side.index()];
        if socket.dead {
            return None;
        }
        Some(match socket.unacked {
            0 => Event::Flushed { side },
            _ if socket.stalled => return None,
            _ => Event::FlushProgress { side },
        })
    }

    fn step(&mut self, event: Event) {
        self.log.push(format!("{:?} {event:?}", self.now));
        let mut out = Actions::new();
        self.conn.step(self.now, event, &mut out);
        self.cut_by_timer = event == Event::Timer;
        for action in out.as_slice() {
            self.log.push(format!("    {action:?}"));
            assert_eq!(self.closed, None, "{action:?} after Close");
            self.act(*action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Pick { attempt } => {
                assert!(attempt < 30, "too many tries");
                self.picked = true;
                self.connecting = self.rng.chance(95);
                if self.connecting {
                    self.step(Event::Picked { round: attempt / 3 });
                }
            }
            Action::Connect | Action::CloseUpstream => {}
            Action::Receive { side } => {
                let i = side.index();
                assert_eq!(self.ops[i], Op::None, "two operations outstanding");
                assert_eq!(self.buffers[i], 0, "bytes would be overwritten");
                assert!(!self.sockets[i].fin_read, "reads past a FIN");
                self.ops[i] = Op::Receive;
            }
            Action::Send { side } => {
                let i = side.peer().index();
                assert_eq!(self.ops[i], Op::None, "two operations outstanding");
                assert!(self.buffers[i] > 0, "nothing to send");
                assert!(!self.sockets[side.index()].fin_sent, "data after FIN");
                self.ops[i] = Op::Send;
            }
            Action::Shutdown { side } => self.check_shutdown(side),
            Action::AwaitFlush { side } => self.flushing = Some(side),
            Action::Reset { side } => self.check_reset(side),
            Action::Arm(at) => self.timer = Some(at),
            Action::Close(reason) => self.closed = Some(reason),
        }
    }

    fn check_shutdown(&mut self, side: Side) {
        let from = &self.sockets[side.peer().index()];
        assert!(from.fin_read, "a FIN that nobody sent");
        assert_eq!(self.buffers[side.peer().index()], 0, "FIN before data");
        let (read, written) = (from.read, self.sockets[side.index()].written);
        assert_eq!(read, written, "bytes lost or doubled before FIN");
        let to = &mut self.sockets[side.index()];
        assert!(!to.fin_sent, "FIN twice");
        to.fin_sent = true;
    }

    /// A reset that mirrors one loses nothing that came before it.
    fn check_reset(&mut self, side: Side) {
        let from = &self.sockets[side.peer().index()];
        let to = &self.sockets[side.index()];
        let mirrors = from.was_reset_by_peer && !to.was_reset_by_peer && !self.cut_by_timer;
        if mirrors && self.connected {
            assert_eq!(from.queue, 0, "unread bytes lost");
            assert_eq!(from.read, to.written, "received bytes lost");
            assert_eq!(to.unacked, 0, "sent bytes discarded by the reset");
            assert_eq!(from.fin_arrived, to.fin_sent, "FIN lost or made up");
        }
        self.sockets[side.index()].reset_sent = true;
    }

    fn check_end(&self) {
        let reason = self.closed.expect("the loop ended");
        if !self.connected {
            assert!(self.sockets[0].reset_sent, "refused without a RST");
            return;
        }
        for side in Side::BOTH {
            let socket = &self.sockets[side.index()];
            let told = socket.reset_sent || socket.was_reset_by_peer;
            if reason == CloseReason::Finished {
                assert!(socket.fin_sent && socket.fin_read && !socket.reset_sent);
            } else {
                assert!(told, "{side:?} was left with a FIN for {reason:?}");
            }
        }
    }
}

/// Prints the seed and what happened when a check fails.
struct Told<'a>(u64, &'a mut World);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("WEIR_SEED={}\n{}", self.0, self.1.log.join("\n"));
        }
    }
}

fn simulate(seed: u64) -> CloseReason {
    let mut world = World::new(seed);
    let told = Told(seed, &mut world);
    told.1.run();
    told.1.closed.expect("run ends closed")
}

#[test]
fn every_promise_holds_in_hostile_orders() {
    if let Ok(seed) = std::env::var("WEIR_SEED") {
        simulate(seed.parse().expect("WEIR_SEED is a number"));
        return;
    }
    let mut reasons = std::collections::HashMap::new();
    for seed in 0..20_000 {
        *reasons.entry(simulate(seed)).or_insert(0u32) += 1;
    }
    // The simulation reaches what it is meant to judge.
    for reason in [
        CloseReason::Finished,
        CloseReason::ConnectFailed,
        CloseReason::NoBackend,
        CloseReason::DownstreamReset,
        CloseReason::UpstreamReset,
        CloseReason::DownstreamTimedOut,
        CloseReason::UpstreamTimedOut,
        CloseReason::IdleTimeout,
        CloseReason::HalfCloseTimeout,
    ] {
        let n = reasons.get(&reason).copied().unwrap_or(0);
        assert!(n >= 50, "{reason:?} only {n} times: {reasons:?}");
    }
}
