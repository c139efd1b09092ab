//! The endpoints of all slices of a Service: judged, told apart, counted.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::load_balancer::EndpointCounts;
use crate::object::{AddressType, Endpoint, EndpointSlice, Family, ServicePort, SlicePort};
use crate::reason::Reason;

use super::address::parse;
use super::guard::refusal;
use super::text::shown;
use super::{LISTED, Rules};

/// What an endpoint's conditions say. The order is the order of preference among different pods
/// that say one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Takes new work.
    Ready,
    /// Terminating, and takes new work while nobody else does.
    Serving,
    /// Not ready yet, or not ready any more.
    NotReady,
    /// Terminating and done.
    Terminating,
}

/// For whom an endpoint's zone hint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// It has none, or this appliance is in no zone.
    None,
    /// For the appliance's zone.
    Ours,
    /// For other zones.
    Other,
}

/// One copy of an endpoint. Among the copies of one pod the first in this order counts: the newest,
/// then one with node information; the fields below only make the order total, so that the order
/// in which slices and endpoints come cannot matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate<'a> {
    /// Address and port; the port is 0 where only addresses are told apart.
    pub address: SocketAddr,
    /// Which pod; copies without one are the same endpoint.
    pod: Option<&'a str>,
    /// When its slice was made.
    created: Reverse<Option<i64>>,
    /// It comes without node information.
    nodeless: bool,
    /// What its conditions say.
    pub state: State,
    /// What its zone hint says.
    pub hint: Hint,
    /// Which node it is on.
    pub node: Option<&'a str>,
}

/// A slice whose endpoints were judged.
struct Judged<'a> {
    ports: &'a [SlicePort],
    family: Family,
    candidates: Vec<Candidate<'a>>,
}

/// Everything that the slices of one Service say.
pub struct Endpoints<'a> {
    slices: Vec<Judged<'a>>,
    /// How many there are by state, whatever their ports.
    pub counts: EndpointCounts,
    refused: BTreeSet<(Arc<str>, &'static str)>,
}

/// Reads the endpoints of `slices`.
pub fn gather<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, rules: &Rules) -> Endpoints<'a> {
    let mut refused = BTreeSet::new();
    let slices: Vec<Judged<'_>> = slices
        .filter_map(|slice| {
            let family = match slice.address_type {
                AddressType::V4 => Some(Family::V4),
                AddressType::V6 => Some(Family::V6),
                AddressType::Fqdn => None,
            };
            let mut candidates = Vec::with_capacity(slice.endpoints.len());
            for endpoint in &slice.endpoints {
                match judge(endpoint, family, rules) {
                    Ok(address) => candidates.push(candidate(slice, endpoint, address, rules)),
                    Err(problem) => {
                        refused.insert((shown(&endpoint.address), problem));
                    }
                }
            }
            Some(Judged {
                ports: &slice.ports,
                family: family?,
                candidates,
            })
        })
        .collect();
    Endpoints {
        counts: counts(&slices, refused.len()),
        slices,
        refused,
    }
}

fn counts(slices: &[Judged<'_>], refused: usize) -> EndpointCounts {
    let mut counts = EndpointCounts {
        refused: refused.try_into().unwrap_or(u32::MAX),
        ..EndpointCounts::default()
    };
    let all = slices.iter().flat_map(|slice| &slice.candidates);
    for candidate in distinct(all.copied().collect()) {
        let count = match candidate.state {
            State::Ready => &mut counts.ready,
            State::Serving => &mut counts.serving,
            State::NotReady => &mut counts.not_ready,
            State::Terminating => &mut counts.terminating,
        };
        *count += 1;
    }
    counts
}

const NOT_AN_ADDRESS: &str = "it is not an IP address";
const FQDN: &str = "an EndpointSlice of type FQDN has no meaning (discovery/v1); list addresses";
const NOT_V4: &str = "it is not an IPv4 address, and its EndpointSlice says IPv4";
const NOT_V6: &str = "it is not an IPv6 address, and its EndpointSlice says IPv6";

fn judge(
    endpoint: &Endpoint,
    family: Option<Family>,
    rules: &Rules,
) -> Result<IpAddr, &'static str> {
    let family = family.ok_or(FQDN)?;
    let address = parse(&endpoint.address).ok_or(NOT_AN_ADDRESS)?;
    // The address first: whoever hides a loopback address in a mapped form should read that.
    if let Some(problem) = refusal(address, rules) {
        return Err(problem);
    }
    match family {
        _ if Family::of(address) == family => Ok(address),
        Family::V4 => Err(NOT_V4),
        Family::V6 => Err(NOT_V6),
    }
}

fn candidate<'a>(
    slice: &'a EndpointSlice,
    endpoint: &'a Endpoint,
    address: IpAddr,
    rules: &Rules,
) -> Candidate<'a> {
    let hint = match &rules.zone {
        _ if endpoint.for_zones.is_empty() => Hint::None,
        None => Hint::None,
        Some(zone) if endpoint.for_zones.contains(zone) => Hint::Ours,
        Some(_) => Hint::Other,
    };
    Candidate {
        address: SocketAddr::new(address, 0),
        pod: endpoint.target.as_deref(),
        created: Reverse(slice.meta.created),
        nodeless: endpoint.node.is_none() && endpoint.zone.is_none(),
        state: state(endpoint),
        hint,
        node: endpoint.node.as_deref(),
    }
}

/// The nil rules of discovery/v1: nil ready is true, nil serving is true, nil terminating is
/// false. `ready` is looked at first: publishNotReadyAddresses makes even a terminating pod ready.
fn state(endpoint: &Endpoint) -> State {
    if endpoint.ready.unwrap_or(true) {
        State::Ready
    } else if !endpoint.terminating.unwrap_or(false) {
        State::NotReady
    } else if endpoint.serving.unwrap_or(true) {
        State::Serving
    } else {
        State::Terminating
    }
}

impl<'a> Endpoints<'a> {
    /// No slice has an endpoint that may be dialled.
    pub fn is_empty(&self) -> bool {
        self.slices.iter().all(|slice| slice.candidates.is_empty())
    }

    /// Does any slice list `port` by name and protocol?
    pub fn list(&self, port: &ServicePort) -> bool {
        self.slices
            .iter()
            .any(|slice| numbers(slice.ports, port).next().is_some())
    }

    /// How many backends `port` asks for, those that are written twice counted twice.
    pub fn size_of(&self, port: &ServicePort) -> usize {
        let slices = self.slices.iter();
        slices
            .map(|slice| numbers(slice.ports, port).count() * slice.candidates.len())
            .sum()
    }

    /// The endpoints of `family` for `port`, one per address and port number, sorted.
    pub fn of(&self, port: &ServicePort, family: Family) -> Vec<Candidate<'a>> {
        let mut found = Vec::new();
        for slice in self.slices.iter().filter(|slice| slice.family == family) {
            for number in numbers(slice.ports, port) {
                found.extend(slice.candidates.iter().map(|candidate| {
                    let mut candidate = *candidate;
                    candidate.address.set_port(number.get());
                    candidate
                }));
            }
        }
        distinct(found)
    }

    /// Names the refused endpoints, the first few one by one.
    pub fn refusals(&self, reasons: &mut Vec<Reason>) {
        for (address, problem) in self.refused.iter().take(LISTED) {
            reasons.push(Reason::EndpointRefused {
                address: address.clone(),
                problem,
            });
        }
        let more = self.refused.len().saturating_sub(LISTED);
        if more > 0 {
            reasons.push(Reason::MoreEndpointsRefused {
                count: more.try_into().unwrap_or(u32::MAX),
            });
        }
    }
}

/// The numbers that a slice gives for `port`: matched by name and protocol, never by targetPort,
/// which is resolved per pod. "" is a name; a nil name matches nothing, and nil or 0 is no number.
fn numbers<'s>(
    ports: &'s [SlicePort],
    port: &'s ServicePort,
) -> impl Iterator<Item = NonZeroU16> + 's {
    ports
        .iter()
        .filter(|slice| slice.name.as_ref() == Some(&port.name) && slice.protocol == port.protocol)
        .filter_map(|slice| slice.port)
}

/// One candidate per address and port. Of one pod the newest copy counts (it moved between
/// slices); among different pods, one of which inherited the other's address, the best state.
fn distinct(mut all: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    all.sort_unstable();
    all.dedup_by(|later, kept| later.address == kept.address && later.pod == kept.pod);
    all.sort_unstable_by_key(|c| (c.address, c.state, c.nodeless, c.created, c.hint, c.node));
    all.dedup_by(|later, kept| later.address == kept.address);
    all
}
