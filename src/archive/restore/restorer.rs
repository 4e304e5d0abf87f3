//! The steps of a restore, in their order. What is not in the archive is deleted (which makes room); directories are made; several threads
//! make files in the stage and rename them into place (files that replace something only once they are on disk); hard links are made;
//! metadata of existing files is changed; flags are set; and directories get their metadata and times, the innermost first. Then everything
//! is synced, and the stage removed.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::make::{create, make_empty, write_all};
use super::needed::Needed;
use super::noted::{self, Touched};
use super::plan::{Action, Plan, Step};
use super::remove::{remove_all, unlink, unlock};
use super::stage::{Bench, Stages};
use super::trial;
use crate::archive::content::Content;
use crate::archive::entry::{Attributes, Kind};
use crate::archive::found::Found;
use crate::archive::frames::FrameReader;
use crate::archive::inode::Inode;
use crate::archive::path::split;
use crate::archive::read::reader::OnPiece;
use crate::archive::read::table::{Id, Table};
use crate::archive::read::{Source, verify};
use crate::archive::tree::Tree;
use crate::archive::work::{self, Tick};
use crate::archive::xattrs::LABEL;
use crate::error::damaged;
use crate::node::clock::interrupted;

/// How many entries without content make one piece of work.
const ENTRIES_AT_ONCE: usize = 64;

/// What a restore uses.
pub(super) struct Restorer<'a> {
    pub(super) table: &'a Table,
    pub(super) tree: &'a Tree,
    pub(super) leaders: &'a HashMap<Id, Id>,
    pub(super) names: HashMap<Id, u32>,
    pub(super) labelled: bool,
    pub(super) tick: Tick<'a>,
    pub(super) plan: &'a Plan,
    pub(super) stages: &'a Stages<'a>,
}

impl Restorer<'_> {
    /// Changes the tree, and makes it durable.
    ///
    /// # Errors
    /// As [`Archive::restore`](crate::archive::Archive::restore).
    pub(super) fn run(&self, source: &Source, needed: &Needed, mut touched: BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        // A directory that is only passed through is unlocked after its flags have been noted. One that gets its metadata from the archive
        // needs no note.
        let passed_through = self.passed_through(&touched);
        self.stages.mark(&passed_through)?;
        self.unlock(&touched, |path| self.stages.roots().iter().any(|root| root == path))?;
        self.stages.make()?;
        self.stages.note(&passed_through)?;
        trial::run(self.table, self.stages, &self.plan.steps, &self.names)?;
        self.unlock(&touched, |_| true)?;
        let mut bench = Bench::new(self.stages);
        self.delete(&mut bench, &mut touched)?;
        self.clear_the_way(&mut bench, &mut touched)?;
        for step in self.steps(|step| step.action != Action::Metadata && self.kind(step.id) == Kind::Directory) {
            self.make_directory(&mut bench, step.id).with_context(|| self.making(step.id))?;
        }
        self.files(source, needed)?;
        let mut unlocked = self.links(&mut bench)?;
        for step in self.steps(|step| step.action == Action::Metadata && self.kind(step.id) != Kind::Directory) {
            self.metadata(&mut bench, step.id).with_context(|| self.making(step.id))?;
        }
        unlocked.extend(self.steps(|step| self.kind(step.id) != Kind::Directory).map(|step| step.id));
        for id in unlocked {
            self.flags(&mut bench, id).with_context(|| self.making(id))?;
        }
        self.finish(touched)
    }

    fn steps(&self, which: impl Fn(&Step) -> bool) -> impl Iterator<Item = &Step> {
        self.plan.steps.iter().filter(move |step| which(step))
    }

    fn making(&self, id: Id) -> String {
        format!("restoring {}", self.tree.shown(self.table.path(id)))
    }

    /// The kind of a row; for a hard link, that of its target.
    fn kind(&self, id: Id) -> Kind {
        self.table.row(self.table.leader(id)).kind
    }

    fn is_follower(&self, id: Id) -> bool {
        self.leaders.get(&self.table.leader(id)).is_some_and(|first| *first != id)
    }

    /// The directories in which something will be changed, as they are now or, for those in `noted`, as they were before an earlier restore
    /// that did not end.
    pub(super) fn touch(&self, noted: BTreeMap<Vec<u8>, Touched>) -> Result<BTreeMap<Vec<u8>, Touched>> {
        let mut touched = noted;
        let changed = self.steps(|step| step.action != Action::Metadata).map(|step| self.table.path(step.id));
        let deleted = self.plan.surplus.iter().map(|surplus| &surplus.path[..]);
        let parents = changed.chain(deleted).filter_map(|path| split(path).map(|(parent, _)| parent));
        for parent in parents.chain(self.stages.roots().iter().map(Vec::as_slice)) {
            if touched.contains_key(parent) {
                continue;
            }
            let directory = match self.tree.list(parent) {
                // It will be made first.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                directory => directory.with_context(|| format!("opening {}", self.tree.shown(parent)))?,
            };
            let Found { mtime, flags, .. } = Found::of(&directory)?;
            touched.insert(parent.to_vec(), Touched { mtime, flags });
        }
        Ok(touched)
    }

    /// Of `touched`, the directories that do not get their metadata from the archive.
    fn passed_through(&self, touched: &BTreeMap<Vec<u8>, Touched>) -> BTreeMap<Vec<u8>, Touched> {
        let stepped = |path: &[u8]| {
            let id = self.table.find(path);
            id.is_some_and(|id| self.plan.steps.binary_search_by_key(&id, |step| step.id).is_ok())
        };
        touched.iter().filter(|(path, _)| !stepped(path)).map(|(path, touched)| (path.clone(), *touched)).collect()
    }

    /// Clears the flags that forbid changes from those directories that `which` selects.
    fn unlock(&self, touched: &BTreeMap<Vec<u8>, Touched>, which: impl Fn(&[u8]) -> bool) -> Result<()> {
        for path in touched.keys().filter(|path| which(path)) {
            let unlock = || match self.tree.list(path) {
                // It has vanished since an earlier restore noted it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                directory => {
                    let directory = Inode::of(directory?);
                    if Found::of(directory.file())?.flags == 0 { Ok(()) } else { directory.set_flags(0) }
                }
            };
            unlock().with_context(|| format!("unlocking {}", self.tree.shown(path)))?;
        }
        Ok(())
    }

    fn delete(&self, bench: &mut Bench<'_>, touched: &mut BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        for surplus in &self.plan.surplus {
            interrupted()?;
            let (parent, name) = split(&surplus.path).context("deleting the root of the tree")?;
            let parent = bench.enter(parent)?;
            let delete = || match surplus.directory {
                true if surplus.whole => remove_all(parent, name, interrupted),
                true => unlink(parent, name, AtFlags::REMOVEDIR),
                false => unlink(parent, name, AtFlags::empty()),
            };
            delete().with_context(|| format!("deleting {}", self.tree.shown(&surplus.path)))?;
            touched.remove(&surplus.path);
        }
        Ok(())
    }

    /// Removes things of another kind than the archive has, where a rename could not replace them.
    fn clear_the_way(&self, bench: &mut Bench<'_>, touched: &mut BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        for step in self.steps(|step| step.is_of_other_kind()) {
            let path = self.table.path(step.id);
            let (parent, name) = split(path).ok_or_else(|| anyhow!("the root of the tree is not a directory"))?;
            let parent = bench.enter(parent)?;
            let clear = || -> Result<()> {
                match Found::at(parent, name)?.map(|found| found.kind == Some(Kind::Directory)) {
                    Some(true) => unlink(parent, name, AtFlags::REMOVEDIR),
                    Some(false) if self.kind(step.id) == Kind::Directory => unlink(parent, name, AtFlags::empty()),
                    _ => Ok(()),
                }
            };
            clear().with_context(|| format!("removing what was at {}", self.tree.shown(path)))?;
            touched.remove(path);
        }
        Ok(())
    }

    fn make_directory(&self, bench: &mut Bench<'_>, id: Id) -> Result<()> {
        let (parent, name) = split(self.table.path(id)).context("making the root of the tree")?;
        // Only root may look inside until it has its metadata.
        Ok(rustix::fs::mkdirat(bench.enter(parent)?, name, Mode::RWXU)?)
    }

    /// Makes everything that is neither a directory nor a further name.
    fn files(&self, source: &Source, needed: &Needed) -> Result<()> {
        let plain: Vec<Id> = self
            .steps(|step| step.action != Action::Metadata && self.kind(step.id) != Kind::Directory && !self.is_follower(step.id))
            .map(|step| step.id)
            .filter(|id| !needed.content.contains_key(&self.table.leader(*id)))
            .collect();
        let bench = || Bench::new(self.stages);
        let batches = plain.chunks(ENTRIES_AT_ONCE).map(<[Id]>::to_vec).collect();
        let benches: Vec<Bench<'_>> = match source {
            Source::Indexed(frames) => {
                let state = || Ok((bench(), FrameReader::new(frames.clone())?));
                let items: Vec<Vec<Id>> = [batches, needed.groups.clone()].concat();
                work::run(items, state, |(bench, reader), ids, _| {
                    ids.into_iter().try_for_each(|id| match needed.content.get(&id) {
                        Some(to) => self.content(bench, *to, |sink| verify::content(reader, self.table, id, sink)),
                        None => self.plain(bench, id),
                    })
                })?
                .into_iter()
                .map(|(bench, _)| bench)
                .collect()
            }
            Source::Stream(stream) => {
                work::run(batches, || Ok(bench()), |bench, ids, _| ids.into_iter().try_for_each(|id| self.plain(bench, id)))?;
                let mut bench = bench();
                stream.each(|id, member, reader| match needed.content.get(&id) {
                    Some(to) => self.content(&mut bench, *to, |sink| reader.content(member, sink)),
                    None => Ok(()),
                })?;
                vec![bench]
            }
        };
        // A further name that replaces something leads to a file that must be on disk too.
        if self.steps(|step| step.action == Action::Replace && self.kind(step.id) == Kind::File).next().is_some() {
            self.stages.sync()?;
        }
        benches.into_iter().try_for_each(|mut bench| bench.rename_waiting())
    }

    /// Makes a file; `read` supplies its content.
    fn content(&self, bench: &mut Bench<'_>, id: Id, read: impl FnOnce(OnPiece<'_>) -> Result<()>) -> Result<()> {
        let leader = self.table.leader(id);
        let row = self.table.row(leader);
        let attributes = self.attributes(bench, id).with_context(|| self.making(id))?;
        let make = |stage: &OwnedFd, name: &str| -> Result<()> {
            let file = create(stage, name)?;
            let (mut content, mut end) = (Content::default(), 0);
            read(&mut |offset, bytes| {
                content.add(offset, bytes);
                end = offset + bytes.len() as u64;
                write_all(&file, bytes, offset)
            })?;
            if content.finish(row.size) != row.sum {
                return Err(damaged("the archive is damaged: the content is not what was packed"));
            }
            if end < row.size {
                rustix::fs::ftruncate(&file, row.size)?;
            }
            Inode::of(file).set(&attributes, row.mtime, Kind::File)
        };
        let path = self.table.path(id);
        let placed = if self.plan.replaces(id) { bench.replace(path, row.sum.data, make) } else { bench.place(path, make) };
        placed.with_context(|| self.making(id))?;
        (self.tick)(row.sum.data);
        Ok(())
    }

    /// Makes an entry without content.
    fn plain(&self, bench: &mut Bench<'_>, id: Id) -> Result<()> {
        let leader = self.table.leader(id);
        let row = self.table.row(leader);
        let attributes = self.attributes(bench, id).with_context(|| self.making(id))?;
        let make = |stage: &OwnedFd, name: &str| -> Result<()> {
            make_empty(stage, name.as_bytes(), self.table, leader)?;
            Inode::open_own(stage, name.as_bytes(), row.kind)?.set(&attributes, row.mtime, row.kind)
        };
        bench.place(self.table.path(id), make).with_context(|| self.making(id))
    }

    /// The attributes of a row. When the archive has no labels, the label is that of the existing file, or of the directory.
    fn attributes(&self, bench: &mut Bench<'_>, id: Id) -> Result<Attributes> {
        let mut attributes = self.table.attributes(self.table.leader(id)).clone();
        if !self.labelled {
            let (parent, name) = split(self.table.path(id)).unwrap_or((b"", b""));
            let parent = bench.enter(parent)?;
            let there = match Found::at(parent, name)?.and_then(|found| found.kind) {
                Some(kind) => Inode::open_own(parent, name, kind)?,
                None => Inode::open_own(parent, b"", Kind::Directory)?,
            };
            attributes.xattrs.extend(there.xattrs()?.into_iter().find(|(name, _)| name == LABEL));
        }
        Ok(attributes)
    }

    /// Makes the further names of files that have several; returns the rows whose flags had to be cleared for that.
    fn links(&self, bench: &mut Bench<'_>) -> Result<Vec<Id>> {
        let mut unlocked = Vec::new();
        for step in self.steps(|step| step.action != Action::Metadata && self.is_follower(step.id)) {
            interrupted()?;
            let first = self.leaders.get(&self.table.leader(step.id)).copied().unwrap_or(step.id);
            let (parent, name) = split(self.table.path(first)).context("linking to the root of the tree")?;
            let parent = self.tree.dir(parent).with_context(|| self.making(first))?;
            let make = |stage: &OwnedFd, new: &str| -> Result<()> {
                let link = || rustix::fs::linkat(&parent, name, stage, new, AtFlags::empty());
                match link() {
                    Err(Errno::PERM) if unlock(&parent, name)? => {
                        unlocked.push(first);
                        Ok(link()?)
                    }
                    result => Ok(result?),
                }
            };
            bench.place(self.table.path(step.id), make).with_context(|| self.making(step.id))?;
        }
        Ok(unlocked)
    }

    /// Changes metadata in place.
    fn metadata(&self, bench: &mut Bench<'_>, id: Id) -> Result<()> {
        interrupted()?;
        let attributes = self.attributes(bench, id)?;
        let (parent, name) = split(self.table.path(id)).unwrap_or((b"", b""));
        let parent = bench.enter(parent)?;
        unlock(parent, name)?;
        let row = self.table.row(self.table.leader(id));
        Inode::open_own(parent, name, row.kind)?.set(&attributes, row.mtime, row.kind)
    }

    /// Sets the flags of an entry that is otherwise finished: they forbid every further change.
    fn flags(&self, bench: &mut Bench<'_>, id: Id) -> Result<()> {
        let (row, flags) = (self.table.row(self.table.leader(id)), self.table.attributes(self.table.leader(id)).flags);
        if flags == 0 {
            return Ok(());
        }
        let (parent, name) = split(self.table.path(id)).unwrap_or((b"", b""));
        Inode::open_own(bench.enter(parent)?, name, row.kind)?.set_flags(flags)
    }

    /// Gives directories their metadata and times, makes everything durable, and removes the stages.
    fn finish(&self, mut touched: BTreeMap<Vec<u8>, Touched>) -> Result<()> {
        let directories = self.steps(|step| self.kind(step.id) == Kind::Directory).map(|step| (self.table.path(step.id).to_vec(), step.id));
        let mut steps: BTreeMap<Vec<u8>, Id> = directories.collect();
        let mut all: Vec<Vec<u8>> = touched.keys().chain(steps.keys()).cloned().collect();
        // The innermost first: a path is longer than those above it.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        all.dedup();
        let roots = self.stages.roots();
        for path in all.iter().filter(|path| !roots.contains(path)) {
            self.finish_directory(path, steps.remove(path), touched.remove(path).as_ref())?;
        }
        // The stages go last, and their removal keeps these times and flags.
        for root in roots.iter().filter(|root| !steps.contains_key(*root)) {
            self.finish_directory(root, None, touched.remove(root).as_ref())?;
        }
        self.stages.finish()?;
        for root in roots {
            self.finish_directory(root, steps.remove(root), touched.remove(root).as_ref())?;
            rustix::fs::fsync(self.tree.list(root)?).with_context(|| format!("syncing {}", self.tree.shown(root)))?;
        }
        Ok(())
    }

    fn finish_directory(&self, path: &[u8], step: Option<Id>, touched: Option<&Touched>) -> Result<()> {
        let finish = || -> Result<()> {
            let Some(id) = step else {
                let Some(Touched { mtime, flags }) = touched else { return Ok(()) };
                return noted::put_back(self.tree, path, *mtime, *flags);
            };
            let directory = Inode::of(self.tree.list(path)?);
            if Found::of(directory.file())?.flags != 0 {
                directory.set_flags(0)?;
            }
            let mut attributes = self.table.attributes(id).clone();
            if !self.labelled {
                attributes.xattrs.extend(directory.xattrs()?.into_iter().find(|(name, _)| name == LABEL));
            }
            directory.set(&attributes, self.table.row(id).mtime, Kind::Directory)?;
            if attributes.flags == 0 { Ok(()) } else { directory.set_flags(attributes.flags) }
        };
        finish().with_context(|| format!("restoring {}", self.tree.shown(path)))
    }
}
