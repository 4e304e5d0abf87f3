//! Trying attributes out before anything is changed: only the kernel knows which a file system takes, on which kind of file, and how much of
//! them. Each different set of extended attributes and flags is set once, on something of the same kind in the stage.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::entry::{Kind, join, shown};
use super::plan::Step;
use super::remove::{remove_all, unlink, unlock};
use super::stage::{STAGE, Stages};
use super::table::{Id, Table};
use super::tree::Inode;
use crate::node::clock::interrupted;

/// What is made in the stage.
const TRIAL: &[u8] = b"trial";

/// Tries what `steps` are going to set.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) naming the entry and what the file system does not take of it; when anything else cannot be
/// set. A full disk is none: what is deleted later may make room.
pub(super) fn run(table: &Table, stages: &Stages<'_>, steps: &[Step]) -> Result<()> {
    let mut tried = HashSet::new();
    for step in steps {
        let leader = table.leader(step.id);
        let (kind, attributes) = (table.row(leader).kind, table.attributes(leader));
        // XFS takes smaller device numbers than the kernel does.
        let device = table.device(leader);
        if attributes.xattrs.is_empty() && attributes.flags == 0 && device == (0, 0) {
            continue;
        }
        let root = stages.root_of(table.path(step.id));
        if !tried.insert((root, kind, device, &attributes.xattrs, attributes.flags)) {
            continue;
        }
        interrupted()?;
        let stage = stages.tree().list(&join(root, STAGE)).with_context(|| format!("opening {}", shown(&join(root, STAGE))))?;
        let done = attempt(&stage, table, leader);
        remove_all(&stage, TRIAL, || Ok(())).context("clearing the stage")?;
        match done {
            Err(error) if is_full(&error) => return Ok(()),
            done => done.with_context(|| format!("trying what {} is to have, before anything is changed", shown(table.path(step.id))))?,
        }
    }
    Ok(())
}

fn attempt(stage: &OwnedFd, table: &Table, id: Id) -> Result<()> {
    let (kind, attributes) = (table.row(id).kind, table.attributes(id));
    let special = |kind| {
        let (major, minor) = table.device(id);
        rustix::fs::mknodat(stage, TRIAL, kind, Mode::RUSR, rustix::fs::makedev(major, minor))
    };
    unlink(stage, TRIAL, AtFlags::empty())?;
    match kind {
        Kind::Directory => rustix::fs::mkdirat(stage, TRIAL, Mode::RWXU),
        Kind::Symlink => rustix::fs::symlinkat(table.target(id), stage, TRIAL),
        Kind::Fifo => special(FileType::Fifo),
        Kind::CharDevice => special(FileType::CharacterDevice),
        Kind::BlockDevice => special(FileType::BlockDevice),
        Kind::File | Kind::HardLink => special(FileType::RegularFile),
    }
    .context("making something of its kind")?;
    let inode = Inode::open(stage, TRIAL, kind)?;
    inode.set_xattrs(&attributes.xattrs)?;
    if attributes.flags != 0 {
        inode.set_flags(attributes.flags)?;
        unlock(stage, TRIAL)?;
    }
    Ok(())
}

fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<Errno>(), Some(&(Errno::NOSPC | Errno::DQUOT))))
}
