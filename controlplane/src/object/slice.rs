//! An EndpointSlice.

use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Key, Kind, Meta, PortProtocol};

/// addressType of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// FQDN: has no semantics, never served.
    Fqdn,
}

/// One of a slice's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// `None` for a nil name, which matches nothing; "" is a valid name.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: PortProtocol,
    /// `None` for nil or 0.
    pub port: Option<NonZeroU16>,
}

/// One of a slice's endpoints. Conditions stay as written: `translate` holds the nil rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]` as written; parsed and judged by `translate`.
    pub address: Arc<str>,
    /// conditions.ready.
    pub ready: Option<bool>,
    /// conditions.serving.
    pub serving: Option<bool>,
    /// conditions.terminating.
    pub terminating: Option<bool>,
    /// nodeName.
    pub node: Option<Arc<str>>,
    /// zone.
    pub zone: Option<Arc<str>>,
    /// hints.forZones.
    pub for_zones: Vec<Arc<str>>,
    /// hints.forNodes.
    pub for_nodes: Vec<Arc<str>>,
    /// targetRef.uid or kind/namespace/name: which pod it is.
    pub target: Option<Arc<str>>,
}

/// When the change that an EndpointSlice came with was triggered, by its annotation
/// `endpoints.kubernetes.io/last-change-trigger-time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// It has none.
    Absent,
    /// It is no time: it is as good as none.
    Unreadable,
    /// Microseconds since 1970, by another machine's clock.
    At(i64),
}

/// An EndpointSlice. Equality leaves out when it was triggered: it changes nothing that is served.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    /// Name and labels.
    pub meta: Meta,
    /// Label kubernetes.io/service-name.
    pub service: Option<Arc<str>>,
    /// addressType.
    pub address_type: AddressType,
    /// ports.
    pub ports: Vec<SlicePort>,
    /// endpoints.
    pub endpoints: Vec<Endpoint>,
    /// What dates it.
    pub trigger: Trigger,
}

impl PartialEq for EndpointSlice {
    fn eq(&self, other: &EndpointSlice) -> bool {
        let EndpointSlice {
            meta,
            service,
            address_type,
            ports,
            endpoints,
            trigger: _,
        } = self;
        *meta == other.meta
            && *service == other.service
            && *address_type == other.address_type
            && *ports == other.ports
            && *endpoints == other.endpoints
    }
}

impl Eq for EndpointSlice {}

impl EndpointSlice {
    /// The Service that it belongs to, without uid, which a slice does not say.
    pub fn service_key(&self) -> Option<Key> {
        Some(Key {
            kind: Kind::Service,
            name: Arc::clone(self.service.as_ref()?),
            uid: Arc::default(),
            ..self.meta.key.clone()
        })
    }
}
