//! A watch as an API server sends it, cut into lines while it comes in (PURE).

use super::items::{Kept, Piece};

/// The line that is coming in.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Kept,
}

impl Lines {
    /// Takes the next bytes, and hands on each line that they complete, without its end; none that
    /// is empty.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Piece<'_>)) {
        let mut parts = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(part) = parts.next() {
            self.line.push(part);
            if parts.peek().is_some() {
                if !self.line.is_empty() {
                    each(self.line.piece());
                }
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::items::MAX_OBJECT;
    use super::*;

    #[test]
    fn lines_are_cut_wherever_they_are_torn_and_what_is_not_ended_is_none() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\r\nrest";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece, |line| match line {
                    Piece::Whole(line) => found.push(line.to_vec()),
                    Piece::TooLarge(_) => panic!("small"),
                });
            }
            assert_eq!(found, [&b"{\"a\":1}"[..], b"{\"b\":2}\r"], "{size}");
        }
    }

    #[test]
    fn a_huge_line_is_said_and_the_next_is_whole() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let mut each = |line: Piece<'_>| {
            found.push(match line {
                Piece::Whole(line) => line.len(),
                Piece::TooLarge(_) => 0,
            });
        };
        let part = vec![b'x'; MAX_OBJECT / 2 + 1];
        for piece in [&part[..], &part, &part, b"\nab\n"] {
            lines.push(piece, &mut each);
        }
        assert_eq!(found, [0, 2]);
    }
}
