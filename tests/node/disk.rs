//! Disks: image files with XFS on them, copied whole, mounted where only one process sees it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::command::{Limit, checked};
use super::place::Place;

const LIMIT: Limit = Limit::of(60);

/// Makes an empty one. It takes as much of this machine's disk as is written on it.
pub fn make(image: &Path, bytes: u64, label: &str) -> Result<()> {
    File::create(image).and_then(|file| file.set_len(bytes)).with_context(|| format!("making {}", image.display()))?;
    checked(Command::new("mkfs.xfs").args(["-q", "-L", label]).arg(image), LIMIT).map(drop)
}

/// Copies one: shared with the original where this machine's file system can do that, else without the holes.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    checked(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).args([from, to]), Limit::of(300)).map(drop)
}

/// Mounts an image and returns its loop device. All copies of a disk have the same UUID.
pub fn mount(image: &Path, at: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
    checked(Command::new("mount").args(["-o", "loop,nouuid"]).args([image, at]), LIMIT)?;
    let device = checked(Command::new("findmnt").args(["--noheadings", "--output=SOURCE", "--mountpoint"]).arg(at), LIMIT)?;
    Ok(PathBuf::from(device.trim()))
}

/// Gives this thread, and what it starts, a mount namespace of its own.
pub fn own_mounts() -> Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: neither flag touches file descriptors or memory. The working directory is unshared with the namespace, for this thread alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.context("making a mount namespace: a node needs root")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making the mounts private")
}

/// Does something to the disk of a node that is off. `work` gets the place where it is mounted, on a thread of its own.
pub fn with<T: Send>(place: &Place, work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    let mounted = || {
        own_mounts()?;
        let at = place.sysroot();
        mount(&place.disk(), &at)?;
        let done = work(&at);
        // A process that another thread has just started holds this namespace until it has one of its own.
        let busy = || match unmount(&at, UnmountFlags::empty()) {
            Err(Errno::BUSY) => Ok(None),
            unmounted => unmounted.map(Some).context("unmounting the disk"),
        };
        let off = LIMIT.wait("the disk to be free", busy, || "something still has a file of it open".to_owned());
        done.and_then(|done| off.map(|()| done))
    };
    std::thread::scope(|scope| scope.spawn(mounted).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        .with_context(|| format!("working on {}", place.disk().display()))
}
