//! The listeners of one worker: what the table says, made true socket by socket.
//!
//! A new table becomes a list of slots to look at; each look compares what stands there with what
//! should. So a table that comes before the last is done loses nothing and costs nothing twice,
//! and a large one is applied in pieces between which traffic goes on.
//!
//! A listening socket is never closed and opened again for a change: SO_REUSEPORT would lose what
//! waits in its queue. It is closed only while its frontend has no usable backend, is over the
//! descriptor limit or is gone; then the kernel refuses clients by itself.
//!
//! Nothing outside this module knows that there is a socket per frontend: one socket per worker
//! and protocol, with sk_lookup programs that name the frontend, could take its place.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::budget::Plan;
use super::cx::Cx;
use super::local::Local;
use super::report::{BindError, ListenerState, WorkerState};
use super::token::{Kind, Token};
use super::{Drivers, Published};
use crate::slab::{Key, Slab};
use crate::stats::CloseReason;
use crate::sys::epoll::Interest;
use crate::sys::{filter, socket};
use crate::table::{Frontend, Protocol, Slot, Table};
use crate::timer::TimerId;

/// First pause before a failed listener is tried again; doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between tries.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long a listener rests when accept can only fail: descriptors come back within 100 ms.
const REST: Duration = Duration::from_millis(20);
/// Bound of callers taken from the queue of a listener that closes: no backlog is longer.
const MAX_QUEUED: usize = 65_536;

/// One frontend and its socket, if it has one.
struct Entry {
    local: Rc<Local>,
    socket: Option<Rc<OwnedFd>>,
    /// Retry of a failed open, or end of a rest.
    timer: Option<TimerId>,
    pause: Duration,
    /// The group's source selector is attached.
    steered: bool,
    resting: bool,
}

/// Every listener of one worker.
pub(super) struct Listeners {
    entries: Slab<Entry>,
    slots: HashMap<Slot, Key>,
    target: Arc<Published>,
    /// Slots to look at; may name one twice.
    pending: VecDeque<Slot>,
    state: WorkerState,
    changed: bool,
    workers: u32,
    selector_seed: u32,
}

impl Listeners {
    /// No listener yet; everything in `target` is to be looked at.
    pub(super) fn new(target: Arc<Published>, workers: usize, selector_seed: u32) -> Listeners {
        Listeners {
            entries: Slab::new(),
            slots: HashMap::new(),
            pending: target.table.iter().map(|(slot, _)| slot).collect(),
            target,
            state: WorkerState::default(),
            changed: true,
            workers: workers as u32,
            selector_seed,
        }
    }

    /// Takes note of a newer table: what differs is to be looked at.
    pub(super) fn retarget(&mut self, target: &Arc<Published>) {
        let pending = &mut self.pending;
        Table::diff(&self.target.table, &target.table, |slot, _, _| {
            pending.push_back(slot);
        });
        pending.extend(Plan::differences(&self.target.plan, &target.plan));
        self.target = Arc::clone(target);
        self.changed = true;
    }

    /// Is `published` what these listeners follow already?
    pub(super) fn is_target(&self, published: &Arc<Published>) -> bool {
        Arc::ptr_eq(&self.target, published)
    }

    /// Is there anything to look at?
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Looks at `budget` slots at most.
    pub(super) fn apply(&mut self, cx: &mut Cx, drivers: &mut Drivers, budget: usize) {
        for _ in 0..budget {
            let Some(slot) = self.pending.pop_front() else {
                return;
            };
            self.look_at(cx, drivers, slot);
        }
    }

    /// What to publish, if it is another than the last time. Only when nothing is pending: a
    /// generation counts once it runs in full.
    pub(super) fn take_state(&mut self) -> Option<WorkerState> {
        if !self.changed || self.is_pending() {
            return None;
        }
        self.changed = false;
        self.state.generation = self.target.table.generation;
        Some(self.state.clone())
    }

    /// A listening socket is readable.
    pub(super) fn on_event(&mut self, cx: &mut Cx, drivers: &mut Drivers, token: Token) {
        let Some(entry) = self.entries.get_mut(token.key()) else {
            return;
        };
        let Some(listener) = &entry.socket else {
            return;
        };
        drivers.on_listener(cx, &entry.local, listener.as_fd());
        if cx.descriptors.take_exhausted()
            && !entry.resting
            && cx.rewatch(listener.as_fd(), token, Interest::NONE).is_ok()
        {
            entry.resting = true;
            rearm(cx, &mut entry.timer, token, REST);
        }
    }

    /// A listener is to be tried again, or has rested.
    pub(super) fn on_timer(&mut self, cx: &mut Cx, token: Token) {
        let Some(entry) = self.entries.get_mut(token.key()) else {
            return;
        };
        entry.timer = None;
        if std::mem::take(&mut entry.resting)
            && let Some(listener) = &entry.socket
        {
            // It was watched a moment ago; there is nothing here that can fail.
            let _ = cx.rewatch(listener.as_fd(), token, Interest::READ);
        }
        self.pending.push_back(entry.local.slot);
    }

    /// Brings one slot to what the table says of it.
    fn look_at(&mut self, cx: &mut Cx, drivers: &mut Drivers, slot: Slot) {
        let target = Arc::clone(&self.target);
        let frontend = target.table.get(slot);
        let mut inherited = None;
        if let Some(&key) = self.slots.get(&slot)
            && let Some(entry) = self.entries.get(key)
        {
            let old = entry.local.frontend();
            let is_same = |new: &&Arc<Frontend>| new.key == old.key && new.owner == old.owner;
            match frontend.filter(is_same) {
                Some(new) if Arc::ptr_eq(new, &old) => {}
                // Flows find out at their next datagram, connections stay as they are.
                Some(new) => entry.local.update(new),
                None => {
                    // Another owner at the same address goes on with the same socket.
                    let keeps = frontend.is_some_and(|new| new.key == old.key);
                    inherited = self.retire(cx, drivers, key, keeps);
                }
            }
        }
        if let Some(frontend) = frontend {
            let key = self.entry_of(slot, frontend);
            if let Some(entry) = self.entries.get_mut(key)
                && inherited.is_some()
            {
                entry.adopt(cx, key, inherited);
            }
            self.settle(cx, drivers, key, target.plan.serves(slot));
        }
    }

    /// The entry of a frontend, made if there is none.
    fn entry_of(&mut self, slot: Slot, frontend: &Arc<Frontend>) -> Key {
        if let Some(&key) = self.slots.get(&slot) {
            return key;
        }
        let local = Rc::new(Local::new(slot, frontend));
        self.state
            .counters
            .set(slot.0, Some(Arc::clone(&local.counters)));
        let key = self.entries.insert(Entry {
            local,
            socket: None,
            timer: None,
            pause: FIRST_RETRY,
            steered: false,
            resting: false,
        });
        self.slots.insert(slot, key);
        key
    }

    /// Ends the entry of a frontend that is gone; with `keeps`, hands its socket on.
    fn retire(
        &mut self,
        cx: &mut Cx,
        drivers: &mut Drivers,
        key: Key,
        keeps: bool,
    ) -> Option<(Rc<OwnedFd>, bool)> {
        let mut entry = self.entries.remove(key)?;
        let slot = entry.local.slot;
        self.slots.remove(&slot);
        self.state.listeners.set(slot.0, None);
        self.state.counters.set(slot.0, None);
        self.state.retired.push(Arc::clone(&entry.local.counters));
        self.changed = true;
        if let Some(timer) = entry.timer.take() {
            cx.timers.cancel(timer);
        }
        if keeps {
            entry.local.set_listener(None);
            drivers.on_frontend_closed(cx, &entry.local);
            return entry.socket.take().map(|socket| (socket, entry.steered));
        }
        entry.close(cx, drivers);
        None
    }

    /// Opens or closes an entry's socket as its frontend's state asks for.
    fn settle(&mut self, cx: &mut Cx, drivers: &mut Drivers, key: Key, served: bool) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let frontend = entry.local.frontend();
        let state = if !served {
            entry.close(cx, drivers);
            ListenerState::OverLimit
        } else if !frontend.pool.has_usable() || (cx.draining && entry.socket.is_none()) {
            entry.close(cx, drivers);
            ListenerState::Closed
        } else {
            match entry.open(cx, key) {
                Ok(()) => {
                    let affinity = frontend.policy.affinity.is_some();
                    entry.steer(affinity, self.workers, self.selector_seed);
                    ListenerState::Listening
                }
                Err(error) => ListenerState::Failed(error),
            }
        };
        self.note(entry_slot(&self.entries, key), state);
    }

    /// Writes a listener's state into the report.
    fn note(&mut self, slot: Option<Slot>, state: ListenerState) {
        let Some(Slot(slot)) = slot else { return };
        if self.state.listeners.get(slot) != Some(&state) {
            self.state.listeners.set(slot, Some(state));
            self.changed = true;
        }
    }

    /// A drain begins: TCP handshakes under way may end, no other begins. What is queued is
    /// accepted and served as ever.
    pub(super) fn refuse_new(&mut self) {
        for (_, entry) in self.entries.iter() {
            if let (Protocol::Tcp, Some(socket)) = (entry.local.key.protocol, &entry.socket) {
                // Where the filter cannot be had, those who come in these moments are served too.
                let _ = filter::refuse_syn(socket.as_fd());
            }
        }
    }

    /// Closes every listener of `protocol`, after what is queued there was accepted and served.
    pub(super) fn close_served(&mut self, cx: &mut Cx, drivers: &mut Drivers, protocol: Protocol) {
        for key in self.entries.keys() {
            let Some(entry) = self.entries.get_mut(key) else {
                continue;
            };
            if entry.local.key.protocol != protocol || entry.socket.is_none() {
                continue;
            }
            for _ in 0..MAX_QUEUED {
                let Some(listener) = entry
                    .socket
                    .as_ref()
                    .filter(|l| socket::is_readable(l.as_fd()))
                else {
                    break;
                };
                drivers.on_listener(cx, &entry.local, listener.as_fd());
            }
            entry.close(cx, drivers);
            self.note(entry_slot(&self.entries, key), ListenerState::Closed);
        }
    }

    /// No listener, connection or flow is left.
    pub(super) fn set_drained(&mut self) {
        self.changed |= !self.state.drained;
        self.state.drained = true;
    }

    /// Forgets what is over: pins past their time, counters of frontends gone.
    pub(super) fn tidy(&mut self, cx: &Cx) {
        /// Pins looked at per frontend and call.
        const PINS: usize = 1_024;
        for (_, entry) in self.entries.iter() {
            entry.local.expire_pins(cx.now, PINS);
        }
        let before = self.state.retired.len();
        self.state.retired.retain(|counters| counters.is_live());
        self.changed |= self.state.retired.len() != before;
    }
}

fn entry_slot(entries: &Slab<Entry>, key: Key) -> Option<Slot> {
    entries.get(key).map(|entry| entry.local.slot)
}

/// Moves a timer, or arms it.
fn rearm(cx: &mut Cx, timer: &mut Option<TimerId>, token: Token, after: Duration) {
    let at = cx.now + after;
    if !timer.is_some_and(|timer| cx.timers.rearm(timer, at)) {
        *timer = Some(cx.timers.arm(at, token));
    }
}

impl Entry {
    /// Opens the socket, unless it is open; a failure is tried again after a pause.
    fn open(&mut self, cx: &mut Cx, key: Key) -> Result<(), BindError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let frontend = self.local.key;
        let address = SocketAddr::new(frontend.address, frontend.port.get());
        let token = Token::new(Kind::Listener, key);
        let opened = match frontend.protocol {
            Protocol::Tcp => socket::listen_tcp(address),
            Protocol::Udp => socket::listen_udp(address),
        };
        let watched = opened.and_then(|socket| {
            let step = "epoll_ctl";
            match cx.watch(socket.as_fd(), token, Interest::READ) {
                Ok(()) => Ok(socket),
                Err(errno) => Err(socket::ListenError { step, errno }),
            }
        });
        match watched {
            Ok(socket) => {
                self.hold(Rc::new(socket));
                cx.counters.listeners.add(1);
                self.pause = FIRST_RETRY;
                Ok(())
            }
            Err(error) => {
                cx.counters.bind_errors.add(1);
                rearm(cx, &mut self.timer, token, self.pause);
                self.pause = (self.pause * 2).min(MAX_RETRY);
                Err(BindError::new(frontend, error))
            }
        }
    }

    /// Goes on with the socket of the entry before this one.
    fn adopt(&mut self, cx: &Cx, key: Key, inherited: Option<(Rc<OwnedFd>, bool)>) {
        let Some((socket, steered)) = inherited else {
            return;
        };
        // Watched under the old entry's token until now; a change of that cannot fail.
        let _ = cx.rewatch(
            socket.as_fd(),
            Token::new(Kind::Listener, key),
            Interest::READ,
        );
        self.steered = steered;
        self.hold(socket);
    }

    fn hold(&mut self, socket: Rc<OwnedFd>) {
        self.local.set_listener(Some(Rc::clone(&socket)));
        self.socket = Some(socket);
    }

    /// Attaches the source selector to the socket's group, or takes it away.
    fn steer(&mut self, affinity: bool, workers: u32, seed: u32) {
        let Some(listener) = &self.socket else { return };
        if affinity == self.steered || workers < 2 {
            return;
        }
        let done = if affinity {
            let is_v6 = self.local.key.address.is_ipv6();
            filter::attach_source_selector(listener.as_fd(), is_v6, workers, seed)
        } else {
            filter::detach_selector(listener.as_fd())
        };
        // Without it a client may have a pin in each worker: the hash, which goes by the client's
        // address alone, still answers all of them alike. Tried again at the next change.
        self.steered = affinity == done.is_ok();
    }

    /// Closes the socket, if it is open. Who waits in its queue gets RST now instead of silence.
    fn close(&mut self, cx: &mut Cx, drivers: &mut Drivers) {
        if let Some(timer) = self.timer.take() {
            cx.timers.cancel(timer);
        }
        self.pause = FIRST_RETRY;
        self.steered = false;
        self.resting = false;
        let Some(listener) = self.socket.take() else {
            return;
        };
        self.local.set_listener(None);
        if self.local.key.protocol == Protocol::Tcp {
            self.reset_queued(&listener);
        }
        // A driver may still hold a copy for the length of its turn.
        cx.unwatch(listener.as_fd());
        cx.counters.listeners.sub(1);
        drivers.on_frontend_closed(cx, &self.local);
    }

    fn reset_queued(&self, listener: &OwnedFd) {
        for _ in 0..MAX_QUEUED {
            match socket::accept(listener.as_fd()) {
                Ok((socket, _)) => {
                    socket::reset(socket);
                    self.local.counters.connections_opened.add(1);
                    self.local.counters.closed(CloseReason::NoBackend).add(1);
                }
                Err(errno) if errno.raw_os_error() == libc::ECONNABORTED => {}
                // Empty, or out of descriptors: closing resets the rest.
                Err(_) => return,
            }
        }
    }
}
