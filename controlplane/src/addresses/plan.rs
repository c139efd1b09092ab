//! What to add and remove so that the wanted VIPs are on the machine. PURE.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

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
    let index = Index::new(machine);
    for &address in wanted {
        let outcome = match index.found(address) {
            Some(outcome) => outcome,
            None => index.place(address, interface).map(|interface| {
                keep.insert((address, interface));
                if !index.ours.contains(&(address, interface)) {
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

/// A machine, arranged for a question about each of thousands of VIPs.
struct Index<'a> {
    interfaces: &'a [Interface],
    /// What is ours, and where.
    ours: BTreeSet<(IpAddr, u32)>,
    /// What is there without us; false: as a duplicate alone.
    theirs: BTreeMap<IpAddr, bool>,
    /// One address of theirs for each of the subnets, the smallest first; of equals the first interface, so that the
    /// answer is stable.
    subnets: Vec<&'a Present>,
}

impl<'a> Index<'a> {
    fn new(machine: &'a Machine) -> Index<'a> {
        let mut theirs = BTreeMap::new();
        let mut subnets = BTreeMap::new();
        let mut ours = BTreeSet::new();
        for present in &machine.addresses {
            if present.is_ours {
                ours.insert((present.address, present.interface));
                continue;
            }
            *theirs.entry(present.address).or_default() |= !present.is_duplicate;
            if let Some(subnet) = subnet(present) {
                let order = (Reverse(present.prefix), present.interface, subnet);
                subnets.entry(order).or_insert(present);
            }
        }
        Index {
            interfaces: &machine.interfaces,
            ours,
            theirs,
            subnets: subnets.into_values().collect(),
        }
    }

    /// Is `address` there without us?
    fn found(&self, address: IpAddr) -> Option<Result<Placed, PlanError>> {
        if let Some(usable) = self.theirs.get(&address) {
            return Some(match usable {
                true => Ok(Placed::Found),
                false => Err(PlanError::Duplicate),
            });
        }
        // Every IPv4 address of a loopback device's subnet is local, as all of 127.0.0.0/8 is.
        let loopback = |interface: &Interface| interface.is_loopback;
        let is_local = address.is_ipv4() && self.subnet_of(address, loopback).is_some();
        is_local.then_some(Ok(Placed::Found))
    }

    fn place(&self, address: IpAddr, configured: Option<&str>) -> Result<u32, PlanError> {
        if let Some(name) = configured {
            let mut all = self.interfaces.iter();
            let found = all.find(|interface| interface.name == name);
            return found
                .map(|interface| interface.index)
                .ok_or_else(|| PlanError::NoInterface {
                    name: name.to_owned(),
                });
        }
        self.subnet_of(address, |interface| {
            interface.is_up && !interface.is_loopback
        })
        .or_else(|| {
            let mut all = self.interfaces.iter();
            let loopback = all.find(|interface| interface.is_loopback)?;
            Some(loopback.index)
        })
        .ok_or(PlanError::NoPlace)
    }

    /// The interface with the smallest subnet that contains `address`, of those that `suits`.
    fn subnet_of(&self, address: IpAddr, suits: impl Fn(&Interface) -> bool) -> Option<u32> {
        let mut fitting = self.subnets.iter().filter(|present| {
            let in_subnet = subnet_at(address, present.prefix);
            in_subnet.is_some() && in_subnet == subnet(present)
        });
        let found = fitting.find(|present| {
            let mut all = self.interfaces.iter();
            all.any(|interface| interface.index == present.interface && suits(interface))
        });
        found.map(|present| present.interface)
    }
}

/// The first address of the subnet that `present` brings. A subnet of one address contains no other, and link-local
/// subnets are on every interface and say nothing.
fn subnet(present: &Present) -> Option<IpAddr> {
    let is_link_local = match present.address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    subnet_at(present.address, present.prefix).filter(|_| !is_link_local)
}

/// The first address of the subnet of this prefix that `address` is in, if it has others.
fn subnet_at(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let net = IpNet::new(address, prefix).ok()?;
    (net.prefix_len() < net.max_prefix_len()).then(|| net.network())
}
