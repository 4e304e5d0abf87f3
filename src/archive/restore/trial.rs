//! Trying out, before anything is changed, what only the kernel knows: which attributes a file system supports, on which kind of file and
//! of which size; which owners, device numbers, sizes, lengths and numbers of names. Each different combination is made once, in the stage.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::make::make_empty;
use super::plan::Step;
use super::remove::{remove_all, unlink, unlock};
use super::stage::Stages;
use crate::archive::entry::Kind;
use crate::archive::file_system;
use crate::archive::inode::Inode;
use crate::archive::path::{join, shown, split};
use crate::archive::read::table::{Id, Table};
use crate::archive::select::STAGE;
use crate::error::misfit;
use crate::node::clock::interrupted;

/// The name in the stage of what is tried.
const TRIAL: &[u8] = b"trial";
/// Every file system supports a file of this size, holes included, and a link whose target has this length, bytes.
const USUAL_SIZE: u64 = 1 << 40;
const USUAL_TARGET: usize = 255;
/// Every file system of a node supports this many names of one file; one that supports [`MOST_NAMES`], more than the limits of others (ext4
/// 65,000, btrfs 65,535), supports any number.
const USUAL_NAMES: u32 = 30_000;
const MOST_NAMES: u32 = 70_000;

/// Tries what `steps` will make and set; `names` has the number of names of what gets several.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) with the entry and what the file system does not support of it; when anything
/// else cannot be set. A full disk is no error here: a later deletion may make room. The rest is tried all the same.
pub(super) fn run(table: &Table, stages: &Stages<'_>, steps: &[Step], names: &HashMap<Id, u32>) -> Result<()> {
    let (mut tried, mut owners) = (HashSet::new(), HashSet::new());
    // The current stage, and the longest name possible in it.
    let mut at: Option<(&[u8], OwnedFd, u64)> = None;
    for step in steps {
        let path = table.path(step.id);
        let root = stages.root_of(path);
        let (stage, longest) = match at.take() {
            Some((there, stage, longest)) if there == root => (stage, longest),
            _ => {
                let context = || format!("opening {}", shown(&join(root, STAGE)));
                let stage = stages.tree().list(&join(root, STAGE)).with_context(context)?;
                let longest = rustix::fs::fstatvfs(&stage).with_context(context)?.f_namemax;
                (stage, longest)
            }
        };
        let context = || format!("trying whether {} can be restored, before anything is changed", shown(path));
        let name = split(path).map_or(0, |(_, name)| name.len() as u64);
        if name > longest {
            return Err(does_not_take(&stage, &format!("a name of {name} bytes, only of up to {longest}"))).with_context(context);
        }
        let leader = table.leader(step.id);
        let (row, attributes, device) = (table.row(leader), table.attributes(leader), table.device(leader));
        // XFS accepts a smaller range of device numbers and shorter targets than the kernel, and ext4 smaller files.
        let large = Some(row.size).filter(|size| *size > USUAL_SIZE);
        let long = Some(table.target(leader).len()).filter(|len| *len > USUAL_TARGET);
        let many = names.get(&leader).copied().filter(|names| *names > USUAL_NAMES);
        let new_owner = owners.insert((root, attributes.uid, attributes.gid));
        if tried.insert((root, row.kind, device, large, long, many, &attributes.xattrs, attributes.flags)) || new_owner {
            interrupted()?;
            let done = many.map_or(Ok(()), |names| attempt_names(&stage, names)).and_then(|()| attempt(&stage, table, leader));
            remove_all(&stage, TRIAL, || Ok(())).context("clearing the stage")?;
            match done {
                Err(error) if is_full(&error) => {}
                done => done.with_context(context)?,
            }
        }
        at = Some((root, stage, longest));
    }
    Ok(())
}

fn attempt(stage: &OwnedFd, table: &Table, id: Id) -> Result<()> {
    let (row, attributes) = (table.row(id), table.attributes(id));
    unlink(stage, TRIAL, AtFlags::empty())?;
    make_empty(stage, TRIAL, table, id)
        .map_err(|error| not_taken(error, stage, &what(table, id)))
        .context("making an entry of its kind")?;
    if row.size > USUAL_SIZE {
        let file = rustix::fs::openat(stage, TRIAL, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let sized = rustix::fs::ftruncate(&file, row.size);
        sized.map_err(|error| not_taken(error, stage, &format!("a file of {} bytes", row.size))).context("making a file of its size")?;
    }
    let (uid, gid) = (attributes.uid, attributes.gid);
    let owned = rustix::fs::chownat(stage, TRIAL, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW);
    owned.map_err(|error| not_taken(error, stage, &format!("the owner {uid}:{gid}"))).context("setting the owner")?;
    let inode = Inode::open_own(stage, TRIAL, row.kind)?;
    inode.set_xattrs(&attributes.xattrs)?;
    if attributes.flags != 0 {
        inode.set_flags(attributes.flags)?;
        unlock(stage, TRIAL)?;
    }
    Ok(())
}

/// Gives a file this many names, and removes them again.
fn attempt_names(stage: &OwnedFd, names: u32) -> Result<()> {
    unlink(stage, TRIAL, AtFlags::empty())?;
    rustix::fs::mkdirat(stage, TRIAL, Mode::RWXU)?;
    let directory = Inode::open_own(stage, TRIAL, Kind::Directory)?.into_file();
    rustix::fs::mknodat(&directory, "0", FileType::RegularFile, Mode::RUSR, 0)?;
    for made in 1..names.min(MOST_NAMES) {
        interrupted()?;
        match rustix::fs::linkat(&directory, "0", &directory, made.to_string(), AtFlags::empty()) {
            Err(Errno::MLINK) => return Err(does_not_take(stage, &format!("{names} names of one file, only up to {made}"))),
            result => result.context("giving it a further name")?,
        }
    }
    remove_all(stage, TRIAL, interrupted)
}

/// The property of an entry that a file system may refuse, in words.
fn what(table: &Table, id: Id) -> String {
    let (major, minor) = table.device(id);
    match table.row(id).kind {
        Kind::Directory => "directories".to_owned(),
        Kind::Symlink => format!("a symbolic link to a path of {} bytes", table.target(id).len()),
        Kind::Fifo => "fifos".to_owned(),
        Kind::CharDevice | Kind::BlockDevice => format!("the device number {major}:{minor}"),
        Kind::File | Kind::HardLink => "files".to_owned(),
    }
}

/// The error when something sound cannot be made.
fn not_taken(error: Errno, stage: &OwnedFd, what: &str) -> anyhow::Error {
    match error {
        Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP | Errno::NAMETOOLONG | Errno::FBIG | Errno::OVERFLOW => does_not_take(stage, what),
        error => error.into(),
    }
}

fn does_not_take(stage: &OwnedFd, what: &str) -> anyhow::Error {
    misfit(format!(
        "the file system ({}) does not take {what}; restore to a file system of the kind from which the archive was made, or leave this \
         path out",
        file_system::name(stage)
    ))
}

fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref::<Errno>(), Some(&(Errno::NOSPC | Errno::DQUOT))))
}
