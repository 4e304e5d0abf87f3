//! Files that survive a power cut: a temporary file beside the target, fsync, rename, fsync of the directory.
//!
//! After any function here has returned, its effect is on disk; before, the old state is. Callers never see something between.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::error::unsupported;

/// None of the agent's own files but the journal comes near so many bytes.
pub const SMALL: u64 = 2 << 20;

/// Writes `bytes` to `path` with permissions `mode`, replacing what is there in one step.
///
/// # Errors
/// When anything on the way fails; the old file is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = beside(path)?;
    let write = || -> Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // The umask has had its say over `mode`; the file's permissions are what was asked for.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rename(&temporary, path)
    };
    // What did not fit must not keep a full disk full; the error is what matters.
    let written = write().inspect_err(|_| drop(std::fs::remove_file(&temporary)));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Opens a file that someone names, for reading: a FIFO is not waited for, a device does nothing, and neither can be read twice, as all that the
/// agent takes is: to check it, and then to take from it.
///
/// # Errors
/// When it cannot be opened; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is no regular file.
pub fn open_regular(path: &Path) -> Result<File> {
    let file = open_at_once(path)?;
    let is = file.metadata()?.file_type();
    if is.is_file() {
        return Ok(file);
    }
    let what = if is.is_dir() {
        "directory"
    } else if is.is_fifo() {
        "FIFO (a named pipe)"
    } else {
        "device"
    };
    Err(unsupported(format!("it is a {what}, and only a regular file is read: save what is meant to one, and name that")))
}

/// Opens for reading without waiting for anyone, as for the writer of a FIFO: such a wait would not even end with SIGTERM, because the standard
/// library goes on with it.
fn open_at_once(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Reads a file that the agent has written, which is small: nothing is waited for, as for the writer of a FIFO, and what is larger than `most` bytes is
/// not the agent's.
///
/// # Errors
/// When it cannot be read, is not a regular file, or is larger.
pub fn read(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let file = open_at_once(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::other(format!("it has more than {most} bytes, and no more are read")));
    }
    Ok(bytes)
}

/// Renames `from` to `to` (which may exist, as rename(2) allows) and makes it durable in both directories.
///
/// # Errors
/// When the rename or an fsync fails.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("renaming {} to {}", from.display(), to.display()))?;
    sync_dir(parent(to)?)?;
    if parent(from)? == parent(to)? { Ok(()) } else { sync_dir(parent(from)?) }
}

/// Removes a file or a link; one that is not there is fine.
///
/// # Errors
/// When it cannot be removed, or that cannot be made durable.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display())),
        // One that is gone already may be so in memory alone.
        _ => sync_name(path),
    }
}

/// Removes a directory and all below it, immutable files (`chattr +i`) too, as a copy of a node's tree has them; or what is there in its
/// place. Nothing is fine.
///
/// # Errors
/// When something in it cannot be removed, or that cannot be made durable.
pub fn remove_tree(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) {
        return remove(path);
    }
    let removed = match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            unlock(path)?;
            std::fs::remove_dir_all(path)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display())),
        _ => sync_name(path),
    }
}

/// Takes the flags from what is at `path` and below that keep even root from removing it.
fn unlock(path: &Path) -> Result<()> {
    use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, open};
    for entry in walkdir::WalkDir::new(path) {
        let entry = entry.with_context(|| format!("walking through {}", path.display()))?;
        // Nothing else has such flags; opening a fifo would wait, and a device does something.
        if !entry.file_type().is_file() && !entry.file_type().is_dir() {
            continue;
        }
        let clear = || -> rustix::io::Result<()> {
            let file = open(entry.path(), OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            match ioctl_getflags(&file) {
                Ok(flags) if flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND) => {
                    ioctl_setflags(&file, flags.difference(IFlags::IMMUTABLE | IFlags::APPEND))
                }
                // A file system without flags has none in the way.
                _ => Ok(()),
            }
        };
        clear().with_context(|| format!("unlocking {}", entry.path().display()))?;
    }
    Ok(())
}

/// Makes a directory with permissions `mode`; one that is there already is fine and keeps its own.
///
/// # Errors
/// When it cannot be made or made durable, or something else is at that path.
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists || !path.is_dir() => {
            Err(error).with_context(|| format!("making the directory {}", path.display()))
        }
        _ => sync_name(path),
    }
}

/// Makes a symbolic link at `path` to `target`, replacing what is there in one step.
///
/// # Errors
/// When it cannot be made.
pub fn symlink(target: &Path, path: &Path) -> Result<()> {
    let temporary = beside(path)?;
    remove(&temporary)?;
    std::os::unix::fs::symlink(target, &temporary).with_context(|| format!("linking {}", path.display()))?;
    rename(&temporary, path)
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing the directory {}", path.display()))
}

/// Makes everything on the file system that holds `path` durable, errors of its write-back included (`syncfs(2)`, Linux 5.8).
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_file_system(path: &Path) -> Result<()> {
    let sync = || -> Result<()> { Ok(rustix::fs::syncfs(File::open(path)?)?) };
    sync().with_context(|| format!("syncing the file system of {}", path.display()))
}

/// The name, beside `path`, under which something new is made that is to be renamed to it.
///
/// # Errors
/// When `path` does not end in a name.
pub fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} has no file name", path.display()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    Ok(path.with_file_name(temporary))
}

/// Makes durable that `path` is there, or is not: whoever made or removed it may have been killed before that was on disk. Where nothing is
/// left above it either, that is what has to be.
fn sync_name(path: &Path) -> Result<()> {
    let mut above = path.ancestors().skip(1).map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    above.find(|dir| dir.is_dir()).map_or(Ok(()), sync_dir)
}

fn parent(path: &Path) -> Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(anyhow!("{} has no parent directory", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_stays_behind() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("state");
        write(&path, b"one", 0o600)?;
        write(&path, b"two", 0o644)?;
        assert_eq!(std::fs::read(&path)?, b"two");
        assert_eq!(path.metadata()?.permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn removing_what_is_not_there_is_fine() -> Result<()> {
        let dir = tempfile::tempdir()?;
        remove(&dir.path().join("x"))?;
        remove_tree(&dir.path().join("y"))?;
        std::fs::write(dir.path().join("file"), "in place of a directory")?;
        remove_tree(&dir.path().join("file"))?;
        assert!(!dir.path().join("file").exists());
        create_dir(&dir.path().join("z"), 0o700)?;
        create_dir(&dir.path().join("z"), 0o700)?;
        symlink(Path::new("a"), &dir.path().join("l"))?;
        symlink(Path::new("b"), &dir.path().join("l"))?;
        assert_eq!(std::fs::read_link(dir.path().join("l"))?, Path::new("b"));
        Ok(())
    }
}
