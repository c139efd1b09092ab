//! Any order of events gives the same state; what a list lacks goes, unless it is too much.

use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::object::{
    AddressType, Endpoint, FamilyPolicy, Meta, PortProtocol, ServicePort, ServiceType,
    TrafficPolicy, Trigger,
};

const ONE: SourceId = SourceId(1);
const TWO: SourceId = SourceId(2);
const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

fn meta(source: SourceId, kind: Kind, name: &str, uid: &str) -> Meta {
    Meta {
        key: Key {
            source,
            uid: uid.into(),
            ..crate::testing::key(kind, "shop", name)
        },
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        created: None,
        deleting: false,
        location: None,
    }
}

fn service_as(source: SourceId, name: &str, uid: &str, port: u16) -> Object {
    Object::Service(Arc::new(Service {
        meta: meta(source, Kind::Service, name, uid),
        kind: ServiceType::LoadBalancer,
        class: None,
        load_balancer_ip: None,
        allocate_node_ports: true,
        external_traffic_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        source_ranges: Vec::new(),
        client_ip_affinity: None,
        ip_families: Vec::new(),
        ip_family_policy: FamilyPolicy::SingleStack,
        headless: false,
        ports: vec![ServicePort {
            name: Arc::from("http"),
            protocol: PortProtocol::Tcp,
            port: NonZeroU16::new(port).expect("tests use ports above 0"),
            node_port: None,
        }],
        stored: crate::object::Stored::default(),
    }))
}

fn service(name: &str) -> Object {
    service_as(ONE, name, "", 80)
}

fn slice_as(source: SourceId, name: &str, service: &str, addresses: &[&str]) -> Object {
    let endpoint = |address: &&str| Endpoint {
        address: Arc::from(*address),
        ready: None,
        serving: None,
        terminating: None,
        node: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        target: None,
    };
    Object::EndpointSlice(Arc::new(EndpointSlice {
        meta: meta(source, Kind::EndpointSlice, name, ""),
        service: Some(Arc::from(service)),
        address_type: AddressType::V4,
        ports: Vec::new(),
        endpoints: addresses.iter().map(endpoint).collect(),
        trigger: Trigger::Absent,
    }))
}

fn slice(name: &str, service: &str) -> Object {
    slice_as(ONE, name, service, &["10.0.0.1"])
}

fn node(name: &str) -> Object {
    Object::Node(Arc::new(Node {
        meta: meta(ONE, Kind::Node, name, ""),
        addresses: Vec::new(),
        taints: Vec::new(),
    }))
}

fn apply(cluster: &mut Cluster, object: Object) {
    cluster.apply(object.key().source, Event::Apply(object));
}

fn delete(cluster: &mut Cluster, object: &Object) {
    cluster.apply(object.key().source, Event::Delete(object.key().clone()));
}

/// A list of every kind at once.
fn list(cluster: &mut Cluster, objects: impl IntoIterator<Item = Object>) {
    for kind in KINDS {
        cluster.apply(ONE, Event::Init(kind));
    }
    for object in objects {
        apply(cluster, object);
    }
    for kind in KINDS {
        cluster.apply(ONE, Event::InitDone(kind));
    }
}

/// `count` Services with a slice each.
fn many(count: usize) -> Vec<Object> {
    let named = |at| format!("s{at}");
    let pair = |at| [service(&named(at)), slice(&format!("s{at}-1"), &named(at))];
    (0..count).flat_map(pair).collect()
}

fn services(cluster: &Cluster) -> Vec<String> {
    let keys = cluster.services().map(|service| &service.meta.key);
    keys.map(|key| key.name.to_string()).collect()
}

fn slices(cluster: &Cluster, name: &str) -> Vec<String> {
    let of = cluster.slices_of(service(name).key());
    of.map(|slice| slice.meta.key.name.to_string()).collect()
}

fn dirty(cluster: &mut Cluster) -> Vec<String> {
    let keys = cluster.take_dirty();
    keys.iter()
        .map(|key| format!("{}{}", key.name, key.uid))
        .collect()
}

#[test]
fn complete_once_every_expected_list_ended() {
    let expected = [
        (ONE, Kind::Service),
        (ONE, Kind::EndpointSlice),
        (TWO, Kind::Service),
    ];
    let mut cluster = Cluster::new(expected);
    for (source, kind) in expected {
        assert!(!cluster.complete());
        cluster.apply(source, Event::Init(kind));
        assert!(!cluster.complete());
        cluster.apply(source, Event::InitDone(kind));
    }
    assert!(cluster.complete());
    cluster.apply(ONE, Event::Init(Kind::Service));
    assert!(cluster.complete(), "a relist does not make it incomplete");
}

#[test]
fn an_end_without_a_beginning_says_nothing() {
    let mut cluster = Cluster::new([(ONE, Kind::Service)]);
    apply(&mut cluster, service("a"));
    cluster.apply(ONE, Event::InitDone(Kind::Service));
    assert!(!cluster.complete());
    assert_eq!(services(&cluster), ["a"]);
}

#[test]
fn a_slice_may_come_before_its_service() {
    let mut cluster = Cluster::default();
    apply(&mut cluster, slice("a-1", "a"));
    assert!(dirty(&mut cluster).is_empty());
    apply(&mut cluster, service("a"));
    assert_eq!(dirty(&mut cluster), ["a"]);
    assert_eq!(slices(&cluster, "a"), ["a-1"]);
}

#[test]
fn a_slice_that_changes_hands_makes_both_services_dirty() {
    let mut cluster = Cluster::default();
    for object in [service("a"), service("b"), slice("x", "a")] {
        apply(&mut cluster, object);
    }
    cluster.take_dirty();
    apply(&mut cluster, slice("x", "b"));
    assert_eq!(dirty(&mut cluster), ["a", "b"]);
    assert!(slices(&cluster, "a").is_empty());
    assert_eq!(slices(&cluster, "b"), ["x"]);
}

#[test]
fn the_same_again_is_no_change() {
    let mut cluster = Cluster::default();
    for object in [service("a"), slice("a-1", "a"), node("n")] {
        apply(&mut cluster, object.clone());
        cluster.take_dirty();
        apply(&mut cluster, object);
        assert!(cluster.take_dirty().is_empty());
    }
}

#[test]
fn a_new_uid_is_another_object() {
    let mut cluster = Cluster::default();
    let (old, new) = (service_as(ONE, "a", "1", 80), service_as(ONE, "a", "2", 80));
    apply(&mut cluster, old.clone());
    cluster.take_dirty();
    apply(&mut cluster, new.clone());
    assert_eq!(dirty(&mut cluster), ["a1", "a2"]);
    assert!(cluster.service(old.key()).is_none());
    assert!(cluster.service(new.key()).is_some());
    delete(&mut cluster, &old);
    assert!(
        cluster.service(new.key()).is_some(),
        "a late deletion of the old one"
    );
    delete(&mut cluster, &new);
    assert!(cluster.service(new.key()).is_none());
}

#[test]
fn a_node_that_changes_is_said_of_its_source() {
    let mut cluster = Cluster::default();
    apply(&mut cluster, service("a"));
    cluster.take_dirty();
    apply(&mut cluster, node("n"));
    assert_eq!(cluster.take_dirty_nodes(), [ONE].into());
    apply(&mut cluster, node("n"));
    assert!(cluster.take_dirty_nodes().is_empty(), "it says the same");
    assert!(!cluster.knows_nodes(ONE));
    list(&mut cluster, [service("a")]);
    assert_eq!(cluster.take_dirty_nodes(), [ONE].into());
    assert!(cluster.knows_nodes(ONE) && !cluster.knows_nodes(TWO));
    assert_eq!(cluster.nodes().count(), 0);
    list(&mut cluster, [service("a")]);
    assert!(cluster.take_dirty_nodes().is_empty(), "none again");
    assert_eq!(dirty(&mut cluster), [""; 0], "Services are not concerned");
}

#[test]
fn a_kind_that_cannot_be_listed_is_not_waited_for() {
    let mut cluster = Cluster::new([(ONE, Kind::Service), (ONE, Kind::Node)]);
    cluster.apply(ONE, Event::Init(Kind::Service));
    cluster.apply(ONE, Event::InitDone(Kind::Service));
    assert!(!cluster.complete() && !cluster.has_settled_nodes(ONE));
    cluster.apply(ONE, Event::Unavailable(Kind::Node));
    assert!(cluster.complete() && cluster.has_settled_nodes(ONE));
    assert!(!cluster.knows_nodes(ONE));
}

#[test]
fn sources_never_touch_each_others_objects() {
    let mut cluster = Cluster::default();
    let theirs = service_as(TWO, "a", "", 81);
    apply(&mut cluster, theirs.clone());
    apply(&mut cluster, slice_as(TWO, "x", "a", &["10.0.0.2"]));
    list(&mut cluster, [service("a"), slice("x", "a")]);
    list(&mut cluster, []);
    assert!(cluster.service(theirs.key()).is_some());
    assert_eq!(cluster.slices_of(theirs.key()).count(), 1);
    cluster.apply(ONE, Event::Delete(theirs.key().clone()));
    cluster.apply(ONE, Event::Apply(service_as(TWO, "b", "", 80)));
    assert_eq!(
        services(&cluster),
        ["a"],
        "a source speaks for itself alone"
    );
}

#[test]
fn a_list_is_a_difference_and_never_an_empty_moment() {
    let mut cluster = Cluster::default();
    list(
        &mut cluster,
        [service("a"), slice("a-1", "a"), service("b")],
    );
    cluster.take_dirty();
    cluster.apply(ONE, Event::Init(Kind::Service));
    cluster.apply(ONE, Event::Init(Kind::EndpointSlice));
    assert_eq!(services(&cluster), ["a", "b"]);
    apply(&mut cluster, service("a"));
    apply(&mut cluster, slice("a-1", "a"));
    cluster.apply(ONE, Event::InitDone(Kind::EndpointSlice));
    cluster.apply(ONE, Event::InitDone(Kind::Service));
    assert_eq!(services(&cluster), ["a"]);
    assert_eq!(dirty(&mut cluster), ["b"]);
}

#[test]
fn the_guard_holds_what_vanishes_in_masses() {
    let mut cluster = Cluster::default();
    list(&mut cluster, many(10));
    cluster.take_dirty();
    list(&mut cluster, many(4));
    assert_eq!(cluster.held().count(), 6);
    assert_eq!(services(&cluster).len(), 10, "held ones are served on");
    assert_eq!(slices(&cluster, "s9"), ["s9-1"], "with their endpoints");
    assert_eq!(dirty(&mut cluster).len(), 6, "and their state says so");
    list(&mut cluster, many(4));
    assert_eq!(cluster.held().count(), 6, "until they return");
    assert!(cluster.take_dirty().is_empty());
    list(&mut cluster, many(8));
    assert_eq!(cluster.held().count(), 2);
    assert_eq!(dirty(&mut cluster), ["s4", "s5", "s6", "s7"]);
    assert_eq!(cluster.confirm_deletions(), 2);
    assert_eq!(services(&cluster).len(), 8);
    assert!(slices(&cluster, "s9").is_empty());
    assert_eq!(dirty(&mut cluster), ["s8", "s9"]);
}

#[test]
fn the_guard_lets_small_and_minor_deletions_pass() {
    let after = |had: usize, has: usize| {
        let mut cluster = Cluster::default();
        list(&mut cluster, many(had));
        list(&mut cluster, many(has));
        (services(&cluster).len(), cluster.held().count())
    };
    assert_eq!(after(4, 0), (0, 0), "fewer than five");
    assert_eq!(after(5, 0), (5, 5));
    assert_eq!(after(10, 5), (5, 0), "half is not more than half");
    assert_eq!(after(11, 5), (11, 6));
    assert_eq!(after(100, 51), (51, 0));
}

#[test]
fn the_guard_judges_lists_and_obeys_deletions() {
    let mut cluster = Cluster::default();
    list(&mut cluster, many(10));
    for object in many(10) {
        delete(&mut cluster, &object);
    }
    assert!(services(&cluster).is_empty());
    assert_eq!(cluster.held().count(), 0);
    list(&mut cluster, many(10));
    list(&mut cluster, []);
    delete(&mut cluster, &service("s3"));
    assert_eq!(
        cluster.held().count(),
        9,
        "a held one may be deleted on purpose"
    );
}

#[test]
fn held_services_are_out_of_the_next_judgement() {
    let mut cluster = Cluster::default();
    list(&mut cluster, many(10));
    list(&mut cluster, many(4));
    list(&mut cluster, many(3));
    assert_eq!(cluster.held().count(), 6);
    assert_eq!(
        services(&cluster).len(),
        9,
        "one of four is an ordinary deletion"
    );
}

#[test]
fn which_of_two_lists_ends_first_makes_no_difference() {
    for order in [
        [Kind::Service, Kind::EndpointSlice],
        [Kind::EndpointSlice, Kind::Service],
    ] {
        let mut cluster = Cluster::default();
        list(&mut cluster, many(10));
        for kind in order {
            cluster.apply(ONE, Event::Init(kind));
        }
        for kind in order {
            cluster.apply(ONE, Event::InitDone(kind));
        }
        assert_eq!(cluster.held().count(), 10, "{order:?}");
        assert_eq!(slices(&cluster, "s0"), ["s0-1"], "{order:?}");
        list(
            &mut cluster,
            many(10)
                .into_iter()
                .filter(|object| object.key().kind == Kind::Service),
        );
        assert_eq!(cluster.held().count(), 0);
        assert!(
            slices(&cluster, "s0").is_empty(),
            "returned without its slice: {order:?}"
        );
    }
}

#[test]
fn slices_that_were_held_go_once_the_service_has_others() {
    let mut cluster = Cluster::default();
    list(&mut cluster, many(10));
    list(&mut cluster, []);
    apply(&mut cluster, service("s0"));
    assert_eq!(slices(&cluster, "s0"), ["s0-1"], "none in its place yet");
    apply(&mut cluster, slice("s0-new", "s0"));
    assert_eq!(slices(&cluster, "s0"), ["s0-new"]);
    apply(&mut cluster, slice("s1-new", "s1"));
    assert_eq!(slices(&cluster, "s1"), ["s1-1", "s1-new"], "still held");
    apply(&mut cluster, service("s1"));
    assert_eq!(slices(&cluster, "s1"), ["s1-new"]);
}

/// One step of the random walk: what happens to one of a few names.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, u16),
    Slice(u8, u8, u8),
    DeleteService(u8),
    DeleteSlice(u8),
    /// A list of the names in these bit sets.
    List(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u8, 1..4_u16).prop_map(|(name, port)| Step::Service(name, port)),
        (0..6_u8, 0..4_u8, 0..3_u8).prop_map(|(name, of, address)| Step::Slice(name, of, address)),
        (0..4_u8).prop_map(Step::DeleteService),
        (0..6_u8).prop_map(Step::DeleteSlice),
        (any::<u8>(), any::<u8>()).prop_map(|(services, slices)| Step::List(services, slices)),
    ]
}

/// The naive model: two maps. It has fewer Services than the guard minds.
#[derive(Default)]
struct Model {
    services: BTreeMap<u8, Object>,
    slices: BTreeMap<u8, Object>,
}

impl Model {
    fn step(&mut self, cluster: &mut Cluster, step: &Step) {
        match *step {
            Step::Service(name, port) => {
                let object = service_as(ONE, &format!("s{name}"), "", port);
                self.services.insert(name, object.clone());
                apply(cluster, object);
            }
            Step::Slice(name, of, address) => {
                let address = format!("10.0.0.{address}");
                let object = slice_as(ONE, &format!("e{name}"), &format!("s{of}"), &[&address]);
                self.slices.insert(name, object.clone());
                apply(cluster, object);
            }
            Step::DeleteService(name) => {
                self.services.remove(&name);
                delete(cluster, &service(&format!("s{name}")));
            }
            Step::DeleteSlice(name) => {
                self.slices.remove(&name);
                delete(cluster, &slice(&format!("e{name}"), "s0"));
            }
            Step::List(services, slices) => {
                self.services.retain(|name, _| services & (1 << name) != 0);
                self.slices.retain(|name, _| slices & (1 << name) != 0);
                list(cluster, self.objects());
            }
        }
    }

    fn objects(&self) -> Vec<Object> {
        let all = self.services.values().chain(self.slices.values());
        all.cloned().collect()
    }
}

/// All that can be asked of a store, as objects.
fn state(cluster: &Cluster) -> Vec<Object> {
    let services = cluster.services().cloned().map(Object::Service);
    let of = (0..4).flat_map(|name| cluster.slices_of(service(&format!("s{name}")).key()));
    let mut slices: Vec<Arc<EndpointSlice>> = of.cloned().collect();
    slices.sort_by(|a, b| a.meta.key.cmp(&b.meta.key));
    services
        .chain(slices.into_iter().map(Object::EndpointSlice))
        .collect()
}

proptest! {
    /// After every step the store says what two plain maps say, and whatever differs from before
    /// was said to be dirty.
    #[test]
    fn the_store_agrees_with_two_maps(steps in proptest::collection::vec(step(), 0..60)) {
        let (mut cluster, mut model) = (Cluster::default(), Model::default());
        for step in &steps {
            let of = |cluster: &Cluster, name| -> (Option<Arc<Service>>, Vec<Arc<EndpointSlice>>) {
                let key = service(&format!("s{name}")).key().clone();
                (cluster.service(&key).cloned(), cluster.slices_of(&key).cloned().collect())
            };
            let before: Vec<_> = (0..4).map(|name| of(&cluster, name)).collect();
            model.step(&mut cluster, step);
            prop_assert_eq!(state(&cluster), model.objects());
            let dirty = cluster.take_dirty();
            for (name, before) in before.into_iter().enumerate() {
                let after = of(&cluster, name);
                let exists = before.0.is_some() || after.0.is_some();
                let changed = before.0 != after.0 || before.1 != after.1;
                if exists && changed {
                    prop_assert!(dirty.contains(service(&format!("s{name}")).key()), "s{name} {step:?}");
                }
            }
        }
    }

    /// K8: the same objects in any order, some of them twice, give the same state.
    #[test]
    fn any_order_converges(
        objects in Just(many(4)).prop_shuffle(),
        again in proptest::collection::vec(0..8_usize, 0..8),
    ) {
        let mut cluster = Cluster::default();
        let twice = again.iter().map(|at| objects[*at].clone());
        let events: Vec<Object> = objects.iter().cloned().chain(twice).collect();
        list(&mut cluster, events);
        let mut straight = Cluster::default();
        list(&mut straight, many(4));
        prop_assert_eq!(state(&cluster), state(&straight));
        prop_assert_eq!(cluster.take_dirty(), straight.take_dirty());
    }

    /// K6: whatever lists come, nothing that is in the last one is missing; what is held was
    /// there before; and a confirmation leaves exactly the last list.
    #[test]
    fn the_guard_only_ever_adds(lists in proptest::collection::vec(any::<u16>(), 1..12)) {
        let mut cluster = Cluster::default();
        let mut last = Vec::new();
        for set in &lists {
            let has = |object: &Object| {
                let name = &object.key().name;
                let number = name.trim_start_matches('s').trim_end_matches("-1");
                number.parse::<u32>().is_ok_and(|number| set & (1 << number) != 0)
            };
            let objects: Vec<Object> = many(16).into_iter().filter(has).collect();
            let before = services(&cluster);
            list(&mut cluster, objects.clone());
            let now = services(&cluster);
            last = objects.iter().filter(|o| o.key().kind == Kind::Service).map(|o| o.key().name.to_string()).collect();
            last.sort_unstable();
            let held: Vec<String> = cluster.held().map(|key| key.name.to_string()).collect();
            prop_assert!(last.iter().all(|name| now.contains(name) && !held.contains(name)));
            prop_assert!(held.iter().all(|name| before.contains(name)));
            prop_assert_eq!(now.len(), last.len() + held.len());
            for name in &now {
                prop_assert_eq!(slices(&cluster, name), [format!("{name}-1")]);
            }
        }
        cluster.confirm_deletions();
        let mut now = services(&cluster);
        now.sort_unstable();
        prop_assert_eq!(now, last);
        prop_assert_eq!(cluster.slices.len(), cluster.services.len());
    }
}
