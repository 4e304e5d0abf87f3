//! Text from outside: file names, the output of tools and clusters, labels. Any pod can choose some of it, and it may control a terminal:
//! colours, titles, overwritten lines. People see such characters escaped, `\x1b`; JSON keeps the text as it is.
//!
//! Code that puts such text into a report uses [`line()`] (or [`paths::shown`](super::paths::shown) for a path), so that a newline in it
//! does not begin a line of the report. Everything printed passes [`line()`], [`lines`] or [`json`] once more, at the one place where it
//! leaves the agent.

use std::borrow::Cow;

/// `text` as part of one line: every control character is escaped, including newline and tab.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_obeyed, spelled)
}

/// As [`line()`], for text of several lines: newlines and tabs stay.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'), spelled)
}

/// The same JSON document without control characters except the newlines between its values: JSON itself only requires escapes below U+0020
/// ([RFC 8259](https://www.rfc-editor.org/rfc/rfc8259#section-7)), but more characters control a terminal.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    // All of them are in the Basic Multilingual Plane, so one escape is enough for each.
    escape(document, |c| is_obeyed(c) && c != '\n', |c| format!("\\u{:04x}", u32::from(c)))
}

/// Control characters (C0, DEL, C1), the separators that end a line, and characters that change the direction of writing, which make a name
/// look like another.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn spelled(c: char) -> String {
    match c {
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        _ if c.is_ascii() => format!("\\x{:02x}", u32::from(c)),
        _ => format!("\\u{{{:x}}}", u32::from(c)),
    }
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool, spell: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_bad(c) { escaped.push_str(&spell(c)) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_spelled_out_and_nothing_else_is() {
        assert_eq!(line("a\x1b]0;t\x07\rb\u{9b}31m\x7f"), "a\\x1b]0;t\\x07\\rb\\u{9b}31m\\x7f");
        assert_eq!(line("one\ntwo\tthree"), "one\\ntwo\\tthree");
        assert_eq!(lines("one\ntwo\tthree\x08"), "one\ntwo\tthree\\x08");
        assert_eq!(line("gpj.\u{202e}exe\u{2028}x"), "gpj.\\u{202e}exe\\u{2028}x");
        let plain = "caf\u{e9} \u{1f600} \u{05d0} `a\\x1b` 100 %";
        assert!(matches!(line(plain), Cow::Borrowed(text) if text == plain));
        // What is already escaped stays as it is.
        assert_eq!(line(&line("\x1b")), "\\x1b");
    }

    #[test]
    fn json_says_the_same() {
        let value = serde_json::json!({"name": "a\x1b\u{9b}\x7f\u{202e}\n\t\u{1f600}", "list": [1, 2]});
        let document = format!("{value:#}");
        let shown = json(&document);
        assert!(!shown.chars().any(|c| is_obeyed(c) && c != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
