//! A step in the API's words: a path and a strategic merge patch. PURE.

use serde_json::{Map, Value, json};

use super::plan::{Status, Step};
use crate::object::{Condition, FIELD_MANAGER, Ingress, Key, PortProtocol, Service};

/// The content type of all of them.
pub(super) const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

/// One patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) path: String,
    pub(super) body: Value,
}

/// `step` for `service`; `now` as RFC 3339 has it, for conditions that change their status.
pub(super) fn patch(service: &Service, step: &Step, now: &str) -> Patch {
    let key = &service.meta.key;
    let mut metadata = json!({ "uid": &*key.uid });
    let mut path = path(key);
    let mut body = Map::new();
    match step {
        Step::Claim(finalizers) => metadata["finalizers"] = json!(finalizers),
        Step::Release(finalizers) => {
            metadata["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
        }
        Step::Publish(status) => {
            path += "/status";
            body.insert("status".to_owned(), status_of(service, status, now));
        }
    }
    body.insert("metadata".to_owned(), metadata);
    Patch {
        path: format!("{path}?fieldManager={FIELD_MANAGER}"),
        body: Value::Object(body),
    }
}

/// Where the API server has this Service. Names were judged when it was read: none has a slash.
pub(super) fn path(key: &Key) -> String {
    format!("/api/v1/namespaces/{}/services/{}", key.namespace, key.name)
}

fn status_of(service: &Service, status: &Status, now: &str) -> Value {
    let Status {
        ingress,
        conditions,
        gone,
    } = status;
    let mut body = Map::new();
    if let Some(ingress) = ingress {
        let entries: Vec<Value> = ingress.iter().map(ingress_of).collect();
        // Not null: that would take the whole of loadBalancer, and somebody's next field with it.
        body.insert("loadBalancer".to_owned(), json!({ "ingress": entries }));
    }
    let conditions = conditions.iter().map(|condition| {
        let mut stored = service.stored.conditions.iter();
        let before = stored.find(|stored| stored.kind == condition.kind);
        condition_of(condition, before, now)
    });
    let gone = gone.iter();
    let gone = gone.map(|kind| json!({ "$patch": "delete", "type": kind }));
    let conditions: Vec<Value> = conditions.chain(gone).collect();
    if !conditions.is_empty() {
        body.insert("conditions".to_owned(), Value::Array(conditions));
    }
    Value::Object(body)
}

/// An entry of ingress as the API has it, but for its hostname: we write none.
pub(crate) fn ingress_of(entry: &Ingress) -> Value {
    let mut body = Map::new();
    if let Some(ip) = entry.ip {
        body.insert("ip".to_owned(), json!(ip.to_string()));
        let mode = if entry.proxied { "Proxy" } else { "VIP" };
        body.insert("ipMode".to_owned(), json!(mode));
    }
    if !entry.ports.is_empty() {
        let ports = entry.ports.iter().map(|port| {
            let protocol = match port.protocol {
                PortProtocol::Tcp => "TCP",
                PortProtocol::Udp => "UDP",
                PortProtocol::Sctp => "SCTP",
            };
            match &port.error {
                Some(error) => {
                    json!({ "port": port.port, "protocol": protocol, "error": &**error })
                }
                None => json!({ "port": port.port, "protocol": protocol }),
            }
        });
        body.insert("ports".to_owned(), ports.collect());
    }
    Value::Object(body)
}

fn condition_of(condition: &Condition, before: Option<&Condition>, now: &str) -> Value {
    let since = before
        .filter(|before| before.status == condition.status && !before.since.is_empty())
        .map_or(now, |before| &before.since);
    json!({
        "type": &*condition.kind,
        "status": &*condition.status,
        "reason": &*condition.reason,
        "message": &*condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": since,
    })
}
