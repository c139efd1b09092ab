//! Each rule by example, then all of them over random histories against what a naive scan says.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use lb_core::balance::Algorithm;
use lb_core::table::Protocol;
use proptest::prelude::*;

use super::*;
use crate::load_balancer::Port;
use crate::object::SourceId;
use crate::state::Document;

fn key(name: &str) -> Key {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    crate::testing::service(namespace, name)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(ip).collect()
}

fn pools(ranges: &[&str]) -> Pools {
    let ranges = ranges
        .iter()
        .map(|text| (None, vec![text.parse().expect("a range")]));
    Pools::new(ranges, []).expect("apart")
}

/// What a test says of a load balancer; the rest does not matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ask {
    created: Option<i64>,
    families: Vec<Family>,
    all: bool,
    requested: Vec<IpAddr>,
    pool: Option<Arc<str>>,
    sharing: Option<Arc<str>>,
    ports: Vec<u16>,
}

fn v4() -> Ask {
    Ask {
        created: Some(0),
        families: vec![Family::V4],
        all: false,
        requested: vec![],
        pool: None,
        sharing: None,
        ports: vec![80],
    }
}

fn dual(all: bool) -> Ask {
    Ask {
        families: vec![Family::V4, Family::V6],
        all,
        ..v4()
    }
}

fn requesting(addresses: &str) -> Ask {
    Ask {
        requested: ips(addresses),
        ..v4()
    }
}

fn sharing(key: &str, port: u16) -> Ask {
    Ask {
        sharing: Some(key.into()),
        ports: vec![port],
        ..v4()
    }
}

impl Ask {
    fn at(self, created: i64) -> Ask {
        Ask {
            created: Some(created),
            ..self
        }
    }

    fn build(&self, key: Key) -> Arc<LoadBalancer> {
        let port = |port| Port {
            name: "".into(),
            port: NonZeroU16::new(port).expect("not 0"),
            protocol: Protocol::Tcp,
            v4: vec![],
            v6: vec![],
        };
        Arc::new(LoadBalancer {
            key,
            created: self.created,
            addressing: Addressing::Pools {
                families: self.families.clone(),
                all: self.all,
                requested: self.requested.clone(),
                pool: self.pool.clone(),
                sharing: self.sharing.clone(),
            },
            ports: self.ports.iter().copied().map(port).collect(),
            algorithm: Algorithm::default(),
            affinity: None,
            published: Vec::new(),
            sources: None,
            idle_timeout: None,
        })
    }
}

fn apply(allocator: &mut Allocator, batch: &[(&str, Option<Ask>)]) -> Vec<String> {
    let batch = batch.iter().map(|(name, ask)| {
        let key = key(name);
        (key.clone(), ask.as_ref().map(|ask| ask.build(key)))
    });
    let changed = allocator.apply(batch.collect::<Vec<_>>());
    changed.iter().map(|key| key.name.to_string()).collect()
}

fn addresses(allocator: &Allocator, name: &str) -> Vec<IpAddr> {
    allocator.assignment(&key(name)).addresses
}

fn codes(allocator: &Allocator, name: &str) -> Vec<&'static str> {
    let assignment = allocator.assignment(&key(name));
    assignment.reasons.iter().map(Reason::code).collect()
}

fn restarted(allocator: &Allocator, pools: Pools) -> Allocator {
    let written = allocator.record().encode();
    let record = Record::decode(Record::SCHEMA, written).expect("our own words");
    assert_eq!(record, allocator.record());
    Allocator::new(pools, record)
}

#[test]
fn lowest_first_over_pools_in_order() {
    let mut a = Allocator::new(pools(&["192.0.2.8/31", "192.0.2.0/30"]), Record::default());
    let changed = apply(
        &mut a,
        &[("a", Some(v4())), ("b", Some(v4())), ("c", Some(v4()))],
    );
    assert_eq!(changed, ["a", "b", "c"]);
    assert_eq!(addresses(&a, "a"), ips("192.0.2.8"));
    assert_eq!(addresses(&a, "b"), ips("192.0.2.9"));
    assert_eq!(addresses(&a, "c"), ips("192.0.2.0"));
    assert_eq!(apply(&mut a, &[("a", Some(v4()))]), [""; 0], "nothing new");
}

#[test]
fn in_a_batch_requested_come_before_older_ones_and_then_age_decides() {
    let mut a = Allocator::new(pools(&["192.0.2.0/30"]), Record::default());
    let batch = [
        (
            "unknown-b",
            Some(Ask {
                created: None,
                ..v4()
            }),
        ),
        (
            "unknown-a",
            Some(Ask {
                created: None,
                ..v4()
            }),
        ),
        ("old", Some(v4().at(1))),
        ("young", Some(v4().at(9))),
        ("asks", Some(requesting("192.0.2.0").at(9))),
        ("asks-later", Some(requesting("192.0.2.0").at(10))),
    ];
    apply(&mut a, &batch);
    assert_eq!(addresses(&a, "asks"), ips("192.0.2.0"));
    assert_eq!(addresses(&a, "old"), ips("192.0.2.1"));
    assert_eq!(addresses(&a, "young"), ips("192.0.2.2"));
    assert_eq!(
        addresses(&a, "unknown-a"),
        ips("192.0.2.3"),
        "no timestamp: the youngest"
    );
    assert_eq!(codes(&a, "unknown-b"), ["PoolExhausted"]);
    let reasons = a.assignment(&key("asks-later")).reasons;
    assert_eq!(
        reasons,
        [Reason::AddressTaken {
            address: ip("192.0.2.0"),
            holder: key("asks")
        }]
    );
    // First seen counts: a timestamp after that is younger, one of before is older.
    apply(
        &mut a,
        &[("newer", Some(v4().at(11))), ("elder", Some(v4().at(2)))],
    );
    apply(&mut a, &[("old", None)]);
    assert_eq!(addresses(&a, "elder"), ips("192.0.2.1"));
    apply(&mut a, &[("young", None)]);
    assert_eq!(addresses(&a, "unknown-b"), ips("192.0.2.2"));
}

#[test]
fn k17_restart_with_pending_services_moves_nobody() {
    let one = &["192.0.2.1/32"];
    let mut a = Allocator::new(pools(one), Record::default());
    apply(&mut a, &[("holder", Some(v4().at(5)))]);
    apply(&mut a, &[("pending", Some(v4().at(1)))]);
    assert_eq!(
        codes(&a, "pending"),
        ["PoolExhausted"],
        "older, and still no thief"
    );
    // Both in one batch, in either order, in two batches with the older first, and requesting.
    for (requests, batches) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let mut b = restarted(&a, pools(one));
        let ask = if requests {
            requesting("192.0.2.1")
        } else {
            v4()
        };
        let all = [("pending", Some(ask.at(1))), ("holder", Some(v4().at(5)))];
        for batch in all.chunks(2 / batches) {
            apply(&mut b, batch);
        }
        b.complete();
        assert_eq!(addresses(&b, "holder"), ips("192.0.2.1"));
        assert_eq!(addresses(&b, "pending"), ips(""));
        assert_eq!(a.record(), b.record());
        // What is not in the first complete list is given up, and the pending one is served.
        let mut b = restarted(&a, pools(one));
        apply(&mut b, &all[..1]);
        assert_eq!(addresses(&b, "pending"), ips(""));
        assert_eq!(b.complete(), BTreeSet::from([key("pending")]));
        assert_eq!(addresses(&b, "pending"), ips("192.0.2.1"));
    }
}

#[test]
fn k17_the_record_knows_uids_and_sources() {
    let mut a = Allocator::new(pools(&["192.0.2.0/30"]), Record::default());
    let named = |source: u16, uid: &str| Key {
        source: SourceId(source),
        uid: uid.into(),
        ..key("web")
    };
    let put = |a: &mut Allocator, keys: &[Key], ask: Ask| {
        a.apply(
            keys.iter()
                .map(|key| (key.clone(), Some(ask.build(key.clone()))))
                .collect::<Vec<_>>(),
        );
    };
    put(&mut a, &[named(2, "")], v4());
    put(&mut a, &[named(1, "")], v4());
    let at = |a: &Allocator, key: &Key| a.assignment(key).addresses;
    assert_eq!(at(&a, &named(2, "")), ips("192.0.2.0"));
    // The same name in two sources: each its own, whatever order.
    let mut b = restarted(&a, pools(&["192.0.2.0/30"]));
    put(&mut b, &[named(1, ""), named(2, "")], v4());
    assert_eq!(at(&b, &named(2, "")), ips("192.0.2.0"));
    assert_eq!(at(&b, &named(1, "")), ips("192.0.2.1"));
    // A uid that becomes known, over a restart or while running, is the same Service.
    put(&mut a, &[named(3, "x")], requesting("192.0.2.3"));
    let mut b = restarted(&a, pools(&["192.0.2.0/30"]));
    put(&mut b, &[named(3, "")], v4());
    assert_eq!(at(&b, &named(3, "")), ips("192.0.2.3"));
    b.apply([
        (named(3, ""), None),
        (named(3, "x"), Some(v4().build(named(3, "x")))),
    ]);
    assert_eq!(at(&b, &named(3, "x")), ips("192.0.2.3"));
    // Another uid is another Service.
    let mut b = restarted(&a, pools(&["192.0.2.0/30"]));
    put(
        &mut b,
        &[Key {
            source: SourceId(3),
            ..named(3, "y")
        }],
        requesting("192.0.2.3"),
    );
    assert_eq!(at(&b, &named(3, "y")), ips(""));
    b.complete();
    assert_eq!(at(&b, &named(3, "y")), ips("192.0.2.3"));
}

#[test]
fn k18_exhaustion_is_a_reason_and_heals_oldest_first() {
    let mut a = Allocator::new(pools(&["192.0.2.0/31"]), Record::default());
    let names = ["a", "b", "c", "d", "e"];
    for (created, name) in names.iter().enumerate() {
        apply(&mut a, &[(name, Some(v4().at(created as i64)))]);
    }
    assert_eq!(codes(&a, "c"), ["PoolExhausted"]);
    // The freed address goes to the oldest that waits, not to the newcomer of the same batch.
    let changed = apply(&mut a, &[("a", None), ("new", Some(v4().at(9)))]);
    assert_eq!(changed, ["a", "c", "new"]);
    assert_eq!(addresses(&a, "c"), ips("192.0.2.0"));
    assert_eq!(
        apply(&mut a, &[("c", None), ("b", None)]),
        ["b", "c", "d", "e"]
    );
    assert_eq!(addresses(&a, "d"), ips("192.0.2.0"));
    assert_eq!(addresses(&a, "e"), ips("192.0.2.1"));
    let mut none = Allocator::new(pools(&["2001:db8::/64"]), Record::default());
    apply(&mut none, &[("a", Some(v4()))]);
    assert_eq!(codes(&none, "a"), ["NoPool"]);
}

#[test]
fn k18_a_shrunk_pool_keeps_its_holders_and_takes_no_new_ones() {
    let mut a = Allocator::new(pools(&["192.0.2.0/30"]), Record::default());
    apply(
        &mut a,
        &[
            ("a", Some(v4())),
            ("b", Some(v4())),
            ("c", Some(requesting("192.0.2.2"))),
        ],
    );
    let mut b = restarted(&a, pools(&["192.0.2.0/32"]));
    let batch = [
        ("a", Some(v4())),
        ("b", Some(v4())),
        ("c", Some(requesting("192.0.2.2"))),
        ("d", Some(v4())),
    ];
    apply(&mut b, &batch);
    b.complete();
    assert_eq!(addresses(&b, "b"), ips("192.0.2.1"));
    assert_eq!(codes(&b, "b"), ["AddressOutsidePools"]);
    assert_eq!(
        addresses(&b, "c"),
        ips("192.0.2.2"),
        "requested and recorded: kept too"
    );
    assert_eq!(
        (codes(&b, "a"), codes(&b, "d")),
        (vec![], vec!["PoolExhausted"])
    );
    apply(&mut b, &[("b", None)]);
    assert_eq!(
        codes(&b, "d"),
        ["PoolExhausted"],
        "what is outside is not given again"
    );
    // An excluded address is in no pool either.
    let range = || vec!["192.0.2.0/31".parse().expect("a range")];
    let excluding = Pools::new([(None, range())], [ip("192.0.2.0")]).expect("one");
    let mut c = Allocator::new(excluding, Record::default());
    apply(
        &mut c,
        &[
            ("x", Some(v4())),
            ("y", Some(v4())),
            ("z", Some(requesting("192.0.2.0"))),
        ],
    );
    assert_eq!(addresses(&c, "x"), ips("192.0.2.1"));
    assert_eq!(
        (codes(&c, "y"), codes(&c, "z")),
        (vec!["PoolExhausted"], vec!["AddressNotInPool"])
    );
}

#[test]
fn k19_oldest_wins_one_address_and_sharing_needs_both_sides() {
    let mut a = Allocator::new(pools(&["192.0.2.0/24"]), Record::default());
    let at = |ask: Ask| {
        Some(Ask {
            requested: ips("192.0.2.7"),
            ..ask
        })
    };
    let batch = [
        ("one/young", at(sharing("k", 80).at(2))),
        ("two/old", at(sharing("k", 80).at(1))),
        ("one/other-port", at(sharing("k", 81).at(3))),
        ("one/other-key", at(sharing("other", 82).at(4))),
        (
            "one/no-key",
            at(Ask {
                ports: vec![83],
                ..v4()
            }
            .at(5)),
        ),
    ];
    apply(&mut a, &batch);
    let vip = ip("192.0.2.7");
    assert_eq!(addresses(&a, "two/old"), [vip]);
    assert_eq!(
        addresses(&a, "one/other-port"),
        [vip],
        "across namespaces, by the key of both"
    );
    let refused = |name: &str, part: &str| {
        let assignment = a.assignment(&key(name));
        assert!(assignment.addresses.is_empty(), "{name}");
        let text = assignment.reasons[0].to_string();
        assert!(text.contains(part), "{name}: {text}");
    };
    refused(
        "one/young",
        "cannot share 192.0.2.7 with two/old: both have a port",
    );
    refused("one/other-key", "its sharing key differs");
    refused("one/no-key", "is held by");
    // Once the older is gone the younger is served.
    assert_eq!(apply(&mut a, &[("two/old", None)]), ["young", "old"]);
    assert_eq!(addresses(&a, "one/young"), [vip]);
    // A sharer that takes back its consent, or takes a port of the other, goes itself.
    let mut b = a.clone();
    apply(
        &mut b,
        &[(
            "one/other-port",
            Some(
                Ask {
                    ports: vec![81],
                    ..v4()
                }
                .at(3),
            ),
        )],
    );
    assert_eq!(addresses(&b, "one/young"), [vip]);
    assert_eq!(addresses(&b, "one/other-port"), ips("192.0.2.0"));
    apply(&mut a, &[("one/other-port", Some(sharing("k", 80).at(0)))]);
    assert_eq!(addresses(&a, "one/young"), [vip]);
    assert_eq!(addresses(&a, "one/other-port"), ips("192.0.2.0"));
    // A consent that comes later helps those that wait.
    let mut c = Allocator::new(pools(&["192.0.2.1/32"]), Record::default());
    apply(
        &mut c,
        &[(
            "x",
            Some(Ask {
                sharing: None,
                ..sharing("", 1)
            }),
        )],
    );
    apply(
        &mut c,
        &[("y", Some(sharing("k", 2))), ("z", Some(sharing("k", 3)))],
    );
    assert_eq!(codes(&c, "y"), ["PoolExhausted"]);
    assert_eq!(apply(&mut c, &[("x", Some(sharing("k", 1)))]), ["y", "z"]);
    // And survives a restart, one by one.
    let mut d = restarted(&c, pools(&["192.0.2.1/32"]));
    apply(&mut d, &[("w", Some(sharing("k", 4)))]);
    assert_eq!(
        codes(&d, "w"),
        ["PoolExhausted"],
        "not beside those who were not seen yet"
    );
    for (name, port) in [("z", 3), ("x", 1), ("y", 2)] {
        apply(&mut d, &[(name, Some(sharing("k", port)))]);
        assert_eq!(addresses(&d, name), ips("192.0.2.1"));
    }
    assert_eq!(addresses(&d, "w"), ips("192.0.2.1"));
}

#[test]
fn a_requested_address_or_none() {
    let mut a = Allocator::new(
        pools(&["192.0.2.0/30", "2001:db8::/126"]),
        Record::default(),
    );
    apply(
        &mut a,
        &[
            ("a", Some(requesting("198.51.100.1"))),
            ("b", Some(requesting("2001:db8::1"))),
        ],
    );
    assert_eq!(
        (codes(&a, "a"), addresses(&a, "a")),
        (vec!["AddressNotInPool"], vec![])
    );
    assert_eq!(
        (codes(&a, "b"), addresses(&a, "b")),
        (vec!["RequestedFamily"], vec![])
    );
    // A change releases the old one, for whoever waits for it.
    apply(&mut a, &[("a", Some(requesting("192.0.2.1")))]);
    apply(&mut a, &[("b", Some(requesting("192.0.2.1")))]);
    assert_eq!(codes(&a, "b"), ["AddressTaken"]);
    assert_eq!(
        apply(&mut a, &[("a", Some(requesting("192.0.2.2")))]),
        ["a", "b"]
    );
    assert_eq!(
        (addresses(&a, "a"), addresses(&a, "b")),
        (ips("192.0.2.2"), ips("192.0.2.1"))
    );
    // To an impossible one: pending, and the old one is not kept.
    apply(&mut a, &[("a", Some(requesting("192.0.2.1")))]);
    assert_eq!(
        (codes(&a, "a"), addresses(&a, "a")),
        (vec!["AddressTaken"], vec![])
    );
    // Taking the request back moves nobody.
    assert_eq!(apply(&mut a, &[("b", Some(v4()))]), [""; 0]);
    assert_eq!(addresses(&a, "b"), ips("192.0.2.1"));
    // One family requested, the other filled; v4-mapped is IPv4.
    apply(
        &mut a,
        &[(
            "c",
            Some(Ask {
                requested: ips("::ffff:192.0.2.3"),
                ..dual(true)
            }),
        )],
    );
    assert_eq!(addresses(&a, "c"), ips("192.0.2.3 2001:db8::"));
    // Of two requested both or none.
    apply(
        &mut a,
        &[(
            "d",
            Some(Ask {
                requested: ips("192.0.2.0 2001:db8::"),
                ..dual(false)
            }),
        )],
    );
    assert_eq!(
        (codes(&a, "d"), addresses(&a, "d")),
        (vec!["AddressTaken"], vec![])
    );
    apply(&mut a, &[("e", Some(v4()))]);
    assert_eq!(
        addresses(&a, "e"),
        ips("192.0.2.0"),
        "what d did not get is free"
    );
}

#[test]
fn families_all_or_what_the_pools_allow() {
    let mut a = Allocator::new(
        pools(&["192.0.2.0/29", "2001:db8::/128"]),
        Record::default(),
    );
    apply(&mut a, &[("first", Some(dual(true)))]);
    assert_eq!(addresses(&a, "first"), ips("192.0.2.0 2001:db8::"));
    apply(
        &mut a,
        &[
            ("require", Some(dual(true).at(2))),
            ("prefer", Some(dual(false).at(1))),
        ],
    );
    assert_eq!(
        (codes(&a, "require"), addresses(&a, "require")),
        (vec!["PoolExhausted"], vec![])
    );
    assert_eq!(
        (codes(&a, "prefer"), addresses(&a, "prefer")),
        (vec!["PoolExhausted"], ips("192.0.2.1"))
    );
    // The v6 address goes to the older that waits for it; v4 stays as it is.
    assert_eq!(apply(&mut a, &[("first", None)]), ["first", "prefer"]);
    assert_eq!(addresses(&a, "prefer"), ips("192.0.2.1 2001:db8::"));
    apply(&mut a, &[("prefer", Some(v4().at(1)))]);
    assert_eq!(
        addresses(&a, "prefer"),
        ips("192.0.2.1"),
        "a family that goes frees its address"
    );
    assert_eq!(addresses(&a, "require"), ips("192.0.2.0 2001:db8::"));
    // Order of families, and a family that no pool has.
    let swapped = Ask {
        families: vec![Family::V6, Family::V4],
        ..dual(true)
    };
    apply(&mut a, &[("require", Some(swapped))]);
    assert_eq!(addresses(&a, "require"), ips("2001:db8:: 192.0.2.0"));
    let mut b = Allocator::new(pools(&["192.0.2.0/29"]), Record::default());
    apply(
        &mut b,
        &[("prefer", Some(dual(false))), ("require", Some(dual(true)))],
    );
    assert_eq!(
        (codes(&b, "prefer"), addresses(&b, "prefer")),
        (vec![], ips("192.0.2.0"))
    );
    assert_eq!(
        (codes(&b, "require"), addresses(&b, "require")),
        (vec!["NoPool"], vec![])
    );
}

#[test]
fn pools_by_name() {
    let mut a = Allocator::new(
        pools(&["192.0.2.0/30", "198.51.100.0/30"]),
        Record::default(),
    );
    let named = |name: &str| Ask {
        pool: Some(name.into()),
        ..v4()
    };
    apply(
        &mut a,
        &[("a", Some(named("pool-2"))), ("b", Some(named("none")))],
    );
    assert_eq!(addresses(&a, "a"), ips("198.51.100.0"));
    assert_eq!(codes(&a, "b"), ["UnknownPool"]);
    let both = Ask {
        requested: ips("192.0.2.0"),
        ..named("pool-2")
    };
    apply(&mut a, &[("b", Some(both))]);
    assert_eq!(
        (codes(&a, "b"), addresses(&a, "b")),
        (vec!["ConflictingRequest"], vec![])
    );
    // Its own request moves it; no longer asking does not.
    apply(&mut a, &[("a", Some(v4()))]);
    assert_eq!(addresses(&a, "a"), ips("198.51.100.0"));
    apply(&mut a, &[("a", Some(named("pool-1")))]);
    assert_eq!(addresses(&a, "a"), ips("192.0.2.0"));
    // A pool that lost its range while we were down keeps its holder.
    let mut b = restarted(&a, pools(&["203.0.113.0/30"]));
    apply(&mut b, &[("a", Some(named("pool-1")))]);
    assert_eq!(addresses(&b, "a"), ips("192.0.2.0"));
}

#[test]
fn fixed_addresses_are_passed_through() {
    let mut a = Allocator::new(pools(&["192.0.2.0/30"]), Record::default());
    let fixed = LoadBalancer {
        addressing: Addressing::Fixed(ips("203.0.113.9")),
        ..Arc::unwrap_or_clone(v4().build(key("node-port")))
    };
    a.apply([(key("node-port"), Some(Arc::new(fixed)))]);
    assert_eq!(addresses(&a, "node-port"), ips("203.0.113.9"));
    assert_eq!(a.record(), Record::default());
    // From a fixed one to one from the pools and away.
    apply(&mut a, &[("node-port", Some(v4()))]);
    assert_eq!(addresses(&a, "node-port"), ips("192.0.2.0"));
    assert_eq!(apply(&mut a, &[("node-port", None)]), ["node-port"]);
    assert_eq!(a.assignment(&key("node-port")), Assignment::default());
}

#[test]
fn the_revision_grows_with_the_record_and_only_then() {
    let mut a = Allocator::new(pools(&["192.0.2.0/32"]), Record::default());
    let mut last = (a.revision(), a.record());
    let steps: [(&str, Option<Ask>); 7] = [
        ("a", Some(v4())),
        ("a", Some(v4())),
        ("b", Some(v4())),
        ("a", None),
        (
            "b",
            Some(Ask {
                pool: Some("pool-1".into()),
                ..v4()
            }),
        ),
        ("b", None),
        ("b", None),
    ];
    for step in steps {
        apply(&mut a, std::slice::from_ref(&step));
        let now = (a.revision(), a.record());
        assert!(now.1 == last.1 || now.0 > last.0, "{step:?}");
        last = now;
    }
    let revision = a.revision();
    apply(&mut a, &[("b", None)]);
    assert_eq!(a.revision(), revision);
}

#[test]
fn ten_thousand_and_one_change() {
    let huge = pools(&["10.0.0.0/8", "2001:db8::/32"]);
    let mut a = Allocator::new(huge.clone(), Record::default());
    let batch: Vec<_> = (0..10_000)
        .map(|n| key(&format!("svc-{n}")))
        .map(|key| (key.clone(), Some(dual(true).build(key))))
        .collect();
    let start = Instant::now();
    a.apply(batch.clone());
    let all = start.elapsed();
    let start = Instant::now();
    for (key, lb) in batch.iter().take(100) {
        a.apply([(key.clone(), None)]);
        a.apply([(key.clone(), lb.clone())]);
    }
    let each = start.elapsed() / 200;
    let mut b = restarted(&a, huge);
    let start = Instant::now();
    b.apply(batch);
    println!(
        "10,000: {all:?}; one change among them: {each:?}; restart: {:?}",
        start.elapsed()
    );
    assert_eq!(a.record(), b.record());
    // Bounds for a busy machine and an unoptimized build; fifty times less is usual.
    assert!(all < Duration::from_secs(10), "{all:?}");
    assert!(each < Duration::from_millis(10), "{each:?}");
}

// Random histories.

const POOLS: [&str; 3] = ["192.0.2.0/30", "192.0.2.8/31", "2001:db8::/127"];

fn ask() -> impl Strategy<Value = Ask> {
    let families = prop_oneof![
        4 => Just(vec![Family::V4]),
        1 => Just(vec![Family::V6]),
        2 => Just(vec![Family::V4, Family::V6]),
    ];
    let requested = prop_oneof![
        4 => Just(vec![]),
        2 => (0u8..11).prop_map(|n| vec![IpAddr::from([192, 0, 2, n])]),
        1 => Just(ips("2001:db8::1")),
    ];
    let pool = prop_oneof![4 => Just(None), 1 => Just(Some("pool-1".into())), 1 => Just(Some("pool-2".into()))];
    let key =
        prop_oneof![2 => Just(None), 2 => Just(Some("k".into())), 1 => Just(Some("l".into()))];
    let created = prop_oneof![1 => Just(None), 3 => (0i64..4).prop_map(Some)];
    let ports = proptest::collection::btree_set(1u16..5, 1..3);
    (
        families,
        any::<bool>(),
        requested,
        pool,
        key,
        created,
        ports,
    )
        .prop_map(
            |(families, all, requested, pool, sharing, created, ports)| Ask {
                created,
                families,
                all,
                requested,
                pool,
                sharing,
                ports: ports.into_iter().collect(),
            },
        )
}

fn history() -> impl Strategy<Value = Vec<Vec<(u8, Option<Ask>)>>> {
    let step = (0u8..12, proptest::option::weighted(0.8, ask()));
    proptest::collection::vec(proptest::collection::vec(step, 1..6), 1..25)
}

type World = BTreeMap<Key, (Ask, Vec<IpAddr>)>;

/// May these two hold one address?
fn may_share(a: &Ask, b: &Ask) -> bool {
    a.sharing.is_some()
        && a.sharing == b.sharing
        && !a.ports.iter().any(|port| b.ports.contains(port))
}

/// Would the naive scan give `address` to `key`?
fn is_open(world: &World, key: &Key, ask: &Ask, address: IpAddr) -> bool {
    let pools = pools(&POOLS);
    let named = ask.pool.as_ref().map(|name| pools.by_name(name));
    let place = pools.of(address);
    place.is_some()
        && named.is_none_or(|named| named == place)
        && world
            .iter()
            .filter(|(other, (_, held))| *other != key && held.contains(&address))
            .all(|(_, (other, _))| may_share(ask, other))
}

fn every_address() -> Vec<IpAddr> {
    let low = (0..11).map(|n| IpAddr::from([192, 0, 2, n]));
    low.chain(ips("2001:db8:: 2001:db8::1")).collect()
}

/// Can this family of `key` be served, by the naive scan?
fn is_possible(world: &World, key: &Key, ask: &Ask, family: Family) -> bool {
    let requested = ask.requested.iter().find(|a| Family::of(**a) == family);
    every_address()
        .into_iter()
        .filter(|address| Family::of(*address) == family)
        .filter(|address| requested.is_none_or(|requested| requested == address))
        .any(|address| is_open(world, key, ask, address))
}

/// Whatever happened before, this holds after every batch.
fn check(world: &World, allocator: &Allocator) -> Result<(), TestCaseError> {
    let pools = pools(&POOLS);
    for (key, (ask, held)) in world {
        for (other, (theirs, held_too)) in world.range(key.clone()..).skip(1) {
            let shared = held.iter().any(|address| held_too.contains(address));
            prop_assert!(
                !shared || may_share(ask, theirs),
                "{} and {} hold one address",
                key,
                other
            );
        }
        let families: Vec<_> = held.iter().copied().map(Family::of).collect();
        let wrong = ask
            .requested
            .iter()
            .any(|a| !ask.families.contains(&Family::of(*a)));
        if held.is_empty() {
            let needed = |(index, family): (usize, &Family)| {
                let requested = ask.requested.iter().any(|a| Family::of(*a) == *family);
                !(ask.all || index == 0 || requested) || is_possible(world, key, ask, *family)
            };
            let possible = !wrong && ask.families.iter().enumerate().all(needed);
            prop_assert!(!possible, "{} could be served", key);
            prop_assert!(
                !allocator.assignment(key).reasons.is_empty(),
                "{} is not told why",
                key
            );
            continue;
        }
        prop_assert!(!wrong);
        prop_assert!(held.iter().all(|address| pools.of(*address).is_some()));
        if ask.all {
            prop_assert_eq!(&families, &ask.families, "all or none");
        }
        for address in &ask.requested {
            prop_assert!(
                held.contains(address),
                "{} asked for {} and has {:?}",
                key,
                address,
                held
            );
        }
        prop_assert_eq!(families[0], ask.families[0], "the first family is a must");
        for family in &ask.families {
            prop_assert!(
                families.contains(family) || !is_possible(world, key, ask, *family),
                "{} could have {:?}",
                key,
                family
            );
        }
    }
    Ok(())
}

/// What of `ask` may move an address.
fn moves(before: &Ask, after: &Ask) -> bool {
    Ask {
        created: None,
        ..before.clone()
    } != Ask {
        created: None,
        ..after.clone()
    }
}

fn refresh(world: &mut World, allocator: &Allocator) {
    for (key, (_, held)) in world {
        *held = allocator.assignment(key).addresses;
    }
}

/// One by one in one batch, by the rules alone: no sharing, one family, nothing held.
fn naive_batch(asks: &[(Key, Ask)]) -> BTreeMap<Key, Vec<IpAddr>> {
    let youngest = asks
        .iter()
        .filter_map(|(_, ask)| ask.created)
        .max()
        .unwrap_or(i64::MIN);
    let mut asks = asks.to_vec();
    asks.sort_by_key(|(key, ask)| {
        let age = (ask.created.unwrap_or(youngest), ask.created.is_none());
        (ask.requested.is_empty(), age, key.name.clone())
    });
    let mut taken = BTreeMap::new();
    for (key, ask) in &asks {
        let pools = pools(&POOLS);
        let fits = |address: &IpAddr| {
            let requested = ask.requested.first();
            Family::of(*address) == ask.families[0]
                && requested.is_none_or(|requested| requested == address)
                && pools.of(*address).is_some()
                && ask
                    .pool
                    .as_ref()
                    .is_none_or(|name| pools.by_name(name) == pools.of(*address))
                && !taken
                    .values()
                    .any(|other: &Vec<IpAddr>| other.contains(address))
        };
        let found = every_address().into_iter().find(fits);
        taken.insert(key.clone(), found.into_iter().collect());
    }
    taken
}

#[test]
fn who_leaves_a_shared_address_is_who_changed() {
    let ask = |created, key: &str, pool: Option<&str>, port| Ask {
        created,
        families: vec![Family::V4],
        all: false,
        requested: vec![],
        pool: pool.map(Arc::from),
        sharing: Some(key.into()),
        ports: vec![port],
    };
    let (a, b) = (key("svc-10"), key("svc-8"));
    let mut allocator = Allocator::new(pools(&POOLS), Record::default());
    let mut apply = |first: Ask, second: Ask| {
        let batch = [(&a, first), (&b, second)];
        let batch = batch.map(|(key, ask)| (key.clone(), Some(ask.build(key.clone()))));
        allocator.apply(batch);
        [&a, &b].map(|key| allocator.assignment(key).addresses)
    };
    let [first, second] = apply(
        ask(None, "k", None, 1),
        ask(Some(0), "k", Some("pool-2"), 4),
    );
    assert_eq!(first, second, "shared");
    // It is the younger now, and asks for nothing else.
    let [left, stayed] = apply(ask(None, "l", None, 1), ask(None, "k", Some("pool-2"), 4));
    assert_eq!(stayed, second);
    assert_ne!(left, first);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_history_keeps_the_rules(history in history()) {
        let mut allocator = Allocator::new(pools(&POOLS), Record::default());
        let mut world = World::new();
        for batch in history {
            let before = world.clone();
            let mut input = Vec::new();
            for (name, ask) in batch {
                let key = key(&format!("svc-{name}"));
                input.push((key.clone(), ask.as_ref().map(|ask| ask.build(key.clone()))));
                match ask {
                    Some(ask) => {
                        let held = world.remove(&key).map_or_else(Vec::new, |(_, held)| held);
                        world.insert(key, (ask, held));
                    }
                    None => drop(world.remove(&key)),
                }
            }
            let changed = allocator.apply(input);
            refresh(&mut world, &allocator);
            check(&world, &allocator)?;
            for (key, (ask, held)) in &world {
                let (old_ask, old) = before.get(key).map_or((None, &[][..]), |(a, h)| (Some(a), h));
                if old_ask.is_some_and(|old| !moves(old, ask)) {
                    prop_assert!(old.iter().all(|a| held.contains(a)), "{} lost {:?}", key, old);
                }
                prop_assert!(old == held || changed.contains(key), "{} changed unsaid", key);
            }

            // A restart in one batch, or one by one in any order, moves nobody and serves the same.
            let mut at_once = restarted(&allocator, pools(&POOLS));
            let mut one_by_one = restarted(&allocator, pools(&POOLS));
            at_once.apply(world.iter().map(|(key, (ask, _))| (key.clone(), Some(ask.build(key.clone())))).collect::<Vec<_>>());
            for (key, (ask, _)) in world.iter().rev() {
                one_by_one.apply([(key.clone(), Some(ask.build(key.clone())))]);
            }
            for mut other in [at_once, one_by_one] {
                other.complete();
                for (key, (_, held)) in &world {
                    prop_assert_eq!(&other.assignment(key).addresses, held, "{} after a restart", key);
                }
            }
        }
    }

    #[test]
    fn one_batch_equals_the_naive_one(asks in proptest::collection::vec(ask(), 1..14)) {
        let asks: Vec<(Key, Ask)> = asks
            .into_iter()
            .enumerate()
            .map(|(n, ask)| {
                let families = vec![ask.families[0]];
                (key(&format!("svc-{n:02}")), Ask { families, sharing: None, ..ask })
            })
            .collect();
        let mut allocator = Allocator::new(pools(&POOLS), Record::default());
        allocator.apply(asks.iter().map(|(key, ask)| (key.clone(), Some(ask.build(key.clone())))).collect::<Vec<_>>());
        for (key, expected) in naive_batch(&asks) {
            prop_assert_eq!(allocator.assignment(&key).addresses, expected, "{}", key);
        }
    }
}
