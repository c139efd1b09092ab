//! Listeners of real workers over loopback: kept over changes, closed without a backend, healed.

mod common;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use lb_core::plane::{
    BindError, Config, Driver, Engine, ListenerState, Plane, Probe, StartError, choose,
};
use lb_core::stats::CloseReason;
use lb_core::table::{Protocol, TableBuilder};

/// A thousand changes of every kind while clients come and go: not one is refused or reset.
#[test]
fn a_change_refuses_nobody() {
    let (one, two) = (tcp_echo(), tcp_echo());
    let mut spec = spec(Protocol::Tcp, loopback(), &[one]);
    let address = (spec.key.address, spec.key.port.get()).into();
    let mut rig = Rig::start(2, &[spec.clone()]);
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    exchange(address).expect("a change lost a client");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut long_lived = TcpStream::connect(address).expect("a connection");
    talk(&mut long_lived).expect("an echo");
    for n in 0..1_000_u64 {
        spec.backends = match n % 3 {
            0 => vec![backend(one), backend(two)],
            1 => vec![backend(two)],
            _ => vec![backend(one)],
        };
        spec.policy.affinity = n.is_multiple_of(5).then_some(Duration::from_secs(60));
        spec.policy.idle_timeout = Duration::from_secs(100 + n);
        if n.is_multiple_of(7) {
            spec.owner.name = format!("owner {n}").into();
        }
        // Most are published on top of one another, as a storm of updates would be.
        match n.is_multiple_of(10) {
            true => rig.set(&[spec.clone()]),
            false => drop(rig.publish(&[spec.clone()])),
        }
        // So that there are clients between all changes and not only before and after them.
        let before = served.load(Ordering::Relaxed);
        eventually("a client is served", || {
            served.load(Ordering::Relaxed) > before || clients.iter().any(|c| c.is_finished())
        });
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a client failed");
    }
    talk(&mut long_lived).expect("a change touched a live connection");
    assert!(served.load(Ordering::Relaxed) >= 1_000);
}

#[test]
fn without_a_usable_backend_the_port_is_closed() {
    let tcp_backend = tcp_echo();
    let udp_backend = udp_echo();
    let address = loopback();
    let mut tcp = spec(Protocol::Tcp, address, &[tcp_backend]);
    let mut udp = spec(Protocol::Udp, address, &[udp_backend]);
    let mut rig = Rig::start(2, &[tcp.clone(), udp.clone()]);
    for _ in 0..5 {
        exchange(address).expect("served");
        ping(&udp_client(address)).expect("served");
        assert_eq!(rig.listener(&tcp), ListenerState::Listening);
        assert_eq!(rig.listener(&udp), ListenerState::Listening);

        tcp.backends[0].weight = 0;
        udp.backends.clear();
        rig.set(&[tcp.clone(), udp.clone()]);
        assert_eq!(rig.listener(&tcp), ListenerState::Closed);
        assert_eq!(rig.listener(&udp), ListenerState::Closed);
        let refused = exchange(address).expect_err("nobody serves this");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let refused = ping(&udp_client(address)).expect_err("nobody serves this");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        tcp.backends = vec![backend(tcp_backend)];
        udp.backends = vec![backend(udp_backend)];
        rig.set(&[tcp.clone(), udp.clone()]);
    }
    rig.remove(&tcp);
    assert_eq!(
        exchange(address).expect_err("it is gone").kind(),
        ErrorKind::ConnectionRefused
    );
    ping(&udp_client(address)).expect("the other frontend stays");
    assert_eq!(
        rig.handle
            .stats()
            .workers
            .iter()
            .map(|w| w.listeners)
            .sum::<u64>(),
        2
    );
}

/// Clients that stream in while the last backend goes get a refusal or a reset, at once, and each
/// of them is counted.
#[test]
fn who_waits_at_a_closing_listener_is_told() {
    let mut spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let address = (spec.key.address, spec.key.port.get()).into();
    let mut rig = Rig::start(2, &[spec.clone()]);
    let backends = spec.backends.clone();
    for _ in 0..20 {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                thread::spawn(move || {
                    let begun = Instant::now();
                    let result = exchange(address);
                    (result, begun.elapsed())
                })
            })
            .collect();
        spec.backends.clear();
        rig.set(&[spec.clone()]);
        for client in clients {
            let (result, took) = client.join().expect("no panic");
            assert!(took < DEADLINE / 2, "{result:?} after {took:?}");
        }
        spec.backends = backends.clone();
        rig.set(&[spec.clone()]);
        exchange(address).expect("served again");
    }
}

#[test]
fn a_failed_bind_is_reported_and_heals() {
    let backend = tcp_echo();
    let taken = loopback();
    // Without SO_REUSEPORT: nobody may join it.
    let other_program = TcpListener::bind(taken).expect("the port is free");
    let blocked = spec(Protocol::Tcp, taken, &[backend]);
    let well = spec(Protocol::Tcp, loopback(), &[backend]);
    let rig = Rig::start(2, &[blocked.clone(), well.clone()]);
    let frontend = blocked.key;
    let expected = ListenerState::Failed(BindError::AddressInUse { frontend });
    assert_eq!(rig.listener(&blocked), expected);
    assert_eq!(rig.listener(&well), ListenerState::Listening);
    assert!(rig.handle.stats().workers.iter().all(|w| w.bind_errors > 0));
    drop(other_program);
    eventually("the listener opens", || {
        rig.listener(&blocked) == ListenerState::Listening
    });
    exchange(taken).expect("served");
}

/// A program of the same user that shares its port, as another Weir would: the kernel would let
/// us in, and give each a part of the clients.
#[test]
fn a_port_that_somebody_else_would_share_is_in_use() {
    let backends = [tcp_echo(), udp_echo()];
    for address in [loopback(), loopback_v6()] {
        for (protocol, kind) in [
            (Protocol::Tcp, socket2::Type::STREAM),
            (Protocol::Udp, socket2::Type::DGRAM),
        ] {
            let domain = socket2::Domain::for_address(address);
            let other_program = socket2::Socket::new(domain, kind, None).expect("a socket");
            other_program.set_reuse_address(true).expect("an option");
            other_program.set_reuse_port(true).expect("an option");
            other_program.bind(&address.into()).expect("it is free");
            if protocol == Protocol::Tcp {
                other_program.listen(16).expect("it is free");
            }
            let spec = spec(protocol, address, &backends);
            let rig = Rig::start(2, std::slice::from_ref(&spec));
            let frontend = spec.key;
            let expected = ListenerState::Failed(BindError::AddressInUse { frontend });
            assert_eq!(rig.listener(&spec), expected);
            drop(other_program);
            eventually("the listener opens", || {
                rig.listener(&spec) == ListenerState::Listening
            });
        }
    }
}

/// The connections that outlive a listener have its address, and are nobody else.
#[test]
fn a_port_opens_again_under_its_own_connections() {
    let backend_address = tcp_echo();
    let mut spec = spec(Protocol::Tcp, loopback(), &[backend_address]);
    let address = (spec.key.address, spec.key.port.get()).into();
    let mut rig = Rig::start(2, std::slice::from_ref(&spec));
    let mut alive = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(address).expect("a connection");
        talk(&mut socket).expect("an echo");
        alive.push(socket);
        // One more that we close first: it stays in TIME_WAIT.
        exchange(address).expect("an echo");
        spec.backends.clear();
        rig.set(&[spec.clone()]);
        spec.backends = vec![backend(backend_address)];
        rig.set(&[spec.clone()]);
        assert_eq!(rig.listener(&spec), ListenerState::Listening);
    }
    for socket in &mut alive {
        talk(socket).expect("still served");
    }
}

/// An address that no machine has: IP_FREEBIND lets us listen before it is there.
#[test]
fn an_address_that_is_not_here_yet_can_be_listened_at() {
    for address in ["192.0.2.77:18080", "[2001:db8::77]:18080"] {
        let address = address.parse().expect("an address");
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let spec = spec(protocol, address, &["127.0.0.1:1".parse().expect("one")]);
            let rig = Rig::start(2, std::slice::from_ref(&spec));
            assert_eq!(rig.listener(&spec), ListenerState::Listening);
        }
    }
}

/// A link-local address means nothing without an interface: bind(2) says EINVAL.
#[test]
fn any_other_error_of_bind_is_reported_as_it_is() {
    let address = "[fe80::77]:18081".parse().expect("an address");
    let spec = spec(
        Protocol::Tcp,
        address,
        &["127.0.0.1:1".parse().expect("one")],
    );
    let rig = Rig::start(2, std::slice::from_ref(&spec));
    let state = rig.listener(&spec);
    let (frontend, step, errno) = (spec.key, "bind", 22);
    let error = BindError::System {
        frontend,
        step,
        errno,
    };
    assert_eq!(state, ListenerState::Failed(error));
}

#[test]
fn watchers_hear_of_changes_and_heartbeats_are_fresh() {
    let mut spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let mut rig = Rig::start(2, &[spec.clone()]);
    let heard = Arc::new(AtomicU64::new(0));
    rig.handle.on_change({
        let heard = Arc::clone(&heard);
        Box::new(move || {
            heard.fetch_add(1, Ordering::Relaxed);
        })
    });
    // One that panics takes nobody's news away.
    rig.handle
        .on_change(Box::new(|| panic!("a callback's own bug")));
    eventually("the first call", || heard.load(Ordering::Relaxed) > 0);
    for _ in 0..3 {
        let before = heard.load(Ordering::Relaxed);
        spec.policy.idle_timeout += Duration::from_secs(1);
        rig.set(&[spec.clone()]);
        eventually("a call", || heard.load(Ordering::Relaxed) > before);
    }
    assert!(!rig.handle.wait(u64::MAX, Duration::from_millis(20)));
    // Idle workers turn too.
    thread::sleep(Duration::from_millis(1_500));
    assert!(rig.handle.report().heartbeat() < DEADLINE / 2);
}

#[test]
fn counters_stay_with_the_owner_they_were_counted_for() {
    let mut spec = spec(Protocol::Tcp, loopback(), &[tcp_echo()]);
    let address = (spec.key.address, spec.key.port.get()).into();
    let mut rig = Rig::start(2, &[spec.clone()]);
    let mut socket = TcpStream::connect(address).expect("a connection");
    talk(&mut socket).expect("an echo");
    let first = spec.owner.clone();
    spec.owner.name = "heir".into();
    rig.set(&[spec.clone()]);
    exchange(address).expect("the same listener goes on");
    let of = |rig: &Rig, owner: &lb_core::table::Owner| {
        rig.handle
            .stats()
            .frontends
            .get(&(spec.key, owner.clone()))
            .cloned()
    };
    assert_eq!(of(&rig, &first).expect("it lives").connections_active, 1);
    eventually("the heir's connection ends", || {
        of(&rig, &spec.owner).is_some_and(|t| t.closed(CloseReason::Finished) == 1)
    });
    assert_eq!(
        of(&rig, &spec.owner).expect("it lives").connections_opened,
        1
    );
    talk(&mut socket).expect("still served");
    drop(socket);
    eventually("the first owner's counters go", || {
        of(&rig, &first).is_none()
    });
}

#[test]
fn what_cannot_start_says_so() {
    let table = || TableBuilder::new(lb_core::table::HashKey([0; 16])).freeze();
    let none = Config {
        workers: 0,
        ..Config::default()
    };
    assert!(matches!(
        Plane::start(none, table()),
        Err(StartError::NoWorkers)
    ));
    let ring = Config {
        engine: Engine::IoUring,
        ..Config::default()
    };
    // The engine that was asked for, or none: never the other one in silence.
    match (
        Plane::start(ring, table()),
        choose(Engine::IoUring, &Probe::run()),
    ) {
        (Ok(plane), Ok(chosen)) => {
            assert_eq!(plane.handle().engine(), &chosen);
            assert_eq!(chosen.driver, Driver::IoUring);
        }
        (Err(StartError::NoIoUring { why }), Err(_)) => assert!(!why.is_empty()),
        (started, chosen) => panic!("{started:?} {chosen:?}"),
    }
    let many = Config {
        workers: 1_000_000,
        ..Config::default()
    };
    let error = Plane::start(many, table()).expect_err("no limit is as high");
    assert!(
        matches!(error, StartError::TooFewDescriptors { .. }),
        "{error}"
    );
}
