//! The content of an old backup's archives, and how they are unpacked. As with tar, the last of several members with one name counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use flate2::bufread::MultiGzDecoder;
use tar::{Archive, Entry};

use crate::error::{damaged, unsupported};
use crate::node::{clock::interrupted, durable};

/// The most levels of directories below each tree: a real `/etc` has some ten. The limit holds for names in the archives too.
pub(super) const MOST_LEVELS: usize = 1024;
/// The most bytes of any other file that is read whole: a manifest, the list of excludes, a bundle of certificates.
pub(super) const MOST_FILE: u64 = 1 << 20;

type Gz = MultiGzDecoder<BufReader<File>>;

/// The most bytes of a member's name: together with the directory into which it is unpacked, a path must stay below Linux's 4,096.
const MOST_NAME: usize = 3 << 10;
/// The most members of one archive: a real node's has some hundreds.
const MOST_MEMBERS: usize = 100_000;
/// The suffix of static pods' manifests, whose text is kept.
const POD_MANIFEST: &str = "-pod.yaml";

/// The content of one archive.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Every name.
    pub(super) names: BTreeSet<PathBuf>,
    /// The text of members that are named like manifests of static pods, at the top of their revision.
    pub(super) manifests: BTreeMap<PathBuf, String>,
    /// The names of members that are not directories.
    files: BTreeSet<PathBuf>,
}

/// The members of the tar.gz `file`, read to the end (gzip's checksum comes after the tar).
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it cannot be read to its end, or when a member cannot be unpacked at
/// its own path.
pub(super) fn of(file: &Path) -> Result<Members> {
    let mut members = Members::default();
    each(file, |name, entry| members.see(name, entry))?;
    Ok(members)
}

/// Unpacks the tar.gz `file` into the new directory `into`; returns its members.
///
/// # Errors
/// As [`of`], before anything is written; when something cannot be written.
pub(super) fn unpack(file: &Path, into: &Path) -> Result<Members> {
    let members = of(file)?;
    durable::create_dir(into, 0o700)?;
    let mut times = Vec::new();
    each(file, |name, entry| {
        let target = into.join(name);
        if entry.header().entry_type().is_dir() {
            times.push((target, SystemTime::UNIX_EPOCH + Duration::from_secs(entry.header().mtime().unwrap_or(0))));
        } else if link(entry)?.is_some_and(|to| to == name) {
            return Ok(());
        } else {
            durable::remove(&target)?;
        }
        entry.unpack_in(into).map(drop).with_context(|| format!("unpacking {}", name.display()))
    })?;
    // Unpacking into a directory has changed its time.
    for (dir, time) in times {
        File::open(&dir).and_then(|open| open.set_modified(time)).with_context(|| format!("setting the time of {}", dir.display()))?;
    }
    Ok(members)
}

impl Members {
    /// The names of members that are not directories, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(PathBuf::as_path)
    }

    fn see(&mut self, name: &Path, entry: &mut Entry<'_, Gz>) -> Result<()> {
        let shown = name.display();
        if name.components().count() > MOST_LEVELS || name.as_os_str().len() > MOST_NAME {
            return Err(unsupported(format!(
                "a name in it has more than {MOST_LEVELS} levels or {MOST_NAME} bytes, which is not supported: pack it without that name"
            )));
        }
        let is_dir = entry.header().entry_type().is_dir();
        let below = || self.names.range(name.to_owned()..).nth(usize::from(self.names.contains(name))).is_some_and(|n| n.starts_with(name));
        let in_place = name.ancestors().skip(1).any(|above| self.files.contains(above));
        if in_place
            || (is_dir && self.files.contains(name))
            || (!is_dir && (below() || self.names.contains(name) != self.files.contains(name)))
        {
            return Err(damaged(format!("{shown} and another name in it have conflicting paths")));
        }
        if let Some(to) = link(entry)?
            && !self.files.contains(&to)
        {
            return Err(damaged(format!("{shown} in it is a link to {}, which does not come before it", to.display())));
        }
        if !is_dir {
            self.files.insert(name.to_owned());
        }
        self.names.insert(name.to_owned());
        if self.names.len() > MOST_MEMBERS {
            return Err(unsupported(format!("it has more than {MOST_MEMBERS} members, which is the limit")));
        }
        if name.as_os_str().to_string_lossy().ends_with(POD_MANIFEST) && name.components().count() == 3 {
            self.keep(name, entry)?;
        }
        Ok(())
    }

    /// Keeps the text of a manifest.
    fn keep(&mut self, name: &Path, entry: &mut Entry<'_, Gz>) -> Result<()> {
        let text = match link(entry)? {
            Some(to) => self.manifests.get(&to).cloned().unwrap_or_default(),
            None if entry.size() > MOST_FILE => {
                return Err(damaged(format!("{} in it has {} bytes; no more than {MOST_FILE} are read", name.display(), entry.size())));
            }
            None => {
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                String::from_utf8(text).map_err(|_| damaged(format!("{} in it is not text", name.display())))?
            }
        };
        self.manifests.insert(name.to_owned(), text);
        Ok(())
    }
}

/// Calls `see` with each member and its plain name.
fn each(file: &Path, mut see: impl FnMut(&Path, &mut Entry<'_, Gz>) -> Result<()>) -> Result<()> {
    let mut read = || -> Result<()> {
        let mut archive = open(file)?;
        for entry in archive.entries()? {
            interrupted()?;
            let mut entry = entry?;
            if entry.header().entry_type().is_pax_global_extensions() {
                continue;
            }
            let name = plain(&entry.path()?)?;
            if !name.as_os_str().is_empty() {
                see(&name, &mut entry)?;
            }
            std::io::copy(&mut entry, &mut std::io::sink())?;
        }
        // The tar ends before the gzip does: the rest must be sound as well.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
        Ok(())
    };
    read().map_err(|error| match error.downcast::<std::io::Error>() {
        Ok(error) => damaged(format!("{} is damaged: {error}", file.display())),
        Err(error) => error.context(format!("reading {}", file.display())),
    })
}

fn open(file: &Path) -> Result<Archive<Gz>> {
    let open = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let mut archive = Archive::new(MultiGzDecoder::new(BufReader::new(open)));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_unpack_xattrs(true);
    Ok(archive)
}

/// The target of a hard link; `None` for other members.
fn link(entry: &Entry<'_, Gz>) -> Result<Option<PathBuf>> {
    if !entry.header().entry_type().is_hard_link() {
        return Ok(None);
    }
    let to = entry.link_name()?.ok_or_else(|| damaged("it holds a link to nothing"))?;
    if to.is_absolute() {
        return Err(unsupported(format!(
            "it holds a hard link to {}, whose name begins with a slash, which is not supported: pack it without tar's option -P",
            to.display()
        )));
    }
    plain(&to).map(Some)
}

/// A name without `.` in it and without a leading slash, which tar drops too when it unpacks. A name that could lead out of a directory is
/// refused.
fn plain(name: &Path) -> Result<PathBuf> {
    let name: PathBuf = name.components().filter(|c| !matches!(c, Component::CurDir | Component::RootDir)).collect();
    if name.components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(name)
    } else {
        Err(damaged(format!("it holds the name {}", name.display())))
    }
}
