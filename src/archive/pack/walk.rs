//! Walking a tree to pack it: one item after the other, directories before what is in them, names by their bytes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;

use super::skipped::Skipped;
use crate::archive::entry::{Attributes, Entry, Kind, LARGEST_ENTRY, LARGEST_TABLE};
use crate::archive::found::{Found, Identity};
use crate::archive::index::Record;
use crate::archive::inode::Inode;
use crate::archive::path::{LONGEST_PATH, join, shown, split};
use crate::archive::select::{Selection, Standing};
use crate::archive::tree::{Tree, kind_in, names};
use crate::archive::xattrs::LABEL;
use crate::error::{busy, unsupported};

/// How many times something that changes while it is looked at is looked at.
pub(super) const TRIES: u32 = 5;

/// The most left-out paths that are named; of the others, only their number is given.
const MOST_SKIPPED: usize = 1000;

/// One path, as it was when it was looked at.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    pub(super) found: Found,
    /// True when only its existence is recorded.
    pub(super) existence: bool,
    /// The open file of a file with content, unless it was closed.
    pub(super) file: Option<OwnedFd>,
}

/// Called with a path; returns what an older archive says of it, when that may still be true.
pub(super) type Expected<'e> = &'e mut dyn FnMut(&[u8]) -> Result<Option<Record>>;

/// A walk through a tree.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    selection: &'a Selection,
    /// The file that is being written, and the one that it replaces, in case they are in the tree.
    output: [Option<Found>; 2],
    /// The directories from the root to the current one, with the names in them that are still to come, the next one last.
    above: Vec<Level>,
    /// The first name of every inode that has several; the others are hard links to it.
    first_names: HashMap<Identity, Vec<u8>>,
    started: bool,
    /// The file systems that were synced: see [`super::reuse`].
    synced: Vec<(u32, u32)>,
    /// The memory that the entries so far will take when the archive is opened.
    weight: u64,
    /// What was left out: path and why; and how many more.
    skipped: Vec<(PathBuf, Skipped)>,
    more_skipped: u64,
}

struct Level {
    path: Vec<u8>,
    found: Found,
    names: Vec<Vec<u8>>,
    directory: Option<OwnedFd>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(tree: &'a Tree, selection: &'a Selection, output: [Option<Found>; 2]) -> Self {
        Self {
            tree,
            selection,
            output,
            above: Vec::new(),
            first_names: HashMap::new(),
            started: false,
            synced: Vec::new(),
            weight: 0,
            skipped: Vec::new(),
            more_skipped: 0,
        }
    }

    /// The next item; `None` at the end. A file that is still as `expected` is not opened.
    ///
    /// # Errors
    /// When something cannot be read, or an archive cannot hold it; what has vanished meanwhile is skipped.
    pub(super) fn next(&mut self, expected: Expected<'_>) -> Result<Option<Item>> {
        if !self.started {
            self.started = true;
            return self.visit(Vec::new(), expected);
        }
        loop {
            let Some(level) = self.above.last_mut() else { return Ok(None) };
            let Some(name) = level.names.pop() else {
                self.above.pop();
                continue;
            };
            let path = join(&level.path, &name);
            if let Some(item) = self.visit(path, expected)? {
                return Ok(Some(item));
            }
        }
    }

    /// Looks at an item again, after it has changed; `None` when it has vanished.
    pub(super) fn again(&mut self, item: &Item) -> Result<Option<Item>> {
        self.forget(item);
        let Some((directory, name)) = split(&item.entry.path) else { return Ok(None) };
        let looked = match self.tree.dir(directory) {
            Ok(directory) => look(&directory, name)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Looked::Gone,
            Err(error) => return Err(error.into()),
        };
        match looked {
            Looked::There(found, inode) if found.kind == Some(Kind::File) => self.item(item.entry.path.clone(), found, inode).map(Some),
            _ => Ok(None),
        }
    }

    /// Notes that an item is not packed: if it has other names, the next one becomes the first.
    pub(super) fn leave_out(&mut self, item: &Item, why: Skipped) {
        self.forget(item);
        self.skip(&item.entry.path, why);
    }

    fn forget(&mut self, item: &Item) {
        let inode = &item.found.identity();
        if self.first_names.get(inode) == Some(&item.entry.path) {
            self.first_names.remove(inode);
        }
    }

    /// False when the item is another name of something that was then not packed, or was packed as something else.
    pub(super) fn is_linked(&self, item: &Item) -> bool {
        let first = || self.first_names.get(&item.found.identity());
        item.entry.kind != Kind::HardLink || first() == Some(&item.entry.target)
    }

    /// What was left out, path and why, at the end of the walk.
    pub(super) fn skipped(&mut self) -> Vec<(PathBuf, Skipped)> {
        let mut skipped = std::mem::take(&mut self.skipped);
        if self.more_skipped > 0 {
            skipped.push((PathBuf::new(), Skipped::More(self.more_skipped)));
        }
        skipped
    }

    /// Notes something that is left out.
    pub(super) fn skip(&mut self, path: &[u8], why: Skipped) {
        if self.skipped.len() == MOST_SKIPPED {
            self.more_skipped += 1;
            return;
        }
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        if why.by_design() {
            tracing::debug!("{}: {why}", path.display());
        } else {
            tracing::warn!("{}: {why}", path.display());
        }
        self.skipped.push((path, why));
    }

    /// The item of `path`, whose parent is the current directory; `None` when there is nothing to pack.
    fn visit(&mut self, path: Vec<u8>, expected: Expected<'_>) -> Result<Option<Item>> {
        let standing = self.selection.standing(&path);
        if standing == Standing::Outside {
            return Ok(None);
        }
        if path.len() > LONGEST_PATH {
            return Err(cannot_hold(&path, &format!("its path is longer than the {LONGEST_PATH} bytes that Linux accepts in one call")));
        }
        let tree = self.tree;
        let context = || format!("reading {}", tree.shown(&path));
        if standing == Standing::Inside && self.is_known_mount(&path).with_context(context)? {
            return self.mount_point(path);
        }
        if standing == Standing::Inside
            && let Some(record) = expected(&path)?
            && let Some(item) = self.unchanged(record)?
        {
            self.check_fits(&item)?;
            return Ok(Some(item));
        }
        let looked = self.look(&path).with_context(context)?;
        if let Looked::Restless = looked {
            return Err(busy(format!("{} is replaced again and again: run this again when it no longer changes", tree.shown(&path))));
        }
        let Looked::There(found, inode) = looked else {
            if standing == Standing::Inside && self.selection.standing(split(&path).map_or(b"", |s| s.0)) == Standing::Inside {
                self.skip(&path, Skipped::Vanished);
            }
            return Ok(None);
        };
        let Some(kind) = found.kind else {
            self.skip(&path, Skipped::Socket);
            return Ok(None);
        };
        if self.output.iter().flatten().any(|output| (found.file_system, found.inode) == (output.file_system, output.inode)) {
            self.skip(&path, Skipped::Archive);
            return Ok(None);
        }
        let mount = standing == Standing::Inside && self.above.last().is_some_and(|level| self.tree.is_mount(&path, &found, &level.found));
        if standing == Standing::Parent && kind != Kind::Directory {
            return self.beside_the_way(&path, kind);
        }
        let mut item = self.item(path, found, inode).with_context(|| format!("reading {}", self.tree.shown(&[])))?;
        item.existence = mount || standing == Standing::Parent;
        self.check_fits(&item)?;
        if mount {
            self.skip(&item.entry.path.clone(), Skipped::MountPoint);
            item.entry.size = 0;
            item.file = None;
        } else if kind == Kind::Directory {
            self.enter(&item, standing)?;
        }
        Ok(Some(item))
    }

    fn is_known_mount(&mut self, path: &[u8]) -> Result<bool> {
        let (tree, Some((_, name))) = (self.tree, split(path)) else { return Ok(false) };
        Ok(self.here()?.is_some_and(|directory| tree.is_known_mount(path, directory, name)))
    }

    /// The item of a mount point: only its existence is recorded. What is mounted is not looked at. A restore that finds nothing there
    /// makes the mount point with the owner, mode and label of the directory above it.
    fn mount_point(&mut self, path: Vec<u8>) -> Result<Option<Item>> {
        let (parent, name) = split(&path).unwrap_or((b"", b""));
        let look = || -> rustix::io::Result<_> {
            let directory = self.tree.list(parent)?;
            Ok((Found::of(&directory)?, kind_in(&directory, name)?, Inode::of(directory)))
        };
        let (mut found, kind, directory) = match look() {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.skip(&path, Skipped::Vanished);
                return Ok(None);
            }
            looked => looked.with_context(|| format!("reading {}", self.tree.shown(&path)))?,
        };
        (found.kind, found.links, found.flags) = (Some(kind), 1, 0);
        let mut item = self.item(path, found, directory)?;
        item.existence = true;
        item.entry.attributes.xattrs.retain(|(name, _)| name == LABEL);
        if kind == Kind::File {
            item.entry.attributes.mode &= 0o666;
        }
        self.check_fits(&item)?;
        self.skip(&item.entry.path, Skipped::MountPoint);
        Ok(Some(item))
    }

    /// Refuses an entry with which the archive could not be opened again: see [`LARGEST_TABLE`]. Leaving the entry out would lose it: a
    /// restore deletes what the archive does not have.
    fn check_fits(&mut self, item: &Item) -> Result<()> {
        let (path, attributes) = (&item.entry.path, item.entry.attributes.weight());
        let weight = item.entry.weight() + attributes;
        if weight > LARGEST_ENTRY {
            return Err(cannot_hold(path, &format!("its extended attributes take {attributes} bytes, and {LARGEST_ENTRY} is the most")));
        }
        self.weight += weight;
        if self.weight > LARGEST_TABLE {
            return Err(cannot_hold(
                path,
                &format!("the names and attributes of the tree up to here take more than {LARGEST_TABLE} bytes"),
            ));
        }
        Ok(())
    }

    /// The error when something on the path to a selected item is not a directory.
    fn beside_the_way(&self, path: &[u8], kind: Kind) -> Result<Option<Item>> {
        if kind == Kind::Symlink {
            return Err(anyhow!("{} is a symbolic link: name a selected path below it by the target of the link", self.tree.shown(path)));
        }
        Ok(None)
    }

    fn look(&mut self, path: &[u8]) -> Result<Looked> {
        let Some((_, name)) = split(path) else { return look(self.tree.dir(b"")?, b"") };
        self.here()?.map_or(Ok(Looked::Gone), |directory| look(directory, name))
    }

    /// The item of a file that is unchanged since an older archive: nothing of it need be read. Any change, also of its attributes, updates
    /// the change time.
    fn unchanged(&mut self, Record { entry, existence, inode, ctime, .. }: Record) -> Result<Option<Item>> {
        let Some((_, name)) = split(&entry.path) else { return Ok(None) };
        let Some(directory) = self.here()? else { return Ok(None) };
        let Some(found) = Found::at(directory, name)? else { return Ok(None) };
        let attributes = &entry.attributes;
        let same = (found.kind, found.inode, found.ctime) == (Some(Kind::File), inode, ctime)
            && (entry.kind, entry.mtime, entry.size) == (Kind::File, found.mtime, found.size)
            && (attributes.mode, attributes.uid, attributes.gid, attributes.flags) == (found.mode, found.uid, found.gid, found.flags);
        let plain =
            !existence && found.links == 1 && self.above.last().is_some_and(|level| !self.tree.is_mount(&entry.path, &found, &level.found));
        Ok((same && plain).then_some(Item { entry, found, existence: false, file: None }))
    }

    /// The current directory; `None` when it no longer exists.
    fn here(&mut self) -> Result<Option<&OwnedFd>> {
        let Some(level) = self.above.last_mut() else { return Ok(None) };
        if level.directory.is_none() {
            level.directory = match self.tree.dir(&level.path) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                directory => Some(directory?),
            };
        }
        Ok(level.directory.as_ref())
    }

    fn enter(&mut self, item: &Item, standing: Standing) -> Result<()> {
        let path = &item.entry.path;
        self.sync(path, item.found.file_system)?;
        // Only one directory is open at a time; those above are opened again on the way back.
        if let Some(level) = self.above.last_mut() {
            level.directory = None;
        }
        let (names, directory) = if standing == Standing::Parent {
            (self.selection.names_from(path), None)
        } else {
            match self.tree.list(path) {
                Ok(directory) => (names(&directory).with_context(|| format!("listing {}", self.tree.shown(path)))?, Some(directory)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => (Vec::new(), None),
                Err(error) => return Err(error).with_context(|| format!("opening {}", self.tree.shown(path))),
            }
        };
        let names = names.into_iter().rev().collect();
        self.above.push(Level { path: path.clone(), found: item.found, names, directory });
        Ok(())
    }

    /// Syncs the file system of a directory before anything of it is read. If it has vanished, opening it will show that.
    fn sync(&mut self, path: &[u8], file_system: (u32, u32)) -> Result<()> {
        if self.synced.contains(&file_system) {
            return Ok(());
        }
        match self.tree.list(path).and_then(rustix::fs::syncfs) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            synced => {
                self.synced.push(file_system);
                synced.with_context(|| format!("syncing the file system of {}", self.tree.shown(path)))
            }
        }
    }

    fn item(&mut self, path: Vec<u8>, found: Found, inode: Inode) -> Result<Item> {
        let mut kind = found.kind.unwrap_or(Kind::File);
        let mut target = Vec::new();
        if kind != Kind::Directory && found.links > 1 {
            let first = self.first_names.entry(found.identity()).or_insert_with(|| path.clone());
            if *first != path {
                (kind, target) = (Kind::HardLink, first.clone());
            }
        }
        let mut attributes = Attributes { mode: found.mode, uid: found.uid, gid: found.gid, ..Attributes::default() };
        if kind != Kind::HardLink {
            attributes.flags = found.flags;
            attributes.xattrs = inode.xattrs().with_context(|| format!("reading the extended attributes of {}", shown(&path)))?;
        }
        if kind == Kind::Symlink {
            let link =
                rustix::fs::readlinkat(inode.file(), "", Vec::new()).with_context(|| format!("reading the link {}", shown(&path)))?;
            target = link.into_bytes();
        }
        let device = if kind == Kind::HardLink { (0, 0) } else { found.device };
        let size = if kind == Kind::File { found.size } else { 0 };
        let file = if kind == Kind::File && size > 0 { Some(inode.into_file()) } else { None };
        let entry = Entry { path, kind, attributes, mtime: found.mtime, size, target, device };
        Ok(Item { entry, found, existence: false, file })
    }
}

/// The error for what an archive cannot hold, and what would be lost if it were left out silently.
pub(super) fn cannot_hold(path: &[u8], why: &str) -> anyhow::Error {
    unsupported(format!("{} cannot be packed: {why}; remove it, or leave it out by name (then a restore leaves it alone too)", shown(path)))
}

/// What a look at a path found.
enum Looked {
    There(Found, Inode),
    Gone,
    /// Something else each time.
    Restless,
}

/// Looks at `name` and keeps it open.
fn look(directory: impl std::os::fd::AsFd, name: &[u8]) -> Result<Looked> {
    let directory = directory.as_fd();
    for _ in 0..TRIES {
        let Some(found) = Found::at(directory, name)? else { return Ok(Looked::Gone) };
        // A socket is never opened, and no handle of it is needed.
        let inode = match Inode::open(directory, name, found.kind.unwrap_or(Kind::Fifo)) {
            Ok(inode) => inode,
            // It was replaced by something else meanwhile.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => continue,
            Err(error) => return Err(error.into()),
        };
        let held = Found::of(inode.file())?;
        if held.kind == found.kind {
            return Ok(Looked::There(held, inode));
        }
    }
    Ok(Found::at(directory, name)?.map_or(Looked::Gone, |_| Looked::Restless))
}
