//! What a person at the device sees and says: who is connected, who asks to be let in, yes, no, and the end of a tunnel.
//!
//! As with the owner's switch there is no socket to ask or command. Each worker shows its tunnels in a file of its own under
//! the state directory, and finds there what was said about them: empty files whose names say it. Who can write there is the
//! owner. A lock that the kernel keeps for the worker tells whether a file is that of one that is still there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tunnel_net::files;
use tunnel_proto::TunnelId;

use crate::notice::Notice;

mod command;

pub(crate) use command::{Command, execute};

/// Name of the directory.
const DIRECTORY: &str = "site";

/// Most files there that are looked at: many times what tunnels a device has, and no harm if somebody fills it.
const MAX_FILES: usize = 4096;

/// What somebody on site says about a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Word {
    /// It may go on.
    Allow,
    /// It may not begin.
    Deny,
    /// It ends now.
    End,
}

impl Word {
    const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::End];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::End => "end",
        }
    }
}

/// A worker's place there.
#[derive(Debug)]
pub(crate) struct Site {
    directory: PathBuf,
    /// Held as long as this worker lives; none where there is no place to write, and then nobody is shown.
    own: Option<Own>,
    shown: String,
    notice: Notice,
}

#[derive(Debug)]
struct Own {
    path: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl Site {
    /// Takes a place in a state directory. Must be called in a tokio runtime.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let directory = state_dir.join(DIRECTORY);
        let own = take_place(&directory).map_err(|error| {
            tracing::warn!(%error, "who is connected cannot be shown on site");
        });
        Self {
            notice: Notice::of(&directory),
            directory,
            own: own.ok(),
            shown: String::new(),
        }
    }

    /// Shows the tunnels of this worker.
    pub(crate) fn show(&mut self, text: String) {
        let Some(own) = self.own.as_ref().filter(|_| text != self.shown) else {
            return;
        };
        match files::write_private(&own.path, text.as_bytes()) {
            Ok(()) => self.shown = text,
            Err(error) => tracing::warn!(%error, "who is connected cannot be shown on site"),
        }
    }

    /// Waits until it is worth to look what was said. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        self.notice.wait().await;
    }

    /// Takes what was said about the tunnels that are `known`. A word counts when its file could be removed, so it counts
    /// once.
    pub(crate) fn take(&self, known: impl Fn(TunnelId) -> bool) -> Vec<(TunnelId, Word)> {
        let said = names(&self.directory).filter_map(|name| read_word(&name).map(|said| (name, said)));
        said.filter(|(_, (tunnel, _))| known(*tunnel))
            .filter(|(name, _)| std::fs::remove_file(self.directory.join(name)).is_ok())
            .map(|(_, said)| said)
            .collect()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock);
    }
}

/// Makes the directory, clears away what workers left that are no longer there, and takes a place.
fn take_place(directory: &Path) -> io::Result<Own> {
    files::create_private_dir(directory).map_err(io::Error::other)?;
    for name in names(directory).filter(|name| name.ends_with(".lock")) {
        let lock = directory.join(&name);
        if !is_held(&lock) {
            let _ = std::fs::remove_file(lock.with_extension("json"));
            let _ = std::fs::remove_file(&lock);
        }
    }
    let lock = directory.join(format!("{}.lock", std::process::id()));
    let held = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)?;
    flock(&held, FlockOperation::NonBlockingLockExclusive)?;
    let path = lock.with_extension("json");
    Ok(Own {
        path,
        lock,
        _held: held,
    })
}

/// Says whether the worker of a lock is still there.
fn is_held(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(
        flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries
        .take(MAX_FILES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

fn read_word(name: &str) -> Option<(TunnelId, Word)> {
    let (tunnel, word) = name.split_once('.')?;
    let word = Word::ALL.into_iter().find(|one| one.as_str() == word)?;
    Some((tunnel.parse().ok()?, word))
}

fn file_name(tunnel: TunnelId, word: Word) -> String {
    format!("{tunnel}.{}", word.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> TunnelId {
        TunnelId::from_bytes([n; 16])
    }

    #[tokio::test]
    async fn a_word_counts_once_and_for_its_tunnel() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::open(dir.path());
        let say = |name: &str| std::fs::write(dir.path().join(DIRECTORY).join(name), b"").unwrap();
        say(&file_name(id(1), Word::Allow));
        say(&file_name(id(2), Word::End));
        for name in [
            "allow",
            "x.allow",
            &format!("{}.shell", id(1)),
            &format!("{}.allow.end", id(1)),
        ] {
            say(name);
        }
        let known = |tunnel| tunnel == id(1);
        assert_eq!(site.take(known), [(id(1), Word::Allow)]);
        assert_eq!(site.take(known), []);
        assert_eq!(
            site.take(|_| true),
            [(id(2), Word::End)],
            "that of another worker was left alone"
        );
    }

    #[tokio::test]
    async fn what_a_killed_worker_left_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join(DIRECTORY);
        files::create_private_dir(&directory).unwrap();
        for name in ["1.lock", "1.json"] {
            std::fs::write(directory.join(name), "[]").unwrap();
        }
        let mut site = Site::open(dir.path());
        site.show("[]".into());
        let mut left: Vec<_> = names(&directory).collect();
        left.sort();
        let own = std::process::id();
        assert_eq!(left, [format!("{own}.json"), format!("{own}.lock")]);
        assert!(is_held(&directory.join(format!("{own}.lock"))));
        drop(site);
        assert_eq!(names(&directory).count(), 0);
    }
}
