//! Bad wires and hostile packets: loss, delay, reordering, doubles, damage, narrow links, tiny
//! segments, packets that belong to no connection. Rows T3, T4, T6, T8, T13 and T16 of the fault
//! catalogue.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::Domain;
use support::manifest::service;
use support::net::pod_v4;
use support::stream::*;
use support::traffic::*;
use support::wire::*;
use support::*;

const MIB: u64 = 1 << 20;

/// Peers behind a VIP of each family.
fn both_families(lab: &Lab, weir: &Weir) -> (Vec<Peer>, Vec<SocketAddr>) {
    let mut all = (Vec::new(), Vec::new());
    for (n, v6) in [false, true].into_iter().enumerate() {
        let port = 9000 + n as u16;
        all.0.push(Peer::serve(&lab.server, pod(v6, 0), port));
        all.1
            .push(one_pod(weir, &format!("family{n}"), v6, v6, port));
    }
    all
}

fn pairs<'a>(peers: &'a [Peer], vips: &[SocketAddr]) -> Vec<(SocketAddr, &'a Peer)> {
    vips.iter().copied().zip(peers).collect()
}

/// Impairs all four directions: what leaves the client, the appliance (both ways) and the servers.
fn impair(lab: &Lab, impairment: Impairment) -> [Shaper; 3] {
    let seed = u64::from(std::process::id()) << 8 | 1;
    println!("the shapers' seed: {seed}");
    [
        Shaper::start(&lab.client, seed, impairment),
        Shaper::start(&lab.lb, seed + 2, impairment),
        Shaper::start(&lab.server, seed + 4, impairment),
    ]
}

fn report(shapers: &[Shaper]) {
    for Shaper { done, .. } in shapers {
        let [seen, lost, doubled, damaged, delayed] = [
            &done.seen,
            &done.lost,
            &done.doubled,
            &done.damaged,
            &done.delayed,
        ]
        .map(Done::total);
        println!(
            "{seen} packets: {lost} lost, {doubled} doubled, {damaged} damaged, {delayed} delayed"
        );
    }
}

#[test]
fn t8_loss_reordering_doubles_and_damage_change_no_byte() {
    if skip("t8 shaper") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let (peers, vips) = both_families(&lab, &weir);
    let shapers = impair(
        &lab,
        Impairment {
            lose: 10,
            double: 10,
            damage: 5,
            delay: 100,
            longest: Duration::from_millis(8),
        },
    );
    let sizes = [0, 1, 16_384, 65_537, 262_145, 1_048_577];
    let plans = every_order(1, &Close::ORDERLY, &sizes, Writes::Large);
    play(&lab.client, &pairs(&peers, &vips), plans, 12);
    let plans = every_order(101, &Close::ORDERLY, &[1, 300_001], Writes::Mixed);
    play(&lab.client, &pairs(&peers, &vips), plans, 10);
    let large = long(4 * MIB, 64 * MIB);
    let plans = every_order(
        201,
        &[Close::AtOnce, Close::HalfByServer],
        &[large],
        Writes::Large,
    );
    play(&lab.client, &pairs(&peers, &vips), plans, 4);
    report(&shapers);
    let lost: u64 = shapers.iter().map(|s| Done::total(&s.done.lost)).sum();
    let delayed: u64 = shapers.iter().map(|s| Done::total(&s.done.delayed)).sum();
    assert!(lost > 20 && delayed > 200, "the wire was not bad");
    drop(shapers);
    weir.nothing_in_use();
}

/// Nothing is lost here, so resets must arrive too: whatever order packets come in.
#[test]
fn t3_t4_reordering_and_doubles_spoil_no_close_order() {
    if skip("t4 shaper") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let (peers, vips) = both_families(&lab, &weir);
    let shapers = impair(
        &lab,
        Impairment {
            double: 100,
            delay: 300,
            longest: Duration::from_millis(4),
            ..Impairment::default()
        },
    );
    let sizes = [0, 1, 1_449, 16_385, 65_535, 262_144, 700_001];
    let plans = every_order(1, &Close::ALL, &sizes, Writes::Large);
    play(&lab.client, &pairs(&peers, &vips), plans, 12);
    report(&shapers);
    let doubled: u64 = shapers.iter().map(|s| Done::total(&s.done.doubled)).sum();
    assert!(doubled > 50, "the wire was not bad");
    drop(shapers);
    weir.nothing_in_use();
}

/// Links of 20 Mbit/s whose short queues overflow all the time.
#[test]
fn t8_narrow_links_with_short_queues_change_no_byte() {
    if skip("t8 tbf") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let (peers, vips) = both_families(&lab, &weir);
    for (net, device) in [
        (&lab.client, "eth0"),
        (&lab.lb, "front"),
        (&lab.lb, "back"),
        (&lab.server, "eth0"),
    ] {
        // A socket keeps some 6 kB in its own queue (TCP small queues): five overflow this one, and
        // did not always overflow 48 kB.
        let words = "rate 20mbit burst 8kb limit 12kb".split(' ');
        let mut args = vec!["qdisc", "add", "dev", device, "root", "tbf"];
        args.extend(words);
        net.exec("tc", &args);
    }
    let size = long(MIB, 32 * MIB);
    let plans = every_order(1, &Close::ORDERLY, &[size + 1, 65_537], Writes::Large);
    // Five of 32 MiB take 70 s together on such a link.
    let patience = Duration::from_secs(long(30, 300));
    play_within(&lab.client, &pairs(&peers, &vips), plans, 5, patience);
    for device in ["front", "back"] {
        let statistics = lab.lb.out("tc", &["-s", "qdisc", "show", "dev", device]);
        let dropped = statistics.split("dropped ").nth(1).unwrap();
        let dropped = dropped.split([',', ' ']).next().unwrap();
        println!("the appliance's queue at {device} dropped {dropped} packets");
        assert_ne!(dropped, "0", "the queue never overflowed: {statistics}");
    }
    weir.nothing_in_use();
}

/// Segments of 88 bytes and less at all four ends, and writes of a byte.
#[test]
fn t6_tiny_segments_and_single_bytes_arrive_whole_without_melting_the_cpu() {
    if skip("t6 clamp") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let (peers, vips) = both_families(&lab, &weir);
    for net in [&lab.client, &lab.lb, &lab.server] {
        for iptables in ["iptables", "ip6tables"] {
            let clamp =
                "-w -t mangle -A OUTPUT -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 88";
            net.exec(iptables, &clamp.split(' ').collect::<Vec<_>>());
        }
    }
    let packets = |counter| lab.lb.kernel_counter("Tcp", counter);
    let (before, cpu) = (packets("InSegs"), weir.cpu());
    let plans = every_order(1, &Close::ALL, &[0, 1, 88, 89, 65_537], Writes::Large);
    play(&lab.client, &pairs(&peers, &vips), plans, 8);
    let plans = every_order(101, &Close::ALL, &[1, 5_000], Writes::Single);
    play(&lab.client, &pairs(&peers, &vips), plans, 8);
    let (segments, spent) = (packets("InSegs") - before, weir.cpu() - cpu);
    println!("{segments} segments, {spent:?} of CPU");
    // 65,537 bytes in segments of at most 88.
    assert!(segments > 5_000, "{segments}: the clamp is not in force");
    // Far from a wakeup that costs a millisecond.
    let each = spent / segments as u32;
    assert!(
        each < Duration::from_micros(200),
        "{each:?} of CPU a segment"
    );
    weir.nothing_in_use();
}

/// The appliance's side of a connection is in TIME_WAIT when the same client port comes again: it
/// is accepted, and by a backend of now.
#[test]
fn t13_a_port_in_time_wait_is_used_again_at_once() {
    if skip("t13 time wait") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    // Says its name and closes first, so that the proxy does so towards the client.
    let says = |n: u16, name: &'static str| {
        TcpPod::serve(&lab.server, pod_v4(n), 80, move |mut stream| {
            let _ = stream.write_all(format!("{name}\n").as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0]);
        })
    };
    let first = says(0, "first");
    let svc = service("reuse").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let source: IpAddr = "10.1.0.2".parse().unwrap();
    let call = move || {
        let mut stream = dial_from(source, 30_001, vip)?;
        let name = read_name(&mut stream)?;
        // Its FIN first; ours is the answer.
        assert_eq!(stream.read(&mut [0])?, 0);
        Ok::<_, std::io::Error>(name)
    };
    let rounds = 30;
    for round in 0..rounds {
        let name = lab
            .client
            .run(call)
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_eq!(name, "first");
        eventually("the appliance keeps it in TIME_WAIT", SOON, || {
            waiting(&lab, vip) > 0 || round > 0
        });
    }
    // The pod goes: the old tuple leads to the new one, never to the dead.
    let _second = says(1, "second");
    weir.serve(&service("reuse").tcp(80).endpoints([pod_v4(1)], 80));
    first.kill();
    for _ in 0..rounds {
        let name = eventually_some("the new pod answers", SOON, || lab.client.run(call).ok());
        assert_eq!(name, "second");
    }
}

/// How many connections of the VIP are in TIME_WAIT at the appliance.
fn waiting(lab: &Lab, vip: SocketAddr) -> usize {
    let filter = ["-tanH", "state", "time-wait", "src", &vip.to_string()];
    lab.lb.out("ss", &filter).lines().count()
}

/// A live connection and whoever injects packets into it.
struct Victim {
    near: (Ipv4Addr, u16),
    far: (Ipv4Addr, u16),
    ear: Ear,
    raw: socket2::Socket,
    namespace: String,
}

impl Victim {
    /// One whose near end is a socket of `net`.
    fn new(net: &net::Net, near: SocketAddr, far: SocketAddr) -> Victim {
        let (ear, raw) = net.run(|| (Ear::new(), raw(Domain::IPV4)));
        let v4 = |address: SocketAddr| match address {
            SocketAddr::V4(a) => (*a.ip(), a.port()),
            SocketAddr::V6(_) => panic!("{address} is not IPv4"),
        };
        Victim {
            near: v4(near),
            far: v4(far),
            ear,
            raw,
            namespace: net.name.clone(),
        }
    }

    /// Sends what belongs to no window, and what belongs to one and is wrong.
    fn attack(&self) {
        let Some(heard) = self.ear.last(self.far, self.near) else {
            panic!("nothing came from {:?} in {}", self.far, self.namespace);
        };
        // Where the near end stands, as the far end knows it.
        let (next, acknowledges) = (heard.expects, heard.next);
        let segment = Segment {
            from: self.near,
            to: self.far,
            sequence: next,
            acknowledges,
            flags: ACK,
            payload: b"",
            spoil: 0,
        };
        let send = |segment: Segment<'_>| drop(segment.send(&self.raw));
        let wide = [
            0x4000_0000,
            0x7fff_ffff,
            0x8000_0000,
            0xc000_0000,
            0u32.wrapping_sub(70_000),
        ];
        for off in wide {
            for flags in [RST, RST | ACK, FIN | ACK, SYN, SYN | ACK, PSH | ACK, 0, 63] {
                let sequence = next.wrapping_add(off);
                let payload: &[u8] = if flags & PSH != 0 { b"forged" } else { b"" };
                send(Segment {
                    sequence,
                    flags,
                    payload,
                    ..segment
                });
            }
        }
        // In the window, but not exactly next: RFC 5961 wants a challenge, no end.
        for off in [1, 100, 1_000] {
            let sequence = next.wrapping_add(off);
            send(Segment {
                sequence,
                flags: RST,
                ..segment
            });
            send(Segment {
                sequence,
                flags: SYN,
                ..segment
            });
        }
        send(Segment {
            flags: SYN,
            ..segment
        });
        send(Segment {
            flags: SYN | ACK,
            ..segment
        });
        // Acknowledges what was never sent, or long ago.
        for off in [1_000_000, 0x7000_0000, 0x9000_0000] {
            let acknowledges = acknowledges.wrapping_add(off);
            let payload: &[u8] = b"forged";
            send(Segment {
                acknowledges,
                payload,
                flags: PSH | ACK,
                ..segment
            });
        }
        // Right, but for the checksum.
        for flags in [PSH | ACK, FIN | ACK, RST] {
            let payload: &[u8] = b"forged";
            send(Segment {
                flags,
                payload,
                spoil: 1,
                ..segment
            });
        }
        // No flag, every flag; data that nothing acknowledges.
        send(Segment {
            flags: 0,
            payload: b"forged",
            ..segment
        });
        // Old bytes again, other ones this time.
        let sequence = next.wrapping_sub(6);
        send(Segment {
            sequence,
            payload: b"forged",
            flags: PSH | ACK,
            ..segment
        });
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

#[test]
fn t13_t16_packets_of_no_window_harm_no_live_connection() {
    if skip("t16") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let echo = TcpPod::echo(&lab.server, pod_v4(0), 80);
    let vip = one_pod(&weir, "live", false, false, 80);
    let mut client = connect(&lab.client, vip).unwrap();
    let downstream = Victim::new(&lab.client, client.local_addr().unwrap(), vip);
    exchange_bytes(&mut client, 0);
    let upstream = {
        // The proxy's own port towards the pod, as the pod's kernel knows it.
        let line = lab.server.out("ss", &["-tnH", "state", "established"]);
        let peer = line
            .split_whitespace()
            .last()
            .expect("a connection")
            .to_owned();
        Victim::new(&lab.server, echo.address, peer.parse().unwrap())
    };
    for round in 0..20 {
        exchange_bytes(&mut client, round);
        downstream.attack();
        exchange_bytes(&mut client, round + 100);
        upstream.attack();
    }
    let challenges = lab.lb.kernel_counter("TcpExt", "TCPChallengeACK")
        + lab.lb.kernel_counter("TcpExt", "TCPSYNChallenge");
    println!("the appliance's kernel challenged {challenges} packets");
    assert!(challenges > 0, "no packet was near enough to matter");
    let bad = lab.lb.kernel_counter("Tcp", "InCsumErrors");
    assert!(bad > 0, "no checksum was wrong");
    assert_eq!(echo.count(), 1, "no forged packet opened a connection");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let (rest, _, end) = receive_all(&mut client);
    assert!(rest == 0 && end.is_ok(), "{rest} {end:?}");
    // Those whose handshake was forged, and nobody else, are left to the kernel.
    weir.nothing_in_use();
}

/// Some hundred bytes there and back, compared.
#[track_caller]
fn exchange_bytes(client: &mut TcpStream, seed: u64) {
    let mut sent = vec![0; 700];
    Bytes::new(seed).fill(&mut sent);
    client.write_all(&sent).unwrap();
    let mut back = vec![0; sent.len()];
    client.read_exact(&mut back).unwrap();
    assert!(sent == back, "other bytes came back");
}
