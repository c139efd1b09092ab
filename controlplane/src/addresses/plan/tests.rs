use proptest::prelude::*;

use super::*;

const LO: u32 = 1;
const ETH0: u32 = 2;
const ETH1: u32 = 3;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn set(text: &str) -> BTreeSet<IpAddr> {
    text.split_whitespace().map(ip).collect()
}

fn machine(addresses: &[(&str, u8, u32, bool)]) -> Machine {
    let interface = |index, name: &str| Interface {
        index,
        name: name.to_owned(),
        is_loopback: index == LO,
        is_up: true,
        mac: None,
    };
    Machine {
        interfaces: vec![
            interface(LO, "lo"),
            interface(ETH0, "eth0"),
            interface(ETH1, "eth1"),
        ],
        addresses: addresses
            .iter()
            .map(|&(address, prefix, interface, is_ours)| Present {
                address: ip(address),
                prefix,
                interface,
                is_ours,
                is_duplicate: false,
            })
            .collect(),
    }
}

fn base() -> Vec<(&'static str, u8, u32, bool)> {
    vec![
        ("127.0.0.1", 8, LO, false),
        ("::1", 128, LO, false),
        ("192.0.2.1", 24, ETH0, false),
        ("192.0.2.129", 25, ETH1, false),
        ("2001:db8::1", 64, ETH1, false),
        ("fe80::1", 64, ETH0, false),
    ]
}

fn added(machine: &Machine, address: &str, configured: Option<&str>) -> u32 {
    let plan = plan(&set(address), machine, configured);
    match plan.outcome[&ip(address)] {
        Ok(Placed::Added { interface }) => {
            assert_eq!(
                plan.steps,
                [Step::Add {
                    address: ip(address),
                    interface
                }]
            );
            interface
        }
        ref other => panic!("{address}: {other:?}"),
    }
}

#[test]
fn the_smallest_subnet_that_contains_it_else_lo() {
    let machine = machine(&base());
    assert_eq!(added(&machine, "192.0.2.7", None), ETH0);
    assert_eq!(added(&machine, "192.0.2.200", None), ETH1);
    assert_eq!(added(&machine, "198.51.100.1", None), LO);
    assert_eq!(added(&machine, "2001:db8::9", None), ETH1);
    assert_eq!(added(&machine, "2001:db8:1::9", None), LO);
    assert_eq!(added(&machine, "192.0.2.7", Some("eth1")), ETH1);
    let plan = plan(&set("192.0.2.7"), &machine, Some("eth7"));
    assert!(plan.steps.is_empty());
    assert_eq!(
        plan.outcome[&ip("192.0.2.7")],
        Err(PlanError::NoInterface {
            name: "eth7".into()
        })
    );
}

#[test]
fn what_is_there_is_used_as_it_is() {
    let machine = machine(&base());
    let wanted = set("192.0.2.1 2001:db8::1 127.0.0.1 127.9.9.9 ::1");
    let plan = plan(&wanted, &machine, Some("eth0"));
    assert!(plan.steps.is_empty());
    assert!(
        plan.outcome
            .values()
            .all(|outcome| *outcome == Ok(Placed::Found))
    );
}

#[test]
fn a_duplicate_is_not_used() {
    let mut machine = machine(&base());
    machine.addresses[4].is_duplicate = true;
    let plan = plan(&set("2001:db8::1"), &machine, None);
    assert_eq!(plan.outcome[&ip("2001:db8::1")], Err(PlanError::Duplicate));
}

#[test]
fn leftovers_are_taken_over_moved_or_cleaned() {
    let mut addresses = base();
    addresses.push(("192.0.2.7", 32, ETH0, true));
    addresses.push(("192.0.2.8", 32, LO, true));
    addresses.push(("192.0.2.9", 32, ETH0, true));
    let plan = plan(&set("192.0.2.7 192.0.2.8"), &machine(&addresses), None);
    assert_eq!(
        plan.steps,
        [
            Step::Add {
                address: ip("192.0.2.8"),
                interface: ETH0
            },
            Step::Remove {
                address: ip("192.0.2.8"),
                prefix: 32,
                interface: LO
            },
            Step::Remove {
                address: ip("192.0.2.9"),
                prefix: 32,
                interface: ETH0
            },
        ]
    );
    assert_eq!(
        plan.outcome[&ip("192.0.2.7")],
        Ok(Placed::Added { interface: ETH0 })
    );
}

fn apply(machine: &mut Machine, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Add { address, interface } => machine.addresses.push(Present {
                address,
                prefix: if address.is_ipv4() { 32 } else { 128 },
                interface,
                is_ours: true,
                is_duplicate: false,
            }),
            Step::Remove {
                address, interface, ..
            } => machine
                .addresses
                .retain(|present| (present.address, present.interface) != (address, interface)),
        }
    }
}

/// One look at every address for each question, as the words of [`plan`] say it.
fn naive(address: IpAddr, machine: &Machine) -> Result<Placed, PlanError> {
    let theirs = || machine.addresses.iter().filter(|p| !p.is_ours);
    let on = |present: &Present, loopback: bool| {
        let mut all = machine.interfaces.iter();
        all.any(|i| {
            i.index == present.interface && i.is_loopback == loopback && (loopback || i.is_up)
        })
    };
    let contains = |present: &&Present| {
        let link_local = "fe80::/10"
            .parse::<IpNet>()
            .unwrap()
            .contains(&present.address);
        let subnet = IpNet::new(present.address, present.prefix).unwrap();
        !link_local && subnet.prefix_len() < subnet.max_prefix_len() && subnet.contains(&address)
    };
    let mut same = theirs().filter(|p| p.address == address).peekable();
    if same.peek().is_some() {
        return if same.any(|p| !p.is_duplicate) {
            Ok(Placed::Found)
        } else {
            Err(PlanError::Duplicate)
        };
    }
    if address.is_ipv4() && theirs().filter(contains).any(|p| on(p, true)) {
        return Ok(Placed::Found);
    }
    let best = theirs().filter(contains).filter(|p| on(p, false));
    let best = best.max_by_key(|p| (p.prefix, Reverse(p.interface)));
    Ok(Placed::Added {
        interface: best.map_or(LO, |p| p.interface),
    })
}

fn pick() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..4).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        (0u8..3).prop_map(|n| IpAddr::from([198, 51, 100, n])),
        (0u16..3).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ]
}

proptest! {
    #[test]
    fn every_place_is_the_one_that_a_look_at_everything_finds(
        addresses in proptest::collection::vec((pick(), 0u8..=32, 1u32..5, any::<bool>(), any::<bool>()), 0..8),
        wanted in proptest::collection::btree_set(pick(), 1..8),
        down in 1u32..5,
    ) {
        let mut machine = machine(&base());
        machine.interfaces.iter_mut().for_each(|i| i.is_up = i.index != down);
        for (address, shorter, interface, is_ours, is_duplicate) in addresses {
            let prefix = (if address.is_ipv4() { 32 } else { 128 }) - shorter;
            machine.addresses.push(Present { address, prefix, interface, is_ours, is_duplicate });
        }
        let found = plan(&wanted, &machine, None);
        for address in wanted {
            prop_assert_eq!(&found.outcome[&address], &naive(address, &machine));
        }
    }

    #[test]
    fn one_plan_is_enough_and_touches_nothing_of_others(
        theirs in proptest::collection::btree_set((pick(), 1u32..4), 0..6),
        ours in proptest::collection::btree_set((pick(), 1u32..4), 0..6),
        wanted in proptest::collection::btree_set(pick(), 0..8),
        configured in proptest::option::of(Just("eth1")),
    ) {
        let mut machine = machine(&base());
        let full = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        // The kernel has an address once on an interface.
        machine.addresses.retain(|p| !ours.iter().chain(&theirs).any(|(a, i)| (*a, *i) == (p.address, p.interface)));
        for (list, is_ours) in [(&theirs, false), (&ours, true)] {
            for &(address, interface) in list.iter().filter(|entry| !is_ours || !theirs.contains(entry)) {
                let (prefix, is_duplicate) = (full(address), false);
                machine.addresses.push(Present { address, prefix, interface, is_ours, is_duplicate });
            }
        }
        let others = |machine: &Machine| -> BTreeSet<Present> {
            machine.addresses.iter().filter(|present| !present.is_ours).cloned().collect()
        };
        let before = others(&machine);
        let first = plan(&wanted, &machine, configured);
        apply(&mut machine, &first.steps);
        prop_assert_eq!(others(&machine), before, "what is not ours is untouched");
        for address in &wanted {
            prop_assert!(machine.addresses.iter().any(|present| present.address == *address));
        }
        for present in machine.addresses.iter().filter(|present| present.is_ours) {
            prop_assert!(wanted.contains(&present.address), "given up and still there");
            let twice = machine.addresses.iter().filter(|p| p.address == present.address).count();
            prop_assert_eq!(twice, 1);
        }
        let second = plan(&wanted, &machine, configured);
        prop_assert!(second.steps.is_empty(), "{:?}", second.steps);
        prop_assert_eq!(second.outcome, first.outcome);
    }
}
