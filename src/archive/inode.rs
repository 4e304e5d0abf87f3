//! One inode, held open: its attributes are read and set through the handle, even if its name changes.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, IFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::entry::{APPEND_ONLY, Attributes, IMMUTABLE, Kind, Time};
use super::file_system;
use super::found::Found;
use super::xattrs::{LABEL, Xattrs, is_kept};
use crate::error::misfit;
use crate::node::durable;

/// The flags with which files and directories are opened: no link is followed, and nothing waits for the other end of a FIFO.
pub(super) const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// How a name in a directory is opened.
type Open = fn(BorrowedFd<'_>, &[u8], OFlags) -> rustix::io::Result<OwnedFd>;

/// One inode, held open: a file or directory for reading (or writing), anything else as a path handle (`O_PATH`), which neither opens a
/// device nor waits for a FIFO.
#[derive(Debug)]
pub(super) struct Inode {
    file: OwnedFd,
    /// For a path handle, its path in `/proc`, which leads to the inode itself, even if that is a link.
    handle: Option<String>,
}

impl Inode {
    /// Opens `name` in `directory`; its kind is `kind`.
    pub(super) fn open(directory: impl AsFd, name: &[u8], kind: Kind) -> rustix::io::Result<Self> {
        Self::open_with(directory.as_fd(), name, kind, |directory, name, flags| rustix::fs::openat(directory, name, flags, Mode::empty()))
    }

    /// As [`Inode::open`], to change it: what somebody mounts there meanwhile is not opened.
    pub(super) fn open_own(directory: impl AsFd, name: &[u8], kind: Kind) -> rustix::io::Result<Self> {
        Self::open_with(directory.as_fd(), name, kind, |directory, name, flags| {
            durable::open_own(directory, OsStr::from_bytes(name), flags)
        })
    }

    fn open_with(directory: BorrowedFd<'_>, name: &[u8], kind: Kind, open: Open) -> rustix::io::Result<Self> {
        let name = if name.is_empty() { b"." } else { name };
        if matches!(kind, Kind::File | Kind::Directory) {
            let open = |flags| open(directory, name, READ | flags);
            let file = open(OFlags::NOATIME).or_else(|error| if error == Errno::PERM { open(OFlags::empty()) } else { Err(error) })?;
            return Ok(Self { file, handle: None });
        }
        let file = open(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
        let handle = Some(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self { file, handle })
    }

    /// Wraps a file that is already open.
    pub(super) fn of(file: OwnedFd) -> Self {
        Self { file, handle: None }
    }

    /// The open file.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The open file, taken out.
    pub(super) fn into_file(self) -> OwnedFd {
        self.file
    }

    /// Its extended attributes, of the kinds that are [kept](is_kept), sorted by name.
    pub(super) fn xattrs(&self) -> rustix::io::Result<Xattrs> {
        let list = sized(256, |buffer| match &self.handle {
            None => rustix::fs::flistxattr(&self.file, buffer),
            Some(path) => rustix::fs::listxattr(path, buffer),
        });
        let list = match list {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            list => list?,
        };
        let mut xattrs = Xattrs::new();
        for name in list.split_inclusive(|b| *b == 0).filter(|name| is_kept(&name[..name.len() - 1])) {
            let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
            let value = sized(256, |buffer| match &self.handle {
                None => rustix::fs::fgetxattr(&self.file, name, buffer),
                Some(path) => rustix::fs::getxattr(path, name, buffer),
            });
            match value {
                Ok(value) => xattrs.push((name.to_bytes().to_vec(), value)),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        xattrs.sort_unstable();
        Ok(xattrs)
    }

    /// Makes owner, mode, extended attributes and modification time exactly those given. Flags are set by [`Inode::set_flags`].
    ///
    /// The order matters: a change of owner clears set-id bits and capabilities, and an ACL changes the mode.
    pub(super) fn set(&self, attributes: &Attributes, mtime: Time, kind: Kind) -> Result<()> {
        let Attributes { mode, uid, gid, xattrs, .. } = attributes;
        let (owner, group) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
        match &self.handle {
            None => rustix::fs::fchown(&self.file, Some(owner), Some(group)),
            Some(_) => rustix::fs::chownat(&self.file, "", Some(owner), Some(group), AtFlags::EMPTY_PATH),
        }
        .context("setting the owner")?;
        self.set_xattrs(xattrs)?;
        let mode = Mode::from_raw_mode(*mode);
        match &self.handle {
            None => rustix::fs::fchmod(&self.file, mode),
            // Links always have all permissions.
            Some(_) if kind == Kind::Symlink => Ok(()),
            Some(path) => rustix::fs::chmod(path, mode),
        }
        .context("setting the mode")?;
        self.set_mtime(mtime)
    }

    /// Sets the modification time; the access time stays.
    pub(super) fn set_mtime(&self, mtime: Time) -> Result<()> {
        let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
        let times = Timestamps { last_access: omit, last_modification: time };
        match &self.handle {
            None => rustix::fs::futimens(&self.file, &times),
            Some(path) => rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty()),
        }
        .context("setting the modification time")
    }

    /// Makes its extended attributes exactly those given.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the file system does not support one of them, or not of this size.
    pub(super) fn set_xattrs(&self, wanted: &Xattrs) -> Result<()> {
        let present = self.xattrs().context("reading the extended attributes")?;
        for (name, _) in present.iter().filter(|(name, _)| !wanted.iter().any(|(other, _)| name == other)) {
            match &self.handle {
                None => rustix::fs::fremovexattr(&self.file, name.as_slice()),
                Some(path) => rustix::fs::removexattr(path, name.as_slice()),
            }
            .with_context(|| format!("removing the extended attribute {}", name.escape_ascii()))?;
        }
        for (name, value) in wanted.iter().filter(|pair| !present.contains(pair)) {
            let set = match &self.handle {
                None => rustix::fs::fsetxattr(&self.file, name.as_slice(), value, XattrFlags::empty()),
                Some(path) => rustix::fs::setxattr(path, name.as_slice(), value, XattrFlags::empty()),
            };
            set.map_err(|error| self.cannot_set(error, name, value.len()))
                .with_context(|| format!("setting the extended attribute {}{}", name.escape_ascii(), hint(name)))?;
        }
        Ok(())
    }

    /// The error when an attribute of `len` bytes cannot be set. The kernel reports the same for a file system without room for it in this
    /// file as for a full one.
    fn cannot_set(&self, error: Errno, name: &[u8], len: usize) -> anyhow::Error {
        let why = match error {
            Errno::NOSPC if file_system::is_full(&self.file) => return error.into(),
            Errno::NOSPC | Errno::TOOBIG | Errno::RANGE => "has no room for that in one file, though it is not full",
            Errno::OPNOTSUPP | Errno::PERM => "does not take it on something of this kind",
            Errno::INVAL | Errno::ACCESS => "or this kernel does not take this value",
            _ => return error.into(),
        };
        let name = name.escape_ascii();
        misfit(format!(
            "the extended attribute {name} of {len} bytes does not fit: the file system ({}) {why}; restore to a \
             file system of the kind from which the archive was made, or leave this path out",
            file_system::name(&self.file)
        ))
    }

    /// Sets or clears the flags that forbid changes. Clearing flags that are not set needs no support by the file system.
    ///
    /// # Errors
    /// When they cannot be set. For what cannot be opened (links, FIFOs, devices) they can be set only from Linux 6.17 on and on a file
    /// system with support for it (XFS).
    pub(super) fn set_flags(&self, flags: u8) -> Result<()> {
        if let Some(path) = &self.handle {
            if Found::of(&self.file)?.flags == flags {
                return Ok(());
            }
            return set_flags_at(path, flags).map_err(|error| match error {
                Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY => misfit(format!(
                    "the file system ({}) or this kernel has no immutable or append-only flag for something of this kind (XFS and Linux \
                     6.17 do)",
                    file_system::name(&self.file)
                )),
                error => anyhow::Error::from(error).context("setting the immutable and append-only flags"),
            });
        }
        let set = || -> rustix::io::Result<()> {
            let present = match rustix::fs::ioctl_getflags(&self.file) {
                Err(Errno::NOTTY | Errno::OPNOTSUPP) if flags == 0 => return Ok(()),
                present => present?,
            };
            let mut wanted = present - (IFlags::IMMUTABLE | IFlags::APPEND);
            wanted.set(IFlags::IMMUTABLE, flags & IMMUTABLE != 0);
            wanted.set(IFlags::APPEND, flags & APPEND_ONLY != 0);
            if wanted == present { Ok(()) } else { rustix::fs::ioctl_setflags(&self.file, wanted) }
        };
        set().context("setting the immutable and append-only flags")
    }
}

/// What `file_getattr(2)` and `file_setattr(2)` of Linux 6.17 exchange (`struct file_attr`, linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct FileAttr {
    xflags: u64,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
}

/// Sets or clears the flags of what `path` leads to, without opening it.
fn set_flags_at(path: &str, flags: u8) -> rustix::io::Result<()> {
    use nix::libc::{AT_FDCWD, c_long, syscall};
    // The same on all architectures.
    const GETATTR: c_long = 468;
    const SETATTR: c_long = 469;
    // FS_XFLAG_IMMUTABLE, FS_XFLAG_APPEND.
    const IMMUTABLE_X: u64 = 0x8;
    const APPEND_X: u64 = 0x10;
    let path = std::ffi::CString::new(path).map_err(|_| Errno::INVAL)?;
    let mut attr = FileAttr::default();
    let call = |number: c_long, attr: &mut FileAttr| {
        // SAFETY: the path ends with a zero byte, and the kernel reads or writes no more of the structure than the size given.
        let done = unsafe { syscall(number, AT_FDCWD, path.as_ptr(), std::ptr::from_mut(attr), size_of::<FileAttr>(), 0) };
        if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
    };
    call(GETATTR, &mut attr)?;
    attr.xflags &= !(IMMUTABLE_X | APPEND_X);
    attr.xflags |= if flags & IMMUTABLE != 0 { IMMUTABLE_X } else { 0 } | if flags & APPEND_ONLY != 0 { APPEND_X } else { 0 };
    call(SETATTR, &mut attr)
}

/// What to add to an error about an extended attribute.
fn hint(name: &[u8]) -> &'static str {
    if name == LABEL { " (a label that the running policy does not know can be set in permissive mode only)" } else { "" }
}

/// Start and end of the first piece of data at or after `at` in a file of `size` bytes; `None` when only a hole follows. Where the file
/// system cannot tell, everything counts as data.
pub(super) fn next_data(file: &OwnedFd, at: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let seek = |to| rustix::fs::seek(file, to);
    match seek(SeekFrom::Data(at)).and_then(|start| Ok((start, seek(SeekFrom::Hole(start))?.min(size)))) {
        Ok((start, end)) => Ok(Some((start, end)).filter(|_| start < end)),
        // This happens also when the file has just become shorter.
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, size))),
        Err(error) => Err(error),
    }
}

/// Calls `read` with a buffer that grows until the result fits.
fn sized(first: usize, mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; first];
    loop {
        match read(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            // XATTR_LIST_MAX and XATTR_SIZE_MAX are both 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(buffer.len() * 16, 0),
            Err(error) => return Err(error),
        }
    }
}
