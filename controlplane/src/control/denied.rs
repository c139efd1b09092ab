//! What the API server does not let us read, and which Services that concerns. PURE.

use std::collections::BTreeMap;

use crate::object::{Kind, Service};
use crate::reason::Reason;
use crate::source::kubernetes::{Failure, SOURCE, Scope, Watch};

/// What there is to say of each list and watch that is forbidden.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Denied(BTreeMap<Scope, Reason>);

impl Denied {
    pub(super) fn of(watches: &BTreeMap<Scope, Watch>) -> Denied {
        let denied = watches.iter().filter_map(|(scope, watch)| {
            let failure = watch.failure.as_ref()?;
            Some((scope.clone(), reason(scope, failure)?))
        });
        Denied(denied.collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What concerns `service`, which is one that we serve: what its endpoints are, what itself is, and where
    /// nodes are dialled, what these are.
    pub(super) fn concerning<'a>(
        &'a self,
        service: &'a Service,
        looks_at_nodes: bool,
    ) -> impl Iterator<Item = Reason> + 'a {
        let key = &service.meta.key;
        let all = self.0.iter().filter(move |(scope, _)| {
            let here = scope.namespace.as_ref();
            let here = here.is_none_or(|namespace| *namespace == key.namespace);
            key.source == SOURCE && here && (scope.kind != Kind::Node || looks_at_nodes)
        });
        all.map(|(_, reason)| reason.clone())
    }
}

fn reason(scope: &Scope, failure: &Failure) -> Option<Reason> {
    let Failure::Forbidden {
        verb,
        resource,
        namespace,
        message: _,
    } = failure
    else {
        return None;
    };
    let place = match &**namespace {
        "" => String::new(),
        namespace => format!(" in namespace {namespace}"),
    };
    Some(Reason::VerbMissing {
        verb,
        resource,
        place: place.into(),
        file: match scope.kind {
            Kind::Node => "nodes.yaml",
            _ => "rbac.yaml",
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::object::{Object, SourceId};
    use crate::source::kubernetes::Origin;
    use crate::source::parse::Reader;

    fn service(source: SourceId, namespace: &str) -> Arc<Service> {
        let value = json!({"apiVersion": "v1", "kind": "Service", "spec": {},
            "metadata": {"name": "web", "namespace": namespace}});
        match Reader::new(source, Arc::default()).object(&value, None) {
            Ok(Object::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    fn watch(failure: Option<Failure>) -> Watch {
        Watch {
            begun: Instant::now(),
            contact: None,
            origin: Origin::Nothing,
            failure,
            lists: 0,
            failures: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    fn forbidden(verb: &'static str, resource: &'static str, namespace: &str) -> Option<Failure> {
        Some(Failure::Forbidden {
            verb,
            resource,
            namespace: namespace.to_owned(),
            message: "no".to_owned(),
        })
    }

    #[test]
    fn s16_each_missing_verb_stands_with_the_services_that_it_concerns() {
        let scope = |kind, namespace: Option<&str>| Scope {
            kind,
            namespace: namespace.map(Arc::from),
        };
        let slices = "endpointslices.discovery.k8s.io";
        let watches = [
            (
                scope(Kind::Service, None),
                watch(Some(Failure::Unauthorized)),
            ),
            (
                scope(Kind::EndpointSlice, Some("shop")),
                watch(forbidden("watch", slices, "shop")),
            ),
            (scope(Kind::EndpointSlice, Some("blog")), watch(None)),
            (
                scope(Kind::Node, None),
                watch(forbidden("list", "nodes", "")),
            ),
        ];
        let denied = Denied::of(&watches.into());
        let said = |source, namespace, looks_at_nodes| -> Vec<String> {
            let service = service(source, namespace);
            let reasons = denied.concerning(&service, looks_at_nodes);
            reasons.map(|reason| reason.to_string()).collect()
        };
        let in_shop = said(SOURCE, "shop", false);
        assert_eq!(in_shop.len(), 1, "{in_shop:?}");
        for part in [
            "watch endpointslices.discovery.k8s.io in namespace shop",
            "rbac.yaml",
        ] {
            assert!(in_shop[0].contains(part), "{in_shop:?}");
        }
        assert_eq!(said(SOURCE, "blog", false), [""; 0]);
        let nodes = said(SOURCE, "blog", true);
        assert_eq!(nodes.len(), 1, "{nodes:?}");
        for part in ["list nodes:", "nodes.yaml"] {
            assert!(nodes[0].contains(part), "{nodes:?}");
        }
        assert_eq!(said(SOURCE, "shop", true).len(), 2);
        assert_eq!(said(SourceId(0), "shop", true), [""; 0], "of a directory");
    }
}
