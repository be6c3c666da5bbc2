//! Files that hold secrets: who else can read or write them, and that they are whole.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

/// Largest private file that is read, in bytes: keys and chains have a few thousand.
const MAX_BYTES: u64 = 256 * 1024;

/// The permission bits of everybody else.
const OTHERS: u32 = 0o077;

/// Tells why a private file or directory is not used, and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refuses.
    #[error("`{}` could not be {action}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Others can read or write it.
    #[error("`{}` is open to other users (mode {mode:03o}); run `chmod {fix} {}`", path.display(), path.display())]
    Mode {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        fix: &'static str,
    },
    /// It belongs to somebody else.
    #[error("`{}` belongs to user {owner}, not to user {user}; run `chown {user} {}`", path.display(), path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// It is a symbolic link, a directory, a device: not what it should be.
    #[error("`{}` is not a plain {wanted}; put a {wanted} there, not a link", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// It is larger than any file of its kind.
    #[error("`{}` is larger than {MAX_BYTES} bytes; it cannot be the right file", path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
    },
    /// It is not text.
    #[error("`{}` is not text; it cannot be the right file", path.display())]
    NotText {
        /// The path.
        path: PathBuf,
    },
}

impl FileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Says whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a file that only its owner, who must be this user, can read.
///
/// # Errors
/// Refuses links, files of others and files that others can open, and says how to mend it (THREATS ENR-09, T16).
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // Not blocking, so that a pipe in the file's place does not hang the program.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(rustix::io::Errno::LOOP) => {
            return Err(FileError::Kind {
                path: path.to_owned(),
                wanted: "file",
            });
        }
        Err(error) => return Err(FileError::io("opened", path)(error.into())),
    };
    let about = file.metadata().map_err(FileError::io("examined", path))?;
    if !about.is_file() {
        return Err(FileError::Kind {
            path: path.to_owned(),
            wanted: "file",
        });
    }
    check_owner(path, &about, "600")?;
    // All at once, so that no shorter copy of a key stays behind in memory.
    let capacity = usize::try_from(about.len().min(MAX_BYTES)).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(FileError::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// Reads a private file that holds text.
///
/// # Errors
/// As [`read_private`], and where it is not UTF-8.
pub fn read_private_text(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let bytes = read_private(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText {
        path: path.to_owned(),
    })?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Writes a file that only its owner can read, whole or not at all, and durable when this returns.
///
/// # Errors
/// Tells what the operating system refuses.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| FileError::Kind {
        path: path.to_owned(),
        wanted: "file",
    })?;
    let draft = Draft::create(directory, name)?;
    (&draft.file)
        .write_all(bytes)
        .map_err(FileError::io("written", path))?;
    draft.file.sync_all().map_err(FileError::io("written", path))?;
    draft.put_in_place(path)?;
    let directory_file = File::open(directory).map_err(FileError::io("opened", directory))?;
    directory_file
        .sync_all()
        .map_err(FileError::io("written", directory))
}

/// Makes a directory that only its owner can look into, with its parents; one that is there already must be so.
///
/// # Errors
/// Refuses a link and a directory of others, and says how to mend it.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::io("created", path))?;
    let about = fs::symlink_metadata(path).map_err(FileError::io("examined", path))?;
    if !about.is_dir() {
        return Err(FileError::Kind {
            path: path.to_owned(),
            wanted: "directory",
        });
    }
    check_owner(path, &about, "700")
}

fn check_owner(path: &Path, about: &fs::Metadata, fix: &'static str) -> Result<(), FileError> {
    let user = rustix::process::geteuid().as_raw();
    if about.uid() != user {
        return Err(FileError::Owner {
            path: path.to_owned(),
            owner: about.uid(),
            user,
        });
    }
    let mode = about.mode() & 0o777;
    if mode & OTHERS != 0 {
        return Err(FileError::Mode {
            path: path.to_owned(),
            mode,
            fix,
        });
    }
    Ok(())
}

/// A file on its way to its place; removed if it does not get there.
struct Draft {
    file: File,
    path: PathBuf,
    placed: bool,
}

impl Draft {
    fn create(directory: &Path, name: &OsStr) -> Result<Self, FileError> {
        let mut draft_name = OsStr::new(".").to_owned();
        draft_name.push(name);
        draft_name.push(format!(".{:016x}", fastrand::u64(..)));
        let path = directory.join(draft_name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|error| FileError::io("created", &path)(error.into()))?;
        let draft = Self {
            file,
            path,
            placed: false,
        };
        // The file mode mask can only have taken bits away; say it anyway, so that no mask makes it unreadable to us.
        let private = draft.file.set_permissions(Permissions::from_mode(0o600));
        private.map_err(FileError::io("created", &draft.path))?;
        Ok(draft)
    }

    fn put_in_place(mut self, path: &Path) -> Result<(), FileError> {
        fs::rename(&self.path, path).map_err(FileError::io("written", path))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            // The file is of no use to anybody, and the first error is the one that is told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn names_in(directory: &Path) -> Vec<std::ffi::OsString> {
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn what_is_written_reads_back_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_private(&path, b"first").unwrap();
        write_private(&path, "sécret".as_bytes()).unwrap();
        assert_eq!(read_private_text(&path).unwrap().as_str(), "sécret");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names_in(directory.path()), ["key.pem"], "nothing is left behind");
    }

    /// THREATS ENR-09.
    #[test]
    fn a_file_that_others_can_open_is_refused_with_its_fix() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_private(&path, b"secret").unwrap();
        for mode in [0o640, 0o620, 0o604, 0o602, 0o666, 0o777, 0o610] {
            set_mode(&path, mode);
            let error = read_private(&path).unwrap_err();
            assert!(matches!(error, FileError::Mode { mode: found, .. } if found == mode));
            assert!(error.to_string().contains("chmod 600 "), "{error}");
        }
        for mode in [0o600, 0o400] {
            set_mode(&path, mode);
            assert!(read_private(&path).is_ok());
        }
    }

    /// THREATS T16.
    #[test]
    fn what_is_no_plain_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_private(&path, b"secret").unwrap();
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read_private(&link), Err(FileError::Kind { .. })));
        assert!(matches!(
            read_private(directory.path()),
            Err(FileError::Kind { .. })
        ));
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(matches!(read_private(&pipe), Err(FileError::Kind { .. })));
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        write_private(&victim, b"untouched").unwrap();
        let link = directory.path().join("link");
        symlink(&victim, &link).unwrap();
        write_private(&link, b"secret").unwrap();
        assert_eq!(read_private(&victim).unwrap().as_slice(), b"untouched");
        assert_eq!(read_private(&link).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn a_missing_file_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            read_private(&directory.path().join("none"))
                .unwrap_err()
                .is_missing()
        );
        assert!(!read_private(directory.path()).unwrap_err().is_missing());
    }

    #[test]
    fn a_file_that_is_too_large_or_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_private(&path, &vec![b'x'; usize::try_from(MAX_BYTES).unwrap()]).unwrap();
        assert!(read_private(&path).is_ok());
        write_private(&path, &vec![b'x'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(matches!(read_private(&path), Err(FileError::TooLarge { .. })));
        write_private(&path, &[0xff]).unwrap();
        assert!(matches!(read_private_text(&path), Err(FileError::NotText { .. })));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_private(&path, b"secret").is_err());
        assert_eq!(names_in(directory.path()), ["taken"]);
        assert!(
            write_private(&directory.path().join("none/key.pem"), b"secret")
                .unwrap_err()
                .is_missing()
        );
        assert!(write_private(Path::new("/"), b"secret").is_err());
    }

    #[test]
    fn a_private_directory_is_made_or_checked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_private_dir(&path).unwrap();
        create_private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        set_mode(&path, 0o755);
        let error = create_private_dir(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 700 "), "{error}");
        let link = directory.path().join("link");
        set_mode(&path, 0o700);
        symlink(&path, &link).unwrap();
        assert!(create_private_dir(&link).is_err());
    }
}
