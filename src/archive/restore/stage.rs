//! The stage: where a restore makes what it then renames into place. It is a directory at the root of the tree, so it is on the tree's own
//! file system, and outside directories that are watched, such as `cron.d`.
//!
//! It exists from before the first change until everything is on disk. A stage that is found means that a restore was interrupted.
//!
//! What replaces something else is renamed only when it is on disk: a journaling file system such as XFS may write the rename long before
//! the content, and a power cut then leaves an empty file in place of a whole one. Syncing each file would take many times as long as
//! syncing the file system once for a batch of files.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::noted::{self, NOTES, Noted, Touched};
use super::remove::{remove_all, unlink, unlock};
use crate::archive::acl;
use crate::archive::entry::Kind;
use crate::archive::found::Found;
use crate::archive::inode::Inode;
use crate::archive::path::{is_below, join, split};
use crate::archive::select::STAGE;
use crate::archive::tree::{Tree, names};
use crate::error::{FailureKind, kind};
use crate::node::clock::interrupted;

/// The name in the stage of what is being made.
const BEING_MADE: &str = "new";
/// A worker's batch ends after this many bytes or files; until then, the disk also holds what is replaced.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_FILES: usize = 1024;

/// Removes the stage in the directory `root`, whose times and flags stay as they are, and then the note in that directory.
///
/// # Errors
/// When it cannot be removed.
fn sweep(tree: &Tree, root: &[u8]) -> Result<()> {
    let directory = match tree.dir(root) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        directory => directory?,
    };
    if Found::at(&directory, STAGE)?.is_some() {
        let before = Found::of(&directory)?;
        unlock(&directory, b"")?;
        // A request to stop does not stop this: the stage may contain parts of secret files.
        remove_all(&directory, STAGE, || Ok(())).with_context(|| format!("removing {}", tree.shown(&join(root, STAGE))))?;
        noted::put_back(tree, root, before.mtime, before.flags)?;
    }
    noted::unmark(tree, root)
}

/// Syncs what an interrupted restore has changed, and removes its stage in the root of `tree`; true when there was one.
///
/// # Errors
/// When it cannot be synced or removed.
pub(super) fn sweep_alone(tree: &Tree) -> Result<bool> {
    let stages = Stages::new(tree, &[], std::iter::empty())?;
    stages.put_back(&stages.noted()?)?;
    stages.finish()?;
    for handle in &stages.handles {
        rustix::fs::fsync(handle).with_context(|| format!("syncing {}", tree.shown(b"")))?;
    }
    Ok(!stages.roots.is_empty())
}

/// The stages of one restore: one on each file system where something is changed.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    tree: &'a Tree,
    /// The directories that contain them, the innermost first.
    roots: Vec<Vec<u8>>,
    /// The same directories, opened before the first change, so that a sync reports every error of writing since.
    handles: Vec<OwnedFd>,
    /// How many benches there are: each has a directory of its own, so that they need not wait for each other.
    benches: AtomicUsize,
}

impl<'a> Stages<'a> {
    /// The stages that changes at `paths` need, and those left by an earlier restore; `crossed` are the directories where another file
    /// system begins.
    ///
    /// # Errors
    /// When one of these directories cannot be opened.
    pub(super) fn new<'p>(tree: &'a Tree, crossed: &[Vec<u8>], paths: impl Iterator<Item = &'p [u8]>) -> Result<Self> {
        let mut all: Vec<Vec<u8>> = crossed.iter().cloned().chain([Vec::new()]).collect();
        all.sort_by_key(|root| std::cmp::Reverse(root.len()));
        let mut used = vec![false; all.len()];
        for path in paths {
            // A change is made in the parent directory: the root of another file system is not itself inside that file system.
            let parent = split(path).map_or(path, |(parent, _)| parent);
            if let Some(at) = all.iter().position(|root| is_below(parent, root)) {
                used[at] = true;
            }
        }
        let (mut roots, mut handles) = (Vec::new(), Vec::new());
        for (root, used) in all.into_iter().zip(used) {
            let handle = tree.list(&root).with_context(|| format!("opening {}", tree.shown(&root)))?;
            if used || Found::at(&handle, STAGE)?.is_some() || noted::marked(tree, &root)?.is_some() {
                roots.push(root);
                handles.push(handle);
            }
        }
        Ok(Self { tree, roots, handles, benches: AtomicUsize::new(0) })
    }

    /// Notes in each directory that will contain a stage what the directory is like, from `touched`, and makes it changeable.
    ///
    /// # Errors
    /// When it cannot be done for one of them.
    pub(super) fn mark(&self, touched: &BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        let roots = self.roots.iter().filter_map(|root| Some((root, touched.get(root)?)));
        roots.into_iter().try_for_each(|(root, before)| noted::mark(self.tree, root, *before))
    }

    /// Makes the stages. One that an earlier restore left is emptied except for its notes.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(super) fn make(&self) -> Result<()> {
        for root in &self.roots {
            let make = || -> Result<()> {
                let directory = self.tree.dir(root)?;
                let before = Found::of(&directory)?;
                let left = Found::at(&directory, STAGE)?.is_some_and(|found| found.kind == Some(Kind::Directory));
                if !left {
                    unlink(&directory, STAGE, AtFlags::empty())?;
                    rustix::fs::mkdirat(&directory, STAGE, Mode::RWXU)?;
                    // At once: where the file system could store no note, only this process knows the time.
                    Inode::of(self.tree.list(root)?).set_mtime(before.mtime)?;
                }
                let stage = Inode::open_own(&directory, STAGE, Kind::Directory)?;
                let left = names(stage.file())?;
                left.iter().filter(|name| *name != NOTES).try_for_each(|name| remove_all(stage.file(), name, interrupted))?;
                // Nothing made in it may inherit an ACL.
                match rustix::fs::fremovexattr(stage.file(), acl::DEFAULT) {
                    Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                    result => Ok(result?),
                }
            };
            make().with_context(|| format!("making {}", self.tree.shown(&join(root, STAGE))))?;
        }
        Ok(())
    }

    /// What a restore that did not end has noted about directories, by path.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn noted(&self) -> Result<BTreeMap<Vec<u8>, Touched>> {
        let mut all = BTreeMap::new();
        for root in &self.roots {
            for Noted { path, mtime, flags } in noted::read(self.tree, root)? {
                all.insert(if path.is_empty() { root.clone() } else { join(root, &path) }, Touched { mtime, flags });
            }
            if let Some(before) = noted::marked(self.tree, root)? {
                all.insert(root.clone(), before);
            }
        }
        Ok(all)
    }

    /// Notes what directories are like, durably, on the file system of each.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn note(&self, touched: &BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        let mut notes: Vec<Vec<Noted>> = self.roots.iter().map(|_| Vec::new()).collect();
        for (path, Touched { mtime, flags }) in touched {
            if let Some(at) = self.roots.iter().position(|root| is_below(path, root)) {
                let skip = if self.roots[at].is_empty() { 0 } else { self.roots[at].len() + 1 };
                notes[at].push(Noted { path: path.get(skip..).unwrap_or_default().to_vec(), mtime: *mtime, flags: *flags });
            }
        }
        for (root, notes) in self.roots.iter().zip(notes) {
            match noted::write(self.tree, root, &notes) {
                // The disk is full. A restore deletes first, which makes room, so it goes on without the note.
                Err(error) if kind(&error) == FailureKind::NoSpace => {
                    tracing::warn!("{error:#}: if this restore is killed, directories on the way lose their modification times");
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// The directory whose stage is used for `path`.
    pub(super) fn root_of(&self, path: &[u8]) -> &[u8] {
        let parent = split(path).map_or(path, |(parent, _)| parent);
        self.roots.iter().find(|root| is_below(parent, root)).map_or(b"", Vec::as_slice)
    }

    /// The tree that contains them.
    pub(super) fn tree(&self) -> &Tree {
        self.tree
    }

    /// Restores times and flags of directories. Those that contain a stage get them before the stage is removed, and [`Stages::finish`]
    /// does not change them.
    ///
    /// # Errors
    /// When it fails for one of them.
    pub(super) fn put_back(&self, touched: &BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        touched.iter().rev().try_for_each(|(path, touched)| noted::put_back(self.tree, path, touched.mtime, touched.flags))
    }

    /// Makes everything on their file systems durable.
    ///
    /// # Errors
    /// When something could not be written.
    pub(super) fn sync(&self) -> Result<()> {
        for (root, handle) in self.roots.iter().zip(&self.handles) {
            rustix::fs::syncfs(handle).with_context(|| format!("syncing the file system of {}", self.tree.shown(root)))?;
        }
        Ok(())
    }

    /// Makes everything durable, and then removes them; directories keep their times.
    ///
    /// # Errors
    /// When something could not be written, or removed. The stages then stay, as a sign of it.
    pub(super) fn finish(&self) -> Result<()> {
        self.sync()?;
        self.roots.iter().try_for_each(|root| sweep(self.tree, root))
    }

    /// The directories that contain them.
    pub(super) fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }
}

/// One worker's place in the stages, and the directory in which it last worked.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    stages: &'a Stages<'a>,
    number: usize,
    own: HashMap<usize, OwnedFd>,
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// What waits to be renamed: its name in the stage is its index here.
    waiting: Vec<Vec<u8>>,
    waiting_bytes: u64,
}

impl<'a> Bench<'a> {
    pub(super) fn new(stages: &'a Stages<'a>) -> Self {
        let number = stages.benches.fetch_add(1, Ordering::Relaxed);
        Self { stages, number, own: HashMap::new(), parent: None, waiting: Vec::new(), waiting_bytes: 0 }
    }

    /// Makes something new with `make`, which gets a directory and a name, and renames it to `path`.
    ///
    /// # Errors
    /// The errors of `make`; when it cannot be renamed. What was made is then removed.
    pub(super) fn place<T>(&mut self, path: &[u8], make: impl FnOnce(&OwnedFd, &str) -> Result<T>) -> Result<T> {
        let (directory, name) = split(path).context("replacing the root of the tree")?;
        self.enter(directory)?;
        let Some((_, parent)) = &self.parent else { anyhow::bail!("no directory is open") };
        let stage = own(&mut self.own, self.stages, self.number, directory)?;
        let placed = make(stage, BEING_MADE).and_then(|made| {
            rename(stage, BEING_MADE, parent, name)?;
            Ok(made)
        });
        // Left over after a failure, and where rename(2) does nothing: between two names of the same inode.
        match rustix::fs::unlinkat(stage, BEING_MADE, AtFlags::empty()) {
            Err(error) if error != Errno::NOENT && placed.is_ok() => Err(error).context("clearing the stage"),
            _ => placed,
        }
    }

    /// As [`Bench::place`], for something of `bytes` that replaces something else: it is renamed by [`Bench::rename_waiting`], when it is
    /// on disk.
    ///
    /// # Errors
    /// The errors of `make` and of [`Bench::rename_waiting`].
    pub(super) fn replace(&mut self, path: &[u8], bytes: u64, make: impl FnOnce(&OwnedFd, &str) -> Result<()>) -> Result<()> {
        let (directory, _) = split(path).context("replacing the root of the tree")?;
        let stage = own(&mut self.own, self.stages, self.number, directory)?;
        make(stage, &self.waiting.len().to_string())?;
        self.waiting.push(path.to_vec());
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        if self.waiting.len() < BATCH_FILES && self.waiting_bytes < BATCH_BYTES {
            return Ok(());
        }
        self.stages.sync()?;
        self.rename_waiting()
    }

    /// Renames everything that waits into place. The file system has been synced before.
    ///
    /// # Errors
    /// When something cannot be renamed.
    pub(super) fn rename_waiting(&mut self) -> Result<()> {
        self.waiting_bytes = 0;
        for (n, path) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            let (directory, name) = split(&path).context("replacing the root of the tree")?;
            self.enter(directory)?;
            let Some((_, parent)) = &self.parent else { anyhow::bail!("no directory is open") };
            let stage = own(&mut self.own, self.stages, self.number, directory)?;
            rename(stage, &n.to_string(), parent, name).with_context(|| format!("restoring {}", self.stages.tree.shown(&path)))?;
        }
        Ok(())
    }

    /// The open directory `path`.
    pub(super) fn enter(&mut self, path: &[u8]) -> Result<&OwnedFd> {
        if self.parent.as_ref().is_none_or(|(here, _)| here != path) {
            let tree = self.stages.tree;
            let directory = tree.dir(path).with_context(|| format!("opening {}", tree.shown(path)))?;
            self.parent = Some((path.to_vec(), directory));
        }
        self.parent.as_ref().map(|(_, directory)| directory).context("no directory is open")
    }
}

/// The worker's own directory in the stage for `directory`.
fn own<'o>(own: &'o mut HashMap<usize, OwnedFd>, stages: &Stages<'_>, number: usize, directory: &[u8]) -> Result<&'o OwnedFd> {
    let at = stages.roots.iter().position(|root| is_below(directory, root)).context("finding the stage")?;
    if let std::collections::hash_map::Entry::Vacant(place) = own.entry(at) {
        let path = join(&stages.roots[at], STAGE);
        let make = || -> Result<OwnedFd> {
            let stage = stages.tree.dir(&path)?;
            let name = number.to_string();
            rustix::fs::mkdirat(&stage, &name, Mode::RWXU)?;
            Ok(stages.tree.dir(&join(&path, name.as_bytes()))?)
        };
        place.insert(make().with_context(|| format!("making a directory in {}", stages.tree.shown(&path)))?);
    }
    own.get(&at).context("finding the stage")
}

fn rename(stage: &OwnedFd, made: &str, parent: &OwnedFd, name: &[u8]) -> Result<()> {
    match rustix::fs::renameat(stage, made, parent, name) {
        // The file that is replaced may be immutable.
        Err(Errno::PERM) if unlock(parent, name)? => rustix::fs::renameat(stage, made, parent, name),
        result => result,
    }
    .context("renaming it into place")
}
