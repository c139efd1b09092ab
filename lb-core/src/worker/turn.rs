//! The loop of one worker.
//!
//! A turn: wait for events or the next timer; load the table, once; handle events, then timers;
//! say what changed. Each part is bounded, by number or by time, and what is left over goes on in
//! the next turn: so neither a busy listener nor a large table keeps the rest waiting.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use rustix::io::Errno;

use super::cx::Cx;
use super::descriptors::Descriptors;
use super::handshake::heed;
use super::listener::{Listeners, Steering};
use super::ring::RingTcp;
use super::tcp::Tcp;
use super::token::{Kind, Token};
use super::udp::Udp;
use super::{Drivers, Published, Shared, TcpDriver};
use crate::plane::Limits;
use crate::plane::memory::Order;
use crate::sys::clock;
use crate::sys::epoll::{Events, Interest, Poller};
use crate::table::Protocol;
use crate::time::Time;
use crate::uring::Ring;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Events handled between two looks at the clock.
const EVENTS_PER_LOOK: usize = 16;
/// Timers fired in one turn.
const TIMERS: usize = 256;
/// Frontends whose listeners are brought up to date in one turn, at some 20 us each.
const CHANGES: usize = 64;
/// Events are left for the next turn after this.
const TURN_TIME: Duration = Duration::from_millis(2);
/// Housekeeping, and the longest sleep: a heartbeat older than two of these is a worker in trouble.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long handshakes under way have to end when a drain begins; a round trip round the world
/// takes less. Never more than half of the drain.
const SETTLE: Duration = Duration::from_millis(250);

/// What a worker starts with: made by its plane, where failing is still an error.
pub(crate) struct Seat {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) poller: Poller,
    /// With it TCP goes by completions.
    pub(crate) ring: Option<Ring>,
    pub(crate) descriptors: Descriptors,
    pub(crate) limits: Limits,
    pub(crate) seed: u64,
    /// The same for all workers: they share the selector of a listener's group.
    pub(crate) selector_seed: u32,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Handshakes under way end until then; the drain itself ends at the second time.
    Settling(Time, Time),
    /// No TCP listener is left; connections and flows finish.
    Finishing(Time),
    Drained,
}

/// One worker. Lives on its thread.
pub(crate) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    table: Cache<Arc<ArcSwap<Published>>, Arc<Published>>,
    memory: Cache<Arc<ArcSwap<Order>>, Arc<Order>>,
    cx: Cx,
    drivers: Drivers,
    listeners: Listeners,
    events: Events,
    /// The first of `events` that is not handled yet.
    next_event: usize,
    phase: Phase,
}

impl Worker {
    pub(crate) fn new(seat: Seat) -> Worker {
        let Seat {
            index,
            shared,
            poller,
            ring,
            descriptors,
            limits,
            seed,
            selector_seed,
        } = seat;
        let mut table = Cache::new(Arc::clone(&shared.published));
        let published = Arc::clone(table.load());
        let memory = Cache::new(Arc::clone(&shared.memory));
        let counters = Arc::clone(&shared.counters[index]);
        let key = published.table.hash_key;
        let limits = Rc::new(limits);
        let mut cx = Cx::new(
            clock::now(),
            poller,
            descriptors,
            counters,
            key,
            limits,
            seed,
        );
        let drivers = Drivers {
            tcp: match ring {
                None => TcpDriver::Epoll(Tcp::new()),
                Some(ring) => TcpDriver::Ring(Box::new(RingTcp::new(ring))),
            },
            udp: Udp::new(&cx.limits, &cx.pin_key),
        };
        cx.descriptors.allow(published.plan.traffic);
        cx.timers
            .arm(cx.now + HOUSEKEEPING, Token::single(Kind::House));
        let steering = Steering {
            workers: shared.wakes.len() as u32,
            seed: selector_seed,
            rotation: shared.rotation.clone(),
        };
        let ports = Arc::clone(&shared.ports);
        Worker {
            index,
            shared,
            table,
            memory,
            cx,
            drivers,
            listeners: Listeners::new(published, ports, steering),
            events: Events::with_capacity(EVENTS),
            next_event: 0,
            phase: Phase::Serving,
        }
    }

    /// Begins to watch the eventfd by which others wake this worker.
    pub(crate) fn watch_wake(
        poller: &Poller,
        shared: &Shared,
        index: usize,
    ) -> rustix::io::Result<()> {
        use std::os::fd::AsFd;
        let token = Token::single(Kind::Wake).bits();
        poller.add(shared.wakes[index].as_fd(), token, Interest::READ)
    }

    /// Turns until told to stop.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while !shared.stop.load(Ordering::Acquire) {
            let rang = self.wait();
            heed(&shared.wakes[self.index], rang, || self.turn());
        }
        self.drivers.cut(&mut self.cx);
    }

    /// Sleeps until there is something to do; whether the wake rang.
    fn wait(&mut self) -> bool {
        let has_left = self.next_event < self.events.len();
        let is_busy = has_left || self.listeners.is_pending() || self.drivers.has_work();
        let timeout = match is_busy {
            true => Duration::ZERO,
            false => self.sleep(),
        };
        if let Err(errno) = self.wait_for(timeout, has_left) {
            // Our own descriptors, buffers and signal mask: there is no error that could heal.
            panic!("waiting for events: {errno}");
        }
        if has_left {
            return false;
        }
        let wake = Token::single(Kind::Wake).bits();
        (0..self.events.len())
            .filter_map(|i| self.events.at(i))
            .any(|(bits, _)| bits == wake)
    }

    /// How long nothing has to be done unless something happens.
    fn sleep(&self) -> Duration {
        let now = clock::now();
        let timer = self.cx.timers.next();
        timer.map_or(HOUSEKEEPING, |at| at.since(now).min(HOUSEKEEPING))
    }

    /// Takes in what is ready. The events of epoll are asked for only when the last ones are
    /// handled.
    fn wait_for(&mut self, timeout: Duration, has_left: bool) -> Result<(), Errno> {
        let (readable, timeout) = match self.drivers.ring() {
            None => (true, timeout),
            Some(ring) => (ring.wait(&mut self.cx, timeout)?, Duration::ZERO),
        };
        if has_left {
            return Ok(());
        }
        self.next_event = 0;
        self.events.clear();
        match readable {
            true => self.cx.poller().wait(&mut self.events, timeout),
            false => Ok(()),
        }
    }

    fn turn(&mut self) {
        self.cx.now = clock::now();
        self.cx.counters.turns.add(1);
        self.cx.counters.heartbeat.set(self.cx.now.as_micros());
        self.load();
        self.cx.descriptors.begin_turn();
        self.listeners
            .apply(&mut self.cx, &mut self.drivers, CHANGES);
        self.handle_events();
        self.fire_timers();
        self.drivers.end_turn(&mut self.cx);
        self.follow_drain();
        if let Some(state) = self.listeners.take_state() {
            self.shared.states[self.index].store(Arc::new(state));
            self.shared.reporter.unpark();
        }
    }

    /// The turn's one look at what others want.
    fn load(&mut self) {
        let published = self.table.load();
        if !self.listeners.is_target(published) {
            self.cx.hash_key = published.table.hash_key;
            self.cx.descriptors.allow(published.plan.traffic);
            self.listeners.retarget(published);
        }
        if self.cx.room.follow(self.memory.load(), &self.cx.counters) {
            self.listeners.resume(&mut self.cx);
            let idle = self.cx.room.to_close();
            if idle > 0 {
                self.drivers.shed(idle);
            }
        }
        let until = self.shared.drain_until.load(Ordering::Acquire);
        if until != Shared::NO_DRAIN {
            self.begin_drain(Time::from_micros(until));
        }
    }

    fn handle_events(&mut self) {
        let begun = self.cx.now;
        while let Some((bits, readiness)) = self.events.at(self.next_event) {
            self.next_event += 1;
            self.cx.counters.events.add(1);
            let token = Token::from_bits(bits);
            match token.kind() {
                Some(Kind::Listener) => {
                    self.listeners
                        .on_event(&mut self.cx, &mut self.drivers, token);
                }
                Some(kind) => self.drivers.on_event(&mut self.cx, kind, token, readiness),
                None => {}
            }
            if self.next_event.is_multiple_of(EVENTS_PER_LOOK) {
                self.cx.now = clock::now();
                if self.cx.now.since(begun) > TURN_TIME {
                    return;
                }
            }
        }
    }

    fn fire_timers(&mut self) {
        for _ in 0..TIMERS {
            let Some(token) = self.cx.timers.pop(self.cx.now) else {
                return;
            };
            self.cx.counters.timers.add(1);
            match token.kind() {
                Some(Kind::Listener) => self.listeners.on_timer(&mut self.cx, token),
                Some(Kind::House) => {
                    self.listeners.tidy(&self.cx);
                    self.cx.pipes.tidy();
                    self.cx.timers.arm(self.cx.now + HOUSEKEEPING, token);
                }
                Some(kind) => self.drivers.on_timer(&mut self.cx, kind, token),
                None => {}
            }
        }
    }

    /// A drain was asked for, or its end was moved.
    fn begin_drain(&mut self, end: Time) {
        let settled = match self.phase {
            Phase::Serving => {
                self.cx.draining = true;
                self.listeners.refuse_new();
                self.cx.now + SETTLE.min(end.since(self.cx.now) / 2)
            }
            Phase::Settling(settled, before) if before != end => settled.min(end),
            Phase::Finishing(before) if before != end => {
                self.phase = Phase::Finishing(end);
                self.wake_at(end);
                return;
            }
            Phase::Settling(..) | Phase::Finishing(_) | Phase::Drained => return,
        };
        self.phase = Phase::Settling(settled, end);
        self.wake_at(settled);
        self.wake_at(end);
    }

    /// Makes sure that a turn begins at `at`; the wake itself means nothing.
    fn wake_at(&mut self, at: Time) {
        self.cx.timers.arm(at, Token::single(Kind::Wake));
    }

    fn follow_drain(&mut self) {
        let (cx, drivers) = (&mut self.cx, &mut self.drivers);
        if let Phase::Settling(settled, end) = self.phase
            && settled <= cx.now
        {
            self.listeners.close_served(cx, drivers, Protocol::Tcp);
            self.phase = Phase::Finishing(end);
        }
        if let Phase::Finishing(end) = self.phase {
            if end <= cx.now {
                drivers.cut(cx);
            }
            if drivers.is_idle() {
                // Flows needed their listeners to reply from.
                self.listeners.close_served(cx, drivers, Protocol::Udp);
                // Many flows take several turns to end.
                if !drivers.udp.is_empty() {
                    return self.wake_at(self.cx.now);
                }
                self.listeners.set_drained();
                self.phase = Phase::Drained;
            }
        }
    }
}
