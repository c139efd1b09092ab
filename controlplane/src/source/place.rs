//! Places in a text, by the parser's own events: what a message points at.

use serde_saphyr::granit_parser::{Event, Parser, Span};

use super::field::Step;

/// A place in a text; both count from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub line: u32,
    pub column: u32,
}

impl Position {
    pub const START: Position = Position { line: 1, column: 1 };

    pub fn new(line: u64, column: u64) -> Position {
        let bounded = |n: u64| u32::try_from(n.max(1)).unwrap_or(u32::MAX);
        Position {
            line: bounded(line),
            column: bounded(column),
        }
    }

    fn of_span(span: &Span) -> Position {
        Position::new(span.start.line() as u64, span.start.col() as u64 + 1)
    }
}

/// Deepest indentation of block style that is kept, in characters; far past what anybody writes.
const MAX_INDENT: u32 = 1024;

/// The place of the field at `path` inside of the object that stands at `object`. As much of the
/// path as there is decides: for a missing field it is the place of what should hold it. JSON is
/// read as the YAML that it also is.
pub(super) fn locate(text: &str, object: Position, path: &[Step]) -> Position {
    // Only the object's own text is parsed, at its own indentation: a file of which every object is
    // refused must not cost its length squared.
    let Some(own) = text_from(text, object) else {
        return object;
    };
    // Only block style asks for its indentation. Far to the right stands a file of one line, whose
    // length in blanks for each of its problems would cost as much as a parse.
    let before = object.column - 1;
    let indent = if before <= MAX_INDENT { before } else { 0 };
    let own = " ".repeat(indent as usize) + own;
    let mut walk = Walk::new(&own);
    while let Some((event, at)) = walk.next() {
        // A list in block style stands where its first entry does, hence not any node.
        if matches!(event, Event::MappingStart(..)) {
            let at = walk.descend(event, at, path);
            let shift = if at.line == 1 { before - indent } else { 0 };
            return Position {
                line: at.line.saturating_add(object.line - 1),
                column: at.column.saturating_add(shift),
            };
        }
    }
    object
}

/// The text from `at` on.
fn text_from(text: &str, at: Position) -> Option<&str> {
    let mut rest = text;
    for _ in 1..at.line {
        rest = rest.split_once('\n')?.1;
    }
    let (offset, _) = rest.char_indices().nth(at.column as usize - 1)?;
    Some(&rest[offset..])
}

/// The first key of the document, and of every entry of its root's `items`, for JSON.
pub(super) fn positions(text: &str) -> (Position, Vec<Position>) {
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
    fn descend(&mut self, event: Event<'a>, at: Position, path: &[Step]) -> Position {
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
        place
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
