//! Listeners without a worker's thread: each step is taken by hand, so that no race hides one.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::*;
use crate::stats::CloseReason;
use crate::table::FrontendSpec;
use crate::worker::TcpDriver;
use crate::worker::tcp::Tcp;
use crate::worker::testing;
use crate::worker::udp::Udp;

const ALONE: Steering = Steering {
    workers: 1,
    seed: 0,
    rotation: None,
};

struct Rig {
    cx: Cx,
    drivers: Drivers,
    listeners: Listeners,
    address: SocketAddr,
}

impl Rig {
    /// One frontend at a port that was free a moment ago, with a backend that nobody dials.
    fn new() -> (Rig, FrontendSpec) {
        let free = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = free.local_addr().expect("its address");
        drop(free);
        let spec = testing::spec(&address.to_string(), &["127.0.0.1:1"]);
        let mut cx = testing::cx();
        let mut drivers = Drivers {
            tcp: TcpDriver::Epoll(Tcp::new()),
            udp: Udp::new(&cx.limits, &cx.pin_key),
        };
        let mut listeners = Listeners::new(published(&spec), Arc::default(), ALONE);
        listeners.apply(&mut cx, &mut drivers, 10);
        let rig = Rig {
            cx,
            drivers,
            listeners,
            address,
        };
        (rig, spec)
    }

    fn apply(&mut self, spec: &FrontendSpec) {
        self.listeners.retarget(&published(spec));
        self.listeners.apply(&mut self.cx, &mut self.drivers, 10);
    }

    /// A client whose handshake has ended and who waits in the queue.
    fn caller(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address).expect("it listens");
        let patience = Duration::from_secs(10);
        socket.set_read_timeout(Some(patience)).expect("an option");
        socket
    }

    fn local(&self) -> Rc<Local> {
        let (_, entry) = self.listeners.entries.iter().next().expect("one");
        Rc::clone(&entry.local)
    }

    fn state(&self) -> ListenerState {
        let listeners = &self.listeners.state.listeners;
        listeners.get(0).cloned().expect("one frontend")
    }
}

fn published(spec: &FrontendSpec) -> Arc<Published> {
    let table = testing::table(std::slice::from_ref(spec));
    let plan = Plan::default();
    Arc::new(Published { table, plan })
}

#[test]
fn who_is_queued_when_the_last_backend_goes_is_reset_and_counted() {
    let (mut rig, mut spec) = Rig::new();
    let mut callers: Vec<_> = (0..3).map(|_| rig.caller()).collect();
    spec.backends.clear();
    rig.apply(&spec);
    assert_eq!(rig.state(), ListenerState::Closed);
    for caller in &mut callers {
        let reset = caller.read(&mut [0; 1]).expect_err("nobody serves it");
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    }
    let counters = &rig.local().counters;
    assert_eq!(counters.closed(CloseReason::NoBackend).value(), 3);
    assert_eq!(counters.connections_opened.value(), 3);
    assert_eq!(rig.cx.counters.listeners.value(), 0);
}

#[test]
fn a_drain_takes_no_new_handshake_and_serves_who_is_queued() {
    let (mut rig, _) = Rig::new();
    // More than one event's worth.
    let callers: Vec<_> = (0..100).map(|_| rig.caller()).collect();
    rig.cx.draining = true;
    rig.listeners.refuse_new();
    let late = TcpStream::connect_timeout(&rig.address, Duration::from_millis(100));
    let late = late.expect_err("the handshake must not begin");
    assert_eq!(late.kind(), ErrorKind::TimedOut);

    rig.listeners
        .close_served(&mut rig.cx, &mut rig.drivers, Protocol::Tcp);
    let counters = &rig.local().counters;
    assert_eq!(counters.connections_active.value(), callers.len() as u64);
    assert_eq!(rig.state(), ListenerState::Closed);
    let refused = TcpStream::connect(rig.address).expect_err("it is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    drop(callers);
}

#[test]
fn nothing_is_opened_during_a_drain() {
    let (mut rig, mut spec) = Rig::new();
    rig.cx.draining = true;
    rig.listeners
        .close_served(&mut rig.cx, &mut rig.drivers, Protocol::Tcp);
    spec.policy.idle_timeout += Duration::from_secs(1);
    rig.apply(&spec);
    assert_eq!(rig.state(), ListenerState::Closed);
    assert!(rig.local().listener().is_none());
}

#[test]
fn a_table_that_comes_before_the_last_is_done_takes_its_place() {
    let (mut rig, mut spec) = Rig::new();
    rig.listeners.take_state();
    let usable = spec.backends.clone();
    spec.backends.clear();
    rig.listeners.retarget(&published(&spec));
    assert!(rig.listeners.take_state().is_none(), "not in full yet");
    spec.backends = usable;
    rig.listeners.retarget(&published(&spec));
    let before = rig.local().listener();
    rig.listeners.apply(&mut rig.cx, &mut rig.drivers, 10);
    let after = rig.local().listener();
    assert!(
        Rc::ptr_eq(&before.expect("open"), &after.expect("open")),
        "closed in between"
    );
    assert!(rig.listeners.take_state().is_some());
    assert!(rig.listeners.take_state().is_none(), "told twice");
}
