use std::time::Duration;

use lb_core::balance::Algorithm;

use super::*;

#[test]
fn session_affinity_client_ip() {
    for (seconds, expected) in [
        (None, None),
        (Some(1), Some(1)),
        (Some(10_800), Some(10_800)),
        (Some(86_400), Some(86_400)),
        (Some(0), Some(1)),
        (Some(u64::MAX), Some(86_400)),
    ] {
        let sticky = Service {
            client_ip_affinity: seconds.map(Duration::from_secs),
            ..service()
        };
        let affinity = served(&run_healthy(&sticky)).affinity;
        assert_eq!(affinity, expected.map(Duration::from_secs));
    }
    const AWS: &str = "service.beta.kubernetes.io/aws-load-balancer-target-group-attributes";
    let aws = |value| served(&run_healthy(&annotated(&[(AWS, value)]))).affinity;
    assert_eq!(
        aws("stickiness.enabled=true,stickiness.type=source_ip"),
        Some(Duration::from_secs(10_800))
    );
    assert_eq!(aws("stickiness.enabled=false"), None);
    assert_eq!(aws("stickiness"), None);
}

#[test]
fn algorithm_and_idle_timeout() {
    const AWS_IDLE: &str = "service.beta.kubernetes.io/aws-load-balancer-connection-idle-timeout";
    const CILIUM: &str = "service.cilium.io/lb-algorithm";
    for (pairs, algorithm, idle, expected) in [
        (&[][..], Algorithm::Consistent, None, &[][..]),
        (
            &[("weir.dev/algorithm", "maglev")],
            Algorithm::Maglev,
            None,
            &[],
        ),
        (
            &[("weir.dev/algorithm", "consistent")],
            Algorithm::Consistent,
            None,
            &[],
        ),
        (
            &[("weir.dev/algorithm", "round-robin")],
            Algorithm::RoundRobin,
            None,
            &[],
        ),
        (
            &[("weir.dev/algorithm", " random ")],
            Algorithm::Random,
            None,
            &[],
        ),
        (
            &[("weir.dev/algorithm", "least-connections")],
            Algorithm::LeastConnections,
            None,
            &[],
        ),
        (
            &[("weir.dev/algorithm", "Maglev")],
            Algorithm::Consistent,
            None,
            &["BadAnnotation"],
        ),
        (&[(CILIUM, "random")], Algorithm::Random, None, &[]),
        (
            &[(CILIUM, "random"), ("weir.dev/algorithm", "maglev")],
            Algorithm::Maglev,
            None,
            &["AnnotationIgnored"],
        ),
        (
            &[("weir.dev/idle-timeout", "5m")],
            Algorithm::Consistent,
            Some(300),
            &[],
        ),
        (&[(AWS_IDLE, "350")], Algorithm::Consistent, Some(350), &[]),
        (
            &[("weir.dev/idle-timeout", "0")],
            Algorithm::Consistent,
            None,
            &["BadAnnotation"],
        ),
        (
            &[("weir.dev/idle-timeout", "1y")],
            Algorithm::Consistent,
            None,
            &["BadAnnotation"],
        ),
        (
            &[("weir.dev/idle-timeout", "169h")],
            Algorithm::Consistent,
            None,
            &["BadAnnotation"],
        ),
        (
            &[("weir.dev/idle-timeout", "soon"), (AWS_IDLE, "60")],
            Algorithm::Consistent,
            Some(60),
            &["BadAnnotation"],
        ),
    ] {
        let translation = run_healthy(&annotated(pairs));
        let made = served(&translation);
        assert_eq!(made.algorithm, algorithm, "{pairs:?}");
        assert_eq!(
            made.idle_timeout,
            idle.map(Duration::from_secs),
            "{pairs:?}"
        );
        assert_eq!(codes(&translation), expected, "{pairs:?}");
    }
}

/// S3: every form of source ranges, each on each kind of frontend.
#[test]
fn s3_source_ranges_fail_closed() {
    let dual = [Family::V4, Family::V6];
    let bad = &["BadSourceRange"][..];
    let (v4_denied, v6_denied) = (
        Reason::FamilyDenied { family: Family::V4 },
        Reason::FamilyDenied { family: Family::V6 },
    );
    for (field, legacy, expected, denied) in [
        // Empty allows all.
        (&[][..], None, None, &[][..]),
        (&[], Some(""), None, &[]),
        (&[], Some("  "), None, &[]),
        (&["0.0.0.0/0", "::/0"], None, Some("0.0.0.0/0 ::/0"), &[]),
        // A family without an entry is denied.
        (
            &["192.0.2.0/24"],
            None,
            Some("192.0.2.0/24"),
            std::slice::from_ref(&v6_denied),
        ),
        (
            &["0.0.0.0/0"],
            None,
            Some("0.0.0.0/0"),
            std::slice::from_ref(&v6_denied),
        ),
        (
            &["2001:db8::/32"],
            None,
            Some("2001:db8::/32"),
            std::slice::from_ref(&v4_denied),
        ),
        // Blanks are trimmed, host bits cleared, forms canonical, doubles dropped.
        (
            &[" 192.0.2.9/24\t", "192.0.2.0/24", "::/0"],
            None,
            Some("192.0.2.0/24 ::/0"),
            &[],
        ),
        (&["::ffff:192.0.2.0/120", "::/0"], None, Some(""), &[]),
        (&["010.0.0.0/8", "::/0"], None, Some("10.0.0.0/8 ::/0"), &[]),
        // The annotation only while the field is empty.
        (
            &[],
            Some("192.0.2.0/24, ::/0"),
            Some("192.0.2.0/24 ::/0"),
            &[],
        ),
        (
            &["10.0.0.0/8", "::/0"],
            Some("nonsense"),
            Some("10.0.0.0/8 ::/0"),
            &[],
        ),
        // One entry that is no CIDR denies everybody.
        (&["192.0.2.0/24", "nonsense"], None, Some(""), &[]),
        (&["192.0.2.0/33"], None, Some(""), &[]),
        (&["192.0.2.1"], None, Some(""), &[]),
        (&[""], None, Some(""), &[]),
        (&[" "], Some("0.0.0.0/0"), Some(""), &[]),
        (&["192.0.2.0/24,::/0"], None, Some(""), &[]),
        (&["0.0.0.0/-0"], None, Some(""), &[]),
        (&[], Some("192.0.2.0/24,"), Some(""), &[]),
        (&[], Some(","), Some(""), &[]),
        (&[], Some("*"), Some(""), &[]),
    ] {
        let mut ranged = Service {
            ip_families: dual.to_vec(),
            source_ranges: field.iter().map(|range| Arc::from(*range)).collect(),
            ports: vec![
                port("t", PortProtocol::Tcp, 53),
                port("u", PortProtocol::Udp, 53),
            ],
            ..service()
        };
        if let Some(list) = legacy {
            ranged.meta.annotations.insert(
                "service.beta.kubernetes.io/load-balancer-source-ranges".into(),
                list.into(),
            );
        }
        let mut as_node_port = Service {
            kind: ServiceType::NodePort,
            ..ranged.clone()
        };
        for (at, port) in as_node_port.ports.iter_mut().enumerate() {
            port.node_port = NonZeroU16::new(30000 + at as u16);
        }
        let rules = Rules {
            node_port_addresses: vec![ip("192.0.2.10"), ip("2001:db8::1")],
            ..Rules::default()
        };
        for kind in [ranged, as_node_port] {
            let mut ends = [
                v4(vec![endpoint("10.0.0.1")]),
                v6(vec![endpoint("2001:db8:1::1")]),
            ];
            for slice in &mut ends {
                slice.ports = vec![
                    slice_port(Some("t"), PortProtocol::Tcp, 5353),
                    slice_port(Some("u"), PortProtocol::Udp, 5353),
                ];
            }
            let translation = run_with(&kind, ends.to_vec(), &rules);
            let sources = served(&translation).sources.as_ref().map(|ranges| {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                ranges.join(" ")
            });
            assert_eq!(sources.as_deref(), expected, "{field:?} {legacy:?}");
            if expected == Some("") {
                assert_eq!(codes(&translation), bad, "{field:?} {legacy:?}");
            } else {
                assert_eq!(translation.reasons, denied, "{field:?} {legacy:?}");
            }
        }
    }
}

#[test]
fn a_family_without_a_vip_is_not_said_to_be_denied() {
    let ranged = Service {
        source_ranges: vec!["192.0.2.0/24".into()],
        ..service()
    };
    assert!(run_healthy(&ranged).reasons.is_empty());
}
