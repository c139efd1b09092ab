//! What is listed and watched: one kind, in one namespace or in all.

use std::fmt;
use std::sync::Arc;

use crate::object::{Key, Kind};

/// One list and watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// What is listed.
    pub kind: Kind,
    /// Where; `None`: everywhere.
    pub namespace: Option<Arc<str>>,
}

/// What the API server calls a kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource {
    pub api_version: &'static str,
    pub kind: &'static str,
    /// Below the server's address.
    pub root: &'static str,
    pub plural: &'static str,
    /// As RBAC names it.
    pub rbac: &'static str,
    pub is_namespaced: bool,
}

/// `None` for what no API server has.
pub(super) fn resource(kind: Kind) -> Option<Resource> {
    Some(match kind {
        Kind::Service => Resource {
            api_version: "v1",
            kind: "Service",
            root: "/api/v1",
            plural: "services",
            rbac: "services",
            is_namespaced: true,
        },
        Kind::EndpointSlice => Resource {
            api_version: "discovery.k8s.io/v1",
            kind: "EndpointSlice",
            root: "/apis/discovery.k8s.io/v1",
            plural: "endpointslices",
            rbac: "endpointslices.discovery.k8s.io",
            is_namespaced: true,
        },
        Kind::Node => Resource {
            api_version: "v1",
            kind: "Node",
            root: "/api/v1",
            plural: "nodes",
            rbac: "nodes",
            is_namespaced: false,
        },
        Kind::LoadBalancer => return None,
    })
}

impl Scope {
    /// One for each of `kinds` and `namespaces`; no namespace is all of them.
    pub(super) fn all(kinds: &[Kind], namespaces: &[Arc<str>]) -> Vec<Scope> {
        let mut scopes = Vec::new();
        for kind in kinds {
            let Some(resource) = resource(*kind) else {
                continue;
            };
            let everywhere = namespaces.is_empty() || !resource.is_namespaced;
            let places: Vec<Option<Arc<str>>> = match everywhere {
                true => vec![None],
                false => namespaces.iter().cloned().map(Some).collect(),
            };
            scopes.extend(places.into_iter().map(|namespace| Scope {
                kind: *kind,
                namespace,
            }));
        }
        scopes
    }

    /// Is an object of this key within it?
    pub(super) fn holds(&self, key: &Key) -> bool {
        let here = |namespace: &Arc<str>| *namespace == key.namespace;
        self.kind == key.kind && self.namespace.as_ref().is_none_or(here)
    }

    /// The path of its list, below the server's address.
    pub(super) fn path(&self) -> String {
        let Some(resource) = resource(self.kind) else {
            return String::new();
        };
        let Resource { root, plural, .. } = resource;
        match &self.namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{plural}"),
        }
    }

    /// The kind as RBAC names it.
    pub(super) fn rbac(&self) -> &'static str {
        resource(self.kind).map_or("", |resource| resource.rbac)
    }
}

impl fmt::Display for Scope {
    /// `services`, or `services in namespace shop`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(resource(self.kind).map_or("", |resource| resource.plural))?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// The path of an object, below the server's address.
pub(super) fn path_of(kind: Kind, namespace: &str, name: &str) -> String {
    let namespace = (!namespace.is_empty()).then(|| Arc::from(namespace));
    format!("{}/{name}", Scope { kind, namespace }.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_per_kind_and_namespace_and_nodes_are_in_none() {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        let paths = |namespaces: &[&str]| -> Vec<String> {
            let namespaces: Vec<Arc<str>> = namespaces.iter().map(|n| Arc::from(*n)).collect();
            let scopes = Scope::all(&kinds, &namespaces);
            scopes.iter().map(Scope::path).collect()
        };
        assert_eq!(
            paths(&[]),
            [
                "/api/v1/services",
                "/apis/discovery.k8s.io/v1/endpointslices",
                "/api/v1/nodes"
            ]
        );
        assert_eq!(
            paths(&["a", "b"]),
            [
                "/api/v1/namespaces/a/services",
                "/api/v1/namespaces/b/services",
                "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices",
                "/apis/discovery.k8s.io/v1/namespaces/b/endpointslices",
                "/api/v1/nodes"
            ]
        );
        assert_eq!(path_of(Kind::Node, "", "n1"), "/api/v1/nodes/n1");
        assert!(Scope::all(&[Kind::LoadBalancer], &[]).is_empty());
    }
}
