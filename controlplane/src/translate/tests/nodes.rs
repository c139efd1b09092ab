//! Node ports: which nodes take a Service's connections (semantics.md 3.1, 3.3).

use std::net::SocketAddr;

use super::*;
use crate::nodes::{NodeSet, Out, Target as Node};
use crate::probe::{Answer, Probe, Target, Verdicts};
use crate::translate::{Backends, View};

fn rules() -> Rules {
    Rules {
        backends: Backends::Nodes,
        ..Rules::default()
    }
}

/// default/web, at node port 30080.
fn web() -> Service {
    let mut service = service();
    service.ports[0].node_port = NonZeroU16::new(30_080);
    service
}

/// n1, n2, .. at 192.0.2.1, 192.0.2.2, ..
fn nodes(count: u8) -> NodeSet {
    let target = |n: u8| Node {
        name: format!("n{n}").into(),
        v4: Some(IpAddr::from([192, 0, 2, n])),
        v6: None,
        leaving: false,
    };
    NodeSet {
        known: true,
        targets: (1..=count).map(target).collect(),
        ..NodeSet::default()
    }
}

fn on(node: &str, endpoint: Endpoint) -> Endpoint {
    Endpoint {
        node: Some(node.into()),
        ..endpoint
    }
}

fn at(n: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], port))
}

fn proxy(n: u8, port: u16) -> Target {
    Target::Proxy(at(n, port))
}

fn ask(
    service: &Service,
    slices: Vec<EndpointSlice>,
    nodes: &NodeSet,
    verdicts: &[(Target, Answer)],
    rules: &Rules,
) -> Translation {
    let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().map(Arc::new).collect();
    let verdicts: Verdicts = verdicts.iter().cloned().collect();
    let view = View {
        nodes,
        verdicts: &verdicts,
        health: &Verdicts::new(),
    };
    translate(service, &slices, view, rules)
}

fn usual() -> Vec<EndpointSlice> {
    vec![v4(vec![on("n1", endpoint("10.0.0.1"))])]
}

/// "n" for node n that is active, "n draining", with "*w" behind its weight if that is not 1.
fn dialled(translation: &Translation) -> Vec<String> {
    let port = &served(translation).ports[0];
    let shown = port.v4.iter().map(|backend| {
        assert_eq!(backend.address.port(), 30_080);
        let IpAddr::V4(address) = backend.address.ip() else {
            panic!("IPv4");
        };
        let mut text = address.octets()[3].to_string();
        if backend.weight != 1 {
            text += &format!("*{}", backend.weight);
        }
        if backend.state == BackendState::Draining {
            text += " draining";
        }
        text
    });
    shown.collect()
}

fn asked(translation: &Translation) -> Vec<Target> {
    let probes = translation.probes.iter();
    probes.map(|Probe { target, .. }| target.clone()).collect()
}

const GOOD: Answer = Answer::Good(None);

/// externalTrafficPolicy Cluster: every eligible node, by kube-proxy's health at 10256.
#[test]
fn cluster_policy_by_the_health_of_kube_proxy() {
    let (service, nodes) = (web(), nodes(2));
    let of = |verdicts: &[(Target, Answer)]| ask(&service, usual(), &nodes, verdicts, &rules());
    let unknown = of(&[]);
    assert_eq!(dialled(&unknown), ["1", "2"]);
    assert_eq!(asked(&unknown), [proxy(1, 10_256), proxy(2, 10_256)]);
    assert!(codes(&unknown).is_empty());
    for (answer, port, expected) in [
        (GOOD, None, vec!["1", "2"]),
        // Of a Service's own health server, never of kube-proxy's.
        (Answer::Good(Some(9)), None, vec!["1", "2"]),
        (Answer::Draining, None, vec!["1", "2 draining"]),
        (Answer::Silent, None, vec!["1"]),
        (Answer::Silent, Some(Answer::Silent), vec!["1"]),
        (Answer::Silent, Some(GOOD), vec!["1", "2"]),
        (Answer::Refused, None, vec!["1", "2"]),
        (Answer::Refused, Some(GOOD), vec!["1", "2"]),
        (Answer::Refused, Some(Answer::Refused), vec!["1"]),
        (Answer::Refused, Some(Answer::Silent), vec!["1"]),
        (Answer::Odd, None, vec!["1", "2"]),
        (Answer::Odd, Some(Answer::Refused), vec!["1"]),
    ] {
        let mut verdicts = vec![(proxy(1, 10_256), GOOD), (proxy(2, 10_256), answer)];
        let fallback = Target::Port(at(2, 30_080));
        verdicts.extend(port.map(|port| (fallback.clone(), port)));
        let found = of(&verdicts);
        assert_eq!(dialled(&found), expected, "{answer:?} {port:?}");
        let falls_back = matches!(answer, Answer::Silent | Answer::Refused | Answer::Odd);
        assert_eq!(asked(&found).contains(&fallback), falls_back, "{answer:?}");
        assert!(codes(&found).is_empty());
    }
}

#[test]
fn a_udp_port_has_kube_proxys_word_alone() {
    let mut service = web();
    service.ports[0].protocol = PortProtocol::Udp;
    let mut slices = usual();
    slices[0].ports[0].protocol = PortProtocol::Udp;
    for (answer, expected) in [(Answer::Refused, vec!["1"]), (Answer::Silent, vec!["1"])] {
        // The only node: dialled in any case, and said so where it is silent.
        let found = ask(
            &service,
            slices.clone(),
            &nodes(1),
            &[(proxy(1, 10_256), answer)],
            &rules(),
        );
        assert_eq!(dialled(&found), expected);
        assert_eq!(asked(&found), [proxy(1, 10_256)], "nothing else to ask");
        let said = codes(&found) == ["NoHealthyNode"];
        assert_eq!(said, answer == Answer::Silent);
    }
}

/// All unhealthy: nothing is cut. Those that drain come before those that are silent.
#[test]
fn without_a_healthy_node_the_next_best_are_dialled() {
    let (service, nodes) = (web(), nodes(2));
    let of = |first, second| {
        let verdicts = [(proxy(1, 10_256), first), (proxy(2, 10_256), second)];
        ask(&service, usual(), &nodes, &verdicts, &rules())
    };
    let silent = of(Answer::Silent, Answer::Silent);
    assert_eq!(dialled(&silent), ["1", "2"]);
    assert_eq!(
        silent.reasons,
        [Reason::NoHealthyNode {
            draining: 0,
            silent: 2
        }]
    );
    let mixed = of(Answer::Draining, Answer::Silent);
    assert_eq!(dialled(&mixed), ["1"]);
    assert_eq!(
        mixed.reasons,
        [Reason::NoHealthyNode {
            draining: 1,
            silent: 1
        }]
    );
}

/// Autoscaler taint, deletionTimestamp: stop new, drain.
#[test]
fn a_node_that_leaves_drains() {
    let mut nodes = nodes(2);
    nodes.targets[0].leaving = true;
    let found = ask(&web(), usual(), &nodes, &[], &rules());
    assert_eq!(dialled(&found), ["1 draining", "2"]);
    let silent = [(proxy(1, 10_256), Answer::Silent)];
    let found = ask(&web(), usual(), &nodes, &silent, &rules());
    assert_eq!(dialled(&found), ["2"], "gone");
    nodes.targets[1].leaving = true;
    let found = ask(&web(), usual(), &nodes, &[], &rules());
    assert_eq!(dialled(&found), ["1", "2"], "there is nobody else");
}

fn local() -> Service {
    let mut service = web();
    service.external_traffic_policy = TrafficPolicy::Local;
    service.health_check_node_port = NonZeroU16::new(31_000);
    service
}

/// externalTrafficPolicy Local: only nodes with a local usable endpoint; 503 is drain and never kill.
#[test]
fn local_policy_by_the_slices_and_the_health_check_node_port() {
    let slices = || {
        vec![v4(vec![
            on("n1", endpoint("10.0.0.1")),
            on("n2", endpoint("10.0.0.2")),
            on("n3", serving("10.0.0.3")),
            on("n4", with("10.0.0.4", false, false, true)),
        ])]
    };
    let of = |verdicts: &[(Target, Answer)]| ask(&local(), slices(), &nodes(5), verdicts, &rules());
    let unknown = of(&[]);
    assert_eq!(dialled(&unknown), ["1", "2", "3 draining"]);
    assert_eq!(
        asked(&unknown),
        [1, 2, 3].map(|n| proxy(n, 31_000)),
        "nodes without an endpoint are not asked"
    );
    let draining = of(&[(proxy(1, 31_000), Answer::Draining)]);
    assert_eq!(dialled(&draining), ["1 draining", "2", "3 draining"]);
    let gone = of(&[(proxy(1, 31_000), Answer::Silent)]);
    assert_eq!(dialled(&gone), ["2", "3 draining"]);
    // Its health still says 200: the slices are ahead of it.
    let ahead = of(&[(proxy(3, 31_000), GOOD)]);
    assert_eq!(dialled(&ahead), ["1", "2", "3 draining"]);
    // No kube-proxy's health server: the node port itself.
    let refused = [
        (proxy(1, 31_000), Answer::Refused),
        (Target::Port(at(1, 30_080)), Answer::Refused),
    ];
    assert_eq!(dialled(&of(&refused)), ["2", "3 draining"]);
    assert_eq!(codes(&unknown), ["ClientAddressNotKept"]);
}

/// KEP-1669: 503 as soon as only terminating endpoints are left, while the node still forwards.
#[test]
fn local_policy_with_terminating_endpoints_alone() {
    let slices = vec![v4(vec![on("n2", serving("10.0.0.2"))])];
    let verdicts = [(proxy(2, 31_000), Answer::Draining)];
    let found = ask(&local(), slices, &nodes(3), &verdicts, &rules());
    assert_eq!(dialled(&found), ["2"]);
    assert!(codes(&found).contains(&"OnlyTerminatingEndpoints"));
}

/// X-Load-Balancing-Endpoint-Weight, if every node says one.
#[test]
fn local_policy_with_weights() {
    let slices = || {
        vec![v4(vec![
            on("n1", endpoint("10.0.0.1")),
            on("n2", endpoint("10.0.0.2")),
        ])]
    };
    let of = |second| {
        let verdicts = [
            (proxy(1, 31_000), Answer::Good(Some(3))),
            (proxy(2, 31_000), second),
        ];
        ask(&local(), slices(), &nodes(2), &verdicts, &rules())
    };
    assert_eq!(dialled(&of(Answer::Good(Some(1)))), ["1*3", "2"]);
    assert_eq!(dialled(&of(GOOD)), ["1", "2"], "one says none");
    assert_eq!(dialled(&of(Answer::Draining)), ["1*3", "2 draining"]);
}

/// Slices made by hand say no node: the nodes themselves say where endpoints are.
#[test]
fn local_policy_where_slices_say_no_node() {
    let of = |verdicts: &[(Target, Answer)]| {
        let slices = vec![v4(vec![endpoint("10.0.0.1")])];
        ask(&local(), slices, &nodes(2), verdicts, &rules())
    };
    let verdicts = [
        (proxy(1, 31_000), GOOD),
        (proxy(2, 31_000), Answer::Draining),
    ];
    assert_eq!(dialled(&of(&verdicts)), ["1", "2 draining"]);
    assert_eq!(dialled(&of(&verdicts[..1])), ["1", "2 draining"]);
    assert_eq!(dialled(&of(&[])), ["1", "2"], "nobody was asked yet");
}

#[test]
fn without_nodes_or_endpoints_the_port_is_closed_and_it_is_said_why() {
    let unknown = ask(&web(), usual(), &NodeSet::default(), &[], &rules());
    assert!(dialled(&unknown).is_empty());
    assert_eq!(codes(&unknown), ["NodesUnknown"]);
    let out = Out {
        excluded: 1,
        ..Out::default()
    };
    let none = NodeSet {
        known: true,
        out,
        ..NodeSet::default()
    };
    let none = ask(&web(), usual(), &none, &[], &rules());
    assert!(dialled(&none).is_empty());
    assert_eq!(none.reasons, [Reason::NoEligibleNode { out }]);
    let text = none.reasons[0].to_string();
    assert!(
        text.contains("1 kept out by the label") && text.contains("kubeadm"),
        "{text}"
    );
    let empty = ask(&web(), vec![], &nodes(2), &[], &rules());
    assert!(dialled(&empty).is_empty(), "kube-proxy refuses it too");
    assert_eq!(codes(&empty), ["NoUsableEndpoint"]);
    assert!(empty.probes.is_empty(), "nothing to know");
}

/// allocateLoadBalancerNodePorts=false: a 0 port needs a per-port error, not silence.
#[test]
fn a_port_without_node_port_is_not_served_and_the_others_are() {
    let mut service = web();
    let mut second = port("b", PortProtocol::Tcp, 81);
    service.ports.push(second.clone());
    let found = ask(&service, usual(), &nodes(1), &[], &rules());
    assert_eq!(served(&found).ports.len(), 1);
    assert!(codes(&found).contains(&"NoNodePort"));
    second.node_port = None;
    service.ports = vec![second];
    let found = ask(&service, usual(), &nodes(1), &[], &rules());
    assert_eq!(found.load_balancer, None);
    // Pods need none.
    let found = ask(&service, usual(), &nodes(1), &[], &Rules::default());
    assert!(found.load_balancer.is_some());
}

/// The trap of 3.1: kube-proxy sees one client.
#[test]
fn client_ip_affinity_at_node_ports_is_warned_of() {
    let mut service = web();
    service.client_ip_affinity = Some(std::time::Duration::from_secs(60));
    let found = ask(&service, usual(), &nodes(1), &[], &rules());
    assert_eq!(codes(&found), ["AffinityAtNodes"]);
    let found = ask(&service, usual(), &nodes(1), &[], &Rules::default());
    assert!(codes(&found).is_empty());
}

#[test]
fn the_annotation_decides_before_the_setting_and_foreign_service_proxies_before_both() {
    let mut service = web();
    let of = |service: &Service, rules: &Rules| {
        let found = ask(service, usual(), &nodes(1), &[], rules);
        let port = served(&found).ports[0].v4[0].address.port();
        (port == 30_080, codes(&found))
    };
    assert_eq!(of(&service, &rules()), (true, vec![]));
    let mut set = |value: &str| {
        let name = Arc::from("weir.dev/backends");
        service.meta.annotations.insert(name, value.into());
        service.clone()
    };
    assert_eq!(of(&set("pods"), &rules()), (false, vec![]));
    assert_eq!(of(&set(" nodes "), &Rules::default()), (true, vec![]));
    assert_eq!(
        of(&set("node"), &Rules::default()),
        (false, vec!["BadAnnotation"])
    );
    let mut foreign = set("nodes");
    let label = Arc::from("service.kubernetes.io/service-proxy-name");
    foreign.meta.labels.insert(label, "x".into());
    assert_eq!(of(&foreign, &rules()), (false, vec!["ForeignServiceProxy"]));
}

/// Each family at the nodes' address of it, and only where kube-proxy opens it.
#[test]
fn families_of_nodes_and_of_node_ports() {
    let mut service = web();
    service.ip_families = vec![Family::V4, Family::V6];
    service.ip_family_policy = FamilyPolicy::RequireDualStack;
    let mut nodes = nodes(2);
    nodes.targets[1].v6 = Some(ip("2001:db8::2"));
    let slices = || {
        let mut all = usual();
        let mut six = v6(vec![on("n1", endpoint("fd00::1"))]);
        six.meta = meta(Kind::EndpointSlice, "web-six");
        all.push(six);
        all
    };
    let found = ask(&service, slices(), &nodes, &[], &rules());
    assert_eq!(dialled(&found), ["1", "2"]);
    assert_eq!(backends(&found, 0, Family::V6), ["[2001:db8::2]:30080"]);
    service.ip_families = vec![Family::V6];
    service.ip_family_policy = FamilyPolicy::SingleStack;
    let found = ask(&service, slices(), &nodes, &[], &rules());
    assert_eq!(backends(&found, 0, Family::V6), ["[2001:db8::2]:30080"]);
}

fn auto() -> Rules {
    Rules {
        backends: Backends::Auto,
        ..Rules::default()
    }
}

fn pods_of(n: u8) -> Target {
    Target::Pods(SourceId(0), "".into(), format!("n{n}").into())
}

/// auto: pods, until the pods of a node that answers do not.
#[test]
fn auto_falls_back_where_a_node_answers_and_its_pods_do_not() {
    let slices = || {
        vec![v4(vec![
            on("n1", endpoint("10.0.0.1")),
            on("n2", endpoint("10.0.0.2")),
        ])]
    };
    let of = |verdicts: &[(Target, Answer)]| ask(&web(), slices(), &nodes(3), verdicts, &auto());
    let is_pods = |found: &Translation| served(found).ports[0].v4[0].address.port() == 8_080;
    let unknown = of(&[]);
    assert!(is_pods(&unknown));
    assert_eq!(
        asked(&unknown),
        [proxy(1, 10_256), proxy(2, 10_256), pods_of(1), pods_of(2)]
    );
    for (pods1, pods2, proxy2, expected) in [
        (GOOD, GOOD, GOOD, 0),
        (GOOD, Answer::Silent, GOOD, 1),
        (GOOD, Answer::Silent, Answer::Refused, 1),
        (GOOD, Answer::Silent, Answer::Draining, 1),
        // A dead node takes its pods with it.
        (GOOD, Answer::Silent, Answer::Silent, 0),
        // No way to any pod, whatever else is silent.
        (Answer::Silent, Answer::Silent, Answer::Silent, 2),
    ] {
        let verdicts = [
            (pods_of(1), pods1),
            (pods_of(2), pods2),
            (proxy(2, 10_256), proxy2),
        ];
        let found = of(&verdicts);
        assert_eq!(is_pods(&found), expected == 0, "{verdicts:?}");
        let said = Reason::PodsUnreachable { nodes: expected };
        assert_eq!(found.reasons.contains(&said), expected > 0, "{verdicts:?}");
        if expected > 0 {
            assert!(asked(&found).contains(&pods_of(1)), "asked on, to return");
        }
    }
}

#[test]
fn auto_of_udp_ports_follows_what_others_found_and_asks_nothing() {
    let mut service = web();
    service.ports[0].protocol = PortProtocol::Udp;
    let of = |answer| {
        let mut slices = usual();
        slices[0].ports[0].protocol = PortProtocol::Udp;
        let verdicts = [(pods_of(1), answer), (proxy(1, 10_256), GOOD)];
        ask(&service, slices, &nodes(1), &verdicts, &auto())
    };
    let found = of(GOOD);
    assert_eq!(served(&found).ports[0].v4[0].address.port(), 8_080);
    assert!(!asked(&found).contains(&pods_of(1)));
    assert_eq!(dialled(&of(Answer::Silent)), ["1"]);
}

#[test]
fn auto_that_cannot_fall_back_says_why() {
    let verdicts = [(pods_of(1), Answer::Silent)];
    let mut service = web();
    let unknown = ask(&service, usual(), &NodeSet::default(), &verdicts, &auto());
    assert_eq!(codes(&unknown), ["NoFallback"]);
    service.ports[0].node_port = None;
    let without = ask(&service, usual(), &nodes(1), &verdicts, &auto());
    assert_eq!(codes(&without), ["NoFallback"]);
    assert!(without.reasons[0].to_string().contains("nodePort"));
    assert_eq!(served(&without).ports[0].v4.len(), 1, "pods are dialled on");
}
