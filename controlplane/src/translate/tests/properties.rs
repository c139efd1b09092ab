use proptest::collection::vec;
use proptest::option::of as maybe;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn protocol() -> impl Strategy<Value = PortProtocol> {
    select(vec![
        PortProtocol::Tcp,
        PortProtocol::Udp,
        PortProtocol::Sctp,
    ])
}

fn short(words: &'static [&'static str]) -> impl Strategy<Value = Arc<str>> {
    prop_oneof![9 => select(words).prop_map(Arc::from), 1 => ".{0,20}".prop_map(Arc::from)]
}

/// Few addresses, so that duplicates are common; good, forbidden and garbage.
fn address() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![
        8 => (0u8..6).prop_map(|last| format!("10.0.0.{last}").into()),
        4 => (0u8..6).prop_map(|last| format!("2001:db8:1::{last}").into()),
        2 => select(FORBIDDEN).prop_map(Arc::from),
        1 => any::<IpAddr>().prop_map(|address| address.to_string().into()),
        1 => ".{0,12}".prop_map(Arc::from),
    ]
}

const FORBIDDEN: &[&str] = &[
    "127.0.0.1",
    "::ffff:127.0.0.1",
    "::1",
    "169.254.169.254",
    "fe80::1",
    "192.0.2.1",
    "0.0.0.0",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
];

fn endpoints() -> impl Strategy<Value = Endpoint> {
    let condition = || maybe(any::<bool>());
    let zones = || vec(short(&["a", "b"]), 0..2);
    (
        address(),
        (condition(), condition(), condition()),
        maybe(short(&["n1", "n2"])),
        zones(),
        maybe(short(&["p1", "p2"])),
    )
        .prop_map(
            |(address, (ready, serving, terminating), node, for_zones, target)| Endpoint {
                address,
                ready,
                serving,
                terminating,
                node,
                zone: None,
                for_zones,
                for_nodes: Vec::new(),
                target,
            },
        )
}

const PORT_NAMES: &[&str] = &["", "http", "dns"];

fn slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
    let port = (
        maybe(short(PORT_NAMES)),
        protocol(),
        select(vec![0u16, 80, 8080, 65535]),
    )
        .prop_map(|(name, protocol, port)| slice_port(name.as_deref(), protocol, port));
    let kinds = select(vec![
        AddressType::V4,
        AddressType::V4,
        AddressType::V6,
        AddressType::Fqdn,
    ]);
    let one = (
        kinds,
        vec(port, 0..4),
        vec(endpoints(), 0..8),
        maybe(0i64..3),
    )
        .prop_map(|(kind, ports, endpoints, created)| {
            let mut slice = slice(kind, endpoints);
            slice.ports = ports;
            slice.meta.created = created;
            slice
        });
    vec(one, 0..5)
}

fn services() -> impl Strategy<Value = Service> {
    let annotation = select(crate::annotations::TABLE).prop_map(|known| known.name);
    let value = short(&[
        "192.0.2.1",
        "192.0.2.2,2001:db8::2",
        "true",
        "false",
        "v2",
        "maglev",
        "60",
        "x=y",
        "stickiness.enabled=true",
        "10.0.0.0/8",
    ]);
    let ports = vec(
        (short(PORT_NAMES), protocol(), select(vec![53u16, 80, 443])),
        0..5,
    );
    let families = vec(select(vec![Family::V4, Family::V6]), 0..3);
    let policies = select(vec![
        FamilyPolicy::SingleStack,
        FamilyPolicy::PreferDualStack,
        FamilyPolicy::RequireDualStack,
    ]);
    let kinds = select(vec![
        ServiceType::LoadBalancer,
        ServiceType::LoadBalancer,
        ServiceType::LoadBalancer,
        ServiceType::NodePort,
        ServiceType::ClusterIp,
    ]);
    (
        (kinds, ports, families, policies, any::<bool>()),
        proptest::collection::btree_map(annotation.prop_map(Arc::from), value, 0..3),
        maybe(short(&["192.0.2.1", "010.0.0.1"])),
        vec(short(&["10.0.0.0/8", "::/0", "bad"]), 0..3),
    )
        .prop_map(
            |((kind, ports, ip_families, policy, local), annotations, wanted, source_ranges)| {
                let mut made = Service {
                    kind,
                    ip_families,
                    ip_family_policy: policy,
                    load_balancer_ip: wanted,
                    source_ranges,
                    ports: ports
                        .into_iter()
                        .map(|(name, protocol, number)| ServicePort {
                            node_port: NonZeroU16::new(30_000 + number),
                            ..port(&name, protocol, number)
                        })
                        .collect(),
                    ..service()
                };
                if local {
                    made.external_traffic_policy = TrafficPolicy::Local;
                }
                made.meta.annotations = annotations;
                made
            },
        )
}

fn rules() -> Rules {
    Rules {
        zone: Some("a".into()),
        node_port_addresses: vec![ip("198.51.100.1")],
        pools: vec![(ip("192.0.2.0"), ip("192.0.2.255"))],
        ..Rules::default()
    }
}

/// A naive second opinion, by the standard library's predicates.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240
                || v4.octets()[..3] == [192, 0, 2]
                || v4.octets() == [198, 51, 100, 1]
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.segments()[0] & 0xffc0 == 0xfe80
                || address != address.to_canonical()
        }
    }
}

fn all_backends(translation: &Translation) -> Vec<Backend> {
    let ports = translation
        .load_balancer
        .iter()
        .flat_map(|made| &made.ports);
    ports
        .flat_map(|port| port.v4.iter().chain(&port.v6))
        .copied()
        .collect()
}

/// The states that one endpoint may have, from the words of discovery/v1.
fn may_be_used(endpoint: &Endpoint) -> bool {
    endpoint.ready != Some(false)
        || (endpoint.terminating == Some(true) && endpoint.serving != Some(false))
}

fn check(service: &Service, slices: &[EndpointSlice], translation: &Translation) {
    for backend in all_backends(translation) {
        assert!(!is_forbidden(backend.address.ip()), "{}", backend.address);
        assert_ne!(backend.address.port(), 0);
        let known = slices.iter().any(|slice| {
            slice
                .ports
                .iter()
                .any(|p| p.port.map(NonZeroU16::get) == Some(backend.address.port()))
                && slice.endpoints.iter().any(|e| {
                    may_be_used(e)
                        && super::super::address::parse(&e.address) == Some(backend.address.ip())
                })
        });
        assert!(known, "{} is in no slice", backend.address);
    }
    if let Some(made) = &translation.load_balancer {
        assert_eq!(made.key, service.meta.key);
        assert!(!made.ports.is_empty());
        let keys: Vec<_> = made.ports.iter().map(|p| (p.port, p.protocol)).collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{keys:?}");
        for port in &made.ports {
            for backends in [&port.v4, &port.v6] {
                assert!(
                    backends
                        .windows(2)
                        .all(|pair| pair[0].address < pair[1].address)
                );
                let active = backends.iter().any(|b| b.state == BackendState::Active);
                assert!(backends.is_empty() || active, "only draining backends");
            }
        }
        assert!(translation.reasons.iter().all(|reason| !matches!(
            reason,
            Reason::NotSupported { .. } | Reason::ConflictingRequest { .. }
        )));
    } else {
        let refused = |reason: &Reason| reason.severity() == Severity::Refused;
        assert!(
            translation.reasons.iter().any(refused),
            "refused in silence"
        );
    }
    assert!(translation.reasons.windows(2).all(|pair| pair[0] < pair[1]));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_object_breaks_it_or_gets_a_forbidden_address(
        service in services(),
        slices in slices(),
    ) {
        let translation = run_with(&service, slices.clone(), &rules());
        check(&service, &slices, &translation);
        prop_assert_eq!(run_with(&service, slices, &rules()), translation);
    }

    #[test]
    fn the_order_of_slices_endpoints_and_ports_does_not_matter(
        service in services(),
        (slices, shuffled) in slices().prop_flat_map(|slices| {
            let shuffled: Vec<_> = slices
                .iter()
                .map(|slice| {
                    let base = slice.clone();
                    (
                        Just(slice.endpoints.clone()).prop_shuffle(),
                        Just(slice.ports.clone()).prop_shuffle(),
                    )
                        .prop_map(move |(endpoints, ports)| EndpointSlice {
                            endpoints,
                            ports,
                            ..base.clone()
                        })
                })
                .collect();
            (Just(slices), shuffled).prop_flat_map(|(slices, shuffled)| {
                (Just(slices), Just(shuffled).prop_shuffle())
            })
        }),
    ) {
        let one = run_with(&service, slices, &rules());
        let other = run_with(&service, shuffled, &rules());
        prop_assert_eq!(one, other);
    }
}
