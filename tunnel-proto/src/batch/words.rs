//! Commands as people write them on one line: words as a shell splits them, and nothing is expanded.
//!
//! Who asks for a command and the owner who lists it write it alike. What a shell would do more with is refused instead of taken
//! as it stands, since whoever wrote it meant something else.

/// What a shell gives a meaning, outside of quotes.
const SPECIAL: &str = "|&;<>()$`*?[]{}~!";

/// Tells why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// A quote begins and does not end.
    #[error("a quote is not closed")]
    Open,
    /// There is nothing that the backslash could be about.
    #[error("it ends with a backslash")]
    Backslash,
    /// A character has a meaning for shells.
    #[error(
        "there is no shell that would read `{0}`; if it is meant as it stands, put it into single quotes"
    )]
    Special(char),
}

/// Splits a line into words: blanks part them; single quotes take all as it stands, double quotes all but a backslash before
/// `"`, `\`, `$` and a backquote; a backslash takes the next character as it stands.
///
/// # Errors
/// Tells what is not closed, or what only a shell would understand.
pub fn split(line: &str) -> Result<Vec<String>, WordsError> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            // A word that begins so would begin a comment.
            '#' if word.is_none() => return Err(WordsError::Special(c)),
            '\'' => single_quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => {
                let taken = chars.next().ok_or(WordsError::Backslash)?;
                word.get_or_insert_default().push(taken);
            }
            c if SPECIAL.contains(c) => return Err(WordsError::Special(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    for c in chars {
        match c {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
    Err(WordsError::Open)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), WordsError> {
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(WordsError::Open)? {
                taken @ ('"' | '\\' | '$' | '`') => word.push(taken),
                other => word.extend(['\\', other]),
            },
            '$' | '`' => return Err(WordsError::Special(c)),
            c => word.push(c),
        }
    }
    Err(WordsError::Open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_do_more_with_is_refused() {
        for (line, special) in [
            ("/bin/ls | wc", '|'),
            ("/bin/ls; reboot", ';'),
            ("/bin/ls *", '*'),
            ("/bin/echo $HOME", '$'),
            ("/bin/echo \"$HOME\"", '$'),
            ("/bin/echo `id`", '`'),
            ("/bin/echo x >file", '>'),
            ("/bin/ls ~", '~'),
            ("/bin/ls # all", '#'),
        ] {
            assert_eq!(split(line), Err(WordsError::Special(special)), "{line}");
        }
        assert_eq!(
            split("/bin/a '|' \"*\" \\$x a#b").unwrap(),
            ["/bin/a", "|", "*", "$x", "a#b"]
        );
        for (line, error) in [
            ("/bin/a 'b", WordsError::Open),
            ("/bin/a \"b", WordsError::Open),
            ("/bin/a \\", WordsError::Backslash),
        ] {
            assert_eq!(split(line), Err(error));
        }
    }
}
