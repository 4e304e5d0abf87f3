//! Packing a tree: one thread walks, reads and hashes; others compress; another writes, and another reads back what is on the disk.
//!
//! Reading order: [`walk`] (the tree, one item after the other), [`skipped`] (why it leaves something out), [`holes`] (where a file has data),
//! [`header`] (an entry as tar), [`reuse`] (what is taken over from an older archive), [`packer`] (from items to frames), [`sink`] (from
//! frames to the file), [`mod@read_back`] (back from the disk); here, the archive as a whole.

mod holes;
mod packer;
mod read_back;
mod reuse;
mod sink;
mod skipped;
mod walk;

pub(super) mod header;

use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use sha2::Digest;

use self::packer::Packer;
use self::read_back::{ReadBack, read_back, read_back_tail};
use self::reuse::{Previous, Unusable};
use self::sink::{Sink, Written};
use self::walk::Walk;
use super::entry::Time;
use super::found::Found;
use super::select::Selection;
use super::tree::Tree;
use super::work::Tick;
use super::{index, read};
use crate::error::usage;
use crate::node::durable;
use crate::report::paths;

pub use self::skipped::Skipped;

/// What `pack` made.
#[derive(Debug, Clone, Serialize)]
pub struct Packed {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of file content, without holes.
    pub bytes: u64,
    /// Size of the archive file, bytes.
    pub stored: u64,
    /// SHA-256 of the archive file, hex.
    pub sha256: String,
    /// How many of `bytes` were taken over from the previous archive without reading them.
    pub reused: u64,
    /// Paths that are not in the archive, and why: sockets, the content of mount points, the archive itself, and what vanished while it was
    /// being read. Also files that changed all the time; these were packed as last read. Nothing else is ever left out.
    #[serde(serialize_with = "paths::with_reasons")]
    pub skipped: Vec<(PathBuf, Skipped)>,
}

/// Packs a tree into `file` (0600). `previous` is an older archive of the same tree from which unchanged parts are taken; it may be `file`
/// itself.
///
/// The archive is made beside `file`, synced, and renamed when it is whole; until then, and after a failure, the old file stays as it is.
/// The archive is read back from the disk before this returns. Mount points below the tree are not entered. A file that changes while it is
/// read is read again.
///
/// # Errors
/// When something in the tree cannot be read, or the archive cannot be written.
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when an archive cannot hold something (leaving it out would make a
/// restore delete it), or `previous` is not a regular file; a `previous` that is missing or damaged is ignored.
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) when a file becomes shorter each time it is read.
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when something other than a file is in the archive's place.
pub fn pack(tree: &Path, file: &Path, selection: &Selection, previous: Option<&Path>, tick: Tick<'_>) -> Result<Packed> {
    let before = replaceable(file)?;
    let opened = Tree::open(tree)?;
    let older = previous.map_or(Ok(None), Previous::open)?;
    // It has another name until it is whole; the old file keeps its content and is read as `previous`.
    let new = durable::beside(file)?;
    let archive = create(&new).with_context(|| format!("making the archive {}", new.display()))?;
    let pack = |older| pack_into(&opened, &archive, before, selection, older, tick);
    let packed = pack(older).or_else(|error| {
        if error.downcast_ref::<Unusable>().is_none() {
            return Err(error);
        }
        tracing::warn!("all of {} is packed again: {error:#}", tree.display());
        pack(None)
    });
    let packed = packed.with_context(|| format!("packing {} into {}", tree.display(), file.display()));
    packed.and_then(|packed| durable::rename(&new, file).map(|()| packed)).inspect_err(|_| {
        // A partial archive is of no use; only the error matters.
        let _ = std::fs::remove_file(&new);
    })
}

/// The file that an archive at `path` will replace; `None` when there is none. An error for anything else, such as a device or a link.
fn replaceable(path: &Path) -> Result<Option<Found>> {
    match path.symlink_metadata() {
        Ok(there) if there.is_file() => Ok(Some(Found::of(File::open(path).with_context(|| format!("opening {}", path.display()))?)?)),
        Ok(_) => Err(usage(format!("{} exists and is not a regular file: name another place for the archive", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Makes a file that did not exist before; one that a killed pack left is removed.
fn create(path: &Path) -> Result<File> {
    durable::remove(path)?;
    Ok(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?)
}

fn pack_into(
    tree: &Tree,
    file: &File,
    before: Option<Found>,
    selection: &Selection,
    previous: Option<Previous>,
    tick: Tick<'_>,
) -> Result<Packed> {
    // Taken before the walk syncs the file systems: see [`reuse`].
    let started = now();
    let walk = Walk::new(tree, selection, [Some(Found::of(file)?), before]);
    let (packer, written) = std::thread::scope(|scope| {
        let sink = Sink::start(scope, file, ReadBack::start(scope, file));
        let mut packer = Packer::new(tree, walk, sink, tick)?;
        let ended = packer.run(previous);
        let Packer { sink, index, skipped, entries, bytes, reused, .. } = packer;
        // When both have failed, the packer's error is a consequence of the writer's.
        let (written, reader) = sink.finish()?;
        let written = (written, reader.finish()?);
        ended.map(|()| ((index, skipped, entries, bytes, reused), written))
    })?;
    let (index, skipped, entries, bytes, reused) = packer;
    let (stored, sha256) = finish(file, index, started, written.0, written.1)?;
    // Whatever happened in the tree meanwhile, the finished archive must open.
    read::check_index(file).context("opening the archive that was made")?;
    Ok(Packed { entries, bytes, stored, sha256, reused, skipped })
}

/// Writes what follows the data, makes the file durable, and reads back all but the first `checked` frames, which are checked already.
/// Returns the file's size and its SHA-256.
fn finish(file: &File, index: index::Writer, started: Time, mut written: Written, checked: usize) -> Result<(u64, String)> {
    let tail = index.finish(started, written.frames.clone(), written.end)?;
    file.write_all_at(&tail, written.end).context("writing the index")?;
    written.sha256.update(&tail);
    let stored = written.end + tail.len() as u64;
    file.set_len(stored).context("setting the length of the archive")?;
    file.sync_all().context("syncing the archive")?;
    read_back(file, &written.frames[checked..])?;
    read_back_tail(file, written.end, &tail)?;
    let digest = written.sha256.finalize();
    let mut hex = String::with_capacity(64);
    digest.iter().try_for_each(|byte| write!(hex, "{byte:02x}"))?;
    Ok((stored, hex))
}

fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0) }
}
