//! A list as an API server sends it, cut into its items while it comes in (PURE): what is kept is
//! the item of the moment and the little that stands around the items, however long the list.

use serde_json::Value;

/// Bytes of one object. An API server takes 1.5 MiB by default (etcd's limit), 3 MiB at most.
pub(super) const MAX_OBJECT: usize = 2 << 20;
/// What is kept of an object that is larger, to read its name from.
pub(super) const PREFIX: usize = 64 << 10;
/// Everything of a list but its items; one byte and a comma stand for an item.
const MAX_REST: usize = 1 << 20;

/// One item, or line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// As it was sent.
    Whole(&'a [u8]),
    /// Larger than [`MAX_OBJECT`]: its beginning.
    TooLarge(&'a [u8]),
}

/// Bytes that are kept up to a limit.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    too_large: bool,
}

impl Kept {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.too_large {
            return;
        }
        if self.bytes.len() + bytes.len() > MAX_OBJECT {
            let room = PREFIX.saturating_sub(self.bytes.len());
            self.bytes
                .extend_from_slice(&bytes[..room.min(bytes.len())]);
            self.bytes.truncate(PREFIX);
            self.bytes.shrink_to(PREFIX);
            self.too_large = true;
            return;
        }
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn piece(&self) -> Piece<'_> {
        match self.too_large {
            true => Piece::TooLarge(&self.bytes),
            false => Piece::Whole(&self.bytes),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.too_large = false;
    }
}

/// Why what was sent is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListError {
    /// Cut short, or no JSON.
    #[error("the answer is no whole JSON document")]
    NotJson,
    /// Another document.
    #[error("the answer is no {expected} but {found}")]
    OtherKind { expected: String, found: String },
    /// `items` holds what are no objects, or stands elsewhere.
    #[error("the answer's items are no list of objects")]
    Items,
    /// More than [`MAX_REST`] beside the items.
    #[error("the answer is larger around its items than {MAX_REST} bytes")]
    TooLarge,
    /// No resourceVersion to watch from.
    #[error("the answer has no metadata.resourceVersion")]
    NoVersion,
}

/// What a list says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListMeta {
    /// To watch from.
    pub version: String,
    /// To ask for the next page with; `None` on the last.
    pub next: Option<String>,
}

/// Where in the list the next byte stands.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// Open braces and brackets.
    depth: u64,
    in_string: bool,
    escaped: bool,
    /// The string read last at depth 1, as far as it matters.
    word: Vec<u8>,
    /// The value that follows is that of `items`.
    is_items: bool,
    /// Within the brackets of `items`.
    inside: bool,
    item: Kept,
    capturing: bool,
    rest: Vec<u8>,
}

const ITEMS: &[u8] = b"items";

impl Items {
    /// Takes the next bytes, and hands on each item that they complete.
    ///
    /// # Errors
    /// There is too much beside the items.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(Piece<'_>),
    ) -> Result<(), ListError> {
        let mut from = 0;
        for (at, byte) in bytes.iter().enumerate() {
            match self.step(*byte) {
                Step::Goes => {}
                // The brace itself is of the item.
                Step::Begins => from = at,
                Step::Ends => {
                    self.item.push(&bytes[from..=at]);
                    each(self.item.piece());
                    self.item.clear();
                    self.rest.push(b'0');
                    self.capturing = false;
                }
            }
            if self.rest.len() > MAX_REST {
                return Err(ListError::TooLarge);
            }
        }
        if self.capturing {
            self.item.push(&bytes[from..]);
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Step {
        let mut step = Step::Goes;
        let captured = self.capturing;
        if self.in_string {
            self.in_string(byte);
        } else {
            step = self.outside_string(byte);
        }
        if !captured && step == Step::Goes {
            self.rest.push(byte);
        }
        step
    }

    fn in_string(&mut self, byte: u8) {
        if self.depth == 1 && self.word.len() <= ITEMS.len() && (byte != b'"' || self.escaped) {
            self.word.push(byte);
        }
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ => {}
        }
    }

    fn outside_string(&mut self, byte: u8) -> Step {
        match byte {
            b'"' => {
                self.in_string = true;
                self.word.clear();
            }
            b':' if self.depth == 1 => self.is_items = self.word == ITEMS,
            b',' if self.depth == 1 => self.is_items = false,
            b'{' | b'[' => {
                self.depth += 1;
                if byte == b'[' && self.depth == 2 && self.is_items {
                    self.inside = true;
                } else if byte == b'{' && self.depth == 3 && self.inside {
                    self.capturing = true;
                    return Step::Begins;
                }
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 2 && self.capturing {
                    return Step::Ends;
                }
                if self.depth == 1 {
                    self.inside = false;
                }
            }
            _ => {}
        }
        Step::Goes
    }

    /// The end of the answer.
    ///
    /// # Errors
    /// It is no whole list of `kind`.
    pub(super) fn finish(self, kind: &str) -> Result<ListMeta, ListError> {
        if self.capturing {
            return Err(ListError::NotJson);
        }
        let rest: Value = serde_json::from_slice(&self.rest).map_err(|_| ListError::NotJson)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found = text(&rest["kind"]);
        let expected = format!("{kind}List");
        if found != expected {
            let found = crate::source::field::quoted(&found);
            return Err(ListError::OtherKind { expected, found });
        }
        let only_items = match &rest["items"] {
            Value::Null => true,
            Value::Array(items) => items.iter().all(|item| *item == 0),
            _ => false,
        };
        if !only_items {
            return Err(ListError::Items);
        }
        let metadata = &rest["metadata"];
        let version = text(&metadata["resourceVersion"]);
        if version.is_empty() {
            return Err(ListError::NoVersion);
        }
        let next = Some(text(&metadata["continue"])).filter(|next| !next.is_empty());
        Ok(ListMeta { version, next })
    }
}

/// What a byte does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Goes,
    /// It is the first of an item.
    Begins,
    /// It is the last of an item.
    Ends,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// The items of `text`, sent in pieces of `size`, and what the list says of itself.
    fn cut(text: &[u8], size: usize) -> (Vec<Option<Vec<u8>>>, Result<ListMeta, ListError>) {
        let mut items = Items::default();
        let mut found = Vec::new();
        for piece in text.chunks(size.max(1)) {
            let taken = items.push(piece, |piece| {
                found.push(match piece {
                    Piece::Whole(bytes) => Some(bytes.to_vec()),
                    Piece::TooLarge(_) => None,
                });
            });
            if let Err(error) = taken {
                return (found, Err(error));
            }
        }
        (found, items.finish("Service"))
    }

    fn list(items: &[Value]) -> Value {
        json!({
            "kind": "ServiceList",
            "metadata": {"resourceVersion": "7", "continue": "x\"items\": [{", "items": [{"no": 1}]},
            "items": items,
            "note": {"items": [[{}], "}"]}
        })
    }

    #[test]
    fn a_list_is_cut_wherever_it_is_torn() {
        let items = [
            json!({"metadata": {"name": "a\\\"}]{"}, "x": [[{}], "\\"]}),
            json!({}),
            json!({"items": [{"items": []}]}),
        ];
        let text = serde_json::to_vec_pretty(&list(&items)).expect("text");
        for size in 1..text.len() {
            let (found, meta) = cut(&text, size);
            let found: Vec<Value> = found
                .iter()
                .map(|item| serde_json::from_slice(item.as_deref().expect("small")).expect("JSON"))
                .collect();
            assert_eq!(found, items, "{size}");
            let meta = meta.expect("a list");
            assert_eq!(meta.version, "7");
            assert_eq!(meta.next.as_deref(), Some("x\"items\": [{"));
        }
    }

    #[test]
    fn what_is_no_list_is_said() {
        let said = |text: &str| cut(text.as_bytes(), 5).1.expect_err(text);
        for torn in [
            "",
            "<html>",
            r#"{"kind":"ServiceList","items":[{"#,
            "{\"a\"",
            "[1]]",
        ] {
            assert_eq!(said(torn), ListError::NotJson, "{torn}");
        }
        for other in ["null", "[]", r#"{"kind":"PodList"}"#, r#"{"kind":7}"#] {
            assert!(
                matches!(said(other), ListError::OtherKind { .. }),
                "{other}"
            );
        }
        for items in ["[7]", "[null]", "{}", "[[{}]]", "\"x\""] {
            let text = format!(
                r#"{{"kind":"ServiceList","metadata":{{"resourceVersion":"1"}},"items":{items}}}"#
            );
            assert_eq!(said(&text), ListError::Items, "{items}");
        }
        assert_eq!(
            said(r#"{"kind":"ServiceList","items":[]}"#),
            ListError::NoVersion
        );
    }

    #[test]
    fn a_huge_item_costs_its_beginning_and_its_neighbours_nothing() {
        let huge =
            json!({"metadata": {"name": "huge", "annotations": {"x": "y".repeat(MAX_OBJECT)}}});
        let items = [json!({"a": 1}), huge, json!({"b": 2})];
        let text = serde_json::to_vec(&list(&items)).expect("text");
        let (found, meta) = cut(&text, 10_000);
        let shown: Vec<_> = found
            .iter()
            .map(|item| item.as_ref().map(Vec::len))
            .collect();
        assert_eq!(shown, [Some(7), None, Some(7)]);
        assert!(meta.is_ok());
    }

    #[test]
    fn k5_a_list_of_100_mib_takes_the_memory_of_an_item() {
        let item = format!("{{\"metadata\":{{\"x\":\"{}\"}}}},", "y".repeat(64 << 10));
        let mut items = Items::default();
        let mut count = 0;
        let mut push = |items: &mut Items, text: &str| {
            let pushed = items.push(text.as_bytes(), |_| count += 1);
            pushed.expect("it is bounded");
        };
        push(
            &mut items,
            r#"{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":["#,
        );
        for _ in 0..1_600 {
            push(&mut items, &item);
        }
        push(&mut items, "{}]}");
        let kept = items.item.bytes.capacity() + items.rest.capacity();
        assert!(kept < 4 * item.len(), "{kept}");
        assert!(items.finish("Service").is_ok());
        assert_eq!(count, 1_601);
    }

    #[test]
    fn what_stands_beside_the_items_is_bounded() {
        let text = format!("{{\"kind\":\"{}\"", "x".repeat(2 * MAX_REST));
        assert_eq!(cut(text.as_bytes(), 4096).1, Err(ListError::TooLarge));
    }

    proptest! {
        /// Whatever is sent, however torn: the same pieces, no panic.
        #[test]
        fn any_bytes_mean_the_same_in_any_pieces(
            text in "[\\[\\]{}\",:\\\\a0]{0,200}",
            within in any::<bool>(),
            size in 1_usize..50,
        ) {
            let text = match within {
                true => format!("{{\"items\":[{text}"),
                false => text,
            };
            prop_assert_eq!(cut(text.as_bytes(), size), cut(text.as_bytes(), 1_000));
        }
    }
}
