//! EndpointSlices.

use std::sync::Arc;

use super::{MAX_TEXT, Reader, protocol};
use crate::annotations;
use crate::object::{AddressType, Endpoint, EndpointSlice, Meta, SlicePort, Trigger};
use crate::source::field::{FieldError, FieldProblem, Node};

/// discovery/v1: "each slice may include a maximum of 1000 endpoints" and "of 100 ports".
pub const MAX_ENDPOINTS_PER_SLICE: usize = 1000;
/// As above.
pub const MAX_PORTS_PER_SLICE: usize = 100;
/// discovery/v1: "must contain at least one address but no more than 100".
const MAX_ADDRESSES_PER_ENDPOINT: usize = 100;
/// discovery/v1: at most 8 hints; some room for versions to come.
const MAX_HINTS: usize = 64;
/// discovery/v1: set by the controllers, for latency alone.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Go writes 35 characters at most.
const MAX_TIME: usize = 64;
const ADDRESS_TYPES: &[(&str, AddressType)] = &[
    ("IPv4", AddressType::V4),
    ("IPv6", AddressType::V6),
    ("FQDN", AddressType::Fqdn),
];

impl Reader {
    pub(super) fn slice(
        &mut self,
        root: &Node<'_>,
        meta: Meta,
    ) -> Result<EndpointSlice, FieldError> {
        Ok(EndpointSlice {
            service: self.service_name(root)?,
            address_type: root
                .required("addressType")?
                .one_of(ADDRESS_TYPES, "IPv4, IPv6, FQDN")?,
            ports: self.slice_ports(root)?,
            endpoints: match root.field("endpoints")? {
                Some(endpoints) => self.endpoints(&endpoints)?,
                None => Vec::new(),
            },
            trigger: trigger(root),
            meta,
        })
    }

    fn endpoints(&mut self, endpoints: &Node<'_>) -> Result<Vec<Endpoint>, FieldError> {
        let entries = endpoints.entries(MAX_ENDPOINTS_PER_SLICE)?;
        // Room for exactly these: to collect results doubles it until it is enough.
        let mut read = Vec::with_capacity(entries.len());
        for endpoint in entries {
            read.push(self.endpoint(&endpoint)?);
        }
        Ok(read)
    }

    pub(super) fn service_name(&mut self, root: &Node<'_>) -> Result<Option<Arc<str>>, FieldError> {
        let metadata = root.required("metadata")?;
        match metadata.field("labels")? {
            Some(labels) => self.optional_text(&labels, annotations::LABEL_SERVICE_NAME),
            None => Ok(None),
        }
    }

    fn slice_ports(&mut self, root: &Node<'_>) -> Result<Vec<SlicePort>, FieldError> {
        let Some(ports) = root.field("ports")? else {
            return Ok(Vec::new());
        };
        let mut read = Vec::new();
        for port in ports.entries(MAX_PORTS_PER_SLICE)? {
            let name = port.field("name")?;
            let name = name.map(|name| name.text(MAX_TEXT)).transpose()?;
            let number = port.field("port")?;
            read.push(SlicePort {
                // "" is a name, and nil is none.
                name: name.map(|name| self.share(name)),
                protocol: protocol(&port)?,
                port: match number {
                    Some(number) => number.port_or_zero()?,
                    None => None,
                },
            });
        }
        Ok(read)
    }

    fn endpoint(&mut self, endpoint: &Node<'_>) -> Result<Endpoint, FieldError> {
        let addresses = endpoint.required("addresses")?;
        let address = match addresses.entries(MAX_ADDRESSES_PER_ENDPOINT)?.next() {
            Some(address) => Arc::from(address.text(MAX_TEXT)?),
            None => return Err(addresses.error(FieldProblem::Missing)),
        };
        let conditions = endpoint.field("conditions")?;
        let condition = |name: &str| -> Result<Option<bool>, FieldError> {
            let Some(conditions) = &conditions else {
                return Ok(None);
            };
            let condition = conditions.field(name)?;
            condition.map(|condition| condition.boolean()).transpose()
        };
        let hints = endpoint.field("hints")?;
        let hints = hints.as_ref();
        Ok(Endpoint {
            address,
            ready: condition("ready")?,
            serving: condition("serving")?,
            terminating: condition("terminating")?,
            node: self.optional_text(endpoint, "nodeName")?,
            zone: self.optional_text(endpoint, "zone")?,
            for_zones: hints.map_or(Ok(Vec::new()), |hints| self.names(hints, "forZones"))?,
            for_nodes: hints.map_or(Ok(Vec::new()), |hints| self.names(hints, "forNodes"))?,
            target: target(endpoint)?,
        })
    }

    /// `[{name: a}, {name: b}]`
    fn names(&mut self, hints: &Node<'_>, field: &str) -> Result<Vec<Arc<str>>, FieldError> {
        let Some(list) = hints.field(field)? else {
            return Ok(Vec::new());
        };
        list.entries(MAX_HINTS)?
            .map(|entry| Ok(self.share(entry.required("name")?.text(MAX_TEXT)?)))
            .collect()
    }
}

/// When the change was triggered. It is measured and nothing else: what is wrong with it refuses
/// no slice.
fn trigger(root: &Node<'_>) -> Trigger {
    let read = || {
        let metadata = root.field("metadata").ok()??;
        let annotations = metadata.field("annotations").ok()??;
        let time = annotations.field(TRIGGER_TIME).ok()??;
        let text = time.text(MAX_TIME).ok();
        Some(text.and_then(|text| text.parse::<jiff::Timestamp>().ok()))
    };
    match read() {
        None => Trigger::Absent,
        Some(None) => Trigger::Unreadable,
        Some(Some(time)) => Trigger::At(time.as_microsecond()),
    }
}

/// Which pod an endpoint is: its uid, or kind/namespace/name.
fn target(endpoint: &Node<'_>) -> Result<Option<Arc<str>>, FieldError> {
    let Some(target) = endpoint.field("targetRef")? else {
        return Ok(None);
    };
    let part = |name: &str| -> Result<String, FieldError> {
        let part = target.field(name)?;
        let text = part.map(|part| part.text(MAX_TEXT).map(str::to_owned));
        Ok(text.transpose()?.unwrap_or_default())
    };
    let uid = part("uid")?;
    if !uid.is_empty() {
        return Ok(Some(Arc::from(uid)));
    }
    let named = format!("{}/{}/{}", part("kind")?, part("namespace")?, part("name")?);
    Ok((named != "//").then(|| Arc::from(named)))
}
