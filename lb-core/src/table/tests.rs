use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

const KEY: HashKey = HashKey([1; 16]);

fn key(host: u8) -> FrontendKey {
    FrontendKey {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)),
        port: NonZeroU16::MIN,
        protocol: Protocol::Tcp,
    }
}

fn policy() -> Policy {
    Policy {
        sources: SourceRanges::any(),
        affinity: None,
        connect_timeout: Duration::from_millis(250),
        connect_budget: Duration::from_secs(3),
        idle_timeout: Duration::ZERO,
        half_close_timeout: Duration::from_secs(300),
        flow_one_way_timeout: Duration::from_secs(30),
        flow_two_way_timeout: Duration::from_secs(120),
    }
}

fn backend(address: &str) -> Backend {
    Backend {
        address: address.parse().unwrap(),
        weight: 1,
        state: BackendState::Active,
    }
}

fn spec(host: u8, backends: &[&str]) -> FrontendSpec {
    FrontendSpec {
        key: key(host),
        owner: Owner {
            group: "group".into(),
            name: "name".into(),
            port: "80".into(),
        },
        precedence: 0,
        algorithm: Algorithm::Consistent,
        backends: backends.iter().map(|a| backend(a)).collect(),
        policy: policy(),
    }
}

fn diff(old: &Table, new: &Table) -> Vec<(u32, Option<u8>, Option<u8>)> {
    let host = |f: Option<&Arc<Frontend>>| match f?.key.address {
        IpAddr::V4(v4) => Some(v4.octets()[3]),
        IpAddr::V6(_) => None,
    };
    let mut changes = Vec::new();
    Table::diff(old, new, |slot, a, b| {
        changes.push((slot.0, host(a), host(b)))
    });
    changes
}

#[test]
fn what_did_not_change_is_the_very_same() {
    let mut builder = TableBuilder::new(KEY);
    for host in 1..=200 {
        assert_eq!(
            builder.set(spec(host, &["10.0.0.1:80", "10.0.0.2:80"])),
            Ok(true)
        );
    }
    let before = builder.freeze();
    // The same in another order and with a duplicate is still the same.
    let same = spec(7, &["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(builder.set(same), Ok(false));
    assert_eq!(builder.set(spec(8, &["10.0.0.1:80"])), Ok(true));
    let after = builder.freeze();
    assert_eq!((before.generation, after.generation), (1, 2));
    for (slot, frontend) in after.iter() {
        let old = before.get(slot).unwrap();
        assert_eq!(Arc::ptr_eq(old, frontend), frontend.key != key(8));
    }
    let slot = builder.slot(&key(8)).unwrap();
    let (old, new) = (before.get(slot).unwrap(), after.get(slot).unwrap());
    assert!(!Arc::ptr_eq(&old.pool, &new.pool));
    assert!(Arc::ptr_eq(&old.policy, &new.policy));
    assert_eq!(diff(&before, &after), [(slot.0, Some(8), Some(8))]);
    assert_ne!(before, after);
}

#[test]
fn a_policy_change_keeps_the_pool() {
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec(1, &["10.0.0.1:80"])).unwrap();
    let before = builder.frontend(&key(1)).unwrap().clone();
    let mut changed = spec(1, &["10.0.0.1:80"]);
    changed.policy.affinity = Some(Duration::from_secs(60));
    assert_eq!(builder.set(changed), Ok(true));
    let after = builder.frontend(&key(1)).unwrap();
    assert!(Arc::ptr_eq(&before.pool, &after.pool));
    assert!(!Arc::ptr_eq(&before.policy, &after.policy));
}

#[test]
fn an_algorithm_change_is_a_new_pool() {
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec(1, &["10.0.0.1:80"])).unwrap();
    let before = builder.frontend(&key(1)).unwrap().clone();
    let mut changed = spec(1, &["10.0.0.1:80"]);
    changed.algorithm = Algorithm::RoundRobin;
    assert_eq!(builder.set(changed), Ok(true));
    assert!(!Arc::ptr_eq(
        &before.pool,
        &builder.frontend(&key(1)).unwrap().pool
    ));
}

#[test]
fn a_slot_that_changes_hands_is_an_end_and_a_start() {
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec(1, &[])).unwrap();
    builder.set(spec(2, &[])).unwrap();
    let before = builder.freeze();
    assert!(builder.remove(&key(1)) && !builder.remove(&key(1)));
    builder.freeze();
    builder.set(spec(3, &[])).unwrap();
    let after = builder.freeze();
    assert_eq!(builder.slot(&key(3)), Some(Slot(0)));
    assert_eq!(
        diff(&before, &after),
        [(0, Some(1), None), (0, None, Some(3))]
    );
}

#[test]
fn a_frontend_that_comes_back_before_the_freeze_was_never_away() {
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec(1, &["10.0.0.1:80"])).unwrap();
    builder.set(spec(2, &[])).unwrap();
    let before = builder.freeze();
    builder.remove(&key(1));
    builder.set(spec(3, &[])).unwrap();
    builder.set(spec(1, &["10.0.0.2:80"])).unwrap();
    let after = builder.freeze();
    assert_eq!(
        diff(&before, &after),
        [(0, Some(1), Some(1)), (2, None, Some(3))]
    );
}

#[test]
fn a_frontend_that_moved_ends_before_it_begins() {
    let mut builder = TableBuilder::new(KEY);
    builder.set(spec(1, &[])).unwrap();
    builder.set(spec(2, &[])).unwrap();
    let before = builder.freeze();
    builder.remove(&key(1));
    builder.remove(&key(2));
    builder.freeze();
    builder.set(spec(2, &[])).unwrap();
    let after = builder.freeze();
    assert_eq!(
        diff(&before, &after),
        [(0, Some(1), None), (1, Some(2), None), (0, None, Some(2))]
    );
}

#[test]
fn backends_are_canonical_and_either_family_may_serve() {
    let mut builder = TableBuilder::new(KEY);
    let mut mixed = spec(
        1,
        &["[2001:db8::1]:80", "10.0.0.1:80", "[::ffff:10.0.0.1]:80"],
    );
    mixed.backends[1].state = BackendState::Draining;
    mixed.backends[2].weight = 9;
    builder.set(mixed).unwrap();
    let frontend = builder.frontend(&key(1)).unwrap();
    // The active entry of the address counts, not the draining one.
    let found: Vec<_> = frontend.pool.backends.iter().collect();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].address, "10.0.0.1:80".parse().unwrap());
    assert_eq!((found[0].weight, found[0].state), (9, BackendState::Active));
    assert!(found[1].address.is_ipv6());
}

#[test]
fn usable_means_active_with_weight() {
    let mut builder = TableBuilder::new(KEY);
    let mut usable = |change: fn(&mut Backend)| {
        let mut spec = spec(1, &["10.0.0.1:80"]);
        change(&mut spec.backends[0]);
        builder.set(spec).unwrap();
        builder.frontend(&key(1)).unwrap().pool.has_usable()
    };
    assert!(usable(|_| {}));
    assert!(!usable(|b| b.weight = 0));
    assert!(!usable(|b| b.state = BackendState::Draining));
}

#[test]
fn bad_states_cannot_be_written() {
    let mut builder = TableBuilder::new(KEY);
    let good = spec(1, &["10.0.0.1:80"]);
    builder.set(good.clone()).unwrap();
    let before = builder.freeze();
    let mut refuse = |change: &dyn Fn(&mut FrontendSpec)| {
        let mut bad = good.clone();
        change(&mut bad);
        builder.set(bad).expect_err("bad").to_string()
    };

    for vip in [
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:0.0.0.0",
    ] {
        let said = refuse(&|s| s.key.address = vip.parse().unwrap());
        assert!(said.contains("cannot dial"), "{said}");
    }
    for address in [
        "0.0.0.0:80",
        "10.0.0.1:0",
        "[ff02::1]:80",
        "[::ffff:0.0.0.0]:80",
    ] {
        let said = refuse(&|s| s.backends.push(backend(address)));
        assert!(said.contains("cannot be dialled"), "{said}");
    }
    for itself in ["192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
        let said = refuse(&|s| s.backends.push(backend(itself)));
        assert!(said.contains("the frontend itself"), "{said}");
    }
    let crowd = |count: usize| {
        move |s: &mut FrontendSpec| {
            let hosts = (0..count as u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n));
            s.backends = hosts.map(|h| backend(&format!("{h}:80"))).collect();
        }
    };
    let said = refuse(&|s| crowd(MAX_POOL_BACKENDS + 1)(s));
    assert!(
        said.contains("65537 backends; Consistent takes 65536"),
        "{said}"
    );
    let said = refuse(&|s| {
        crowd(1_025)(s);
        s.algorithm = Algorithm::Maglev;
    });
    assert!(said.contains("1025 backends; Maglev takes 1024"), "{said}");

    let said = refuse(&|s| s.policy.connect_timeout = Duration::ZERO);
    assert!(
        said.contains("connect_timeout of 0ns must be above 0"),
        "{said}"
    );
    let said = refuse(&|s| s.policy.idle_timeout = MAX_TIMEOUT * 2);
    assert!(
        said.contains("idle_timeout") && said.contains("0 (never)"),
        "{said}"
    );
    let said = refuse(&|s| s.policy.affinity = Some(Duration::ZERO));
    assert!(said.contains("affinity"), "{said}");
    let said = refuse(&|s| s.policy.flow_one_way_timeout = Duration::ZERO);
    assert!(said.contains("flow_one_way_timeout"), "{said}");
    let said = refuse(&|s| s.policy.connect_timeout = Duration::from_secs(4));
    assert!(said.contains("longer than connect_budget"), "{said}");

    assert_eq!(*builder.freeze(), *before);
}

proptest! {
    /// The builder against a map of what was asked last, and every diff against the two maps.
    #[test]
    fn the_table_is_what_was_asked_last(
        steps in proptest::collection::vec((0u8..40, any::<Option<u8>>(), any::<bool>()), 1..120)
    ) {
        let mut builder = TableBuilder::new(KEY);
        let mut model: BTreeMap<FrontendKey, Vec<Backend>> = BTreeMap::new();
        let mut last = (builder.freeze(), model.clone());
        for (host, value, freeze) in steps {
            match value {
                Some(n) => {
                    let backends = [format!("10.0.0.{}:80", n % 3 + 1), format!("10.0.1.{}:80", n % 2)];
                    let spec = spec(host, &[&backends[0], &backends[1]]);
                    let new = model.insert(key(host), spec.backends.clone()) != Some(spec.backends.clone());
                    prop_assert_eq!(builder.set(spec).unwrap(), new);
                }
                None => {
                    let was = model.remove(&key(host)).is_some();
                    prop_assert_eq!(builder.remove(&key(host)), was);
                }
            }
            if !freeze {
                continue;
            }
            let table = builder.freeze();
            prop_assert_eq!(table.generation, last.0.generation + 1);
            prop_assert_eq!(table.len(), model.len());
            let found: BTreeMap<_, _> =
                table.iter().map(|(_, f)| (f.key, f.pool.backends.to_vec())).collect();
            prop_assert_eq!(&found, &model);
            let dense = table.iter().all(|(slot, f)| builder.slot(&f.key) == Some(slot));
            prop_assert!(dense);

            let mut replayed = last.1.clone();
            Table::diff(&last.0, &table, |_, before, after| {
                if let Some(f) = before {
                    assert_eq!(replayed.remove(&f.key), Some(f.pool.backends.to_vec()));
                }
                if let Some(f) = after {
                    assert_eq!(replayed.insert(f.key, f.pool.backends.to_vec()), None);
                }
            });
            prop_assert_eq!(&replayed, &model);
            last = (table, model.clone());
        }
    }
}
