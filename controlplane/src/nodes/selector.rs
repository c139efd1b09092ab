//! Label selectors, as `kubectl get nodes -l` takes them (apimachinery `labels.Parse`): equality
//! (`a=b`, `a==b`, `a!=b`), sets (`a in (b,c)`, `a notin (b,c)`), presence (`a`, `!a`) and order
//! (`a>1`, `a<1`), joined by commas, all of which have to hold. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longer texts are refused: nobody writes them by hand.
const MAX_TEXT: usize = 4_096;
/// And so are more requirements.
const MAX_REQUIREMENTS: usize = 64;
/// The longest value, and name of a key (apimachinery LabelValueMaxLength).
const MAX_NAME: usize = 63;
/// The longest prefix of a key: a DNS subdomain.
const MAX_PREFIX: usize = 253;

/// What is wrong with a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is too long to be meant.
    #[error("a selector has {MAX_TEXT} characters and {MAX_REQUIREMENTS} requirements at most")]
    TooLong,
    /// Something else is due.
    #[error(
        "{found} stands where {due} is due; write for example zone=a,!old,class in (edge,spare)"
    )]
    Unexpected {
        /// What is there, quoted, or "the end".
        found: String,
        /// What should be.
        due: &'static str,
    },
    /// No label is named so.
    #[error(
        "{0:?} is no label: PREFIX/NAME or NAME, NAME of 1 to 63 letters, digits, -, _ and ., a letter or digit at both ends"
    )]
    Key(String),
    /// No label has this value.
    #[error(
        "{0:?} is no label's value: up to 63 letters, digits, -, _ and ., a letter or digit at both ends"
    )]
    Value(String),
    /// Order is of numbers.
    #[error("{0:?} is no whole number; < and > compare numbers")]
    Number(String),
}

/// One thing that has to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists,
    Absent,
    /// Is there, with one of these values.
    In(BTreeSet<Arc<str>>),
    /// Is not there, or has none of these.
    NotIn(BTreeSet<Arc<str>>),
    Above(i64),
    Below(i64),
}

/// A parsed selector; the empty one takes everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    text: Arc<str>,
    requirements: Vec<(Arc<str>, Requirement)>,
}

impl Selector {
    /// Do these labels satisfy every requirement?
    pub fn matches(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        let holds = |(key, requirement): &(Arc<str>, Requirement)| {
            let value = labels.get(key);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match requirement {
                Requirement::Exists => value.is_some(),
                Requirement::Absent => value.is_none(),
                Requirement::In(values) => value.is_some_and(|value| values.contains(value)),
                Requirement::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Requirement::Above(least) => number().is_some_and(|number| number > *least),
                Requirement::Below(most) => number().is_some_and(|number| number < *most),
            }
        };
        self.requirements.iter().all(holds)
    }

    /// Does it take everything?
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Selector, SelectorError> {
        if text.len() > MAX_TEXT {
            return Err(SelectorError::TooLong);
        }
        let text = text.trim();
        let mut tokens = Tokens { rest: text };
        let mut requirements = Vec::new();
        while !text.is_empty() {
            if requirements.len() == MAX_REQUIREMENTS {
                return Err(SelectorError::TooLong);
            }
            requirements.push(requirement(&mut tokens)?);
            match tokens.next() {
                Token::End => break,
                Token::Mark(",") => {}
                found => return Err(found.instead_of("a comma or the end")),
            }
        }
        Ok(Selector {
            text: text.into(),
            requirements,
        })
    }
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<(Arc<str>, Requirement), SelectorError> {
    let first = tokens.next();
    if first == Token::Mark("!") {
        return Ok((key(tokens.next())?, Requirement::Absent));
    }
    let key = key(first)?;
    let mut ahead = Tokens { rest: tokens.rest };
    let requirement = match ahead.next() {
        Token::Mark(",") | Token::End => return Ok((key, Requirement::Exists)),
        Token::Mark("=" | "==") => Requirement::In([one(&mut ahead)?].into()),
        Token::Mark("!=") => Requirement::NotIn([one(&mut ahead)?].into()),
        Token::Mark(">") => Requirement::Above(number(&mut ahead)?),
        Token::Mark("<") => Requirement::Below(number(&mut ahead)?),
        Token::Word("in") => Requirement::In(set(&mut ahead)?),
        Token::Word("notin") => Requirement::NotIn(set(&mut ahead)?),
        found => return Err(found.instead_of("=, !=, in, notin, <, > or a comma")),
    };
    tokens.rest = ahead.rest;
    Ok((key, requirement))
}

/// The one value behind `=`; nothing is the empty value.
fn one(tokens: &mut Tokens<'_>) -> Result<Arc<str>, SelectorError> {
    let mut ahead = Tokens { rest: tokens.rest };
    match ahead.next() {
        Token::Word(word) => {
            tokens.rest = ahead.rest;
            value(word)
        }
        Token::End | Token::Mark(",") => Ok(Arc::default()),
        found => Err(found.instead_of("a value")),
    }
}

fn number(tokens: &mut Tokens<'_>) -> Result<i64, SelectorError> {
    match tokens.next() {
        Token::Word(word) => word
            .parse()
            .map_err(|_| SelectorError::Number(word.to_owned())),
        found => Err(found.instead_of("a whole number")),
    }
}

/// `(a,b)`: at least one value; nothing between commas is the empty one.
fn set(tokens: &mut Tokens<'_>) -> Result<BTreeSet<Arc<str>>, SelectorError> {
    match tokens.next() {
        Token::Mark("(") => {}
        found => return Err(found.instead_of("(")),
    }
    let mut values = BTreeSet::new();
    let mut last: Option<Arc<str>> = None;
    loop {
        match tokens.next() {
            Token::Word(word) if last.is_none() => last = Some(value(word)?),
            Token::Mark(",") => {
                values.insert(last.take().unwrap_or_default());
            }
            Token::Mark(")") if last.is_none() && values.is_empty() => {
                return Err(Token::Mark(")").instead_of("a value"));
            }
            Token::Mark(")") => {
                values.insert(last.unwrap_or_default());
                return Ok(values);
            }
            found => return Err(found.instead_of("a comma or )")),
        }
    }
}

fn key(token: Token<'_>) -> Result<Arc<str>, SelectorError> {
    let Token::Word(text) = token else {
        return Err(token.instead_of("a label"));
    };
    let wrong = || SelectorError::Key(text.to_owned());
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let is_prefix =
        |text: &str| !text.is_empty() && text.len() <= MAX_PREFIX && text.chars().all(good);
    if !is_name(name) || !prefix.is_none_or(is_prefix) {
        return Err(wrong());
    }
    Ok(text.into())
}

fn value(text: &str) -> Result<Arc<str>, SelectorError> {
    match text.is_empty() || is_name(text) {
        true => Ok(text.into()),
        false => Err(SelectorError::Value(text.to_owned())),
    }
}

fn is_name(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = [text.chars().next(), text.chars().next_back()];
    let ends = ends
        .iter()
        .all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()));
    text.len() <= MAX_NAME && ends && text.chars().all(inside)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Mark(&'static str),
    End,
}

impl Token<'_> {
    fn instead_of(self, due: &'static str) -> SelectorError {
        let found = match self {
            Token::Word(text) => format!("{text:?}"),
            Token::Mark(text) => format!("{text:?}"),
            Token::End => "the end".to_owned(),
        };
        SelectorError::Unexpected { found, due }
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

/// The longer first.
const MARKS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", "<", ">"];

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Token<'a> {
        let text = self.rest.trim_start();
        if text.is_empty() {
            self.rest = text;
            return Token::End;
        }
        if let Some(mark) = MARKS.into_iter().find(|mark| text.starts_with(mark)) {
            self.rest = &text[mark.len()..];
            return Token::Mark(mark);
        }
        let ends = |c: char| c.is_whitespace() || "=!(),<>".contains(c);
        let end = text.find(ends).unwrap_or(text.len());
        self.rest = &text[end..];
        Token::Word(&text[..end])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
        let pairs = pairs.iter();
        pairs.map(|(k, v)| (Arc::from(*k), Arc::from(*v))).collect()
    }

    #[test]
    fn what_kubectl_takes_means_the_same_here() {
        let node = labels(&[("zone", "a"), ("example.com/cpus", "8"), ("edge", "")]);
        for (text, holds) in [
            ("", true),
            ("  ", true),
            ("zone", true),
            ("!zone", false),
            ("! old", true),
            ("zone=a", true),
            ("zone == a", true),
            ("zone=b", false),
            ("zone!=a", false),
            ("zone!=b", true),
            ("old!=b", true),
            ("old=b", false),
            ("old=", false),
            ("edge=", true),
            ("edge=,zone=a", true),
            ("zone in (a,b)", true),
            ("zone in ( b , c )", false),
            ("zone notin (a)", false),
            ("old notin (a)", true),
            ("edge in (,x)", true),
            ("edge in (x,)", true),
            ("zone=a,!old,edge", true),
            ("zone=a,old", false),
            ("example.com/cpus>4", true),
            ("example.com/cpus > 8", false),
            ("example.com/cpus<9", true),
            ("zone<9", false),
            ("old<9", false),
            // A label may be named so.
            ("in", false),
            ("in in (in)", false),
        ] {
            let selector: Selector = text.parse().expect(text);
            assert_eq!(selector.matches(&node), holds, "{text}");
            assert_eq!(selector.is_empty(), text.trim().is_empty());
            assert_eq!(selector.to_string(), text.trim());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = "a".repeat(64);
        let many = vec!["a"; 65].join(",");
        for (text, said) in [
            ("a b", "\"b\" stands where"),
            ("a,", "the end stands where a label"),
            (",a", "\",\" stands where a label"),
            ("a=b=c", "\"=\" stands where a comma"),
            ("a in b", "\"b\" stands where ("),
            ("a in ()", "\")\" stands where a value"),
            ("a in (b", "the end stands where a comma or )"),
            ("a in (b c)", "\"c\" stands where a comma or )"),
            ("a>b", "\"b\" is no whole number"),
            ("a>", "the end stands where a whole number"),
            ("!", "the end stands where a label"),
            ("-a", "\"-a\" is no label"),
            ("A/b/c", "is no label"),
            ("Ab/c", "is no label"),
            ("/c", "is no label"),
            ("a=b_", "\"b_\" is no label's value"),
            ("ä", "is no label"),
            (&*long, "is no label"),
            (&*many, "64 requirements"),
            (&*"a".repeat(5_000), "4096 characters"),
        ] {
            let error = text.parse::<Selector>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    /// A requirement as text, and by a model of its own whether it holds for a value.
    type Model = (String, Box<dyn Fn(Option<&str>) -> bool>);

    fn modelled() -> impl Strategy<Value = (usize, usize, Vec<usize>)> {
        (
            0..8_usize,
            0..3_usize,
            prop::collection::vec(0..3_usize, 1..4),
        )
    }

    const KEYS: [&str; 3] = ["a", "b.c/d", "e_f"];
    const VALUES: [&str; 3] = ["", "x", "7"];

    fn model(form: usize, key: &str, values: &[usize]) -> Model {
        let all: Vec<&'static str> = values.iter().map(|at| VALUES[*at]).collect();
        let list = all.join(",");
        let first = all[0];
        match form {
            0 => (key.to_owned(), Box::new(|v| v.is_some())),
            1 => (format!("!{key}"), Box::new(|v| v.is_none())),
            2 => (
                format!("{key}={first}"),
                Box::new(move |v| v == Some(first)),
            ),
            3 => (
                format!("{key} != {first}"),
                Box::new(move |v| v != Some(first)),
            ),
            // `()` is refused: see above.
            4 if list.is_empty() => (format!("{key} in (,)"), Box::new(|v| v == Some(""))),
            5 if list.is_empty() => (format!("{key} notin (,)"), Box::new(|v| v != Some(""))),
            4 => (
                format!("{key} in ({list})"),
                Box::new(move |v| v.is_some_and(|v| all.contains(&v))),
            ),
            5 => (
                format!("{key} notin ({list})"),
                Box::new(move |v| !v.is_some_and(|v| all.contains(&v))),
            ),
            6 => (
                format!("{key}>6"),
                Box::new(|v| v.is_some_and(|v| v == "7")),
            ),
            _ => (format!("{key} < 7"), Box::new(|_| false)),
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c =!(),<>/_.-]{0,40}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
            }
        }

        #[test]
        fn all_requirements_hold_or_the_selector_does_not(
            forms in prop::collection::vec(modelled(), 1..6),
            held in prop::collection::vec(prop::option::of(0..3_usize), 3),
        ) {
            let node: Vec<(&str, &str)> = KEYS.iter().zip(&held)
                .filter_map(|(key, at)| Some((*key, VALUES[(*at)?])))
                .collect();
            let models: Vec<(usize, Model)> = forms.iter()
                .map(|(form, key, values)| (*key, model(*form, KEYS[*key], values)))
                .collect();
            let texts: Vec<&str> = models.iter().map(|(_, (text, _))| &**text).collect();
            let text = texts.join(", ");
            let holds = models.iter()
                .all(|(key, (_, holds))| holds(held[*key].map(|at| VALUES[at])));
            let selector: Selector = text.parse().expect(&text);
            prop_assert_eq!(selector.matches(&labels(&node)), holds, "{}", text);
        }
    }
}
