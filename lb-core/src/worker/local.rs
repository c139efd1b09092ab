//! A frontend as one worker sees it, and its backends.
//!
//! Owned by one thread: `Rc` and `Cell` throughout, so that taking a new connection touches no
//! atomic. A [`Local`] is kept alive by its listener, its connections and its flows; it outlives
//! the frontend's place in the table as long as one of them needs it.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::cx::{Cx, Rng};
use crate::affinity::Pins;
use crate::balance::{View, key_hash};
use crate::stats::FrontendCounters;
use crate::table::{BackendState, Frontend, FrontendKey, Policy, Pool, Slot};
use crate::time::Time;

/// How long a backend is passed over after its first failed connect; doubles with each failure
/// in a row.
const FIRST_MARK: Duration = Duration::from_secs(1);
/// Doublings of [`FIRST_MARK`]: 32 s at most.
const MAX_DOUBLINGS: u32 = 5;

/// One backend of one frontend, as this worker knows it. Survives table changes by its address.
#[derive(Debug)]
pub(crate) struct BackendLocal {
    pub(crate) address: SocketAddr,
    active: Cell<u32>,
    failures: Cell<u32>,
    marked_until: Cell<Time>,
}

impl BackendLocal {
    fn new(address: SocketAddr) -> BackendLocal {
        BackendLocal {
            address,
            active: Cell::new(0),
            failures: Cell::new(0),
            marked_until: Cell::new(Time::ZERO),
        }
    }

    /// A connect failed: passed over for a while in favour of others, if there are any.
    pub(crate) fn failed(&self, now: Time) {
        if self.is_marked(now) {
            // Tries that were under way together are one failure, not many.
            return;
        }
        let failures = self.failures.get();
        self.marked_until
            .set(now + FIRST_MARK * (1 << failures.min(MAX_DOUBLINGS)));
        self.failures.set(failures.saturating_add(1));
    }

    /// A connect succeeded: all is forgiven.
    pub(crate) fn succeeded(&self) {
        self.failures.set(0);
        self.marked_until.set(Time::ZERO);
    }

    /// Is it passed over just now?
    pub(crate) fn is_marked(&self, now: Time) -> bool {
        now < self.marked_until.get()
    }
}

/// A connection's or a flow's hold on its backend: counted as active until dropped.
#[derive(Debug)]
pub(crate) struct Claim(Rc<BackendLocal>);

impl Claim {
    fn new(backend: &Rc<BackendLocal>) -> Claim {
        backend.active.set(backend.active.get() + 1);
        Claim(Rc::clone(backend))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}

impl Deref for Claim {
    type Target = BackendLocal;

    fn deref(&self) -> &BackendLocal {
        &self.0
    }
}

/// A frontend as this worker sees it.
#[derive(Debug)]
pub(crate) struct Local {
    /// Where clients dial.
    pub(crate) key: FrontendKey,
    /// Its place in the table while it is there.
    pub(crate) slot: Slot,
    /// This worker's counters of it.
    pub(crate) counters: Arc<FrontendCounters>,
    frontend: RefCell<Arc<Frontend>>,
    /// How often `frontend` was replaced.
    revision: Cell<u64>,
    /// In the order of the pool's own list.
    backends: RefCell<Vec<Rc<BackendLocal>>>,
    listener: RefCell<Option<Rc<OwnedFd>>>,
    ticket: Cell<u64>,
    /// Made when affinity is first seen on.
    pins: RefCell<Option<Pins>>,
}

impl Local {
    pub(crate) fn new(slot: Slot, frontend: &Arc<Frontend>) -> Local {
        let counters = FrontendCounters::new(frontend.key, frontend.owner.clone());
        let local = Local {
            key: frontend.key,
            slot,
            counters: Arc::new(counters),
            frontend: RefCell::new(Arc::clone(frontend)),
            revision: Cell::new(0),
            backends: RefCell::default(),
            listener: RefCell::default(),
            ticket: Cell::new(0),
            pins: RefCell::default(),
        };
        local.adopt(&frontend.pool, Vec::new());
        local
    }

    /// The frontend as the worker's table has it, or had it last.
    pub(crate) fn frontend(&self) -> Arc<Frontend> {
        Arc::clone(&self.frontend.borrow())
    }

    /// As [`Local::frontend`], borrowed for a moment: no atomic, for a datagram's path.
    pub(crate) fn view(&self) -> Ref<'_, Arc<Frontend>> {
        self.frontend.borrow()
    }

    /// Changes with every new state of the frontend.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.get()
    }

    /// Its policy.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.frontend.borrow().policy)
    }

    /// The socket that replies of flows leave from; `None` once the port is closed.
    pub(crate) fn listener(&self) -> Option<Rc<OwnedFd>> {
        self.listener.borrow().clone()
    }

    pub(super) fn set_listener(&self, listener: Option<Rc<OwnedFd>>) {
        *self.listener.borrow_mut() = listener;
    }

    /// Takes the frontend's new state; backends that stay keep what we know of them.
    pub(super) fn update(&self, frontend: &Arc<Frontend>) {
        let old = self.frontend.replace(Arc::clone(frontend));
        self.revision.set(self.revision.get() + 1);
        if !Arc::ptr_eq(&old.pool, &frontend.pool) {
            let known = self.backends.take();
            self.adopt(&frontend.pool, known);
        }
        if old.policy.affinity != frontend.policy.affinity {
            let mut pins = self.pins.borrow_mut();
            match (frontend.policy.affinity, pins.as_mut()) {
                (Some(timeout), Some(pins)) => pins.set_timeout(timeout),
                // Turned off: no client stays, were it turned on again.
                (None, _) => *pins = None,
                (Some(_), None) => {}
            }
        }
    }

    fn adopt(&self, pool: &Pool, known: Vec<Rc<BackendLocal>>) {
        let mut known: HashMap<SocketAddr, Rc<BackendLocal>> =
            known.into_iter().map(|b| (b.address, b)).collect();
        let backends = pool.backends.iter().map(|backend| {
            known
                .remove(&backend.address)
                .unwrap_or_else(|| Rc::new(BackendLocal::new(backend.address)))
        });
        *self.backends.borrow_mut() = backends.collect();
    }

    /// Is `backend` still in the table, in whatever state?
    pub(crate) fn has_backend(&self, backend: SocketAddr) -> bool {
        let pool = &self.frontend.borrow().pool;
        pool.backends
            .binary_search_by_key(&backend, |b| b.address)
            .is_ok()
    }

    /// The backend that takes new work of `client`, other than those in `tried`. Marked ones come
    /// only when all others are tried; `None` when every usable one is.
    ///
    /// With affinity, a client keeps the backend that it has for as long as that one is usable,
    /// unmarked and untried; whichever it gets is its own from now on.
    pub(crate) fn pick(
        &self,
        cx: &mut Cx,
        client: SocketAddr,
        tried: &[SocketAddr],
    ) -> Option<Claim> {
        let frontend = self.frontend.borrow();
        let Some(timeout) = frontend.policy.affinity else {
            let hash = key_hash(&cx.hash_key, client, &self.key, false);
            return self.balance(&frontend.pool, cx, hash, tried);
        };
        if let Some(claim) = self.pinned(&frontend.pool, cx, client, tried) {
            return Some(claim);
        }
        let hash = key_hash(&cx.hash_key, client, &self.key, true);
        let claim = self.balance(&frontend.pool, cx, hash, tried)?;
        let mut pins = self.pins.borrow_mut();
        let pins = pins.get_or_insert_with(|| Pins::new(cx.limits.pins, timeout, &cx.pin_key));
        if pins.pin(client.ip(), claim.address, cx.now).is_err() {
            self.counters.affinity_full.add(1);
        }
        Some(claim)
    }

    /// The backend that `client` is pinned to, its time begun anew.
    fn pinned(
        &self,
        pool: &Pool,
        cx: &Cx,
        client: SocketAddr,
        tried: &[SocketAddr],
    ) -> Option<Claim> {
        let backends = self.backends.borrow();
        let usable = |address| {
            let at = pool
                .backends
                .binary_search_by_key(&address, |b| b.address)
                .ok()?;
            let backend = &pool.backends[at];
            let takes = backend.state == BackendState::Active
                && backend.weight > 0
                && !backends[at].is_marked(cx.now)
                && !tried.contains(&address);
            takes.then_some(at)
        };
        let mut pins = self.pins.borrow_mut();
        let pins = pins.as_mut()?;
        let address = pins.lookup(client.ip(), cx.now, |a| usable(a).is_some())?;
        backends.get(usable(address)?).map(Claim::new)
    }

    fn balance(&self, pool: &Pool, cx: &mut Cx, hash: u64, tried: &[SocketAddr]) -> Option<Claim> {
        let backends = self.backends.borrow();
        let mut view = Seen {
            backends: &backends,
            tried,
            now: cx.now,
            marks: true,
            rng: &mut cx.rng,
            ticket: &self.ticket,
        };
        let mut picked = pool.pick(hash, &mut view);
        if picked.is_none() {
            view.marks = false;
            picked = pool.pick(hash, &mut view);
        }
        backends.get(picked?).map(Claim::new)
    }

    /// Forgets pins whose time is over, `budget` of them at most.
    pub(super) fn expire_pins(&self, now: Time, budget: usize) {
        let mut pins = self.pins.borrow_mut();
        if let Some(pins) = pins.as_mut() {
            pins.expire(now, budget);
        }
    }
}

/// What a pick may know.
struct Seen<'a> {
    backends: &'a [Rc<BackendLocal>],
    tried: &'a [SocketAddr],
    now: Time,
    marks: bool,
    rng: &'a mut Rng,
    ticket: &'a Cell<u64>,
}

impl View for Seen<'_> {
    fn skip(&self, i: usize) -> bool {
        let backend = &self.backends[i];
        (self.marks && backend.is_marked(self.now)) || self.tried.contains(&backend.address)
    }

    fn active(&self, i: usize) -> u32 {
        self.backends[i].active.get()
    }

    fn random(&mut self) -> u64 {
        self.rng.next()
    }

    fn round(&mut self) -> u64 {
        let ticket = self.ticket.get();
        self.ticket.set(ticket.wrapping_add(1));
        ticket
    }
}
