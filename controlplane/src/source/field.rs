//! Typed and bounded reading of one JSON value. A field that is null is absent. What is wrong is
//! said with its path, so that a position in the text can be found for it afterwards.

use std::fmt;
use std::num::NonZeroU16;

use serde_json::Value;

/// One step into a JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Into an object.
    Field(String),
    /// Into an array.
    Index(usize),
}

/// The way from an object's root to a field, printed as `spec.ports[0].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonPath(pub(crate) Vec<Step>);

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Field(name) if !name.chars().all(|c| c.is_ascii_alphanumeric()) => {
                    write!(f, "[{}]", quoted(name))?;
                }
                Step::Field(name) if at == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

/// Text of somebody else's for a message: quoted, escaped, cut after 64 characters.
pub(crate) fn quoted(text: &str) -> String {
    let mut cut: String = text.chars().take(64).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    format!("{cut:?}")
}

/// A value for a message, shortened.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => quoted(value),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    }
}

/// What is wrong with a field. Found values are shown as written, escaped and cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// It has to be there.
    #[error("is missing")]
    Missing,
    /// It is of another JSON type.
    #[error("{found} is not {expected}")]
    WrongType {
        /// The value, shortened.
        found: String,
        /// What is due.
        expected: &'static str,
    },
    /// Not a port number.
    #[error("{found} is not a port (1 to 65535)")]
    NotAPort {
        /// The value, shortened.
        found: String,
    },
    /// A number out of its range.
    #[error("{found} is not a whole number from {least} to {most}")]
    OutOfRange {
        /// The value, shortened.
        found: String,
        /// The least that is allowed.
        least: i64,
        /// The most that is allowed.
        most: i64,
    },
    /// A value that is none of a closed list.
    #[error("{found} is unknown; write one of {allowed}")]
    UnknownValue {
        /// The value, shortened.
        found: String,
        /// The values that are known.
        allowed: &'static str,
    },
    /// Not a name as Kubernetes allows them.
    #[error("{found} is not a name (lower-case letters, digits, '-' and '.', at most 253)")]
    NotAName {
        /// The value, shortened.
        found: String,
    },
    /// Not a time.
    #[error("{found} is not a time; write it like 2026-01-31T12:00:00Z")]
    NotATime {
        /// The value, shortened.
        found: String,
    },
    /// Text that is too long.
    #[error("is {length} bytes long; at most {limit} are read")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A list that is too long.
    #[error("has {count} entries; at most {limit} are read")]
    TooMany {
        /// How many there are.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

/// A field that cannot be read: the object it belongs to is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}{}{problem}", if path.0.is_empty() { "" } else { ": " })]
pub struct FieldError {
    /// Which field.
    pub path: JsonPath,
    /// What is wrong with it.
    pub problem: FieldProblem,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Field(&'a Node<'a>, &'a str),
    Index(&'a Node<'a>, usize),
}

/// A JSON value together with the way to it; lives on the stack of who reads it.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    value: &'a Value,
    place: Place<'a>,
}

impl<'a> Node<'a> {
    /// The root of an object.
    pub fn root(value: &'a Value) -> Node<'a> {
        let place = Place::Root;
        Node { value, place }
    }

    /// As it is, for what is read leniently.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    fn path(&self) -> JsonPath {
        let (mut steps, mut at) = (Vec::new(), self);
        loop {
            match at.place {
                Place::Root => break,
                Place::Field(parent, name) => {
                    steps.push(Step::Field(name.to_owned()));
                    at = parent;
                }
                Place::Index(parent, index) => {
                    steps.push(Step::Index(index));
                    at = parent;
                }
            }
        }
        steps.reverse();
        JsonPath(steps)
    }

    /// Something is wrong with this value.
    pub fn error(&self, problem: FieldProblem) -> FieldError {
        let path = self.path();
        FieldError { path, problem }
    }

    fn wrong_type(&self, expected: &'static str) -> FieldError {
        let found = shown(self.value);
        self.error(FieldProblem::WrongType { found, expected })
    }

    /// The field `name`; `None` if absent or null.
    pub fn field<'b>(&'b self, name: &'b str) -> Result<Option<Node<'b>>, FieldError> {
        let Value::Object(fields) = self.value else {
            return Err(self.wrong_type("a mapping"));
        };
        Ok(fields
            .get(name)
            .filter(|value| !value.is_null())
            .map(|value| Node {
                value,
                place: Place::Field(self, name),
            }))
    }

    /// The field `name`, which has to be there.
    pub fn required<'b>(&'b self, name: &'b str) -> Result<Node<'b>, FieldError> {
        self.field(name)?.ok_or_else(|| {
            let absent = Node {
                value: &Value::Null,
                place: Place::Field(self, name),
            };
            absent.error(FieldProblem::Missing)
        })
    }

    /// Every field of a mapping that `wanted` says yes to and that is not null.
    pub fn fields<'b>(
        &'b self,
        wanted: impl Fn(&str) -> bool + 'b,
    ) -> Result<impl Iterator<Item = (&'b str, Node<'b>)>, FieldError> {
        let Value::Object(fields) = self.value else {
            return Err(self.wrong_type("a mapping"));
        };
        Ok(fields
            .iter()
            .filter(move |(name, value)| !value.is_null() && wanted(name))
            .map(move |(name, value)| {
                let place = Place::Field(self, name);
                (name.as_str(), Node { value, place })
            }))
    }

    /// The entries of a list.
    pub fn entries<'b>(
        &'b self,
        limit: usize,
    ) -> Result<impl ExactSizeIterator<Item = Node<'b>>, FieldError> {
        let Value::Array(entries) = self.value else {
            return Err(self.wrong_type("a list"));
        };
        let count = entries.len();
        if count > limit {
            return Err(self.error(FieldProblem::TooMany { count, limit }));
        }
        Ok(entries.iter().enumerate().map(move |(index, value)| Node {
            value,
            place: Place::Index(self, index),
        }))
    }

    /// Text of at most `limit` bytes.
    pub fn text(&self, limit: usize) -> Result<&'a str, FieldError> {
        let Value::String(text) = self.value else {
            return Err(self.wrong_type("text (put quotes around it)"));
        };
        let length = text.len();
        if length > limit {
            return Err(self.error(FieldProblem::TooLong { length, limit }));
        }
        Ok(text)
    }

    /// A name as Kubernetes allows them (RFC 1123 subdomain).
    pub fn name(&self) -> Result<&'a str, FieldError> {
        let text = self.text(1024)?;
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) {
            let found = shown(self.value);
            return Err(self.error(FieldProblem::NotAName { found }));
        }
        Ok(text)
    }

    /// true or false.
    pub fn boolean(&self) -> Result<bool, FieldError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong_type("true or false"))
    }

    /// A whole number within `least..=most`.
    pub fn integer(&self, least: i64, most: i64) -> Result<i64, FieldError> {
        match self.value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(self.error(FieldProblem::OutOfRange {
                found: shown(self.value),
                least,
                most,
            })),
        }
    }

    /// A port; `None` for 0, which means that there is none.
    pub fn port_or_zero(&self) -> Result<Option<NonZeroU16>, FieldError> {
        let port = self.value.as_u64().and_then(|n| u16::try_from(n).ok());
        match port {
            Some(port) => Ok(NonZeroU16::new(port)),
            None => Err(self.not_a_port()),
        }
    }

    /// A port.
    pub fn port(&self) -> Result<NonZeroU16, FieldError> {
        self.port_or_zero()?.ok_or_else(|| self.not_a_port())
    }

    fn not_a_port(&self) -> FieldError {
        let found = shown(self.value);
        self.error(FieldProblem::NotAPort { found })
    }

    /// One of a closed list of words. `allowed` is that list for the message.
    pub fn one_of<T: Clone>(
        &self,
        words: &[(&str, T)],
        allowed: &'static str,
    ) -> Result<T, FieldError> {
        let text = self.text(usize::MAX)?;
        let word = words.iter().find(|(word, _)| *word == text);
        word.map(|(_, value)| value.clone()).ok_or_else(|| {
            let found = quoted(text);
            self.error(FieldProblem::UnknownValue { found, allowed })
        })
    }

    /// A time (RFC 3339, in UTC or with an offset) as seconds since 1970.
    pub fn time(&self) -> Result<i64, FieldError> {
        let text = self.text(64)?;
        seconds_since_1970(text).ok_or_else(|| {
            let found = quoted(text);
            self.error(FieldProblem::NotATime { found })
        })
    }
}

/// RFC 3339, to the second; a leap second counts as the one before it.
fn seconds_since_1970(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        let all_digits = digits.bytes().all(|b| b.is_ascii_digit());
        all_digits.then(|| digits.parse().ok())?
    };
    let is =
        |at: usize, allowed: &[u8]| text.as_bytes().get(at).is_some_and(|b| allowed.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    if !in_range {
        return None;
    }
    let rest = text.get(19..)?.trim_start_matches('.');
    let zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let offset = match zone {
        "Z" | "z" => 0,
        _ => offset_seconds(zone)?,
    };
    let time_of_day = hour * 3600 + minute * 60 + second.min(59);
    Some(days_since_1970(year, month, day) * 86_400 + time_of_day - offset)
}

/// `+02:00`
fn offset_seconds(zone: &str) -> Option<i64> {
    let sign = match zone.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let hours: i64 = hours.parse().ok().filter(|hours| (0..24).contains(hours))?;
    let minutes: i64 = minutes.parse().ok().filter(|m| (0..60).contains(m))?;
    Some(sign * (hours * 3600 + minutes * 60))
}

/// Days of the proleptic Gregorian calendar: years begin in March, so that the leap day is last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_seconds_since_1970() {
        let cases = [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:34:56Z", Some(951_827_696)),
            ("2026-10-31T08:15:30Z", Some(1_793_434_530)),
            ("2026-10-31T10:15:30+02:00", Some(1_793_434_530)),
            ("2026-10-31T08:15:30.123456Z", Some(1_793_434_530)),
            ("2026-13-01T00:00:00Z", None),
            ("2026-10-31", None),
            ("2026-10-31T08:15:30", None),
            ("2026-10-31T08:15:30+é0:00", None),
            ("é026-10-31T08:15:30Z", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(seconds_since_1970(text), expected, "{text}");
        }
    }

    #[test]
    fn paths_read_as_people_write_them() {
        let value = json!({"spec": {"ports": [{"port": 99_999}], "a/b": "x"}});
        let root = Node::root(&value);
        let spec = root.required("spec").expect("there");
        let ports = spec.required("ports").expect("there");
        let first = ports.entries(10).expect("a list").next().expect("one");
        let port = first.required("port").expect("there");
        assert_eq!(
            port.port().expect_err("too large").to_string(),
            "spec.ports[0].port: 99999 is not a port (1 to 65535)"
        );
        let odd = spec.required("a/b").expect("there");
        assert_eq!(
            odd.boolean().expect_err("text").to_string(),
            "spec[\"a/b\"]: \"x\" is not true or false"
        );
        assert_eq!(
            first.required("name").err().expect("absent").to_string(),
            "spec.ports[0].name: is missing"
        );
    }

    #[test]
    fn ports_are_whole_numbers_in_range() {
        for bad in [
            json!(-1),
            json!(65_536),
            json!(1e30),
            json!(80.5),
            json!("80"),
            json!(true),
            json!([80]),
        ] {
            assert!(Node::root(&bad).port_or_zero().is_err(), "{bad}");
        }
        assert!(Node::root(&json!(0)).port().is_err());
        assert_eq!(Node::root(&json!(0)).port_or_zero(), Ok(None));
        assert_eq!(
            Node::root(&json!(65_535)).port().map(NonZeroU16::get),
            Ok(65_535)
        );
    }

    #[test]
    fn foreign_text_is_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[31m"), "\"a\\u{1b}[31m\"");
        assert!(quoted(&"x".repeat(1000)).len() < 80);
    }
}
