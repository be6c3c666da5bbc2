//! The programs that a supervisor can start, what is remembered of them, and the copy of the last one that came through.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use tunnel_net::files;

use super::succession::{Program, Standing};
use crate::defaults::MAX_GIVEN_UP;

/// The program of this process, even after the file at its path was replaced.
const OWN: &str = "/proc/self/exe";
const PROVEN: &str = "proven ";
const GIVEN_UP: &str = "given-up ";

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    state_dir: PathBuf,
    installed: PathBuf,
}

/// SHA-256 of each program that something is known of.
#[derive(Default, PartialEq, Eq, Debug)]
struct Memory {
    proven: Option<String>,
    given_up: Vec<String>,
}

impl Programs {
    /// Finds the programs of this process.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            installed: std::env::current_exe().unwrap_or_else(|_| OWN.into()),
        }
    }

    /// Returns the file of a program; of what was inherited there is none.
    pub(crate) fn path(&self, program: Program) -> PathBuf {
        match program {
            Program::Installed => self.installed.clone(),
            Program::LastGood => self.last_good(),
            Program::Own | Program::Inherited => OWN.into(),
        }
    }

    fn last_good(&self) -> PathBuf {
        self.state_dir.join("last-good")
    }

    fn memory_file(&self) -> PathBuf {
        self.state_dir.join("programs")
    }

    /// Tells what is known of a program.
    pub(crate) fn standing(&self, program: Program) -> Standing {
        let Ok(hash) = File::open(self.path(program)).and_then(|file| pass_on(file, io::sink())) else {
            return Standing::default();
        };
        let memory = self.memory();
        let other = memory.proven.as_ref().filter(|proven| **proven != hash);
        Standing {
            proven: memory.proven.as_ref() == Some(&hash),
            given_up: memory.given_up.contains(&hash),
            last_good: other.is_some_and(|proven| self.is_usable(proven)),
        }
    }

    /// Says whether the copy is what was copied, and nobody else's to change.
    fn is_usable(&self, proven: &str) -> bool {
        let path = self.last_good();
        let Ok(about) = fs::symlink_metadata(&path) else {
            return false;
        };
        let owned = about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o777 == 0o700;
        let same = || {
            File::open(&path)
                .and_then(|file| pass_on(file, io::sink()))
                .is_ok_and(|hash| hash == proven)
        };
        about.is_file() && owned && same()
    }

    /// Keeps a copy of the program that process `pid` runs: it has come through.
    ///
    /// # Errors
    /// Returns what the file system says; the copy of before is there then.
    pub(crate) fn keep(&self, pid: u32) -> Result<(), String> {
        let draft = self.state_dir.join(".last-good.new");
        let hash = self.copy(pid, &draft).map_err(|error| {
            let _ = fs::remove_file(&draft);
            error.to_string()
        })?;
        let mut memory = self.memory();
        memory.given_up.retain(|given_up| *given_up != hash);
        memory.proven = Some(hash);
        self.remember(&memory)
    }

    /// Writes the copy whole, or leaves the old one (THREATS AGT-14).
    fn copy(&self, pid: u32, draft: &Path) -> io::Result<String> {
        let _ = fs::remove_file(draft);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o700).open(draft)?;
        let hash = pass_on(File::open(format!("/proc/{pid}/exe"))?, &mut file)?;
        file.sync_all()?;
        drop(file);
        fs::rename(draft, self.last_good())?;
        File::open(&self.state_dir)?.sync_all()?;
        Ok(hash)
    }

    /// Remembers that a program is not to be tried again.
    ///
    /// # Errors
    /// Returns what the file system says.
    pub(crate) fn give_up(&self, program: Program) -> Result<(), String> {
        let file = File::open(self.path(program));
        let hash = file
            .and_then(|file| pass_on(file, io::sink()))
            .map_err(|error| error.to_string())?;
        let mut memory = self.memory();
        memory.given_up.retain(|given_up| *given_up != hash);
        memory.given_up.push(hash);
        let surplus = memory.given_up.len().saturating_sub(MAX_GIVEN_UP);
        memory.given_up.drain(..surplus);
        self.remember(&memory)
    }

    fn memory(&self) -> Memory {
        let text = files::read_private_text(&self.memory_file());
        text.map(|text| Memory::read(&text)).unwrap_or_default()
    }

    fn remember(&self, memory: &Memory) -> Result<(), String> {
        files::write_private(&self.memory_file(), memory.to_text().as_bytes())
            .map_err(|error| error.to_string())
    }
}

impl Memory {
    /// Reads what was written; lines of another version are passed over.
    fn read(text: &str) -> Self {
        let mut memory = Self::default();
        for line in text.lines() {
            if let Some(hash) = line.strip_prefix(PROVEN) {
                memory.proven = Some(hash.to_owned());
            } else if let Some(hash) = line.strip_prefix(GIVEN_UP) {
                memory.given_up.push(hash.to_owned());
            }
        }
        memory
    }

    fn to_text(&self) -> String {
        let proven = self.proven.iter().map(|hash| format!("{PROVEN}{hash}\n"));
        let given_up = self.given_up.iter().map(|hash| format!("{GIVEN_UP}{hash}\n"));
        proven.chain(given_up).collect()
    }
}

/// Reads a file to its end and writes it elsewhere; its SHA-256 in hexadecimal digits.
fn pass_on(mut from: File, mut to: impl io::Write) -> io::Result<String> {
    let (mut context, mut part) = (Context::new(&SHA256), vec![0; 64 * 1024]);
    loop {
        let length = from.read(&mut part)?;
        if length == 0 {
            break;
        }
        let part = part.get(..length).unwrap_or_default();
        context.update(part);
        to.write_all(part)?;
    }
    to.flush()?;
    Ok(context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn programs(dir: &tempfile::TempDir) -> Programs {
        Programs {
            state_dir: dir.path().to_owned(),
            installed: dir.path().join("installed"),
        }
    }

    #[test]
    fn what_came_through_is_kept_and_what_was_given_up_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let programs = programs(&dir);
        assert_eq!(programs.standing(Program::Own), Standing::default());
        programs.keep(std::process::id()).unwrap();
        let proven = Standing {
            proven: true,
            ..Standing::default()
        };
        assert_eq!(programs.standing(Program::Own), proven);
        assert_eq!(
            programs.standing(Program::LastGood),
            proven,
            "the copy is the program"
        );

        fs::write(&programs.installed, "another one").unwrap();
        let new = Standing {
            last_good: true,
            ..Standing::default()
        };
        assert_eq!(programs.standing(Program::Installed), new);
        programs.give_up(Program::Installed).unwrap();
        let given_up = Standing {
            given_up: true,
            ..new
        };
        assert_eq!(programs.standing(Program::Installed), given_up);
        fs::write(&programs.installed, "a third one").unwrap();
        assert_eq!(
            programs.standing(Program::Installed),
            new,
            "a newer program is tried afresh"
        );
    }

    // AGT-16
    #[test]
    fn a_copy_that_others_can_change_or_that_is_damaged_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let programs = programs(&dir);
        programs.keep(std::process::id()).unwrap();
        fs::write(&programs.installed, "another one").unwrap();
        assert!(programs.standing(Program::Installed).last_good);
        let copy = programs.last_good();
        for mode in [0o777, 0o755, 0o600] {
            fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).unwrap();
            assert!(!programs.standing(Program::Installed).last_good, "{mode:o}");
        }
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(programs.standing(Program::Installed).last_good);
        let length = fs::metadata(&copy).unwrap().len();
        File::options()
            .write(true)
            .open(&copy)
            .unwrap()
            .set_len(length - 1)
            .unwrap();
        assert!(!programs.standing(Program::Installed).last_good, "cut off");
        fs::remove_file(&copy).unwrap();
        std::os::unix::fs::symlink(OWN, &copy).unwrap();
        assert!(!programs.standing(Program::Installed).last_good, "a link");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let programs = programs(&dir);
        for number in 0..3 * MAX_GIVEN_UP {
            fs::write(&programs.installed, number.to_string()).unwrap();
            programs.give_up(Program::Installed).unwrap();
        }
        assert_eq!(programs.memory().given_up.len(), MAX_GIVEN_UP);
        assert!(programs.standing(Program::Installed).given_up, "the newest are");
    }
}
