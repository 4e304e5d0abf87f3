//! Space and mount points, as this process sees them.
//!
//! What is mounted below a tree is never counted. (The old tool asked `du`, which does count it: 27 GB of pod volumes instead of 2 GB of
//! files.)

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change, mount_remount};

use super::Node;
use super::clock::interrupted;

/// Mounts of this process (`proc_pid_mountinfo(5)`). Only this file shows bind mounts of the same file system: their device is the same.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// One line of `mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as `statx` tells it too.
    pub id: u64,
    /// Which directory or file of the mounted file system is mounted.
    pub source_root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
}

/// The mounts of this process.
///
/// # Errors
/// When `mountinfo` cannot be read.
pub fn mounts() -> Result<Vec<Mount>> {
    let text = std::fs::read(MOUNTINFO).with_context(|| format!("reading {MOUNTINFO}"))?;
    Ok(parse(&text))
}

/// True when something is mounted right at `point`, a path without links.
///
/// # Errors
/// As [`mounts`].
pub fn is_mount_point(point: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.point == point))
}

/// Parses `mountinfo`: `id parent major:minor root mount-point options … - type source options`, blanks in paths as `\040`.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let mut fields = fields.skip(2);
            Some(Mount { id, source_root: unescape(fields.next()?), point: unescape(fields.next()?) })
        })
        .collect()
}

/// Does `work` while the node's mount at `point` is writable. Where that mount is read-only, as `/sysroot` of an ostree host is, `work`
/// runs in a thread with mounts of its own, where it is writable: no other process ever sees it so.
///
/// # Errors
/// Those of `work`; when the mounts cannot be made private, or the mount not writable.
pub fn writable<T: Send>(node: &Node, point: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let place = node.real_path(point);
    let read_only = rustix::fs::statvfs(&place).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    if !read_only {
        return work();
    }
    in_private(|| {
        mount_remount(&place, MountFlags::BIND, c"").with_context(|| format!("mounting {point} writable"))?;
        work()
    })
}

/// Does `work` in a thread with mounts of its own: no other process ever sees what it mounts or unmounts, and nothing of it is left when it ends, or
/// is killed. Programs that it runs see it.
///
/// # Errors
/// Those of `work`; when the mounts cannot be made private.
pub fn in_private<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let apart = || {
        // Only this thread leaves the common mounts, and it ends with the work.
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("making the mounts of a thread its own")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("keeping mounts private")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(apart).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Bytes free for root on the file system that holds `path`, and its size.
///
/// # Errors
/// When the file system cannot be asked.
pub fn space(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).with_context(|| format!("asking for the free space of {}", path.display()))?;
    Ok((stat.f_bfree.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// Bytes in the files below `path`, without crossing mounts (a file with several names counts once; sparse files by their blocks). What
/// vanishes meanwhile is not counted, nor is what lies so deep that its path is longer than Linux accepts: any pod can make such a path. A
/// `path` that does not exist is empty.
///
/// # Errors
/// When a directory cannot be read, or the agent is interrupted.
pub fn usage(path: &Path) -> Result<u64> {
    let Ok(top) = path.canonicalize() else { return Ok(0) };
    let points: HashSet<PathBuf> = mounts()?.into_iter().map(|mount| mount.point).filter(|point| *point != top).collect();
    let device = top.metadata().with_context(|| format!("looking at {}", top.display()))?.dev();
    let (mut bytes, mut seen, mut rest) = (0, HashSet::new(), vec![top]);
    while let Some(here) = rest.pop() {
        interrupted()?;
        // Checked before the entry is looked at: a dead mount may answer with an error, or never.
        if points.contains(&here) {
            continue;
        }
        let meta = match here.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if is_out_of_reach(&error) => continue,
            Err(error) => return Err(error).with_context(|| format!("looking at {}", here.display())),
        };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            for entry in entries(&here)? {
                rest.push(entry);
            }
        } else if meta.nlink() < 2 || seen.insert(meta.ino()) {
            bytes += meta.len().min(meta.blocks().saturating_mul(512));
        }
    }
    Ok(bytes)
}

/// It is gone, or its path is longer than `PATH_MAX`.
pub(crate) fn is_out_of_reach(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = match std::fs::read_dir(dir) {
        Ok(list) => list,
        Err(error) if is_out_of_reach(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", dir.display())),
    };
    list.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().with_context(|| format!("listing {}", dir.display()))
}

/// `\ooo` is a byte in octal.
fn unescape(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let octal = rest.get(1..4).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        if let (b'\\', Some(byte)) = (first, octal) {
            bytes.push(byte);
            rest = &rest[4..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_parsed_with_its_escapes() {
        let text = b"36 35 98:0 /mnt1 /mnt/with\\040blank rw,noatime master:1 - ext3 /dev/root rw\n\
            37 36 8:4 /ostree/deploy/rhcos/var/lib/kubelet/pods/u-1/etc-hosts /etc/hosts rw shared:1 - xfs /dev/vda4 rw\n";
        let mounts = parse(text);
        assert_eq!(mounts[0], Mount { id: 36, source_root: "/mnt1".into(), point: "/mnt/with blank".into() });
        assert_eq!(mounts[1].point, Path::new("/etc/hosts"));
        assert_eq!(mounts.len(), 2);
    }

    #[test]
    fn the_free_space_is_less_than_the_size() -> Result<()> {
        let (free, size) = space(Path::new("/"))?;
        assert!(free > 0 && free < size);
        Ok(())
    }
}
