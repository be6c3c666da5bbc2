//! Batches of commands as people write them: a file with a command on each line, or one command behind `--`.
//!
//! Pure but for the reading of the file.

use std::io::Read as _;
use std::path::Path;

use tunnel_proto::Code;
use tunnel_proto::batch::Batch;
use tunnel_proto::batch::words::{WordsError, split};

use crate::failure::Failure;

/// Longest file that is read, in bytes: comments too have their room.
const MAX_FILE: u64 = 256 * 1024;

/// Tells why a line is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum LineError {
    #[error(transparent)]
    Words(#[from] WordsError),
    #[error("it is no JSON list of texts")]
    Json,
}

/// Reads a file of commands.
///
/// # Errors
/// Tells which line is no command, or why the whole is no batch.
pub fn from_file(path: &Path) -> Result<Batch, Failure> {
    let what = format!("could not read the commands in `{}`", path.display());
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    if let Err(error) = read {
        return Err(Failure::new(Code::BadRequest, what)
            .why(error.to_string())
            .next("check the path; the file is text in UTF-8"));
    }
    if text.len() as u64 > MAX_FILE {
        return Err(Failure::new(Code::TooLarge, what).next("ask for less at once"));
    }
    parse(&text).map_err(|why| {
        Failure::new(Code::BadRequest, what).why(why).next(
            "write one command on a line, its program by absolute path, or each as a JSON list of words",
        )
    })
}

/// Makes a batch of one command.
///
/// # Errors
/// Tells why it is none.
pub fn of_words(words: Vec<String>) -> Result<Batch, Failure> {
    Batch::new(vec![words]).map_err(|error| {
        Failure::new(Code::BadRequest, "could not take the command")
            .why(error.to_string())
            .next("write it behind `--`, its program by absolute path, as `-- /usr/bin/df -h`")
    })
}

/// Reads the text of a file: a command on each line, by the rules of quoting or as a JSON list. Empty lines and those that
/// begin with `#` are passed over.
fn parse(text: &str) -> Result<Batch, String> {
    let mut commands = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words = match line.starts_with('[') {
            true => serde_json::from_str(line).map_err(|_| LineError::Json),
            false => split(line).map_err(LineError::from),
        };
        commands.push(words.map_err(|error| format!("line {number}: {error}"))?);
    }
    Batch::new(commands).map_err(|error| error.to_string())
}

/// Writes a command as a line of a file that reads back as the same: plain words as they are, all else as a JSON list.
pub fn line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./+,:@%=".contains(c);
    let is_plain = |word: &String| !word.is_empty() && word.chars().all(plain);
    if words.iter().all(is_plain) {
        words.join(" ")
    } else {
        serde_json::to_string(words).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_has_a_command_on_each_line() {
        let text = "# what we look at\n\n/bin/uptime\n  /bin/echo 'a b'  \"c\\\"d\" e\\ f ''\n[\"/bin/sh\", \"-c\", \"echo $HOME | wc\"]\r\n";
        let batch = parse(text).unwrap();
        assert_eq!(
            batch.commands(),
            [
                vec!["/bin/uptime"],
                vec!["/bin/echo", "a b", "c\"d", "e f", ""],
                vec!["/bin/sh", "-c", "echo $HOME | wc"],
            ]
        );
        assert_eq!(
            batch.hash(),
            parse(
                &batch
                    .commands()
                    .iter()
                    .map(|words| line(words) + "\n")
                    .collect::<String>()
            )
            .unwrap()
            .hash(),
            "what is shown gives the same hash"
        );
    }

    #[test]
    fn a_file_that_is_no_batch_is_refused_with_its_line() {
        for (text, why) in [
            ("/bin/a\nls", "command 2"),
            ("# nothing", "no command"),
            ("/bin/a\n[\"/bin/a\", 7]", "line 2"),
            ("/bin/a\n/bin/b 'c", "line 2: a quote"),
            ("/bin/ls | wc", "line 1: there is no shell"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_command_that_is_shown_reads_back(words in prop::collection::vec(any::<String>(), 0..5)) {
            let mut words: Vec<_> = words.into_iter().map(|word| word.replace('\0', "")).collect();
            words.insert(0, "/bin/x".into());
            let shown = crate::escape::escape_json(&line(&words)).into_owned();
            let read = parse(&shown).unwrap();
            prop_assert_eq!(&read.commands()[0], &words);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[ -~\n]{0,80}") {
            let _ = parse(&text);
        }
    }
}
