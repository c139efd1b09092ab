//! One JSON value -> one object: the only reading of Kubernetes objects there is, for files and
//! API servers alike. Typed strictly: a field of the wrong kind refuses its object, with the path
//! of the field, and nothing else.
//!
//! Limits are those that the API server itself enforces where it has one (validation of
//! discovery.k8s.io/v1 and core/v1), and generous where it has none.

mod node;
mod rival;
mod service;
mod slice;
mod stored;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

pub use self::slice::{MAX_ENDPOINTS_PER_SLICE, MAX_PORTS_PER_SLICE};
use super::field::{FieldError, Node, quoted};
use crate::annotations;
use crate::object::{Key, Kind, Location, Meta, Object, PortProtocol, SourceId};

/// Longest label value is 63, longest DNS name 253: nothing that is read is longer, but for
/// annotations.
const MAX_TEXT: usize = 256;
/// Longest annotation that some rule reads, and how many such an object may have. (All together
/// may be 256 KiB: apimachinery TotalAnnotationSizeLimitB. What no rule reads is not kept.)
const MAX_ANNOTATION: usize = 4096;
const MAX_ANNOTATIONS: usize = 64;
/// Labels of a node: all are kept, since its selector may name any. Cloud nodes with feature discovery
/// have some 150.
const MAX_NODE_LABELS: usize = 512;
/// Longest name of a label or annotation: a DNS name, a slash, 63 characters.
const MAX_LABEL: usize = 253 + 1 + 63;
/// Addresses of a node or of a Service's status.
const MAX_STATUS_ADDRESSES: usize = 256;
/// Distinct strings that are remembered to be shared.
const MAX_SHARED_STRINGS: usize = 65_536;

/// Why a value gives no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A kind that nothing here reads: left out, which is no fault.
    #[error("{api_version} {kind} is not read here")]
    Skipped {
        /// As written, cut.
        api_version: String,
        /// As written, cut.
        kind: String,
    },
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Reads the objects of one source. It shares repeated strings (namespaces, nodes, zones, port
/// names) among all objects that it reads, so keep one as long as the source.
#[derive(Debug)]
pub struct Reader {
    source: SourceId,
    cluster: Arc<str>,
    read_status: bool,
    strings: HashSet<Arc<str>>,
}

/// Reads one object; for many, keep a [`Reader`].
///
/// # Errors
/// The value is of no kind that is read, or a field of it is wrong.
pub fn object_from_value(
    source: SourceId,
    cluster: &Arc<str>,
    value: &Value,
) -> Result<Object, ObjectError> {
    Reader::new(source, Arc::clone(cluster)).object(value, None)
}

impl Reader {
    /// A reader for objects of this source and cluster that leaves out a Service's finalizers and
    /// status, as files have none of their own.
    pub fn new(source: SourceId, cluster: Arc<str>) -> Reader {
        let strings = HashSet::new();
        Reader {
            source,
            cluster,
            read_status: false,
            strings,
        }
    }

    /// Reads what an API server keeps for us too: finalizers and status.
    #[must_use]
    pub fn with_status(self) -> Reader {
        Reader {
            read_status: true,
            ..self
        }
    }

    /// Reads one object. `location` is where it stands, for messages.
    ///
    /// # Errors
    /// The value is of no kind that is read, or a field of it is wrong.
    pub fn object(
        &mut self,
        value: &Value,
        location: Option<Location>,
    ) -> Result<Object, ObjectError> {
        let root = Node::root(value);
        let kind = kind_of(&root)?;
        let meta = self.meta(&root, kind, location)?;
        Ok(match kind {
            Kind::Service => Object::Service(Arc::new(self.service(&root, meta)?)),
            Kind::EndpointSlice => Object::EndpointSlice(Arc::new(self.slice(&root, meta)?)),
            // `kind_of` gives no other.
            Kind::Node | Kind::LoadBalancer => Object::Node(Arc::new(self.node(&root, meta)?)),
        })
    }

    /// The key of an object that may otherwise be wrong, if that much of it can be read.
    pub fn key_of(&mut self, value: &Value) -> Option<Key> {
        let root = Node::root(value);
        let kind = kind_of(&root).ok()?;
        self.key(&root.field("metadata").ok()??, kind).ok()
    }

    /// The Service that an EndpointSlice, which may otherwise be wrong, says it belongs to, if that
    /// much of it can be read. Without uid.
    pub fn service_of(&mut self, value: &Value) -> Option<Key> {
        let root = Node::root(value);
        if kind_of(&root).ok()? != Kind::EndpointSlice {
            return None;
        }
        let metadata = root.field("metadata").ok()??;
        let namespace = match metadata.field("namespace").ok()? {
            Some(namespace) => namespace.name().ok()?,
            None => "default",
        };
        Some(Key {
            source: self.source,
            cluster: Arc::clone(&self.cluster),
            kind: Kind::Service,
            namespace: self.share(namespace),
            name: self.service_name(&root).ok()??,
            uid: Arc::default(),
        })
    }

    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.strings.get(text) {
            return Arc::clone(shared);
        }
        if self.strings.len() >= MAX_SHARED_STRINGS {
            self.strings.clear();
        }
        let shared: Arc<str> = Arc::from(text);
        self.strings.insert(Arc::clone(&shared));
        shared
    }

    fn key(&mut self, metadata: &Node<'_>, kind: Kind) -> Result<Key, FieldError> {
        let namespace = match (kind, metadata.field("namespace")?) {
            (Kind::Node, _) => "",
            (_, Some(namespace)) => namespace.name()?,
            // As kubectl has it.
            (_, None) => "default",
        };
        let uid = match metadata.field("uid")? {
            Some(uid) => uid.text(MAX_TEXT)?,
            None => "",
        };
        Ok(Key {
            source: self.source,
            cluster: Arc::clone(&self.cluster),
            kind,
            namespace: self.share(namespace),
            name: Arc::from(metadata.required("name")?.name()?),
            uid: Arc::from(uid),
        })
    }

    fn meta(
        &mut self,
        root: &Node<'_>,
        kind: Kind,
        location: Option<Location>,
    ) -> Result<Meta, FieldError> {
        let metadata = root.required("metadata")?;
        let created = metadata.field("creationTimestamp")?;
        Ok(Meta {
            key: self.key(&metadata, kind)?,
            labels: match kind {
                Kind::Node => self.texts(&metadata, "labels", |_| true, MAX_NODE_LABELS)?,
                _ => {
                    let is_read = |name: &str| annotations::LABELS.contains(&name);
                    self.texts(&metadata, "labels", is_read, MAX_ANNOTATIONS)?
                }
            },
            annotations: self.texts(
                &metadata,
                "annotations",
                annotations::is_read,
                MAX_ANNOTATIONS,
            )?,
            created: created.map(|created| created.time()).transpose()?,
            deleting: metadata.field("deletionTimestamp")?.is_some(),
            location,
        })
    }

    fn texts(
        &mut self,
        metadata: &Node<'_>,
        field: &str,
        wanted: fn(&str) -> bool,
        limit: usize,
    ) -> Result<BTreeMap<Arc<str>, Arc<str>>, FieldError> {
        let mut kept = BTreeMap::new();
        let Some(all) = metadata.field(field)? else {
            return Ok(kept);
        };
        for (name, value) in all.fields(wanted)? {
            if kept.len() == limit || name.len() > MAX_LABEL {
                let count = kept.len() + 1;
                return Err(all.error(super::FieldProblem::TooMany { count, limit }));
            }
            let value = value.text(MAX_ANNOTATION)?;
            kept.insert(self.share(name), Arc::from(value));
        }
        Ok(kept)
    }

    /// Text that is absent if empty.
    fn optional_text(
        &mut self,
        node: &Node<'_>,
        field: &str,
    ) -> Result<Option<Arc<str>>, FieldError> {
        let Some(text) = node.field(field)? else {
            return Ok(None);
        };
        let text = text.text(MAX_TEXT)?;
        Ok((!text.is_empty()).then(|| self.share(text)))
    }

    fn text_list(
        &mut self,
        node: &Node<'_>,
        field: &str,
        limit: usize,
    ) -> Result<Vec<Arc<str>>, FieldError> {
        let Some(list) = node.field(field)? else {
            return Ok(Vec::new());
        };
        list.entries(limit)?
            .map(|entry| Ok(self.share(entry.text(MAX_TEXT)?)))
            .collect()
    }
}

const PROTOCOLS: &[(&str, PortProtocol)] = &[
    ("TCP", PortProtocol::Tcp),
    ("UDP", PortProtocol::Udp),
    ("SCTP", PortProtocol::Sctp),
];
fn kind_of(root: &Node<'_>) -> Result<Kind, ObjectError> {
    let api_version = root.required("apiVersion")?.text(usize::MAX)?;
    let kind = root.required("kind")?.text(usize::MAX)?;
    match (api_version, kind) {
        ("v1", "Service") => Ok(Kind::Service),
        ("v1", "Node") => Ok(Kind::Node),
        ("discovery.k8s.io/v1", "EndpointSlice") => Ok(Kind::EndpointSlice),
        _ => Err(ObjectError::Skipped {
            api_version: quoted(api_version),
            kind: quoted(kind),
        }),
    }
}

/// The Go types write "" for some fields that are not set.
fn non_empty(node: Option<Node<'_>>) -> Result<Option<Node<'_>>, FieldError> {
    match node {
        Some(node) if node.text(usize::MAX)?.is_empty() => Ok(None),
        node => Ok(node),
    }
}

fn protocol(port: &Node<'_>) -> Result<PortProtocol, FieldError> {
    match non_empty(port.field("protocol")?)? {
        Some(protocol) => protocol.one_of(PROTOCOLS, "TCP, UDP, SCTP"),
        None => Ok(PortProtocol::Tcp),
    }
}

#[cfg(test)]
mod tests;
