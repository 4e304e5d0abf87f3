//! A published backup: its directory, its manifest, and the check that all its files are there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::{MANIFEST, SUMS, is_file};
use super::manifest::Manifest;
use super::parts::Part;
use super::sums::read_sums;
use crate::error::damaged;

/// A published backup.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its id: the name of its directory.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Backup {
    /// The backup `id` in the directory `path`. The contents of its files are not read.
    ///
    /// # Errors
    /// As [`complete`]; [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not a directory, or its manifest has
    /// another id.
    pub(super) fn open(path: &Path, id: &str) -> Result<Self> {
        if !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            return Err(damaged("it is not a directory"));
        }
        let manifest = complete(path)?;
        if manifest.id != id {
            return Err(damaged(format!("its {MANIFEST} says that it is {}", manifest.id)));
        }
        Ok(Self { id: id.to_owned(), path: path.to_owned(), manifest })
    }

    /// One of its files.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Reads the manifest of the backup at `path`, and checks that it names every [part that a recovery needs](Part::mandatory) and that its
/// files are exactly those that `SHA256SUMS` lists. Nothing is hashed.
///
/// # Errors
/// As [`Manifest::read`]; [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) with the first thing that is wrong.
pub(super) fn complete(path: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(path)?;
    if let Some(part) = Part::mandatory().find(|part| !manifest.sizes.contains_key(part.file)) {
        return Err(damaged(format!("its {MANIFEST} does not name {}, which every recovery needs", part.file)));
    }
    let listed: BTreeSet<String> = read_sums(path)?.into_keys().collect();
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("listing {}", path.display()))? {
        let entry = entry.with_context(|| format!("listing {}", path.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_file(&entry.path()) {
            return Err(damaged(format!("{name} is not a regular file")));
        }
        if name != SUMS {
            there.insert(name);
        }
    }
    let expected: BTreeSet<String> = manifest.sizes.keys().cloned().chain([MANIFEST.to_owned()]).collect();
    if let Some(name) = expected.difference(&listed).next() {
        return Err(damaged(format!("{name} is not in {SUMS}")));
    }
    if let Some(name) = listed.difference(&there).next() {
        return Err(damaged(format!("{name} is missing")));
    }
    match there.difference(&listed).next() {
        Some(name) => Err(damaged(format!("{name} was added: it is not in {SUMS}"))),
        None => Ok(manifest),
    }
}
