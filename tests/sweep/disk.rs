//! A temporary directory that is quickly synced.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use testing::node::{PORTS, checked};

/// What is the temporary directory for the calling thread, and for all that it starts, until this is dropped: an ext4 in memory.
pub(crate) struct Disk {
    below: tempfile::TempDir,
    dir: Option<tempfile::TempDir>,
}

impl Disk {
    pub(crate) fn make() -> Result<Self> {
        // SAFETY: neither flag touches file descriptors or memory. The working directory is unshared with the namespace, for this thread alone.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.context("making a mount namespace: this needs root")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making the mounts private")?;
        let below = tempfile::tempdir()?;
        checked(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1g", "none"]).arg(below.path()))?;
        let image = below.path().join("ext4");
        std::fs::File::create(&image)?.set_len(800 << 20)?;
        checked(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1"]).arg(&image))?;
        // Which ports are taken by nodes is known all over the machine.
        let ports = std::env::temp_dir().join(PORTS);
        std::fs::create_dir_all(&ports)?;
        let everyones = std::fs::File::open(&ports)?;
        checked(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(std::env::temp_dir()))?;
        std::fs::create_dir(&ports)?;
        mount_bind(format!("/proc/self/fd/{}", everyones.as_raw_fd()), &ports).context("mounting the folder of ports")?;
        Ok(Self { below, dir: Some(tempfile::tempdir()?) })
    }

    /// A directory on it.
    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().map_or(self.below.path(), tempfile::TempDir::path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.dir = None;
        for mounted in [&std::env::temp_dir(), self.below.path()] {
            Command::new("umount").arg("-l").arg(mounted).status().ok();
        }
    }
}
