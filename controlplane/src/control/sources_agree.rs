//! The same objects by way of a directory and by way of an API server are the same table, under the same
//! class, zone and pools: a property over generated objects, odd and broken ones among them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use lb_core::balance::HashKey;
use lb_core::table::{Frontend, FrontendKey};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::line::Line;
use crate::allocate::{Allocator, Pools, Record};
use crate::compile::{Compiler, Defaults};
use crate::object::{Event, Kind, Object, SourceId};
use crate::source::file::File;
use crate::source::kubernetes::objects_of_a_list;
use crate::source::parse::Reader;
use crate::translate::Rules;

const SOURCE: SourceId = SourceId(0);
const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];
const PORTS: &str =
    r#"[{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]"#;

/// What a field of a Service may be, by its place. The first is the most likely.
const SERVICE: &[(&str, &[&str])] = &[
    (
        "/spec/type",
        &[
            r#""LoadBalancer""#,
            r#""LoadBalancer""#,
            r#""NodePort""#,
            r#""ExternalName""#,
            "7",
        ],
    ),
    (
        "/spec/loadBalancerClass",
        &[r#""weir.dev/l4""#, r#""other.example/lb""#, "null"],
    ),
    (
        "/spec/loadBalancerIP",
        &[
            r#""10.9.0.3""#,
            r#""192.0.2.1""#,
            r#""""#,
            r#""no address""#,
        ],
    ),
    (
        "/spec/externalTrafficPolicy",
        &[r#""Cluster""#, r#""Local""#, r#""Elsewhere""#],
    ),
    ("/spec/sessionAffinity", &[r#""ClientIP""#, r#""None""#]),
    (
        "/spec/sessionAffinityConfig",
        &[
            r#"{"clientIP": {"timeoutSeconds": 5}}"#,
            r#"{"clientIP": null}"#,
            r#"{"clientIP": {"timeoutSeconds": 0}}"#,
        ],
    ),
    (
        "/spec/ipFamilies",
        &[r#"["IPv4"]"#, r#"["IPv6", "IPv4"]"#, r#"["IPv5"]"#],
    ),
    (
        "/spec/ipFamilyPolicy",
        &[
            r#""PreferDualStack""#,
            r#""RequireDualStack""#,
            r#""SingleStack""#,
        ],
    ),
    (
        "/spec/loadBalancerSourceRanges",
        &[r#"["10.0.0.0/8", " fd00::/8 "]"#, r#"["everybody"]"#, "[]"],
    ),
    ("/spec/allocateLoadBalancerNodePorts", &["false", "true"]),
    ("/spec/publishNotReadyAddresses", &["true"]),
    ("/spec/internalTrafficPolicy", &[r#""Local""#]),
    ("/spec/trafficDistribution", &[r#""PreferSameZone""#]),
    ("/spec/externalIPs", &[r#"["10.9.0.9"]"#]),
    ("/spec/clusterIP", &[r#""None""#, r#""10.96.0.7""#]),
    (
        "/spec/ports",
        &[
            PORTS,
            PORTS,
            r#"[{"port": 81}]"#,
            r#"[{"port": 80}, {"port": 80}]"#,
            r#"[{"port": 80, "protocol": "SCTP"}]"#,
            r#"[{"port": 70000}]"#,
            "[]",
        ],
    ),
    (
        "/metadata/annotations",
        &[
            r#"{"weir.dev/load-balancer-ips": "10.9.0.4"}"#,
            r#"{"weir.dev/allow-shared-ip": "k"}"#,
            r#"{"weir.dev/algorithm": "maglev", "weir.dev/idle-timeout": "90s"}"#,
            r#"{"weir.dev/ignore": "yes"}"#,
            r#"{"weir.dev/idle-timeout": 5}"#,
        ],
    ),
    (
        "/metadata/labels",
        &[
            r#"{"service.kubernetes.io/headless": ""}"#,
            r#"{"service.kubernetes.io/service-proxy-name": "x"}"#,
        ],
    ),
    (
        "/metadata/creationTimestamp",
        &[
            r#""2026-01-01T00:00:00Z""#,
            r#""2025-01-01T00:00:00Z""#,
            r#""yesterday""#,
        ],
    ),
    (
        "/metadata/deletionTimestamp",
        &["null", r#""2026-02-01T00:00:00Z""#],
    ),
    ("/metadata/finalizers", &[r#"["weir.dev/load-balancer"]"#]),
    ("/metadata/managedFields", &[r#"[{"manager": "kubectl"}]"#]),
];

/// The same of an EndpointSlice.
const SLICE: &[(&str, &[&str])] = &[
    (
        "/addressType",
        &[r#""IPv4""#, r#""IPv4""#, r#""IPv6""#, r#""FQDN""#],
    ),
    (
        "/ports",
        &[
            r#"[{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]"#,
            r#"[{"name": "", "port": 8081}]"#,
            r#"[{"name": "http"}]"#,
            "null",
        ],
    ),
    (
        "/endpoints",
        &[
            r#"[{"addresses": ["10.2.0.1"]}, {"addresses": ["10.2.0.2"]}]"#,
            r#"[{"addresses": ["10.2.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]"#,
            r#"[{"addresses": ["10.2.0.3"], "conditions": {"ready": null}, "hints": {"forZones": [{"name": "a"}]}}, {"addresses": ["10.2.0.4"], "hints": {"forZones": [{"name": "b"}]}}]"#,
            r#"[{"addresses": ["fd02::1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["10.9.0.3"]}]"#,
            r#"[{"addresses": []}]"#,
            r#"[{"addresses": ["10.2.0.5"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p", "namespace": "shop", "uid": "u"}}]"#,
        ],
    ),
    (
        "/metadata/creationTimestamp",
        &[r#""2026-01-01T00:00:00Z""#],
    ),
    (
        "/metadata/annotations",
        &[r#"{"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}"#],
    ),
];

/// An object to begin with, whose fields are then set.
fn object(base: Value, fields: &'static [(&str, &[&str])]) -> impl Strategy<Value = Value> {
    // A field is mostly left out, or as most have it: what is refused altogether shows little.
    let choice = prop_oneof![4 => Just(None), 3 => Just(Some(0)), 2 => any::<Index>().prop_map(|at| Some(1 + at.index(64)))];
    prop::collection::vec(choice, fields.len()).prop_map(move |chosen| {
        let mut made = base.clone();
        for ((place, values), chosen) in fields.iter().zip(chosen) {
            let Some(chosen) = chosen else { continue };
            let text = values[chosen % values.len()];
            let value: Value = serde_json::from_str(text).expect("a value of the tables");
            let (parent, name) = place.rsplit_once('/').expect("a place");
            if let Some(parent) = made.pointer_mut(parent) {
                parent[name] = value;
            }
        }
        made
    })
}

/// Services `web-N` in two namespaces, with two slices each.
fn world() -> impl Strategy<Value = Vec<Value>> {
    let mut all = Vec::new();
    for (n, namespace) in ["shop", "shop", "bank"].into_iter().enumerate() {
        let name = format!("web-{n}");
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{n}")},
            "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]},
        });
        all.push(object(service, SERVICE).boxed());
        for part in ["x", "y"] {
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-{part}"), "namespace": namespace, "uid": format!("uid-{n}{part}"),
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080}],
                "endpoints": [{"addresses": ["10.2.0.1"]}],
            });
            all.push(object(slice, SLICE).boxed());
        }
    }
    (all, any::<u64>()).prop_map(|(mut all, seed)| {
        // A directory has them in any order.
        let by = seed as usize % all.len();
        all.rotate_left(by);
        all
    })
}

/// As one YAML file has them.
fn by_a_directory(world: &[Value]) -> Vec<Object> {
    let mut reader = Reader::new(SOURCE, Arc::default());
    let text: String = world.iter().map(|o| format!("---\n{o:#}\n")).collect();
    let path = Arc::new(PathBuf::from("all.yaml"));
    let file = File::read(&path, text.as_bytes(), &mut reader, None);
    file.objects.into_values().collect()
}

/// As the lists of an API server have them, which come in pieces of any size.
fn by_an_api_server(world: &[Value], piece: usize) -> Vec<Object> {
    let mut all = Vec::new();
    for (kind, name) in [
        (Kind::Service, "Service"),
        (Kind::EndpointSlice, "EndpointSlice"),
    ] {
        let items: Vec<&Value> = world
            .iter()
            .filter(|object| object["kind"] == name)
            .collect();
        let list = json!({
            "kind": format!("{name}List"), "apiVersion": items[0]["apiVersion"],
            "metadata": {"resourceVersion": "7"}, "items": items,
        });
        all.extend(objects_of_a_list(
            SOURCE,
            kind,
            list.to_string().as_bytes(),
            piece,
        ));
    }
    all
}

/// What the line of the control plane makes of them.
fn table(objects: Vec<Object>) -> BTreeMap<FrontendKey, Frontend> {
    let rules = Rules {
        zone: Some("a".into()),
        default_provider: true,
        pools: ["10.9.0.0-10.9.0.7", "fd09::-fd09::7"]
            .map(|range| range.split_once('-').expect("a range"))
            .map(|(first, last)| (first.parse().expect("first"), last.parse().expect("last")))
            .to_vec(),
        ..Rules::default()
    };
    let ranges =
        ["10.9.0.0/29", "fd09::/125"].map(|text| (None, vec![text.parse().expect("a range")]));
    let pools = Pools::new(ranges, []).expect("pools");
    let allocator = Allocator::new(pools, Record::default());
    let compiler = Compiler::new(HashKey([7; 16]), Defaults::default());
    let mut line = Line::new(rules, KINDS.map(|kind| (SOURCE, kind)), allocator, compiler);
    let events = KINDS.map(Event::Init).into_iter();
    let events = events.chain(objects.into_iter().map(Event::Apply));
    for event in events.chain(KINDS.map(Event::InitDone)) {
        line.apply(SOURCE, event);
    }
    let table = line.decide().table;
    let frontends = table.iter().flat_map(|table| table.iter());
    frontends
        .map(|(_, frontend)| (frontend.key, Frontend::clone(frontend)))
        .collect()
}

#[test]
fn the_same_objects_from_a_directory_and_from_an_api_server_are_the_same_table() {
    let config = Config {
        cases: 300,
        ..Config::default()
    };
    let frontends = Cell::new(0);
    let pieces = (world(), 1_usize..5_000);
    let outcome = TestRunner::new(config).run(&pieces, |(world, piece)| {
        let wanted = table(by_a_directory(&world));
        frontends.set(frontends.get() + wanted.len());
        prop_assert_eq!(table(by_an_api_server(&world, piece)), wanted);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    assert!(
        frontends.get() > 100,
        "{} frontends in all: nothing was compared",
        frontends.get()
    );
}
