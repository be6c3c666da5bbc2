//! `tunnel-agent who`, `allow`, `deny` and `end`: the commands of a person on site.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunnel_proto::code::Exit;
use tunnel_proto::{Code, TunnelId};

use super::{DIRECTORY, Word, file_name, is_held, names};
use crate::defaults::MAX_FILE_BYTES;
use crate::failure::Failure;

/// How long a running agent may take to do what was said.
const DONE: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Fewest digits that name a tunnel.
const MIN_DIGITS: usize = 4;

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Show who is connected, or asks.
    Who,
    /// Show who asks, or let one of them in.
    Allow(Option<String>),
    /// Let one of those who ask not in.
    Deny(String),
    /// End one tunnel, or all.
    End(Option<String>),
}

/// A tunnel, as its worker shows it.
#[derive(Clone, Debug)]
struct Shown {
    id: TunnelId,
    /// What the worker wrote.
    all: Value,
}

impl Shown {
    fn asks(&self) -> bool {
        self.all["asks"] == true
    }

    fn text(&self, field: &str) -> String {
        let text = self.all[field].as_str().unwrap_or("-");
        // Whoever asks chose the words: nothing of them reaches the terminal as more than text.
        let plain = |c: char| c.is_ascii_graphic() || c.is_alphanumeric() || c == ' ';
        text.chars().fold(String::new(), |mut shown, c| {
            match plain(c) {
                true => shown.push(c),
                false => shown.extend(c.escape_default()),
            }
            shown
        })
    }
}

/// Does what a person on site wants, and returns what to print.
///
/// # Errors
/// Tells that there is no such tunnel, or that no agent did what was said.
pub(crate) fn execute(state_dir: &Path, command: &Command, as_json: bool) -> Result<(String, Exit), Failure> {
    let directory = state_dir.join(DIRECTORY);
    let all = read_all(&directory);
    match command {
        Command::Who => Ok((list(&all, as_json, "nobody is connected\n"), Exit::Done)),
        Command::Allow(None) => {
            let asking: Vec<_> = all.into_iter().filter(Shown::asks).collect();
            Ok((list(&asking, as_json, "nobody asks\n"), Exit::Done))
        }
        Command::Allow(Some(text)) => answer(&directory, &all, text, Word::Allow, as_json),
        Command::Deny(text) => answer(&directory, &all, text, Word::Deny, as_json),
        Command::End(Some(text)) => {
            let shown = find(&all, text, |_| true)?;
            say(&directory, &[shown], Word::End, as_json)
        }
        Command::End(None) => say(&directory, &all.iter().collect::<Vec<_>>(), Word::End, as_json),
    }
}

fn answer(
    directory: &Path,
    all: &[Shown],
    text: &str,
    word: Word,
    as_json: bool,
) -> Result<(String, Exit), Failure> {
    let shown = find(all, text, Shown::asks)?;
    say(directory, &[shown], word, as_json)
}

/// Reads what the workers that are there show.
fn read_all(directory: &Path) -> Vec<Shown> {
    let locks = names(directory).filter(|name| name.ends_with(".lock"));
    let shown = locks
        .map(|name| directory.join(name))
        .filter(|lock| is_held(lock));
    let files = shown.filter_map(|lock| read(&lock.with_extension("json")));
    let mut all: Vec<Shown> = files.flatten().collect();
    all.sort_by_key(|shown| shown.all["since"].as_u64());
    all
}

fn read(path: &Path) -> Option<Vec<Shown>> {
    let size = path.symlink_metadata().ok().filter(|meta| meta.is_file())?.len();
    let text = (size <= MAX_FILE_BYTES)
        .then(|| std::fs::read_to_string(path).ok())
        .flatten()?;
    let Ok(Value::Array(all)) = serde_json::from_str(&text) else {
        return None;
    };
    let shown = |all: Value| {
        let id = all["tunnel"].as_str()?.parse().ok()?;
        Some(Shown { id, all })
    };
    Some(all.into_iter().filter_map(shown).collect())
}

/// Finds a tunnel by its id or the first digits of it.
fn find<'a>(all: &'a [Shown], text: &str, fits: impl Fn(&Shown) -> bool) -> Result<&'a Shown, Failure> {
    let mut fitting = all
        .iter()
        .filter(|shown| text.len() >= MIN_DIGITS && shown.id.to_string().starts_with(text))
        .filter(|shown| fits(shown));
    match (fitting.next(), fitting.next()) {
        (Some(shown), None) => Ok(shown),
        _ => {
            let shown: String = text.chars().take(40).collect();
            let what = format!("could not find the tunnel `{shown}`");
            Err(Failure::of(Code::NotFound, what)
                .because("there is none, or several, whose id begins so and that waits for this")
                .next("`tunnel-agent who` lists them"))
        }
    }
}

/// Says something about tunnels to the workers that have them, and waits until they have heard it.
fn say(directory: &Path, tunnels: &[&Shown], word: Word, as_json: bool) -> Result<(String, Exit), Failure> {
    let mut waiting = Vec::new();
    for shown in tunnels {
        let path = directory.join(file_name(shown.id, word));
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                let what = format!("could not write in `{}`", directory.display());
                let next = "run the command as root or as the agent's user";
                return Err(Failure::local("E_STATE", what, error, next));
            }
            _ => waiting.push(path),
        }
    }
    wait(waiting)?;
    let ids: Vec<String> = tunnels.iter().map(|shown| shown.id.to_string()).collect();
    let done = match word {
        Word::Allow => "allowed",
        Word::Deny => "denied",
        Word::End => "ended",
    };
    let text = if as_json {
        format!("{}\n", json!({ done: ids }))
    } else if ids.is_empty() {
        "nobody is connected\n".to_owned()
    } else {
        tunnels.iter().fold(String::new(), |mut text, shown| {
            let _ = writeln!(
                text,
                "{done} {} of {}",
                shown.id.fmt_short(),
                shown.text("operator")
            );
            text
        })
    };
    Ok((text, Exit::Done))
}

fn wait(mut waiting: Vec<PathBuf>) -> Result<(), Failure> {
    let begun = Instant::now();
    loop {
        waiting.retain(|path| path.symlink_metadata().is_ok());
        if waiting.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > DONE {
            waiting.iter().for_each(|path| drop(std::fs::remove_file(path)));
            return Err(Failure::of(Code::Deadline, "could not tell the agent")
                .because("it did not take in what was said; the tunnel may have ended")
                .next("look again with `tunnel-agent who`; `tunnel-agent access off` lets nobody in"));
        }
        std::thread::sleep(LOOK);
    }
}

fn list(all: &[Shown], as_json: bool, nobody: &str) -> String {
    if as_json {
        let all: Vec<&Value> = all.iter().map(|shown| &shown.all).collect();
        return format!("{}\n", json!(all));
    }
    if all.is_empty() {
        return nobody.to_owned();
    }
    all.iter().fold(String::new(), |mut text, shown| {
        let _ = writeln!(
            text,
            "{} {} {} for {}, {}: {}",
            shown.id.fmt_short(),
            shown.text("operator"),
            if shown.asks() { "asks" } else { "is connected" },
            shown.text("services"),
            shown.text("until"),
            shown.text("reason"),
        );
        if shown.asks() {
            let id = shown.id.fmt_short();
            let _ = writeln!(
                text,
                "         tunnel-agent allow {id}, or tunnel-agent deny {id}"
            );
        }
        text
    })
}
