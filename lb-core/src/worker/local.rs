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
use crate::balance::View;
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
    pub(crate) fn policy(&self) -> Ref<'_, Policy> {
        Ref::map(self.frontend.borrow(), |frontend| &*frontend.policy)
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
    /// With affinity, a client keeps the backend that it has for as long as that one is usable and
    /// untried, marked or not: a mark may be another client's bad moment, and a session is worth
    /// one more try. Whichever it gets is its own from now on.
    pub(crate) fn pick(
        &self,
        cx: &mut Cx,
        client: SocketAddr,
        tried: &[SocketAddr],
    ) -> Option<Claim> {
        let frontend = self.frontend.borrow();
        let Some(timeout) = frontend.policy.affinity else {
            let hash = self.key.hash(&cx.hash_key, client, false);
            return self.balance(&frontend.pool, cx, hash, tried);
        };
        if let Some(claim) = self.pinned(&frontend.pool, cx, client, tried) {
            return Some(claim);
        }
        let hash = self.key.hash(&cx.hash_key, client, true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Algorithm;
    use crate::table::{FrontendSpec, Table};
    use crate::worker::testing;

    const BACKENDS: [&str; 3] = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];

    struct Rig {
        local: Local,
        cx: Cx,
    }

    impl Rig {
        fn new(spec: &FrontendSpec) -> Rig {
            Rig {
                local: Local::new(Slot(0), first(&testing::table(std::slice::from_ref(spec)))),
                cx: testing::cx(),
            }
        }

        fn update(&mut self, spec: &FrontendSpec) {
            self.local
                .update(first(&testing::table(std::slice::from_ref(spec))));
        }

        fn pick(&mut self, client: u8, tried: &[SocketAddr]) -> Option<Claim> {
            let client = SocketAddr::from(([192, 0, 2, client], 5_000));
            self.local.pick(&mut self.cx, client, tried)
        }
    }

    fn first(table: &Table) -> &Arc<Frontend> {
        table.iter().next().expect("it has one").1
    }

    fn spec() -> FrontendSpec {
        testing::spec("198.51.100.1:80", &BACKENDS)
    }

    #[test]
    fn tried_backends_are_passed_over_until_none_is_left() {
        let mut rig = Rig::new(&spec());
        let mut tried = Vec::new();
        while let Some(claim) = rig.pick(1, &tried) {
            assert!(!tried.contains(&claim.address));
            tried.push(claim.address);
        }
        assert_eq!(tried.len(), BACKENDS.len());
    }

    #[test]
    fn marks_reorder_and_never_exclude() {
        let mut rig = Rig::new(&spec());
        let home = rig.pick(1, &[]).expect("a backend");
        home.failed(rig.cx.now);
        let other = rig.pick(1, &[]).expect("a backend");
        assert_ne!(other.address, home.address);
        for i in 0..BACKENDS.len() {
            let backend = Rc::clone(&rig.local.backends.borrow()[i]);
            backend.failed(rig.cx.now);
        }
        let last = rig.pick(1, &[]).expect("all are marked: all are tried");
        assert_eq!(last.address, home.address, "and in their usual order");
        other.succeeded();
        assert_eq!(rig.pick(1, &[]).expect("one").address, other.address);
    }

    #[test]
    fn marks_last_longer_with_each_failure_and_no_longer_than_the_longest() {
        let backend = BackendLocal::new("10.0.0.1:80".parse().expect("an address"));
        let mut now = Time::ZERO;
        for seconds in [1, 2, 4, 8, 16, 32, 32, 32] {
            backend.failed(now);
            // Others that were under way at the same time say nothing new.
            backend.failed(now);
            now = now + Duration::from_secs(seconds);
            assert!(!backend.is_marked(now), "{seconds} s");
        }
        backend.succeeded();
        backend.failed(now);
        assert!(backend.is_marked(now));
        assert!(!backend.is_marked(now + FIRST_MARK));
    }

    #[test]
    fn what_is_known_of_a_backend_survives_a_change() {
        let mut rig = Rig::new(&spec());
        let claim = rig.pick(1, &[]).expect("a backend");
        claim.failed(rig.cx.now);
        let mut changed = spec();
        changed.backends.retain(|b| b.address == claim.address);
        changed
            .backends
            .extend(testing::spec("198.51.100.1:80", &["10.0.0.0:80"]).backends);
        rig.update(&changed);
        assert_eq!(rig.local.revision(), 1);
        let backends = rig.local.backends.borrow().clone();
        assert_eq!(backends.len(), 2);
        let kept = backends
            .iter()
            .find(|b| b.address == claim.address)
            .expect("it stays");
        assert!(kept.is_marked(rig.cx.now));
        assert_eq!(kept.active.get(), 1);
        drop(claim);
        assert_eq!(kept.active.get(), 0);
    }

    #[test]
    fn least_connections_counts_claims() {
        let mut spec = spec();
        spec.algorithm = Algorithm::LeastConnections;
        let mut rig = Rig::new(&spec);
        let mut claims = Vec::new();
        for client in 0..90 {
            claims.extend(rig.pick(client, &[]));
        }
        let active: Vec<u32> = rig
            .local
            .backends
            .borrow()
            .iter()
            .map(|b| b.active.get())
            .collect();
        assert_eq!(active.iter().sum::<u32>(), 90);
        assert!(active.iter().all(|&n| n.abs_diff(30) <= 3), "{active:?}");
    }

    #[test]
    fn a_pinned_client_stays_while_its_backend_is_usable() {
        let mut spec = spec();
        spec.algorithm = Algorithm::RoundRobin;
        spec.policy.affinity = Some(Duration::from_secs(10));
        let mut rig = Rig::new(&spec);
        let home = rig.pick(1, &[]).expect("a backend").address;
        for _ in 0..10 {
            assert_eq!(rig.pick(1, &[]).expect("a backend").address, home);
        }
        // A failed try sends it elsewhere, for good.
        let second = rig.pick(1, &[home]).expect("another").address;
        assert_ne!(second, home);
        assert_eq!(rig.pick(1, &[]).expect("a backend").address, second);
        // So does a backend that drains.
        for backend in &mut spec.backends {
            if backend.address == second {
                backend.state = BackendState::Draining;
            }
        }
        rig.update(&spec);
        let third = rig.pick(1, &[]).expect("another").address;
        assert_ne!(third, second);
        // After the timeout it is anyone.
        rig.cx.now = rig.cx.now + Duration::from_secs(11);
        rig.local.expire_pins(rig.cx.now, 10);
        let seen: Vec<_> = (0..2)
            .map(|client| rig.pick(100 + client, &[]).expect("one").address)
            .collect();
        assert_ne!(seen[0], seen[1], "round robin goes on");
    }

    #[test]
    fn full_pins_are_counted_and_the_hash_answers() {
        let mut spec = spec();
        spec.policy.affinity = Some(Duration::from_secs(10));
        let mut rig = Rig::new(&spec);
        let pins = rig.cx.limits.pins as u64;
        for client in 0..=u8::MAX {
            let first = rig.pick(client, &[]).expect("a backend").address;
            assert_eq!(rig.pick(client, &[]).expect("a backend").address, first);
        }
        assert_eq!(rig.local.counters.affinity_full.value(), (256 - pins) * 2);
    }
}
