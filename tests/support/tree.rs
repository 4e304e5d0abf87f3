//! A tree with one of everything that a backup must keep, and a comparison that forgets nothing.
//!
//! The walker here is its own: it shares no code with the crate, so that a mistake there cannot hide itself.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags};

/// A temporary directory that can be removed even when files in it are immutable.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A path in it; nothing is made there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        release(self.0.path());
    }
}

/// Takes the flags that forbid removal off `path` and everything below it.
pub fn release(path: &Path) {
    let Ok(meta) = path.symlink_metadata() else { return };
    if !meta.is_dir() && !meta.is_file() {
        return;
    }
    let file = File::open(path).unwrap();
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file)
        && flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)
    {
        rustix::fs::ioctl_setflags(&file, flags - (IFlags::IMMUTABLE | IFlags::APPEND)).unwrap();
    }
    if meta.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| release(&entry.unwrap().path()));
    }
}

/// Bytes that do not compress, the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Makes the directory `dir` with one of everything in it. Its file system must know user, trusted and security attributes, ACLs and the
/// immutable flag (ext4, XFS).
pub fn make_tree(dir: &Path) {
    fs::create_dir(dir).unwrap();
    make_files(dir);
    make_sparse(dir);
    make_names(dir);
    make_links(dir);
    make_attributes(dir);
    make_directories(dir);
    set_times(dir);
    set_flag(&dir.join("immutable.conf"), IFlags::IMMUTABLE);
    set_flag(&dir.join("append.log"), IFlags::APPEND);
    set_flag(&dir.join("immutable.d"), IFlags::IMMUTABLE);
}

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

fn make_files(dir: &Path) {
    put(&dir.join("plain"), "plain text\n");
    put(&dir.join("empty"), "");
    put(&dir.join("secret"), "no one may read this\n");
    chmod(&dir.join("secret"), 0);
    put(&dir.join("setuid"), "#!/bin/sh\n");
    chown(&dir.join("setuid"), 1234, 5678);
    chmod(&dir.join("setuid"), 0o6755);
    put(&dir.join("large-ids"), "ids that do not fit an octal field\n");
    chown(&dir.join("large-ids"), 3_000_000, 4_000_000_000);
    put(&dir.join("block"), noise(1, 512));
    put(&dir.join("noise"), noise(2, 3 << 20));
    put(&dir.join("text"), "certificate of the day\n".repeat(100_000));
    put(&dir.join("immutable.conf"), "nobody changes this\n");
    put(&dir.join("append.log"), "one line\n");
    fs::create_dir(dir.join("many")).unwrap();
    for n in 0..300_u32 {
        put(&dir.join(format!("many/file-{n:03}")), noise(u64::from(n) + 10, 37 * n as usize));
    }
    rustix::fs::mkfifoat(CWD, dir.join("fifo"), Mode::from_raw_mode(0o640)).unwrap();
    let node = |name: &str, kind, major, minor| {
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o660), rustix::fs::makedev(major, minor)).unwrap();
    };
    node("null", FileType::CharacterDevice, 1, 3);
    // XFS has no room for a larger one.
    node("disk", FileType::BlockDevice, 259, 262_143);
}

fn make_sparse(dir: &Path) {
    fs::create_dir(dir.join("sparse")).unwrap();
    let make = |name: &str, size: u64, parts: &[(u64, &[u8])]| {
        let file = File::create(dir.join("sparse").join(name)).unwrap();
        file.set_len(size).unwrap();
        parts.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
    };
    make("hole-only", 5 << 20, &[]);
    make("data-hole", 9 << 20, &[(0, b"start")]);
    make("hole-data", (7 << 20) + 3, &[((7 << 20) - 2, b"  end")]);
    make("many-holes", 20 << 20, &[(0, b"a"), (4 << 20, &noise(3, 70_000)), (9 << 20, b"b"), ((20 << 20) - 1, b"c")]);
    let long = format!("{}-sparse", "long".repeat(30));
    make(&long, 3 << 20, &[(1 << 20, b"middle")]);
}

fn make_names(dir: &Path) {
    let names = dir.join("names");
    fs::create_dir(&names).unwrap();
    for name in
        [&b"not-utf-8-\xff\xfe\x80"[..], b"new\nline", b"-dash", b" blanks ", b"quote'\"\\", b"*?[glob]", b"caf\xc3\xa9", b"a=b", b"..."]
    {
        put(&names.join(OsStr::from_bytes(name)), name);
    }
    // Around the 100 bytes of a tar header's name field, and the longest name there is.
    for len in [93, 94, 95, 99, 100, 101, 155, 156, 255] {
        put(&names.join("n".repeat(len)), len.to_string());
    }
    let mut deep = names.clone();
    for n in 0..12 {
        deep.push(format!("{n:02}-{}", "d".repeat(97)));
    }
    fs::create_dir_all(&deep).unwrap();
    put(&deep.join("at the bottom"), "deep\n");
    symlink("at the bottom", deep.join("link")).unwrap();
    fs::hard_link(deep.join("at the bottom"), deep.join("zz-name")).unwrap();
}

fn make_links(dir: &Path) {
    let links = dir.join("links");
    fs::create_dir_all(links.join("other")).unwrap();
    symlink("../plain", links.join("relative")).unwrap();
    symlink("/etc/does/not/exist", links.join("absolute")).unwrap();
    symlink("dangling target", links.join("dangling")).unwrap();
    symlink("x".repeat(100), links.join("exactly-100")).unwrap();
    symlink(format!("/{}", "y/".repeat(400)), links.join("long")).unwrap();
    symlink(OsStr::from_bytes(b"bytes-\xff"), links.join("not-utf-8")).unwrap();
    chown(&links.join("dangling"), 77, 88);
    put(&links.join("first"), noise(5, 5000));
    fs::hard_link(links.join("first"), links.join("other/second")).unwrap();
    fs::hard_link(links.join("first"), dir.join("zz-third")).unwrap();
    put(&links.join("empty-1"), "");
    fs::hard_link(links.join("empty-1"), links.join("empty-2")).unwrap();
    fs::hard_link(dir.join("fifo"), links.join("fifo-again")).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// A POSIX ACL as the kernel keeps it: version 2, then tag, permissions and id of each entry. (The ids below are nobody's, so that GNU tar
/// writes numbers.)
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn make_attributes(dir: &Path) {
    const NONE: u32 = u32::MAX;
    let at = dir.join("attributes");
    fs::create_dir(&at).unwrap();
    for name in ["user", "trusted", "label", "capability", "acl", "all"] {
        put(&at.join(name), name);
    }
    xattr(&at.join("user"), "user.note", b"bytes\0with=signs\nand lines\xff");
    xattr(&at.join("user"), "user.empty", b"");
    xattr(&at.join("user"), "user.name=with sign", b"1");
    xattr(&at.join("trusted"), "trusted.origin", b"here");
    let label = b"system_u:object_r:container_file_t:s0:c1,c2\0";
    xattr(&at.join("label"), "security.selinux", label);
    // cap_net_bind_service, permitted and effective: struct vfs_cap_data, revision 2.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr(&at.join("capability"), "security.capability", &capability);
    let access = acl(&[(1, 7, NONE), (2, 4, 61_000), (2, 6, 70_000), (4, 5, NONE), (8, 1, 62_000), (16, 5, NONE), (32, 0, NONE)]);
    xattr(&at.join("acl"), "system.posix_acl_access", &access);
    for (name, value) in [("user.a", &b"1"[..]), ("trusted.b", b"2"), ("security.selinux", label), ("security.capability", &capability)] {
        xattr(&at.join("all"), name, value);
    }
    xattr(&at.join("all"), "system.posix_acl_access", &access);
    xattr(&at, "user.on-a-directory", b"yes");
    xattr(&dir.join("links/dangling"), "trusted.on-a-link", b"yes");
    xattr(&dir.join("links/dangling"), "security.selinux", b"system_u:object_r:etc_t:s0\0");
    xattr(&dir.join("fifo"), "trusted.on-a-fifo", b"yes");
    xattr(dir, "trusted.on-the-root", b"yes");
    let inherit = dir.join("inherit");
    fs::create_dir(&inherit).unwrap();
    put(&inherit.join("without"), "made before the default ACL\n");
    xattr(&inherit, "system.posix_acl_default", &acl(&[(1, 7, NONE), (2, 7, 61_000), (4, 5, NONE), (16, 7, NONE), (32, 5, NONE)]));
    put(&inherit.join("with"), "inherits an ACL\n");
    fs::create_dir(inherit.join("below")).unwrap();
}

fn make_directories(dir: &Path) {
    fs::create_dir_all(dir.join("void/empty")).unwrap();
    fs::create_dir(dir.join("read-only")).unwrap();
    put(&dir.join("read-only/file"), "still\n");
    chmod(&dir.join("read-only"), 0o555);
    fs::create_dir(dir.join("closed")).unwrap();
    put(&dir.join("closed/file"), "closed\n");
    chmod(&dir.join("closed"), 0);
    fs::create_dir(dir.join("sticky")).unwrap();
    chown(&dir.join("sticky"), 11, 22);
    chmod(&dir.join("sticky"), 0o3777);
    fs::create_dir(dir.join("immutable.d")).unwrap();
    put(&dir.join("immutable.d/inside"), "kept in\n");
}

/// Sets the modification time of `path` itself, a link not followed.
pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    rustix::fs::utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_times(dir: &Path) {
    // Every path a time of its own, to the nanosecond; those of directories last, children before parents.
    let mut paths = Vec::new();
    list(dir, &mut paths);
    for (n, path) in (0_i64..).zip(paths.iter().rev()) {
        set_mtime(path, 1_600_000_000 + n * 1000, 123_456_789 + n);
    }
    set_mtime(&dir.join("plain"), -5, 250_000_000);
    set_mtime(&dir.join("empty"), 0, 0);
    set_mtime(&dir.join("block"), 8_589_934_592, 1);
    set_mtime(&dir.join("links/long"), 1_500_000_000, 999_999_999);
    set_mtime(dir, 1_400_000_000, 5);
}

fn list(path: &Path, into: &mut Vec<PathBuf>) {
    into.push(path.to_owned());
    if path.symlink_metadata().unwrap().is_dir() {
        let mut names: Vec<PathBuf> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.iter().for_each(|name| list(name, into));
    }
}

/// Sets a flag that forbids changes.
pub fn set_flag(path: &Path, flag: IFlags) {
    let file = File::open(path).unwrap();
    let flags = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, flags | flag).unwrap();
}

/// What is known of one path, as text: two paths are the same when all of it is equal.
type Facts = BTreeMap<String, String>;

/// Everything about every path below `dir`, and `dir` itself, by relative path.
pub fn facts(dir: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut paths = Vec::new();
    list(dir, &mut paths);
    // The first path, in order, of each inode: hard links are the same when they have the same first path.
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for path in paths {
        let relative = path.strip_prefix(dir).unwrap().to_owned();
        let meta = path.symlink_metadata().unwrap();
        let leader = first.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.clone()).clone();
        let mut facts = facts_of(&path, &meta);
        facts.insert("inode of".into(), format!("{leader:?}"));
        all.insert(relative, facts);
    }
    all
}

fn facts_of(path: &Path, meta: &fs::Metadata) -> Facts {
    let kind = meta.file_type();
    let mut facts = Facts::new();
    let mut note = |name: &str, value: String| facts.insert(name.to_owned(), value);
    note("kind and mode", format!("{:o}", meta.mode()));
    note("owner", format!("{}:{}", meta.uid(), meta.gid()));
    note("mtime", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    if kind.is_file() {
        note("size", meta.size().to_string());
        note("content", blake3::hash(&fs::read(path).unwrap()).to_string());
    } else if kind.is_symlink() {
        note("target", format!("{:?}", fs::read_link(path).unwrap()));
    } else if kind.is_char_device() || kind.is_block_device() {
        note("device", meta.rdev().to_string());
    }
    if kind.is_file() || kind.is_dir() {
        let flags = rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap_or(IFlags::empty());
        note("flags", format!("{:?}", flags & (IFlags::IMMUTABLE | IFlags::APPEND)));
    }
    for (name, value) in xattrs(path) {
        note(&format!("attribute {name:?}"), value.escape_ascii().to_string());
    }
    facts
}

fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, CString::new(name).unwrap(), &mut value[..]).unwrap();
            value.truncate(len);
            (OsString::from_vec(name.to_vec()), value)
        })
        .collect()
}

/// How the trees `a` and `b` differ, a line each; empty when they are the same.
pub fn differences(a: &Path, b: &Path) -> Vec<String> {
    let (facts_a, mut facts_b) = (facts(a), facts(b));
    let mut lines = Vec::new();
    for (path, a) in facts_a {
        let Some(b) = facts_b.remove(&path) else {
            lines.push(format!("{path:?} is missing"));
            continue;
        };
        for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
            if a.get(name) != b.get(name) {
                lines.push(format!("{path:?}: {name} is {:?}, not {:?}", b.get(name), a.get(name)));
            }
        }
    }
    lines.extend(facts_b.keys().map(|path| format!("{path:?} is too many")));
    lines
}

/// Panics, with every difference, unless the tree `b` is the same as `a`: kinds, content, owners, modes, times to the nanosecond, extended
/// attributes, ACLs, link targets, hard links, devices, flags. Sparse files must be sparse in both.
pub fn assert_same(a: &Path, b: &Path) {
    let lines = differences(a, b);
    assert!(lines.is_empty(), "{} and {} differ:\n{}", a.display(), b.display(), lines.join("\n"));
    let mut paths = Vec::new();
    list(a, &mut paths);
    for path in paths {
        let other = b.join(path.strip_prefix(a).unwrap());
        let (meta, copy) = (path.symlink_metadata().unwrap(), other.symlink_metadata().unwrap());
        let sparse = meta.is_file() && meta.blocks() * 512 + (64 << 10) < meta.size();
        assert!(!sparse || copy.blocks() * 512 + (64 << 10) < copy.size(), "{} is not sparse any more", other.display());
    }
}
