//! UDP, end to end: rows U1, U2, U4-U9 and U11 of the fault catalogue, over IPv4, IPv6 and across
//! families.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::manifest::service;
use support::net::{pod_v4, pod_v6};
use support::traffic::*;
use support::*;

fn families() -> [(bool, bool); 4] {
    [(false, false), (true, true), (false, true), (true, false)]
}

fn pod(v6: bool, n: u16) -> IpAddr {
    if v6 {
        pod_v6(n).into()
    } else {
        pod_v4(n).into()
    }
}

fn family(v6: bool) -> &'static str {
    if v6 {
        "ipFamilies: [IPv6]"
    } else {
        "ipFamilies: [IPv4]"
    }
}

#[test]
fn u1_u2_datagrams_keep_their_boundaries_from_0_to_65507_bytes() {
    if skip("u1 u2") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    for (n, (vip, backend)) in families().into_iter().enumerate() {
        let port = 5000 + n as u16;
        let _echo = UdpPod::echo(&lab.server, pod(backend, 0), port);
        let svc = service(&format!("sizes{n}"))
            .spec(family(vip))
            .udp(port)
            .endpoints([pod(backend, 0)], port);
        let vip = SocketAddr::new(weir.serve(&svc)[0], port);
        let socket = udp(&lab.client, vip);
        for size in [
            0, 1, 2, 511, 1200, 1452, 1472, 1473, 8972, 9000, 32_768, 65_000, 65_507,
        ] {
            let mut data = vec![0; size];
            Pattern::new(size as u64 + 1).fill(&mut data);
            let back =
                exchange(&socket, &data).unwrap_or_else(|e| panic!("{size} bytes to {vip}: {e}"));
            assert!(
                back == data,
                "{size} bytes to {vip}: {} came back",
                back.len()
            );
        }
        // A burst in one go: none merges with another, whatever the sizes.
        let sizes: Vec<usize> = (0..60).map(|i| (i * 37) % 1400).collect();
        for &size in &sizes {
            socket.send(&vec![size as u8; size]).unwrap();
        }
        let mut buffer = [0; 65_536];
        for &size in &sizes {
            let got = socket.recv(&mut buffer).unwrap();
            assert_eq!(got, size);
            assert!(buffer[..got].iter().all(|b| *b == size as u8));
        }
    }
}

#[test]
fn u4_narrow_links_fragment_and_nothing_is_lost() {
    if skip("u4") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let mut flows = Vec::new();
    for (n, (vip, backend)) in families().into_iter().enumerate() {
        let port = 5400 + n as u16;
        let pod_here = UdpPod::echo(&lab.server, pod(backend, 0), port);
        let svc = service(&format!("narrow{n}"))
            .spec(family(vip))
            .udp(port)
            .endpoints([pod(backend, 0)], port);
        let vip = SocketAddr::new(weir.serve(&svc)[0], port);
        let socket = udp(&lab.client, vip);
        assert_eq!(exchange(&socket, b"wide").unwrap(), b"wide");
        flows.push((vip, socket, pod_here));
    }
    // First towards the backends, then towards the clients too: what is larger than the link comes
    // and leaves in fragments, and runs of it cannot leave in one send.
    let (lb, client, server) = (&lab.lb, &lab.client, &lab.server);
    for links in [
        [(lb, "back"), (server, "eth0")],
        [(lb, "front"), (client, "eth0")],
    ] {
        for (net, device) in links {
            net.ip(&["link", "set", device, "mtu", "1280"]);
        }
        for (vip, socket, _) in &flows {
            let sizes = [
                1200, 1400, 1400, 1400, 700, 3000, 3000, 0, 1400, 1400, 1232, 1232, 9000,
            ];
            for (n, &size) in sizes.iter().cycle().take(3 * sizes.len()).enumerate() {
                socket.send(&vec![n as u8; size]).unwrap();
            }
            let mut buffer = [0; 65_536];
            for (n, &size) in sizes.iter().cycle().take(3 * sizes.len()).enumerate() {
                let got = socket
                    .recv(&mut buffer)
                    .unwrap_or_else(|e| panic!("{vip}: datagram {n} of {size} bytes: {e}"));
                assert_eq!(got, size, "{vip}: datagram {n}");
                assert!(buffer[..got].iter().all(|b| *b == n as u8));
            }
            assert_eq!(exchange(socket, b"after").unwrap(), b"after");
        }
    }
    assert_eq!(weir.metric("weir_drops_total", &[]), 0.0);
}

#[test]
fn u5_the_first_datagram_to_a_dead_backend_is_answered() {
    if skip("u5") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _alive = UdpPod::named(&lab.server, pod_v4(0), 53, "alive");
    // Three of four have nothing at the port: the kernel there answers port unreachable.
    let svc = service("dns").udp(53).endpoints((0..4).map(pod_v4), 53);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    for n in 0..40_u8 {
        let socket = udp(&lab.client, vip);
        let back = exchange(&socket, &[n]).unwrap_or_else(|e| panic!("flow {n}: {e}"));
        assert_eq!(back, [b"alive:".as_slice(), &[n]].concat());
    }
    // Dead in mid-flow: the datagram that finds out goes to another.
    let second = UdpPod::named(&lab.server, pod_v4(1), 53, "second");
    drop(second);
    let cpu = weir.cpu();
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        weir.cpu() - cpu < Duration::from_millis(60),
        "no spin on a pending error"
    );
}

#[test]
fn u5_a_flow_moves_when_its_backend_dies() {
    if skip("u5 flow") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let mut pods = [
        Some(UdpPod::named(&lab.server, pod_v4(0), 53, "0")),
        Some(UdpPod::named(&lab.server, pod_v4(1), 53, "1")),
    ];
    let svc = service("dns").udp(53).endpoints([pod_v4(0), pod_v4(1)], 53);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    let socket = udp(&lab.client, vip);
    let first = exchange(&socket, b"a").unwrap();
    let holder = usize::from(first[0] - b'0');
    assert_eq!(
        exchange(&socket, b"b").unwrap()[0],
        first[0],
        "a flow stays with its backend"
    );
    pods[holder] = None;
    // The datagram that meets the refusal is lost by the kernel of the dead pod; Weir has a copy
    // only until the first reply. The next one, at the latest, is answered by the other.
    let other = b'0' + (1 - holder as u8);
    let begun = Instant::now();
    eventually("the flow moved", SOON, || {
        exchange(&socket, b"c").is_ok_and(|reply| reply[0] == other)
    });
    println!("a flow moved {:?} after its backend died", begun.elapsed());
}

#[test]
fn u6_no_endpoint_is_port_unreachable() {
    if skip("u6") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    for (n, v6) in [false, true].into_iter().enumerate() {
        let port = 5300 + n as u16;
        let _pod = UdpPod::echo(&lab.server, pod(v6, 0), port);
        let full = service(&format!("none{n}"))
            .spec(family(v6))
            .udp(port)
            .endpoints([pod(v6, 0)], port);
        let vip = SocketAddr::new(weir.serve(&full)[0], port);
        let socket = udp(&lab.client, vip);
        assert_eq!(exchange(&socket, b"x").unwrap(), b"x");
        let empty = service(&format!("none{n}")).spec(family(v6)).udp(port);
        weir.apply(&empty);
        weir.wait_state(&empty, "closed");
        // The kernel limits the rate of these, so one of a few datagrams may go without.
        eventually(&format!("ICMP port unreachable, {vip}"), SOON, || {
            exchange(&socket, b"x").is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        });
        weir.apply(&full);
        weir.wait_state(&full, "serving");
        eventually("it heals", SOON, || {
            exchange(&socket, b"y").is_ok_and(|back| back == b"y")
        });
    }
}

/// How many datagrams a pod had got when none came to it any more, of flows that send one every few
/// milliseconds. It may have read the last of them late.
#[track_caller]
fn nothing_comes(pod: &UdpPod) -> u64 {
    let mut count = pod.count();
    eventually("nothing comes any more", SOON, || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut count, pod.count());
        count == before
    });
    count
}

#[test]
fn u7_nothing_is_sent_to_a_removed_endpoint() {
    if skip("u7") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let pods: Vec<UdpPod> = (0..2)
        .map(|n| UdpPod::named(&lab.server, pod_v4(n), 53, &n.to_string()))
        .collect();
    let both = service("steady")
        .udp(53)
        .endpoints([pod_v4(0), pod_v4(1)], 53);
    let vip = SocketAddr::new(weir.serve(&both)[0], 53);
    // Steady one-way traffic of many flows: nobody waits for a reply.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sender = {
        let stop = stop.clone();
        lab.client.spawn(move || {
            let sockets: Vec<UdpSocket> = (0..50)
                .map(|_| {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.connect(vip).unwrap();
                    socket
                })
                .collect();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for socket in &sockets {
                    let _ = socket.send(b"tick");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    eventually("both get traffic", SOON, || {
        pods.iter().all(|p| p.count() > 100)
    });

    let one = service("steady").udp(53).endpoints([pod_v4(1)], 53);
    let generation = weir.metric("weir_config_generation", &[]);
    let begun = Instant::now();
    weir.apply(&one);
    eventually("the table is in force", SOON, || {
        weir.metric("weir_config_generation", &[]) > generation
    });
    println!(
        "an endpoint's removal was in force after {:?}",
        begun.elapsed()
    );
    let (old, other) = (nothing_comes(&pods[0]), pods[1].count());
    eventually("all flows reach the other", SOON, || {
        pods[1].count() > other + 2000
    });
    assert_eq!(
        pods[0].count(),
        old,
        "datagrams to the old address after its removal"
    );

    // The last endpoint goes, then the Service itself.
    let none = service("steady").udp(53);
    weir.apply(&none);
    weir.wait_state(&none, "closed");
    let counted = nothing_comes(&pods[1]);
    weir.serve(&one);
    eventually("traffic is back", SOON, || pods[1].count() > counted + 100);
    weir.remove(&one);
    eventually("the Service is gone", SOON, || weir.service(&one).is_none());
    nothing_comes(&pods[1]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    sender.join().unwrap();
    eventually("no flow is left", SOON, || {
        weir.metric("weir_udp_flows_active", &[]) == 0.0
    });
}

#[test]
fn u8_a_flood_of_spoofed_sources_harms_no_known_flow() {
    if skip("u8") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = UdpPod::serve(&lab.server, pod_v4(0), 53, |data, _| {
        // The flood is never answered, as spoofed sources never are.
        if data == b"flood" {
            Vec::new()
        } else {
            vec![data.to_vec()]
        }
    });
    let svc = service("target").udp(53).endpoints([pod_v4(0)], 53);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    let known: Vec<UdpSocket> = (0..200).map(|_| udp(&lab.client, vip)).collect();
    for socket in &known {
        assert_eq!(exchange(socket, b"hello").unwrap(), b"hello");
    }
    let memory = weir.proc_status("VmRSS:");
    // 250 addresses, 200 ports each: 50,000 flows that no one answers.
    let sources = lab.more_clients(250);
    lab.client.run(move || {
        for source in sources {
            let sockets: Vec<UdpSocket> = (0..200)
                .map(|_| UdpSocket::bind((source, 0)).unwrap())
                .collect();
            for socket in sockets {
                let _ = socket.send_to(b"flood", vip);
            }
        }
    });
    let lost = known
        .iter()
        .filter(|s| !exchange(s, b"still").is_ok_and(|back| back == b"still"))
        .count();
    assert_eq!(lost, 0, "known flows lost datagrams");
    let begun = Instant::now();
    eventually("a new flow is served", SOON / 2, || {
        let socket = udp(&lab.client, vip);
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        exchange(&socket, b"new").is_ok_and(|back| back == b"new")
    });
    println!("a new flow after the flood: {:?}", begun.elapsed());
    let grown = weir.proc_status("VmRSS:").saturating_sub(memory);
    assert!(grown < 64 * 1024, "memory grew by {grown} KiB");
    let shed = weir.metric("weir_connections_closed_total", &["reason=\"shed\""])
        + weir.metric("weir_drops_total", &[]);
    assert!(shed > 5_000.0, "sheds are counted: {shed}");
    // Nor does it cost TCP its descriptors, or the admin interface its own.
    let tcp = TcpPod::named(&lab.server, pod_v4(1), 80, "tcp");
    let other = service("other").tcp(80).endpoints([pod_v4(1)], 80);
    let vip = SocketAddr::new(weir.serve(&other)[0], 80);
    let names = lab
        .client
        .run(move || (0..20).filter(|_| ask(vip).is_ok()).count());
    assert_eq!((names, tcp.count()), (20, 20));
}

#[test]
fn u9_without_a_local_port_new_flows_are_dropped_and_counted() {
    if skip("u9") {
        return;
    }
    let lab = Lab::new();
    let ports = |range: &'static str| {
        lab.lb
            .run(move || std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", range).unwrap());
    };
    let weir = Weir::start(&lab);
    let _pod = UdpPod::echo(&lab.server, pod_v4(0), 53);
    let svc = service("narrow").udp(53).endpoints([pod_v4(0)], 53);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    ports("40000 40039");
    let sockets: Vec<UdpSocket> = (0..60).map(|_| udp(&lab.client, vip)).collect();
    let short = Some(Duration::from_millis(100));
    let (known, new): (Vec<_>, Vec<_>) = sockets.iter().partition(|socket| {
        socket.set_read_timeout(short).unwrap();
        // Slow is not lost: as many as there are ports have to be answered.
        let answered = exchange(socket, b"x").is_ok();
        socket.set_read_timeout(Some(SOON)).unwrap();
        answered
    });
    assert!((30..=40).contains(&known.len()), "{} flows", known.len());
    let exhausted = weir.metric("weir_drops_total", &["reason=\"ports_exhausted\""]);
    assert!(exhausted >= 20.0, "{exhausted} counted");
    assert_eq!(weir.metric("weir_udp_flows_active", &[]), 40.0);
    for socket in known {
        assert_eq!(exchange(socket, b"y").unwrap(), b"y", "a known flow");
    }
    ports("40000 40999");
    for socket in new {
        let mut buffer = [0; 8];
        socket.set_read_timeout(short).unwrap();
        // A late answer to the first.
        while socket.recv(&mut buffer).is_ok() {}
        socket.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(exchange(socket, b"z").unwrap(), b"z", "served again");
    }
    assert_eq!(weir.metric("weir_udp_flows_active", &[]), 60.0);
}

#[test]
fn ten_thousand_flows_are_served_and_each_keeps_its_backend() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if skip("udp 10,000 flows") {
        return;
    }
    const FLOWS: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 2 * FLOWS as u64) {
        println!("SKIP: 10,000 flows: needs 20,000 descriptors a process");
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pods: Vec<UdpPod> = (0..4)
        .map(|n| UdpPod::named(&lab.server, pod_v4(n), 53, &n.to_string()))
        .collect();
    let svc = service("many").udp(53).endpoints((0..4).map(pod_v4), 53);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    let memory = weir.proc_status("VmRSS:");
    let holders: Vec<HashSet<u8>> = lab.client.run(move || {
        let sockets: Vec<UdpSocket> = (0..FLOWS)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(vip).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket
            })
            .collect();
        let mut holders = vec![HashSet::new(); FLOWS];
        let mut buffer = [0; 16];
        for round in 0..3_u8 {
            // As many at a time as the pods' receive queues hold.
            for (chunk, sockets) in sockets.chunks(200).enumerate() {
                for socket in sockets {
                    socket.send(&[round]).unwrap();
                }
                for (n, socket) in sockets.iter().enumerate() {
                    let got = socket.recv(&mut buffer);
                    let got = got.unwrap_or_else(|e| panic!("flow {}: {e}", 200 * chunk + n));
                    assert_eq!((buffer[got - 1], buffer[1], got), (round, b':', 3));
                    holders[200 * chunk + n].insert(buffer[0]);
                }
            }
        }
        holders
    });
    assert!(holders.iter().all(|names| names.len() == 1), "a flow moved");
    let all: HashSet<u8> = holders.into_iter().flatten().collect();
    assert_eq!(all.len(), 4, "every pod has some");
    assert_eq!(weir.metric("weir_udp_flows_active", &[]), FLOWS as f64);
    assert_eq!(weir.metric("weir_drops_total", &[]), 0.0);
    let grown = weir.proc_status("VmRSS:").saturating_sub(memory);
    println!("10,000 flows: {grown} KiB more in Weir");
    assert!(grown < 16 * 1024, "memory grew by {grown} KiB");
}

#[test]
fn u11_replies_leave_from_the_address_that_was_asked() {
    if skip("u11") {
        return;
    }
    let lab = Lab::new();
    // A second link to the client, so that the appliance is multi-homed towards it.
    lab.client.exec("true", &[]);
    let weir = Weir::start(&lab);
    let _pod = UdpPod::echo(&lab.server, pod_v4(0), 53);
    let _pod6 = UdpPod::echo(&lab.server, pod_v6(0), 53);
    let mut vips = HashSet::new();
    for n in 0..3 {
        let svc = service(&format!("vip{n}"))
            .dual_stack()
            .udp(53)
            .endpoints([pod_v4(0)], 53);
        let mut svc = svc;
        svc.slices.push(manifest::Slice {
            family: "IPv6",
            ports: svc.slices[0].ports.clone(),
            endpoints: vec![manifest::ready(&pod_v6(0).to_string())],
        });
        vips.extend(weir.serve(&svc));
    }
    assert_eq!(
        vips.len(),
        6,
        "three Services, an address of each family each"
    );
    for vip in vips {
        let to = SocketAddr::new(vip, 53);
        lab.client.run(move || {
            // Unconnected, so that a reply from anywhere would be taken.
            let any: SocketAddr = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
                .parse()
                .unwrap();
            let socket = UdpSocket::bind(any).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            socket.send_to(b"who", to).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, to);
        });
    }
}

#[test]
fn udp_and_tcp_share_a_port_and_flows_follow_affinity() {
    if skip("udp affinity") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let mut svc = service("mixed")
        .port("dns", "UDP", 53)
        .port("dns-tcp", "TCP", 53)
        .spec("sessionAffinity: ClientIP");
    svc = svc.endpoints((0..4).map(pod_v4), 53);
    let _udp: Vec<_> = (0..4)
        .map(|n| UdpPod::named(&lab.server, pod_v4(n), 53, &n.to_string()))
        .collect();
    let _tcp: Vec<_> = (0..4)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 53, &n.to_string()))
        .collect();
    let vip = SocketAddr::new(weir.serve(&svc)[0], 53);
    let names: HashSet<u8> = (0..15)
        .map(|_| exchange(&udp(&lab.client, vip), b"q").unwrap()[0])
        .collect();
    assert_eq!(names.len(), 1, "15 flows of one client reach one pod");
    let names: HashSet<String> = lab
        .client
        .run(move || (0..15).map(|_| ask(vip).unwrap()).collect());
    assert_eq!(names.len(), 1, "15 connections of one client reach one pod");
    // Without affinity they spread.
    let spread = service("spread").udp(54).endpoints((0..4).map(pod_v4), 53);
    let vip = SocketAddr::new(weir.serve(&spread)[0], 54);
    let names: HashSet<u8> = (0..40)
        .map(|_| exchange(&udp(&lab.client, vip), b"q").unwrap()[0])
        .collect();
    assert!(names.len() > 1);
}

#[test]
fn a_source_outside_the_ranges_gets_silence() {
    if skip("udp source ranges") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let pod = UdpPod::echo(&lab.server, pod_v4(0), 53);
    let open = service("ranges").udp(53).endpoints([pod_v4(0)], 53);
    let vip = SocketAddr::new(weir.serve(&open)[0], 53);
    let socket = udp(&lab.client, vip);
    SockRef::from(&socket)
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert_eq!(exchange(&socket, b"x").unwrap(), b"x");
    // A narrower range binds at the next datagram, of a live flow too.
    let narrow = open
        .clone()
        .spec("loadBalancerSourceRanges: [192.0.2.0/24]");
    weir.apply(&narrow);
    eventually("denied", SOON, || exchange(&socket, b"x").is_err());
    let counted = pod.count();
    assert!(exchange(&socket, b"x").is_err());
    assert_eq!(pod.count(), counted);
    assert!(weir.metric("weir_drops_total", &["reason=\"source_denied\""]) >= 1.0);
    weir.apply(&open);
    eventually("allowed again", SOON, || exchange(&socket, b"x").is_ok());
}
