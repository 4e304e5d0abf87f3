//! The packer: walks the tree, reads and hashes its files, and passes on the tar stream one frame at a time.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;

use super::header;
use super::holes::segments;
use super::reuse::{Group, Previous};
use super::sink::{Buffer, FRAME_SIZE, Sink};
use super::skipped::Skipped;
use super::walk::{Item, TRIES, Walk, cannot_hold};
use crate::archive::content::{Content, Sum};
use crate::archive::entry::Kind;
use crate::archive::found::Found;
use crate::archive::frames::Frames;
use crate::archive::index::{self, Record};
use crate::archive::tar::{BLOCK, EXISTENCE, INDEXED, Segments, padding};
use crate::archive::tree::Tree;
use crate::archive::work::Tick;
use crate::error::busy;
use crate::node::clock::interrupted;

/// When a sparse file has too many pieces, some are joined and the holes between them stored as zeros. At most three times what the file
/// holds may be added, and this many bytes more.
const MOST_FILLED: u64 = 1 << 30;

/// Turns a tree into the frames of an archive.
pub(super) struct Packer<'a, 'scope> {
    tree: &'a Tree,
    walk: Walk<'a>,
    pub(super) sink: Sink<'scope>,
    tick: Tick<'a>,
    pub(super) index: index::Writer,
    /// The frame that is being filled.
    frame: Buffer,
    first: bool,
    pub(super) skipped: Vec<(PathBuf, Skipped)>,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) reused: u64,
}

/// How reading a file ended.
enum Reading {
    /// The file was the same before and after.
    Steady(Sum),
    /// The file was written to meanwhile, but had as many bytes as expected.
    Changed(Sum),
    /// The file became shorter.
    Short,
}

impl<'a, 'scope> Packer<'a, 'scope> {
    pub(super) fn new(tree: &'a Tree, walk: Walk<'a>, sink: Sink<'scope>, tick: Tick<'a>) -> Result<Self> {
        let (index, frame) = (index::Writer::new()?, sink.buffer()?);
        Ok(Self { tree, walk, sink, tick, index, frame, first: true, skipped: Vec::new(), entries: 0, bytes: 0, reused: 0 })
    }

    /// Packs the whole tree.
    ///
    /// # Errors
    /// As [`pack`](super::pack); any error when the writer has failed.
    pub(super) fn run(&mut self, mut previous: Option<Previous>) -> Result<()> {
        let expected = |previous: &mut Option<Previous>, path: &[u8]| previous.as_mut().map_or(Ok(None), |older| older.expected(path));
        while let Some(item) = self.walk.next(&mut |path| expected(&mut previous, path))? {
            interrupted()?;
            let Some(previous) = &mut previous else {
                self.add(item)?;
                continue;
            };
            let met = previous.meet(item)?;
            met.pack.into_iter().try_for_each(|item| self.add(item))?;
            if let Some(group) = met.take {
                self.take(group, &previous.frames)?;
            }
        }
        for item in previous.map(Previous::finish).unwrap_or_default() {
            self.add(item)?;
        }
        self.skipped = self.walk.skipped();
        self.cut()
    }

    fn add(&mut self, mut item: Item) -> Result<()> {
        if !self.walk.is_linked(&item) {
            let Some(again) = self.walk.again(&item)? else {
                self.walk.leave_out(&item, Skipped::Vanished);
                return Ok(());
            };
            item = again;
        }
        let shown = self.tree.shown(&item.entry.path);
        if item.entry.kind == Kind::File && item.entry.size > 0 {
            self.add_file(item).with_context(|| format!("packing {shown}"))?;
        } else {
            let offset = self.header(&item, None).with_context(|| format!("packing {shown}"))?;
            self.record(item, Sum::default(), (self.sink.next_frame(), offset))?;
        }
        if self.frame.plain.len() >= FRAME_SIZE { self.cut() } else { Ok(()) }
    }

    /// Packs a file with content. If it changes meanwhile, it is read again; if it changes every time, it is packed as last read.
    fn add_file(&mut self, mut item: Item) -> Result<()> {
        for attempt in 1..=TRIES {
            if item.file.is_none() {
                let Some(again) = self.walk.again(&item)? else {
                    self.walk.leave_out(&item, Skipped::Vanished);
                    return Ok(());
                };
                item = again;
            }
            // It can meanwhile be empty, or have become a hard link.
            let Some(file) = item.file.take() else { return self.add(item) };
            let segments = if item.found.holes { segments(&file, item.entry.size).context("looking for holes")? } else { None };
            let stored = segments.as_ref().map_or(item.entry.size, |(segments, _)| segments.iter().map(|s| s.1).sum());
            if segments.as_ref().is_some_and(|(_, data)| stored > data.saturating_mul(4).saturating_add(MOST_FILLED)) {
                return Err(cannot_hold(&item.entry.path, "it is a sparse file with more pieces, farther apart, than an archive can hold"));
            }
            let segments = segments.map(|(segments, _)| segments);
            let large = stored > FRAME_SIZE as u64;
            let mark = self.frame.plain.len();
            if large {
                self.cut()?;
                self.sink.remember()?;
            }
            let place = self.sink.next_frame();
            let offset = self.header(&item, segments.as_ref())?;
            match self.content(&file, &item, segments.as_ref(), large)? {
                Reading::Steady(sum) => return self.end_file(item, sum, (place, offset), large),
                Reading::Changed(sum) if attempt == TRIES => {
                    self.walk.skip(&item.entry.path, Skipped::Restless);
                    return self.end_file(item, sum, (place, offset), large);
                }
                Reading::Changed(_) | Reading::Short => {}
            }
            self.go_back(large, mark)?;
            std::thread::sleep(Duration::from_millis(10 << attempt));
        }
        Err(busy("it became shorter each time it was read: run this again when it is at rest"))
    }

    /// Removes what was packed since `mark` in the frame or, for a large file, since the remembered place in the archive.
    fn go_back(&mut self, large: bool, mark: usize) -> Result<()> {
        if large {
            self.sink.rewind()?;
        }
        self.frame.plain.truncate(if large { 0 } else { mark });
        Ok(())
    }

    fn end_file(&mut self, item: Item, sum: Sum, place: (u32, u32), large: bool) -> Result<()> {
        self.record(item, sum, place)?;
        if large { self.cut() } else { Ok(()) }
    }

    /// Appends an entry's header to the frame; returns where in the frame it starts.
    fn header(&mut self, item: &Item, segments: Option<&Segments>) -> Result<u32> {
        let offset = u32::try_from(self.frame.plain.len())?;
        let mut comments = Vec::new();
        comments.extend(std::mem::take(&mut self.first).then_some(INDEXED));
        comments.extend(item.existence.then_some(EXISTENCE));
        header::encode(&item.entry, segments, &comments, &mut self.frame.plain)?;
        Ok(offset)
    }

    /// Appends a file's content, and hashes it.
    fn content(&mut self, file: &OwnedFd, item: &Item, segments: Option<&Segments>, large: bool) -> Result<Reading> {
        let whole = vec![(0, item.entry.size)];
        let mut content = Content::default();
        for (offset, len) in segments.unwrap_or(&whole) {
            let end = offset + len;
            let mut at = *offset;
            while at < end {
                if large && self.frame.plain.len() >= FRAME_SIZE {
                    interrupted()?;
                    self.cut()?;
                }
                let before = self.frame.plain.len();
                let want = usize::try_from(end - at).unwrap_or(usize::MAX);
                // As much as the buffer has room for, so a small file is read at once.
                self.frame.plain.reserve(if large { BLOCK } else { want });
                rustix::io::pread(file, spare_capacity(&mut self.frame.plain), at)?;
                self.frame.plain.truncate(before.saturating_add(want));
                let read = &self.frame.plain[before..];
                if read.is_empty() {
                    return Ok(Reading::Short);
                }
                content.add(at, read);
                at += read.len() as u64;
            }
            self.frame.plain.extend_from_slice(padding(*len));
        }
        let sum = content.finish(item.entry.size);
        let after = Found::of(file)?;
        if after.size < item.entry.size {
            return Ok(Reading::Short);
        }
        Ok(if item.found.is_unchanged(&after) { Reading::Steady(sum) } else { Reading::Changed(sum) })
    }

    fn record(&mut self, item: Item, Sum { hash, data }: Sum, (frame, offset): (u32, u32)) -> Result<()> {
        let Item { entry, found, existence, .. } = item;
        self.entries += 1;
        self.bytes += data;
        (self.tick)(data);
        self.index.add(Record { entry, existence, hash, data, frame, offset, inode: found.inode, ctime: found.ctime })
    }

    /// Ends the frame.
    fn cut(&mut self) -> Result<()> {
        if self.frame.plain.is_empty() {
            return Ok(());
        }
        let empty = self.sink.buffer()?;
        self.sink.frame(std::mem::replace(&mut self.frame, empty))
    }

    /// Takes over a group of the older archive, or packs it again when that is better.
    fn take(&mut self, group: Group, older: &Arc<Frames>) -> Result<()> {
        let frames = older.table().get(group.frames.start as usize..group.frames.end as usize).unwrap_or_default();
        let plain: u64 = frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
        // A small frame is packed again together with what is beside it; otherwise the number of small frames would grow with each backup.
        if plain < FRAME_SIZE as u64 / 4 || !group.items.iter().all(|item| self.walk.is_linked(item)) {
            return group.items.into_iter().try_for_each(|item| self.add(item));
        }
        self.cut()?;
        let base = self.sink.next_frame();
        group.frames.clone().try_for_each(|number| self.sink.copy(older, number))?;
        self.first = false;
        for record in group.records {
            self.entries += 1;
            self.bytes += record.data;
            self.reused += record.data;
            (self.tick)(record.data);
            self.index.add(Record { frame: base + (record.frame - group.frames.start), ..record })?;
        }
        Ok(())
    }
}
