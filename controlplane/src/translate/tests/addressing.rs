use super::*;

fn pools(translation: &Translation) -> (Vec<Family>, bool, Vec<String>) {
    match &served(translation).addressing {
        Addressing::Pools {
            families,
            all,
            requested,
            ..
        } => (
            families.clone(),
            *all,
            requested.iter().map(IpAddr::to_string).collect(),
        ),
        fixed => panic!("{fixed:?}"),
    }
}

#[test]
fn ip_families_and_policy() {
    use Family::{V4, V6};
    use FamilyPolicy::{PreferDualStack as Prefer, RequireDualStack as Require, SingleStack};
    for (written, policy, wanted, expected, all) in [
        // As an API server writes them: one VIP per entry, in order.
        (&[V4][..], SingleStack, "", &[V4][..], false),
        (&[V6], SingleStack, "", &[V6], false),
        (&[V4, V6], Prefer, "", &[V4, V6], false),
        (&[V6, V4], Prefer, "", &[V6, V4], false),
        (&[V4], Prefer, "", &[V4], false),
        (&[V6, V4], Require, "", &[V6, V4], true),
        // As a person writes them.
        (&[V4, V6], SingleStack, "", &[V4, V6], true),
        (&[V6], Require, "", &[V6, V4], true),
        (&[V4, V4], SingleStack, "", &[V4], false),
        (&[], SingleStack, "", &[V4], false),
        (&[], Prefer, "", &[V4, V6], false),
        (&[], Require, "", &[V4, V6], true),
        (&[], SingleStack, "2001:db8::1", &[V6], false),
        (&[], SingleStack, "2001:db8::1,192.0.2.1", &[V4, V6], false),
        (&[], Prefer, "2001:db8::1", &[V6, V4], false),
    ] {
        let made = Service {
            ip_families: written.to_vec(),
            ip_family_policy: policy,
            ..annotated(&[("weir.dev/load-balancer-ips", wanted)])
        };
        let (families, every, _) = pools(&run_healthy(&made));
        assert_eq!(
            (&*families, every),
            (expected, all),
            "{written:?} {policy:?} {wanted}"
        );
    }
}

#[test]
fn without_ip_families_the_pools_decide_and_the_slices_do_not() {
    let bare = Service {
        ip_families: Vec::new(),
        ..service()
    };
    let pool = |text: &str| (ip(text), ip(text));
    for (ranges, expected) in [
        (vec![], Family::V4),
        (vec![pool("192.0.2.1")], Family::V4),
        (vec![pool("2001:db8::1")], Family::V6),
        (vec![pool("2001:db8::1"), pool("192.0.2.1")], Family::V4),
    ] {
        let rules = Rules {
            pools: ranges,
            ..Rules::default()
        };
        for slices in [vec![], vec![v6(vec![endpoint("2001:db8:1::1")])]] {
            assert_eq!(pools(&run_with(&bare, slices, &rules)).0, [expected]);
        }
    }
}

#[test]
fn wanted_addresses_annotation_before_aliases_before_the_field() {
    const OURS: &str = "weir.dev/load-balancer-ips";
    const METALLB: &str = "metallb.io/loadBalancerIPs";
    let both = vec![Family::V6, Family::V4];
    for (pairs, field, expected) in [
        (&[][..], None, Ok(&[][..])),
        (&[], Some(""), Ok(&[])),
        (&[], Some("192.0.2.1"), Ok(&["192.0.2.1"])),
        (&[], Some(" 192.0.2.1 "), Ok(&["192.0.2.1"])),
        (
            &[(OURS, "192.0.2.1, 2001:db8::1")],
            None,
            Ok(&["2001:db8::1", "192.0.2.1"]),
        ),
        (
            &[(OURS, "2001:db8::1,192.0.2.1,")],
            None,
            Ok(&["2001:db8::1", "192.0.2.1"]),
        ),
        (&[(OURS, "192.0.2.1,192.0.2.1")], None, Ok(&["192.0.2.1"])),
        (&[(OURS, " ")], Some("192.0.2.1"), Ok(&["192.0.2.1"])),
        (&[(METALLB, "192.0.2.1")], None, Ok(&["192.0.2.1"])),
        (
            &[("kube-vip.io/loadbalancerIPs", "192.0.2.1")],
            None,
            Ok(&["192.0.2.1"]),
        ),
        (
            &[("lbipam.cilium.io/ips", "192.0.2.1")],
            None,
            Ok(&["192.0.2.1"]),
        ),
        (
            &[("purelb.io/addresses", "192.0.2.1")],
            None,
            Ok(&["192.0.2.1"]),
        ),
        // Agreement is no conflict.
        (
            &[(OURS, "192.0.2.1,2001:db8::1")],
            Some("192.0.2.1"),
            Ok(&["2001:db8::1", "192.0.2.1"]),
        ),
        (
            &[(OURS, "192.0.2.1")],
            Some("192.000.002.001"),
            Ok(&["192.0.2.1"]),
        ),
        // Annotation and field disagree: nothing is allocated.
        (
            &[(OURS, "192.0.2.1")],
            Some("192.0.2.2"),
            Err("ConflictingRequest"),
        ),
        (
            &[(METALLB, "192.0.2.1")],
            Some("192.0.2.2"),
            Err("ConflictingRequest"),
        ),
        (
            &[(OURS, "2001:db8::1")],
            Some("192.0.2.2"),
            Err("ConflictingRequest"),
        ),
        // Legacy forms are decimal, and written back canonical.
        (&[], Some("010.0.0.1"), Ok(&["10.0.0.1"])),
        (&[], Some("::ffff:192.0.2.1"), Ok(&["192.0.2.1"])),
        (&[(OURS, "2001:DB8:0::0:1")], None, Ok(&["2001:db8::1"])),
        // What does not parse is never replaced by another address.
        (&[], Some("lb.example.com"), Err("BadAddressRequest")),
        (&[(OURS, "192.0.2.1/32")], None, Err("BadAddressRequest")),
        (
            &[(OURS, "192.0.2.1 192.0.2.2")],
            None,
            Err("BadAddressRequest"),
        ),
        (
            &[(OURS, "192.0.2.1,192.0.2.2")],
            None,
            Err("BadAddressRequest"),
        ),
        (&[(OURS, "2130706433")], None, Err("BadAddressRequest")),
    ] {
        let made = Service {
            ip_families: both.clone(),
            load_balancer_ip: field.map(Arc::from),
            ..annotated(pairs)
        };
        let slices = vec![
            v4(vec![endpoint("10.1.0.1")]),
            v6(vec![endpoint("2001:db8:1::1")]),
        ];
        let translation = run(&made, slices);
        match expected {
            Ok(addresses) => {
                assert_eq!(pools(&translation).2, addresses, "{pairs:?} {field:?}");
                assert!(translation.reasons.is_empty(), "{pairs:?} {field:?}");
            }
            Err(code) => {
                assert!(translation.load_balancer.is_none(), "{pairs:?} {field:?}");
                assert_eq!(codes(&translation), [code], "{pairs:?} {field:?}");
                assert_eq!(translation.reasons[0].severity(), Severity::Refused);
            }
        }
    }
}

#[test]
fn an_alias_that_says_otherwise_loses_and_is_named() {
    let translation = run_healthy(&annotated(&[
        ("weir.dev/load-balancer-ips", "192.0.2.1"),
        ("metallb.io/loadBalancerIPs", "192.0.2.2"),
        ("kube-vip.io/loadbalancerIPs", "192.0.2.1"),
    ]));
    assert_eq!(pools(&translation).2, ["192.0.2.1"]);
    assert_eq!(codes(&translation), ["AnnotationIgnored"]);
    assert!(
        translation.reasons[0]
            .to_string()
            .contains("metallb.io/loadBalancerIPs")
    );
}

#[test]
fn a_wanted_address_of_a_foreign_family_is_refused() {
    let translation = run_healthy(&annotated(&[(
        "weir.dev/load-balancer-ips",
        "192.0.2.1,2001:db8::1",
    )]));
    assert!(translation.load_balancer.is_none());
    assert_eq!(codes(&translation), ["RequestedFamily"]);
}

#[test]
fn pool_and_sharing_key_with_their_aliases() {
    for (pairs, expected) in [
        (&[][..], (None, None)),
        (
            &[
                ("weir.dev/address-pool", " gold "),
                ("weir.dev/allow-shared-ip", "k"),
            ],
            (Some("gold"), Some("k")),
        ),
        (
            &[
                ("metallb.io/address-pool", "m"),
                ("metallb.io/allow-shared-ip", "s"),
            ],
            (Some("m"), Some("s")),
        ),
        (
            &[
                ("metallb.universe.tf/address-pool", "m"),
                ("lbipam.cilium.io/sharing-key", "s"),
            ],
            (Some("m"), Some("s")),
        ),
        (
            &[
                ("purelb.io/service-group", "m"),
                ("purelb.io/allow-shared-ip", "s"),
            ],
            (Some("m"), Some("s")),
        ),
        (
            &[
                ("weir.dev/address-pool", ""),
                ("metallb.io/address-pool", "m"),
            ],
            (Some("m"), None),
        ),
    ] {
        let translation = run_healthy(&annotated(pairs));
        let Addressing::Pools { pool, sharing, .. } = &served(&translation).addressing else {
            panic!("addresses come from pools");
        };
        assert_eq!((pool.as_deref(), sharing.as_deref()), expected, "{pairs:?}");
        assert!(translation.reasons.is_empty());
    }
    let two = annotated(&[
        ("weir.dev/address-pool", "a"),
        ("purelb.io/service-group", "b"),
    ]);
    assert_eq!(codes(&run_healthy(&two)), ["AnnotationIgnored"]);
}
