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

mod entry;

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use super::budget::Plan;
use super::cx::Cx;
use super::local::Local;
use super::report::{ListenerState, WorkerState};
use super::token::{Kind, Token};
use super::{Drivers, Ports, Published};
use crate::slab::{Key, Slab};
use crate::sys::{filter, socket};
use crate::table::{Frontend, Protocol, Slot, Table};

use entry::{Entry, Inherited, MAX_QUEUED};

pub(super) use entry::Steering;

/// Every listener of one worker.
pub(super) struct Listeners {
    ports: Arc<Ports>,
    entries: Slab<Entry>,
    slots: HashMap<Slot, Key>,
    target: Arc<Published>,
    /// Slots to look at; may name one twice.
    pending: VecDeque<Slot>,
    /// Their callers wait for memory.
    waiting: Vec<Key>,
    state: WorkerState,
    changed: bool,
    steering: Steering,
}

impl Listeners {
    /// No listener yet; everything in `target` is to be looked at.
    pub(super) fn new(target: Arc<Published>, ports: Arc<Ports>, steering: Steering) -> Listeners {
        Listeners {
            ports,
            entries: Slab::new(),
            slots: HashMap::new(),
            pending: target.table.iter().map(|(slot, _)| slot).collect(),
            target,
            waiting: Vec::new(),
            state: WorkerState::default(),
            changed: true,
            steering,
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
        if entry.local.key.protocol == Protocol::Tcp && !cx.has_place() {
            if entry.wait(cx, token) {
                self.waiting.push(token.key());
            }
            return;
        }
        drivers.on_listener(cx, &entry.local, listener.as_fd());
        if cx.descriptors.take_exhausted() {
            entry.rest(cx, token);
        }
    }

    /// There may be memory again: callers that wait are seen to, or wait on.
    pub(super) fn resume(&mut self, cx: &mut Cx) {
        if !cx.has_place() {
            return;
        }
        for key in self.waiting.drain(..) {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.resume(cx, Token::new(Kind::Listener, key));
            }
        }
        cx.counters.listeners_waiting.set(0);
    }

    /// A listener is to be tried again, or has rested.
    pub(super) fn on_timer(&mut self, cx: &mut Cx, token: Token) {
        let Some(entry) = self.entries.get_mut(token.key()) else {
            return;
        };
        entry.on_timer(cx, token);
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
                && let Some(inherited) = inherited
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
        let key = self.entries.insert(Entry::new(local));
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
    ) -> Option<Inherited> {
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
            return entry.bequeath();
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
            match entry.open(cx, key, &self.ports) {
                Ok(()) => {
                    let affinity = frontend.policy.affinity.is_some();
                    entry.steer(affinity, &self.steering);
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
            // Datagrams may come without end, and nobody was promised an answer.
            let passes = match protocol {
                Protocol::Tcp => MAX_QUEUED,
                Protocol::Udp => 1,
            };
            for _ in 0..passes {
                let Some(listener) = entry
                    .socket
                    .as_ref()
                    .filter(|l| socket::is_readable(l.as_fd()))
                else {
                    break;
                };
                drivers.on_listener(cx, &entry.local, listener.as_fd());
                let waits = protocol == Protocol::Tcp && !cx.has_place();
                if waits || cx.descriptors.take_exhausted() {
                    break;
                }
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

#[cfg(test)]
mod tests;
