//! What the directories were like that a restore passes through: their times change with what is in them, and those that are immutable have
//! to be unlocked. Neither is in the archive, or it is not to be taken from there; so it is written down, in the stage and on the disk, before
//! anything is changed, for whoever comes after a restore that was killed.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::entry::{Time, check_path, join};
use super::stage::STAGE;
use super::tree::{Found, Inode, Tree};

/// The file in the stage.
pub(super) const NOTES: &[u8] = b"directories";
/// Under another name until it is whole.
const NEW: &str = "directories.new";
/// Raised with every change of the form.
const VERSION: u8 = 1;

/// A directory in which something is changed, as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Noted {
    /// Relative to the directory that the stage is in.
    pub(super) path: Vec<u8>,
    pub(super) mtime: Time,
    /// Flags that forbid changes.
    pub(super) flags: u8,
}

/// Writes notes into the stage in the directory `root`, durably.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write(tree: &Tree, root: &[u8], notes: &[Noted]) -> Result<()> {
    let write = || -> Result<()> {
        let stage = tree.list(&join(root, STAGE))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&stage, NEW, flags, Mode::RUSR | Mode::WUSR)?;
        let mut bytes = postcard::to_stdvec(&(VERSION, notes))?;
        while !bytes.is_empty() {
            let written = rustix::io::write(&file, &bytes)?;
            bytes.drain(..written);
        }
        rustix::fs::fsync(&file)?;
        rustix::fs::renameat(&stage, NEW, &stage, NOTES)?;
        rustix::fs::fsync(&stage)?;
        Ok(rustix::fs::fsync(tree.list(root)?)?)
    };
    write().with_context(|| format!("writing down in {} what directories are like", tree.shown(&join(root, STAGE))))
}

/// What a restore that did not end has noted in the stage in the directory `root`; nothing when there is none.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(tree: &Tree, root: &[u8]) -> Result<Vec<Noted>> {
    let read = || -> Result<Vec<u8>> {
        let open = |stage: OwnedFd| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&stage, NOTES, flags, Mode::empty())
        };
        let file = match tree.dir(&join(root, STAGE)).and_then(open) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            file => file?,
        };
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| format!("reading what is noted in {}", tree.shown(&join(root, STAGE))))?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    match postcard::from_bytes::<(u8, Vec<Noted>)>(&bytes) {
        Ok((VERSION, notes)) if notes.iter().all(|noted| noted.path.is_empty() || check_path(&noted.path).is_ok()) => Ok(notes),
        // They are renamed when they are whole, so this is another release's, or nobody's. To stop here would help no one.
        _ => {
            tracing::warn!(
                "what an earlier restore noted in {} cannot be read: the times of directories on the way may not come back",
                tree.shown(&join(root, STAGE))
            );
            Ok(Vec::new())
        }
    }
}

/// Gives a directory its time and flags back, where it is still there.
///
/// # Errors
/// When they cannot be set.
pub(super) fn put_back(tree: &Tree, path: &[u8], mtime: Time, flags: u8) -> Result<()> {
    let put = || -> Result<()> {
        let directory = match tree.list(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            directory => Inode::of(directory?),
        };
        let found = Found::of(directory.file())?;
        if found.mtime != mtime {
            if found.flags != 0 {
                directory.set_flags(0)?;
            }
            directory.set_mtime(mtime)?;
        }
        if flags == 0 { Ok(()) } else { directory.set_flags(flags) }
    };
    put().with_context(|| format!("giving {} its time and flags back", tree.shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_anything_else_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
        let stage = dir.path().join(".recovery-stage");
        std::fs::create_dir(&stage).unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
        let note = |path: &[u8]| Noted { path: path.to_vec(), mtime: Time { seconds: -5, nanoseconds: 7 }, flags: 1 };
        let notes = [note(b""), note(b"etc/\xff")];
        write(&tree, b"", &notes).unwrap();
        assert_eq!(read(&tree, b"").unwrap(), notes);
        assert!(!stage.join(NEW).exists());
        write(&tree, b"", &[note(b"../outside")]).unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
        std::fs::write(stage.join("directories"), b"\xffnotes").unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
    }
}
