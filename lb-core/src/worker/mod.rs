//! Workers: one pinned thread each, with its own listeners, connections, flows, timers, counters.
//!
//! All that crosses threads is in [`Shared`]: the published table going in, each worker's state
//! coming out, a few flags. No wait on anyone: a control plane that hangs leaves the workers with
//! the last table. No lock but that of [`Ports`], for opening and closing listeners.
//!
//! # Publish and wake
//!
//! The publisher *stores the table, then writes the worker's eventfd*. The worker *drains its
//! eventfd, then loads the table*, once at the top of each turn. Either the drain came after the
//! write, and then the load comes after the store and sees it; or the write came after the drain,
//! and then the eventfd is readable again, the next epoll_wait returns at once, and the next turn
//! loads. No wake is lost and none need be counted: several stores may share one. The same holds
//! for the flags of drain and stop. (The system calls order the memory accesses of their threads.)
//! The code is in `handshake`, with a model of every interleaving.

mod budget;
mod connections;
pub(crate) mod cx;
pub(crate) mod descriptors;
mod export;
mod handshake;
mod listener;
pub(crate) mod local;
pub(crate) mod pace;
pub(crate) mod pipes;
mod ports;
mod report;
mod ring;
mod room;
mod session;
mod sources;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod token;
mod turn;
mod udp;

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::Thread;

use arc_swap::ArcSwap;

use crate::plane::memory::Order;
use crate::stats::WorkerCounters;
use crate::sys::epoll::Readiness;
use crate::sys::eventfd::Wake;
use crate::sys::rotation::Rotation;
use crate::table::{Protocol, Table};

pub(crate) use budget::{Budget, Plan, TooFew};
pub(crate) use ports::Ports;
pub(crate) use report::WorkerState;
pub use report::{BindError, ListenerState, Report, WorkerReport};
pub(crate) use turn::{Seat, Worker};

use cx::Cx;
use local::Local;
use ring::RingTcp;
use tcp::Tcp;
use token::{Kind, Token};
use udp::Udp;

/// A table and what follows from it for all workers alike.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) table: Arc<Table>,
    pub(crate) plan: Plan,
}

/// What the workers and the rest of the process see of each other.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Written by whoever publishes, read by every worker once a turn.
    pub(crate) published: Arc<ArcSwap<Published>>,
    /// One per worker: written by it alone.
    pub(crate) states: Vec<ArcSwap<WorkerState>>,
    /// One per worker: written by it alone.
    pub(crate) counters: Arc<[Arc<WorkerCounters>]>,
    /// One per worker: how to wake it.
    pub(crate) wakes: Vec<Wake>,
    /// What gives them connections by turns; none where the kernel refuses it, or for one worker.
    pub(crate) rotation: Option<Arc<Rotation>>,
    /// What the workers listen at.
    pub(crate) ports: Arc<Ports>,
    /// What memory allows: written by the thread that watches it, read by every worker once a turn.
    pub(crate) memory: Arc<ArcSwap<Order>>,
    /// Until when a drain lasts, in microseconds of the clock; [`Shared::NO_DRAIN`]: none.
    pub(crate) drain_until: AtomicU64,
    /// Leave at once.
    pub(crate) stop: AtomicBool,
    /// Unparked after a worker has published a new state.
    pub(crate) reporter: Thread,
}

impl Shared {
    pub(crate) const NO_DRAIN: u64 = u64::MAX;

    /// Changes something here, and makes every worker look at it.
    pub(crate) fn announce(&self, store: impl FnOnce()) {
        handshake::announce(store, &self.wakes);
    }
}

/// TCP's driver, by engine.
enum TcpDriver {
    Epoll(Tcp),
    Ring(Box<RingTcp>),
}

/// Calls what both engines' drivers have.
macro_rules! either {
    ($driver:expr, $tcp:ident => $call:expr) => {
        match $driver {
            TcpDriver::Epoll($tcp) => $call,
            TcpDriver::Ring($tcp) => $call,
        }
    };
}

/// Both protocols' drivers.
pub(crate) struct Drivers {
    tcp: TcpDriver,
    udp: Udp,
}

impl Drivers {
    fn on_listener(&mut self, cx: &mut Cx, local: &Rc<Local>, listener: BorrowedFd<'_>) {
        match local.key.protocol {
            Protocol::Tcp => either!(&mut self.tcp, tcp => tcp.on_listener(cx, local, listener)),
            Protocol::Udp => self.udp.on_listener(cx, local, listener),
        }
    }

    fn on_event(&mut self, cx: &mut Cx, kind: Kind, token: Token, readiness: Readiness) {
        match kind {
            Kind::Downstream | Kind::Upstream => match &mut self.tcp {
                TcpDriver::Epoll(tcp) => tcp.on_event(cx, token, readiness),
                TcpDriver::Ring(tcp) => tcp.on_event(token),
            },
            Kind::Flow => self.udp.on_event(cx, token, readiness),
            Kind::Wake | Kind::Listener | Kind::House => {}
        }
    }

    fn on_timer(&mut self, cx: &mut Cx, kind: Kind, token: Token) {
        match kind {
            Kind::Downstream | Kind::Upstream => {
                either!(&mut self.tcp, tcp => tcp.on_timer(cx, token))
            }
            Kind::Flow => self.udp.on_timer(cx, token),
            Kind::Wake | Kind::Listener | Kind::House => {}
        }
    }

    /// TCP connections outlive any change; flows need their listener to reply from.
    fn on_frontend_closed(&mut self, cx: &mut Cx, local: &Rc<Local>) {
        if local.key.protocol == Protocol::Udp {
            self.udp.on_frontend_closed(cx, local);
        }
    }

    /// So many idle connections are to go.
    fn shed(&mut self, count: usize) {
        either!(&mut self.tcp, tcp => tcp.shed(count));
    }

    fn end_turn(&mut self, cx: &mut Cx) {
        either!(&mut self.tcp, tcp => tcp.end_turn(cx));
        self.udp.end_turn(cx);
    }

    /// Is there work that no event will tell of?
    fn has_work(&self) -> bool {
        either!(&self.tcp, tcp => tcp.has_work())
    }

    /// Does neither protocol have anything that a drain must wait for?
    fn is_idle(&self) -> bool {
        either!(&self.tcp, tcp => tcp.is_idle()) && self.udp.is_idle()
    }

    /// The ring, where there is one.
    fn ring(&mut self) -> Option<&mut RingTcp> {
        match &mut self.tcp {
            TcpDriver::Epoll(_) => None,
            TcpDriver::Ring(tcp) => Some(tcp),
        }
    }

    fn cut(&mut self, cx: &mut Cx) {
        either!(&mut self.tcp, tcp => tcp.cut(cx));
        self.udp.cut(cx);
    }
}
