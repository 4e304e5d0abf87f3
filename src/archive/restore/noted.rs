//! Notes on the directories that a restore passes through, as they were before. Their times change with what is in them, and immutable ones
//! must be unlocked; the archive does not have their times and flags, or they must not be taken from it. So they are written down in the
//! stage, on disk, before anything is changed, for a restore that follows one that was killed.
//!
//! The directory that contains the stage changes before there is a stage, and once more when the stage is removed. Its note is an extended
//! attribute of that directory, from before the stage exists until after it is gone: that changes neither the directory's time nor its
//! content. An immutable directory accepts no attribute, so one call replaces its flag by three others ([`STAND_IN`]), which mean the same
//! until the attribute is there; at the end this is reversed. (Append-only has no such replacement: between two calls it is recorded only
//! in memory.)

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{IFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::archive::entry::{IMMUTABLE, Time};
use crate::archive::found::Found;
use crate::archive::inode::Inode;
use crate::archive::path::{check_path, join};
use crate::archive::select::STAGE;
use crate::archive::tree::Tree;
use crate::archive::xattrs::NOTE;
use crate::formats::stage as format;

/// The file in the stage that holds the notes.
pub(super) const NOTES: &[u8] = b"directories";
/// The file has another name until it is whole.
const UNFINISHED: &str = "directories.new";
/// What stands for the immutable flag (`chattr +SdA`): nobody sets all three of them on a directory for another reason.
const STAND_IN: IFlags = IFlags::SYNC.union(IFlags::NODUMP).union(IFlags::NOATIME);
const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// A directory in which something is changed, as it was before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touched {
    pub(super) mtime: Time,
    pub(super) flags: u8,
}

/// The same with its path, as in a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Noted {
    /// The path relative to the directory that contains the stage.
    pub(super) path: Vec<u8>,
    pub(super) mtime: Time,
    /// Flags that forbid changes.
    pub(super) flags: u8,
}

/// Writes notes durably into the stage in the directory `root`.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write(tree: &Tree, root: &[u8], notes: &[Noted]) -> Result<()> {
    let write = || -> Result<()> {
        let stage = tree.list(&join(root, STAGE))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&stage, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?;
        let mut bytes = to_bytes(notes)?;
        while !bytes.is_empty() {
            let written = rustix::io::write(&file, &bytes)?;
            bytes.drain(..written);
        }
        rustix::fs::fsync(&file)?;
        rustix::fs::renameat(&stage, UNFINISHED, &stage, NOTES)?;
        rustix::fs::fsync(&stage)?;
        Ok(rustix::fs::fsync(tree.list(root)?)?)
    };
    write().with_context(|| format!("writing down in {} what directories are like", tree.shown(&join(root, STAGE))))
}

/// What a restore that did not end has noted in the stage in the directory `root`; empty when there is no stage.
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
    // Notes are renamed when they are whole, so unreadable ones are of another release, or of another origin. An error here would help
    // nobody.
    let notes = parse(&bytes);
    if notes.is_none() {
        tracing::warn!(
            "what an earlier restore noted in {} cannot be read: the times of directories on the way may not come back",
            tree.shown(&join(root, STAGE))
        );
    }
    Ok(notes.unwrap_or_default())
}

fn to_bytes(notes: &[Noted]) -> Result<Vec<u8>> {
    let directory = |Noted { path, mtime: Time { seconds, nanoseconds }, flags }: &Noted| format::DirectoryV1 {
        path: path.clone(),
        seconds: *seconds,
        nanoseconds: *nanoseconds,
        flags: *flags,
    };
    Ok(format::write(notes.iter().map(directory).collect())?)
}

fn parse(bytes: &[u8]) -> Option<Vec<Noted>> {
    let note = |format::DirectoryV1 { path, seconds, nanoseconds, flags }| Noted { path, mtime: Time { seconds, nanoseconds }, flags };
    let notes: Vec<Noted> = format::read(bytes)?.directories.into_iter().map(note).collect();
    notes.iter().all(|noted| noted.path.is_empty() || check_path(&noted.path).is_ok()).then_some(notes)
}

/// Notes durably, in the directory `root` itself, what it was like, and makes it changeable. Where the file system cannot store a note, it
/// is only made changeable.
///
/// # Errors
/// When that fails.
pub(super) fn mark(tree: &Tree, root: &[u8], before: Touched) -> Result<()> {
    let mark = || -> Result<()> {
        let directory = Inode::of(tree.list(root)?);
        let flags = all_flags(&directory)?;
        if flags.intersects(LOCKS) {
            exchange(&directory, flags)?;
        }
        let note = Noted { path: Vec::new(), mtime: before.mtime, flags: before.flags };
        match rustix::fs::fsetxattr(directory.file(), NOTE, &to_bytes(&[note])?, XattrFlags::empty()) {
            Err(Errno::NOSPC | Errno::DQUOT) => {
                tracing::warn!(
                    "no room to note what {} is like: if this restore is killed, its modification time is lost",
                    tree.shown(root)
                );
            }
            // Not every file system supports such attributes, and only root can set them.
            Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            result => result?,
        }
        rustix::fs::fsync(directory.file())?;
        set_all_flags(&directory, without_stand_in(flags) - LOCKS)
    };
    mark().with_context(|| format!("noting what {} is like", tree.shown(root)))
}

/// What [`mark`] has noted in the directory `root`, if anything.
///
/// # Errors
/// When it cannot be read.
pub(super) fn marked(tree: &Tree, root: &[u8]) -> Result<Option<Touched>> {
    let marked = || -> Result<Option<Touched>> {
        let directory = Inode::of(tree.list(root)?);
        let flags = all_flags(&directory)?;
        Ok(match note(&directory)?.and_then(|bytes| parse(&bytes)?.first().cloned()) {
            Some(Noted { mtime, flags, .. }) => Some(Touched { mtime, flags }),
            None if flags.contains(STAND_IN) && !flags.contains(IFlags::IMMUTABLE) => {
                Some(Touched { mtime: Found::of(directory.file())?.mtime, flags: IMMUTABLE })
            }
            None => None,
        })
    };
    marked().with_context(|| format!("reading what is noted of {}", tree.shown(root)))
}

/// Removes what [`mark`] has left in the directory `root`, which has its final state.
///
/// # Errors
/// When it cannot be removed.
pub(super) fn unmark(tree: &Tree, root: &[u8]) -> Result<()> {
    let unmark = || -> Result<()> {
        let directory = Inode::of(tree.list(root)?);
        let flags = all_flags(&directory)?;
        if note(&directory)?.is_none() && !flags.contains(STAND_IN) {
            return Ok(());
        }
        if flags.intersects(LOCKS) {
            exchange(&directory, flags)?;
        }
        match rustix::fs::fremovexattr(directory.file(), NOTE) {
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
            result => result?,
        }
        set_all_flags(&directory, without_stand_in(flags))
    };
    unmark().with_context(|| format!("removing what is noted of {}", tree.shown(root)))
}

/// What is noted in a directory itself, if anything.
fn note(directory: &Inode) -> Result<Option<Vec<u8>>> {
    let mut value = [0; 256];
    match rustix::fs::fgetxattr(directory.file(), NOTE, &mut value) {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        // No note of ours is so long.
        Err(Errno::RANGE) => Ok(Some(Vec::new())),
        len => Ok(Some(value[..len?].to_vec())),
    }
}

/// All flags of a directory; empty where the file system has none.
fn all_flags(directory: &Inode) -> Result<IFlags> {
    match rustix::fs::ioctl_getflags(directory.file()) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(IFlags::empty()),
        flags => flags.context("reading its flags"),
    }
}

fn set_all_flags(directory: &Inode, flags: IFlags) -> Result<()> {
    if all_flags(directory)? == flags { Ok(()) } else { rustix::fs::ioctl_setflags(directory.file(), flags).context("setting its flags") }
}

/// Replaces the flags that forbid changes by [`STAND_IN`]; where the file system does not support that, they are cleared.
fn exchange(directory: &Inode, flags: IFlags) -> Result<()> {
    let stand_in = if flags.contains(IFlags::IMMUTABLE) { STAND_IN } else { IFlags::empty() };
    match rustix::fs::ioctl_setflags(directory.file(), (flags - LOCKS) | stand_in) {
        Err(Errno::INVAL | Errno::OPNOTSUPP) => set_all_flags(directory, flags - LOCKS),
        result => result.context("exchanging its flags"),
    }
}

fn without_stand_in(flags: IFlags) -> IFlags {
    if flags.contains(STAND_IN) { flags - STAND_IN } else { flags }
}

/// Restores a directory's time and flags, if it still exists.
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
        assert!(!stage.join(UNFINISHED).exists());
        // Every later agent with the same version number must read this.
        assert_eq!(std::fs::read(stage.join("directories")).unwrap(), b"\x01\x02\0\x09\x07\x01\x05etc/\xff\x09\x07\x01");
        write(&tree, b"", &[note(b"../outside")]).unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
        std::fs::write(stage.join("directories"), b"\xffnotes").unwrap();
        assert_eq!(read(&tree, b"").unwrap(), []);
    }
}
