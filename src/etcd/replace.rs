//! The recovery's restore, in place: the new member directory is built beside the live one, inside the data directory (which can be a
//! mount of its own), and takes its place by two renames.
//!
//! What a crash can leave, and what [`replace`] does when it is run again with the same run id:
//!
//! | in the data directory | means | done |
//! |---|---|---|
//! | `member`, `member.new-RUN` without marker | the crash was while building | built afresh |
//! | `member`, `member.new-RUN` with marker | built, nothing renamed | both renames |
//! | `member.before-RUN`, `member.new-RUN` with marker | between the renames | the second rename |
//! | `member` with this run's marker | done | nothing; etcd may have run on it since |
//!
//! The marker is the last thing written into the new directory, so its presence says that everything before it is on disk. etcd ignores
//! it. Other files in the data directory are left alone.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;

use super::data_dir::{self, MEMBER, NEW, beginning_with, exists};
use super::restore::build;
use super::{Options, Restored, Tick, wal};
use crate::error::{FailureKind, kind, usage};
use crate::formats;
use crate::formats::member::{self, FORMAT, RestoredV1, V1};
use crate::node::{durable, selinux};

/// The marker's name in the new member directory.
const MARKER: &str = FORMAT.name;

impl From<Restored> for RestoredV1 {
    fn from(Restored { member_id, cluster_id, name, revision }: Restored) -> Self {
        Self { member_id, cluster_id, name, revision }
    }
}

impl From<RestoredV1> for Restored {
    fn from(RestoredV1 { member_id, cluster_id, name, revision }: RestoredV1) -> Self {
        Self { member_id, cluster_id, name, revision }
    }
}

/// The directories of one run.
struct Place {
    data_dir: PathBuf,
    run: String,
    member: PathBuf,
    new: PathBuf,
    before: PathBuf,
}

impl Place {
    fn new(data_dir: &Path, run: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if run.is_empty() || !run.chars().all(plain) {
            return Err(usage(format!("the run id `{run}` cannot be part of a file name")));
        }
        let (member, new) = (data_dir.join(MEMBER), data_dir.join(format!("{NEW}{run}")));
        let before = data_dir::before(data_dir, run);
        Ok(Self { data_dir: data_dir.to_owned(), run: run.to_owned(), member, new, before })
    }

    /// What the marker of this run in a member directory says was restored; `None` without a marker that can be read.
    ///
    /// # Errors
    /// When the marker is of a newer version: the member may be whole, and must not be built again.
    fn marker(&self, member: &Path) -> Result<Option<Restored>> {
        let Ok(json) = std::fs::read(member.join(MARKER)) else { return Ok(None) };
        match member::read(&json) {
            Ok(marker) => Ok((marker.run == self.run).then(|| marker.restored.into())),
            Err(error) if kind(&error) == FailureKind::Unsupported => Err(error.context(format!("looking at {}", member.display()))),
            Err(_) => Ok(None),
        }
    }

    /// Everything in the data directory whose name begins with that of `path`.
    fn like(&self, path: &Path) -> Result<Vec<PathBuf>> {
        beginning_with(&self.data_dir, path.file_name().unwrap_or_default().as_encoded_bytes())
    }

    /// Fails while etcd runs on `member`: bbolt holds a lock on its database.
    fn check_stopped(&self) -> Result<()> {
        let path = self.member.join("snap/db");
        let Ok(db) = File::open(&path) else { return Ok(()) };
        match rustix::fs::flock(&db, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("etcd is running on {}: stop it first (`crictl stop` its container)", self.data_dir.display())
            }
            _ => Ok(()),
        }
    }

    /// Puts `member` aside, whatever it is, and moves the new directory into its place.
    fn swap(&self) -> Result<()> {
        if exists(&self.member) {
            // The first member that was put aside is the old one. There can be a second one only if something made a new `member` between
            // the two renames; nothing is deleted here.
            let aside = self.like(&self.before)?.len();
            let name = if aside == 0 { self.before.clone() } else { data_dir::before(&self.data_dir, &format!("{}.{aside}", self.run)) };
            durable::rename(&self.member, &name)?;
        }
        durable::rename(&self.new, &self.member)
    }
}

/// Restores in place; see [`super::replace()`].
pub(super) fn replace(file: &Path, data_dir: &Path, run: &str, options: &Options, tick: Tick<'_>) -> Result<Restored> {
    options.validate()?;
    let place = Place::new(data_dir, run)?;
    if let Some(restored) = place.marker(&place.member)? {
        // It may have been killed after the last rename and before that was on disk.
        durable::sync_dir(data_dir)?;
        return Ok(restored);
    }
    place.check_stopped()?;
    if !exists(data_dir) {
        durable::create_dir(data_dir, 0o700)?;
    }
    let restored = match place.marker(&place.new)? {
        Some(restored) => restored,
        None => make(&place, file, options, tick).with_context(|| format!("restoring {} into {}", file.display(), data_dir.display()))?,
    };
    place.swap()?;
    Ok(restored)
}

/// Builds the new directory, up to its marker. Leaves nothing behind when it fails.
fn make(place: &Place, file: &Path, options: &Options, tick: Tick<'_>) -> Result<Restored> {
    // Other half-built members can be built again, and their space is needed now.
    for left in beginning_with(&place.data_dir, NEW.as_bytes())? {
        durable::remove_tree(&left)?;
    }
    let look = Look::of(if exists(&place.member) { &place.member } else { &place.data_dir })?;
    let build = || -> Result<Restored> {
        let (restored, _) = build(file, &place.new, options, tick)?;
        let marker = V1 { run: place.run.clone(), restored: restored.clone().into() };
        super::set_mode(&place.new, look.mode)?;
        for part in ["snap/db", "snap", &format!("wal/{}", wal::NAME), "wal", ""] {
            look.give(&place.new.join(part))?;
        }
        // The marker gets its name only with its content, owner and label: its presence says that all else is done.
        let part = place.new.join(format!("{MARKER}.part"));
        super::new_file(&part)?.write_all(&formats::to_json(&marker)?)?;
        look.give(&part)?;
        durable::rename(&part, &place.new.join(MARKER))?;
        Ok(restored)
    };
    let made = build();
    if made.is_err() {
        durable::remove_tree(&place.new)?;
    }
    made
}

/// True when the new member of this run is in place; see [`super::is_replaced`].
pub(super) fn is_replaced(data_dir: &Path, run: &str) -> bool {
    Place::new(data_dir, run).and_then(|place| place.marker(&place.member)).is_ok_and(|restored| restored.is_some())
}

/// Removes what was put aside; see [`super::drop_kept`].
pub(super) fn drop_kept(data_dir: &Path, run: &str, earlier: &[String]) -> Result<()> {
    let place = Place::new(data_dir, run)?;
    if !exists(data_dir) {
        return Ok(());
    }
    let mut kept = place.like(&place.before)?;
    ensure!(
        kept.is_empty() || place.marker(&place.member)?.is_some(),
        "{} does not hold the member that run {run} restored: {} stays, as it may be the only copy",
        data_dir.display(),
        place.before.display()
    );
    for run in earlier {
        kept.extend(place.like(&Place::new(data_dir, run)?.before)?);
    }
    kept.iter().chain([&place.new]).try_for_each(|path| durable::remove_tree(path))
}

/// Owner, mode and security label of a directory, which a new one is to have too.
struct Look {
    owner: u32,
    group: u32,
    mode: u32,
    label: Option<Vec<u8>>,
}

impl Look {
    fn of(path: &Path) -> Result<Self> {
        let meta = path.metadata().with_context(|| format!("looking at {}", path.display()))?;
        let label = selinux::label(&path.canonicalize().with_context(|| format!("looking at {}", path.display()))?)?;
        Ok(Self { owner: meta.uid(), group: meta.gid(), mode: meta.mode() & 0o7777, label })
    }

    /// Gives owner and label to a file or directory, durably; its mode stays.
    fn give(&self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.owner), Some(self.group))
            .with_context(|| format!("giving {} to user {} and group {}", path.display(), self.owner, self.group))?;
        if let Some(label) = &self.label {
            selinux::set_label(path, label)?;
        }
        File::open(path).and_then(|file| file.sync_all()).with_context(|| format!("syncing {}", path.display()))
    }
}
