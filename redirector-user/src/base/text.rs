//! Words of others in messages of ours.

use std::borrow::Cow;

/// At most so many bytes of a text, with a mark where it was cut.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(most)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        assert_eq!((shortened("", 0), shortened("abc", 3)), ("".into(), "abc".into()));
        assert_eq!((shortened("abcd", 3), shortened("abü", 3)), ("abc…".into(), "ab…".into()));
    }
}
