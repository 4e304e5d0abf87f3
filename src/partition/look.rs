//! What is on the node before a partition is made, and everything that forbids it. Nothing is changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};

use super::procedure::journal_of;
use super::table::{self, Room};
use super::{LABEL, contents, procedure};
use crate::error::{AndNext, Next, busy, by_hand, misfit, no_space, run, unsupported, usage};
use crate::node::block::{self, Disk};
use crate::node::recovery_mount::{self, configured, is_mounted, unit_name};
use crate::node::{Node, dir::RecoveryDir, hold, mounts};
use crate::session::Session;
use crate::tools::disk::{Signature, labelled, signature};
use crate::tools::needs::missing_program;
use crate::tools::sfdisk::{self, Table};

/// The programs that making a partition takes.
const PROGRAMS: [&str; 6] = ["sfdisk", "partx", "blkid", "mkfs.xfs", "cp", "systemctl"];
/// How much of the room for a file system is the file system's own, in thousandths: XFS has a log of up to 2 GiB, and less than this of the rest.
const OVERHEAD: u64 = 100;

/// A disk, with its table as it is on the disk.
#[derive(Debug, Clone)]
pub struct Found {
    /// As the kernel knows it.
    pub disk: Disk,
    /// As the table says; `None` on a disk without one.
    pub table: Option<Table>,
    /// The node runs from it.
    pub root: bool,
}

/// What may be done.
#[derive(Debug)]
pub enum Decision {
    /// There is such a partition, and it is what the recovery directory lies on.
    Nothing,
    /// This room can be made a partition.
    Make(Box<Found>, Room),
}

/// Where this process finds a device of the kernel's name.
#[must_use]
pub fn place_of(node: &Node, name: &str) -> PathBuf {
    node.path(Path::new("/dev").join(name))
}

/// The disk of this name, as it is.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when it is a partition; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported)
/// when it is put together from others; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is none.
pub fn find(node: &Node, device: &str) -> Result<Found> {
    let name = block::name_of(node, Path::new(device))?;
    if block::whole(node, &name) != name {
        return Err(usage(format!("{device} is a partition ({name}): name the disk")));
    }
    if ["dm-", "md"].iter().any(|kind| name.starts_with(kind)) {
        return Err(unsupported(format!("{device} is put together from other disks ({name}): a recovery partition lies on a disk itself")));
    }
    let disk = Disk::of(node, &name)?;
    let on_it = signature(node, &place_of(node, &name), None)?;
    if let Some(kind) = &on_it.kind {
        return Err(occupied(&format!("{device} as a whole"), kind, &format!("wipefs {}", place_of(node, &name).display())));
    }
    let table = on_it.table.is_some().then(|| sfdisk::table(node, &place_of(node, &name), disk.sector)).transpose()?;
    Ok(Found { root: block::root_disks(node).contains(&name), disk, table })
}

pub(super) fn occupied(where_: &str, kind: &str, command: &str) -> anyhow::Error {
    let what = match kind {
        "LVM2_member" => "belongs to LVM".to_owned(),
        "linux_raid_member" | "ddf_raid_member" | "isw_raid_member" => "belongs to a RAID".to_owned(),
        kind => format!("has the signature of {}", crate::report::words::line(kind)),
    };
    misfit(format!("{where_} {what}")).and_next(run(command, "shows it; whether it is needed is for a person to decide"))
}

/// Looks at everything.
///
/// # Errors
/// Whatever forbids it: see the tests, `tests/partition/refusals.rs`.
pub fn look(session: &Session<'_>, device: &str, size_mib: Option<u64>) -> Result<Decision> {
    let (node, dir) = (session.node, session.dir);
    if let Some(missing) = PROGRAMS.iter().find_map(|program| missing_program(node, program)) {
        return Err(missing.into());
    }
    let found = find(node, device);
    if let Some(decision) = already(node, dir, device, found.as_ref().ok())? {
        return Ok(decision);
    }
    let found = found?;
    at_rest(node, dir)?;
    alone(node, &found)?;
    let room = table::room(found.table.as_ref(), found.disk.size, size_mib)?;
    empty(node, &found, room)?;
    fits(dir, room)?;
    Ok(Decision::Make(Box::new(found), room))
}

/// Whether the recovery directory lies on a file system of its own already.
fn already(node: &Node, dir: &RecoveryDir, device: &str, found: Option<&Found>) -> Result<Option<Decision>> {
    let (shown, unit) = (dir.shown().display(), configured(node, dir)?);
    if !is_mounted(dir)? {
        let Some(unit) = unit else { return Ok(None) };
        let (file, what, when) = (unit.file.display(), &unit.what, unit.when());
        return Err(misfit(format!("{file} mounts {what} at {shown} {when}, and it is not mounted"))
            .and_next(run(format!("systemctl start {}", unit_name(dir.shown())), "mounts it")));
    }
    let on = block::disks_below(node, dir.shown());
    if !found.is_some_and(|found| on.contains(&found.disk.name)) {
        let disks = on.into_iter().collect::<Vec<_>>().join(", ");
        return Err(misfit(format!("{shown} lies on a file system of its own already, which is not on {device} but on {disks}"))
            .and_next(run("recovery partition status", "says what there is")));
    }
    recovery_mount::check(node, dir)?;
    if !unit.is_some_and(|unit| unit.linked) {
        return Err(misfit(format!("{shown} lies on a file system of its own on that disk, but nothing mounts it at every boot"))
            .and_next(by_hand(format!(
                "put systemd/var-recovery.mount into /etc/systemd/system and `systemctl enable {}`",
                unit_name(dir.shown())
            ))));
    }
    Ok(Some(Decision::Nothing))
}

/// Nothing may be at work in the recovery directory, nor may another file system be mounted in it.
pub(super) fn at_rest(node: &Node, dir: &RecoveryDir) -> Result<()> {
    if dir.in_recovery() {
        return Err(busy("a recovery is in progress").and_next(by_hand("run this again when it is over: `recovery status`")));
    }
    if let Some(old) = dir.old_recovery() {
        return Err(busy(old));
    }
    hold::check_run(node, dir)?;
    let real = dir.path().canonicalize().unwrap_or_else(|_| dir.path().to_owned());
    if let Some(inner) = mounts::mounts()?.into_iter().find(|mount| mount.point != real && mount.point.starts_with(&real)) {
        return Err(unsupported(format!("something is mounted at {}: it would not be moved along", node.shown(&inner.point).display())));
    }
    Ok(())
}

/// Nothing else may have the label, and nothing may be built on the disk.
fn alone(node: &Node, found: &Found) -> Result<()> {
    let Disk { name, read_only, holders, .. } = &found.disk;
    if *read_only {
        return Err(misfit(format!("nothing can be written to {name}: it is read-only")));
    }
    if !holders.is_empty() {
        return Err(misfit(format!("{name} is part of {}: LVM, RAID or several paths to it", holders.join(", "))));
    }
    let others: Vec<String> = labelled(node, LABEL)?.iter().map(|path| path.display().to_string()).collect();
    // One of that name in the table of the same disk is refused by the table, with what to do.
    let named =
        |number: u32| found.table.iter().flat_map(|table| &table.partitions).any(|part| part.number == number && part.name == LABEL);
    let own = |other: &String| found.disk.partitions.iter().any(|part| *other == format!("/dev/{}", part.name) && named(part.number));
    if let Some(other) = others.iter().find(|other| !own(other)) {
        return Err(misfit(format!("{other} is labelled `{LABEL}`: by that name only one is found"))
            .and_next(run(format!("lsblk --fs {other}"), "shows it; it may hold backups of before the node was installed again")));
    }
    // With a table, the partitions in use are left alone, and the kernel has their disk open because of them.
    if found.table.is_none() && open(place_of(node, name), OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()).is_err() {
        return Err(misfit(format!("{name} is in use: something has it mounted, or open for itself alone")));
    }
    Ok(())
}

/// Nothing that another tool knows may begin in the room.
fn empty(node: &Node, found: &Found, room: Room) -> Result<()> {
    let place = place_of(node, &found.disk.name);
    let Signature { kind, table, .. } = signature(node, &place, Some((room.start, room.size)))?;
    let Some(kind) = kind.or(table) else { return Ok(()) };
    let command = format!("blkid -p -O {} -S {} {}", room.start, room.size, place.display());
    Err(occupied("the room behind the last partition, which is free by the table,", &kind, &command))
}

/// What is there has to fit.
fn fits(dir: &RecoveryDir, room: Room) -> Result<()> {
    let there = mounts::usage(dir.path()).context("looking how much there is to move")?;
    let size = room.size / 1000 * (1000 - OVERHEAD);
    if there > size {
        return Err(no_space(format!("{} holds {} MiB, which do not fit on {} MiB", dir.shown().display(), there >> 20, room.size >> 20))
            .and_next(by_hand("a larger --size-mib, or `recovery prune --keep 1` first")));
    }
    Ok(())
}

/// What an interrupted `create` has left open, if it has.
#[must_use]
pub fn open_creation(node: &Node) -> Option<Next> {
    node.exists(Path::new(procedure::FOLDER).join("progress")).then(|| match procedure::Reading::of(&journal_of(node)) {
        Ok(Some(reading)) => run(format!("recovery partition create --device {}", reading.beginning.device), "goes on with it"),
        _ => run("recovery partition create", "says what is wrong with its journal"),
    })
}

/// Bytes that lie out of sight below the mount at the recovery directory: what `create` has moved and not yet removed.
///
/// # Errors
/// When it cannot be looked at.
pub fn below(dir: &RecoveryDir) -> Result<u64> {
    if is_mounted(dir)? { contents::below(dir.path()) } else { Ok(0) }
}
