//! A tree on disk, reached through directory handles: no path is looked up from the top, no symbolic link is followed.

use std::collections::HashSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags, XattrFlags};
use rustix::fs::{SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use super::acl;
use super::entry::{APPEND_ONLY, Attributes, IMMUTABLE, Kind, Time, Xattrs, shown};
use crate::error::misfit;
use crate::node::mounts::{Mount, mounts};

/// For reading without changing the access time (which only the owner and root may ask for), never waiting for the other end of a fifo.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The attribute that holds the security label.
pub(super) const LABEL: &[u8] = b"security.selinux";

/// The attribute in which a restore notes what a directory was like: see [`noted`](super::noted).
pub(super) const NOTE: &[u8] = b"trusted.recovery.before";

/// The last second that file systems know: ext4 with small inodes and XFS without `bigtime`, ext4, XFS with it. The first is
/// the same for all of them. (Linux: `fs/ext4/ext4.h`, `fs/xfs/libxfs/xfs_format.h`.)
const LAST_SECONDS: [i64; 4] = [i32::MAX as i64, u32::MAX as i64, 15_032_385_535, 16_299_260_424];
const FIRST_SECOND: i64 = i32::MIN as i64;

/// A directory, as the root of a tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    shown: PathBuf,
    /// Where something was mounted below the root when it was opened, also what something else has been mounted over since.
    points: HashSet<Vec<u8>>,
}

/// See [`Found::identity`].
pub(super) type Identity = ((u32, u32), u64, Time);

/// What `statx` says of one path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// `None` for a socket, which cannot be kept.
    pub(super) kind: Option<Kind>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    /// When the inode was made, where the file system says so (XFS, ext4); else 1970.
    birth: Time,
    pub(super) size: u64,
    pub(super) inode: u64,
    pub(super) file_system: (u32, u32),
    pub(super) links: u32,
    pub(super) device: (u32, u32),
    pub(super) flags: u8,
    /// It has fewer blocks than its size asks for.
    pub(super) holes: bool,
    /// It is where a mount begins; Linux says so from 5.8 on.
    mount_root: Option<bool>,
}

impl Tree {
    /// Opens the directory `path`; links on the way to it are followed, it is the caller's.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("opening the directory {}", path.display()))?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).context("looking for the mounts in the tree")?;
        let below = |mount: Mount| Some(mount.point.strip_prefix(&real).ok()?.as_os_str().as_bytes().to_vec());
        let points = mounts()?.into_iter().filter_map(below).filter(|point| !point.is_empty()).collect();
        Ok(Self { root, shown: path.to_owned(), points })
    }

    /// True when something is mounted at `path`, which is `name` in `directory`. The file system there is not asked: it may be dead (FUSE or
    /// NFS without their servers), and answer with an error, or never.
    pub(super) fn is_known_mount(&self, path: &[u8], directory: impl AsFd, name: &[u8]) -> bool {
        if !self.points.contains(path) {
            return false;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        match rustix::fs::statx(directory, name, flags, StatxFlags::empty()) {
            // Before Linux 5.8 the list is all there is.
            Ok(found) => mount_root(&found).unwrap_or(true),
            Err(error) => error != Errno::NOENT,
        }
    }

    /// True when something is mounted at `path`, where `found` is; `parent` is the directory that holds it.
    pub(super) fn is_mount(&self, path: &[u8], found: &Found, parent: &Found) -> bool {
        found.mount_root.unwrap_or_else(|| found.file_system != parent.file_system || self.points.contains(path))
    }

    /// A path in it, for messages.
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
        match rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve) {
            // Before Linux 5.6.
            Err(Errno::NOSYS) => self.step_by_step(path, flags),
            result => result,
        }
    }

    fn step_by_step(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here = rustix::fs::openat(&self.root, ".", way, Mode::empty())?;
        let (parents, name) = super::entry::split(path).unwrap_or((b"", b"."));
        for part in parents.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            here = rustix::fs::openat(&here, part, way, Mode::empty())?;
        }
        rustix::fs::openat(&here, name, flags, Mode::empty())
    }
}

impl Found {
    /// Looks at `name` in `directory`, not following a link; `None` when there is nothing.
    pub(super) fn at(directory: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Self>> {
        let name = if name.is_empty() { b"." } else { name };
        match statx(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at what is open.
    pub(super) fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        statx(file.as_fd(), b"", AtFlags::EMPTY_PATH)
    }

    /// True when its modification time is `wanted`, as far as the file system can keep that: one beyond what it knows becomes the last that it
    /// knows (`timestamp_truncate` in Linux), and where it keeps whole seconds, the rest is lost.
    pub(super) fn has_mtime(&self, wanted: Time) -> bool {
        let whole_seconds = self.mtime.nanoseconds == 0 && self.ctime.nanoseconds == 0;
        self.mtime == wanted
            || (whole_seconds && self.mtime.seconds == wanted.seconds)
            || (LAST_SECONDS.contains(&self.mtime.seconds) && wanted.seconds >= self.mtime.seconds)
            || (self.mtime.seconds == FIRST_SECOND && wanted.seconds <= self.mtime.seconds)
    }

    /// What tells an inode from every other there was: the number of one that is gone is given to the next.
    pub(super) fn identity(&self) -> Identity {
        (self.file_system, self.inode, self.birth)
    }

    /// True when neither content nor metadata can have changed between the two looks.
    pub(super) fn is_unchanged(&self, later: &Self) -> bool {
        (self.inode, self.size, self.mtime, self.ctime) == (later.inode, later.size, later.mtime, later.ctime)
    }
}

fn statx(directory: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> rustix::io::Result<Found> {
    let found: Statx = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let attribute = |attribute| found.stx_attributes.contains(attribute);
    let kind = match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        _ => None,
    };
    let is_device = matches!(kind, Some(Kind::CharDevice | Kind::BlockDevice));
    let time = |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    Ok(Found {
        kind,
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        mtime: time(found.stx_mtime),
        ctime: time(found.stx_ctime),
        birth: time(found.stx_btime),
        size: if kind == Some(Kind::File) { found.stx_size } else { 0 },
        inode: found.stx_ino,
        file_system: (found.stx_dev_major, found.stx_dev_minor),
        links: found.stx_nlink,
        device: if is_device { (found.stx_rdev_major, found.stx_rdev_minor) } else { (0, 0) },
        flags: if attribute(StatxAttributes::IMMUTABLE) { IMMUTABLE } else { 0 }
            | if attribute(StatxAttributes::APPEND) { APPEND_ONLY } else { 0 },
        holes: found.stx_blocks.saturating_mul(512) < found.stx_size,
        mount_root: mount_root(&found),
    })
}

fn mount_root(found: &Statx) -> Option<bool> {
    let told = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    told.then_some(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Start and end of the first piece of data at or behind `at` in a file of `size` bytes; `None` when only a hole follows. Where the file
/// system cannot tell, all is data.
pub(super) fn next_data(file: &OwnedFd, at: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let seek = |to| rustix::fs::seek(file, to);
    match seek(SeekFrom::Data(at)).and_then(|start| Ok((start, seek(SeekFrom::Hole(start))?.min(size)))) {
        Ok((start, end)) => Ok(Some((start, end)).filter(|_| start < end)),
        // Also when it has just become shorter.
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some((at, size))),
        Err(error) => Err(error),
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

/// What `name` in an open directory is, or is mounted over: a directory, or a file, which stands for all else. It is not looked at itself.
pub(super) fn kind_in(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Kind> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_name().to_bytes() == name {
            // Not every file system says so; most mounts are on directories.
            return Ok(if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) { Kind::Directory } else { Kind::File });
        }
    }
    Err(Errno::NOENT)
}

/// One inode, held open: a file or directory for reading (or writing), anything else as a mere handle (`O_PATH`), which does not open a
/// device or wait for a fifo.
#[derive(Debug)]
pub(super) struct Inode {
    file: OwnedFd,
    /// Of a mere handle, where `/proc` leads to the inode itself, a link not followed.
    handle: Option<String>,
}

impl Inode {
    /// Opens `name` in `directory`, which is of the kind `kind`.
    pub(super) fn open(directory: impl AsFd, name: &[u8], kind: Kind) -> rustix::io::Result<Self> {
        let directory = directory.as_fd();
        let name = if name.is_empty() { b"." } else { name };
        if matches!(kind, Kind::File | Kind::Directory) {
            let open = |flags| rustix::fs::openat(directory, name, READ | flags, Mode::empty());
            let file = open(OFlags::NOATIME).or_else(|error| if error == Errno::PERM { open(OFlags::empty()) } else { Err(error) })?;
            return Ok(Self { file, handle: None });
        }
        let file = rustix::fs::openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let handle = Some(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self { file, handle })
    }

    /// A file that is open already.
    pub(super) fn of(file: OwnedFd) -> Self {
        Self { file, handle: None }
    }

    /// The open file.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The open file, for good.
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

    /// Makes owner, mode and extended attributes exactly those given, and the times too. Flags are not set here: see [`Inode::set_flags`].
    ///
    /// The order matters: a change of owner takes set-id bits and capabilities away, and an ACL changes the mode.
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
            // The permissions of a link are always all.
            Some(_) if kind == Kind::Symlink => Ok(()),
            Some(path) => rustix::fs::chmod(path, mode),
        }
        .context("setting the mode")?;
        self.set_mtime(mtime)
    }

    /// Sets the modification time and leaves the access time.
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
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the file system does not take one of them, or not so much.
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
            set.map_err(|error| self.refused(error, name, value.len()))
                .with_context(|| format!("setting the extended attribute {}{}", name.escape_ascii(), hint(name)))?;
        }
        Ok(())
    }

    /// What it means that an attribute of `len` bytes cannot be set. A file system that has no room for it in the file says the same as one
    /// that is full.
    fn refused(&self, error: Errno, name: &[u8], len: usize) -> anyhow::Error {
        let full =
            || rustix::fs::fstatvfs(&self.file).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < NEARLY_FULL || fs.f_favail == 0);
        let why = match error {
            Errno::NOSPC if full() => return error.into(),
            Errno::NOSPC | Errno::TOOBIG | Errno::RANGE => "has no room for that in one file, though it is not full",
            Errno::OPNOTSUPP | Errno::PERM => "does not take it on something of this kind",
            Errno::INVAL | Errno::ACCESS => "or this kernel does not take this value",
            _ => return error.into(),
        };
        let name = name.escape_ascii();
        misfit(format!(
            "the extended attribute {name} of {len} bytes does not fit: the file system ({}) {why}; restore to a file system like that which the archive \
             was made from, or leave this path out",
            file_system(&self.file)
        ))
    }

    /// Sets or clears the flags that forbid changes. Asking for none where there are none needs no support by the file system.
    ///
    /// # Errors
    /// When they cannot be set; of what cannot be opened (links, fifos, devices) that takes Linux 6.17 and a file system that knows them
    /// there (XFS).
    pub(super) fn set_flags(&self, flags: u8) -> Result<()> {
        if let Some(path) = &self.handle {
            if Found::of(&self.file)?.flags == flags {
                return Ok(());
            }
            return set_flags_at(path, flags).map_err(|error| match error {
                Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOTTY => misfit(format!(
                    "the file system ({}) or this kernel takes no immutable or append-only flag on something of this kind (XFS and Linux 6.17 do)",
                    file_system(&self.file)
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

/// With less than this left, in bytes, a file system is full.
const NEARLY_FULL: u64 = 1 << 20;

/// The kind of file system that something is on, for messages.
pub(super) fn file_system(file: &OwnedFd) -> String {
    // linux/magic.h
    match rustix::fs::fstatfs(file).map(|fs| u64::try_from(fs.f_type).unwrap_or_default()) {
        Ok(0xEF53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "XFS".to_owned(),
        Ok(0x9123_683E) => "btrfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x794C_7630) => "overlay".to_owned(),
        Ok(other) => format!("type {other:#x}"),
        Err(_) => "of unknown type".to_owned(),
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

/// Sets or clears the flags of what `path` leads to, which need not be opened for it.
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

fn hint(name: &[u8]) -> &'static str {
    if name == b"security.selinux" { " (a label that the running policy does not know can be set in permissive mode only)" } else { "" }
}

/// True for the extended attributes that a backup keeps: users' and administrators' own, security's, and ACLs. The rest of `system.` and the
/// file systems' own namespaces are views of something else, and so are the names under which XFS lists ACLs again; a restore's own note is for no
/// one else.
pub(super) fn is_kept(name: &[u8]) -> bool {
    let own = |namespace: &&[u8]| name.starts_with(namespace) && name.len() > namespace.len();
    [&b"user."[..], b"trusted.", b"security."].iter().any(own) && !acl::is_twin(name) && name != NOTE || acl::is_acl(name)
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::select::Selection;
    use super::super::walk::Walk;
    use super::*;

    /// Paths and whether only their existence is meant, as a walk finds them.
    fn walked(tree: &Tree) -> Vec<(Vec<u8>, bool)> {
        let selection = Selection::all();
        let mut walk = Walk::new(tree, &selection, [None, None]);
        let mut all = Vec::new();
        while let Some(item) = walk.next(&mut |_| Ok(None)).unwrap() {
            all.push((item.entry.path, item.existence));
        }
        all
    }

    #[test]
    fn mounts_of_the_same_file_system_are_seen_and_what_is_hidden_below_them_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, other) = (dir.path().join("tree"), dir.path().join("other"));
        fs::create_dir_all(tree.join("a blank/point")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        fs::write(other.join("inside"), "").unwrap();
        fs::create_dir_all(tree.join("over/below")).unwrap();
        let run = |program: &str, args: &[&Path]| assert!(Command::new(program).args(args).status().unwrap().success(), "{program}");
        let (directory, file) = (tree.join("a blank/point"), tree.join("file"));
        run("mount", &[Path::new("--bind"), &other, &directory]);
        run("mount", &[Path::new("--bind"), &other.join("inside"), &file]);
        // The list has both, and the lower is not to be seen: what is at its path is the tree's.
        let (above, below) = (tree.join("over"), tree.join("over/below"));
        run("mount", &[Path::new("--bind"), &other, &below]);
        run("mount", &[Path::new("--bind"), &above, &above]);
        let within = walked(&Tree::open(&above).unwrap());
        let seen = walked(&Tree::open(&tree).unwrap());
        for point in [&directory, &file, &above, &below] {
            run("umount", &[Path::new("--lazy"), point]);
        }
        let expected = [(&b""[..], false), (b"a blank", false), (b"a blank/point", true), (b"file", true), (b"over", true)];
        assert_eq!(seen, expected.map(|(path, existence)| (path.to_vec(), existence)));
        assert_eq!(within, [(Vec::new(), false), (b"below".to_vec(), false)]);
    }
}
