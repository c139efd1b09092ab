//! Active health checks: what the annotations mean, and what becomes of endpoints that fail.

use std::time::Duration;

use super::*;
use crate::probe::{Answer, Ask, HealthCheck, MAX_OF_SERVICE, Target};

const AWS: &str = "service.beta.kubernetes.io/aws-load-balancer-healthcheck-";
const REFUSED: Answer = Answer::Refused;
const GOOD: Answer = Answer::Good(None);

/// `annotated` with names under `weir.dev/health-check-`, or under AWS's where they begin with `aws:`.
fn asking(pairs: &[(&str, &str)]) -> Service {
    let named = pairs.iter().map(|(name, value)| {
        let name = match name.strip_prefix("aws:") {
            Some(name) => format!("{AWS}{name}"),
            None => format!("weir.dev/health-check-{name}"),
        };
        (name, *value)
    });
    let named: Vec<_> = named.collect();
    let pairs: Vec<_> = named
        .iter()
        .map(|(name, value)| (&**name, *value))
        .collect();
    annotated(&pairs)
}

/// What a check of default/web's only endpoint asks, and at which port.
fn asked(pairs: &[(&str, &str)]) -> (Option<(u16, HealthCheck)>, Vec<&'static str>) {
    let found = run_healthy(&asking(pairs));
    let mut checks = found.checks.iter().map(|target| match target {
        Target::Endpoint(at, check) => (at.port(), (**check).clone()),
        other => panic!("{other:?}"),
    });
    let first = checks.next();
    assert_eq!(checks.next(), None, "{pairs:?}");
    (first, codes(&found))
}

fn http(path: &str) -> Ask {
    Ask::Http(path.into())
}

#[test]
fn which_annotations_ask_for_what() {
    const BAD: &[&str] = &["BadAnnotation"];
    const IGNORED: &[&str] = &["AnnotationIgnored"];
    let long = format!("/{}", "x".repeat(1_023));
    let longer = format!("{long}x");
    for (pairs, expected, said) in [
        (&[][..], None, &[][..]),
        (&[("protocol", "tcp")], Some(Ask::Tcp), &[]),
        (&[("protocol", " TCP ")], Some(Ask::Tcp), &[]),
        (&[("protocol", "http")], Some(http("/")), &[]),
        (
            &[("protocol", "HTTP"), ("path", "/a?b=c%20")],
            Some(http("/a?b=c%20")),
            &[],
        ),
        (&[("path", "/healthz")], Some(http("/healthz")), &[]),
        (&[("path", &long)], Some(http(&long)), &[]),
        (&[("port", "9000")], Some(Ask::Tcp), &[]),
        (&[("interval", "10s")], Some(Ask::Tcp), &[]),
        (&[("protocol", "")], None, &[]),
        (&[("protocol", "none"), ("path", "/")], None, &[]),
        (
            &[("protocol", "off"), ("aws:protocol", "http")],
            None,
            IGNORED,
        ),
        (&[("protocol", "https")], Some(Ask::Tcp), BAD),
        (&[("protocol", "https"), ("path", "/")], Some(Ask::Tcp), BAD),
        (&[("protocol", "grpc")], Some(Ask::Tcp), BAD),
        (
            &[("protocol", "grpc"), ("path", "/x")],
            Some(http("/x")),
            BAD,
        ),
        (
            &[("protocol", "tcp"), ("path", "/x")],
            Some(Ask::Tcp),
            IGNORED,
        ),
        (&[("path", "x")], Some(Ask::Tcp), BAD),
        (&[("path", "/a b")], Some(Ask::Tcp), BAD),
        (&[("path", "/\r\nHost: x")], Some(Ask::Tcp), BAD),
        (&[("path", "/é")], Some(Ask::Tcp), BAD),
        (&[("path", &longer)], Some(Ask::Tcp), BAD),
        (
            &[("protocol", "http"), ("path", "/a b")],
            Some(http("/")),
            BAD,
        ),
        // AWS: its path alone means nothing, and ours comes first.
        (
            &[("aws:protocol", "HTTP"), ("aws:path", "/x")],
            Some(http("/x")),
            &[],
        ),
        (&[("aws:path", "/x")], Some(Ask::Tcp), IGNORED),
        (&[("aws:interval", "30")], Some(Ask::Tcp), &[]),
        (
            &[("path", "/ours"), ("aws:path", "/x")],
            Some(http("/ours")),
            IGNORED,
        ),
        (&[("aws:success-codes", "200-299")], None, IGNORED),
        (
            &[("protocol", "tcp"), ("aws:success-codes", "200-399")],
            Some(Ask::Tcp),
            &[],
        ),
        (
            &[("protocol", "tcp"), ("aws:success-codes", "200")],
            Some(Ask::Tcp),
            IGNORED,
        ),
    ] {
        let (found, codes) = asked(pairs);
        assert_eq!(found.map(|(_, check)| check.ask), expected, "{pairs:?}");
        assert_eq!(codes, said, "{pairs:?}");
    }
}

#[test]
fn times_thresholds_and_ports_are_bounded() {
    const DEFAULT: (u16, u64, u64, u32, u32) = (8080, 5, 2, 2, 3);
    for (pairs, expected, bad) in [
        (&[("protocol", "tcp")][..], DEFAULT, false),
        (&[("port", "1")], (1, 5, 2, 2, 3), false),
        (&[("port", "65535")], (65535, 5, 2, 2, 3), false),
        (&[("port", "traffic-port")], DEFAULT, false),
        (&[("port", "0")], DEFAULT, true),
        (&[("port", "65536")], DEFAULT, true),
        (&[("port", "+80")], DEFAULT, true),
        (&[("port", "http")], DEFAULT, true),
        (&[("port", "０")], DEFAULT, true),
        (&[("interval", "1")], (8080, 1, 1, 2, 3), false),
        (&[("interval", "5m")], (8080, 300, 2, 2, 3), false),
        (&[("interval", "0s")], DEFAULT, true),
        (&[("interval", "301s")], DEFAULT, true),
        (&[("interval", "500ms")], DEFAULT, true),
        (&[("timeout", "5s")], (8080, 5, 5, 2, 3), false),
        (&[("timeout", "6s")], (8080, 5, 5, 2, 3), true),
        (
            &[("timeout", "60s"), ("interval", "60s")],
            (8080, 60, 60, 2, 3),
            false,
        ),
        (
            &[("timeout", "61s"), ("interval", "300s")],
            (8080, 300, 2, 2, 3),
            true,
        ),
        (&[("timeout", "0")], DEFAULT, true),
        (
            &[("healthy", "1"), ("unhealthy", "10")],
            (8080, 5, 2, 1, 10),
            false,
        ),
        (
            &[("healthy", "10"), ("unhealthy", "1")],
            (8080, 5, 2, 10, 1),
            false,
        ),
        (&[("healthy", "0")], DEFAULT, true),
        (&[("unhealthy", "11")], DEFAULT, true),
        (&[("unhealthy", "-1")], DEFAULT, true),
        (
            &[
                ("aws:port", "81"),
                ("aws:interval", "10"),
                ("aws:timeout", "6"),
                ("aws:healthy-threshold", "4"),
                ("aws:unhealthy-threshold", "5"),
            ],
            (81, 10, 6, 4, 5),
            false,
        ),
    ] {
        let (found, codes) = asked(pairs);
        let (port, check) = found.expect("it asks");
        let (port_wanted, interval, timeout, healthy, unhealthy) = expected;
        assert_eq!(port, port_wanted, "{pairs:?}");
        assert_eq!(check.interval, Duration::from_secs(interval), "{pairs:?}");
        assert_eq!(check.timeout, Duration::from_secs(timeout), "{pairs:?}");
        assert_eq!(
            (check.healthy, check.unhealthy),
            (healthy, unhealthy),
            "{pairs:?}"
        );
        assert_eq!(codes.contains(&"BadAnnotation"), bad, "{pairs:?} {codes:?}");
        assert_eq!(codes.len(), usize::from(bad), "{pairs:?} {codes:?}");
    }
}

/// default/web with a check, and what probes said of (address, port).
fn judged(
    service: &Service,
    slices: Vec<EndpointSlice>,
    verdicts: &[(&str, Answer)],
) -> Translation {
    let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
    let view = |health| View {
        nodes: NODES,
        verdicts: NONE,
        health,
    };
    let rules = Rules::default();
    let first = translate(service, &slices, view(NONE), &rules);
    let of = |target: &Target| match target {
        Target::Endpoint(at, _) => {
            let mut said = verdicts.iter();
            let found = said.find(|(address, _)| at.to_string() == *address)?;
            Some((target.clone(), found.1))
        }
        other => panic!("{other:?}"),
    };
    let health: Verdicts = first.checks.iter().filter_map(of).collect();
    assert_eq!(
        health.len(),
        verdicts.len(),
        "each is asked: {:?}",
        first.checks
    );
    let judged = translate(service, &slices, view(&health), &rules);
    assert_eq!(
        judged.checks, first.checks,
        "what is asked does not depend on answers"
    );
    judged
}

static NODES: &NodeSet = &NodeSet {
    known: false,
    targets: Vec::new(),
    out: crate::nodes::Out {
        excluded: 0,
        deselected: 0,
        unaddressed: 0,
    },
    refused: std::collections::BTreeSet::new(),
};
static NONE: &Verdicts = &Verdicts::new();

fn checked() -> Service {
    asking(&[("protocol", "tcp")])
}

#[test]
fn who_fails_is_out_who_was_not_asked_is_in_and_where_all_fail_all_are_in() {
    let (one, two, three) = ("10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080");
    let all = || v4(["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(endpoint).to_vec());
    let open = &["NoHealthyEndpoint"][..];
    let some = &["UnhealthyEndpoints"][..];
    for (verdicts, used, said, unhealthy) in [
        (&[][..], &[one, two, three][..], &[][..], 0),
        (&[(one, GOOD)], &[one, two, three], &[], 0),
        (&[(one, REFUSED)], &[two, three], some, 1),
        (&[(one, REFUSED), (two, Answer::Silent)], &[three], some, 2),
        (
            &[(one, REFUSED), (two, Answer::Status(500)), (three, GOOD)],
            &[three],
            some,
            2,
        ),
        (
            &[
                (one, REFUSED),
                (two, Answer::Status(500)),
                (three, Answer::Odd),
            ],
            &[one, two, three],
            open,
            3,
        ),
    ] {
        let found = judged(&checked(), vec![all()], verdicts);
        assert_eq!(first_v4(&found), used, "{verdicts:?}");
        assert_eq!(codes(&found), said, "{verdicts:?}");
        assert!(found.reasons.iter().all(|r| r.severity() == Severity::Note));
        assert_eq!(
            (found.endpoints.ready, found.endpoints.unhealthy),
            (3, unhealthy)
        );
    }
    let found = judged(
        &checked(),
        vec![all()],
        &[(one, Answer::Status(500)), (three, Answer::Silent)],
    );
    let text = found.reasons[0].to_string();
    let named = "10.0.0.1:8080 answers HTTP 500, 10.0.0.3:8080 does not answer";
    assert!(text.contains(named), "{text}");
}

#[test]
fn a_check_never_makes_usable_what_the_slices_do_not() {
    let slice = v4(vec![
        with("10.0.0.1", false, false, false),
        with("10.0.0.2", false, false, true),
        endpoint("10.0.0.3"),
        serving("10.0.0.4"),
    ]);
    // The first two are not even asked.
    let found = judged(
        &checked(),
        vec![slice.clone()],
        &[("10.0.0.3:8080", REFUSED)],
    );
    assert_eq!(found.checks.len(), 2);
    // Healthy ones that terminate and serve come before those that fail.
    assert_eq!(first_v4(&found), ["10.0.0.4:8080"]);
    assert_eq!(
        codes(&found),
        ["UnhealthyEndpoints", "OnlyTerminatingEndpoints"]
    );
    let both = [("10.0.0.3:8080", REFUSED), ("10.0.0.4:8080", REFUSED)];
    let found = judged(&checked(), vec![slice.clone()], &both);
    assert_eq!(
        first_v4(&found),
        ["10.0.0.3:8080", "10.0.0.4:8080 draining"]
    );
    assert_eq!(codes(&found), ["NoHealthyEndpoint"]);
    let found = judged(&checked(), vec![slice], &[("10.0.0.4:8080", REFUSED)]);
    assert_eq!(
        first_v4(&found),
        ["10.0.0.3:8080"],
        "its flows go elsewhere too"
    );
}

#[test]
fn each_port_stands_alone_and_the_other_family_comes_before_those_that_fail() {
    let mut service = checked();
    service.ports = vec![
        port("a", PortProtocol::Tcp, 80),
        port("b", PortProtocol::Tcp, 81),
    ];
    let mut slice = v4(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
    slice.ports = vec![
        slice_port(Some("a"), PortProtocol::Tcp, 8080),
        slice_port(Some("b"), PortProtocol::Tcp, 8081),
    ];
    let all = [
        ("10.0.0.1:8080", REFUSED),
        ("10.0.0.2:8080", REFUSED),
        ("10.0.0.1:8081", REFUSED),
    ];
    let found = judged(&service, vec![slice], &all);
    assert_eq!(first_v4(&found), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(backends(&found, 1, Family::V4), ["10.0.0.2:8081"]);
    assert_eq!(codes(&found), ["UnhealthyEndpoints", "NoHealthyEndpoint"]);
    assert_eq!(found.endpoints.unhealthy, 2, "once per address");

    let slices = vec![
        v4(vec![endpoint("10.0.0.1")]),
        v6(vec![endpoint("2001:db8:1::1")]),
    ];
    let found = judged(&checked(), slices.clone(), &[("10.0.0.1:8080", REFUSED)]);
    assert_eq!(first_v4(&found), ["[2001:db8:1::1]:8080"]);
    assert_eq!(codes(&found), ["UnhealthyEndpoints", "CrossFamily"]);
    let both = [
        ("10.0.0.1:8080", REFUSED),
        ("[2001:db8:1::1]:8080", REFUSED),
    ];
    assert_eq!(
        first_v4(&judged(&checked(), slices, &both)),
        ["10.0.0.1:8080"]
    );
}

#[test]
fn hints_are_judged_over_those_that_pass() {
    let hinted = |address: &str, zone: &str| Endpoint {
        for_zones: vec![zone.into()],
        ..endpoint(address)
    };
    let slices = [v4(vec![hinted("10.0.0.1", "a"), hinted("10.0.0.2", "b")])].map(Arc::new);
    let rules = Rules {
        zone: Some("a".into()),
        ..Rules::default()
    };
    let used = |health: &Verdicts| {
        let view = View {
            nodes: NODES,
            verdicts: NONE,
            health,
        };
        translate(&checked(), &slices, view, &rules)
    };
    let found = used(NONE);
    assert_eq!(first_v4(&found), ["10.0.0.1:8080"]);
    let failing = [(found.checks[0].clone(), REFUSED)].into();
    assert_eq!(first_v4(&used(&failing)), ["10.0.0.2:8080"]);
}

#[test]
fn udp_is_checked_at_a_port_that_is_named() {
    let udp = |pairs: &[(&str, &str)]| Service {
        ports: vec![port("", PortProtocol::Udp, 53)],
        ..asking(pairs)
    };
    let slice = || {
        let mut slice = v4(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]);
        slice.ports = vec![slice_port(Some(""), PortProtocol::Udp, 5353)];
        vec![slice]
    };
    let found = judged(&udp(&[("protocol", "tcp")]), slice(), &[]);
    assert!(found.checks.is_empty());
    assert_eq!(codes(&found), ["AnnotationIgnored"]);
    let found = judged(
        &udp(&[("port", "9000")]),
        slice(),
        &[("10.0.0.1:9000", REFUSED)],
    );
    assert_eq!(first_v4(&found), ["10.0.0.2:5353"]);
    assert_eq!(codes(&found), ["UnhealthyEndpoints"]);
}

#[test]
fn nodes_that_are_dialled_have_their_own_health() {
    let mut service = asking(&[("protocol", "http"), ("path", "/x")]);
    service
        .meta
        .annotations
        .insert("weir.dev/backends".into(), "nodes".into());
    service.ports[0].node_port = Some(number(30_080));
    let found = run(&service, vec![v4(vec![endpoint("10.0.0.1")])]);
    assert!(found.checks.is_empty());
    let ignored = codes(&found)
        .into_iter()
        .filter(|code| *code == "AnnotationIgnored");
    assert_eq!(ignored.count(), 2, "{:?}", found.reasons);
}

#[test]
fn a_service_has_so_many_checks_and_says_so() {
    let many = |count: u16| {
        let address = |n: u16| endpoint(&format!("10.0.{}.{}", n >> 8, n & 255));
        vec![v4((0..count).map(address).collect())]
    };
    let most = MAX_OF_SERVICE as u16;
    let found = run(&checked(), many(most));
    assert_eq!(
        (found.checks.len(), codes(&found)),
        (MAX_OF_SERVICE, vec![])
    );
    let found = run(&checked(), many(most + 3));
    assert_eq!(found.checks.len(), MAX_OF_SERVICE);
    let said = Reason::EndpointsNotChecked {
        count: 3,
        most: MAX_OF_SERVICE,
        of: "a Service",
    };
    assert_eq!(found.reasons, [said]);
    assert_eq!(served(&found).ports[0].v4.len(), MAX_OF_SERVICE + 3);
}
