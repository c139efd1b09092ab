//! One frontend's socket in one worker: opened, steered, handed on, closed.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::Drivers;
use super::super::cx::Cx;
use super::super::local::Local;
use super::super::ports::{Port, Ports};
use super::super::report::BindError;
use super::super::token::{Kind, Token};
use crate::slab::Key;
use crate::stats::CloseReason;
use crate::sys::epoll::Interest;
use crate::sys::rotation::Rotation;
use crate::sys::{filter, socket};
use crate::table::Protocol;
use crate::timer::TimerId;

/// First pause before a failed listener is tried again; doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause between tries.
const MAX_RETRY: Duration = Duration::from_secs(5);
/// How long a listener rests when accept can only fail: descriptors come back within 100 ms.
const REST: Duration = Duration::from_millis(20);
/// Bound of callers taken from the queue of a listener that closes: no backlog is longer.
pub(super) const MAX_QUEUED: usize = 65_536;

/// One frontend and its socket, if it has one.
pub(super) struct Entry {
    pub(super) local: Rc<Local>,
    pub(super) socket: Option<Rc<OwnedFd>>,
    /// Held while `socket` is open.
    port: Option<Port>,
    /// Retry of a failed open, or end of a rest.
    pub(super) timer: Option<TimerId>,
    pub(super) pause: Duration,
    /// What the socket's group was last told.
    pub(super) steered: Steered,
    pub(super) resting: bool,
    /// Its callers wait for memory.
    waiting: bool,
}

/// The open socket of an entry that ended, for the next one at the same address.
pub(super) struct Inherited {
    socket: Rc<OwnedFd>,
    port: Option<Port>,
    steered: Steered,
}

/// Which worker a client comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steered {
    /// By the kernel's hash of the four numbers.
    Hash,
    /// By the client's address alone, so that one worker has its pins.
    Source,
    /// By turns.
    Turns,
}

/// What the listeners of all ports and workers are steered by.
#[derive(Debug)]
pub(in crate::worker) struct Steering {
    pub(in crate::worker) workers: u32,
    /// The same for all workers: they share the selector of a listener's group.
    pub(in crate::worker) seed: u32,
    /// None where the kernel does not let this process load it.
    pub(in crate::worker) rotation: Option<Arc<Rotation>>,
}

/// Moves a timer, or arms it.
fn rearm(cx: &mut Cx, timer: &mut Option<TimerId>, token: Token, after: Duration) {
    let at = cx.now + after;
    if !timer.is_some_and(|timer| cx.timers.rearm(timer, at)) {
        *timer = Some(cx.timers.arm(at, token));
    }
}

impl Entry {
    /// A frontend without a socket yet.
    pub(super) fn new(local: Rc<Local>) -> Entry {
        Entry {
            local,
            socket: None,
            port: None,
            timer: None,
            pause: FIRST_RETRY,
            waiting: false,
            steered: Steered::Hash,
            resting: false,
        }
    }

    /// Accept can only fail just now: looks away until a timer says otherwise.
    pub(super) fn rest(&mut self, cx: &mut Cx, token: Token) {
        let Some(listener) = self.socket.as_ref().filter(|_| !self.resting) else {
            return;
        };
        if cx.rewatch(listener.as_fd(), token, Interest::NONE).is_ok() {
            self.resting = true;
            rearm(cx, &mut self.timer, token, REST);
        }
    }

    /// There is no memory for another connection: callers wait, and nobody is told of them. Says
    /// whether that is new.
    pub(super) fn wait(&mut self, cx: &Cx, token: Token) -> bool {
        let Some(listener) = self.socket.as_ref().filter(|_| !self.waiting) else {
            return false;
        };
        self.waiting = cx.rewatch(listener.as_fd(), token, Interest::NONE).is_ok();
        if self.waiting {
            cx.counters.listeners_waiting.add(1);
            cx.counters.accept_waits.add(1);
        }
        self.waiting
    }

    /// There is memory again.
    pub(super) fn resume(&mut self, cx: &Cx, token: Token) {
        if std::mem::take(&mut self.waiting)
            && let Some(listener) = self.socket.as_ref().filter(|_| !self.resting)
        {
            // It was watched a moment ago; there is nothing here that can fail.
            let _ = cx.rewatch(listener.as_fd(), token, Interest::READ);
        }
    }

    /// The timer came; ends a rest.
    pub(super) fn on_timer(&mut self, cx: &Cx, token: Token) {
        self.timer = None;
        if std::mem::take(&mut self.resting)
            && let Some(listener) = &self.socket
        {
            // It was watched a moment ago; there is nothing here that can fail.
            let _ = cx.rewatch(listener.as_fd(), token, Interest::READ);
        }
    }

    /// Opens the socket, unless it is open; a failure is tried again after a pause.
    pub(super) fn open(
        &mut self,
        cx: &mut Cx,
        key: Key,
        ports: &Arc<Ports>,
    ) -> Result<(), BindError> {
        if self.socket.is_some() {
            return Ok(());
        }
        let frontend = self.local.key;
        let address = SocketAddr::new(frontend.address, frontend.port.get());
        let token = Token::new(Kind::Listener, key);
        let opened = ports.enter(frontend).and_then(|port| {
            let socket = match frontend.protocol {
                Protocol::Tcp => socket::listen_tcp(address, cx.limits.peer_timeout)?,
                Protocol::Udp => socket::listen_udp(address)?,
            };
            let step = "epoll_ctl";
            match cx.watch(socket.as_fd(), token, Interest::READ) {
                Ok(()) => Ok((socket, port)),
                Err(errno) => Err(socket::ListenError { step, errno }),
            }
        });
        match opened {
            Ok((socket, port)) => {
                self.port = Some(port);
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
    pub(super) fn adopt(&mut self, cx: &Cx, key: Key, inherited: Inherited) {
        let Inherited {
            socket,
            port,
            steered,
        } = inherited;
        // Watched under the old entry's token until now; a change of that cannot fail.
        let _ = cx.rewatch(
            socket.as_fd(),
            Token::new(Kind::Listener, key),
            Interest::READ,
        );
        self.steered = steered;
        self.port = port;
        self.hold(socket);
    }

    /// Hands the socket on, if it is open.
    pub(super) fn bequeath(&mut self) -> Option<Inherited> {
        let (port, steered) = (self.port.take(), self.steered);
        self.socket.take().map(|socket| Inherited {
            socket,
            port,
            steered,
        })
    }

    fn hold(&mut self, socket: Rc<OwnedFd>) {
        self.local.set_listener(Some(Rc::clone(&socket)));
        self.socket = Some(socket);
    }

    /// Tells the socket's group whom to take.
    pub(super) fn steer(&mut self, affinity: bool, steering: &Steering) {
        let Some(listener) = self.socket.as_ref().filter(|_| steering.workers > 1) else {
            return;
        };
        let (listener, is_v6) = (listener.as_fd(), self.local.key.address.is_ipv6());
        // A flow's datagrams all have to go to one worker.
        let turns = steering.rotation.as_ref();
        let turns = turns.filter(|_| self.local.key.protocol == Protocol::Tcp);
        let wanted = match (affinity, turns) {
            (true, _) => Steered::Source,
            (false, Some(_)) => Steered::Turns,
            (false, None) => Steered::Hash,
        };
        if wanted == self.steered {
            return;
        }
        let done = match (wanted, turns) {
            (Steered::Source, _) => {
                filter::attach_source_selector(listener, is_v6, steering.workers, steering.seed)
            }
            (Steered::Turns, Some(rotation)) => rotation.attach(listener, is_v6),
            _ => filter::detach_selector(listener),
        };
        // Without the source selector a client may have a pin in each worker: the hash, which goes
        // by the client's address alone, still answers all of them alike. Tried again at the next
        // change.
        if done.is_ok() {
            self.steered = wanted;
        }
    }

    /// Closes the socket, if it is open. Who waits in its queue gets RST now instead of silence.
    pub(super) fn close(&mut self, cx: &mut Cx, drivers: &mut Drivers) {
        if let Some(timer) = self.timer.take() {
            cx.timers.cancel(timer);
        }
        self.pause = FIRST_RETRY;
        self.steered = Steered::Hash;
        self.resting = false;
        self.waiting = false;
        let Some(listener) = self.socket.take() else {
            return;
        };
        self.local.set_listener(None);
        if self.local.key.protocol == Protocol::Tcp {
            self.reset_queued(&listener);
        }
        cx.counters.listeners.sub(1);
        drivers.on_frontend_closed(cx, &self.local);
        // A driver could still hold a copy for the length of its turn.
        cx.unwatch(listener.as_fd());
        drop(listener);
        self.port = None;
    }

    fn reset_queued(&self, listener: &OwnedFd) {
        for _ in 0..MAX_QUEUED {
            match socket::accept(listener.as_fd()) {
                Ok((socket, _)) => {
                    self.local.counters.connections_opened.add(1);
                    self.local.counters.closed(CloseReason::NoBackend).add(1);
                    socket::reset(socket);
                }
                Err(errno) if errno.raw_os_error() == libc::ECONNABORTED => {}
                // Empty, or out of descriptors: closing resets the rest.
                Err(_) => return,
            }
        }
    }
}
