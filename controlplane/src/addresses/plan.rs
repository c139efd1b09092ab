//! What to add and remove so that the wanted VIPs are on the machine. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::object::Family;

/// One interface of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its kernel index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is a loopback device.
    pub is_loopback: bool,
    /// It is administratively up.
    pub is_up: bool,
    /// Its Ethernet address, if its link asks for others' by ARP and NDP.
    pub mac: Option<[u8; 6]>,
}

/// One address of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Present {
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix.
    pub prefix: u8,
    /// The interface that has it.
    pub interface: u32,
    /// This appliance put it there, in this process or an earlier one. One that another appliance
    /// put there is not ours, for all its mark.
    pub is_ours: bool,
    /// Another host has it (duplicate address detection): the kernel does not use it.
    pub is_duplicate: bool,
}

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Their addresses.
    pub addresses: Vec<Present>,
}

/// How a VIP comes to be on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It was there, and stays when we go.
    Found,
    /// We added it to the interface of this index, and remove it when it is given up.
    Added {
        /// The interface's index.
        interface: u32,
    },
}

/// Why a VIP has no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `--vip-interface` names none of the machine's.
    #[error("there is no interface {name}; correct --vip-interface, or create it")]
    NoInterface {
        /// As configured.
        name: String,
    },
    /// There is no loopback device either.
    #[error(
        "no interface has a subnet that contains it, and there is no loopback device; set --vip-interface"
    )]
    NoPlace,
    /// Duplicate address detection failed.
    #[error(
        "another host on the link has this address (duplicate address detection failed); take it from one of them, then remove and add it here"
    )]
    Duplicate,
}

/// One change to the machine. VIPs are added with a prefix of their full length: they bring no
/// subnet, and no address of another depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Put it there.
    Add {
        /// The VIP.
        address: IpAddr,
        /// Where.
        interface: u32,
    },
    /// Take ours away.
    Remove {
        /// The VIP.
        address: IpAddr,
        /// The prefix that it has.
        prefix: u8,
        /// From where.
        interface: u32,
    },
}

/// What to do, and what will be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// First additions, then removals: an address that moves is never gone.
    pub steps: Vec<Step>,
    /// Every wanted VIP, as it is once the steps are done.
    pub outcome: BTreeMap<IpAddr, Result<Placed, PlanError>>,
}

/// Compares what is wanted with what is there. An address that is there and not ours is used as
/// it is, wherever it is. Else it goes to `interface` if one is configured, else to the interface
/// with the smallest subnet that contains it, else to the loopback device. What is ours and not
/// wanted, or in the wrong place, goes.
pub fn plan(wanted: &BTreeSet<IpAddr>, machine: &Machine, interface: Option<&str>) -> Plan {
    let mut plan = Plan::default();
    let mut keep = BTreeSet::new();
    for &address in wanted {
        let outcome = match machine.found(address) {
            Some(outcome) => outcome,
            None => machine.place(address, interface).map(|interface| {
                keep.insert((address, interface));
                if !machine.has_ours(address, interface) {
                    plan.steps.push(Step::Add { address, interface });
                }
                Placed::Added { interface }
            }),
        };
        plan.outcome.insert(address, outcome);
    }
    for ours in machine.addresses.iter().filter(|present| present.is_ours) {
        if !keep.contains(&(ours.address, ours.interface)) {
            plan.steps.push(Step::Remove {
                address: ours.address,
                prefix: ours.prefix,
                interface: ours.interface,
            });
        }
    }
    plan
}

impl Machine {
    /// Is `address` there without us?
    fn found(&self, address: IpAddr) -> Option<Result<Placed, PlanError>> {
        let mut theirs = self
            .addresses
            .iter()
            .filter(|present| !present.is_ours && present.address == address)
            .peekable();
        if theirs.peek().is_some() {
            return Some(match theirs.any(|present| !present.is_duplicate) {
                true => Ok(Placed::Found),
                false => Err(PlanError::Duplicate),
            });
        }
        // Every IPv4 address of a loopback device's subnet is local, as all of 127.0.0.0/8 is.
        let is_local = address.is_ipv4()
            && self.addresses.iter().any(|present| {
                !present.is_ours
                    && self.is_loopback(present.interface)
                    && contains(present, address)
            });
        is_local.then_some(Ok(Placed::Found))
    }

    fn has_ours(&self, address: IpAddr, interface: u32) -> bool {
        self.addresses.iter().any(|present| {
            present.is_ours && present.address == address && present.interface == interface
        })
    }

    fn is_loopback(&self, index: u32) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.index == index && interface.is_loopback)
    }

    fn place(&self, address: IpAddr, configured: Option<&str>) -> Result<u32, PlanError> {
        if let Some(name) = configured {
            return self
                .interfaces
                .iter()
                .find(|interface| interface.name == name)
                .map(|interface| interface.index)
                .ok_or_else(|| PlanError::NoInterface {
                    name: name.to_owned(),
                });
        }
        let is_up = |index| {
            self.interfaces.iter().any(|interface| {
                interface.index == index && interface.is_up && !interface.is_loopback
            })
        };
        self.addresses
            .iter()
            .filter(|present| {
                !present.is_ours && contains(present, address) && is_up(present.interface)
            })
            // The longest prefix; of equals the first interface, so that the answer is stable.
            .max_by_key(|present| (present.prefix, std::cmp::Reverse(present.interface)))
            .map(|present| present.interface)
            .or_else(|| self.loopback())
            .ok_or(PlanError::NoPlace)
    }

    fn loopback(&self) -> Option<u32> {
        let mut loopbacks = self
            .interfaces
            .iter()
            .filter(|interface| interface.is_loopback);
        loopbacks.next().map(|interface| interface.index)
    }
}

/// Is `address` in the subnet of `present`? A subnet of one address contains no other, and
/// link-local subnets are on every interface and say nothing.
fn contains(present: &Present, address: IpAddr) -> bool {
    if Family::of(present.address) != Family::of(address) {
        return false;
    }
    let mask = |bits: u32| u128::MAX.checked_shl(bits - u32::from(present.prefix).min(bits));
    match (present.address, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let bits = |v4: Ipv4Addr| u128::from(v4.to_bits());
            present.prefix < 32 && (bits(a) ^ bits(b)) & mask(32).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let bits = |v6: Ipv6Addr| v6.to_bits();
            let is_link_local = a.is_unicast_link_local();
            present.prefix < 128
                && !is_link_local
                && (bits(a) ^ bits(b)) & mask(128).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
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

    fn pick() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u8..4).prop_map(|n| IpAddr::from([192, 0, 2, n])),
            (0u8..3).prop_map(|n| IpAddr::from([198, 51, 100, n])),
            (0u16..3).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
        ]
    }

    proptest! {
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
}
