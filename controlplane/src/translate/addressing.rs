//! Which addresses a Service wants: families, pool, sharing key, wanted addresses.

use std::net::IpAddr;
use std::sync::Arc;

use crate::annotations::{self, Meaning};
use crate::load_balancer::Addressing;
use crate::object::{Family, FamilyPolicy, Service};
use crate::reason::Reason;

use super::Rules;
use super::address::parse;
use super::text::shown;

/// What `service` asks of the pools, or `None` if it asks for what cannot be granted: then the
/// reasons say why, and it gets no address rather than another one.
pub fn from_pools(
    service: &Service,
    rules: &Rules,
    reasons: &mut Vec<Reason>,
) -> Option<Addressing> {
    let mut requested = match requested(service, reasons) {
        Ok(requested) => requested,
        Err(problem) => {
            reasons.push(problem);
            return None;
        }
    };
    let (families, all) = families(service, &requested, rules);
    let foreign: Vec<Reason> = requested
        .iter()
        .filter(|address| !families.contains(&Family::of(**address)))
        .map(|&address| Reason::RequestedFamily { address })
        .collect();
    if !foreign.is_empty() {
        reasons.extend(foreign);
        return None;
    }
    requested.sort_by_key(|address| families.iter().position(|f| *f == Family::of(*address)));
    Some(Addressing::Pools {
        families,
        all,
        requested,
        pool: word(service, Meaning::Pool, reasons),
        sharing: word(service, Meaning::Sharing, reasons),
    })
}

/// The families of the VIPs in order, and whether the Service wants all of them or none.
///
/// The API server fills in `ipFamilies`; then there is one VIP per entry. A hand-written manifest
/// may lack it. Then the families of the wanted addresses count, and otherwise the one that the
/// pools have, IPv4 if both. The slices do not count: they come and go, and the VIP must not move
/// with them. A policy that names two families adds the missing one.
fn families(service: &Service, requested: &[IpAddr], rules: &Rules) -> (Vec<Family>, bool) {
    let mut families: Vec<Family> = Vec::with_capacity(2);
    let mut add = |family| {
        if !families.contains(&family) {
            families.push(family);
        }
    };
    service.ip_families.iter().for_each(|family| add(*family));
    let written = !service.ip_families.is_empty();
    if !written {
        requested
            .iter()
            .for_each(|address| add(Family::of(*address)));
        if requested.is_empty() {
            add(family_of_pools(rules));
        }
    }
    let both = match service.ip_family_policy {
        // With both families written, the entry in `ipFamilies` decides: on a single-stack cluster
        // the API server leaves one entry under PreferDualStack.
        FamilyPolicy::SingleStack => false,
        FamilyPolicy::PreferDualStack => !written,
        FamilyPolicy::RequireDualStack => true,
    };
    if both {
        add(Family::V4);
        add(Family::V6);
    }
    // Two families without a policy: the API server takes that for RequireDualStack.
    let all = match service.ip_family_policy {
        FamilyPolicy::SingleStack => written && families.len() > 1,
        FamilyPolicy::PreferDualStack => false,
        FamilyPolicy::RequireDualStack => true,
    };
    (families, all)
}

fn family_of_pools(rules: &Rules) -> Family {
    let v6_only = !rules.pools.is_empty() && rules.pools.iter().all(|(first, _)| first.is_ipv6());
    if v6_only { Family::V6 } else { Family::V4 }
}

/// The wanted addresses: our annotation, else the first alias, else spec.loadBalancerIP.
fn requested(service: &Service, reasons: &mut Vec<Reason>) -> Result<Vec<IpAddr>, Reason> {
    let mut chosen: Option<(&str, Vec<IpAddr>)> = None;
    for (name, value) in annotations::of(&service.meta.annotations, Meaning::Addresses) {
        if value.trim().is_empty() {
            continue;
        }
        match &chosen {
            None => chosen = Some((name, list(name, value)?)),
            Some((first, addresses)) => {
                if list(name, value).ok().as_ref() != Some(addresses) {
                    reasons.push(outranked(name, first));
                }
            }
        }
    }
    let field = match service.load_balancer_ip.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => Some(parse(text).ok_or_else(|| bad(FIELD, text))?),
    };
    match (chosen, field) {
        (None, field) => Ok(field.into_iter().collect()),
        (Some((name, addresses)), Some(field)) if !addresses.contains(&field) => {
            Err(Reason::ConflictingRequest {
                first: format!("annotation {}", shown(name)).into(),
                second: FIELD.into(),
            })
        }
        (Some((_, addresses)), _) => Ok(addresses),
    }
}

const FIELD: &str = "spec.loadBalancerIP";

/// A comma-separated list with at most one address per family, sorted.
fn list(name: &str, value: &str) -> Result<Vec<IpAddr>, Reason> {
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(2);
    for text in value.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let place = || format!("annotation {}", shown(name));
        let address = parse(text).ok_or_else(|| bad(&place(), text))?;
        match addresses
            .iter()
            .find(|a| Family::of(**a) == Family::of(address))
        {
            None => addresses.push(address),
            Some(same) if *same == address => {}
            Some(other) => {
                return Err(Reason::BadAddressRequest {
                    place: place().into(),
                    problem: format!(
                        "{other} and {address} are of one family; give at most one per family"
                    )
                    .into(),
                });
            }
        }
    }
    addresses.sort_unstable();
    Ok(addresses)
}

fn bad(place: &str, text: &str) -> Reason {
    Reason::BadAddressRequest {
        place: place.into(),
        problem: format!("\"{}\" is not an IP address", shown(text)).into(),
    }
}

/// The best-ranked value of `meaning` that is not blank, trimmed.
pub fn word(service: &Service, meaning: Meaning, reasons: &mut Vec<Reason>) -> Option<Arc<str>> {
    let mut chosen: Option<(&str, &str)> = None;
    for (name, value) in annotations::of(&service.meta.annotations, meaning) {
        let value = value.trim();
        match chosen {
            _ if value.is_empty() => {}
            None => chosen = Some((name, value)),
            Some((first, best)) if best != value => reasons.push(outranked(name, first)),
            Some(_) => {}
        }
    }
    chosen.map(|(_, value)| value.into())
}

/// The note for an annotation that says otherwise than one of higher rank.
pub fn outranked(name: &str, winner: &str) -> Reason {
    Reason::AnnotationIgnored {
        annotation: shown(name),
        problem: format!("{} says otherwise and has the higher rank", shown(winner)).into(),
    }
}
