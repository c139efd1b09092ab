//! The driver over real loopback sockets.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::rig::{Rig, active, client};
use crate::plane::Limits;
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::table::{Backend, BackendState, SourceRanges};

fn rig() -> Rig {
    Rig::new(Limits::default())
}

/// A port where nobody listens.
fn dead(address: &str) -> SocketAddr {
    let socket = UdpSocket::bind(address).expect("bind");
    socket.local_addr().expect("bound")
}

/// Nobody holds this port any more: whoever did has closed its socket.
fn assert_free(port: SocketAddr) {
    UdpSocket::bind(port).expect("still held");
}

#[test]
fn datagrams_of_every_size_pass_whole_both_ways_in_and_across_families() {
    for (vip, backend) in [
        ("127.0.0.1", "127.0.0.1:0"),
        ("::1", "[::1]:0"),
        ("127.0.0.1", "[::1]:0"),
        ("::1", "127.0.0.1:0"),
    ] {
        let mut rig = rig();
        let pool = [rig.echo(backend)];
        let vip_address = rig.frontend(vip, &pool);
        let client = client(vip);
        for size in [0, 1, 1472, 1473, 9000, 65_507, 0] {
            let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            rig.exchange(&client, vip_address, &payload);
        }
        assert_eq!(rig.backends[0].got.len(), 7);
        let local = rig.local(vip_address);
        assert_eq!(local.counters.datagrams_downstream.value(), 7);
        assert_eq!(local.counters.datagrams_upstream.value(), 7);
        let bytes = 1 + 1472 + 1473 + 9000 + 65_507;
        assert_eq!(local.counters.bytes_downstream.value(), bytes);
        assert_eq!(local.counters.bytes_upstream.value(), bytes);
        assert_eq!(local.counters.flows_opened.value(), 1);
    }
}

#[test]
fn what_ipv4_cannot_carry_is_dropped_and_counted_and_the_flow_goes_on() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("::1", &pool);
    let client = client("::1");
    rig.exchange(&client, vip, b"before");
    client.send_to(&[0; 65_527], vip).expect("IPv6 carries it");
    rig.until("counted", |rig| rig.dropped(vip, DropReason::TooLarge) == 1);
    rig.exchange(&client, vip, b"after");
    assert_eq!(rig.backends[0].payloads(), [&b"before"[..], b"after"]);
}

#[test]
fn flows_do_not_mix_and_keep_their_backend() {
    let mut rig = rig();
    let pool: Vec<_> = (0..3).map(|_| rig.echo("127.0.0.1:0")).collect();
    let vip = rig.frontend("127.0.0.1", &pool);
    let clients: Vec<_> = (0..40).map(|_| client("127.0.0.1")).collect();
    for round in 0..5 {
        for (n, client) in clients.iter().enumerate() {
            let payload = format!("client {n} round {round}");
            client.send_to(payload.as_bytes(), vip).expect("send");
        }
        for (n, client) in clients.iter().enumerate() {
            let expected = format!("client {n} round {round}");
            assert_eq!(rig.receive(client), (vip, expected.into_bytes()));
        }
    }
    for backend in &rig.backends {
        assert_eq!(backend.got.len() % 5, 0, "a flow changed its backend");
        assert!(!backend.got.is_empty());
    }
    assert_eq!(rig.local(vip).counters.flows_opened.value(), 40);
}

#[test]
fn replies_leave_from_the_vip_that_was_dialled() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vips = [
        rig.frontend("127.0.0.11", &pool),
        rig.frontend("127.0.0.12", &pool),
    ];
    let client = client("0.0.0.0");
    for round in 0..3u8 {
        for (n, vip) in vips.iter().enumerate() {
            client.send_to(&[round, n as u8], vip).expect("send");
        }
        for _ in 0..vips.len() {
            let (from, reply) = rig.receive(&client);
            assert_eq!(from, vips[reply[1] as usize]);
        }
    }
}

#[test]
fn the_first_datagram_to_a_dead_backend_is_answered_once_by_another() {
    for (vip, any) in [("127.0.0.1", "127.0.0.1:0"), ("::1", "[::1]:0")] {
        let mut rig = rig();
        let pool = [dead(any), rig.echo(any)];
        let vip = rig.frontend(vip, &pool);
        for n in 0..20u8 {
            // Marks would spare later clients the dead backend: let them run out.
            rig.jump(Duration::from_secs(60));
            rig.exchange(&client(&vip.ip().to_string()), vip, &[n]);
        }
        let expected: Vec<Vec<u8>> = (0..20).map(|n| vec![n]).collect();
        assert_eq!(rig.backends[0].payloads(), expected);
        let local = rig.local(vip);
        let refused = local.counters.connect_failed(ConnectError::Refused);
        assert!(refused.value() > 0);
        assert_eq!(rig.dropped(vip, DropReason::Refused), 0);
    }
}

#[test]
fn the_first_datagram_passes_several_dead_backends() {
    let mut rig = rig();
    let any = "127.0.0.1:0";
    let pool = [dead(any), dead(any), dead(any), rig.echo(any)];
    let vip = rig.frontend("127.0.0.1", &pool);
    for n in 0..20u8 {
        rig.jump(Duration::from_secs(60));
        rig.exchange(&client("127.0.0.1"), vip, &[n]);
    }
    assert_eq!(
        rig.backends[0].payloads().len(),
        20,
        "each reached the living one, once"
    );
    assert_eq!(rig.dropped(vip, DropReason::Refused), 0);
}

#[test]
fn a_send_that_reports_an_earlier_refusal_goes_after_the_kept_copy_in_order() {
    let mut rig = rig();
    let pool = [dead("127.0.0.1:0"), rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    // All but certain to be picked first.
    rig.change(vip, |spec| spec.backends[0].weight = u16::MAX);
    let client = client("127.0.0.1");
    // Read in one batch: the second send is what hears of the first one's refusal.
    client.send_to(b"one", vip).expect("send");
    client.send_to(b"two", vip).expect("send");
    assert_eq!(rig.receive(&client).1, b"one");
    assert_eq!(rig.receive(&client).1, b"two");
    assert_eq!(rig.backends[0].payloads(), [b"one", b"two"]);
    let local = rig.local(vip);
    let refused = local.counters.connect_failed(ConnectError::Refused);
    assert_eq!(refused.value(), 1);
}

#[test]
fn a_backend_that_dies_under_its_flows_is_left() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0"), rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let clients: Vec<_> = (0..16).map(|_| client("127.0.0.1")).collect();
    for client in &clients {
        rig.exchange(client, vip, b"hello");
    }
    let died = rig.kill(pool[0]);
    assert!((1..16).contains(&died));
    for (n, client) in clients.iter().enumerate() {
        // The first after the death may be what finds out. One flow in two gets its second before
        // the worker has looked, so that the send itself reports the refusal.
        client.send_to(b"lost", vip).expect("send");
        if n % 2 == 0 {
            rig.turns(2);
        }
        client.send_to(b"found", vip).expect("send");
        let mut reply = rig.receive(client).1;
        if reply == b"lost" {
            reply = rig.receive(client).1;
        }
        assert_eq!(reply, b"found");
    }
    let local = rig.local(vip);
    assert_eq!(local.counters.flows_opened.value(), 16);
    assert_eq!(local.counters.flows_active.value(), 16);
}

#[test]
fn the_only_backend_is_tried_again_when_it_is_back() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let client = client("127.0.0.1");
    rig.exchange(&client, vip, b"one");
    rig.kill(pool[0]);
    client.send_to(b"lost", vip).expect("send");
    rig.until("refused", |rig| rig.dropped(vip, DropReason::Refused) == 1);
    rig.echo(&pool[0].to_string());
    rig.exchange(&client, vip, b"two");
    assert_eq!(rig.local(vip).counters.flows_opened.value(), 1);
}

#[test]
fn a_send_that_reports_the_refusal_of_the_only_backend_is_repeated_once() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let client = client("127.0.0.1");
    rig.exchange(&client, vip, b"one");
    rig.kill(pool[0]);
    client.send_to(b"lost", vip).expect("send");
    rig.read(vip);
    rig.echo(&pool[0].to_string());
    client.send_to(b"two", vip).expect("send");
    rig.read(vip);
    assert_eq!(rig.receive(&client).1, b"two");
    assert_eq!(rig.dropped(vip, DropReason::Refused), 1);
}

#[test]
fn a_flow_that_stayed_with_its_only_backend_is_not_moved_by_the_old_refusal() {
    for told_by_send in [false, true] {
        let mut rig = rig();
        let only = rig.echo("127.0.0.1:0");
        let vip = rig.frontend("127.0.0.1", &[only]);
        let client = client("127.0.0.1");
        // Nothing is answered: no reply tells that all is well again.
        client.send_to(b"silent one", vip).expect("send");
        rig.until("delivered", |rig| rig.backend(only).got.len() == 1);
        rig.kill(only);
        client.send_to(b"silent lost", vip).expect("send");
        match told_by_send {
            true => rig.read(vip),
            false => rig.until("told", |rig| rig.dropped(vip, DropReason::Refused) == 1),
        }
        rig.echo(&only.to_string());
        client.send_to(b"silent two", vip).expect("send");
        rig.read(vip);
        rig.until("delivered", |rig| rig.backend(only).got.len() == 1);
        assert_eq!(rig.dropped(vip, DropReason::Refused), 1);
        // One that all but every new flow would go to.
        let other = rig.echo("127.0.0.1:0");
        rig.change(vip, |spec| {
            let weight = u16::MAX;
            let heavy = active(other);
            spec.backends.push(Backend { weight, ..heavy });
        });
        client.send_to(b"silent three", vip).expect("send");
        rig.until("delivered", |rig| {
            rig.backend(only).got.len() + rig.backend(other).got.len() == 2
        });
        assert_eq!(rig.backend(only).got.len(), 2, "by send: {told_by_send}");
    }
}

#[test]
fn a_refusal_is_consumed_and_does_not_spin() {
    let mut rig = rig();
    let vip = rig.frontend("127.0.0.1", &[dead("127.0.0.1:0")]);
    let client = client("127.0.0.1");
    client.send_to(b"x", vip).expect("send");
    rig.until("refused", |rig| rig.dropped(vip, DropReason::Refused) == 1);
    for _ in 0..20 {
        assert_eq!(rig.turn(), 0);
    }
}

#[test]
fn after_its_removal_a_backend_gets_nothing_more_and_its_socket_is_closed() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0"), rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let clients: Vec<_> = (0..16).map(|_| client("127.0.0.1")).collect();
    for client in &clients {
        rig.exchange(client, vip, b"before");
    }
    let before = rig.backend(pool[0]).got.clone();
    assert!(!before.is_empty());
    // Sent before the change, read after it: too late for the old one.
    clients[0].send_to(b"after", vip).expect("send");
    rig.change(vip, |spec| spec.backends = vec![active(pool[1])]);
    assert_eq!(rig.receive(&clients[0]).1, b"after");
    for client in &clients[1..] {
        rig.exchange(client, vip, b"after");
    }
    assert_eq!(rig.backend(pool[0]).got, before);
    for (flow, _) in before {
        assert_free(flow);
    }
    let counters = &rig.local(vip).counters;
    assert_eq!(counters.flows_opened.value(), 16);
    assert_eq!(rig.cx.counters.descriptors.value(), 16);
}

#[test]
fn a_draining_backend_keeps_its_flows_and_gets_no_new_ones() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0"), rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool[..1]);
    let old = client("127.0.0.1");
    rig.exchange(&old, vip, b"old");
    rig.change(vip, |spec| {
        spec.backends = pool.iter().copied().map(active).collect();
        spec.backends[0].state = BackendState::Draining;
    });
    rig.exchange(&old, vip, b"old");
    for _ in 0..16 {
        rig.exchange(&client("127.0.0.1"), vip, b"new");
    }
    assert_eq!(rig.backend(pool[0]).payloads(), [b"old", b"old"]);
    assert_eq!(rig.backend(pool[1]).got.len(), 16);
}

#[test]
fn flows_of_a_closed_frontend_end_and_their_sockets_close() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let (vip, other) = (
        rig.frontend("127.0.0.1", &pool),
        rig.frontend("127.0.0.2", &pool),
    );
    for _ in 0..8 {
        rig.exchange(&client("127.0.0.1"), vip, b"x");
    }
    let kept = client("127.0.0.1");
    let flows = rig.backends[0].got.clone();
    rig.exchange(&kept, other, b"y");
    rig.close(vip);
    rig.turn();
    for (flow, _) in flows {
        assert_free(flow);
    }
    assert_eq!(rig.closed(vip, CloseReason::Removed), 8);
    assert_eq!(rig.local(vip).counters.flows_active.value(), 0);
    rig.exchange(&kept, other, b"z");
    assert_eq!(rig.cx.counters.flows_active.value(), 1);
}

/// Closing many flows takes several turns. A frontend that opens again meanwhile, or another one
/// whose place in memory is the same, loses no new flow to that.
#[test]
fn a_frontend_that_opens_again_keeps_its_new_flows() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let old: Vec<_> = (0..super::ENDS_PER_TURN + 8)
        .map(|_| client("127.0.0.1"))
        .collect();
    old.iter().for_each(|old| rig.exchange(old, vip, b"old"));
    rig.close(vip);
    rig.open(vip);
    let new = client("127.0.0.1");
    new.send_to(b"new", vip).expect("send");
    rig.read(vip);
    rig.turns(3);
    assert_eq!(rig.receive(&new), (vip, b"new".to_vec()));
    let ended = super::ENDS_PER_TURN as u64;
    assert_eq!(rig.closed(vip, CloseReason::Removed), ended);
    assert_eq!(rig.local(vip).counters.flows_active.value(), 9);
}

#[test]
fn a_source_is_denied_at_its_next_datagram() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let denied = client("127.0.0.1");
    rig.exchange(&denied, vip, b"one");
    rig.change(vip, |spec| {
        let range = ("127.0.0.9".parse().expect("address"), 32);
        spec.policy.sources = SourceRanges::from_prefixes([range]);
    });
    for n in 1..=2 {
        denied.send_to(b"two", vip).expect("send");
        rig.until("denied", |rig| {
            rig.dropped(vip, DropReason::SourceDenied) == n
        });
    }
    assert_eq!(rig.closed(vip, CloseReason::SourceDenied), 1);
    rig.exchange(&client("127.0.0.9"), vip, b"three");
    assert_eq!(rig.backends[0].payloads(), [&b"one"[..], b"three"]);
}

/// Not a turn before its time, and at the first turn after it, while every turn has its batch of
/// another flow to forward.
#[test]
fn u10_flows_end_exactly_at_their_time_under_load() {
    const ONE_WAY: Duration = Duration::from_secs(3);
    const TWO_WAY: Duration = Duration::from_secs(7);
    for (payload, timeout, reason) in [
        (&b"silent"[..], ONE_WAY, CloseReason::OneWayTimeout),
        (b"echo", TWO_WAY, CloseReason::TwoWayTimeout),
    ] {
        let mut rig = rig();
        let pool = [rig.echo("127.0.0.1:0")];
        let vip = rig.frontend("127.0.0.1", &pool);
        rig.change(vip, |spec| {
            spec.policy.flow_one_way_timeout = ONE_WAY;
            spec.policy.flow_two_way_timeout = TWO_WAY;
        });
        let (client, busy) = (client("127.0.0.1"), client("127.0.0.1"));
        let load = |rig: &mut Rig| {
            for _ in 0..100 {
                busy.send_to(b"silent", vip).expect("send");
            }
            rig.turn();
        };
        rig.stop_clock();
        const TICK: Duration = Duration::from_millis(1);
        for _ in 0..5 {
            client.send_to(payload, vip).expect("send");
            load(&mut rig);
            if payload == b"echo" {
                rig.receive(&client);
            }
            rig.jump(timeout - TICK);
            load(&mut rig);
            assert_eq!(rig.closed(vip, reason), 0, "early");
        }
        rig.jump(TICK);
        load(&mut rig);
        assert_eq!(rig.closed(vip, reason), 1, "late");
        let counters = &rig.local(vip).counters;
        assert_eq!(counters.flows_opened.value(), 2, "none ended in between");
        assert_eq!(counters.flows_active.value(), 1, "the busy one");
    }
}

#[test]
fn flows_expire_by_their_timers_and_leave_nothing_open() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    rig.change(vip, |spec| {
        spec.policy.flow_one_way_timeout = Duration::from_secs(3);
        spec.policy.flow_two_way_timeout = Duration::from_secs(7);
    });
    let (one_way, two_way) = (client("127.0.0.1"), client("127.0.0.1"));
    one_way.send_to(b"silent", vip).expect("send");
    rig.exchange(&two_way, vip, b"echo");
    rig.until("both there", |rig| rig.backends[0].got.len() == 2);
    let flows = rig.backends[0].got.clone();
    rig.jump(Duration::from_millis(2_500));
    rig.turns(3);
    assert_eq!(rig.cx.counters.flows_active.value(), 2, "early");
    rig.jump(Duration::from_secs(1));
    rig.turns(3);
    assert_eq!(rig.closed(vip, CloseReason::OneWayTimeout), 1);
    assert_eq!(rig.cx.counters.flows_active.value(), 1);
    rig.jump(Duration::from_millis(3_000));
    rig.turns(3);
    assert_eq!(rig.cx.counters.flows_active.value(), 1, "early");
    rig.jump(Duration::from_secs(1));
    rig.turns(3);
    assert_eq!(rig.closed(vip, CloseReason::TwoWayTimeout), 1);
    assert_eq!(rig.cx.counters.descriptors.value(), 0);
    assert_eq!(rig.cx.counters.copy_bytes.value(), 0);
    assert!(rig.udp.is_idle());
    for (flow, _) in flows {
        assert_free(flow);
    }
}

#[test]
fn a_flood_of_spoofed_sources_costs_neither_known_flows_nor_a_new_one() {
    let mut rig = Rig::new(Limits {
        flows: 200,
        flows_per_source: 100,
        ..Limits::default()
    });
    let pool = [rig.echo("127.0.0.1:0"), rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let known: Vec<_> = (0..10).map(|_| client("127.0.0.1")).collect();
    for client in &known {
        rig.exchange(client, vip, b"known");
    }
    for n in 0..50_000u32 {
        let [_, b, c, d] = (n % 16_000 + 0x10_0001).to_be_bytes();
        let source = UdpSocket::bind(SocketAddr::from(([127, b, c, d], 0))).expect("bind");
        source.send_to(b"silent", vip).expect("send");
        if n % 50 == 0 {
            rig.turn();
        }
        if n % 5_000 == 0 {
            for client in &known {
                rig.exchange(client, vip, b"known");
            }
        }
        assert!(rig.cx.counters.flows_active.value() <= 200);
    }
    let ended = Instant::now();
    let newcomer = client("127.0.0.1");
    rig.until("a new flow", |rig| {
        newcomer.send_to(b"new", vip).expect("send");
        rig.turns(3);
        newcomer.recv(&mut [0; 8]).is_ok()
    });
    assert!(ended.elapsed() < Duration::from_secs(10));
    for client in &known {
        rig.exchange(client, vip, b"known");
    }
    assert!(rig.dropped(vip, DropReason::FlowLimit) > 0);
    assert_eq!(rig.local(vip).counters.flows_active.value(), 200);
    assert_eq!(rig.cx.counters.descriptors.value(), 200);
}

#[test]
fn a_source_has_its_own_cap() {
    let mut rig = Rig::new(Limits {
        flows_per_source: 4,
        ..Limits::default()
    });
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let greedy: Vec<_> = (0..5).map(|_| client("127.0.0.3")).collect();
    for client in &greedy[..4] {
        rig.exchange(client, vip, b"x");
    }
    greedy[4].send_to(b"x", vip).expect("send");
    rig.until("refused", |rig| {
        rig.dropped(vip, DropReason::SourceFlowLimit) == 1
    });
    rig.exchange(&client("127.0.0.4"), vip, b"y");
    rig.exchange(&greedy[0], vip, b"z");
}

#[test]
fn out_of_descriptors_an_unanswered_flow_gives_its_own_and_answered_ones_do_not() {
    let mut rig = rig();
    rig.cx.descriptors.allow(2);
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let (known, silent, new) = (
        client("127.0.0.1"),
        client("127.0.0.1"),
        client("127.0.0.1"),
    );
    rig.exchange(&known, vip, b"known");
    silent.send_to(b"silent", vip).expect("send");
    rig.until("two", |rig| rig.cx.counters.flows_active.value() == 2);
    rig.jump(Duration::from_millis(200));
    rig.exchange(&new, vip, b"new");
    assert_eq!(rig.closed(vip, CloseReason::Shed), 1);
    let late = client("127.0.0.1");
    late.send_to(b"late", vip).expect("send");
    rig.until("refused", |rig| {
        rig.dropped(vip, DropReason::DescriptorLimit) == 1
    });
    rig.exchange(&known, vip, b"known");
    assert_eq!(rig.cx.counters.descriptors.value(), 2);
}

#[test]
fn with_affinity_every_flow_of_a_client_address_has_one_backend() {
    let mut rig = rig();
    let pool: Vec<_> = (0..3).map(|_| rig.echo("127.0.0.1:0")).collect();
    let vip = rig.frontend("127.0.0.1", &pool);
    rig.change(vip, |spec| {
        spec.policy.affinity = Some(Duration::from_secs(60));
    });
    for source in 20..30 {
        let counts = |rig: &Rig| Vec::from_iter(rig.backends.iter().map(|b| b.got.len()));
        let before = counts(&rig);
        for _ in 0..5 {
            rig.exchange(&client(&format!("127.0.0.{source}")), vip, b"x");
        }
        let after = counts(&rig);
        let used = before.iter().zip(&after).filter(|(b, a)| a != b).count();
        assert_eq!(used, 1, "{before:?} {after:?}");
    }
}

#[test]
fn a_drain_refuses_new_flows_and_is_over_once_the_old_are_silent() {
    let mut rig = rig();
    let pool = [rig.echo("127.0.0.1:0")];
    let vip = rig.frontend("127.0.0.1", &pool);
    let old = client("127.0.0.1");
    rig.exchange(&old, vip, b"old");
    rig.cx.draining = true;
    let new = client("127.0.0.1");
    new.send_to(b"new", vip).expect("send");
    rig.until("refused", |rig| rig.dropped(vip, DropReason::Draining) == 1);
    rig.exchange(&old, vip, b"old");
    rig.turn();
    assert!(!rig.udp.is_idle());
    rig.jump(Duration::from_secs(3));
    rig.turns(2);
    assert!(rig.udp.is_idle());
    rig.udp.cut(&mut rig.cx);
    assert_eq!(rig.closed(vip, CloseReason::DrainDeadline), 1);
    assert_eq!(rig.cx.counters.descriptors.value(), 0);
}
