//! `SHA256SUMS`: size and sum of each file of a backup, written so that `sha256sum -c SHA256SUMS` says the same as `recovery verify`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::layout::{SUMS, read_small};
use crate::archive::Tick;
use crate::error::damaged;
use crate::node::{clock::interrupted, durable};

/// The most bytes of `SHA256SUMS` that are read: a backup's has less than 1 KiB.
const MOST_SUMS: u64 = 64 << 10;
/// The most characters of a line that are quoted.
const QUOTED: usize = 100;

/// Size and SHA-256 (hex) of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
}

/// Writes `SHA256SUMS` of `sums` into `path`, durably.
pub(super) fn write_sums(path: &Path, sums: &BTreeMap<String, Sum>) -> Result<()> {
    let lines: Vec<String> = sums.iter().map(|(name, sum)| format!("{}  {name}", sum.sha256)).collect();
    durable::write(&path.join(SUMS), (lines.join("\n") + "\n").as_bytes(), 0o600)
}

/// SHA-256 (hex) of the `SHA256SUMS` of the backup in the directory `path`: by it a backup is known from afar.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> Result<String> {
    Ok(HEXLOWER.encode(&Sha256::digest(read_small(path, SUMS, MOST_SUMS)?)))
}

/// Name and sum of each line of `SHA256SUMS`, in the format of sha256sum(1): with `*` before the name for `--binary`, and `./` when it was
/// called with `./*`, in each line the same. What sha256sum(1) would pass over and does not write, as a sum in capitals or a last line without its
/// end, is damage.
pub(super) fn read_sums(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = String::from_utf8(read_small(path, SUMS, MOST_SUMS)?).map_err(|_| damaged(format!("its {SUMS} is not text")))?;
    let between = ["  ./", " *./", "  ", " *"].into_iter().find(|between| text.get(64..).is_some_and(|rest| rest.starts_with(between)));
    let end = if text.ends_with("\r\n") { "\r\n" } else { "\n" };
    let mut sums = BTreeMap::new();
    for line in text.split_terminator(end) {
        let wrong = || damaged(format!("{SUMS} has a line that is not a checksum: `{}`", quoted(line)));
        let (sum, name) = between.and_then(|between| line.split_once(between)).ok_or_else(wrong)?;
        let hex = sum.len() == 64 && sum.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        if !hex || name.is_empty() || name.contains('/') || name.starts_with('.') || sums.insert(name.to_owned(), sum.to_owned()).is_some()
        {
            return Err(wrong());
        }
    }
    if !text.ends_with('\n') {
        return Err(damaged(format!("its {SUMS} is cut off")));
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
    /// It may, whatever is quickest.
    Take,
    /// It must come from the disk, to see what arrived there.
    Drop,
}

/// Hashes files of the directory `path`, the largest first, on both cores.
pub(super) fn hash_all(path: &Path, names: &[String], tick: Tick<'_>) -> Result<Vec<(String, Result<Sum>)>> {
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
