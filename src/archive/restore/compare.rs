//! Comparing a tree on disk with an archive. Only what must be read is read, and even access times stay as they are.
//!
//! Each thread looks at a directory, or at a part of a large one. Large files come first, so that the end does not wait for one of them.
//! The result is a set of differences for each row of the table, and a list of what the archive does not have.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::io::Errno;

use crate::archive::content::{Content, Hash};
use crate::archive::entry::Kind;
use crate::archive::found::Found;
use crate::archive::inode::{Inode, next_data};
use crate::archive::path::{LONGEST_PATH, is_below, join, shown, split};
use crate::archive::read::table::{Id, Table};
use crate::archive::select::{Selection, Standing};
use crate::archive::tree::{Tree, names};
use crate::archive::work::{self, Pile, Tick};
use crate::archive::xattrs::LABEL;
use crate::error::{misfit, usage};
use crate::node::clock::interrupted;

/// How a path differs, as bits. [`SEEN`] means that something is there; alone, that it is equal.
pub(super) type Differences = u16;
pub(super) const SEEN: Differences = 1;
pub(super) const KIND: Differences = 1 << 1;
pub(super) const CONTENT: Differences = 1 << 2;
pub(super) const TARGET: Differences = 1 << 3;
pub(super) const DEVICE: Differences = 1 << 4;
/// It is another inode than it should be, or shares one that it should not share.
pub(super) const LINK: Differences = 1 << 5;
pub(super) const MODE: Differences = 1 << 6;
pub(super) const OWNER: Differences = 1 << 7;
pub(super) const MTIME: Differences = 1 << 8;
pub(super) const XATTRS: Differences = 1 << 9;
pub(super) const FLAGS: Differences = 1 << 10;

/// Whether a restore deletes what the archive does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Delete it: the tree becomes equal to the archive.
    Delete,
    /// Keep it (`extras.tar.zst`).
    Keep,
}

/// A directory that goes and is more levels down goes whole: any pod can nest thousands, and their paths are as long as they are many. A real tree has
/// some ten, so that what is in it is told.
const DEEP: usize = 64;
/// Files from this size on are compared first.
const LARGE: u64 = 4 << 20;
/// How many names of a directory make one piece of work.
const NAMES_AT_ONCE: usize = 64;
/// Files are read in pieces of this many bytes: they fit the processor's cache, where they are hashed.
const CHUNK: usize = 256 << 10;

/// A path that the archive does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surplus {
    pub(super) path: Vec<u8>,
    pub(super) directory: bool,
    /// It is a directory whose content is not listed: it is deleted with everything below it.
    pub(super) whole: bool,
    pub(super) flags: u8,
}

/// An inode with several names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    pub(super) id: Id,
    pub(super) inode: ((u32, u32), u64),
    pub(super) links: u32,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) differences: Vec<Differences>,
    /// What the archive does not have, in an order in which it can be deleted.
    pub(super) surplus: Vec<Surplus>,
    pub(super) shared: Vec<Shared>,
    /// Mount points that are also in the archive; their content does not belong to the tree.
    pub(super) mounts: Vec<Id>,
    /// Directories on the way to a selected path at which another file system begins.
    pub(super) crossed: Vec<Vec<u8>>,
}

/// What a comparison uses.
pub(super) struct Comparer<'a> {
    pub(super) table: &'a Table,
    pub(super) tree: &'a Tree,
    pub(super) selection: &'a Selection,
    pub(super) extra: Extra,
    pub(super) tick: Tick<'a>,
    /// The leaders of hard links: see [`super::plan::leaders`].
    pub(super) leaders: &'a HashMap<Id, Id>,
    /// True when the archive has security labels, so that they are compared.
    pub(super) labelled: bool,
    /// The archive's own file.
    pub(super) archive: Found,
}

enum Task {
    /// A row that is compared alone.
    Single(Id),
    Directory(Id),
    /// Some of the names in a directory, with their rows.
    Batch(Arc<(OwnedFd, Found)>, Vec<(Vec<u8>, Id)>),
    Surplus(Vec<u8>),
}

struct Scan<'a> {
    with: &'a Comparer<'a>,
    differences: Vec<AtomicU16>,
    found: Mutex<Comparison>,
}

impl Comparer<'_> {
    /// Compares the tree with the archive.
    ///
    /// # Errors
    /// When something cannot be read, or a mount point would have to be deleted.
    pub(super) fn run(&self) -> Result<Comparison> {
        let differences = self.table.ids().map(|_| AtomicU16::new(0)).collect();
        let scan = Scan { with: self, differences, found: Mutex::new(Comparison::default()) };
        // The last item is done first, so the largest files come first.
        let mut items: Vec<Task> = Vec::new();
        if self.table.len() > 0 && self.selection.standing(b"") != Standing::Outside {
            items.push(Task::Single(0));
            let mut large: Vec<Id> = self.table.ids().filter(|id| self.is_large(*id)).collect();
            large.sort_by_key(|id| self.table.row(*id).size);
            items.extend(large.into_iter().map(Task::Single));
        }
        work::run(items, || Ok(vec![0; CHUNK]), |buffer, item, pile| scan.work(buffer, item, pile))?;
        let mut found = scan.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.differences = scan.differences.into_iter().map(AtomicU16::into_inner).collect();
        found.shared.sort_by_key(|shared| shared.id);
        Ok(found)
    }

    /// True for a file that is large enough to be compared alone, before everything else.
    fn is_large(&self, id: Id) -> bool {
        let row = self.table.row(id);
        row.kind == Kind::File && row.size >= LARGE && !row.existence && self.selection.standing(self.table.path(id)) == Standing::Inside
    }

    /// Refuses to compare the archive with itself: the restore would replace it, or delete it because the archive does not hold itself.
    fn check_not_archive(&self, path: &[u8], found: &Found) -> Result<()> {
        if (found.file_system, found.inode) != (self.archive.file_system, self.archive.inode) {
            return Ok(());
        }
        Err(usage(format!(
            "{} is the archive itself, and lies in the tree that would be restored from it: move the archive elsewhere",
            shown(path)
        )))
    }

    /// True for a hard link whose content is that of another selected row.
    fn is_follower(&self, id: Id) -> bool {
        self.leaders.get(&self.table.leader(id)).is_some_and(|leader| *leader != id)
    }
}

impl Scan<'_> {
    fn found(&self) -> std::sync::MutexGuard<'_, Comparison> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, id: Id, differences: Differences) {
        self.differences[id as usize].fetch_or(differences | SEEN, Ordering::Relaxed);
    }

    fn work(&self, buffer: &mut [u8], item: Task, pile: &Pile<Task>) -> Result<()> {
        match item {
            Task::Single(id) => {
                let (parent, name) = split(self.with.table.path(id)).unwrap_or((b"", b""));
                let Some(parent) = self.open(parent, Tree::dir)? else { return Ok(()) };
                let found = Found::of(&parent)?;
                self.compare(buffer, &(parent, found), name, id, pile)
            }
            Task::Directory(id) => self.directory(buffer, id, pile),
            Task::Batch(directory, batch) => batch.into_iter().try_for_each(|(name, id)| self.compare(buffer, &directory, &name, id, pile)),
            Task::Surplus(path) => {
                let mut surplus = Vec::new();
                self.surplus(&path, &mut surplus)?;
                self.found().surplus.append(&mut surplus);
                Ok(())
            }
        }
    }

    /// Opens a directory; `None` when nothing is there, something other than a directory, or a link on the way.
    fn open(&self, path: &[u8], open: impl Fn(&Tree, &[u8]) -> rustix::io::Result<OwnedFd>) -> Result<Option<OwnedFd>> {
        match open(self.with.tree, path) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("opening {}", self.with.tree.shown(path))),
        }
    }

    /// Looks at a directory: at everything on disk when that matters, else at the names in the archive or the selection.
    fn directory(&self, buffer: &mut [u8], id: Id, pile: &Pile<Task>) -> Result<()> {
        let Comparer { table, tree, selection, extra, .. } = self.with;
        let path = table.path(id);
        let standing = selection.standing(path);
        let listed = standing == Standing::Inside && !table.row(id).existence && *extra == Extra::Delete;
        let Some(directory) = self.open(path, if listed { Tree::list } else { Tree::dir })? else { return Ok(()) };
        let names = if listed {
            names(&directory).with_context(|| format!("listing {}", tree.shown(path)))?
        } else if standing == Standing::Parent {
            selection.names_from(path)
        } else {
            table.children(id).filter_map(|child| Some(split(table.path(child))?.1.to_vec())).collect()
        };
        let mut children = table.children(id).peekable();
        let mut known = Vec::new();
        for name in names {
            let child = join(path, &name);
            let standing = selection.standing(&child);
            if standing == Standing::Outside {
                continue;
            }
            while children.next_if(|id| table.path(*id) < child.as_slice()).is_some() {}
            match children.next_if(|id| table.path(*id) == child) {
                Some(id) if !self.with.is_large(id) => known.push((name, id)),
                None if *extra == Extra::Delete => pile.add(Task::Surplus(child)),
                _ => {}
            }
        }
        let found = Found::of(&directory)?;
        let directory = Arc::new((directory, found));
        let mut batches = known.chunks(NAMES_AT_ONCE);
        let first = batches.next().unwrap_or_default();
        batches.for_each(|batch| pile.add(Task::Batch(directory.clone(), batch.to_vec())));
        first.iter().try_for_each(|(name, id)| self.compare(buffer, &directory, name, *id, pile))
    }

    /// Compares one path with its row.
    fn compare(&self, buffer: &mut [u8], directory: &(OwnedFd, Found), name: &[u8], id: Id, pile: &Pile<Task>) -> Result<()> {
        let Comparer { table, tree, selection, tick, .. } = self.with;
        interrupted()?;
        let path = table.path(id);
        let context = || format!("comparing {}", tree.shown(path));
        let standing = selection.standing(path);
        let known_mount = standing == Standing::Inside && tree.is_known_mount(path, &directory.0, name);
        if known_mount && table.row(id).existence && table.row(id).end == id + 1 {
            self.saw(id, 0);
            return Ok(());
        }
        let found = match Found::at(&directory.0, name) {
            // The file system that is mounted there does not answer, so nothing is known about it.
            Err(_) if known_mount => return Err(mounted(path)),
            found => found.with_context(context)?,
        };
        let Some(found) = found else { return Ok(()) };
        self.with.check_not_archive(path, &found)?;
        let mount = !path.is_empty() && tree.is_mount(path, &found, &directory.1);
        let kind = table.row(table.leader(id)).kind;
        if standing == Standing::Parent && kind != Kind::Directory {
            // This is not a directory in the archive, so the archive has nothing selected below it.
            if self.with.extra == Extra::Delete && found.kind == Some(Kind::Directory) {
                pile.add(Task::Surplus(path.to_vec()));
            }
            return Ok(());
        }
        if found.kind != Some(kind) {
            return self.replaced(path, found, mount, id).with_context(context);
        }
        if standing == Standing::Parent || table.row(id).existence {
            self.saw(id, 0);
            // What the archive has below it was named explicitly, so it is restored even on another file system. With nothing below it, it
            // may be a mount point that was not entered.
            if kind == Kind::Directory && (standing == Standing::Parent || table.row(id).end > id + 1) {
                if mount {
                    self.found().crossed.push(path.to_vec());
                }
                pile.add(Task::Directory(id));
            }
            return Ok(());
        }
        if mount {
            self.found().mounts.push(id);
        }
        let differences = self.details(buffer, &directory.0, name, id, found);
        if let Some(differences) = differences.with_context(context)? {
            self.saw(id, differences);
            if differences & (CONTENT | TARGET | DEVICE) == 0 {
                tick(table.row(id).sum.data);
            }
            if kind == Kind::Directory {
                pile.add(Task::Directory(id));
            }
        }
        Ok(())
    }

    /// Something of another kind is where a row should be: it must go, with everything below it.
    fn replaced(&self, path: &[u8], found: Found, mount: bool, id: Id) -> Result<()> {
        if mount {
            return Err(mounted(path));
        }
        self.saw(id, KIND);
        if found.kind == Some(Kind::Directory) {
            let mut surplus = Vec::new();
            if !self.surplus_in(self.level(path.to_vec(), None)?, &mut surplus)? {
                return Err(misfit("it is a directory here but not in the archive, and holds something that was left out by name"));
            }
            self.found().surplus.append(&mut surplus);
        }
        Ok(())
    }

    /// How an inode of the right kind differs; `None` when it vanished meanwhile.
    fn details(&self, buffer: &mut [u8], directory: &OwnedFd, name: &[u8], id: Id, found: Found) -> Result<Option<Differences>> {
        let Comparer { table, labelled, .. } = self.with;
        let leader = table.leader(id);
        let (row, attributes) = (table.row(leader), table.attributes(leader));
        let inode = match Inode::open(directory, name, row.kind) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(None),
            inode => inode?,
        };
        let mut differences = 0;
        let mut differ = |difference, differs| differences |= if differs { difference } else { 0 };
        differ(MODE, row.kind != Kind::Symlink && found.mode != attributes.mode);
        differ(OWNER, (found.uid, found.gid) != (attributes.uid, attributes.gid));
        differ(MTIME, !found.has_mtime(row.mtime));
        differ(FLAGS, found.flags != attributes.flags);
        differ(DEVICE, found.device != table.device(leader));
        if row.kind == Kind::Symlink {
            differ(TARGET, rustix::fs::readlinkat(inode.file(), "", Vec::new())?.as_bytes() != table.target(leader));
        }
        let mut xattrs = inode.xattrs()?;
        xattrs.retain(|(name, _)| *labelled || name != LABEL);
        differ(XATTRS, xattrs != attributes.xattrs);
        if row.kind == Kind::File && !self.with.is_follower(id) {
            differ(CONTENT, found.size != row.size || (row.size > 0 && !same_content(&inode, &found, &row.sum.hash, buffer)?));
        }
        if row.kind != Kind::Directory && (found.links > 1 || self.with.leaders.contains_key(&leader)) {
            self.found().shared.push(Shared { id, inode: (found.file_system, found.inode), links: found.links });
        }
        Ok(Some(differences))
    }

    /// Lists `path`, which is not in the archive, and before it everything below it.
    fn surplus(&self, path: &[u8], into: &mut Vec<Surplus>) -> Result<()> {
        let (parent, name) = split(path).context("deleting the root of the tree")?;
        let level = Listed { path: parent.to_vec(), names: vec![name.to_vec()], alone: true, own: None };
        self.surplus_in(level, into).map(drop)
    }

    /// Lists everything in a directory that is not in the archive; false when something in it must stay.
    fn surplus_in(&self, top: Listed, into: &mut Vec<Surplus>) -> Result<bool> {
        // The directories from the top to the current one. It is no recursion, because users can nest directories deeper than any call
        // stack.
        let mut above = vec![top];
        while let Some(mut level) = above.pop() {
            let Some(name) = level.names.pop() else {
                let alone = level.alone && level.own.is_some();
                into.extend(level.own.filter(|_| level.alone));
                match above.last_mut() {
                    Some(outer) => outer.alone &= alone,
                    None => return Ok(level.alone),
                }
                continue;
            };
            let path = join(&level.path, &name);
            let met = self.surplus_at(path)?;
            level.alone &= met.is_some();
            above.push(level);
            match met {
                Some(SurplusAt::Directory(inner)) => above.push(inner),
                Some(SurplusAt::Single(surplus)) => into.push(surplus),
                Some(SurplusAt::Nothing) | None => {}
            }
        }
        Ok(true)
    }

    /// What is at a path that is not in the archive; `None` when it must stay.
    fn surplus_at(&self, path: Vec<u8>) -> Result<Option<SurplusAt>> {
        interrupted()?;
        let standing = self.with.selection.standing(&path);
        let (parent, name) = split(&path).unwrap_or((b"", b""));
        let Some(directory) = self.open(parent, Tree::dir)? else { return Ok(Some(SurplusAt::Nothing)) };
        if standing == Standing::Outside {
            return Ok(None);
        }
        if standing == Standing::Inside && self.with.tree.is_known_mount(&path, &directory, name) {
            return Err(mounted(&path));
        }
        let Some(found) = Found::at(&directory, name)? else { return Ok(Some(SurplusAt::Nothing)) };
        self.with.check_not_archive(&path, &found)?;
        let is_mount = self.with.tree.is_mount(&path, &found, &Found::of(&directory)?);
        drop(directory);
        if is_mount && standing == Standing::Inside {
            return Err(mounted(&path));
        }
        let directory = found.kind == Some(Kind::Directory);
        let whole = directory && self.goes_whole(&path);
        let surplus = Surplus { path, directory, whole, flags: found.flags };
        match (directory && !whole, standing == Standing::Inside) {
            (true, inside) => {
                self.level(surplus.path.clone(), Some(surplus).filter(|_| inside)).map(|level| Some(SurplusAt::Directory(level)))
            }
            (false, true) => Ok(Some(SurplusAt::Single(surplus))),
            (false, false) => Ok(None),
        }
    }

    /// True for a directory whose path is too long for any system call, and for a deep one of which all that is below has to go like itself.
    fn goes_whole(&self, path: &[u8]) -> bool {
        let Comparer { selection, tree, .. } = self.with;
        let levels = path.split(|byte| *byte == b'/').count();
        path.len() > LONGEST_PATH || (levels > DEEP && levels >= selection.levels() && !tree.has_mount_below(path))
    }

    fn level(&self, path: Vec<u8>, own: Option<Surplus>) -> Result<Listed> {
        let names = if self.with.selection.standing(&path) == Standing::Parent {
            self.with.selection.names_from(&path)
        } else {
            self.open(&path, Tree::list)?.map_or(Ok(Vec::new()), |directory| names(&directory))?
        };
        Ok(Listed { path, names, alone: true, own })
    }
}

/// A directory whose content is not in the archive.
struct Listed {
    path: Vec<u8>,
    /// The names that have not been looked at yet.
    names: Vec<Vec<u8>>,
    /// True while nothing in it so far must stay.
    alone: bool,
    /// The directory itself, if it can be deleted after everything in it.
    own: Option<Surplus>,
}

/// What is found at a path that is not in the archive.
enum SurplusAt {
    Directory(Listed),
    Single(Surplus),
    /// It has vanished.
    Nothing,
}

fn mounted(path: &[u8]) -> anyhow::Error {
    let path = shown(path);
    misfit(format!(
        "{path} is a mount point and would have to be changed, but what is mounted there is not part of the tree; unmount it and run this \
         again"
    ))
}

/// Refuses differences at or below a mount point.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there are any.
pub(super) fn check_mounts(table: &Table, found: &Comparison, changes: impl Fn(Id) -> bool) -> Result<()> {
    for mount in &found.mounts {
        let path = table.path(*mount);
        let differs = (*mount..table.row(*mount).end).any(&changes);
        if differs || found.surplus.iter().any(|surplus| is_below(&surplus.path, path)) {
            return Err(mounted(path));
        }
    }
    Ok(())
}

fn same_content(inode: &Inode, found: &Found, hash: &Hash, buffer: &mut [u8]) -> Result<bool> {
    let (size, file) = (found.size, inode.file());
    let next = |at| if found.holes { next_data(file, at, size) } else { Ok(Some((at, size)).filter(|_| at < size)) };
    let (mut content, mut end) = (Content::default(), 0);
    while let Some((mut at, piece_end)) = next(end)? {
        while at < piece_end {
            let want = usize::try_from(piece_end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let read = rustix::io::pread(file, &mut buffer[..want], at)?;
            if read == 0 {
                return Ok(false);
            }
            content.add(at, &buffer[..read]);
            at += read as u64;
            if at < size {
                interrupted()?;
            }
        }
        end = piece_end;
    }
    Ok(content.finish(size).hash == *hash)
}
