use super::*;

#[test]
fn type_only_load_balancer_is_served() {
    let make = |kind, headless| Service {
        kind,
        headless,
        ..service()
    };
    for (kind, headless, expected) in [
        (ServiceType::LoadBalancer, false, None),
        (ServiceType::ClusterIp, false, Some("type is ClusterIP")),
        (ServiceType::ClusterIp, true, Some("type is headless")),
        (
            ServiceType::ExternalName,
            false,
            Some("type is ExternalName"),
        ),
        (ServiceType::NodePort, false, Some("--node-port-address")),
        // Validation keeps these out of a cluster, not out of a file.
        (ServiceType::LoadBalancer, true, Some("type is headless")),
        (ServiceType::NodePort, true, Some("type is headless")),
    ] {
        let translation = run_healthy(&make(kind.clone(), headless));
        match expected {
            None => assert!(translation.load_balancer.is_some()),
            Some(text) => {
                assert!(translation.load_balancer.is_none(), "{kind:?}");
                assert_eq!(codes(&translation), ["NotALoadBalancer"]);
                assert_eq!(translation.reasons[0].severity(), Severity::Refused);
                let message = translation.reasons[0].to_string();
                assert!(message.contains(text), "{message}");
                // The counts are shown all the same.
                assert_eq!(translation.endpoints.ready, 1);
            }
        }
    }
}

/// A NodePort Service is fronted on request: as if it were a load balancer without a class.
#[test]
fn type_node_port_is_fronted_by_annotation_whatever_the_class() {
    let strict = Rules {
        default_provider: false,
        ..Rules::default()
    };
    for (value, is_served) in [("true", true), ("yes", true), ("false", false), ("", false)] {
        let mut asked = annotated(&[("weir.dev/front", value)]);
        asked.kind = ServiceType::NodePort;
        let slices = vec![v4(vec![endpoint("10.0.0.1")])];
        let translation = run_with(&asked, slices, &strict);
        assert_eq!(translation.load_balancer.is_some(), is_served, "{value:?}");
        if is_served {
            assert!(codes(&translation).is_empty());
            assert_eq!(served(&translation).ports[0].port.get(), 80);
        }
        asked.kind = ServiceType::ClusterIp;
        assert_eq!(run_healthy(&asked).load_balancer, None);
    }
}

#[test]
fn headless_label_is_refused_and_service_proxy_name_is_noted() {
    let mut labelled = service();
    let label = |name: &str| [(Arc::from(name), Arc::from(""))].into();
    labelled.meta.labels = label("service.kubernetes.io/headless");
    let translation = run_healthy(&labelled);
    assert!(translation.load_balancer.is_none());
    assert_eq!(codes(&translation), ["NotALoadBalancer"]);
    assert!(translation.reasons[0].to_string().contains("label"));

    labelled.meta.labels = label("service.kubernetes.io/service-proxy-name");
    let translation = run_healthy(&labelled);
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080"]);
    assert_eq!(codes(&translation), ["ForeignServiceProxy"]);
}

#[test]
fn load_balancer_class() {
    for (class, default_provider, is_served) in [
        (None, true, true),
        (None, false, false),
        (Some("weir.dev/l4"), true, true),
        (Some("weir.dev/l4"), false, true),
        (Some("metallb.io/metallb"), true, false),
        (Some("WEIR.dev/l4"), true, false),
        (Some(""), true, false),
    ] {
        let rules = Rules {
            default_provider,
            ..Rules::default()
        };
        let classed = Service {
            class: class.map(Arc::from),
            ..service()
        };
        let translation = run_with(&classed, vec![v4(vec![endpoint("10.0.0.1")])], &rules);
        assert_eq!(translation.load_balancer.is_some(), is_served, "{class:?}");
        let expected: &[&str] = if is_served { &[] } else { &["ForeignClass"] };
        assert_eq!(codes(&translation), expected, "{class:?}");
    }
}

#[test]
fn ignore_annotations() {
    for (pairs, ignored) in [
        (&[("weir.dev/ignore", "true")][..], true),
        (&[("weir.dev/ignore", "please")], true),
        (&[("weir.dev/ignore", "false")], false),
        (&[("kube-vip.io/ignore", "true")], true),
        (&[("kube-vip.io/ignore", "false")], false),
        (
            &[("weir.dev/ignore", "false"), ("kube-vip.io/ignore", "true")],
            false,
        ),
        (
            &[("weir.dev/ignore", ""), ("kube-vip.io/ignore", "true")],
            true,
        ),
    ] {
        let translation = run_healthy(&annotated(pairs));
        assert_eq!(translation.load_balancer.is_none(), ignored, "{pairs:?}");
        assert_eq!(codes(&translation) == ["Ignored"], ignored, "{pairs:?}");
    }
}

#[test]
fn a_service_on_its_way_out_is_not_served() {
    let mut leaving = service();
    leaving.meta.deleting = true;
    assert_eq!(codes(&run_healthy(&leaving)), ["Deleting"]);
}

#[test]
fn what_is_not_built_refuses_the_service_and_says_so() {
    const AWS: &str = "service.beta.kubernetes.io/aws-load-balancer-target-group-attributes";
    const AWS_PROXY: &str = "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol";
    for (pairs, what) in [
        (&[("weir.dev/proxy-protocol", "v2")][..], Some("PROXY")),
        (&[("weir.dev/proxy-protocol", "\u{1b}[2J")], Some("PROXY")),
        (&[("weir.dev/proxy-protocol", "none")], None),
        (&[(AWS_PROXY, "*")], Some("PROXY")),
        (
            &[("load-balancer.hetzner.cloud/uses-proxyprotocol", "true")],
            Some("PROXY"),
        ),
        (
            &[("load-balancer.hetzner.cloud/uses-proxyprotocol", "false")],
            None,
        ),
        (
            &[("loadbalancer.openstack.org/proxy-protocol", "v1")],
            Some("PROXY"),
        ),
        (
            &[(AWS, "a=b,proxy_protocol_v2.enabled = true")],
            Some("PROXY"),
        ),
        (
            &[("weir.dev/preserve-client-ip", "true")],
            Some("client's own address"),
        ),
        (&[("weir.dev/preserve-client-ip", "false")], None),
        (
            &[(AWS, "preserve_client_ip.enabled=true")],
            Some("client's own address"),
        ),
        (&[(AWS, "preserve_client_ip.enabled=false")], None),
        (&[("weir.dev/tls-secret", "cert")], Some("TLS")),
        (
            &[(
                "service.beta.kubernetes.io/aws-load-balancer-ssl-cert",
                "arn:x",
            )],
            Some("TLS"),
        ),
        (
            &[(
                "service.beta.kubernetes.io/aws-load-balancer-backend-protocol",
                "ssl",
            )],
            Some("TLS"),
        ),
        (
            &[(
                "service.beta.kubernetes.io/aws-load-balancer-backend-protocol",
                "tcp",
            )],
            None,
        ),
        // Ours overrides what a chart sets for somebody else.
        (
            &[("weir.dev/proxy-protocol", "none"), (AWS_PROXY, "*")],
            None,
        ),
        (
            &[
                ("weir.dev/preserve-client-ip", "no"),
                (AWS, "preserve_client_ip.enabled=true"),
            ],
            None,
        ),
    ] {
        let translation = run_healthy(&annotated(pairs));
        match what {
            Some(what) => {
                assert!(translation.load_balancer.is_none(), "{pairs:?}");
                assert_eq!(codes(&translation), ["NotSupported"], "{pairs:?}");
                let message = translation.reasons[0].to_string();
                assert!(message.starts_with("NotSupported: "), "{message}");
                assert!(message.contains(what), "{message}");
            }
            None => assert!(translation.load_balancer.is_some(), "{pairs:?}"),
        }
    }
}

#[test]
fn optional_wishes_are_noted_and_the_service_is_served() {
    for (name, value, code) in [
        ("weir.dev/drain-timeout", "30s", "AnnotationIgnored"),
        ("weir.dev/interface", "eth0", "AnnotationIgnored"),
        ("kube-vip.io/loadbalancerHostname", "x", "AnnotationIgnored"),
        (
            "weir.dev/load-balancer-ip",
            "192.0.2.1",
            "AnnotationIgnored",
        ),
    ] {
        let translation = run_healthy(&annotated(&[(name, value)]));
        assert!(translation.load_balancer.is_some(), "{name}");
        assert_eq!(codes(&translation), [code], "{name}");
        assert_eq!(translation.reasons[0].severity(), Severity::Note);
    }
    let slip = run_healthy(&annotated(&[("weir.dev/load-balancer-ip", "192.0.2.1")]));
    assert!(
        slip.reasons[0]
            .to_string()
            .contains("is weir.dev/load-balancer-ips meant?"),
        "{}",
        slip.reasons[0]
    );
    let written = annotated(&[("weir.dev/allocated-from", "default")]);
    assert!(run_healthy(&written).reasons.is_empty());
}

#[test]
fn ports_mixed_protocols_sctp_and_duplicates() {
    use PortProtocol::{Sctp, Tcp, Udp};
    let mixed = Service {
        ports: vec![
            port("dns-tcp", Tcp, 53),
            port("dns", Udp, 53),
            port("s", Sctp, 5060),
            port("again", Udp, 53),
            port("a", Tcp, 22),
        ],
        ..service()
    };
    let translation = run_healthy(&mixed);
    let ports: Vec<(u16, &str)> = served(&translation)
        .ports
        .iter()
        .map(|port| (port.port.get(), &*port.name))
        .collect();
    assert_eq!(ports, [(22, "a"), (53, "dns-tcp"), (53, "dns")]);
    assert_eq!(
        codes(&translation),
        ["PortProtocolNotSupported", "DuplicatePort"]
    );

    let sctp_only = Service {
        ports: vec![port("s", Sctp, 5060)],
        ..service()
    };
    let translation = run_healthy(&sctp_only);
    assert!(translation.load_balancer.is_none());
    assert_eq!(codes(&translation), ["NoPorts", "PortProtocolNotSupported"]);
}

#[test]
fn allocate_load_balancer_node_ports_false_simply_works() {
    let without = Service {
        allocate_node_ports: false,
        ..service()
    };
    assert_eq!(first_v4(&run_healthy(&without)), ["10.0.0.1:8080"]);
    assert_eq!(run_healthy(&without), run_healthy(&service()));
}

#[test]
fn node_port_services_are_fronted_at_the_given_addresses() {
    let rules = Rules {
        node_port_addresses: vec![ip("192.0.2.10"), ip("2001:db8::10")],
        ..Rules::default()
    };
    let mut node_port = Service {
        kind: ServiceType::NodePort,
        // Neither belongs to the type NodePort; a file may still say so.
        class: Some("other.example/x".into()),
        load_balancer_ip: Some("198.51.100.1".into()),
        ports: vec![
            port("", PortProtocol::Tcp, 80),
            port("no", PortProtocol::Tcp, 81),
        ],
        ..service()
    };
    node_port.ports[0].node_port = Some(number(30080));
    let slices = vec![v4(vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")])];
    let translation = run_with(&node_port, slices, &rules);
    let made = served(&translation);
    assert_eq!(
        made.addressing,
        Addressing::Fixed(rules.node_port_addresses)
    );
    assert_eq!(made.ports.len(), 1);
    assert_eq!(made.ports[0].port.get(), 30080);
    assert_eq!(first_v4(&translation), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(made.ports[0].v6, made.ports[0].v4);
    assert_eq!(codes(&translation), ["NoNodePort", "CrossFamily"]);
}

/// Semantics 4(a): another default provider is not fought. Who was here first is known by our finalizer.
#[test]
fn class_none_that_another_provider_serves_is_left_to_it() {
    let left = |mark, finalizer, class: Option<&str>| {
        let mut service = service();
        service.class = class.map(Arc::from);
        service.stored.finalizer = finalizer;
        service.stored.rival = Some(Rival {
            name: "cont\u{1b}roller".into(),
            mark,
        });
        let translation = run_healthy(&service);
        let reason = translation.reasons.first().map(ToString::to_string);
        reason.filter(|_| codes(&translation) == ["RivalProvider"])
    };
    for (mark, evidence) in [
        (Mark::Status, r#""cont\u{1b}roller" wrote status"#),
        (Mark::Cleanup, r#""cont\u{1b}roller" added the finalizer"#),
        (Mark::Finalizer, r#"finalizer "cont\u{1b}roller" is there"#),
    ] {
        let reason = left(mark, false, None).expect("left alone");
        assert!(reason.contains(evidence), "{reason}");
        assert_eq!(left(mark, true, None), None, "it was ours first");
        assert_eq!(left(mark, false, Some("weir.dev/l4")), None, "of our class");
    }
}
