//! Files that survive a power cut: a temporary file beside the target, fsync, rename, fsync of the directory.
//!
//! When a function here has returned, its effect is on disk; until then the old state is. There is nothing in between.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags, ioctl_getflags, ioctl_setflags, statat};
use rustix::io::Errno;

use crate::archive::remove_all;
use crate::error::{misfit, unsupported};

/// Larger than any of the agent's own files except the journal, bytes.
pub const SMALL: u64 = 2 << 20;

/// Writes `bytes` to `path` with permissions `mode`, replacing what is there in one step.
///
/// # Errors
/// When anything on the way fails; the old file is then still there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = beside(path)?;
    let write = || -> Result<()> {
        // One that a crash has left; or a link, where others can write: what it points to is not written to.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask has been applied to `mode`; the file is to have exactly these permissions.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        rename(&temporary, path)
    };
    // The part that was written must not fill the disk further; only the error matters.
    let written = write().inspect_err(|_| drop(std::fs::remove_file(&temporary)));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Writes `bytes` to a file that is there, in one step; it keeps its mode and its owner.
///
/// # Errors
/// As [`write()`]; when it is not there.
pub fn rewrite(path: &Path, bytes: &[u8]) -> Result<()> {
    let meta = path.metadata().with_context(|| format!("looking at {}", path.display()))?;
    let temporary = beside(path)?;
    write(&temporary, bytes, meta.mode() & 0o7777)?;
    let give = || -> Result<()> {
        let own = temporary.metadata()?;
        if (own.uid(), own.gid()) != (meta.uid(), meta.gid()) {
            std::os::unix::fs::chown(&temporary, Some(meta.uid()), Some(meta.gid()))?;
        }
        rename(&temporary, path)
    };
    give().inspect_err(|_| drop(std::fs::remove_file(&temporary))).with_context(|| format!("writing {}", path.display()))
}

/// True when `path` is already a regular file with this content. The bytes are compared: sizes and times of two builds can be equal.
///
/// # Errors
/// When one of them cannot be read.
pub fn is_same(path: &Path, content: &mut impl Read) -> Result<bool> {
    if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        return Ok(false);
    }
    let (mut old, mut new) = (BufReader::new(File::open(path)?), BufReader::new(content));
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let (a, b) = (fill(&mut old, &mut left)?, fill(&mut new, &mut right)?);
        if left[..a] != right[..b] {
            return Ok(false);
        }
        if a == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the end is reached.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..])? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

/// Opens for reading a file that the user names. Only a regular file is accepted: a FIFO or a device cannot be read twice, and the agent
/// reads twice, first to check and then to use what it read. Nothing is waited for.
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
    Err(unsupported(format!("it is a {what}, and only a regular file is read: save the data to a regular file and name that one")))
}

/// Opens for reading without waiting, for example for the writer of a FIFO: not even SIGTERM would end such a wait, because the standard
/// library starts it again.
pub(super) fn open_at_once(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// Reads a small file that the agent has written. Nothing is waited for, such as the writer of a FIFO, and a file of more than `most` bytes
/// is not the agent's.
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

/// Gives the whole file `part` the name `file`, which must be free, and removes the name `part` last: while a file has both, the call that
/// wrote it has not ended.
///
/// # Errors
/// When there is something with that name, it cannot be made durable, or the name `part` stays: nothing has got the name `file` then.
pub fn name_new(part: &Path, file: &Path) -> Result<()> {
    match std::fs::hard_link(part, file) {
        Ok(()) => {}
        // A file system where a file cannot have two names (FAT, some network file systems).
        Err(error) if matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => {
            return rename(part, file);
        }
        Err(error) => return Err(error).with_context(|| format!("linking {} to {}", file.display(), part.display())),
    }
    // Not made durable: if the name comes back after a power cut, the next call ends this one.
    let unnamed = || std::fs::remove_file(part).with_context(|| format!("removing {}", part.display()));
    sync_dir(parent(file)?).and_then(|()| unnamed()).inspect_err(|_| drop(std::fs::remove_file(file)))
}

/// Removes a file or a link; it is fine when there is none.
///
/// # Errors
/// When it cannot be removed, or that cannot be made durable.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display())),
        // It may be gone in memory only.
        _ => sync_name(path),
    }
}

/// Removes a directory with everything below it, or whatever else is at `path`; it is fine when there is nothing. Immutable files (`chattr
/// +i`) are removed too: a copy of a node's tree has some. No link is followed, and nothing that is mounted below is entered, whoever puts it there
/// meanwhile; what is nested deeper than a process may have files open is removed, too.
///
/// # Errors
/// When something in it cannot be removed, or that cannot be made durable; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when something is
/// mounted there.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Err(anyhow!("{} is not removed", path.display())) };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let remove = || remove_below(&rustix::fs::open(above, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, name, 0);
    match remove().map_err(|error| (error.downcast_ref::<Errno>().copied(), error)) {
        Ok(()) | Err((Some(Errno::NOENT), _)) => sync_name(path),
        Err((Some(Errno::XDEV | Errno::BUSY), _)) => {
            Err(misfit(format!("{} is not removed: something is mounted there; unmount it and run this again", path.display())))
        }
        Err((_, error)) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// So many levels down a directory is held open while what is in it is removed. No real tree is that deep; any pod can nest thousands.
const DEEP: usize = 64;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what has this name in a directory, which is so many levels down.
fn remove_below(above: &OwnedFd, name: &OsStr, level: usize) -> Result<()> {
    if level > DEEP {
        return remove_all(above, name.as_bytes(), || Ok(()));
    }
    let directory = match open_own(above, name, DIRECTORY) {
        Ok(directory) => directory,
        // It is none.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlink(above, name, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    unlock(&directory)?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match remove_below(&directory, name, level + 1) {
            // Somebody else removed it.
            Err(error) if error.downcast_ref() == Some(&Errno::NOENT) => {}
            result => result?,
        }
    }
    Ok(unlink(above, name, AtFlags::REMOVEDIR)?)
}

/// Opens what has this name in a directory, and is on the same mount: what somebody mounts there meanwhile is not opened.
pub(crate) fn open_own(above: impl AsFd, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::openat2(&above, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_XDEV) {
        // Before Linux 5.6 there is no openat2.
        Err(Errno::NOSYS) => rustix::fs::openat(&above, name, flags, Mode::empty()),
        opened => opened,
    }
}

fn unlink(above: &OwnedFd, name: &OsStr, how: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(above, name, how) {
        // Nothing but files and directories has such flags. Opening a FIFO would wait, and opening a device may set it going.
        Err(Errno::PERM) if FileType::from_raw_mode(statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) == FileType::RegularFile => {
            unlock(&open_own(above, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?)?;
            rustix::fs::unlinkat(above, name, how)
        }
        result => result,
    }
}

/// Clears the flags that keep even root from removing a file, or what is in a directory.
fn unlock(file: &OwnedFd) -> rustix::io::Result<()> {
    const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);
    match ioctl_getflags(file) {
        Ok(flags) if flags.intersects(LOCKS) => ioctl_setflags(file, flags.difference(LOCKS)),
        // A file system that has no such flags prevents no removal.
        _ => Ok(()),
    }
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
    rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing the directory {}", path.display()))
}

/// Makes everything on the file system that holds `path` durable, and reports errors of its write-back (`syncfs(2)`, Linux 5.8).
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync_file_system(path: &Path) -> Result<()> {
    let sync = || -> Result<()> { Ok(rustix::fs::syncfs(File::open(path)?)?) };
    sync().with_context(|| format!("syncing the file system of {}", path.display()))
}

/// The name, beside `path`, under which something new is made before it is renamed to `path`.
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

/// Makes durable that `path` exists, or does not: whoever made or removed it may have been killed before that was on disk. Where its
/// directory is gone too, the nearest one above that exists is synced.
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
    fn what_lies_in_the_way_of_the_new_file_is_removed_and_not_written_to() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, other) = (dir.path().join("state"), dir.path().join("other"));
        std::fs::write(&other, "another's")?;
        std::os::unix::fs::symlink(&other, beside(&path)?)?;
        write(&path, b"ours", 0o600)?;
        assert_eq!((std::fs::read(&path)?, std::fs::read(&other)?), (b"ours".to_vec(), b"another's".to_vec()));
        assert!(path.symlink_metadata()?.is_file());
        std::fs::write(beside(&path)?, "torn")?;
        write(&path, b"new", 0o600)?;
        assert_eq!(std::fs::read(&path)?, b"new");
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 2);
        Ok(())
    }

    #[test]
    fn what_is_nested_deeper_than_there_may_be_files_open_is_removed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let nested = dir.path().join("nested");
        std::fs::create_dir_all(nested.join("1/2"))?;
        std::fs::write(nested.join("1/file"), "")?;
        symlink(Path::new("nowhere"), &nested.join("link"))?;
        let mut here = rustix::fs::open(&nested, DIRECTORY, Mode::empty())?;
        for _ in 0..10_000 {
            rustix::fs::mkdirat(&here, "1d", Mode::RWXU)?;
            here = rustix::fs::openat(&here, "1d", DIRECTORY, Mode::empty())?;
        }
        drop(here);
        remove_tree(&nested)?;
        assert!(!nested.exists());
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
