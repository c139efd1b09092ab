//! Text -> JSON values with the place of every document and of every entry of a list's `items`.
//! The places of fields inside of those are looked up by `place`, and only for a message.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

use super::place::{Position, positions};

/// Most values (mappings, lists, scalars) of one file. A decoded value takes some 100 bytes, so
/// this bounds what decoding takes at once to some 800 MB where it is all punctuation, and a tenth
/// of that where it is objects.
const MAX_VALUES: usize = 8_000_000;
/// Most nesting; Kubernetes objects stay below 20.
const MAX_DEPTH: usize = 64;
/// Most documents of one file.
const MAX_DOCUMENTS: usize = 100_000;
/// Most `&anchor`s and `*alias`es of one file, and values that aliases may add in all.
const MAX_ALIASES: usize = 10_000;
const MAX_ALIASED_VALUES: usize = 1_000_000;

/// Server-set bulk that no rule reads: dropped while decoding.
const NEVER_READ: [&str; 2] = [
    "managedFields",
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    /// Its content.
    pub value: Value,
    /// Its first key.
    pub at: Position,
    /// The first key of every entry of its root field `items`, if that is a list.
    pub items: Vec<Position>,
}

/// A text that is no YAML (or JSON), or too much of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyntaxError {
    pub at: Position,
    pub message: String,
}

/// How a file is written, which its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// Decodes every document of `text`. Empty documents are left out.
///
/// # Errors
/// A syntax error anywhere, or a budget that is exceeded, refuses the whole text.
pub(super) fn decode(text: &str, format: Format) -> Result<Vec<Document>, SyntaxError> {
    match format {
        Format::Yaml => decode_yaml(text),
        Format::Json => decode_json(text),
    }
}

fn decode_yaml(text: &str) -> Result<Vec<Document>, SyntaxError> {
    let roots: Vec<Spanned<Root>> = serde_saphyr::from_multiple_with_options(text, options())
        .map_err(|error| SyntaxError {
            at: error.location().map_or(Position::START, position),
            message: one_line(&error.without_snippet().to_string()),
        })?;
    let documents = roots.into_iter().map(|root| Document {
        at: position(root.referenced),
        value: root.value.value,
        items: root.value.items,
    });
    Ok(documents.collect())
}

/// YAML 1.2 with its core schema; all budgets on.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4 * MAX_VALUES,
            max_nodes: MAX_VALUES,
            max_depth: MAX_DEPTH,
            max_documents: MAX_DOCUMENTS,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_merge_keys: MAX_ALIASES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED_VALUES,
        },
        emit_comments: false,
        merge_keys: MergeKeyPolicy::Merge,
        strict_booleans: true,
        no_schema: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    }
}

fn decode_json(text: &str) -> Result<Vec<Document>, SyntaxError> {
    // serde_json has no budget. Every value but the first follows one of these.
    let separators = text.bytes().filter(|b| matches!(b, b',' | b':' | b'['));
    if separators.count() > MAX_VALUES {
        return Err(SyntaxError {
            at: Position::START,
            message: format!("more than {MAX_VALUES} values in one file"),
        });
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let Plain(value) = serde_json::from_str(text).map_err(|error| SyntaxError {
        at: Position::new(error.line() as u64, error.column() as u64),
        message: json_message(&error),
    })?;
    let (at, items) = positions(text);
    Ok(vec![Document { value, at, items }])
}

/// The message without its "at line 1 column 2", which is said before it.
fn json_message(error: &serde_json::Error) -> String {
    let message = one_line(&error.to_string());
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

/// Parser messages quote the text: only printable characters of the first line are shown.
fn one_line(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let shown = first.chars().take(300);
    shown
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

fn position(location: serde_saphyr::Location) -> Position {
    Position::new(location.line(), location.column())
}

/// A value without [`NEVER_READ`] and with numbers that fit no integer as floats.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Plain)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        // No field that is read may be infinite; as text it is refused where a number is due.
        let number = Number::from_f64(value).map(Value::Number);
        Ok(number.unwrap_or_else(|| Value::String(value.to_string())))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Plain(value)) = entries.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Value, A::Error> {
        mapping(fields, |_, fields| {
            let Plain(value) = fields.next_value()?;
            Ok(value)
        })
    }
}

/// Reads a mapping; `next` reads the value of the key it is given.
fn mapping<'de, A: MapAccess<'de>>(
    mut fields: A,
    mut next: impl FnMut(&str, &mut A) -> Result<Value, A::Error>,
) -> Result<Value, A::Error> {
    let mut values = Map::new();
    while let Some(name) = fields.next_key::<String>()? {
        if NEVER_READ.contains(&name.as_str()) {
            fields.next_value::<IgnoredAny>()?;
            continue;
        }
        let value = next(&name, &mut fields)?;
        let shown = super::field::quoted(&name);
        if values.insert(name, value).is_some() {
            return Err(de::Error::custom(format!("{shown} stands here twice")));
        }
    }
    Ok(Value::Object(values))
}

/// A YAML document whose `items` know their places.
struct Root {
    value: Value,
    items: Vec<Position>,
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Root, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

struct RootVisitor;

/// Anything but a mapping is no object, and is refused by who asks for its kind.
macro_rules! plain {
    ($($name:ident: $type:ty),* $(,)?) => {$(
        fn $name<E: de::Error>(self, value: $type) -> Result<Self::Value, E> {
            let value = PlainVisitor.$name(value)?;
            Ok(Self::Value { value, items: Vec::new() })
        }
    )*};
}

impl<'de> Visitor<'de> for RootVisitor {
    type Value = Root;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    plain! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128,
        visit_f64: f64, visit_str: &str,
    }

    fn visit_unit<E>(self) -> Result<Root, E> {
        let (value, items) = (Value::Null, Vec::new());
        Ok(Root { value, items })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, entries: A) -> Result<Root, A::Error> {
        let value = PlainVisitor.visit_seq(entries)?;
        let items = Vec::new();
        Ok(Root { value, items })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Root, A::Error> {
        let mut items = Vec::new();
        let value = mapping(fields, |name, fields| {
            if name == "items" {
                let placed: Items = fields.next_value()?;
                items = placed.items;
                Ok(placed.value)
            } else {
                fields.next_value().map(|Plain(value)| value)
            }
        })?;
        Ok(Root { value, items })
    }
}

/// The root's `items`: a list whose entries know their places, or anything else as it is.
struct Items {
    value: Value,
    items: Vec<Position>,
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items, D::Error> {
        deserializer.deserialize_any(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    plain! {
        visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128,
        visit_f64: f64, visit_str: &str,
    }

    fn visit_unit<E>(self) -> Result<Items, E> {
        let (value, items) = (Value::Null, Vec::new());
        Ok(Items { value, items })
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Items, A::Error> {
        let value = PlainVisitor.visit_map(fields)?;
        let items = Vec::new();
        Ok(Items { value, items })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Items, A::Error> {
        let (mut values, mut items) = (Vec::new(), Vec::new());
        while let Some(entry) = entries.next_element::<Spanned<Plain>>()? {
            items.push(position(entry.referenced));
            values.push(entry.value.0);
        }
        let value = Value::Array(values);
        Ok(Items { value, items })
    }
}
