use super::*;

#[test]
fn ports_come_from_the_slice_by_name_and_protocol() {
    use PortProtocol::{Tcp, Udp};
    for (name, listed, expected) in [
        ("", slice_port(Some(""), Tcp, 8080), Some("10.0.0.1:8080")),
        (
            "http",
            slice_port(Some("http"), Tcp, 9090),
            Some("10.0.0.1:9090"),
        ),
        // nil matches nothing, not even "".
        ("", slice_port(None, Tcp, 8080), None),
        ("http", slice_port(None, Tcp, 8080), None),
        ("http", slice_port(Some(""), Tcp, 8080), None),
        ("", slice_port(Some("http"), Tcp, 80), None),
        ("http", slice_port(Some("http"), Udp, 8080), None),
        // nil and 0 are no numbers.
        ("http", slice_port(Some("http"), Tcp, 0), None),
    ] {
        let named = Service {
            ports: vec![port(name, Tcp, 80)],
            ..service()
        };
        let mut one = v4(vec![endpoint("10.0.0.1")]);
        one.ports = vec![listed.clone()];
        let translation = run(&named, vec![one]);
        assert_eq!(
            first_v4(&translation),
            Vec::from_iter(expected),
            "{name} {listed:?}"
        );
        let codes = codes(&translation);
        let mismatch: &[&str] = if expected.is_some() {
            &[]
        } else {
            &["PortNameMismatch"]
        };
        assert_eq!(codes, mismatch, "{name} {listed:?}");
    }
}

#[test]
fn one_name_may_have_different_numbers_in_different_slices() {
    let mut other = v4(vec![endpoint("10.0.0.2"), endpoint("10.0.0.1")]);
    other.ports[0].port = Some(number(9090));
    let translation = run(&service(), vec![v4(vec![endpoint("10.0.0.1")]), other]);
    assert_eq!(
        first_v4(&translation),
        ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]
    );
    assert_eq!(translation.endpoints.ready, 2, "counted once per address");
}

#[test]
fn slices_of_other_services_and_namespaces_are_left_out() {
    let mut elsewhere = v4(vec![endpoint("10.0.0.2")]);
    elsewhere.meta.key.namespace = "other".into();
    let mut unlabelled = v4(vec![endpoint("10.0.0.3")]);
    unlabelled.service = None;
    let mut source = v4(vec![endpoint("10.0.0.4")]);
    source.meta.key.source = SourceId(1);
    let slices = vec![
        v4(vec![endpoint("10.0.0.1")]),
        elsewhere,
        unlabelled,
        source,
    ];
    assert_eq!(first_v4(&run(&service(), slices)), ["10.0.0.1:8080"]);
}

#[test]
fn conditions_and_their_nil_rules() {
    let (yes, no) = (Some(true), Some(false));
    // (ready, serving, terminating), then what becomes of it alone and beside a ready one.
    for (conditions, alone, beside) in [
        ((None, None, None), "active", "active"),
        ((yes, None, None), "active", "active"),
        ((yes, yes, no), "active", "active"),
        // publishNotReadyAddresses: ready says everything.
        ((yes, yes, yes), "active", "active"),
        ((yes, no, yes), "active", "active"),
        ((None, no, yes), "active", "active"),
        ((no, None, None), "none", "none"),
        ((no, yes, no), "none", "none"),
        ((no, yes, None), "none", "none"),
        ((no, yes, yes), "active", "draining"),
        ((no, None, yes), "active", "draining"),
        ((no, no, yes), "none", "none"),
    ] {
        let (ready, serving, terminating) = conditions;
        let judged = Endpoint {
            ready,
            serving,
            terminating,
            ..endpoint("10.0.0.2")
        };
        let of = |translation: &Translation| {
            let backends = first_v4(translation);
            let found = backends.iter().find(|b| b.starts_with("10.0.0.2"));
            match found.map(|b| b.ends_with("draining")) {
                None => "none",
                Some(false) => "active",
                Some(true) => "draining",
            }
        };
        let translation = run(&service(), vec![v4(vec![judged.clone()])]);
        assert_eq!(of(&translation), alone, "{conditions:?}");
        if alone == "none" {
            assert_eq!(codes(&translation), ["NoUsableEndpoint"], "{conditions:?}");
        }
        let translation = run(&service(), vec![v4(vec![judged, endpoint("10.0.0.1")])]);
        assert_eq!(of(&translation), beside, "{conditions:?}");
        assert!(translation.reasons.is_empty(), "{conditions:?}");
    }
}

#[test]
fn terminating_fallback_only_while_none_is_ready() {
    let translation = run(
        &service(),
        vec![v4(vec![
            serving("10.0.0.1"),
            serving("10.0.0.2"),
            with("10.0.0.3", false, false, true),
            with("10.0.0.4", false, true, false),
        ])],
    );
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(
        translation.reasons,
        [Reason::OnlyTerminatingEndpoints { serving: 2 }]
    );
    let counts = translation.endpoints;
    assert_eq!(
        (
            counts.ready,
            counts.serving,
            counts.terminating,
            counts.not_ready,
            counts.refused
        ),
        (0, 2, 1, 1, 0)
    );
}

#[test]
fn no_usable_endpoint_is_a_closed_port_with_a_reason() {
    for slices in [vec![], vec![v4(vec![])]] {
        let translation = run(&service(), slices);
        assert_eq!(first_v4(&translation), [""; 0]);
        assert_eq!(codes(&translation), ["NoUsableEndpoint"]);
        assert_eq!(translation.reasons[0].severity(), Severity::Pending);
    }
    // The controller's placeholder: a slice without ports while there is no pod.
    let mut placeholder = v4(vec![]);
    placeholder.ports.clear();
    assert_eq!(
        codes(&run(&service(), vec![placeholder])),
        ["NoUsableEndpoint"]
    );
}

#[test]
fn hints_for_zones() {
    let in_zone = |address: &str, zones: &[&str]| Endpoint {
        for_zones: zones.iter().map(|zone| Arc::from(*zone)).collect(),
        ..endpoint(address)
    };
    let a = || in_zone("10.0.0.1", &["a"]);
    let b = || in_zone("10.0.0.2", &["b"]);
    let ab = || in_zone("10.0.0.3", &["b", "a"]);
    let none = || endpoint("10.0.0.4");
    let unready = || Endpoint {
        ready: Some(false),
        ..endpoint("10.0.0.5")
    };
    let node = || Endpoint {
        for_nodes: vec!["weir".into()],
        ..b()
    };
    let all = "1 2 3";
    for (zone, local, endpoints, expected) in [
        (Some("a"), false, vec![a(), b(), ab()], "1 3"),
        (Some("b"), false, vec![a(), b(), ab()], "2 3"),
        (None, false, vec![a(), b(), ab()], all),
        (Some("c"), false, vec![a(), b(), ab()], all),
        (Some("a"), true, vec![a(), b(), ab()], all),
        (Some("a"), false, vec![a(), b(), none()], "1 2 4"),
        // Hints are judged over ready endpoints only.
        (Some("a"), false, vec![a(), b(), unready()], "1"),
        // Hints for nodes never match outside the cluster; those for zones follow.
        (Some("a"), false, vec![a(), node()], "1"),
        (Some("c"), false, vec![node()], "2"),
    ] {
        let rules = Rules {
            zone: zone.map(Arc::from),
            ..Rules::default()
        };
        let hinted = Service {
            external_traffic_policy: if local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            },
            ..service()
        };
        let translation = run_with(&hinted, vec![v4(endpoints)], &rules);
        let expected: Vec<String> = expected
            .split(' ')
            .map(|last| format!("10.0.0.{last}:8080"))
            .collect();
        assert_eq!(first_v4(&translation), expected, "{zone:?} {local}");
    }
    // Terminating endpoints keep their flows whatever their zone.
    let rules = Rules {
        zone: Some("a".into()),
        ..Rules::default()
    };
    let leaving = Endpoint {
        for_zones: vec!["b".into()],
        ..serving("10.0.0.9")
    };
    let translation = run_with(&service(), vec![v4(vec![a(), b(), leaving])], &rules);
    assert_eq!(
        first_v4(&translation),
        ["10.0.0.1:8080", "10.0.0.9:8080 draining"]
    );
}

#[test]
fn external_traffic_policy_local_is_served_and_says_what_it_cannot_keep() {
    let local = Service {
        external_traffic_policy: TrafficPolicy::Local,
        ..service()
    };
    let translation = run_healthy(&local);
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080"]);
    assert_eq!(codes(&translation), ["ClientAddressNotKept"]);
}

#[test]
fn a_vip_crosses_families_only_while_its_own_has_none_usable() {
    const V4: &str = "10.0.0.1";
    const V6: &str = "2001:db8:1::1";
    let dual = Service {
        ip_families: vec![Family::V4, Family::V6],
        ..service()
    };
    let unready = |address| with(address, false, true, false);
    for (four, six, for_v4, for_v6, expected) in [
        (vec![endpoint(V4)], vec![endpoint(V6)], V4, V6, &[][..]),
        (vec![endpoint(V4)], vec![], V4, V4, &["CrossFamily"]),
        (vec![], vec![endpoint(V6)], V6, V6, &["CrossFamily"]),
        (
            vec![endpoint(V4)],
            vec![unready(V6)],
            V4,
            V4,
            &["CrossFamily"],
        ),
        // Terminating and serving is usable: no need to cross.
        (
            vec![endpoint(V4)],
            vec![serving(V6)],
            V4,
            V6,
            &["OnlyTerminatingEndpoints"],
        ),
        (vec![], vec![], "", "", &["NoUsableEndpoint"]),
    ] {
        let translation = run(&dual, vec![v4(four), v6(six)]);
        for (family, expected) in [(Family::V4, for_v4), (Family::V6, for_v6)] {
            let found = backends(&translation, 0, family);
            assert_eq!(found.len(), usize::from(!expected.is_empty()));
            assert!(found.iter().all(|b| b.contains(expected)), "{found:?}");
        }
        assert_eq!(codes(&translation), expected);
    }
    // A family without a VIP has no backends.
    let translation = run(
        &service(),
        vec![v4(vec![endpoint(V4)]), v6(vec![endpoint(V6)])],
    );
    assert!(served(&translation).ports[0].v6.is_empty());
    assert!(translation.reasons.is_empty());
}

/// K7: duplicates over slices, endpoints that move, addresses that change hands.
#[test]
fn k7_duplicates_are_one_and_the_right_one() {
    let pod = |endpoint: Endpoint, target: &str| Endpoint {
        target: Some(target.into()),
        ..endpoint
    };
    let at = |created: i64, endpoints| {
        let mut slice = v4(endpoints);
        slice.meta.created = Some(created);
        slice
    };
    const IP: &str = "10.0.0.1";
    let unready = || with(IP, false, true, false);
    let gone = || with(IP, false, false, true);
    let active: &[&str] = &["10.0.0.1:8080"];
    for (what, slices, expected) in [
        (
            "twice the same",
            vec![v4(vec![endpoint(IP)]), v4(vec![endpoint(IP)])],
            active,
        ),
        (
            "same pod: the newest slice counts, not ready",
            vec![
                at(1, vec![pod(endpoint(IP), "a")]),
                at(2, vec![pod(unready(), "a")]),
            ],
            &[],
        ),
        (
            "same pod: the newest slice counts, ready",
            vec![
                at(1, vec![pod(gone(), "a")]),
                at(2, vec![pod(endpoint(IP), "a")]),
            ],
            active,
        ),
        (
            "other pod: ready wins over terminating, though older",
            vec![
                at(2, vec![pod(serving(IP), "b")]),
                at(1, vec![pod(endpoint(IP), "a")]),
            ],
            active,
        ),
        (
            "other pod: ready wins over gone, whatever their names",
            vec![
                at(2, vec![pod(gone(), "a")]),
                at(1, vec![pod(endpoint(IP), "b")]),
            ],
            active,
        ),
        (
            "other pod: serving wins over not ready",
            vec![
                at(2, vec![pod(unready(), "b")]),
                at(1, vec![pod(serving(IP), "a")]),
            ],
            active,
        ),
        (
            "a pod's stale ready copy does not win by being of another pod",
            vec![
                at(1, vec![pod(endpoint(IP), "a")]),
                at(2, vec![pod(gone(), "a")]),
                at(1, vec![pod(unready(), "b")]),
            ],
            &[],
        ),
        (
            "a slice with an age is newer than one without",
            vec![
                v4(vec![pod(endpoint(IP), "a")]),
                at(1, vec![pod(gone(), "a")]),
            ],
            &[],
        ),
    ] {
        for slices in [slices.clone(), slices.into_iter().rev().collect()] {
            let translation = run(&service(), slices);
            assert_eq!(first_v4(&translation), expected, "{what}");
        }
    }
}

#[test]
fn of_equal_copies_the_one_with_node_information_counts() {
    let rules = Rules {
        zone: Some("a".into()),
        ..Rules::default()
    };
    let bare = || endpoint("10.0.0.1");
    let hinted = || Endpoint {
        node: Some("n1".into()),
        for_zones: vec!["b".into()],
        ..endpoint("10.0.0.1")
    };
    let ours = || Endpoint {
        for_zones: vec!["a".into()],
        ..endpoint("10.0.0.2")
    };
    // The copy with a node has a hint for another zone: only if it counts are hints followed.
    for first in [
        vec![bare(), hinted(), ours()],
        vec![hinted(), bare(), ours()],
    ] {
        let translation = run_with(&service(), vec![v4(first)], &rules);
        assert_eq!(first_v4(&translation), ["10.0.0.2:8080"]);
    }
}
