//! What the recovery directory holds, moved onto a new file system: copied, read back from the disk, and compared in everything that a copy could get
//! wrong. All mounts are private: nobody sees them, and a kill leaves none.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsString};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::no_space;
use crate::node::clock::interrupted;
use crate::node::mounts::{in_private, is_mount_point, space, usage};
use crate::node::{Node, durable};
use crate::tools::disk;

/// What is left free at least: a recovery writes its journal here, bytes.
const RESERVE: u64 = 16 << 20;

/// Makes the file system on `device` hold what `from` holds, and nothing else: mounted at `at`, a directory of no use otherwise.
///
/// # Errors
/// When it has no room, cannot be copied, or what is read back is not the same.
pub fn copy(node: &Node, device: &Path, from: &Path, at: &Path) -> Result<u64> {
    let bytes = usage(from)?;
    in_private(|| {
        mount_xfs(device, at, MountFlags::empty())?;
        ensure!(from.metadata()?.dev() != at.metadata()?.dev(), "{} lies on {} already", node.shown(from).display(), device.display());
        for entry in std::fs::read_dir(at).with_context(|| format!("listing {}", at.display()))? {
            durable::remove_tree(&entry?.path())?;
        }
        let (free, _) = space(at)?;
        if bytes.saturating_add(RESERVE) > free {
            return Err(no_space(format!(
                "the partition has {} MiB free, and {} holds {} MiB",
                free >> 20,
                node.shown(from).display(),
                bytes >> 20
            )));
        }
        disk::copy(node, from, at, bytes)?;
        durable::sync_file_system(at)?;
        // What is read after this comes from the disk.
        unmount(at, UnmountFlags::empty()).context("unmounting the copy")?;
        mount_xfs(device, at, MountFlags::RDONLY)?;
        compare(from, at).context("the copy is not the same")?;
        unmount(at, UnmountFlags::empty()).context("unmounting the copy")
    })?;
    Ok(bytes)
}

fn mount_xfs(device: &Path, at: &Path, flags: MountFlags) -> Result<()> {
    mount(device, at, c"xfs", flags | MountFlags::NODEV | MountFlags::NOSUID, None)
        .with_context(|| format!("mounting {}", device.display()))
}

/// Removes what is in the directory below the file system on the device of number `device`, which is mounted at `point`. True when there was something.
///
/// # Errors
/// When something else is mounted there, on top of it or below it; when something cannot be removed.
pub fn remove_below(point: &Path, device: u64) -> Result<bool> {
    in_private(|| {
        let real = point.canonicalize().with_context(|| format!("looking at {}", point.display()))?;
        ensure!(real.metadata()?.dev() == device, "what is mounted at {} is not the new partition", point.display());
        unmount(&real, UnmountFlags::DETACH).with_context(|| format!("looking below {}", point.display()))?;
        ensure!(
            !is_mount_point(&real)? && real.metadata()?.dev() != device,
            "something else is mounted at {} below the new partition",
            point.display()
        );
        let mut removed = false;
        for entry in std::fs::read_dir(point).with_context(|| format!("listing {}", point.display()))? {
            durable::remove_tree(&entry?.path())?;
            removed = true;
        }
        Ok(removed)
    })
}

/// Bytes in the directory below the mount at `point`.
///
/// # Errors
/// When it cannot be looked at.
pub fn below(point: &Path) -> Result<u64> {
    in_private(|| {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("looking below {}", point.display()))?;
        usage(point)
    })
}

/// Compares two directories with everything in them.
///
/// # Errors
/// When anything differs, with its path; when something cannot be read.
pub fn compare(one: &Path, other: &Path) -> Result<()> {
    compare_with(one, other, &mut HashMap::new())
}

/// `linked` has the inode of the one for each inode of the other that has several names.
fn compare_with(one: &Path, other: &Path, linked: &mut HashMap<u64, u64>) -> Result<()> {
    interrupted()?;
    let at = || one.display();
    let (left, right) = (
        one.symlink_metadata().with_context(|| format!("looking at {}", at()))?,
        other.symlink_metadata().with_context(|| format!("{} is missing", at()))?,
    );
    ensure!(traits(&left) == traits(&right), "{} has another type, mode, owner, time or size", at());
    ensure!(xattrs(one)? == xattrs(other)?, "{} has other extended attributes", at());
    let kind = left.file_type();
    if kind.is_dir() {
        let (left, right) = (names(one)?, names(other)?);
        ensure!(left == right, "{} holds other files", at());
        return left.iter().try_for_each(|name| compare_with(&one.join(name), &other.join(name), linked));
    }
    if left.nlink() > 1 || right.nlink() > 1 {
        ensure!(left.nlink() == right.nlink(), "{} has another number of hard links", at());
        ensure!(*linked.entry(right.ino()).or_insert(left.ino()) == left.ino(), "{} is a hard link to another file", at());
    }
    if kind.is_symlink() {
        ensure!(std::fs::read_link(one)? == std::fs::read_link(other)?, "{} leads elsewhere", at());
    } else if kind.is_file() {
        ensure!(same(one, other).with_context(|| format!("reading {}", at()))?, "{} has another content", at());
    } else {
        bail!("{} is no file, directory or link: nothing like that belongs there", at());
    }
    Ok(())
}

/// What is compared of an inode. The size of a directory is the file system's affair.
fn traits(meta: &Metadata) -> (u32, u32, u32, u64, i64, i64) {
    let size = if meta.is_dir() { 0 } else { meta.size() };
    (meta.mode(), meta.uid(), meta.gid(), size, meta.mtime(), meta.mtime_nsec())
}

fn names(dir: &Path) -> Result<Vec<OsString>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut names = list.map(|entry| entry.map(|entry| entry.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let read = || -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut list = vec![0; 64 << 10];
        let length = rustix::fs::llistxattr(path, &mut list)?;
        let mut all = BTreeMap::new();
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let (mut value, key) = (vec![0; 64 << 10], CString::new(name).unwrap_or_default());
            let length = rustix::fs::lgetxattr(path, key.as_c_str(), &mut value)?;
            value.truncate(length);
            all.insert(name.to_owned(), value);
        }
        Ok(all)
    };
    // XFS shows an ACL a second time, as an attribute of its own.
    let mut all = match read() {
        Err(rustix::io::Errno::NOTSUP) => BTreeMap::new(),
        read => read.with_context(|| format!("reading the attributes of {}", path.display()))?,
    };
    all.retain(|name, _| !name.starts_with(b"trusted.SGI_ACL_"));
    Ok(all)
}

fn same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        interrupted()?;
        let count = one.read(&mut left)?;
        if count == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        if other.read_exact(&mut right[..count]).is_err() || left[..count] != right[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn whatever_differs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let make = |root: &Path| {
            drop(std::fs::remove_dir_all(root));
            std::fs::create_dir_all(root.join("backups/b1")).unwrap();
            std::fs::write(root.join("backups/b1/etc.tar.zst"), "content").unwrap();
            std::os::unix::fs::symlink("backups/b1", root.join("latest")).unwrap();
            for (file, link) in [("one", "first"), ("two", "second")] {
                std::fs::write(root.join(file), "the same").unwrap();
                std::fs::hard_link(root.join(file), root.join(link)).unwrap();
            }
        };
        let link = |name: &str, to: &str| {
            std::fs::remove_file(other.join(name)).unwrap();
            std::fs::hard_link(other.join(to), other.join(name)).unwrap();
        };
        let copied = || {
            make(&one);
            drop(std::fs::remove_dir_all(&other));
            let done = std::process::Command::new("cp").arg("-a").args([&one, &other]).status().unwrap();
            assert!(done.success());
        };
        copied();
        compare(&one, &other).unwrap();
        let file = other.join("backups/b1/etc.tar.zst");
        let faults: [&dyn Fn(); 7] = [
            &|| {
                std::fs::remove_file(other.join("second")).unwrap();
                assert!(
                    std::process::Command::new("cp").arg("-a").args([other.join("two"), other.join("second")]).status().unwrap().success()
                );
            },
            &|| {
                // As many links, of other files.
                link("first", "two");
                link("second", "one");
            },
            &|| {
                // Nothing but the content.
                let time = file.metadata().unwrap().modified().unwrap();
                std::fs::write(&file, "contenT").unwrap();
                File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            },
            &|| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap(),
            &|| std::fs::remove_file(&file).unwrap(),
            &|| std::fs::write(other.join("more"), "").unwrap(),
            &|| {
                std::fs::remove_file(other.join("latest")).unwrap();
                std::os::unix::fs::symlink("backups/b2", other.join("latest")).unwrap();
            },
        ];
        for (number, fault) in faults.iter().enumerate() {
            copied();
            fault();
            assert!(compare(&one, &other).is_err(), "fault {number}");
        }
    }
}
