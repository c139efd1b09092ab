//! Text that a tenant wrote, made fit for a reason: no control character and no escape sequence
//! reaches a terminal or a log, and none is longer than a line.

use std::sync::Arc;

/// So many characters of a tenant's text are shown, before escaping.
const SHOWN: usize = 120;

/// `text` with everything that is not plainly printable escaped (`\u{1b}`), cut after 120
/// characters.
pub fn shown(text: &str) -> Arc<str> {
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == SHOWN {
            out.push('…');
            break;
        }
        match c {
            // `escape_debug` escapes quotes too, and there is no harm in them.
            '"' | '\'' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_passes() {
        assert_eq!(&*shown("plain-1.2 'x'"), "plain-1.2 'x'");
        assert_eq!(&*shown("\x1b[31mred\r\n\0"), r"\u{1b}[31mred\r\n\0");
        // Right-to-left override, zero width space, a C1 control (CSI).
        for hostile in ['\u{202e}', '\u{200b}', '\u{9b}', '\u{2028}', '\u{feff}'] {
            let text = shown(&hostile.to_string());
            assert!(text.is_ascii(), "{hostile:?} became {text:?}");
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = shown(&"ä".repeat(100_000));
        assert_eq!(text.chars().count(), SHOWN + 1);
        assert!(text.ends_with('…'));
        assert_eq!(shown(&"a".repeat(SHOWN)).len(), SHOWN);
    }
}
