//! Is there another provider of load balancers at work in a Service? Known by a finalizer that is a provider's own,
//! and by who wrote which field (metadata.managedFields). PURE, and lenient as all of what is stored.

use serde_json::Value;

use super::MAX_TEXT;
use crate::object::{CLEANUP_FINALIZER, FIELD_MANAGER, Mark};

/// Entries of managedFields that are looked at. The API server merges the oldest of more than 10 updates
/// (apimachinery DefaultMaxUpdateManagers); those of server-side apply come beside them.
const MAX_ENTRIES: usize = 256;
/// Finalizers of Services that only providers have: of AWS, of GKE's L4 controllers, of Alibaba Cloud.
const FINALIZERS: [&str; 3] = [
    "service.k8s.aws/",
    "gke.networking.io/l4-",
    "service.k8s.alibaba/",
];

/// What another provider is called, and by what it is known.
pub(super) fn rival<'a>(metadata: &'a Value, finalizers: &'a [String]) -> Option<(&'a str, Mark)> {
    let known = finalizers.iter().find(|name| {
        let mut prefixes = FINALIZERS.iter();
        prefixes.any(|prefix| name.starts_with(prefix))
    });
    if let Some(name) = known {
        return Some((name, Mark::Finalizer));
    }
    let has_cleanup = finalizers.iter().any(|name| name == CLEANUP_FINALIZER);
    let cleanup = format!("v:\"{CLEANUP_FINALIZER}\"");
    let managed = metadata.get("managedFields").and_then(Value::as_array);
    let managed = managed.filter(|all| all.len() <= MAX_ENTRIES);
    let entries = managed.into_iter().flatten().filter_map(|entry| {
        Some(Entry {
            manager: text(entry, "manager")?,
            time: text(entry, "time").unwrap_or_default(),
            wrote_status: has(entry, &["f:status", "f:loadBalancer", "f:ingress"]),
            wrote_cleanup: has_cleanup && has(entry, &["f:metadata", "f:finalizers", &cleanup]),
        })
    });
    let entries: Vec<Entry<'_>> = entries.collect();
    let writer = last(&entries, |entry| entry.wrote_status);
    let cleaner = last(&entries, |entry| entry.wrote_cleanup);
    let marks = [(writer, Mark::Status), (cleaner, Mark::Cleanup)];
    marks
        .into_iter()
        .find_map(|(manager, mark)| Some((manager?, mark)))
}

/// Who wrote something, and when.
struct Entry<'a> {
    manager: &'a str,
    /// RFC 3339 in UTC, as the API server has it: the later is the greater.
    time: &'a str,
    wrote_status: bool,
    wrote_cleanup: bool,
}

/// Who wrote it last, if we did not.
fn last<'a>(entries: &[Entry<'a>], wrote: impl Fn(&Entry<'a>) -> bool) -> Option<&'a str> {
    let all = entries.iter().filter(|entry| wrote(entry));
    let last = all.max_by_key(|entry| (entry.time, entry.manager == FIELD_MANAGER))?;
    (last.manager != FIELD_MANAGER).then_some(last.manager)
}

fn text<'a>(entry: &'a Value, field: &str) -> Option<&'a str> {
    let text = entry.get(field)?.as_str()?;
    (!text.is_empty() && text.len() <= MAX_TEXT).then_some(text)
}

/// Does an entry's fieldsV1 have this field?
fn has(entry: &Value, path: &[&str]) -> bool {
    let fields = entry.get("fieldsV1");
    let found = fields.and_then(|fields| path.iter().try_fold(fields, |at, name| at.get(*name)));
    found.is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}})
    }

    fn cleanup() -> Value {
        let name = format!("v:\"{CLEANUP_FINALIZER}\"");
        json!({"f:metadata": {"f:finalizers": {".": {}, name: {}}}})
    }

    fn entry(manager: &str, time: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": fields})
    }

    fn found(managed: &Value, finalizers: &[&str]) -> Option<(String, Mark)> {
        let metadata = json!({"managedFields": managed});
        let finalizers: Vec<String> = finalizers.iter().map(|name| (*name).to_owned()).collect();
        let found = rival(&metadata, &finalizers);
        found.map(|(name, mark)| (name.to_owned(), mark))
    }

    #[test]
    fn k21_another_writer_of_the_status_or_of_the_standard_finalizer_is_a_rival() {
        let rival = |name: &str, mark| Some((name.to_owned(), mark));
        let (early, late) = ("2026-11-26T10:00:00Z", "2026-11-26T10:00:09Z");
        let metallb = entry("controller", early, status());
        let ccm = entry("cloud-controller-manager", early, cleanup());
        let spec = entry("kubectl-create", late, json!({"f:spec": {"f:type": {}}}));
        let both = [CLEANUP_FINALIZER];
        for (managed, finalizers, expected) in [
            (json!([]), &both[..], None),
            (json!([spec]), &both[..], None),
            (
                json!([spec, metallb]),
                &[][..],
                rival("controller", Mark::Status),
            ),
            (
                json!([ccm]),
                &both[..],
                rival("cloud-controller-manager", Mark::Cleanup),
            ),
            // It is gone again.
            (json!([ccm]), &[][..], None),
            (
                json!([ccm, metallb]),
                &both[..],
                rival("controller", Mark::Status),
            ),
            (json!([entry("weir", early, status())]), &[][..], None),
            (
                json!([entry("weir", late, status()), metallb]),
                &[][..],
                None,
            ),
            (
                json!([entry("weir", early, status()), metallb]),
                &[][..],
                None,
            ),
            (
                json!([
                    entry("weir", early, status()),
                    entry("controller", late, status())
                ]),
                &[][..],
                rival("controller", Mark::Status),
            ),
            // Both finalizers are ours.
            (json!([entry("weir", early, cleanup())]), &both[..], None),
        ] {
            assert_eq!(found(&managed, finalizers), expected, "{managed}");
        }
    }

    #[test]
    fn a_providers_own_finalizer_is_enough_and_others_are_none() {
        for name in ["service.k8s.aws/resources", "gke.networking.io/l4-netlb-v2"] {
            let expected = Some((name.to_owned(), Mark::Finalizer));
            assert_eq!(found(&json!(null), &[name]), expected);
        }
        for name in [
            "ingress.openshift.io/operator",
            "foregroundDeletion",
            "weir.dev/load-balancer",
        ] {
            assert_eq!(found(&json!(null), &[name]), None, "{name}");
        }
    }

    #[test]
    fn what_is_odd_or_huge_is_as_if_it_were_not_there() {
        let long = "x".repeat(MAX_TEXT + 1);
        for managed in [
            json!("x"),
            json!({"manager": "controller"}),
            json!([null, 7, "x", []]),
            json!([{"manager": "controller"}, {"manager": 7, "fieldsV1": status()}]),
            json!([{"manager": "controller", "fieldsV1": {"f:status": {"f:loadBalancer": "x"}}}]),
            json!([{"manager": "", "fieldsV1": status()}, entry(&long, "", status())]),
            json!(vec![entry("controller", "", status()); MAX_ENTRIES + 1]),
        ] {
            assert_eq!(found(&managed, &[]), None);
        }
    }
}
