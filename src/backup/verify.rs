//! The one judge of a backup, for `verify`, for what publishes one, and for a recovery: its files are those that were written, and a recovery takes
//! them. `SHA256SUMS`: writing it, and checking a backup against it, so that `sha256sum -c SHA256SUMS` says the same.

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
use super::{Backup, ETC, ETCD, EXTRAS, KUBELET, MANDATORY, MANIFEST, STATIC_PODS, SUMS, USR_LOCAL, store};
use crate::archive::{Archive, Tick};
use crate::error::{Failure, FailureKind, busy, damaged, kind};
use crate::etcd;
use crate::node::{clock::interrupted, durable, profile::Profile};
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
    /// Bytes of all that was looked at.
    pub bytes: u64,
    /// Its files, as they are; of an old backup, which has no sums, none are listed.
    pub files: BTreeMap<String, Sum>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// The kind of failure of a recovery that is asked for it; none when it is good.
    pub kind: Option<FailureKind>,
}

impl VerifyReport {
    /// What was found of the backup `id`: all that is `wrong` with it.
    pub(super) fn new(id: &str, deep: bool, files: BTreeMap<String, Sum>, wrong: &[anyhow::Error]) -> Self {
        // Where not all is of one kind, something is damaged, and so is what cannot be read.
        let mut kinds = wrong.iter().map(|error| match kind(error) {
            kind @ (FailureKind::Unsupported | FailureKind::Misfit) => kind,
            _ => FailureKind::Damaged,
        });
        let kind = kinds.next().map(|first| if kinds.all(|kind| kind == first) { first } else { FailureKind::Damaged });
        let problems = wrong.iter().map(|error| format!("{error:#}")).collect();
        let bytes = files.values().map(|sum| sum.bytes).sum();
        Self { id: id.to_owned(), deep, good: wrong.is_empty(), bytes, files, problems, kind }
    }

    /// What to call a backup that is not good.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.kind {
            Some(FailureKind::Unsupported) => "not supported",
            Some(FailureKind::Misfit) => "not usable",
            _ => "damaged",
        }
    }

    /// The failure of whoever needs the backup, which messages call `what`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] with all that is wrong; [`FailureKind::Unsupported`] or
    /// [`FailureKind::Misfit`] when it is sound, and a recovery does not take it.
    pub fn accept(&self, what: &str) -> Result<()> {
        if self.good { Ok(()) } else { Err(self.failure(format!("{what} is {}: {}", self.verdict(), self.problems.join("; ")))) }
    }

    /// A failure of the kind that this report is of, which says `text`.
    #[must_use]
    pub fn failure(&self, text: String) -> anyhow::Error {
        Failure { kind: self.kind.unwrap_or(FailureKind::Damaged), message: text, next: None }.into()
    }
}

/// Checks every file against `SHA256SUMS`, that nothing is missing or added, and that each file is one that [a recovery takes](check_part). `deep` also
/// decompresses everything: every content of an archive against its index, and all of the etcd snapshot.
///
/// # Errors
/// As [`VerifyReport::accept`]; as [`report`].
pub fn verify(backup: &Backup, deep: bool, progress: &Progress) -> Result<()> {
    report(&backup.path, &backup.id, deep, progress)?.accept(&format!("the backup {}", backup.id))
}

/// As [`verify`], for any directory that should be the backup `id`; what is wrong is in the report.
///
/// # Errors
/// [`FailureKind::Interrupted`] when the agent is interrupted, or when the backup is deleted meanwhile;
/// [`FailureKind::NoSpace`] without scratch space for the snapshot.
pub fn report(path: &Path, id: &str, deep: bool, progress: &Progress) -> Result<VerifyReport> {
    let mut wrong = Vec::new();
    let manifest = complete(path).map_err(|error| wrong.push(error)).ok();
    if let Some(other) = manifest.as_ref().map(|manifest| &manifest.id).filter(|other| *other != id) {
        wrong.push(damaged(format!("its manifest says that it is {other}")));
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
                    wrong.push(damaged(format!("{name} is not what {SUMS} says")));
                }
                files.insert(name, sum);
            }
            Err(error) => wrong.push(error),
        }
    }
    task.note("contents");
    let profile = manifest.map(|manifest| manifest.profile.profile());
    for name in &names {
        interrupted()?;
        match check_part(path, name, profile, deep) {
            // An interruption is no damage, nor is a lack of scratch space.
            Err(error) if matches!(kind(&error), FailureKind::NoSpace | FailureKind::Interrupted) => return Err(error),
            Err(error) => wrong.push(error),
            Ok(()) => {}
        }
    }
    // What is missing because all of it is, is no damage.
    if !wrong.is_empty() && store::is_gone(path) {
        return Err(busy(format!("the backup {id} was deleted while it was checked")));
    }
    Ok(VerifyReport::new(id, deep, files, &wrong))
}

/// Checks the file `name` of the backup at `path` as a recovery takes it: what is right by its sum can be hostile, of a kind that is not taken, or
/// without what a node needs. An archive is opened, which checks every name in it; that of the static pods has the manifests that are put in place by
/// name (those of `profile`, when that is known); the snapshot begins as one does. `deep` reads all of it, too, and the structure of the snapshot.
/// Any other file passes.
///
/// # Errors
/// As [`Archive::open`], [`Archive::verify`], [`etcd::look`], [`etcd::check_restorable`].
pub(super) fn check_part(path: &Path, name: &str, profile: Option<&Profile>, deep: bool) -> Result<()> {
    let (file, ticks) = (path.join(name), |_| {});
    let check = || match name {
        ETCD => {
            etcd::look(&file)?;
            if deep { etcd::check_restorable(&file, &ticks) } else { Ok(()) }
        }
        ETC | USR_LOCAL | KUBELET | STATIC_PODS | EXTRAS => {
            let archive = Archive::open(&file)?;
            if let Some(profile) = profile.filter(|_| name == STATIC_PODS) {
                has_manifests(&archive, profile)?;
            }
            if deep { archive.verify(&ticks) } else { Ok(()) }
        }
        _ => Ok(()),
    };
    check().with_context(|| name.to_owned())
}

/// The static pods that a recovery starts first, one by one: nothing else starts before they run.
fn has_manifests(archive: &Archive, profile: &Profile) -> Result<()> {
    for pod in [profile.etcd(), profile.api_server()] {
        let manifest = profile.manifest(pod);
        if !archive.paths().any(|path| Path::new(profile.kubernetes).join(path) == manifest) {
            return Err(damaged(format!("it holds no {}, without which no node can be recovered", manifest.display())));
        }
    }
    Ok(())
}

/// Reads the manifest of the backup at `path`, and checks that it names every [part that a recovery needs](MANDATORY) and that its files are exactly
/// those that `SHA256SUMS` lists. Nothing is hashed.
///
/// # Errors
/// [`FailureKind::Damaged`] with the first thing that is wrong.
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

/// Name and sum of each line of `SHA256SUMS`, as sha256sum(1) prints them: with `*` before the name for `--binary`, and `./` when it was asked for `./*`.
fn read_sums(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = String::from_utf8(super::read_small(path, SUMS, MOST)?).map_err(|_| damaged(format!("its {SUMS} is not text")))?;
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let wrong = || damaged(format!("{SUMS} has a line that is no sum: `{}`", quoted(line)));
        let (sum, name) = line.split_once("  ").or_else(|| line.split_once(" *")).ok_or_else(wrong)?;
        let name = name.strip_prefix("./").unwrap_or(name);
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

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_file())
}
