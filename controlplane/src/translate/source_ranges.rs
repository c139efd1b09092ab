//! Who may connect. Fails closed: what cannot be read denies everybody rather than nobody.

use ipnet::IpNet;

use crate::annotations::{self, Meaning};
use crate::object::{Family, Service};
use crate::reason::Reason;

use super::LISTED;
use super::address::parse_prefix;
use super::text::shown;

/// The ranges that may connect, sorted, or `None` for everybody.
///
/// The field counts if it has any entry, even a blank one; the legacy annotation only if the field
/// is empty, as in the service controller's helpers, where a blank annotation allows everybody.
/// Entries are trimmed, because validation lets blanks in. One entry that is no CIDR denies all
/// clients, and a family of the Service's VIPs without an entry is denied: this appliance is the
/// only place that applies the ranges, and a list is a wish to keep others out.
pub fn sources(
    service: &Service,
    families: &[Family],
    reasons: &mut Vec<Reason>,
) -> Option<Vec<IpNet>> {
    let legacy = annotations::of(&service.meta.annotations, Meaning::SourceRanges)
        .map(|(_, value)| value.trim())
        .find(|value| !value.is_empty());
    let entries: Vec<&str> = match legacy {
        _ if !service.source_ranges.is_empty() => {
            service.source_ranges.iter().map(|entry| &**entry).collect()
        }
        Some(list) => list.split(',').collect(),
        None => return None,
    };
    let mut ranges = Vec::with_capacity(entries.len());
    let mut bad = Vec::new();
    for entry in entries {
        match parse_prefix(entry.trim()) {
            Some(range) => ranges.push(range),
            None => bad.push(Reason::BadSourceRange {
                range: shown(entry),
            }),
        }
    }
    if !bad.is_empty() {
        bad.sort_unstable();
        bad.dedup();
        bad.truncate(LISTED);
        reasons.append(&mut bad);
        return Some(Vec::new());
    }
    ranges.sort_unstable();
    ranges.dedup();
    for &family in families {
        if !ranges
            .iter()
            .any(|range| Family::of(range.addr()) == family)
        {
            reasons.push(Reason::FamilyDenied { family });
        }
    }
    Some(ranges)
}
