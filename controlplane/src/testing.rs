//! What tests of many modules need.

use std::sync::Arc;

use crate::object::{Key, Kind, SourceId};

/// A key of the first source, without a cluster or a UID.
pub(crate) fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    Key {
        source: SourceId(0),
        cluster: Arc::default(),
        kind,
        namespace: namespace.into(),
        name: name.into(),
        uid: Arc::default(),
    }
}

/// As [`key`], of a Service.
pub(crate) fn service(namespace: &str, name: &str) -> Key {
    key(Kind::Service, namespace, name)
}
