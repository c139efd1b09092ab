//! Kubernetes objects as this crate sees them: the fields that change a decision, parsed once at
//! the edge and bounded. What is not here is not read.
//!
//! Both sources make these from the same JSON value, so that a directory and an API server cannot
//! mean different things by the same text.

mod service;
mod slice;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use service::{
    CLEANUP_FINALIZER, Condition, FIELD_MANAGER, FINALIZER, FamilyPolicy, Ingress, IngressPort,
    Mark, PortProtocol, Rival, Service, ServicePort, ServiceType, Stored, TrafficPolicy, Version,
};
pub use slice::{AddressType, Endpoint, EndpointSlice, SlicePort, Trigger};

/// Which source an object came from; sources run together and never touch each other's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

/// The kinds that the control plane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node.
    Node,
    /// What `translate` makes of a Service; a cloud-controller may hand it in directly.
    LoadBalancer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::LoadBalancer => "LoadBalancer",
        })
    }
}

/// Names one object. The uid is part of it: the same name made anew is another object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Where it came from.
    pub source: SourceId,
    /// Which cluster, for sources that serve several; "" otherwise.
    pub cluster: Arc<str>,
    /// What it is.
    pub kind: Kind,
    /// "" for Nodes.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// "" where a file gives none.
    pub uid: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Where in a file an object stands; lines and columns count from 1, a column per character. On an
/// API server, its path there; line and column are 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file.
    pub file: Arc<PathBuf>,
    /// Line of the object's first key.
    pub line: u32,
    /// Column of it.
    pub column: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file's name is anybody's text: it may hold line feeds and what terminals obey.
        for c in self.file.to_string_lossy().chars() {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                c => c.escape_debug().try_for_each(|c| f.write_char(c))?,
            }
        }
        if self.line == 0 {
            return Ok(());
        }
        write!(f, ":{}:{}", self.line, self.column)
    }
}

/// What every object carries. Equality leaves out where it was read: an object that only moved
/// within its file did not change.
#[derive(Clone, Debug)]
pub struct Meta {
    /// Its key.
    pub key: Key,
    /// Labels and annotations that some rule reads (see `annotations`), bounded in size.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// As above.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// creationTimestamp, seconds since 1970.
    pub created: Option<i64>,
    /// A deletionTimestamp is set.
    pub deleting: bool,
    /// Where it was read, for messages.
    pub location: Option<Location>,
}

impl PartialEq for Meta {
    fn eq(&self, other: &Meta) -> bool {
        let Meta {
            key,
            labels,
            annotations,
            created,
            deleting,
            location: _,
        } = self;
        *key == other.key
            && *labels == other.labels
            && *annotations == other.annotations
            && *created == other.created
            && *deleting == other.deleting
    }
}

impl Eq for Meta {}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name, annotations, and all labels, which the node selector may name.
    pub meta: Meta,
    /// status.addresses of type InternalIP, then ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// spec.taints keys.
    pub taints: Vec<Arc<str>>,
}

/// What a source hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A load balancer, ready made.
    LoadBalancer(Arc<crate::load_balancer::LoadBalancer>),
}

impl Object {
    /// Its key.
    pub fn key(&self) -> &Key {
        match self {
            Object::Service(service) => &service.meta.key,
            Object::EndpointSlice(slice) => &slice.meta.key,
            Object::Node(node) => &node.meta.key,
            Object::LoadBalancer(load_balancer) => &load_balancer.key,
        }
    }

    /// Where it was read, if it came from a file.
    pub fn location(&self) -> Option<&Location> {
        match self {
            Object::Service(service) => service.meta.location.as_ref(),
            Object::EndpointSlice(slice) => slice.meta.location.as_ref(),
            Object::Node(node) => node.meta.location.as_ref(),
            Object::LoadBalancer(_) => None,
        }
    }
}

/// The one stream of changes. Between `Init` and `InitDone` of a kind every object that still
/// exists is applied; what was not is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A list of this kind begins.
    Init(Kind),
    /// An object as it is now.
    Apply(Object),
    /// An object was deleted.
    Delete(Key),
    /// The list is complete.
    InitDone(Kind),
    /// There is no list of this kind now, and nobody knows when: it is not to be waited for.
    Unavailable(Kind),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_line_that_no_terminal_obeys() {
        let shown = |file: &str| {
            let file = Arc::new(PathBuf::from(file));
            let (line, column) = (3, 7);
            Location { file, line, column }.to_string()
        };
        assert_eq!(
            shown("/etc/weir/wär 'x'.yaml"),
            "/etc/weir/wär 'x'.yaml:3:7"
        );
        let file = Arc::new(PathBuf::from("/api/v1/namespaces/shop/services/web"));
        let (line, column) = (0, 0);
        let on_a_server = Location { file, line, column }.to_string();
        assert_eq!(on_a_server, "/api/v1/namespaces/shop/services/web");
        let hostile = shown("a\n2026 INFO all is well\x1b[2J\u{202e}.yaml");
        assert_eq!(
            hostile,
            r"a\n2026 INFO all is well\u{1b}[2J\u{202e}.yaml:3:7"
        );
    }
}
