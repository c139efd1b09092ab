use super::*;
use crate::load_balancer::Addressing;
use lb_core::table::{Backend, BackendState, Frontend, Protocol};
use proptest::prelude::*;
use std::net::SocketAddr;
use std::num::NonZeroU16;

fn key(name: &str) -> Key {
    crate::testing::service("ns", name)
}

fn backend(address: &str) -> Backend {
    Backend {
        address: address.parse().unwrap(),
        weight: 1,
        state: BackendState::Active,
    }
}

fn port(number: u16, v4: &[&str], v6: &[&str]) -> Port {
    Port {
        name: "".into(),
        port: NonZeroU16::new(number).unwrap(),
        protocol: Protocol::Tcp,
        v4: v4.iter().map(|a| backend(a)).collect(),
        v6: v6.iter().map(|a| backend(a)).collect(),
    }
}

fn balancer(name: &str, created: Option<i64>, ports: Vec<Port>) -> LoadBalancer {
    LoadBalancer {
        key: key(name),
        created,
        addressing: Addressing::Fixed(Vec::new()),
        ports,
        algorithm: Algorithm::Consistent,
        affinity: None,
        published: Vec::new(),
        sources: None,
        idle_timeout: None,
    }
}

fn compiler() -> Compiler {
    Compiler::new(HashKey([9; 16]), Defaults::default())
}

fn put(compiler: &mut Compiler, lb: &LoadBalancer, vips: &[&str]) -> (bool, Vec<Reason>) {
    let vips: Vec<IpAddr> = vips.iter().map(|v| v.parse().unwrap()).collect();
    compiler.update(&lb.key, Some((lb, &vips)))
}

fn at(table: &Table, vip: &str, number: u16) -> Arc<Frontend> {
    let address: IpAddr = vip.parse().unwrap();
    let found = table
        .iter()
        .find(|(_, f)| f.key.address == address && f.key.port.get() == number);
    found.unwrap().1.clone()
}

fn addresses(frontend: &Frontend) -> Vec<String> {
    let backends = frontend.pool.backends.iter();
    backends.map(|b| b.address.to_string()).collect()
}

#[test]
fn each_address_has_the_backends_of_its_family() {
    let mut compiler = compiler();
    let mut web = port(80, &["10.0.0.1:8080"], &["[2001:db8::1]:8080"]);
    web.name = "web".into();
    let mut lb = balancer("a", Some(5), vec![web, port(81, &["10.0.0.1:8081"], &[])]);
    lb.affinity = Some(Duration::from_secs(60));
    lb.idle_timeout = Some(Duration::from_secs(7));
    lb.sources = Some(vec!["198.51.100.0/24".parse().unwrap()]);
    // The second address stands there twice, once as a mapped one.
    let vips = ["192.0.2.1", "2001:db8:1::1", "::ffff:192.0.2.1"];
    assert_eq!(put(&mut compiler, &lb, &vips), (true, vec![]));
    let table = compiler.freeze();
    assert_eq!(table.len(), 4);
    let v4 = at(&table, "192.0.2.1", 80);
    assert_eq!(addresses(&v4), ["10.0.0.1:8080"]);
    assert_eq!(
        addresses(&at(&table, "2001:db8:1::1", 80)),
        ["[2001:db8::1]:8080"]
    );
    assert!(!at(&table, "2001:db8:1::1", 81).pool.has_usable());
    assert_eq!(
        (&*v4.owner.group, &*v4.owner.name, &*v4.owner.port),
        ("ns", "a", "web")
    );
    assert_eq!(&*at(&table, "192.0.2.1", 81).owner.port, "81");
    assert_eq!(v4.policy.affinity, lb.affinity);
    assert_eq!(v4.policy.idle_timeout, Duration::from_secs(7));
    assert_eq!(v4.policy.connect_timeout, Duration::from_millis(250));
    assert!(v4.policy.sources.contains("198.51.100.9".parse().unwrap()));
    assert!(!v4.policy.sources.contains("198.51.101.9".parse().unwrap()));
    assert!(!v4.policy.sources.contains("2001:db8::9".parse().unwrap()));
    assert_eq!(compiler.frontends_of(&lb.key).count(), 4);
}

#[test]
fn no_sources_given_is_everybody_and_an_empty_list_is_nobody() {
    let mut compiler = compiler();
    let mut lb = balancer("a", None, vec![port(80, &[], &[])]);
    put(&mut compiler, &lb, &["192.0.2.1"]);
    let anyone = "198.51.100.9".parse().unwrap();
    assert!(
        at(&compiler.freeze(), "192.0.2.1", 80)
            .policy
            .sources
            .contains(anyone)
    );
    lb.sources = Some(Vec::new());
    put(&mut compiler, &lb, &["192.0.2.1"]);
    assert!(
        !at(&compiler.freeze(), "192.0.2.1", 80)
            .policy
            .sources
            .contains(anyone)
    );
}

#[test]
fn one_endpoint_rebuilds_one_pool_and_nothing_else() {
    let mut compiler = compiler();
    for n in 0..300u16 {
        let ports = vec![
            port(80, &["10.0.0.1:80"], &[]),
            port(81, &["10.0.0.1:81"], &[]),
        ];
        let lb = balancer(&format!("s{n}"), Some(i64::from(n)), ports);
        let vip = format!("192.0.{}.{}", n / 250, n % 250 + 1);
        put(&mut compiler, &lb, &[&vip]);
    }
    let before = compiler.freeze();
    let ports = vec![
        port(80, &["10.0.0.1:80", "10.0.0.2:80"], &[]),
        port(81, &["10.0.0.1:81"], &[]),
    ];
    let lb = balancer("s7", Some(7), ports);
    assert_eq!(put(&mut compiler, &lb, &["192.0.0.8"]), (true, vec![]));
    assert_eq!(put(&mut compiler, &lb, &["192.0.0.8"]), (false, vec![]));
    let after = compiler.freeze();
    let (mut kept, mut rebuilt) = (0, 0);
    for (slot, new) in after.iter() {
        let old = before.get(slot).unwrap();
        if Arc::ptr_eq(old, new) {
            kept += 1;
        } else {
            rebuilt += 1;
            assert!(!Arc::ptr_eq(&old.pool, &new.pool));
            assert!(Arc::ptr_eq(&old.policy, &new.policy));
        }
    }
    assert_eq!((kept, rebuilt), (599, 1));
    let mut told = 0;
    Table::diff(&before, &after, |_, _, _| told += 1);
    assert_eq!(told, 1);
}

#[test]
fn what_is_told_twice_changes_nothing() {
    let mut compiler = compiler();
    let lb = balancer(
        "a",
        None,
        vec![port(80, &["10.0.0.1:80", "10.0.0.2:80"], &[])],
    );
    assert!(put(&mut compiler, &lb, &["192.0.2.1"]).0);
    let before = compiler.freeze();
    let mut shuffled = lb.clone();
    shuffled.ports[0].v4.reverse();
    assert!(!put(&mut compiler, &shuffled, &["192.0.2.1"]).0);
    assert_eq!(*before, *compiler.freeze());
    assert_eq!(compiler.update(&lb.key, None), (true, vec![]));
    assert_eq!(compiler.update(&lb.key, None), (false, vec![]));
    assert!(compiler.freeze().is_empty());
}

#[test]
fn the_older_has_the_frontend_and_the_other_heals_when_it_goes() {
    let mut compiler = compiler();
    let young = balancer("young", Some(20), vec![port(80, &["10.0.0.2:80"], &[])]);
    let old = balancer("old", Some(10), vec![port(80, &["10.0.0.1:80"], &[])]);
    let undated = balancer("aaa", None, vec![port(80, &["10.0.0.3:80"], &[])]);
    let vip = ["192.0.2.1"];
    assert_eq!(put(&mut compiler, &young, &vip), (true, vec![]));

    // An older one takes over, and the younger hears of it.
    assert_eq!(put(&mut compiler, &old, &vip), (true, vec![]));
    let hear = [young.key.clone(), old.key.clone()];
    assert_eq!(compiler.take_affected(), hear.into());
    let table = compiler.freeze();
    assert_eq!(addresses(&at(&table, vip[0], 80)), ["10.0.0.1:80"]);
    let frontend = at(&table, vip[0], 80).key;
    let taken = vec![Reason::FrontendTaken {
        frontend,
        holder: old.key.clone(),
    }];
    assert_eq!(compiler.reasons(&young.key), taken);
    assert_eq!(compiler.frontends_of(&young.key).count(), 0);

    // One without a date comes last, whatever its name, and changes nothing.
    assert_eq!(put(&mut compiler, &undated, &vip), (false, taken.clone()));
    assert!(compiler.take_affected().is_empty());

    // What the waiting one changes meanwhile counts once it is served.
    let mut changed = young.clone();
    changed.ports[0].v4 = vec![backend("10.0.0.22:80")];
    assert_eq!(put(&mut compiler, &changed, &vip), (false, taken));

    assert_eq!(compiler.update(&old.key, None), (true, vec![]));
    let both = [young.key.clone(), undated.key.clone()];
    assert_eq!(compiler.take_affected(), both.into());
    assert_eq!(
        addresses(&at(&compiler.freeze(), vip[0], 80)),
        ["10.0.0.22:80"]
    );
    assert_eq!(compiler.reasons(&young.key), []);
    let behind = Reason::FrontendTaken {
        frontend,
        holder: young.key.clone(),
    };
    assert_eq!(compiler.reasons(&undated.key), [behind]);
}

#[test]
fn a_refused_frontend_says_why_and_leaves_the_others_served() {
    let mut compiler = compiler();
    let good = port(81, &["10.0.0.1:81"], &[]);
    let lb = balancer(
        "a",
        None,
        vec![port(80, &["10.0.0.1:80"], &[]), good.clone()],
    );
    put(&mut compiler, &lb, &["192.0.2.1"]);
    let lb = balancer("a", None, vec![port(80, &["192.0.2.1:80"], &[]), good]);
    let (changed, reasons) = put(&mut compiler, &lb, &["192.0.2.1"]);
    assert!(changed);
    let [Reason::FrontendInvalid { problem }] = &*reasons else {
        panic!("{reasons:?}");
    };
    assert!(
        problem.contains("192.0.2.1:80/tcp") && problem.contains("itself"),
        "{problem}"
    );
    assert_eq!(compiler.freeze().len(), 1);
}

/// 3,000 tenants ask for the same frontend, each with an older date than the last.
#[test]
fn a_crowd_for_one_frontend_costs_no_square() {
    let mut compiler = compiler();
    let begun = std::time::Instant::now();
    for at in 0..3_000 {
        let ports = (1..=20).map(|n| port(n, &["10.0.0.1:80"], &[])).collect();
        let lb = balancer(&format!("s{at}"), Some(-at), ports);
        let (changed, reasons) = put(&mut compiler, &lb, &["192.0.2.1"]);
        assert!(changed && reasons.is_empty());
    }
    assert_eq!(compiler.take_affected().len(), 3_000);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn a_maglev_pool_past_its_limit_is_served_by_consistent_hash() {
    let mut compiler = compiler();
    let backends = |count: u32| -> Vec<Backend> {
        let address = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 80));
        (1..=count)
            .map(|n| Backend {
                address: address(n),
                ..backend("10.0.0.1:80")
            })
            .collect()
    };
    let mut lb = balancer("a", None, vec![port(80, &[], &[])]);
    lb.algorithm = Algorithm::Maglev;
    lb.ports[0].v4 = backends(1_025);
    let (_, reasons) = put(&mut compiler, &lb, &["192.0.2.1"]);
    assert!(matches!(
        &*reasons,
        [Reason::MaglevPoolTooLarge {
            count: 1_025,
            most: 1_024,
            ..
        }]
    ));
    let algorithm = |c: &mut Compiler| at(&c.freeze(), "192.0.2.1", 80).pool.algorithm;
    assert_eq!(algorithm(&mut compiler), Algorithm::Consistent);
    lb.ports[0].v4 = backends(10);
    assert_eq!(put(&mut compiler, &lb, &["192.0.2.1"]), (true, vec![]));
    assert_eq!(algorithm(&mut compiler), Algorithm::Maglev);
}

/// One of a few load balancers, with few enough addresses that they often collide.
fn change() -> impl Strategy<Value = (u8, Option<(LoadBalancer, Vec<IpAddr>)>)> {
    let spec = (
        proptest::option::of(0i64..3),
        proptest::collection::vec((80u16..82, 0u8..3), 1..3),
        proptest::collection::vec(1u8..4, 0..3),
    );
    (0u8..5, proptest::option::weighted(0.8, spec)).prop_map(|(who, spec)| {
        let made = spec.map(|(created, ports, vips)| {
            let mut ports: Vec<Port> = ports
                .into_iter()
                .map(|(number, n)| port(number, &[&format!("10.0.{n}.{who}:80")], &[]))
                .collect();
            ports.dedup_by_key(|p| p.port);
            let vips = vips.iter().map(|n| IpAddr::from([192, 0, 2, *n])).collect();
            (balancer(&format!("s{who}"), created, ports), vips)
        });
        (who, made)
    })
}

/// Everything but the slots, which tell the past.
fn content(compiler: &mut Compiler) -> Vec<Arc<Frontend>> {
    let table = compiler.freeze();
    let mut frontends: Vec<_> = table.iter().map(|(_, f)| Arc::clone(f)).collect();
    frontends.sort_by_key(|f| f.key);
    frontends
}

proptest! {
    /// Any past and any order: the table and all reasons are those of the last words alone, and
    /// whoever's reasons changed without being told is named.
    #[test]
    fn only_the_last_words_count(
        changes in proptest::collection::vec(change(), 1..40),
        order in Just([0u8, 1, 2, 3, 4]).prop_shuffle(),
    ) {
        let mut lived = compiler();
        let mut last = BTreeMap::new();
        let mut table = lived.freeze();
        let mut known: BTreeMap<u8, Vec<Reason>> = BTreeMap::new();
        for (who, made) in changes {
            let key = key(&format!("s{who}"));
            let (changed, reasons) =
                lived.update(&key, made.as_ref().map(|(lb, vips)| (lb, vips.as_slice())));
            known.insert(who, reasons);
            last.insert(who, made);
            for other in lived.take_affected() {
                let who = other.name.as_bytes()[1] - b'0';
                known.insert(who, lived.reasons(&other));
            }
            let next = lived.freeze();
            prop_assert_eq!(changed, *next != *table);
            table = next;
        }
        let mut fresh = compiler();
        for who in order {
            if let Some(Some((lb, vips))) = last.get(&who) {
                fresh.update(&lb.key, Some((lb, vips.as_slice())));
            }
        }
        prop_assert_eq!(content(&mut lived), content(&mut fresh));
        for who in order {
            let key = key(&format!("s{who}"));
            prop_assert_eq!(lived.reasons(&key), fresh.reasons(&key));
            prop_assert_eq!(known.get(&who).cloned().unwrap_or_default(), fresh.reasons(&key));
            let held = |c: &Compiler| c.frontends_of(&key).map(|f| f.0).collect::<BTreeSet<_>>();
            prop_assert_eq!(held(&lived), held(&fresh));
        }
    }
}
