//! `SHA256SUMS`: writing it, and checking a backup against it, so that `sha256sum -c SHA256SUMS` says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::manifest::Manifest;
use super::{Backup, ETCD, MANDATORY, MANIFEST, SUMS, store};
use crate::archive::{Archive, Tick};
use crate::error::{damaged, exit_code, not_now, unsupported};
use crate::etcd;
use crate::node::{clock::interrupted, durable};
use crate::report::Progress;

/// The most `SHA256SUMS` is read of: that of a backup has less than 1 KiB.
const MOST: u64 = 64 << 10;
/// So many characters of a line of it are quoted.
const QUOTED: usize = 100;

/// Size and SHA-256 (hex) of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
}

/// What a check of one backup found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// The backup.
    pub id: String,
    /// True when the contents of the archives were checked too.
    pub deep: bool,
    /// True when nothing is wrong.
    pub good: bool,
    /// Its files, as they are.
    pub files: BTreeMap<String, Sum>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// True when all that is wrong is that this agent does not take it: nothing is damaged.
    pub unsupported: bool,
}

impl VerifyReport {
    pub(super) fn of(id: &str, deep: bool, files: BTreeMap<String, Sum>, problems: Problems) -> Self {
        let (good, unsupported) = (problems.said.is_empty(), !problems.said.is_empty() && !problems.damage);
        Self { id: id.to_owned(), deep, good, files, problems: problems.said, unsupported }
    }

    /// That `what` is not good, and why.
    pub(super) fn refusal(&self, what: &str) -> anyhow::Error {
        let why = self.problems.join("; ");
        if self.unsupported { unsupported(format!("{what} is not supported: {why}")) } else { damaged(format!("{what} is damaged: {why}")) }
    }
}

/// What is wrong with a backup, while it is looked at.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) said: Vec<String>,
    damage: bool,
}

impl Problems {
    /// Notes that something is damaged.
    pub(super) fn damaged(&mut self, what: String) {
        self.said.push(what);
        self.damage = true;
    }

    /// Notes a failure of looking at something. An interruption is none, and returned.
    pub(super) fn note(&mut self, error: anyhow::Error, said: impl FnOnce(&anyhow::Error) -> String) -> Result<()> {
        let code = exit_code(&error);
        if code == 75 {
            return Err(error);
        }
        self.said.push(said(&error));
        self.damage |= code != 64;
        Ok(())
    }
}

/// Checks every file against `SHA256SUMS`, and that nothing is missing or added. `deep` also decompresses everything: every content of an archive
/// against its index, the etcd snapshot against its trailer.
///
/// # Errors
/// [`Failure::Damaged`](crate::error::Failure::Damaged) with all that is wrong,
/// [`Failure::Unsupported`](crate::error::Failure::Unsupported) when that is damage nowhere;
/// [`Failure::NotNow`](crate::error::Failure::NotNow) when interrupted.
pub fn verify(backup: &Backup, deep: bool, progress: &Progress) -> Result<()> {
    let report = report(&backup.path, &backup.id, deep, progress)?;
    if report.good { Ok(()) } else { Err(report.refusal(&format!("the backup {}", report.id))) }
}

/// As [`verify`], for any directory that should be the backup `id`; what is wrong is in the report.
///
/// # Errors
/// When the agent is interrupted; [`Failure::NotNow`](crate::error::Failure::NotNow), too, when the backup is deleted meanwhile.
pub fn report(path: &Path, id: &str, deep: bool, progress: &Progress) -> Result<VerifyReport> {
    let mut problems = Problems::default();
    match complete(path) {
        Ok(manifest) if manifest.id != id => problems.damaged(format!("its manifest says that it is {}", manifest.id)),
        Ok(_) => {}
        Err(error) => problems.note(error, |error| format!("{error:#}"))?,
    }
    let sums = read_sums(path).unwrap_or_default();
    let names: Vec<String> = sums.keys().filter(|name| is_file(&path.join(name))).cloned().collect();
    let total = names.iter().filter_map(|n| path.join(n).metadata().ok()).map(|m| m.len()).sum();
    let task = progress.task(&format!("checking {id}"), Some(total));
    let mut files = BTreeMap::new();
    for (name, result) in hash_all(path, &names, &|bytes| task.add(bytes))? {
        match result {
            Ok(sum) => {
                if sum.sha256 != sums[&name] {
                    problems.damaged(format!("{name} is not what {SUMS} says"));
                }
                files.insert(name, sum);
            }
            Err(error) => problems.note(error, |error| format!("{error:#}"))?,
        }
    }
    if deep {
        task.note("contents");
        for name in &names {
            interrupted()?;
            if let Err(error) = check_content(&path.join(name), &|_| {}) {
                problems.note(error, |error| format!("{name}: {error:#}"))?;
            }
        }
    }
    // What is missing because all of it is, is no damage.
    if !problems.said.is_empty() && store::is_gone(path) {
        return Err(not_now(format!("the backup {id} was deleted while it was checked")));
    }
    Ok(VerifyReport::of(id, deep, files, problems))
}

/// Reads the manifest of the backup at `path`, and checks that it names every [part that a recovery needs](MANDATORY) and that its files are exactly
/// those that `SHA256SUMS` lists. Nothing is hashed.
///
/// # Errors
/// [`Failure::Damaged`](crate::error::Failure::Damaged) with the first thing that is wrong.
pub(super) fn complete(path: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(path)?;
    if let Some(name) = MANDATORY.into_iter().find(|name| !manifest.sizes.contains_key(*name)) {
        return Err(damaged(format!("its manifest names no {name}, without which no node can be recovered")));
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

/// Writes `SHA256SUMS` of `sums` into `path`, durably.
pub(super) fn write_sums(path: &Path, sums: &BTreeMap<String, Sum>) -> Result<()> {
    let lines: Vec<String> = sums.iter().map(|(name, sum)| format!("{}  {name}", sum.sha256)).collect();
    durable::write(&path.join(SUMS), (lines.join("\n") + "\n").as_bytes(), 0o600)
}

/// Name and sum of each line of `SHA256SUMS`, as sha256sum(1) prints them.
fn read_sums(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = String::from_utf8(super::read_small(path, SUMS, MOST)?).map_err(|_| damaged(format!("its {SUMS} is not text")))?;
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let wrong = || damaged(format!("{SUMS} has a line that is no sum: `{}`", quoted(line)));
        let (sum, name) = line.split_once("  ").ok_or_else(wrong)?;
        let hex = sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
        if !hex
            || name.is_empty()
            || name.contains('/')
            || name.starts_with('.')
            || sums.insert(name.to_owned(), sum.to_lowercase()).is_some()
        {
            return Err(wrong());
        }
    }
    Ok(sums)
}

/// The beginning of a line, for a message.
fn quoted(line: &str) -> String {
    let mut start: String = line.chars().take(QUOTED).collect::<String>().escape_default().collect();
    if line.chars().nth(QUOTED).is_some() {
        start += "…";
    }
    start
}

/// Whether a file that was just written may be read from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// Whatever is quickest.
    Take,
    /// From the disk: what was written is to be seen as it arrived there.
    Drop,
}

/// Hashes files of the directory `path`, the largest first, on both cores.
fn hash_all(path: &Path, names: &[String], tick: Tick<'_>) -> Result<Vec<(String, Result<Sum>)>> {
    let size = |name: &String| path.join(name).metadata().map_or(0, |m| m.len());
    let mut order: Vec<&String> = names.iter().collect();
    order.sort_by_key(|name| std::cmp::Reverse(size(name)));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(name) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(((*name).clone(), hash(&path.join(name), Cached::Take, tick)));
        }
        done
    };
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut results = work();
        results.extend(other.join().map_err(|_| anyhow::anyhow!("a thread that was hashing {} panicked", path.display()))?);
        anyhow::Ok(results)
    })?;
    interrupted()?;
    Ok(results)
}

/// Size and SHA-256 of one file.
pub(super) fn hash(path: &Path, cached: Cached, tick: Tick<'_>) -> Result<Sum> {
    let read = || -> Result<Sum> {
        let mut file = File::open(path)?;
        if cached == Cached::Drop {
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; 256 << 10], 0);
        loop {
            interrupted()?;
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(Sum { bytes, sha256: HEXLOWER.encode(&hasher.finalize()) });
            }
            hasher.update(&buffer[..count]);
            bytes += count as u64;
            tick(count as u64);
        }
    };
    read().with_context(|| format!("hashing {}", path.display()))
}

/// Decompresses an archive or the snapshot and checks what is in it; any other file passes.
pub(super) fn check_content(file: &Path, tick: Tick<'_>) -> Result<()> {
    if file.ends_with(ETCD) {
        etcd::verify(file, tick)
    } else if file.to_string_lossy().ends_with(".tar.zst") {
        Archive::open(file)?.verify(tick)
    } else {
        Ok(())
    }
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}
