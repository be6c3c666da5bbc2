//! One entry of the owner's list of commands.

use std::str::FromStr;

use tunnel_proto::batch::words::{WordsError, split};

/// A command that the owner lists: a program with exactly these arguments, or with these and any after them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    text: String,
    words: Vec<String>,
    any_more: bool,
}

/// Tells why a line lists no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListedError {
    /// Its words cannot be told.
    #[error(transparent)]
    Words(#[from] WordsError),
    /// It does not begin with a program's absolute path.
    #[error("it does not begin with the absolute path of a program")]
    Program,
    /// It has a word that no program can get.
    #[error("it has a zero byte")]
    Zero,
}

impl Listed {
    /// Says whether a command is this one.
    pub fn covers(&self, words: &[String]) -> bool {
        if self.any_more {
            words.starts_with(&self.words)
        } else {
            words == self.words
        }
    }

    /// Returns the program's path.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Says whether whoever asks gives the program arguments of its own choice.
    pub const fn takes_any_more(&self) -> bool {
        self.any_more
    }

    /// Returns it as the owner wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Listed {
    type Err = ListedError;

    fn from_str(text: &str) -> Result<Self, ListedError> {
        let blank = [' ', '\t'];
        let star = text.strip_suffix('*').filter(|line| line.ends_with(blank));
        // Without the blanks before it: if the last is not a blank at all but quoted, what is left is no line of words.
        let words = split(star.map_or(text, |line| line.trim_end_matches(blank)))?;
        let plain = |path: &String| path.starts_with('/') && !path.split('/').any(|part| part == "..");
        if !words.first().is_some_and(plain) {
            return Err(ListedError::Program);
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(ListedError::Zero);
        }
        Ok(Self {
            text: text.to_owned(),
            words,
            any_more: star.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(listed: &str, words: &[&str]) -> bool {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        listed.parse::<Listed>().unwrap().covers(&words)
    }

    #[test]
    fn an_entry_is_for_its_words_and_no_others() {
        for (listed, good, bad) in [
            ("/bin/df", &["/bin/df"][..], &["/bin/df", "-h"][..]),
            ("/bin/df -h", &["/bin/df", "-h"], &["/bin/df"]),
            ("/bin/df -h", &["/bin/df", "-h"], &["/bin/df", "-h", "/"]),
            ("/bin/df  -h /", &["/bin/df", "-h", "/"], &["/bin/df", "-h /"]),
            ("/bin/df '-h /'", &["/bin/df", "-h /"], &["/bin/df", "-h", "/"]),
            ("/bin/df '*'", &["/bin/df", "*"], &["/bin/df", "x"]),
            ("/bin/df *", &["/bin/df", "x", "y"], &["/bin/dfx", "y"]),
            ("/bin/df\t *", &["/bin/df"], &["/bin/d"]),
            (
                "/bin/ip addr *",
                &["/bin/ip", "addr", "show"],
                &["/bin/ip", "link"],
            ),
            ("/bin/ip addr *", &["/bin/ip", "addr"], &["/bin/ip"]),
            ("/bin/a \\\\ *", &["/bin/a", "\\", "x"], &["/bin/a", "x"]),
        ] {
            assert!(covers(listed, good), "{listed}: {good:?}");
            assert!(!covers(listed, bad), "{listed}: {bad:?}");
        }
    }

    #[test]
    fn what_lists_no_command_is_refused() {
        let special = ListedError::Words(WordsError::Special('*'));
        for (text, error) in [
            ("", ListedError::Program),
            ("df -h", ListedError::Program),
            ("/bin/../bin/df", ListedError::Program),
            ("'' /bin/df", ListedError::Program),
            (" *", ListedError::Program),
            ("*", special),
            ("/bin/*", special),
            ("/bin/df*", special),
            ("/bin/df * -h", special),
            ("/bin/df * *", special),
            ("/bin/df \\ *", ListedError::Words(WordsError::Backslash)),
            ("/bin/df ' *", ListedError::Words(WordsError::Open)),
            ("/bin/df $HOME", ListedError::Words(WordsError::Special('$'))),
            ("/bin/df a\0b", ListedError::Zero),
        ] {
            assert_eq!(text.parse::<Listed>(), Err(error), "{text:?}");
        }
    }
}
