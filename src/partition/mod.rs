//! The recovery partition: room for the recovery directory that no failed root file system takes with it.
//!
//! # Modules
//!
//! Pure, for a node that is yet to be installed: this page (what is [`Wanted`]), [`ignition`] (an Ignition configuration), [`machineconfig`] (the same as
//! a `MachineConfig`), [`siteconfig`] (put into the entry of a node in a `SiteConfig` or `ClusterInstance`, everything else in that file as it was).
//! Pure too, for a node that runs: [`table`] (a partition table, where a new partition fits, both in a picture of text).
//! Acting: [`look`] (what is on the node), [`procedure`] and [`create`] (the steps), [`contents`] (what is moved onto the partition), [`status`].
//!
//! # Data flow
//!
//! ```text
//! command line → Wanted → ignition ─┬→ printed
//!                                   ├→ machineconfig → printed
//!                                   └→ siteconfig: merged into a file, in place
//!
//! node → look (tools::disk, node::block) → table: plan or refusal → picture → consent
//!      → journal (engine) → table → kernel → file-system → move → mount → old
//! ```
//!
//! `create` is carried out by the [engine](crate::engine). Its journal is below `/var/lib/recovery`, because the recovery directory is what is moved.
//! Each step asks the node whether it is done. The one instant that counts is the rename of the mount unit, at the end of `move`: before it every boot
//! has the recovery directory where it was, after it on the partition, where everything has been read back. The old copy goes last, from below the mount.
//!
//! # Tests
//!
//! `tests/partition`: what is generated is compared in meaning with the original guide's two files and validated by Ignition's own Go module (Ignition
//! reads a configuration with the code that is called there), the unit by `systemd-analyze verify`; disks are loop devices with real `sfdisk`, `partx`
//! and `mkfs.xfs`; the agent is killed at each line of its journal, and before and after each program that changes something, and runs again in the same
//! boot or after a reboot, for which everything is unmounted: what was written and not synced is not lost in that.

pub mod contents;
pub mod create;
pub mod ignition;
pub mod look;
pub mod machineconfig;
pub mod procedure;
pub mod siteconfig;
pub mod status;
pub mod table;

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};

use crate::error::{AndNext, by_hand, usage};
pub use crate::node::recovery_mount::LABEL;

/// The smallest partition, MiB: XFS has to be larger than 300, and it has to hold a backup and the one before.
pub const LEAST: u64 = 1024;
/// The largest number of MiB that is taken: 8 EiB, which no disk has.
const MOST: u64 = 8 << 40;
/// The folder of names that stay the same when disks are added or found in another order (`udev(7)`).
const STABLE: [&str; 2] = ["/dev/disk/by-id", "/dev/disk/by-path"];

/// A recovery partition on a node that is yet to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The disk.
    pub device: String,
    /// Where it starts; in the largest gap of the disk unless given.
    pub start_mib: Option<u64>,
    /// Its size.
    pub size_mib: u64,
    /// The recovery directory.
    pub dir: PathBuf,
}

impl Wanted {
    /// Checks what was asked for. With `force`, a name that may be another disk's tomorrow is taken.
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for what cannot be meant.
    pub fn new(device: &Path, start_mib: Option<u64>, size_mib: u64, dir: &Path, force: bool) -> Result<Self> {
        let device = named(device, force)?;
        if !(LEAST..MOST).contains(&size_mib) {
            return Err(usage(format!("--size-mib {size_mib}: a recovery partition has at least {LEAST} MiB")));
        }
        if start_mib.is_some_and(|start| start == 0 || start >= MOST) {
            return Err(usage("--start-mib begins at 1: the first MiB holds the partition table"));
        }
        Ok(Self { device, start_mib, size_mib, dir: dir.to_owned() })
    }
}

/// The name of a disk, checked: absolute, nothing in it that a shell or a file of YAML takes for something else, and stable unless `force`.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage).
pub fn named(device: &Path, force: bool) -> Result<String> {
    let check = || -> Result<String> {
        let Some(name) = device.to_str() else { bail!("it is not text") };
        if !device.starts_with("/dev") || device.components().any(|part| part == Component::ParentDir) || name.ends_with('/') {
            bail!("a disk is below /dev");
        }
        if let Some(odd) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "/_.:@+=-".contains(*c))) {
            bail!("it has the character {odd:?}, which no stable name of a disk has");
        }
        let last = name.rsplit('/').next().unwrap_or_default();
        if let Some((disk, number)) = last.rsplit_once("-part")
            && !disk.is_empty()
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            bail!("this is a partition: name the disk");
        }
        Ok(name.to_owned())
    };
    let name = check().map_err(|why| usage(format!("--device {}: {why}", device.display())))?;
    if force || STABLE.iter().any(|folder| device.starts_with(folder) && device != Path::new(folder)) {
        return Ok(name);
    }
    Err(usage(format!("--device {name}: such a name may be another disk's after the next boot")).and_next(by_hand(
        "name it below /dev/disk/by-id or /dev/disk/by-path (`ls -l /dev/disk/by-id` on the node); --force takes the name as it is",
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn names_that_may_change_and_names_of_other_things_are_refused() {
        for good in
            ["/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", "/dev/disk/by-path/pci-0000:18:00.0-scsi-0:2:1:0", "/dev/disk/by-id/nvme-eui.0025_1"]
        {
            assert_eq!(named(Path::new(good), false).unwrap(), good);
        }
        for unstable in ["/dev/sda", "/dev/nvme0n1", "/dev/disk/by-label/x", "/dev/disk/by-id"] {
            assert_eq!(exit_code(&named(Path::new(unstable), false).unwrap_err()), 2, "{unstable}");
        }
        assert_eq!(named(Path::new("/dev/sda"), true).unwrap(), "/dev/sda");
        for bad in ["/dev/disk/by-id/x-part1", "/dev/../etc", "sda", "/etc/x", "/dev/disk/by-id/a b", "/dev/disk/by-id/a'b", "/dev/sda/"] {
            assert_eq!(exit_code(&named(Path::new(bad), true).unwrap_err()), 2, "{bad}");
        }
    }

    #[test]
    fn sizes_have_bounds() {
        let wanted = |start, size| Wanted::new(Path::new("/dev/disk/by-id/x"), start, size, Path::new("/var/recovery"), false);
        assert!(wanted(Some(1), LEAST).is_ok() && wanted(None, 40960).is_ok());
        for (start, size) in [(Some(0), LEAST), (None, LEAST - 1), (None, u64::MAX), (Some(u64::MAX), LEAST)] {
            assert_eq!(exit_code(&wanted(start, size).unwrap_err()), 2, "{start:?} {size}");
        }
    }
}
