//! Leaving a cluster: takes our status, conditions and finalizers off its Services with nothing but
//! the API server, so that an appliance that is gone leaves nothing in Terminating.

use std::fmt;
use std::sync::Arc;

use http::Method;
use serde_json::Value;

use super::Intent;
use super::api::{Refusal, Write, send};
use super::patch::{STRATEGIC_MERGE, patch, path};
use super::plan::next;
use crate::object::{Key, Kind, Object, Service, SourceId};
use crate::source::kubernetes::Connection;
use crate::source::parse::Reader;

/// Services in one page of the list.
const PAGE: usize = 50;
/// Steps that one Service takes at most: status, finalizers, and once more if it changed meanwhile.
const STEPS: usize = 4;

/// Which Services to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every one that carries our finalizer.
    All,
    /// This one.
    One {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

/// What became of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Which.
    pub key: Key,
    /// Why it could not be left.
    pub problem: Option<String>,
}

/// The list of Services could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseError(String);

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ReleaseError {}

/// Leaves them, and says what became of each that was ours. A weir that still runs takes them
/// again: stop it first.
///
/// # Errors
/// The Services cannot be read, or the one named is not there.
pub async fn release(
    connection: &Connection,
    which: &Which,
) -> Result<Vec<Released>, ReleaseError> {
    let mut released = Vec::new();
    for service in services(connection, which).await? {
        if service.stored.finalizer {
            let problem = leave(connection, &service).await.err();
            released.push(Released {
                key: service.meta.key.clone(),
                problem: problem.map(|refusal| refusal.to_string()),
            });
        }
    }
    Ok(released)
}

async fn services(
    connection: &Connection,
    which: &Which,
) -> Result<Vec<Arc<Service>>, ReleaseError> {
    let refused =
        |path: &str, refusal: Refusal| ReleaseError(format!("cannot read {path}: {refusal}"));
    if let Which::One { namespace, name } = which {
        let key = Key {
            namespace: Arc::clone(namespace),
            name: Arc::clone(name),
            ..nobody()
        };
        let path = path(&key);
        let value = get(connection, &path).await;
        let value = value.map_err(|refusal| refused(&path, refusal))?;
        return Ok(read(&value).into_iter().collect());
    }
    let mut all = Vec::new();
    let mut from = String::new();
    loop {
        let path = format!("/api/v1/services?limit={PAGE}{from}");
        let page = get(connection, &path).await;
        let page = page.map_err(|refusal| refused("/api/v1/services", refusal))?;
        for item in page["items"].as_array().into_iter().flatten() {
            // An item of a list does not say what it is.
            let mut item = item.clone();
            item["apiVersion"] = "v1".into();
            item["kind"] = "Service".into();
            all.extend(read(&item));
        }
        match page["metadata"]["continue"].as_str() {
            None | Some("") => return Ok(all),
            Some(token) => from = format!("&continue={}", encoded(token)),
        }
    }
}

/// A token of the server's as part of a query.
fn encoded(token: &str) -> String {
    let mut text = String::new();
    for byte in token.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte));
            }
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

fn nobody() -> Key {
    Key {
        source: SourceId(0),
        cluster: Arc::default(),
        kind: Kind::Service,
        namespace: Arc::default(),
        name: Arc::default(),
        uid: Arc::default(),
    }
}

fn read(value: &Value) -> Option<Arc<Service>> {
    let mut reader = Reader::new(SourceId(0), Arc::default()).with_status();
    match reader.object(value, None) {
        Ok(Object::Service(service)) => Some(service),
        _ => None,
    }
}

async fn get(connection: &Connection, path: &str) -> Result<Value, Refusal> {
    let read = Write {
        method: Method::GET,
        path,
        content: "",
        body: &Value::Null,
    };
    send(connection, read).await
}

async fn leave(connection: &Connection, service: &Arc<Service>) -> Result<(), Refusal> {
    let mut service = Arc::clone(service);
    for _ in 0..STEPS {
        let intent = Intent {
            service: Arc::clone(&service),
            status: None,
            ours: false,
            early: false,
        };
        let Some(step) = next(&intent, false) else {
            return Ok(());
        };
        let patch = patch(&service, &step, "");
        let write = Write {
            method: Method::PATCH,
            path: &patch.path,
            content: STRATEGIC_MERGE,
            body: &patch.body,
        };
        match send(connection, write).await {
            // It was only waiting for us.
            Err(Refusal::NotFound) => return Ok(()),
            Err(refusal) => return Err(refusal),
            Ok(value) => match read(&value) {
                Some(now) if now.meta.key == service.meta.key => service = now,
                _ => return Ok(()),
            },
        }
    }
    Err(Refusal::Other(
        "somebody writes it anew: is a weir still running?".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_add_to_the_query() {
        assert_eq!(encoded("aZ0-_.~"), "aZ0-_.~");
        assert_eq!(encoded("a&limit=9/="), "a%26limit%3D9%2F%3D");
    }
}
