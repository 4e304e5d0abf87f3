//! Removing things that may be immutable, or nested deeper than any path can say.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, SeekFrom};
use rustix::io::Errno;

use crate::archive::entry::Kind;
use crate::archive::found::Found;
use crate::archive::inode::Inode;
use crate::archive::path::shown;
use crate::archive::tree::names;
use crate::error::misfit;

/// Removes `name` in `parent`; `how` says whether it is an empty directory. It is fine when it no longer exists.
pub(super) fn unlink(parent: &OwnedFd, name: &[u8], how: AtFlags) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, how) {
        Err(Errno::PERM) if unlock(parent, name)? => Ok(rustix::fs::unlinkat(parent, name, how)?),
        // Somebody else removed it.
        Err(Errno::NOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// Clears the flags that forbid changes; false when there were none.
///
/// # Errors
/// When they cannot be cleared.
pub(super) fn unlock(directory: &OwnedFd, name: &[u8]) -> Result<bool> {
    match Found::at(directory, name)? {
        Some(Found { kind: Some(kind), flags, .. }) if flags != 0 => {
            Inode::open_own(directory, name, kind)?.set_flags(0)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Removes `name` in `parent`, and everything below it, however deep: the content of each directory is moved up first, so nothing is ever
/// more than two levels down, and two handles are enough. `go_on` is called before each step and can end the work.
///
/// # Errors
/// The errors of `go_on`; when something cannot be removed; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when something is
/// mounted below; that stays as it is.
pub(crate) fn remove_all(parent: &OwnedFd, name: &[u8], go_on: fn() -> Result<()>) -> Result<()> {
    let Some(top) = directory(parent, name)? else { return unlink(parent, name, AtFlags::empty()) };
    let mut number = 0;
    loop {
        rustix::fs::seek(&top, SeekFrom::Start(0))?;
        let all = names(&top)?;
        if all.is_empty() {
            return unlink(parent, name, AtFlags::REMOVEDIR);
        }
        for name in all {
            go_on()?;
            // It is moved even if it is here already: moving fails for a mount point, whose content must not be touched.
            let Some(moved) = remove_or_move(&top, &name, &top, &mut number)? else { continue };
            let Some(inner) = directory(&top, &moved)? else { continue };
            for name in names(&inner)? {
                go_on()?;
                remove_or_move(&inner, &name, &top, &mut number)?;
            }
            unlink(&top, &moved, AtFlags::REMOVEDIR)?;
        }
    }
}

/// The directory `name`, to be emptied; `None` when it is not a directory.
fn directory(parent: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>> {
    match Found::at(parent, name)? {
        Some(Found { kind: Some(Kind::Directory), .. }) => {}
        _ => return Ok(None),
    }
    unlock(parent, name)?;
    Ok(Some(Inode::open_own(parent, name, Kind::Directory)?.into_file()))
}

/// Removes `name`; a directory is moved, and its new name returned.
fn remove_or_move(from: &OwnedFd, name: &[u8], to: &OwnedFd, number: &mut u64) -> Result<Option<Vec<u8>>> {
    if Found::at(from, name)?.is_none_or(|found| found.kind != Some(Kind::Directory)) {
        return unlink(from, name, AtFlags::empty()).map(|()| None);
    }
    unlock(from, name)?;
    loop {
        *number += 1;
        let new = number.to_string().into_bytes();
        if Found::at(to, &new)?.is_some() {
            continue;
        }
        return match rustix::fs::renameat(from, name, to, &new) {
            Ok(()) => Ok(Some(new)),
            Err(Errno::BUSY) => {
                Err(misfit(format!("{}, which is to be deleted, is a mount point: unmount it and run this again", shown(name))))
            }
            Err(error) => Err(error).with_context(|| format!("moving {} to delete it", shown(name))),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn what_is_deeper_than_any_path_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = open(dir.path());
        for branch in ["a", "b"] {
            let mut here = top.try_clone().unwrap();
            for n in 0..300 {
                let name = if n == 0 { branch.to_owned() } else { "1".repeat(200) };
                rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
                here = rustix::fs::openat(&here, &name, OFlags::RDONLY, Mode::empty()).unwrap();
                rustix::fs::mkdirat(&here, "2", Mode::RWXU).unwrap();
                rustix::fs::openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            }
        }
        remove_all(&top, b"a", || Ok(())).unwrap();
        assert_eq!(names(&top).unwrap(), [b"b"]);
        remove_all(&top, b"b", || Ok(())).unwrap();
        remove_all(&top, b"nothing", || Ok(())).unwrap();
        assert!(names(&top).unwrap().is_empty());
    }
}
