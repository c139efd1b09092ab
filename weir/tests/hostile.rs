//! Tenants as attackers: rows S1-S4 and S15 of the fault catalogue. Nothing in one namespace's
//! objects touches another's traffic or addresses.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use support::manifest::{Slice, ready, service};
use support::net::{pod_v4, pod_v6};
use support::traffic::*;
use support::*;

#[test]
fn s1_addresses_cannot_be_hijacked() {
    if skip("s1") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _good = TcpPod::named(&lab.server, pod_v4(0), 80, "victim");
    let evil = TcpPod::named(&lab.server, pod_v4(1), 80, "attacker");
    let victim = service("victim")
        .namespace("bank")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let address = weir.serve(&victim)[0];
    let vip = SocketAddr::new(address, 80);
    let attacker = || {
        service("attacker")
            .namespace("evil")
            .created("1999-01-01T00:00:00Z")
            .tcp(80)
            .endpoints([pod_v4(1)], 80)
    };
    let status = format!("\nstatus: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}\n");
    let attempts = [
        attacker().spec(&format!("externalIPs: [{address}]")).yaml(),
        attacker()
            .spec(&format!("loadBalancerIP: {address}"))
            .yaml(),
        attacker()
            .annotation("weir.dev/load-balancer-ips", &address.to_string())
            .yaml(),
        attacker()
            .annotation("metallb.io/loadBalancerIPs", &address.to_string())
            .yaml(),
        attacker()
            .annotation("weir.dev/load-balancer-ips", "10.1.0.1")
            .yaml(),
        attacker()
            .annotation("weir.dev/load-balancer-ips", "::ffff:10.1.0.64")
            .yaml(),
        attacker()
            .annotation("weir.dev/allow-shared-ip", "guess")
            .annotation("weir.dev/load-balancer-ips", &address.to_string())
            .yaml(),
        attacker()
            .yaml()
            .replacen("---", &format!("{status}---"), 1),
    ];
    for text in attempts {
        weir.write("evil.yaml", &text);
        weir.wait_service(&attacker(), "is seen", |_| true);
        std::thread::sleep(Duration::from_millis(150));
        assert!(!weir.addresses(&attacker()).contains(&address), "{text}");
        assert_eq!(weir.addresses(&victim), [address]);
        let names: Vec<String> = lab
            .client
            .run(move || (0..10).map(|_| ask(vip).unwrap()).collect());
        assert!(
            names.iter().all(|n| n == "victim"),
            "{names:?} after {text}"
        );
    }
    assert!(
        evil.count() == 0,
        "the attacker got {} connections",
        evil.count()
    );
    // The appliance's own address is never given away.
    let own = lab.client.run(|| dial("10.1.0.1:80".parse().unwrap()));
    assert_eq!(own.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn s2_endpoints_of_forbidden_ranges_are_refused_in_every_writing() {
    if skip("s2") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    // What an attacker would reach if it worked: something on the appliance's own loopback.
    let inner = TcpPod::named(&lab.lb, std::net::Ipv4Addr::LOCALHOST, 6443, "secret");
    let inner6 = TcpPod::named(&lab.lb, std::net::Ipv6Addr::LOCALHOST, 6443, "secret");
    let other = service("other").tcp(6443).endpoints([pod_v4(0)], 80);
    let own_vip = weir.serve(&other)[0].to_string();
    let v4 = [
        "127.0.0.1",
        "127.255.0.3",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.7",
        "240.0.0.1",
        own_vip.as_str(),
    ];
    let v6 = [
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "fd00:ec2::254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "0:0:0:0:0:ffff:7f00:0001",
    ];
    for (family, spec, addresses) in [
        ("IPv4", "ipFamilies: [IPv4]", v4.as_slice()),
        ("IPv6", "ipFamilies: [IPv6]", v6.as_slice()),
    ] {
        for address in addresses {
            let mut svc = service("ssrf").spec(spec).tcp(6443);
            svc.slices = vec![Slice {
                family,
                ports: vec![("tcp6443".into(), "TCP", 6443)],
                endpoints: vec![ready(address)],
            }];
            weir.apply(&svc);
            let entry = weir.wait_service(&svc, &format!("{address} is refused"), |s| {
                s["endpoints"]["refused"] == 1 && s["state"] == "closed"
            });
            assert!(
                entry["reasons"].to_string().contains("EndpointRefused"),
                "{entry:#}"
            );
            if let Some(vip) = weir.addresses(&svc).first() {
                let to = SocketAddr::new(*vip, 6443);
                assert!(lab.client.run(move || ask(to)).is_err(), "{address}");
            }
            weir.remove(&svc);
        }
    }
    assert_eq!(inner.count() + inner6.count(), 0);
    // Text that is no address, and control characters, are shown harmless.
    let mut svc = service("text").tcp(80);
    svc.slices = vec![Slice {
        family: "IPv4",
        ports: vec![("tcp80".into(), "TCP", 80)],
        endpoints: vec![ready("\\e[31mred\\n2")],
    }];
    weir.apply(&svc);
    weir.wait_service(&svc, "is refused", |s| s["endpoints"]["refused"] == 1);
    assert!(!weir.log().contains('\u{1b}') && !weir.get("/readyz?verbose").1.contains('\u{1b}'));
    // The appliance's settings may allow a range.
    let weir = weir
        .stop()
        .pools()
        .args(["--allow-endpoints", "127.0.0.0/8"])
        .launch(&lab.lb);
    let allowed = service("allowed").tcp(6443).endpoints(["127.0.0.1"], 6443);
    let vip = SocketAddr::new(weir.serve(&allowed)[0], 6443);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "secret");
}

/// Does one byte come back?
fn reaches(to: SocketAddr) -> bool {
    dial(to).is_ok_and(|mut s| s.write_all(b"x").is_ok() && s.read_exact(&mut [0]).is_ok())
}

#[test]
fn s3_source_ranges_fail_closed_on_every_protocol_and_family() {
    if skip("s3") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let tcp = [
        TcpPod::echo(&lab.server, pod_v4(0), 80),
        TcpPod::echo(&lab.server, pod_v6(0), 80),
    ];
    let _udp = [
        UdpPod::echo(&lab.server, pod_v4(0), 80),
        UdpPod::echo(&lab.server, pod_v6(0), 80),
    ];
    let dual = |ranges: &str| {
        let mut svc = service("ranges").dual_stack().tcp(80).udp(80);
        if !ranges.is_empty() {
            svc = svc.spec(&format!("loadBalancerSourceRanges: {ranges}"));
        }
        svc = svc.endpoints([pod_v4(0)], 80);
        svc.slices.push(Slice {
            family: "IPv6",
            ports: svc.slices[0].ports.clone(),
            endpoints: vec![ready(&pod_v6(0).to_string())],
        });
        svc
    };
    let vips = weir.serve(&dual(""));
    // (ranges, IPv4 allowed, IPv6 allowed)
    let matrix = [
        ("", true, true),
        ("[10.1.0.0/16]", true, false),
        ("[' 10.1.0.0/16 ']", true, false),
        ("['fd01::/16']", false, true),
        ("[10.1.0.0/16, 'fd01::/64']", true, true),
        ("[192.0.2.0/24]", false, false),
        ("[10.1.0.0/16, 10.1.0.0/99]", false, false),
        ("[not-a-cidr]", false, false),
        ("[10.1.0.2]", false, false),
        ("[0.0.0.0/0]", true, false),
        ("['::/0']", false, true),
        ("[0.0.0.0/0, '::/0']", true, true),
        ("['::ffff:10.1.0.0/112']", false, false),
    ];
    for (ranges, v4, v6) in matrix {
        weir.apply(&dual(ranges));
        for vip in &vips {
            let (to, allowed) = (
                SocketAddr::new(*vip, 80),
                if vip.is_ipv4() { v4 } else { v6 },
            );
            eventually(
                &format!("{ranges}: TCP to {to} allowed: {allowed}"),
                SOON,
                || lab.client.run(move || reaches(to)) == allowed,
            );
            let socket = udp(&lab.client, to);
            socket
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            assert_eq!(
                exchange(&socket, b"x").is_ok(),
                allowed,
                "{ranges}: UDP to {to}"
            );
        }
    }
    // A denied client is reset and nothing is dialled.
    weir.apply(&dual("[192.0.2.0/24]"));
    let to = SocketAddr::new(vips[0], 80);
    eventually("denied", SOON, || !lab.client.run(move || reaches(to)));
    let dialled = tcp[0].count();
    assert_eq!(
        lab.client.run(move || refusal(to)),
        ErrorKind::ConnectionReset
    );
    assert_eq!(tcp[0].count(), dialled);
    assert!(
        weir.metric(
            "weir_connections_closed_total",
            &["reason=\"source_denied\""]
        ) >= 1.0
    );
    // A live connection survives a narrower range.
    weir.apply(&dual(""));
    eventually("allowed", SOON, || lab.client.run(move || reaches(to)));
    let mut live = connect(&lab.client, to).unwrap();
    live.write_all(b"1").unwrap();
    live.read_exact(&mut [0]).unwrap();
    weir.apply(&dual("[192.0.2.0/24]"));
    eventually("new ones are denied", SOON, || {
        !lab.client.run(move || reaches(to))
    });
    live.write_all(b"2").unwrap();
    live.read_exact(&mut [0]).unwrap();
}

#[test]
fn s4_hostile_annotations_change_nothing_for_others() {
    if skip("s4") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let other = service("other")
        .namespace("calm")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&other)[0], 80);
    let svc = service("hostile")
        .namespace("evil")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let huge = "9".repeat(200_000);
    for (key, value) in [
        ("weir.dev/algorithm", "quantum"),
        ("weir.dev/algorithm", "\u{202e}maglev\u{0007}"),
        ("weir.dev/idle-timeout", "-5s"),
        ("weir.dev/idle-timeout", "99999999999999999999h"),
        (
            "weir.dev/load-balancer-ips",
            "10.1.0.70,10.1.0.71,10.1.0.72",
        ),
        ("weir.dev/load-balancer-ips", "not an address"),
        ("weir.dev/address-pool", "../../etc/passwd"),
        ("weir.dev/allow-shared-ip", huge.as_str()),
        ("metallb.io/loadBalancerIPs", "🦀"),
    ] {
        weir.apply(&svc.clone().annotation(key, value));
        eventually("it is seen", SOON, || weir.service(&svc).is_some());
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod", "{key}");
        assert_eq!(weir.addresses(&other), [vip.ip()]);
        weir.remove(&svc);
        eventually("it is gone", SOON, || weir.service(&svc).is_none());
    }
    // What is not built yet is refused by name, not served half.
    for (key, value) in [
        ("weir.dev/proxy-protocol", "v2"),
        (
            "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol",
            "*",
        ),
        ("weir.dev/preserve-client-ip", "true"),
    ] {
        weir.apply(&svc.clone().annotation(key, value));
        let message = weir.wait_reason(&svc, "NotSupported");
        assert!(message.contains(key), "{message}");
        assert!(weir.addresses(&svc).is_empty());
        weir.remove(&svc);
        eventually("it is gone", SOON, || weir.service(&svc).is_none());
    }
    // A class that goes elsewhere gives the address back.
    let mine = svc.clone().spec("loadBalancerClass: weir.dev/l4");
    weir.serve(&mine);
    weir.apply(&svc.clone().spec("loadBalancerClass: example.com/other"));
    weir.wait_reason(&svc, "ForeignClass");
    assert!(weir.addresses(&svc).is_empty());
}

#[test]
fn s15_one_client_with_chosen_ports_cannot_break_the_spread() {
    if skip("s15") {
        return;
    }
    // The attacker knows the code but not the key: what it observed of one appliance tells nothing
    // about another.
    let lab = Lab::new();
    let count = 4_u16;
    let _pods: Vec<_> = (0..count)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let source: IpAddr = "10.1.0.2".parse().unwrap();
    let svc = service("hash")
        .tcp(80)
        .endpoints((0..count).map(pod_v4), 80);
    let weir = Weir::start(&lab);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let sample = move |ports: Vec<u16>| -> Vec<(u16, String)> {
        ports
            .into_iter()
            .filter_map(|port| {
                let mut stream = dial_from(source, port, vip).ok()?;
                let name = read_name(&mut stream).ok()?;
                reset(stream);
                Some((port, name))
            })
            .collect()
    };
    let first = lab.client.run(move || sample((20_000..20_300).collect()));
    let chosen: Vec<u16> = first
        .iter()
        .filter(|(_, name)| name == "0")
        .map(|(port, _)| *port)
        .collect();
    assert!(chosen.len() > 20, "{}", chosen.len());
    drop(weir);
    // A second appliance with a key of its own.
    let weir = Weir::start(&lab);
    assert_eq!(weir.serve(&svc)[0], vip.ip());
    let again = lab.client.run({
        let chosen = chosen.clone();
        move || sample(chosen)
    });
    let same = again.iter().filter(|(_, name)| name == "0").count();
    let share = same as f64 / again.len() as f64;
    println!(
        "of {} ports that all met one pod, {same} meet it under another key",
        again.len()
    );
    assert!(share < 0.6, "{share}");
    // The same key on both agrees on every one.
    let key = "--hash-key=000102030405060708090a0b0c0d0e0f";
    drop(weir);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let weir = Weir::prepare().pools().arg(key).launch(&lab.lb);
        assert_eq!(weir.serve(&svc)[0], vip.ip());
        answers.push(lab.client.run(move || sample((30_000..30_100).collect())));
    }
    assert_eq!(answers[0], answers[1]);
}
