//! Making something new, in a directory that nobody else uses.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, OFlags};

use crate::archive::entry::Kind;
use crate::archive::read::table::{Id, Table};

/// Makes something of the same kind as an entry, without its content and attributes.
pub(super) fn make_empty(stage: &OwnedFd, name: &[u8], table: &Table, id: Id) -> rustix::io::Result<()> {
    let special = |kind| {
        let (major, minor) = table.device(id);
        rustix::fs::mknodat(stage, name, kind, Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor))
    };
    match table.row(id).kind {
        Kind::Directory => rustix::fs::mkdirat(stage, name, Mode::RWXU),
        Kind::Symlink => rustix::fs::symlinkat(table.target(id), stage, name),
        Kind::Fifo => special(FileType::Fifo),
        Kind::CharDevice => special(FileType::CharacterDevice),
        Kind::BlockDevice => special(FileType::BlockDevice),
        Kind::File | Kind::HardLink => special(FileType::RegularFile),
    }
}

/// Makes a file, and opens it for writing.
pub(super) fn create(stage: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(stage, name, flags, Mode::RUSR | Mode::WUSR).context("creating it")
}

/// Writes all of `bytes` at `offset`.
pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::pwrite(file, bytes, offset).context("writing it")?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}
