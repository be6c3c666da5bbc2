//! Opens a configuration file so that nobody else can have a say in what is read (THREATS AGT-05).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::defaults::MAX_FILE_BYTES;
use crate::failure::Failure;

/// Reads a configuration file after it has made sure that only the owner can write it. All checks are made on what was
/// opened, not on the name.
///
/// # Errors
/// Says what is wrong with the file or its directory, and the command that mends it.
pub fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |why: String, next: String| {
        Failure::local(
            "E_CONFIG_FILE",
            format!("could not read the configuration `{}`", path.display()),
            why,
            next,
        )
    };
    let name = path
        .file_name()
        .ok_or_else(|| wrong("it is no file".into(), "name a file with `--config`".into()))?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let dir_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, dir_flags, Mode::empty()).map_err(|error| {
        wrong(
            why(error),
            format!(
                "create `{}` and the file in it, or use `--config`",
                parent.display()
            ),
        )
    })?;
    let dir = File::from(dir);
    check_writers(&dir, true).map_err(|problem| {
        wrong(
            format!("its directory {problem}"),
            format!("run `chown root {0}; chmod go-w {0}`", parent.display()),
        )
    })?;
    // NONBLOCK, so that a FIFO does not hold us up before it is found out.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::LOOP => wrong(
            "it is a symbolic link".into(),
            "name the file that it leads to".into(),
        ),
        rustix::io::Errno::NOENT => wrong(
            "there is no such file".into(),
            "write one (`[services.ssh]` with `target = \"tcp:127.0.0.1:22\"` is enough), or use `--config`"
                .into(),
        ),
        error => wrong(
            why(error),
            format!("let the agent's user read it: `chmod a+r {}`", path.display()),
        ),
    })?;
    let file = File::from(file);
    check_writers(&file, false).map_err(|problem| {
        wrong(
            format!("it {problem}"),
            format!("run `chown root {0}; chmod go-w {0}`", path.display()),
        )
    })?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| wrong(error.to_string(), "write it anew, as UTF-8".into()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong(
            format!("it has more than {MAX_FILE_BYTES} bytes"),
            "make it shorter".into(),
        ));
    }
    Ok(text)
}

/// Says what is wrong with the kind, owner and mode of what was opened.
fn check_writers(file: &File, directory: bool) -> Result<(), String> {
    const OTHERS_WRITE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !directory && !meta.is_file() {
        return Err("is not a regular file".into());
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != me {
        return Err(format!("belongs to user {}, who could change it", meta.uid()));
    }
    // In a sticky directory others can add files, but not replace ours.
    if meta.mode() & OTHERS_WRITE != 0 && !(directory && meta.mode() & STICKY != 0) {
        return Err(format!(
            "can be written by others (mode {:03o})",
            meta.mode() & 0o777
        ));
    }
    Ok(())
}

fn why(error: rustix::io::Errno) -> String {
    match error {
        rustix::io::Errno::NOENT => "there is no such directory".into(),
        rustix::io::Errno::ACCESS => "this user may not read it".into(),
        error => std::io::Error::from(error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    // AGT-05
    #[test]
    fn only_a_plain_file_that_nobody_else_can_write_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        assert!(read(&path).unwrap_err().why.contains("no such file"));
        std::fs::write(&path, "max_tunnels = 1").unwrap();
        chmod(&path, 0o644);
        assert_eq!(read(&path).unwrap(), "max_tunnels = 1");

        chmod(&path, 0o664);
        assert!(read(&path).unwrap_err().why.contains("written by others"));
        chmod(&path, 0o644);

        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).unwrap_err().why.contains("symbolic link"));
        assert!(read(dir.path()).unwrap_err().why.contains("not a regular file"));
        assert!(
            read(Path::new("/dev/null"))
                .unwrap_err()
                .why
                .contains("not a regular file")
        );

        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read(&fifo).unwrap_err().why.contains("not a regular file"));

        chmod(dir.path(), 0o777);
        assert!(
            read(&path)
                .unwrap_err()
                .why
                .contains("its directory can be written")
        );
        chmod(dir.path(), 0o1777);
        assert!(read(&path).is_ok());
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        // Only root can give a file away; without it there is nothing to see here.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "").unwrap();
        chmod(&path, 0o644);
        std::os::unix::fs::chown(&path, Some(4321), None).unwrap();
        assert!(read(&path).unwrap_err().why.contains("belongs to user 4321"));
    }

    #[test]
    fn a_long_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
        chmod(&path, 0o600);
        assert!(read(&path).unwrap_err().why.contains("more than"));
    }
}
