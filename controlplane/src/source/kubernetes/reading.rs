//! What one item or one line of a watch says (PURE): an object, or why it is refused and as much as
//! can be read of whose it is. All objects go through [`parse`](super::super::parse), as files do.

use std::collections::BTreeMap;

use serde_json::Value;

use super::items::{MAX_OBJECT, Piece};
use super::scope::{Scope, resource};
use crate::object::{Key, Object};
use crate::source::field::quoted;
use crate::source::parse::{ObjectError, Reader};

/// Braces of one object: each may cost some 700 bytes while it is read. A slice of 1,000 endpoints
/// has 6,000.
const MAX_BRACES: usize = 100_000;

/// Why an object is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// More than 2 MiB, or nested beyond measure.
    TooLarge,
    /// No JSON.
    NotJson,
    /// Of another kind than was asked for, or of another namespace.
    OtherKind,
    /// A field is wrong.
    Malformed,
    /// There are too many.
    TooMany,
}

impl Refusal {
    /// Names it in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Refusal::TooLarge => "too_large",
            Refusal::NotJson => "not_json",
            Refusal::OtherKind => "other_kind",
            Refusal::Malformed => "malformed",
            Refusal::TooMany => "too_many",
        }
    }

    /// All of them.
    pub const ALL: [Refusal; 5] = [
        Refusal::TooLarge,
        Refusal::NotJson,
        Refusal::OtherKind,
        Refusal::Malformed,
        Refusal::TooMany,
    ];
}

/// An object that is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Whose it is, as far as can be read; within the scope that was asked for.
    pub key: Option<Key>,
    /// The Service that it belongs to, if it is an EndpointSlice and says so.
    pub service: Option<Key>,
    /// What is wrong.
    pub message: String,
}

/// What is made of one.
pub(super) type Read = Result<Object, Box<Refused>>;

/// One line of a watch.
#[derive(Debug)]
pub(super) enum WatchLine {
    /// ADDED or MODIFIED, and the version after it.
    Applied(Read, Option<String>),
    /// DELETED; `None` if not even its name can be read.
    Deleted(Option<Key>, Option<String>),
    /// BOOKMARK; whether it ends the events that say what there was (KEP-3157).
    Bookmark(Option<String>, bool),
    /// ERROR, with its status.
    Error(u16, String),
    /// Nothing that an API server says.
    Garbage(String),
}

/// Reads one item of a list.
pub(super) fn item(reader: &mut Reader, scope: &Scope, piece: Piece<'_>) -> Read {
    match piece {
        Piece::Whole(bytes) => match value(bytes) {
            Ok(value) => object(reader, scope, value),
            Err((refusal, message)) => Err(Box::new(Refused {
                refusal,
                key: names(bytes).and_then(|names| names.key(reader, scope)),
                service: None,
                message,
            })),
        },
        Piece::TooLarge(prefix) => Err(Box::new(too_large(reader, scope, prefix))),
    }
}

/// All of a list that can be read, as it comes in pieces of this many bytes.
#[cfg(test)]
pub(crate) fn objects_of_a_list(
    source: crate::object::SourceId,
    kind: crate::object::Kind,
    list: &[u8],
    piece: usize,
) -> Vec<Object> {
    let scope = Scope {
        kind,
        namespace: None,
    };
    let mut reader = Reader::new(source, Default::default()).with_status();
    let mut items = super::items::Items::default();
    let mut objects = Vec::new();
    for bytes in list.chunks(piece) {
        let pushed = items.push(bytes, |found| {
            objects.extend(item(&mut reader, &scope, found))
        });
        assert_eq!(pushed, Ok(()));
    }
    let resource = resource(kind).expect("a kind that is listed");
    items.finish(resource.kind).expect("a whole list");
    objects
}

/// Reads one line of a watch.
pub(super) fn line(reader: &mut Reader, scope: &Scope, piece: Piece<'_>) -> WatchLine {
    let bytes = match piece {
        Piece::Whole(bytes) => bytes,
        // Go writes the type first. The version after it cannot be known: the next event has one.
        Piece::TooLarge(prefix) => {
            let refused = too_large(reader, scope, prefix);
            return match prefix.starts_with(br#"{"type":"DELETED""#) {
                true => WatchLine::Deleted(None, None),
                false => WatchLine::Applied(Err(Box::new(refused)), None),
            };
        }
    };
    let mut event = match value(bytes) {
        Ok(event) => event,
        Err((Refusal::TooLarge, message)) => {
            let refused = Refused {
                message,
                ..too_large(reader, scope, bytes)
            };
            return WatchLine::Applied(Err(Box::new(refused)), None);
        }
        Err((_, message)) => return WatchLine::Garbage(message),
    };
    let Some(fields) = event.as_object_mut() else {
        return WatchLine::Garbage("a line that is no event".to_owned());
    };
    let object = fields.remove("object").unwrap_or_default();
    let version = object["metadata"]["resourceVersion"].as_str();
    let version = version
        .filter(|version| !version.is_empty())
        .map(str::to_owned);
    match event["type"].as_str().unwrap_or_default() {
        "ADDED" | "MODIFIED" => WatchLine::Applied(self::object(reader, scope, object), version),
        "DELETED" => {
            let key = reader.key_of(&object).filter(|key| scope.holds(key));
            WatchLine::Deleted(key, version)
        }
        "BOOKMARK" => {
            let is_end = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
            WatchLine::Bookmark(version, is_end == "true")
        }
        "ERROR" => {
            let code = object["code"]
                .as_u64()
                .and_then(|code| u16::try_from(code).ok());
            let message = object["message"].as_str().unwrap_or_default();
            WatchLine::Error(code.unwrap_or(500), message.to_owned())
        }
        other => WatchLine::Garbage(format!("an event of type {}", quoted(other))),
    }
}

fn value(bytes: &[u8]) -> Result<Value, (Refusal, String)> {
    let braces = bytes.iter().filter(|byte| **byte == b'{').count();
    if braces > MAX_BRACES {
        let message = format!("is refused: it has more than {MAX_BRACES} maps");
        return Err((Refusal::TooLarge, message));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| (Refusal::NotJson, format!("is no JSON object: {error}")))
}

fn object(reader: &mut Reader, scope: &Scope, mut value: Value) -> Read {
    let Some(resource) = resource(scope.kind) else {
        return Err(refused(
            Refusal::OtherKind,
            "is of a kind that is not read".to_owned(),
        ));
    };
    // The items of a list leave out what the list says of all of them.
    if let Some(fields) = value.as_object_mut() {
        for (name, text) in [
            ("apiVersion", resource.api_version),
            ("kind", resource.kind),
        ] {
            fields.entry(name).or_insert_with(|| Value::from(text));
        }
    }
    match reader.object(&value, None) {
        Ok(object) if scope.holds(object.key()) => Ok(object),
        Ok(object) => Err(refused(
            Refusal::OtherKind,
            format!(
                "{} is not among the {scope} that were asked for",
                object.key()
            ),
        )),
        Err(ObjectError::Skipped { api_version, kind }) => {
            let message = format!("{api_version} {kind} is not what was asked for");
            Err(refused(Refusal::OtherKind, message))
        }
        Err(ObjectError::Field(error)) => Err(Box::new(Refused {
            refusal: Refusal::Malformed,
            key: reader.key_of(&value).filter(|key| scope.holds(key)),
            service: reader.service_of(&value),
            message: error.to_string(),
        })),
    }
}

fn refused(refusal: Refusal, message: String) -> Box<Refused> {
    Box::new(Refused {
        refusal,
        key: None,
        service: None,
        message,
    })
}

fn too_large(reader: &mut Reader, scope: &Scope, prefix: &[u8]) -> Refused {
    Refused {
        refusal: Refusal::TooLarge,
        key: names(prefix).and_then(|names| names.key(reader, scope)),
        service: None,
        message: format!("is refused: it is larger than {MAX_OBJECT} bytes"),
    }
}

/// What the beginning of an object says of whose it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names(BTreeMap<String, String>);

impl Names {
    /// Through the strict reading of names, as any other.
    fn key(self, reader: &mut Reader, scope: &Scope) -> Option<Key> {
        let resource = resource(scope.kind)?;
        let value = serde_json::json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": self.0,
        });
        reader.key_of(&value).filter(|key| scope.holds(key))
    }
}

/// Reads name, namespace and uid from the beginning of an object that is not read whole: they come
/// first in what Go writes.
fn names(prefix: &[u8]) -> Option<Names> {
    const METADATA: &[u8] = b"\"metadata\":";
    let at = prefix
        .windows(METADATA.len())
        .position(|window| window == METADATA)?;
    let text = String::from_utf8_lossy(prefix.get(at + METADATA.len()..)?);
    let mut rest = text.trim_start().strip_prefix('{')?;
    let mut names = Names::default();
    loop {
        let (key, after) = string(rest)?;
        let after = after.trim_start().strip_prefix(':')?;
        let Some((value, after)) = string(after) else {
            break;
        };
        if matches!(&*key, "name" | "namespace" | "uid") {
            names.0.insert(key, value);
        }
        let Some(after) = after.trim_start().strip_prefix(',') else {
            break;
        };
        rest = after;
    }
    (!names.0.is_empty()).then_some(names)
}

/// The JSON string at the beginning of `text`, and what follows.
fn string(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let first = stream.next()?.ok()?;
    let end = stream.byte_offset();
    Some((first, text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::object::{Kind, SourceId};

    fn reader() -> Reader {
        Reader::new(SourceId(0), Arc::default()).with_status()
    }

    fn scope(namespace: Option<&str>) -> Scope {
        Scope {
            kind: Kind::Service,
            namespace: namespace.map(Arc::from),
        }
    }

    fn service(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": "u1", "resourceVersion": "7"},
            "spec": {"ports": [{"port": 80}]},
        })
    }

    fn read(value: &Value, namespace: Option<&str>) -> Read {
        let bytes = serde_json::to_vec(value).expect("JSON");
        item(&mut reader(), &scope(namespace), Piece::Whole(&bytes))
    }

    #[test]
    fn items_have_their_kind_from_the_list_and_no_other() {
        assert!(read(&service("web"), None).is_ok());
        assert!(read(&service("web"), Some("shop")).is_ok());
        let mut node = service("web");
        node["kind"] = "Node".into();
        for (value, namespace, refusal) in [
            (&service("web"), Some("other"), Refusal::OtherKind),
            (&node, None, Refusal::OtherKind),
            (&json!({"kind": "Pod"}), None, Refusal::OtherKind),
            (&json!({}), None, Refusal::Malformed),
        ] {
            let refused = read(value, namespace).expect_err("refused");
            assert_eq!((refused.refusal, refused.key), (refusal, None), "{value}");
        }
    }

    #[test]
    fn a_bad_field_is_named_with_its_object() {
        let mut bad = service("web");
        bad["spec"]["ports"][0]["port"] = 99_999.into();
        let refused = read(&bad, None).expect_err("refused");
        assert_eq!(refused.refusal, Refusal::Malformed);
        assert_eq!(refused.key.expect("named").to_string(), "shop/web");
        assert!(refused.message.starts_with("spec.ports[0].port: "));
        let mut slice = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"});
        slice["metadata"] = json!({"name": "s", "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"}});
        let bytes = serde_json::to_vec(&slice).expect("JSON");
        let scope = Scope {
            kind: Kind::EndpointSlice,
            namespace: None,
        };
        let refused = item(&mut reader(), &scope, Piece::Whole(&bytes)).expect_err("refused");
        assert_eq!(
            refused.service.expect("its Service").to_string(),
            "shop/web"
        );
    }

    #[test]
    fn what_is_too_large_has_a_name() {
        let text = br#"{"metadata":{"name":"huge","generateName":"h","namespace":"shop","uid":"u","labels":{"a"#;
        for namespace in [None, Some("shop")] {
            let refused = item(&mut reader(), &scope(namespace), Piece::TooLarge(text));
            let refused = refused.expect_err("too large");
            assert_eq!(refused.refusal, Refusal::TooLarge);
            assert_eq!(refused.key.expect("named").to_string(), "shop/huge");
        }
        for odd in [
            &br#"{"metadata":{"name":"x\ny"}"#[..],
            b"{\"metadata\":{\"name\":7",
            b"",
            b"{\"metadata\":",
        ] {
            let refused = item(&mut reader(), &scope(None), Piece::TooLarge(odd));
            assert_eq!(refused.expect_err("too large").key, None);
        }
        let maps = format!("[{}]", "{},".repeat(MAX_BRACES + 1));
        let refused = item(&mut reader(), &scope(None), Piece::Whole(maps.as_bytes()));
        assert_eq!(refused.expect_err("maps").refusal, Refusal::TooLarge);
    }

    #[test]
    fn the_lines_of_a_watch() {
        let read = |value: Value| {
            let bytes = serde_json::to_vec(&value).expect("JSON");
            line(&mut reader(), &scope(None), Piece::Whole(&bytes))
        };
        let mut object = service("web");
        object["kind"] = "Service".into();
        object["apiVersion"] = "v1".into();
        let event = |kind: &str| json!({"type": kind, "object": object});
        let WatchLine::Applied(Ok(_), Some(version)) = read(event("ADDED")) else {
            panic!("applied");
        };
        assert_eq!(version, "7");
        let WatchLine::Deleted(Some(key), Some(_)) = read(event("DELETED")) else {
            panic!("deleted");
        };
        assert_eq!(&*key.uid, "u1");
        assert!(matches!(read(event("BOOKMARK")), WatchLine::Bookmark(Some(v), false) if v == "7"));
        let mut end = event("BOOKMARK");
        end["object"]["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        assert!(matches!(read(end), WatchLine::Bookmark(Some(_), true)));
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}});
        assert!(matches!(read(gone), WatchLine::Error(410, _)));
        assert!(matches!(read(event("MOVED")), WatchLine::Garbage(_)));
        assert!(matches!(
            read(json!({"type": "ERROR"})),
            WatchLine::Error(500, _)
        ));
        assert!(matches!(read(json!([1])), WatchLine::Garbage(_)));
        assert!(matches!(read(json!("x")), WatchLine::Garbage(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = line(&mut reader(), &scope(None), Piece::Whole(&bytes));
            let _ = item(&mut reader(), &scope(None), Piece::TooLarge(&bytes));
        }
    }
}
