//! Makes text of other parties harmless for a terminal and for a reader.
//!
//! Names, errors and reports come from devices and servers, which may be in foreign hands. What would move the cursor,
//! set a title, fill the clipboard, turn the direction of writing or hide itself is shown by its number instead.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes everything that a terminal could act on or a reader could not see.
///
/// The backslash is escaped too, so that no text can pretend to be an escaped one. A line feed is escaped: one text
/// stays on one line.
///
/// # Security
/// THREATS CLI-01: text that is printed without this can type into the operator's terminal.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| is_unsafe(c) || c == '\\') {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\\' => safe.push_str("\\\\"),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if is_unsafe(c) => {
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
            }
            c => safe.push(c),
        }
    }
    Cow::Owned(safe)
}

/// Escapes a text of several lines: line feeds and tabs stay, and so does the backslash, which such texts use.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    let keeps = |c: char| matches!(c, '\n' | '\t');
    if !text.chars().any(|c| is_unsafe(c) && !keeps(c)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) && !keeps(c) {
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Escapes JSON text further: what JSON lets through and a terminal or a reader does not is written as `\uXXXX`.
///
/// The meaning stays the same, since such characters stand only inside of strings.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    if !json.chars().any(|c| is_unsafe(c) && c != '\n') {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Says whether a character does something, or hides something, when it is printed.
pub fn is_unsafe(c: char) -> bool {
    // C0, DEL and C1.
    c.is_control() || is_invisible(c)
}

/// Says whether a character is a format character (Unicode category Cf), a separator of lines, or has no width.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0x00ad | 0x034f | 0x0600..=0x0605 | 0x061c | 0x06dd | 0x070f | 0x0890..=0x0891 | 0x08e2
        | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f | 0x2028..=0x202e
        | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb | 0x110bd | 0x110cd
        | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// THREATS CLI-01.
    #[test]
    fn what_a_terminal_acts_on_is_shown_by_its_number() {
        for (text, shown) in [
            ("pump-17", "pump-17"),
            ("grün 泵", "grün 泵"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{1b}]8;;http://x\u{7}", "\\u{1b}]8;;http://x\\u{7}"),
            ("\u{1b}]52;c;aWQ=\u{1b}\\", "\\u{1b}]52;c;aWQ=\\u{1b}\\\\"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\rb", "a\\rb"),
            ("a\nb", "a\\nb"),
            ("\u{7f}", "\\u{7f}"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("a\u{200b}b\u{feff}", "a\\u{200b}b\\u{feff}"),
            ("\u{2028}", "\\u{2028}"),
            ("\\u{1b}", "\\\\u{1b}"),
        ] {
            assert_eq!(escape(text), shown, "{text:?}");
        }
        assert_eq!(escape_lines("a\n\tb\r\u{1b}"), "a\n\tb\\u{d}\\u{1b}");
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_safe(text in prop::collection::vec(any::<char>(), 0..60)) {
            let text: String = text.into_iter().collect();
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(is_unsafe), "{safe:?}");
            prop_assert!(!escape_lines(&text).chars().any(|c| is_unsafe(c) && c != '\n' && c != '\t'));
        }

        #[test]
        fn escaping_is_one_to_one(a in "[a\\\\\u{1b}\n{}u1b]{0,8}", b in "[a\\\\\u{1b}\n{}u1b]{0,8}") {
            prop_assert_eq!(a == b, escape(&a) == escape(&b));
        }

        #[test]
        fn escaped_json_means_the_same(text in prop::collection::vec(any::<char>(), 0..60)) {
            let text: String = text.into_iter().collect();
            let json = serde_json::to_string(&text).unwrap();
            let safe = escape_json(&json);
            prop_assert!(!safe.chars().any(is_unsafe));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }
    }
}
