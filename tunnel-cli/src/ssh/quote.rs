//! Quoting for the two languages that `ssh` reads: its own configuration, and the shell that runs a ProxyCommand.

use std::path::Path;

use tunnel_proto::Code;

use crate::failure::Failure;

/// Quotes a word for any common shell (sh, bash, zsh, fish, csh), for use in a ProxyCommand.
///
/// `%` is doubled, since `ssh` expands it before the shell sees the text.
pub fn command_word(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+' | ',' | ':' | '@');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let quoted = word.chars().fold(String::from("'"), |text, c| match c {
        '\'' => text + r"'\''",
        // fish reads a backslash inside of single quotes, so it stands outside of them.
        '\\' => text + r"'\\'",
        '%' => text + "%%",
        c => text + c.encode_utf8(&mut [0; 4]),
    });
    quoted + "'"
}

/// Quotes a path for an option of `ssh_config` that expands `%` and `${}`.
///
/// # Errors
/// Refuses a path that has no spelling there.
pub fn config_path(path: &Path) -> Result<String, Failure> {
    let text = utf8(path)?;
    if text.contains("${") {
        return Err(unusable(path, "it has `${`, which `ssh` would expand"));
    }
    Ok(format!(
        "\"{}\"",
        text.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%")
    ))
}

/// Returns a path as text that fits on one line.
///
/// # Errors
/// Refuses a path that is no UTF-8 or has control characters.
pub fn utf8(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| unusable(path, "it has characters that a configuration cannot hold"))
}

fn unusable(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::BadRequest,
        format!("could not hand the path `{}` to `ssh`", path.display()),
    )
    .why(why)
    .next("move it to a path of letters, digits and `/ . _ -`; TUNNEL_HOME names the state directory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_quoted_only_where_needed() {
        assert_eq!(command_word("/usr/bin/tunnel"), "/usr/bin/tunnel");
        assert_eq!(command_word("/opt/my tools/tunnel"), "'/opt/my tools/tunnel'");
        assert_eq!(command_word("a'b"), r"'a'\''b'");
        assert_eq!(command_word("100%"), "'100%%'");
        assert_eq!(
            config_path(Path::new("/a b/\"c\"/%d\\")).unwrap(),
            r#""/a b/\"c\"/%%d\\""#
        );
        assert!(config_path(Path::new("/a/${HOME}")).is_err());
        assert!(config_path(Path::new("/a\nProxyCommand x")).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The shell hands back exactly what was quoted.
        #[test]
        fn a_shell_reads_the_word_back(word in r#"[a-c '"\\$`;&|<>(){}*?!#~=%-]{1,16}"#) {
            let quoted = command_word(&word).replace("%%", "%");
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s. {quoted}")])
                .output()
                .unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{word}."));
        }
    }
}
