use lb_core::balance::Algorithm;

use super::*;

/// What a slice of either family makes of `address`: its backends and the refusals.
fn offered(address: &str, rules: &Rules) -> (Vec<String>, Vec<Reason>) {
    let dual = Service {
        ip_families: vec![Family::V4, Family::V6],
        ..service()
    };
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for slice in [v4(vec![endpoint(address)]), v6(vec![endpoint(address)])] {
        let translation = run_with(&dual, vec![slice], rules);
        found.extend(backends(&translation, 0, Family::V4));
        refused.extend(
            translation
                .reasons
                .into_iter()
                .filter(|reason| reason.code() == "EndpointRefused"),
        );
    }
    (found, refused)
}

/// S1: externalIPs are not even parsed; status is output, and never asks for an address.
#[test]
fn s1_status_never_asks_for_an_address() {
    let mut hijack = service();
    hijack.stored.ingress = ["8.8.8.8", "192.0.2.1"]
        .map(|address| crate::object::Ingress {
            ip: Some(ip(address)),
            hostname: None,
            proxied: true,
            ports: Vec::new(),
        })
        .into();
    assert_eq!(run_healthy(&hijack), run_healthy(&service()));
}

/// S1: a wanted address is handed on exactly as asked, for the pools to judge, never widened.
#[test]
fn s1_a_wanted_address_is_only_a_request() {
    let hijack = Service {
        load_balancer_ip: Some("10.96.0.1".into()),
        ..service()
    };
    let translation = run_healthy(&hijack);
    let Addressing::Pools { requested, .. } = &served(&translation).addressing else {
        panic!("a wanted address never becomes a fixed one");
    };
    assert_eq!(requested, &[ip("10.96.0.1")]);
}

/// S2: every kind of forbidden address in every encoding.
#[test]
fn s2_forbidden_endpoints_in_every_encoding() {
    let rules = Rules {
        node_port_addresses: vec![ip("198.51.100.7")],
        pools: vec![
            (ip("192.0.2.16"), ip("192.0.2.31")),
            (ip("2001:db8:f::"), ip("2001:db8:f::ff")),
        ],
        own_addresses: vec![ip("198.51.100.9"), ip("2001:db8::9")],
        ..Rules::default()
    };
    let forbidden_v4 = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.254",
        "255.255.255.255",
        "192.0.2.16",
        "192.0.2.31",
        "198.51.100.7",
        "198.51.100.9",
    ];
    for text in forbidden_v4 {
        let [a, b, c, d] = text
            .parse::<std::net::Ipv4Addr>()
            .expect("an address")
            .octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        for encoded in [
            text.to_owned(),
            format!("{a:03}.{b:03}.{c:03}.{d:03}"),
            format!("::ffff:{text}"),
            format!("::FFFF:{high:04X}:{low:04x}"),
            format!("0:0:0:0:0:ffff:{high:x}:{low:x}"),
            format!("::{text}"),
            format!("::ffff:0:{text}"),
            format!("64:ff9b::{text}"),
            format!("64:ff9b:1::{text}"),
            format!(
                "64:ff9b:1:{high:x}:{:x}:{:x}::",
                u16::from(c),
                u16::from(d) << 8
            ),
            format!("2002:{high:x}:{low:x}::1"),
            format!("2001:0:1:2:3:4:{:x}:{:x}", !high, !low),
            format!("2001:db8:1::5efe:{text}"),
            format!("2001:db8:1::200:5efe:{text}"),
            // None of these is an address, so that nobody can read it as one.
            u32::from_be_bytes([a, b, c, d]).to_string(),
            format!("0x{a:02x}{b:02x}{c:02x}{d:02x}"),
            format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
            format!("{a}.{b}.{}", u16::from_be_bytes([c, d])),
            format!("{a}.{}", (u32::from(b) << 16) | u32::from(low)),
            format!("{text}%eth0"),
            format!("[{text}]"),
            format!(" {text}"),
            format!("{text}\0"),
            format!("{text}."),
            text.replace('.', "。"),
        ] {
            let (found, refused) = offered(&encoded, &rules);
            assert!(found.is_empty(), "{encoded} is dialled as {found:?}");
            assert_eq!(refused.len(), 2, "{encoded}");
        }
    }
    for text in [
        "::",
        "::1",
        "0:0:0:0:0:0:0:1",
        "fe80::1",
        "febf:ffff::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "FD20:CE::254",
        "fd00:42::42",
        "ff02::1",
        "ff0e::1",
        "2001:db8:f::",
        "2001:db8:f::ff",
        "2001:db8::9",
        "[::1]",
        "",
        "localhost",
        "metadata.google.internal",
    ] {
        let (found, refused) = offered(text, &rules);
        assert!(found.is_empty(), "{text} is dialled as {found:?}");
        assert_eq!(refused.len(), 2, "{text}");
    }
    // The neighbours are served, in their own family's slice only.
    for (text, address) in [
        ("1.0.0.0", "1.0.0.0:8080"),
        ("126.255.255.255", "126.255.255.255:8080"),
        ("128.0.0.1", "128.0.0.1:8080"),
        ("169.253.255.255", "169.253.255.255:8080"),
        ("192.0.2.15", "192.0.2.15:8080"),
        ("192.0.2.32", "192.0.2.32:8080"),
        ("0177.0.0.1", "177.0.0.1:8080"),
        ("::ffff:10.0.0.1", "10.0.0.1:8080"),
        ("64:ff9b::a00:1", "[64:ff9b::a00:1]:8080"),
        ("2001:db8:f::100", "[2001:db8:f::100]:8080"),
        ("fec0::1", "[fec0::1]:8080"),
        ("fd00:ec3::1", "[fd00:ec3::1]:8080"),
    ] {
        let (found, refused) = offered(text, &rules);
        assert_eq!(found, [address], "{text}");
        assert_eq!(
            refused.len(),
            1,
            "{text}: wrong in the other family's slice"
        );
        assert!(refused[0].to_string().contains("its EndpointSlice says"));
    }
}

#[test]
fn s2_settings_open_what_they_name_and_no_more() {
    let allow = |nets: &[&str]| Rules {
        allow_endpoints: nets
            .iter()
            .map(|net| net.parse().expect("a prefix"))
            .collect(),
        pools: vec![(ip("10.9.0.0"), ip("10.9.0.255"))],
        ..Rules::default()
    };
    for (nets, address, is_dialled) in [
        (&["127.0.0.0/8"][..], "127.0.0.1", true),
        (&["127.0.0.1/32"], "127.0.0.1", true),
        (&["127.0.0.1/32"], "127.0.0.2", false),
        (&["127.0.0.0/8"], "::1", false),
        (&["::1/128"], "::1", true),
        (&["127.0.0.0/8"], "::ffff:127.0.0.1", true),
        (&["127.0.0.0/8"], "64:ff9b::7f00:1", true),
        (&["169.254.0.0/16"], "169.254.1.1", true),
        // More special than what is allowed: stays refused.
        (&["169.254.0.0/16"], "169.254.169.254", false),
        (&["169.254.169.254/32"], "169.254.169.254", true),
        (&["169.254.169.254/32"], "169.254.169.253", false),
        (&["0.0.0.0/0", "::/0"], "127.0.0.1", false),
        (&["10.0.0.0/8"], "10.9.0.1", false),
        (&["10.9.0.0/24"], "10.9.0.1", true),
        (&["0.0.0.0/8"], "0.0.0.0", false),
        (&["::/128"], "::", false),
    ] {
        let (found, _) = offered(address, &allow(nets));
        assert_eq!(!found.is_empty(), is_dialled, "{nets:?} {address}");
    }
}

#[test]
fn s2_fqdn_slices_are_refused_with_a_reason() {
    let fqdn = slice(
        AddressType::Fqdn,
        vec![endpoint("pod.example.com"), endpoint("10.0.0.9")],
    );
    let translation = run(&service(), vec![fqdn, v4(vec![endpoint("10.0.0.1")])]);
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080"]);
    assert_eq!(codes(&translation), ["EndpointRefused", "EndpointRefused"]);
    assert!(translation.reasons[0].to_string().contains("FQDN"));
    assert_eq!(translation.endpoints.refused, 2);
}

#[test]
fn refused_endpoints_are_listed_up_to_a_few() {
    let many = (1..=20)
        .map(|last| endpoint(&format!("127.0.0.{last}")))
        .collect();
    let translation = run(&service(), vec![v4(many), v4(vec![endpoint("10.0.0.1")])]);
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080"]);
    assert_eq!(translation.endpoints.refused, 20);
    assert_eq!(codes(&translation).len(), 6);
    assert_eq!(
        translation.reasons.last(),
        Some(&Reason::MoreEndpointsRefused { count: 15 })
    );
}

/// S4: hostile annotation values end as a reason or as nothing, fit for a terminal and short.
#[test]
fn s4_annotations_of_every_wrong_kind() {
    let long = "9".repeat(200_000);
    let values = [
        "",
        " ",
        "null",
        "true",
        "-1",
        "[]",
        "{}",
        "\u{1b}[31m\u{202e}",
        "\0",
        "１２７.0.0.1",
        ",,,",
        "=",
        "a=",
        "=b",
        "%s%n",
        "../../etc/passwd",
        &long,
    ];
    for known in crate::annotations::TABLE {
        for value in values {
            let name = format!("{}{}", known.name, if known.prefix { "x" } else { "" });
            let translation = run_healthy(&annotated(&[(&name, value)]));
            for reason in &translation.reasons {
                let message = reason.to_string();
                assert!(message.len() < 1_000, "{name}: {} bytes", message.len());
                assert!(!message.chars().any(char::is_control), "{message:?}");
                assert!(!message.contains('\u{202e}'), "{message:?}");
            }
            assert!(
                translation.load_balancer.is_some() || !translation.reasons.is_empty(),
                "{name}={value:?}: refused in silence"
            );
        }
    }
}

/// S4: another class's annotations on a Service of ours do nothing unless they are aliases.
#[test]
fn s4_foreign_annotations_and_a_class_change() {
    let foreign = annotated(&[
        ("metallb.io/ip-allocated-from-pool", "x"),
        ("purelb.io/allocated-from", "x"),
        ("kube-vip.io/vipHost", "x"),
        ("io.cilium/unknown", "x"),
    ]);
    let plain = run_healthy(&service());
    assert_eq!(run_healthy(&foreign), plain);

    let mut changed = service();
    changed.class = Some("io.cilium/bgp-control-plane".into());
    let translation = run_healthy(&changed);
    assert!(
        translation.load_balancer.is_none(),
        "it is theirs from now on"
    );
    assert!(
        translation.reasons[0]
            .to_string()
            .contains("io.cilium/bgp-control-plane")
    );
}

#[test]
fn text_of_tenants_is_escaped_in_every_reason() {
    const EVIL: &str = "\u{1b}]0;owned\u{7}\n\u{202e}";
    let mut hostile = service();
    hostile.source_ranges = vec![EVIL.into()];
    hostile.ports = vec![port(EVIL, PortProtocol::Tcp, 80)];
    hostile.meta.annotations = [
        ("weir.dev/algorithm", EVIL),
        ("weir.dev/health-check-\u{1b}", "x"),
        ("weir.dev/\u{7}", "x"),
    ]
    .map(|(name, value)| (Arc::from(name), Arc::from(value)))
    .into();
    let mut translations = vec![run(
        &hostile,
        vec![v4(vec![endpoint(EVIL), endpoint("10.0.0.1")])],
    )];
    assert_eq!(
        translations[0].reasons.len(),
        6,
        "{:#?}",
        translations[0].reasons
    );
    assert!(served(&translations[0]).ports[0].name.is_ascii());
    hostile.load_balancer_ip = Some(EVIL.into());
    translations.push(run_healthy(&hostile));
    hostile.class = Some(EVIL.into());
    translations.push(run_healthy(&hostile));
    for reason in translations
        .iter()
        .flat_map(|translation| &translation.reasons)
    {
        let message = reason.to_string();
        assert!(message.is_ascii(), "{message:?}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}

/// Ports times endpoints are written in few: 100 KiB of manifest asked for 65,000,000 backends.
#[test]
fn ports_times_endpoints_have_an_end() {
    let mut bomb = service();
    bomb.ports = (1..=1_000)
        .map(|number| port("a", PortProtocol::Tcp, number))
        .collect();
    let endpoints = (0..1_000).map(|at| endpoint(&format!("10.1.{}.{}", at / 250, at % 250 + 1)));
    let mut slice = v4(endpoints.collect());
    slice.ports = (1..=65)
        .map(|number| slice_port(Some("a"), PortProtocol::Tcp, number))
        .collect();
    let refused = run(&bomb, vec![slice.clone()]);
    assert!(refused.load_balancer.is_none());
    let count = 65_000_000;
    let most = 262_144;
    assert_eq!(refused.reasons, [Reason::TooManyBackends { count, most }]);
    // What fits is served as before.
    bomb.ports.truncate(4);
    assert_eq!(served(&run(&bomb, vec![slice])).ports.len(), 4);
}

#[test]
fn maglev_tables_of_one_service_have_an_end() {
    let mut many = annotated(&[("weir.dev/algorithm", "maglev")]);
    many.ports = (1..=17)
        .map(|number| port("a", PortProtocol::Tcp, number))
        .collect();
    let slice = || {
        let mut slice = v4(vec![endpoint("10.0.0.1")]);
        slice.ports = vec![slice_port(Some("a"), PortProtocol::Tcp, 80)];
        slice
    };
    let translation = run(&many, vec![slice()]);
    assert_eq!(codes(&translation), ["MaglevTooManyPorts"]);
    assert_eq!(served(&translation).algorithm, Algorithm::Consistent);
    many.ports.truncate(16);
    let translation = run(&many, vec![slice()]);
    assert_eq!(codes(&translation), [""; 0]);
    assert_eq!(served(&translation).algorithm, Algorithm::Maglev);
}
