//! A simulation: two peers, a completion ring that is as hostile as may be, and a driver between it
//! and the machine. After each step the promises of [`conn`](super) are checked. Decisions come
//! from a seed, or from a fuzzer's bytes ([`play`]). `WEIR_SEED` repeats one run.

mod driver;
mod kernel;
mod socket;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::*;
use crate::chance::Chance;
use crate::stats::CloseReason;
use driver::Driver;
use socket::Socket;

/// More steps are no life but a loop.
const MAX_STEPS: u32 = 1_000_000;
const CONNECT: Duration = Duration::from_millis(250);
const BUDGET: Duration = Duration::from_millis(1_000);
/// The machine's own, here as a fact to hold it to.
const FLUSH_STALL: Duration = Duration::from_secs(60);

/// One life of a connection, as `bytes` decide it.
///
/// # Panics
/// If the machine breaks a promise.
pub fn play(bytes: &[u8]) {
    World::new(Chance::bytes(bytes)).live();
}

#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "printed")]
enum Line {
    Event(Time, Event),
    Action(Action),
}

struct World<'a> {
    chance: Chance<'a>,
    now: Time,
    conn: Conn,
    sockets: [Socket; 2],
    driver: Driver,
    idle: Duration,
    half_close: Duration,
    /// The last try, byte or FIN, as a witness saw it.
    active: Time,
    budget_ends: Time,
    timer: Option<Time>,
    /// The machine waits for a pick.
    picking: bool,
    tries: u8,
    /// The last event was a deadline's, or the end of a drain.
    forced: bool,
    reset_sent: [bool; 2],
    closed: Option<CloseReason>,
    log: Vec<Line>,
}

/// A run that fails tells how it came to that.
impl Drop for World<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log.iter().for_each(|line| eprintln!("{line:?}"));
        }
    }
}

impl<'a> World<'a> {
    fn new(mut chance: Chance<'a>) -> World<'a> {
        let mut limit = |seconds| match chance.percent(10) {
            true => Duration::ZERO,
            false => Duration::from_secs(seconds),
        };
        let (idle, half_close) = (limit(300), limit(30));
        World {
            now: Time::from_micros(chance.below(1_000_000)),
            sockets: [Socket::new(&mut chance), Socket::new(&mut chance)],
            driver: Driver::new(&mut chance),
            chance,
            conn: Conn::new(Timeouts::new(CONNECT, BUDGET, idle, half_close)),
            idle,
            half_close,
            active: Time::ZERO,
            budget_ends: Time::ZERO,
            timer: None,
            picking: false,
            tries: 0,
            forced: false,
            reset_sent: [false; 2],
            closed: None,
            log: Vec::new(),
        }
    }

    /// From accept to the last completion of the last operation.
    fn live(&mut self) -> CloseReason {
        self.budget_ends = self.now + BUDGET;
        let denied = self.chance.percent(1);
        self.step(Event::Accepted { denied });
        let mut steps = 0;
        while self.closed.is_none() || !self.driver.kernel.is_idle() {
            steps += 1;
            assert!(steps < MAX_STEPS, "does not end");
            self.go_on();
        }
        self.driver.check_clean();
        self.check_end(denied)
    }

    /// Something happens, and the driver has a turn; or time passes.
    fn go_on(&mut self) {
        self.now = self.now + Duration::from_micros(self.chance.below(200));
        match self.chance.below(16) {
            0..=2 => self.peer_acts(),
            3..=6 => self.driver.kernel.work(&mut self.sockets, &mut self.chance),
            7..=11 => self.turn(),
            12 => self.poll_flush(),
            13 => self.stray(),
            14 if self.chance.percent(10) => self.fire(),
            15 if self.chance.percent(1) => self.end(),
            _ => {}
        }
        if self.timer.is_some_and(|at| at <= self.now) {
            self.fire_due();
        }
    }

    fn peer_acts(&mut self) {
        let side = Side::BOTH[self.chance.below(2) as usize];
        if side == Side::Downstream || self.driver.connected {
            self.sockets[side.index()].progress(&mut self.chance);
        }
    }

    /// A driver's turn: first everything that completed, then what follows from it.
    fn turn(&mut self) {
        self.driver.take_in(&mut self.sockets, &mut self.chance);
        self.tell();
        if self.closed.is_none() {
            self.driver.start(&self.sockets);
        }
    }

    fn tell(&mut self) {
        while let Some(event) = self.driver.next_event(&mut self.chance) {
            self.step(event);
        }
    }

    /// A timer that fires early, or a long silence after which it is due.
    fn fire(&mut self) {
        match self.timer {
            Some(_) if self.chance.percent(50) => self.step(Event::Timer),
            Some(at) => self.now = self.now.max(at),
            // Without timeouts only the end of a drain ends a silence.
            None if self.closed.is_none() && self.chance.percent(20) => self.end(),
            None => {}
        }
    }

    /// The end of a drain, or of memory.
    fn end(&mut self) {
        let event = match self.chance.percent(50) {
            true => Event::Cut,
            false => Event::Shed,
        };
        self.step(event);
    }

    fn fire_due(&mut self) {
        self.timer = None;
        self.step(Event::Timer);
        self.tell();
    }

    /// SIOCOUTQ says how much is not acknowledged; of a dead socket, nothing.
    fn poll_flush(&mut self) {
        let Some(side) = self.driver.flushing.filter(|_| self.closed.is_none()) else {
            return;
        };
        let socket = &self.sockets[side.index()];
        match socket.unacked {
            0 => self.step(Event::Flushed { side }),
            _ if socket.stalled => {}
            _ => self.step(Event::FlushProgress { side }),
        }
    }

    /// A completion of an operation that nobody waits for: it must change nothing.
    fn stray(&mut self) {
        let side = Side::BOTH[self.chance.below(2) as usize];
        let (connecting, over) = (self.driver.is_connecting(), self.closed.is_some());
        let relaying = self.driver.connected;
        let event = match self.chance.below(8) {
            0 if over || !self.driver.wants(side) => {
                let n = self.chance.below(3) as u32;
                Event::Received { side, n }
            }
            1 if over || !self.driver.is_sending(side) => {
                let n = self.chance.below(3) as u32;
                Event::Sent { side, n }
            }
            2 if !connecting => Event::Connected,
            3 if !connecting => Event::ConnectFailed(Cause::Refused),
            4 if over || self.driver.flushing != Some(side) => Event::Flushed { side },
            5 if over || self.driver.flushing != Some(side) => Event::FlushProgress { side },
            6 if !self.picking => Event::Picked { round: 9 },
            7 if over || (!relaying && side == Side::Upstream) => Event::Failed {
                side,
                operation: Operation::Receive,
                cause: Cause::Reset,
            },
            _ => return,
        };
        let before = format!("{:?}", self.conn);
        let mut out = Actions::new();
        self.conn.step(self.now, event, &mut out);
        assert_eq!(out.as_slice(), [], "{event:?} had an effect");
        assert_eq!(before, format!("{:?}", self.conn), "{event:?} was kept");
    }

    fn step(&mut self, event: Event) {
        self.log.push(Line::Event(self.now, event));
        let mut out = Actions::new();
        self.conn.step(self.now, event, &mut out);
        self.forced = matches!(event, Event::Timer | Event::Cut | Event::Shed);
        self.witness(event, &out);
        for action in out.as_slice() {
            self.log.push(Line::Action(*action));
            assert_eq!(self.closed, None, "{action:?} after Close");
            self.act(*action);
        }
        self.check_timer();
        if std::mem::take(&mut self.picking) {
            self.pick();
        }
    }

    fn witness(&mut self, event: Event, out: &Actions) {
        let moved = match event {
            Event::Received { .. } | Event::Sent { .. } => !out.as_slice().is_empty(),
            Event::Connected | Event::Picked { .. } | Event::FlushProgress { .. } => true,
            // From a failure on the other side has its time to take what came before.
            Event::Failed { .. } if self.driver.connected && self.driver.flushing.is_none() => true,
            _ => out
                .as_slice()
                .iter()
                .any(|action| matches!(action, Action::AwaitFlush { .. })),
        };
        if moved {
            self.active = self.now;
        }
    }

    fn pick(&mut self) {
        let round = self.tries / 3;
        self.tries += 1;
        assert!(self.tries < 33, "too many tries");
        match self.chance.percent(95) {
            true => self.step(Event::Picked { round }),
            false => self.step(Event::NoBackend),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Pick { attempt } => {
                assert_eq!(attempt, self.tries, "tries are counted");
                self.picking = true;
            }
            Action::Connect => self.driver.connect(),
            Action::CloseUpstream => self.driver.close_upstream(),
            Action::Receive { side } => self.driver.receive(side),
            Action::Send { side } => {
                assert!(!self.sockets[side.index()].fin_sent, "data after FIN");
                self.driver.send(side);
            }
            Action::Shutdown { side } => self.check_shutdown(side),
            Action::AwaitFlush { side } => {
                assert_eq!(self.driver.flushing, None, "flushes twice");
                self.driver.flushing = Some(side);
            }
            Action::Reset { side } => self.check_reset(side),
            Action::Arm(at) => self.timer = Some(at),
            Action::Close(reason) => {
                self.closed = Some(reason);
                self.timer = None;
                self.driver.close();
            }
        }
    }

    /// Silence has an end in every state, and the timer is set to it, or before it.
    fn check_timer(&self) {
        if self.closed.is_some() || self.picking {
            return;
        }
        let fin_sent = self.sockets.iter().any(|socket| socket.fin_sent);
        let limit = match (self.driver.connected, self.driver.flushing) {
            (_, Some(_)) => FLUSH_STALL,
            (true, None) if fin_sent => self.half_close,
            (true, None) => self.idle,
            (false, None) => CONNECT,
        };
        if limit.is_zero() {
            return;
        }
        let latest = match self.driver.connected {
            true => self.active + limit,
            false => (self.active + limit).min(self.budget_ends),
        };
        let armed = self.timer.expect("a timer is armed");
        assert!(armed <= latest, "armed for {armed:?}, due at {latest:?}");
    }

    fn check_shutdown(&mut self, side: Side) {
        let from = &self.sockets[side.peer().index()];
        assert!(from.fin_read, "a FIN that nobody sent");
        assert!(self.driver.is_empty(side.peer()), "FIN before data");
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
        let mirrors = from.was_reset && !to.was_reset && !self.forced;
        if mirrors && self.driver.connected {
            assert_eq!(from.queue, 0, "unread bytes lost");
            assert_eq!(from.read, to.written, "received bytes lost");
            assert_eq!(to.unacked, 0, "sent bytes discarded by the reset");
            assert_eq!(from.fin_arrived, to.fin_sent, "FIN lost or made up");
        }
        assert!(!self.reset_sent[side.index()], "reset twice");
        self.reset_sent[side.index()] = true;
        self.driver.reset(side);
    }

    fn check_end(&self, denied: bool) -> CloseReason {
        let reason = self.closed.expect("the loop ended");
        assert_eq!(denied, reason == CloseReason::SourceDenied);
        if !self.driver.connected {
            assert!(self.reset_sent[0], "refused without a RST");
            return reason;
        }
        for side in Side::BOTH {
            let socket = &self.sockets[side.index()];
            let told = self.reset_sent[side.index()] || socket.was_reset;
            if reason == CloseReason::Finished {
                assert!(socket.fin_sent && socket.fin_read && !self.reset_sent[side.index()]);
                assert_eq!(socket.to_come + socket.queue, 0, "not all was read");
            } else {
                assert!(told, "{side:?} was left with a FIN for {reason:?}");
            }
        }
        reason
    }
}
