//! The words of a Rust source file: identifiers and punctuation, without comments, literals and test code.

/// An identifier, `::`, or one character of punctuation, and the line it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// All tokens of `source`.
pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let bytes = source.as_bytes();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let start = at;
        let rest = &source[at..];
        at += match bytes[at] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => block_comment(rest),
            b'"' => quoted(rest, b'"'),
            b'r' | b'b' | b'c' if literal_prefix(rest).is_some() => literal(rest),
            b'\'' => character_or_lifetime(rest),
            byte if is_word(byte) => rest.bytes().take_while(|byte| is_word(*byte)).count(),
            b':' if rest.starts_with("::") => 2,
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        let text = &source[start..at];
        let first = bytes[start];
        let plain = text.bytes().all(is_word) && !first.is_ascii_digit();
        if plain || text == "::" || (text.len() == 1 && first.is_ascii_punctuation()) {
            found.push(Token { text, line });
        }
        line += text.matches('\n').count();
    }
    found
}

/// `tokens` without the items under `#[cfg(test)]`; and the names of the modules among them that are files.
pub fn without_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut test_files, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let texts = tokens[at..].iter().map(|token| token.text);
        if !texts.take(CFG_TEST.len()).eq(CFG_TEST) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let item = at + CFG_TEST.len();
        at = end_of_item(tokens, item);
        let words: Vec<&str> = tokens[item..at].iter().map(|token| token.text).collect();
        if let [.., "mod", name, ";"] = words[..] {
            test_files.push(name);
        }
    }
    (kept, test_files)
}

/// Where the item that begins at `at` ends: behind its `;` or its block.
fn end_of_item(tokens: &[Token<'_>], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token.text {
            "{" | "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            "}" if depth <= 1 => break,
            "}" => depth -= 1,
            ";" if depth == 0 => break,
            _ => {}
        }
    }
    // `use a::{b, c};` ends with a semicolon behind its braces.
    if tokens.get(at).is_some_and(|token| token.text == ";") { at + 1 } else { at }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        match rest.get(at..at + 2) {
            Some("/*") => (depth, at) = (depth + 1, at + 2),
            Some("*/") if depth == 1 => return at + 2,
            Some("*/") => (depth, at) = (depth - 1, at + 2),
            _ if at >= rest.len() => return rest.len(),
            _ => at += 1,
        }
    }
}

/// The length of a literal that begins and ends with `quote`.
fn quoted(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The letters and hashes before the quote of `r"`, `br#"`, `c"`, `b'`.
fn literal_prefix(rest: &str) -> Option<(&str, usize)> {
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic())?;
    let (letters, behind) = rest.split_at(letters);
    let hashes = behind.bytes().take_while(|byte| *byte == b'#').count();
    let quote = behind.as_bytes().get(hashes)?;
    let known = ["r", "b", "c", "br", "cr"].contains(&letters);
    let fits = *quote == b'"' && (hashes == 0 || letters.ends_with('r')) || *quote == b'\'' && letters == "b";
    (known && fits).then_some((letters, hashes))
}

fn literal(rest: &str) -> usize {
    let Some((letters, hashes)) = literal_prefix(rest) else { return 1 };
    let start = letters.len() + hashes;
    if !letters.ends_with('r') {
        return start + quoted(&rest[start..], rest.as_bytes()[start]);
    }
    let end = format!("\"{}", "#".repeat(hashes));
    rest[start + 1..].find(&end).map_or(rest.len(), |length| start + 1 + length + end.len())
}

/// `'a'` and `'\n'` whole; of a lifetime only the quote, its name then reads as an identifier that leads nowhere.
fn character_or_lifetime(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => quoted(rest, b'\''),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source).into_iter().map(|token| token.text).filter(|text| *text != "'").collect()
    }

    #[test]
    fn comments_and_literals_are_left_out() {
        let source = r####"a /* b /* c */ d */ e // f
            "g\" h" r#"i " j"# b'k' '\'' 'l' br"m" 'n: o<'p> 17u8 1.5 c"q" r"s" t"####;
        assert_eq!(texts(source), ["a", "e", "n", ":", "o", "<", "p", ">", ".", "t"]);
    }

    #[test]
    fn lines_are_counted_through_literals_and_comments() {
        let lines: Vec<usize> = tokens("a \"\n\" b\n/*\n*/ c").into_iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 2, 4]);
    }

    #[test]
    fn test_code_is_left_out() {
        let source = "#[cfg(test)] use a::{b, c}; d #[cfg(test)] pub(crate) mod e; #[cfg(test)] mod f { fn g() {} } \
                      #[cfg(test)] fn h(i: [u8; 2]) -> X { {} } j";
        let all = tokens(source);
        let (kept, files) = without_tests(&all);
        assert_eq!(kept.iter().map(|token| token.text).collect::<Vec<_>>(), ["d", "j"]);
        assert_eq!(files, ["e"]);
    }
}
