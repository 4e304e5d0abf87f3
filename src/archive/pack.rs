//! Packing a tree: one thread walks, reads and hashes; others compress; another writes (see [`super::sink`]).

use std::fmt::Write;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use sha2::Digest;

use super::check::{Checker, read_back, read_back_tail};
use super::content::{Content, Sum, segments};
use super::entry::{Kind, Time};
use super::frames::Frames;
use super::header::{self, BLOCK, Segments};
use super::index::{self, Record};
use super::reuse::{Group, Previous, Unusable};
use super::select::Selection;
use super::sink::{Buffer, FRAME, Sink, Written};
use super::tree::{Found, Tree};
use super::walk::{Item, TRIES, VANISHED, Walk, cannot_hold};
use super::{Archive, Packed, Tick};
use crate::error::{busy, usage};
use crate::node::clock::interrupted;
use crate::node::durable;

/// So many bytes of holes, and three times what a file holds, are stored as zeros when it has more pieces than an archive takes.
const MOST_FILLED: u64 = 1 << 30;

/// Packs a tree: see [`super::pack()`].
pub(super) fn pack(tree: &Path, path: &Path, selection: &Selection, previous: Option<&Path>, tick: Tick<'_>) -> Result<Packed> {
    let before = replaceable(path)?;
    let opened = Tree::open(tree)?;
    let older = previous.and_then(Previous::open);
    // Under another name until it is whole: what is there keeps its content and is read as `previous`.
    let new = durable::beside(path)?;
    let file = create(&new).with_context(|| format!("making the archive {}", new.display()))?;
    let pack = |older| pack_into(&opened, &file, before, selection, older, tick);
    let packed = pack(older).or_else(|error| {
        if error.downcast_ref::<Unusable>().is_none() {
            return Err(error);
        }
        tracing::warn!("all of {} is packed again: {error:#}", tree.display());
        pack(None)
    });
    let packed = packed.with_context(|| format!("packing {} into {}", tree.display(), path.display()));
    packed.and_then(|packed| durable::rename(&new, path).map(|()| packed)).inspect_err(|_| {
        // What is there is of no use to anyone; the error is what matters.
        let _ = std::fs::remove_file(&new);
    })
}

/// What is at `path`, where an archive is to be: nothing, or a file that it replaces. A device or a link would be replaced too.
fn replaceable(path: &Path) -> Result<Option<Found>> {
    match path.symlink_metadata() {
        Ok(there) if there.is_file() => Ok(Some(Found::of(File::open(path).with_context(|| format!("opening {}", path.display()))?)?)),
        Ok(_) => Err(usage(format!("{} is there and is not a file: name another place for the archive", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Makes a file that is there for us alone; one that was left by a pack that was killed goes.
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
    // Before the walk syncs what it comes to: see [`super::reuse`].
    let started = now();
    let walk = Walk::new(tree, selection, [Some(Found::of(file)?), before]);
    let (packer, written) = std::thread::scope(|scope| {
        let sink = Sink::start(scope, file, Checker::start(scope, file));
        let mut packer = Packer::new(tree, walk, sink, tick)?;
        let ended = packer.run(previous);
        let Packer { sink, index, skipped, entries, bytes, reused, .. } = packer;
        // When both have failed, the writer's error is the cause of the other.
        let (written, checker) = sink.finish()?;
        let written = (written, checker.finish()?);
        ended.map(|()| ((index, skipped, entries, bytes, reused), written))
    })?;
    let (index, skipped, entries, bytes, reused) = packer;
    let (stored, sha256) = finish(file, index, started, written.0, written.1)?;
    // Whatever happened in the tree meanwhile: what is handed over is an archive that opens.
    Archive::open_indexed(file).context("opening the archive that was made")?.context("opening the archive that was made: its index")?;
    Ok(Packed { entries, bytes, stored, sha256, reused, skipped })
}

/// Writes what follows the data, makes the file durable, and reads back all but the first `checked` frames, which were already; the file's
/// size and its SHA-256.
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

struct Packer<'a, 'scope> {
    tree: &'a Tree,
    walk: Walk<'a>,
    sink: Sink<'scope>,
    tick: Tick<'a>,
    index: index::Writer,
    /// The frame that is being filled.
    frame: Buffer,
    first: bool,
    skipped: Vec<(PathBuf, String)>,
    entries: u64,
    bytes: u64,
    reused: u64,
}

/// How reading a file ended.
enum Reading {
    /// It was the same before and after.
    Steady(Sum),
    /// It was written to meanwhile, but there was as much of it as expected.
    Changed(Sum),
    /// It became shorter.
    Short,
}

impl<'a, 'scope> Packer<'a, 'scope> {
    fn new(tree: &'a Tree, walk: Walk<'a>, sink: Sink<'scope>, tick: Tick<'a>) -> Result<Self> {
        let (index, frame) = (index::Writer::new()?, sink.buffer()?);
        Ok(Self { tree, walk, sink, tick, index, frame, first: true, skipped: Vec::new(), entries: 0, bytes: 0, reused: 0 })
    }

    fn run(&mut self, mut previous: Option<Previous>) -> Result<()> {
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
                self.walk.leave_out(&item, VANISHED);
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
        if self.frame.plain.len() >= FRAME { self.cut() } else { Ok(()) }
    }

    /// Packs a file with content. One that changes meanwhile is read again; one that never rests is taken as it was read last.
    fn add_file(&mut self, mut item: Item) -> Result<()> {
        for attempt in 1..=TRIES {
            if item.file.is_none() {
                let Some(again) = self.walk.again(&item)? else {
                    self.walk.leave_out(&item, VANISHED);
                    return Ok(());
                };
                item = again;
            }
            // By now it can be empty, or another name of something.
            let Some(file) = item.file.take() else { return self.add(item) };
            let segments = if item.found.holes { segments(&file, item.entry.size).context("looking for holes")? } else { None };
            let stored = segments.as_ref().map_or(item.entry.size, |(segments, _)| segments.iter().map(|s| s.1).sum());
            if segments.as_ref().is_some_and(|(_, data)| stored > data.saturating_mul(4).saturating_add(MOST_FILLED)) {
                return Err(cannot_hold(&item.entry.path, "it is a sparse file of more and farther pieces than an archive can hold"));
            }
            let segments = segments.map(|(segments, _)| segments);
            let large = stored > FRAME as u64;
            let mark = self.frame.plain.len();
            if large {
                self.cut()?;
                self.sink.mark()?;
            }
            let place = self.sink.next_frame();
            let offset = self.header(&item, segments.as_ref())?;
            match self.content(&file, &item, segments.as_ref(), large)? {
                Reading::Steady(sum) => return self.end_file(item, sum, (place, offset), large),
                Reading::Changed(sum) if attempt == TRIES => {
                    self.walk.skip(&item.entry.path, "is written to all the time: it was packed as it was read last");
                    return self.end_file(item, sum, (place, offset), large);
                }
                Reading::Changed(_) | Reading::Short => {}
            }
            self.go_back(large, mark)?;
            std::thread::sleep(Duration::from_millis(10 << attempt));
        }
        Err(busy("it became shorter each time it was read: run this again when it is at rest"))
    }

    /// Forgets what was packed since `mark` in the frame, or, of a large file, since the mark in the archive.
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

    /// Appends an entry's header to the frame; where it starts there.
    fn header(&mut self, item: &Item, segments: Option<&Segments>) -> Result<u32> {
        let offset = u32::try_from(self.frame.plain.len())?;
        header::encode(&item.entry, segments, self.first, &mut self.frame.plain)?;
        self.first = false;
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
                if large && self.frame.plain.len() >= FRAME {
                    interrupted()?;
                    self.cut()?;
                }
                let before = self.frame.plain.len();
                let want = usize::try_from(end - at).unwrap_or(usize::MAX);
                // A buffer's spare room, or for a small file all of it.
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
            self.frame.plain.extend_from_slice(header::padding(*len));
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
        self.index.add(&Record { entry, existence, hash, data, frame, offset, inode: found.inode, ctime: found.ctime })
    }

    /// Ends the frame.
    fn cut(&mut self) -> Result<()> {
        if self.frame.plain.is_empty() {
            return Ok(());
        }
        let empty = self.sink.buffer()?;
        self.sink.frame(std::mem::replace(&mut self.frame, empty))
    }

    /// Takes over a group of the older archive, or packs it when that is not worth while.
    fn take(&mut self, group: Group, older: &Arc<Frames>) -> Result<()> {
        let frames = older.table().get(group.frames.start as usize..group.frames.end as usize).unwrap_or_default();
        let plain: u64 = frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
        // A small frame is packed again, with what is beside it: else there would be ever more of them.
        if plain < FRAME as u64 / 4 || !group.items.iter().all(|item| self.walk.is_linked(item)) {
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
            self.index.add(&Record { frame: base + (record.frame - group.frames.start), ..record })?;
        }
        Ok(())
    }
}
