//! Makes a [`Table`] of an archive's entries: checks every name, and finds the target of every hard link.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use anyhow::{Context, Result};

use super::table::{CompactRow, Id, More, Table};
use crate::archive::content::Sum;
use crate::archive::entry::{Attributes, ENTRY, Entry, Kind, LARGEST_TABLE};
use crate::archive::index::Record;
use crate::archive::path::{compare_paths, is_below, shown, split};
use crate::error::{damaged, unsupported};
use crate::node::clock::interrupted;

/// Makes a [`Table`].
#[derive(Debug, Default)]
pub(super) struct Builder {
    table: Table,
    /// The attributes in the table, by their hash.
    known: HashMap<u64, u32>,
    hasher: RandomState,
    /// The hard links whose targets will be looked up when all entries are known: row, place in the stream, target.
    links: Vec<(u32, Vec<u8>)>,
    /// The row of each hard link and of its target, once the targets have been looked up.
    followers: Vec<(Id, Id)>,
    /// The memory that everything added so far takes.
    weight: u64,
}

impl Builder {
    /// Adds an entry of an index; these come sorted.
    pub(super) fn add_record(&mut self, record: Record) -> Result<()> {
        let path = &record.entry.path;
        let odd = |why: &str| damaged(format!("the index of the archive is hostile or damaged: {} {why}", shown(path)));
        if let Some(last) = self.table.rows.last()
            && compare_paths(self.table.path_of(last), path).is_ge()
        {
            return Err(odd("is out of order, or is there twice"));
        }
        if record.data > record.entry.size {
            return Err(odd("holds more than its size"));
        }
        let sum = Sum { hash: record.hash, data: record.data };
        self.add(record.entry, record.existence, sum, (record.frame, record.offset))
    }

    /// Adds an entry of an archive without an index; `place` is its number in the stream.
    pub(super) fn add_member(&mut self, mut entry: Entry, existence: bool, sum: Sum, place: u32) -> Result<()> {
        if entry.kind == Kind::HardLink {
            // A hard link has the attributes of its target, and every tar takes them from there.
            entry.attributes = Attributes::default();
        }
        self.add(entry, existence, sum, (place, 0))
    }

    fn add(&mut self, entry: Entry, existence: bool, sum: Sum, (frame, offset): (u32, u32)) -> Result<()> {
        entry.validate()?;
        if entry.path.is_empty() && entry.kind != Kind::Directory {
            return Err(damaged("the archive is hostile: the root of the tree is not a directory in it"));
        }
        let id = u32::try_from(self.table.rows.len()).ok().filter(|id| *id < u32::MAX / 2).context("the archive has too many entries")?;
        let path_start = u32::try_from(self.table.paths.len()).context("the names in the archive are too long in all")?;
        self.table.paths.extend_from_slice(&entry.path);
        let entry_weight = entry.weight();
        let more = match entry.kind {
            Kind::Symlink => {
                self.table.targets.push(entry.target.into());
                More::Target(u32::try_from(self.table.targets.len() - 1)?)
            }
            Kind::HardLink => {
                self.links.push((id, entry.target));
                More::Nothing
            }
            Kind::CharDevice | Kind::BlockDevice => More::Device(entry.device.0, entry.device.1),
            Kind::File if entry.size > 0 => {
                self.table.contents.push((entry.size, sum));
                More::Content(u32::try_from(self.table.contents.len() - 1)?)
            }
            _ => More::Nothing,
        };
        let attributes = self.attributes(entry.attributes)?;
        self.weigh(entry_weight)?;
        self.table.bytes = self.table.bytes.saturating_add(sum.data);
        self.table.rows.push(CompactRow {
            path_start,
            path_len: u16::try_from(entry.path.len())?,
            kind: entry.kind,
            existence,
            attributes,
            end: id + 1,
            seconds: entry.mtime.seconds,
            nanoseconds: entry.mtime.nanoseconds,
            frame,
            offset,
            more,
        });
        Ok(())
    }

    /// Counts the memory that an entry takes.
    fn weigh(&mut self, weight: u64) -> Result<()> {
        self.weight += weight;
        if self.weight > LARGEST_TABLE {
            return Err(unsupported(format!(
                "the names and attributes in the archive take more than {} MiB of memory, which is the limit: unpack it with tar",
                LARGEST_TABLE >> 20
            )));
        }
        Ok(())
    }

    /// The place of these attributes in the table.
    fn attributes(&mut self, attributes: Attributes) -> Result<u32> {
        let key = self.hasher.hash_one(&attributes);
        if let Some(known) = self.known.get(&key).filter(|at| self.table.attributes[**at as usize] == attributes) {
            return Ok(*known);
        }
        let next = u32::try_from(self.table.attributes.len())?;
        self.weight += attributes.weight();
        self.table.attributes.push(attributes);
        self.known.insert(key, next);
        Ok(next)
    }

    /// The table of an archive with an index: every parent must be in it.
    ///
    /// # Errors
    /// As [`Builder::finish_stream`].
    pub(super) fn finish_index(mut self) -> Result<Table> {
        self.known = HashMap::new();
        self.nest()?;
        self.link()?;
        Ok(self.table)
    }

    /// The table of an archive without an index, where entries can be in any order and parents can be missing. Also the row of each of the
    /// `members` in the stream, or `None` when a later one has replaced it.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when something is below an entry that is not a directory, or when the target of a hard link does not come
    /// before it in the stream; `FailureKind::Unsupported` when something else replaces a directory that is not empty.
    pub(super) fn finish_stream(mut self, members: u32) -> Result<(Table, Vec<Option<Id>>)> {
        self.sort();
        self.refuse_replaced()?;
        self.take_last()?;
        self.add_parents()?;
        self.nest()?;
        self.known = HashMap::new();
        for (id, leader) in std::mem::take(&mut self.followers) {
            self.table.rows[id as usize].more = More::Leader(leader);
        }
        self.table.bytes = self.table.ids().fold(0, |bytes: u64, id| bytes.saturating_add(self.table.row(id).sum.data));
        let mut rows = vec![None; members as usize];
        for id in self.table.ids() {
            if let Some(row) = rows.get_mut(self.table.compact(id).frame as usize) {
                *row = Some(id);
            }
        }
        Ok((self.table, rows))
    }

    /// Sorts the rows by path; rows of the same path stay in the order of the stream.
    fn sort(&mut self) {
        let mut order: Vec<Id> = self.table.ids().collect();
        let table = &self.table;
        order.sort_by(|a, b| compare_paths(table.path(*a), table.path(*b)).then(table.compact(*a).frame.cmp(&table.compact(*b).frame)));
        self.arrange(&order);
    }

    /// Keeps the rows in `order`, in that order.
    fn arrange(&mut self, order: &[Id]) {
        let mut place = vec![Id::MAX; self.table.rows.len()];
        for (new, old) in (0..).zip(order) {
            place[*old as usize] = new;
        }
        self.links.iter_mut().for_each(|(id, _)| *id = place[*id as usize]);
        self.followers.iter_mut().for_each(|(id, leader)| (*id, *leader) = (place[*id as usize], place[*leader as usize]));
        self.table.rows = order.iter().map(|old| *self.table.compact(*old)).collect();
    }

    /// Refuses an archive in which something else replaces a directory that already has something in it, as `tar -r` can add it: tar itself
    /// fails there. The rows are sorted.
    fn refuse_replaced(&self) -> Result<()> {
        let paths = |pair: &[CompactRow]| (self.table.path_of(&pair[0]), self.table.path_of(&pair[1]));
        let is_replaced = |pair: &&[CompactRow]| {
            let (path, below) = paths(pair);
            pair[0].kind != Kind::Directory && pair[1].frame < pair[0].frame && is_below(below, path)
        };
        let Some((path, below)) = self.table.rows.windows(2).find(is_replaced).map(paths) else { return Ok(()) };
        Err(unsupported(format!(
            "in the archive, {} is replaced by something other than a directory after {}, which is in it: unpack it with `tar \
             --recursive-unlink`, and pack the tree anew",
            shown(path),
            shown(below)
        )))
    }

    /// Keeps the last of several entries of the same path, as if tar had unpacked them one after the other; the rows are sorted. A hard
    /// link leads to what its target was at that point, and keeps that content when the target is replaced later.
    fn take_last(&mut self) -> Result<()> {
        self.links.sort_unstable_by_key(|(id, _)| self.table.compact(*id).frame);
        let mut objects: HashMap<Id, Id> = HashMap::new();
        for (id, target) in std::mem::take(&mut self.links) {
            let now = self.table.compact(id).frame;
            let before =
                self.table.rows.partition_point(|row| compare_paths(self.table.path_of(row), &target).then(row.frame.cmp(&now)).is_lt());
            let found = before.checked_sub(1).filter(|at| self.table.path_of(&self.table.rows[*at]) == target);
            let found = u32::try_from(found.ok_or_else(|| self.loose_link(id, &target))?)?;
            if self.table.compact(found).kind == Kind::Directory {
                return Err(self.refused_link(id, &target, "which is a directory"));
            }
            objects.insert(id, objects.get(&found).copied().unwrap_or(found));
        }
        let is_last = |id: &Id| *id + 1 == self.table.ids().end || self.table.path(*id) != self.table.path(*id + 1);
        let last: Vec<Id> = self.table.ids().filter(is_last).collect();
        // For each content whose own name was replaced later, by its row: the hard link that keeps the content.
        let mut heirs: HashMap<Id, Id> = HashMap::new();
        for id in &last {
            let Some(object) = objects.get(id).copied() else { continue };
            let leader = if is_last(&object) { object } else { *heirs.entry(object).or_insert(*id) };
            if leader != *id {
                self.followers.push((*id, leader));
            }
        }
        for (object, heir) in heirs {
            let CompactRow { path_start, path_len, .. } = *self.table.compact(heir);
            self.table.rows[heir as usize] = CompactRow { path_start, path_len, ..*self.table.compact(object) };
        }
        self.arrange(&last);
        Ok(())
    }

    fn loose_link(&self, id: Id, target: &[u8]) -> anyhow::Error {
        let there = self.table.rows.binary_search_by(|row| compare_paths(self.table.path_of(row), target)).is_ok();
        self.refused_link(id, target, if there { "which does not come before it" } else { "which is not in it" })
    }

    fn refused_link(&self, id: Id, target: &[u8], why: &str) -> anyhow::Error {
        let path = shown(self.table.path(id));
        damaged(format!("the archive is hostile or damaged: {path} is a hard link to {}, {why}", shown(target)))
    }

    /// Adds the missing parent directories of a stream, each with the time of the first entry below it. The rows are sorted and stay so.
    /// The path of such a directory is stored as the beginning of the path below it, and counts in the limit as if it were in the archive.
    fn add_parents(&mut self) -> Result<()> {
        let attributes = self.attributes(Attributes { mode: 0o755, ..Attributes::default() })?;
        let members = std::mem::take(&mut self.table.rows);
        let mut place: Vec<Id> = Vec::with_capacity(members.len());
        // The rows from the root to the current directory.
        let mut above: Vec<CompactRow> = Vec::new();
        for member in members {
            interrupted()?;
            let path = self.table.path_of(&member);
            while above.last().is_some_and(|top| !is_below(path, self.table.path_of(top))) {
                above.pop();
            }
            let root = Some(0).filter(|_| !path.is_empty());
            let slashes = (0..member.path_len).zip(path).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
            let missing = |len: &u16| above.last().is_none_or(|top| top.kind == Kind::Directory && top.path_len < *len);
            let parents: Vec<u16> = root.into_iter().chain(slashes).filter(missing).collect();
            for path_len in parents {
                self.weigh(ENTRY as u64 + u64::from(path_len))?;
                let (kind, existence, frame, offset, more) = (Kind::Directory, true, u32::MAX, 0, More::Nothing);
                let parent = CompactRow { path_len, kind, existence, attributes, frame, offset, more, ..member };
                above.push(parent);
                self.table.rows.push(parent);
            }
            place.push(u32::try_from(self.table.rows.len())?);
            above.push(member);
            self.table.rows.push(member);
        }
        self.followers.iter_mut().for_each(|(id, leader)| (*id, *leader) = (place[*id as usize], place[*leader as usize]));
        Ok(())
    }

    /// Sets the end of each row, and checks that every parent is a directory.
    fn nest(&mut self) -> Result<()> {
        // The directories from the root to the current one.
        let mut above: Vec<Id> = Vec::new();
        for id in self.table.ids() {
            interrupted()?;
            while let Some(top) = above.last().filter(|top| !is_below(self.table.path(id), self.table.path(**top))) {
                self.table.rows[*top as usize].end = id;
                above.pop();
            }
            let path = self.table.path(id);
            if let Some(top) = above.last()
                && self.table.compact(*top).kind != Kind::Directory
            {
                let top = shown(self.table.path(*top));
                return Err(damaged(format!("the archive is hostile: {} is below {top}, which is not a directory", shown(path))));
            }
            let parent = split(path).map(|(parent, _)| parent);
            if parent != above.last().map(|top| self.table.path(*top)) {
                let parent = shown(parent.unwrap_or_default());
                return Err(damaged(format!("the index of the archive is hostile or damaged: the directory {parent} is missing")));
            }
            above.push(id);
        }
        let end = self.table.ids().end;
        for id in above {
            self.table.rows[id as usize].end = end;
        }
        Ok(())
    }

    /// Finds the targets of hard links in an archive with an index.
    fn link(&mut self) -> Result<()> {
        let place = |row: &CompactRow| u64::from(row.frame) << 32 | u64::from(row.offset);
        self.links.sort_unstable_by_key(|(id, _)| place(self.table.compact(*id)));
        for (id, target) in std::mem::take(&mut self.links) {
            let refuse = |why: &str| self.refused_link(id, &target, why);
            let found = self.table.find(&target).ok_or_else(|| refuse("which is not in it"))?;
            let row = self.table.compact(found);
            if place(row) >= place(self.table.compact(id)) || row.existence {
                return Err(refuse("which does not come before it"));
            }
            let leader = self.table.leader(found);
            if self.table.compact(leader).kind == Kind::Directory {
                return Err(refuse("which is a directory"));
            }
            self.table.rows[id as usize].more = More::Leader(leader);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::entry::Time;
    use crate::error::exit_code;

    fn entry(path: &str, kind: Kind, target: &str) -> Entry {
        let (attributes, mtime) = (Attributes::default(), Time::default());
        Entry { path: path.into(), kind, attributes, mtime, size: 0, target: target.into(), device: (0, 0) }
    }

    fn table(entries: &[(&str, Kind, &str)]) -> Result<(Table, Vec<Option<Id>>)> {
        let mut builder = Builder::default();
        for (place, (path, kind, target)) in (0..).zip(entries) {
            builder.add_member(entry(path, *kind, target), false, Sum::default(), place)?;
        }
        builder.finish_stream(u32::try_from(entries.len())?)
    }

    #[test]
    fn a_row_is_as_small_as_is_said() {
        assert_eq!((size_of::<CompactRow>(), size_of::<(u64, Sum)>()), (48, 48));
    }

    #[test]
    fn a_stream_in_any_order_becomes_a_walk() -> Result<()> {
        let (table, rows) = table(&[
            ("z", Kind::File, ""),
            ("a/b/c", Kind::File, ""),
            ("a.x", Kind::File, ""),
            ("a", Kind::Directory, ""),
            ("y", Kind::HardLink, "z"),
        ])?;
        let paths: Vec<_> = table.paths().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a.x", "y", "z"]);
        assert_eq!(rows, [6, 3, 4, 1, 5].map(Some));
        assert_eq!(table.children(0).collect::<Vec<_>>(), [1, 4, 5, 6]);
        assert_eq!(table.children(1).collect::<Vec<_>>(), [2]);
        assert!(table.row(2).existence && !table.row(1).existence);
        assert_eq!(table.leader(5), 6);
        assert_eq!(table.find(b"a/b/c"), Some(3));
        assert_eq!(table.find(b"nowhere"), None);
        Ok(())
    }

    #[test]
    fn hostile_trees_are_refused() {
        use Kind::{Directory, File, HardLink, Symlink};
        let cases: [&[(&str, Kind, &str)]; 7] = [
            &[("d", File, ""), ("d", Directory, ""), ("a", HardLink, "d")],
            &[("a", Symlink, "/etc"), ("a/passwd", File, "")],
            &[("a", File, ""), ("a/b/c", File, "")],
            &[("a", HardLink, "b")],
            &[("a", HardLink, "b"), ("b", File, "")],
            &[("a", HardLink, "a")],
            &[("d", Directory, ""), ("a", HardLink, "d")],
        ];
        for case in cases {
            assert_eq!(exit_code(&table(case).unwrap_err()), 65, "{case:?}");
        }
    }
}
