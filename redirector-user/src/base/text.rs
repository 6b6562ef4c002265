//! Words of others in messages of ours.

use std::borrow::Cow;

/// At most so many bytes of a text, with a mark where it was cut.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)]).into()
}

/// The text of a field that the kernel ends or fills with NUL.
pub fn nul_terminated(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A text of others without what a terminal would obey: control characters, and those that turn the direction of writing.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_obeyed =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(is_obeyed) {
        return text.into();
    }
    text.chars().map(|c| if is_obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_nothing_to_obey() {
        for (text, shown) in [
            ("zürich", "zürich"),
            ("\x1b[2J\ra\nb", "\u{fffd}[2J\u{fffd}a\u{fffd}b"),
            ("\u{9b}x\u{7f}\u{202e}\u{2066}", "\u{fffd}x\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn characters_are_not_cut() {
        assert_eq!((shortened("", 0), shortened("abc", 3)), ("".into(), "abc".into()));
        assert_eq!((shortened("abcd", 3), shortened("abü", 3)), ("abc…".into(), "ab…".into()));
    }
}
