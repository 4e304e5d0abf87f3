//! A tree on disk, reached through directory handles: no path is looked up from `/`, no symbolic link is followed, and nothing that was mounted since the
//! tree was opened is entered.

use std::collections::HashSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::entry::Kind;
use super::found::{Found, mount_root};
use super::inode::READ;
use super::path::{is_below, shown, split};
use crate::node::mounts::{Mount, mounts};

/// A directory, as the root of a tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    shown: PathBuf,
    /// The mount points below the root when it was opened, including those that a later mount hides.
    points: HashSet<Vec<u8>>,
    /// The numbers of all mounts at that time.
    known: HashSet<u64>,
}

impl Tree {
    /// Opens the directory `path`. Links on the way to it are followed: the caller chose it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("opening the directory {}", path.display()))?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).context("looking for the mounts in the tree")?;
        let mounts = mounts()?;
        let known = mounts.iter().map(|mount| mount.id).collect();
        let below = |mount: Mount| Some(mount.point.strip_prefix(&real).ok()?.as_os_str().as_bytes().to_vec());
        let points = mounts.into_iter().filter_map(below).filter(|point| !point.is_empty()).collect();
        Ok(Self { root, shown: path.to_owned(), points, known })
    }

    /// True when something is mounted at `path`, which is `name` in `directory`. The mounted file system itself is not asked: it may be
    /// dead (FUSE or NFS without their servers), and answer with an error, or never.
    pub(super) fn is_known_mount(&self, path: &[u8], directory: impl AsFd, name: &[u8]) -> bool {
        if !self.points.contains(path) {
            return false;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        match rustix::fs::statx(directory, name, flags, StatxFlags::empty()) {
            // Before Linux 5.8 the list of mounts is the only source.
            Ok(found) => mount_root(&found).unwrap_or(true),
            Err(error) => error != Errno::NOENT,
        }
    }

    /// True when something was mounted below `path`, or at it, when the tree was opened.
    pub(super) fn has_mount_below(&self, path: &[u8]) -> bool {
        self.points.iter().any(|point| is_below(point, path))
    }

    /// True when something is mounted at `path`, where `found` is; `parent` is the directory above it.
    pub(super) fn is_mount(&self, path: &[u8], found: &Found, parent: &Found) -> bool {
        found.mount_root.unwrap_or_else(|| found.file_system != parent.file_system || self.points.contains(path))
    }

    /// The name of a path in messages.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        if path.is_empty() { self.shown.display().to_string() } else { format!("{} in {}", shown(path), self.shown.display()) }
    }

    /// A handle of the directory `path`, for use with the `*at` system calls.
    pub(super) fn dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.open_dir(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }

    /// A handle of the directory `path` that can be listed, without its access time being changed.
    pub(super) fn list(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = READ | OFlags::DIRECTORY;
        self.open_dir(path, flags | OFlags::NOATIME).or_else(|error| match error {
            Errno::PERM => self.open_dir(path, flags),
            error => Err(error),
        })
    }

    fn open_dir(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let name = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve | ResolveFlags::NO_XDEV) {
            // Before Linux 5.6 there is no openat2.
            Err(Errno::NOSYS) => self.step_by_step(path, flags),
            // What is selected by name may be on another file system.
            Err(Errno::XDEV) => {
                let directory = rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)?;
                if self.is_known(&directory)? { Ok(directory) } else { Err(Errno::XDEV) }
            }
            result => result,
        }
    }

    /// True when what it is on was mounted when the tree was opened. (Linux numbers mounts for everybody from 5.8 on.)
    fn is_known(&self, directory: &OwnedFd) -> rustix::io::Result<bool> {
        let found = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        let told = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Ok(!told || self.known.contains(&found.stx_mnt_id))
    }

    fn step_by_step(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = rustix::fs::openat(&self.root, ".", way, Mode::empty())?;
        let (parents, name) = split(path).unwrap_or((b"", b"."));
        for part in parents.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            here = rustix::fs::openat(&here, part, way, Mode::empty())?;
        }
        rustix::fs::openat(&here, name, flags, Mode::empty())
    }
}

/// The names in an open directory, sorted by their bytes.
pub(super) fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_bytes().to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The kind of `name` according to the list of its directory, even when something is mounted over it: a directory, or a file, which stands
/// for all other kinds. `name` itself is not looked at, because the file system mounted there may be dead.
pub(super) fn kind_in(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Kind> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name().to_bytes() == name {
            // Not every file system gives the kind; most mounts are on directories.
            return Ok(if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) { Kind::Directory } else { Kind::File });
        }
    }
    Err(Errno::NOENT)
}
