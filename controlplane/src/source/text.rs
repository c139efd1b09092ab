//! Text -> JSON values with their places. The only module that knows the YAML parser.
//!
//! Values are decoded once, with the place of every document and of every entry of a list's
//! `items`. The place of a field inside of an object is looked up by a second pass, and only for a
//! message ([`locate`]).

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{Event, Parser, Span};
use serde_saphyr::{MergeKeyPolicy, NonFiniteFloatPolicy, Spanned};

use super::field::Step;

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

/// A place in a text; both count from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: u32,
    pub column: u32,
}

impl Position {
    pub const START: Position = Position { line: 1, column: 1 };

    fn new(line: u64, column: u64) -> Position {
        let bounded = |n: u64| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Position {
            line: bounded(line),
            column: bounded(column),
        }
    }

    fn of_location(location: serde_saphyr::Location) -> Position {
        Position::new(location.line(), location.column())
    }

    fn of_span(span: &Span) -> Position {
        Position::new(span.start.line() as u64, span.start.col() as u64 + 1)
    }
}

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
            at: error
                .location()
                .map_or(Position::START, Position::of_location),
            message: one_line(&error.without_snippet().to_string()),
        })?;
    let documents = roots.into_iter().map(|root| Document {
        at: Position::of_location(root.referenced),
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
            items.push(Position::of_location(entry.referenced));
            values.push(entry.value.0);
        }
        let value = Value::Array(values);
        Ok(Items { value, items })
    }
}

/// The place of the field at `path` inside of the object that stands at `object`. As much of the
/// path as there is decides: for a missing field it is the place of what should hold it. JSON is
/// read as the YAML that it also is.
pub(super) fn locate(text: &str, object: Position, path: &[Step]) -> Position {
    let mut walk = Walk::new(text);
    while let Some((event, at)) = walk.next() {
        if at == object && is_node(&event) {
            return walk.descend(event, at, path).unwrap_or(object);
        }
    }
    object
}

/// The first key of the document, and of every entry of its root's `items`, for JSON.
fn positions(text: &str) -> (Position, Vec<Position>) {
    let mut walk = Walk::new(text);
    let root = loop {
        match walk.next() {
            Some((Event::MappingStart(..), at)) => break at,
            Some(_) => {}
            None => return (Position::START, Vec::new()),
        }
    };
    let mut items = Vec::new();
    while let Some((Event::Scalar(name, ..), _)) = walk.next() {
        let Some((value, _)) = walk.next() else { break };
        if name == "items" && matches!(value, Event::SequenceStart(..)) {
            while let Some((entry, at)) = walk.next().filter(|(entry, _)| is_node(entry)) {
                items.push(at);
                walk.skip(&entry);
            }
        } else {
            walk.skip(&value);
        }
    }
    (root, items)
}

fn is_node(event: &Event<'_>) -> bool {
    matches!(
        event,
        Event::Scalar(..) | Event::Alias(_) | Event::MappingStart(..) | Event::SequenceStart(..)
    )
}

/// The parser's events without those that carry no content.
struct Walk<'a> {
    events: Box<dyn Iterator<Item = (Event<'a>, Span)> + 'a>,
}

impl<'a> Walk<'a> {
    fn new(text: &'a str) -> Walk<'a> {
        let events = Parser::new_from_str(text).map_while(Result::ok);
        let events = Box::new(events);
        Walk { events }
    }

    fn next(&mut self) -> Option<(Event<'a>, Position)> {
        self.events
            .by_ref()
            .find(|(event, _)| {
                is_node(event) || matches!(event, Event::MappingEnd | Event::SequenceEnd)
            })
            .map(|(event, span)| (event, Position::of_span(&span)))
    }

    /// Reads the rest of the node that began with `first`.
    fn skip(&mut self, first: &Event<'a>) {
        let opens =
            |event: &Event<'_>| matches!(event, Event::MappingStart(..) | Event::SequenceStart(..));
        let mut depth = usize::from(opens(first));
        while depth > 0 {
            match self.next() {
                Some((event, _)) if opens(&event) => depth += 1,
                Some((Event::MappingEnd | Event::SequenceEnd, _)) => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Follows `path` from the node `event`, as far as it goes.
    fn descend(&mut self, event: Event<'a>, at: Position, path: &[Step]) -> Option<Position> {
        let (mut node, mut place) = (event, at);
        for step in path {
            let found = match (&node, step) {
                (Event::MappingStart(..), Step::Field(name)) => self.find_field(name),
                (Event::SequenceStart(..), Step::Index(index)) => self.find_entry(*index),
                _ => None,
            };
            let Some(next) = found else { break };
            (node, place) = next;
        }
        Some(place)
    }

    fn find_field(&mut self, wanted: &str) -> Option<(Event<'a>, Position)> {
        loop {
            let (key, _) = self.next().filter(|(key, _)| is_node(key))?;
            if matches!(&key, Event::Scalar(name, ..) if name == wanted) {
                return self.next();
            }
            self.skip(&key);
            let (value, _) = self.next()?;
            self.skip(&value);
        }
    }

    fn find_entry(&mut self, index: usize) -> Option<(Event<'a>, Position)> {
        for _ in 0..index {
            let (entry, _) = self.next().filter(|(entry, _)| is_node(entry))?;
            self.skip(&entry);
        }
        self.next().filter(|(entry, _)| is_node(entry))
    }
}

/// The lines around a place, with a mark under it. Control characters are shown as `�`.
pub(super) fn excerpt(text: &str, at: Position) -> String {
    /// What is shown of a line, in characters.
    const WIDTH: usize = 100;
    let line = at.line as usize;
    let column = at.column as usize;
    let first_shown = column.saturating_sub(WIDTH * 3 / 4).max(1);
    let number_width = at.line.to_string().len();
    let mut shown = String::new();
    let lines = text.lines().enumerate().skip(line.saturating_sub(3));
    for (index, content) in lines.take(line.min(3)) {
        let content: String = content
            .chars()
            .skip(first_shown - 1)
            .take(WIDTH)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        let number = index + 1;
        shown.push_str(format!("{number:number_width$} | {content}").trim_end());
        shown.push('\n');
    }
    let before = column - first_shown;
    shown.push_str(&format!("{:number_width$} | {:before$}^", "", ""));
    shown
}
