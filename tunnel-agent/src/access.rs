//! The owner's switch: one file in the state directory. While it is there, nobody is let in.
//!
//! There is no socket to ask or command, and so none to attack: who can write the state directory is the owner.

use std::io;
use std::path::{Path, PathBuf};

use crate::notice::Notice;

/// Name of the file whose presence means "off".
const FILE: &str = "access-off";

/// The owner's switch.
#[derive(Clone, Debug)]
pub struct Switch {
    state_dir: PathBuf,
}

impl Switch {
    /// Names the switch of a state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
        }
    }

    /// Says whether the switch lets anybody in. What cannot be told is off (THREATS I3).
    pub fn is_on(&self) -> bool {
        let there = self.state_dir.metadata().is_ok_and(|meta| meta.is_dir());
        let absent =
            matches!(self.path().symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound);
        there && absent
    }

    /// Turns access on or off, so that it stays so after a power cut.
    ///
    /// # Errors
    /// Returns what the file system says.
    pub fn set(&self, on: bool) -> io::Result<()> {
        if on {
            match std::fs::remove_file(self.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else {
            let mut options = std::fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            match options.write(true).create_new(true).open(self.path()) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        std::fs::File::open(&self.state_dir)?.sync_all()
    }

    /// Watches the switch from here on.
    pub fn watch(&self) -> Watch {
        Watch {
            switch: self.clone(),
            notice: Notice::of(&self.state_dir),
            last: self.is_on(),
        }
    }

    fn path(&self) -> PathBuf {
        self.state_dir.join(FILE)
    }
}

/// Tells changes of the owner's switch.
#[derive(Debug)]
pub struct Watch {
    switch: Switch,
    notice: Notice,
    last: bool,
}

impl Watch {
    /// Says whether the switch was on when it was looked at last.
    pub const fn is_on(&self) -> bool {
        self.last
    }

    /// Waits until the switch has changed, and says how it stands. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        loop {
            let on = self.switch.is_on();
            if on != self.last {
                self.last = on;
                return on;
            }
            self.notice.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_stays_as_it_was_set() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(dir.path());
        assert!(switch.is_on());
        switch.set(false).unwrap();
        switch.set(false).unwrap();
        assert!(!Switch::new(dir.path()).is_on());
        switch.set(true).unwrap();
        switch.set(true).unwrap();
        assert!(switch.is_on());
    }

    #[test]
    fn what_cannot_be_told_is_off() {
        assert!(!Switch::new(Path::new("/nonexistent/state")).is_on());
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join(FILE)).unwrap();
        assert!(!Switch::new(dir.path()).is_on(), "a dangling link is there too");
    }

    #[tokio::test]
    async fn a_change_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(dir.path());
        let mut watch = switch.watch();
        assert!(watch.is_on());
        for on in [false, true, false] {
            let other = switch.clone();
            let (now, set) = tokio::join!(watch.changed(), async move { other.set(on) });
            set.unwrap();
            assert_eq!(now, on);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_notice_the_switch_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let switch = Switch::new(dir.path());
        let mut watch = Watch {
            notice: Notice::none(),
            ..switch.watch()
        };
        switch.set(false).unwrap();
        assert!(!watch.changed().await);
        let (now, set) = tokio::join!(watch.changed(), async { switch.set(true) });
        set.unwrap();
        assert!(now);
    }
}
