//! What a power cut takes: all that the node's file systems have not yet written to their disks.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::makedev;

use super::command::{Limit, checked};
use super::place::Place;

/// Has each XFS of a node that is on forget what it has not written (`shutdown` of `xfs_io`): from now on nothing reaches the disks through it.
pub fn lose(place: &Place) -> Result<()> {
    let (devices, mut lost, mut seen) = (devices(place)?, BTreeSet::new(), BTreeSet::new());
    // Whoever has it mounted: the agent looks at a new file system in a mount namespace of its own.
    for task in tasks()? {
        let Ok(namespace) = std::fs::read_link(task.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        for line in std::fs::read_to_string(task.join("mountinfo")).unwrap_or_default().lines() {
            let mut fields = line.split(' ').skip(2);
            let (Some(device), Some(_), Some(point)) = (fields.next().and_then(number), fields.next(), fields.next()) else { continue };
            let at = task.join("root").join(point.trim_start_matches('/'));
            // Another file system may be mounted over it.
            let is_it = || at.metadata().is_ok_and(|meta| meta.is_dir() && meta.dev() == device);
            if devices.contains(&device) && !lost.contains(&device) && is_it() {
                checked(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&at), Limit::of(30))?;
                lost.insert(device);
            }
        }
    }
    ensure!(!lost.is_empty(), "no file system of the node in {} is mounted", place.dir().display());
    Ok(())
}

/// The block devices whose bytes are in a file of this node: its loop devices and their partitions. No other is ever shut down.
fn devices(place: &Place) -> Result<BTreeSet<u64>> {
    let mut devices = BTreeSet::new();
    for disk in std::fs::read_dir("/sys/class/block")? {
        let disk = disk?.path();
        let Ok(file) = std::fs::read_to_string(disk.join("loop/backing_file")) else { continue };
        if !Path::new(file.trim()).starts_with(place.dir()) {
            continue;
        }
        for part in std::iter::once(disk.clone()).chain(std::fs::read_dir(&disk)?.flatten().map(|entry| entry.path())) {
            devices.extend(std::fs::read_to_string(part.join("dev")).ok().and_then(|text| number(text.trim())));
        }
    }
    Ok(devices)
}

fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Every thread of this machine.
fn tasks() -> Result<Vec<PathBuf>> {
    let mut tasks = Vec::new();
    for process in std::fs::read_dir("/proc").context("listing processes")?.flatten() {
        if process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            tasks.extend(std::fs::read_dir(process.path().join("task")).into_iter().flatten().flatten().map(|task| task.path()));
        }
    }
    Ok(tasks)
}
