//! Taking over whole frames of an older archive of the same tree, unchanged, when nothing in them has changed.
//!
//! Nothing has changed when kind, metadata, size, inode and change time are all the same. Nobody can set the change time. Every write and
//! every change of metadata updates it, but of the stores through a memory mapping only the first one after the page was last written to
//! disk does. So a pack notes when it began and then syncs the file system before it reads anything there: every later store, through
//! whatever mapping, updates the change time to a later one. The kernel's clock ticks are coarse, so what had changed less than [`RACY`]
//! before the older backup began could have changed again within the same tick, and is read again.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::walk::Item;
use crate::archive::entry::{Kind, Time};
use crate::archive::frames::Frames;
use crate::archive::index::{Opened, Reader, Record};
use crate::archive::path::compare_paths;
use crate::error::{FailureKind, kind};
use crate::node::durable;

/// The resolution of the change time, seconds. Ticks last some milliseconds on local file systems, up to two seconds on the coarsest (FAT).
const RACY: i64 = 2;

/// An older archive, read in step with the walk through the tree.
pub(super) struct Previous {
    reader: Box<Reader>,
    pub(super) frames: Arc<Frames>,
    /// The records whose headers are in one frame; they are taken over together or not at all.
    group: Vec<Record>,
    /// The first record of the next group.
    ahead: Option<Record>,
    /// The unchanged items met so far: they are the group's first records.
    held: Vec<Item>,
    safe_before: Time,
}

/// The error when a frame of an older archive is not as it was written; then nothing is taken over from that archive.
#[derive(Debug, thiserror::Error)]
#[error("taking over a part of the previous archive")]
pub(super) struct Unusable;

/// What the packer should do after an item of the walk.
#[derive(Default)]
pub(super) struct Met {
    /// Items to pack now, in this order: they are new, or have changed, or something in the same frame has.
    pub(super) pack: Vec<Item>,
    /// A group to take over after that.
    pub(super) take: Option<Group>,
}

/// A whole group that is unchanged.
pub(super) struct Group {
    pub(super) items: Vec<Item>,
    pub(super) records: Vec<Record>,
    /// The frames that hold it, and nothing else.
    pub(super) frames: std::ops::Range<u32>,
}

impl Previous {
    /// Opens an older archive; `None`, with a line in the log, when nothing can be taken over from it.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`] when it is not a regular file, so it cannot be an archive: probably the wrong path was given.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        let open = || -> Result<Self> {
            let file = durable::open_regular(path).with_context(|| format!("opening the previous archive {}", path.display()))?;
            let mut reader = match Reader::open(&file)? {
                Opened::Index(reader) => reader,
                Opened::OfVersion(version) => bail!("its index is of version {version}, which this agent does not know"),
                Opened::Missing => bail!("it has no index"),
            };
            let frames = Arc::new(Frames::new(file, std::mem::take(&mut reader.head.frames)));
            let safe_before = Time { seconds: reader.head.started.seconds.saturating_sub(RACY), ..reader.head.started };
            let ahead = reader.next()?;
            Ok(Self { reader, frames, group: Vec::new(), ahead, held: Vec::new(), safe_before })
        };
        open().map(Some).or_else(|error| {
            if kind(&error) == FailureKind::Unsupported {
                return Err(error);
            }
            tracing::warn!("nothing is taken over from {}: {error:#}", path.display());
            Ok(None)
        })
    }

    /// What the older archive says of the file `path`, which the walk has reached; `None` if the file had changed just before that archive
    /// was made.
    pub(super) fn expected(&mut self, path: &[u8]) -> Result<Option<Record>> {
        self.pass_over(path)?;
        let next = self.group.get(self.held.len());
        Ok(next.filter(|r| r.entry.kind == Kind::File && r.entry.path == path && r.ctime < self.safe_before).cloned())
    }

    /// Compares the next item of the walk.
    pub(super) fn meet(&mut self, mut item: Item) -> Result<Met> {
        let mut met = Met::default();
        if !self.held.is_empty() && !self.goes_on_with(&item) {
            met.pack = std::mem::take(&mut self.held);
            self.next_group()?;
        }
        self.pass_over(&item.entry.path)?;
        if self.goes_on_with(&item) {
            // The file is closed: many items are held until it is known whether their group is taken over.
            item.file = None;
            self.held.push(item);
            if self.held.len() == self.group.len() {
                met.take = Some(self.whole_group());
            }
        } else {
            met.pack.push(item);
        }
        Ok(met)
    }

    /// The items still held at the end of the walk.
    pub(super) fn finish(self) -> Vec<Item> {
        self.held
    }

    /// Skips the groups that begin before `path`, unless we are in the middle of one. What the walk has passed without meeting is gone from
    /// the tree, so its group cannot be taken over.
    fn pass_over(&mut self, path: &[u8]) -> Result<()> {
        while self.held.is_empty() && self.group.first().is_none_or(|first| compare_paths(&first.entry.path, path).is_lt()) {
            if !self.next_group()? {
                break;
            }
        }
        Ok(())
    }

    fn goes_on_with(&self, item: &Item) -> bool {
        self.group.get(self.held.len()).is_some_and(|record| {
            item.entry == record.entry
                // The headers that older agents wrote lack the mark for an entry of which only the existence is recorded.
                && !item.existence
                && !record.existence
                && item.found.inode == record.inode
                && item.found.ctime == record.ctime
                && record.ctime < self.safe_before
        })
    }

    fn whole_group(&mut self) -> Group {
        let (items, records) = (std::mem::take(&mut self.held), std::mem::take(&mut self.group));
        let first = records.first().map_or(0, |record| record.frame);
        let all = u32::try_from(self.frames.table().len()).unwrap_or(u32::MAX);
        let end = self.ahead.as_ref().map_or(all, |next| next.frame);
        Group { items, records, frames: first..end }
    }

    /// Moves to the next group; false when there is none.
    fn next_group(&mut self) -> Result<bool> {
        self.group.clear();
        let Some(first) = self.ahead.take() else { return Ok(false) };
        let frame = first.frame;
        self.group.push(first);
        while let Some(record) = self.reader.next()? {
            if record.frame != frame {
                self.ahead = Some(record);
                break;
            }
            self.group.push(record);
        }
        Ok(true)
    }
}
