//! The archive while it is written: tar in zstd, entry by entry, with bounds on each and on all, and what could not be had.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tar::{Builder, Header};

use super::redact::redact;
use crate::error::{FailureKind, kind};
use crate::node::clock::interrupted;
use crate::node::durable;

/// The most bytes of one entry: of more, the end is kept, which in a log is the newest.
const MOST_OF_ONE: usize = 8 << 20;
/// The beginning of an end: what in it is a secret, a name before it may have said, or the begin of a key. It is read, and left out.
const MARGIN: usize = 128 << 10;
/// The most bytes that are read for one entry, from the end.
pub(super) const READ: usize = MOST_OF_ONE + MARGIN;
/// The most bytes of all entries together.
const MOST: usize = 64 << 20;
/// Logs compress well at any level.
const LEVEL: i32 = 3;

/// What is in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name, below the archive's one directory.
    pub name: String,
    /// Its bytes.
    pub bytes: usize,
    /// Only its end is there.
    pub cut: bool,
}

/// What is not in it, or not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The name that it would have.
    pub name: String,
    /// Why.
    pub why: String,
}

/// An archive that is being written, under the name of a temporary file.
pub(super) struct Bundle {
    tar: Builder<zstd::Encoder<'static, File>>,
    part: PathBuf,
    top: String,
    left: usize,
    time: u64,
    pub(super) entries: Vec<Entry>,
    pub(super) missing: Vec<Missing>,
}

impl Bundle {
    /// Begins an archive that will be `file`; all of its entries are below the directory `top`. `time`: seconds since the epoch.
    pub(super) fn begin(file: &Path, top: &str, time: u64) -> Result<Self> {
        let part = durable::beside(file)?;
        // Left by a call that was killed.
        durable::remove(&part)?;
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .with_context(|| format!("making {}", part.display()))?;
        let mut encoder = zstd::Encoder::new(made, LEVEL)?;
        encoder.include_checksum(true)?;
        let tar = Builder::new(encoder);
        Ok(Self { tar, part, top: top.to_owned(), left: MOST, time, entries: Vec::new(), missing: Vec::new() })
    }

    /// Adds what `read` finds, without its secrets; what it cannot find is noted.
    ///
    /// # Errors
    /// When the archive cannot be written, or the agent is interrupted.
    pub(super) fn add(&mut self, name: &str, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        interrupted()?;
        match read() {
            Ok(bytes) => self.put(name, &bytes),
            Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
            Err(error) => {
                self.lacks(name, &format!("{error:#}"));
                Ok(())
            }
        }
    }

    /// Notes what could not be had. A message can quote what a program has printed.
    pub(super) fn lacks(&mut self, name: &str, why: &str) {
        self.missing.push(Missing { name: name.to_owned(), why: redact(why).into_owned() });
    }

    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let text = redact(&text);
        let most = if bytes.len() >= READ { text.len().saturating_sub(MARGIN) } else { text.len() };
        let kept = end(&text, most.min(MOST_OF_ONE));
        if kept.len() > self.left {
            self.lacks(name, &format!("the archive would have more than {} MiB", MOST >> 20));
            return Ok(());
        }
        self.left -= kept.len();
        self.write(name, kept)?;
        self.entries.push(Entry { name: name.to_owned(), bytes: kept.len(), cut: kept.len() < text.len() });
        Ok(())
    }

    fn write(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{name}", self.top);
        self.tar.append_data(&mut header, path, text.as_bytes()).with_context(|| format!("writing {}", self.part.display()))
    }

    /// Writes the two lists of what is in it and what is not, makes all of it durable, and gives it its name; its size, bytes.
    ///
    /// # Errors
    /// When that fails, or a file has got the name meanwhile.
    pub(super) fn finish(mut self, file: &Path, about: &str) -> Result<(u64, Vec<Entry>, Vec<Missing>)> {
        let list: String = self
            .entries
            .iter()
            .map(|entry| format!("{:>10}  {}{}\n", entry.bytes, entry.name, if entry.cut { "  (its end)" } else { "" }))
            .collect();
        let errors: String = self.missing.iter().map(|missing| format!("{}: {}\n", missing.name, missing.why)).collect();
        self.write("contents.txt", &format!("{about}\n{list}"))?;
        self.write("errors.txt", &errors)?;
        let finish = || -> Result<u64> {
            let stored = self.tar.into_inner()?.finish()?;
            stored.sync_all()?;
            let bytes = stored.metadata()?.len();
            durable::name_new(&self.part, file)?;
            Ok(bytes)
        };
        let bytes = finish().with_context(|| format!("writing {}", file.display()))?;
        Ok((bytes, self.entries, self.missing))
    }
}

/// The end of a text that is longer than this, from the beginning of a line.
fn end(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let rest = (text.len() - most..text.len()).find_map(|at| text.get(at..)).unwrap_or_default();
    rest.split_once('\n').map_or(rest, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_too_long_the_last_lines_are_kept() {
        let text = "first \u{e9}\nsecond \u{e9}\nthird\n";
        assert_eq!((end(text, 100), end(text, 20), end(text, 14), end(text, 6)), (text, "second \u{e9}\nthird\n", "third\n", ""));
        assert_eq!(end("one line", 4), "line");
    }

    /// The line before may have said that it is a secret.
    #[test]
    fn nothing_is_kept_of_the_beginning_of_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::begin(&dir.path().join("a.tar.zst"), "top", 0).unwrap();
        let mut log = b"hidden\n".to_vec();
        log.resize(READ - 5, b'\n');
        log.extend(b"last\n");
        bundle.put("log", &log).unwrap();
        assert!(bundle.entries[0].cut && bundle.entries[0].bytes < log.len() - MARGIN, "{:?}", bundle.entries);
        bundle.put("short", b"hidden\n").unwrap();
        assert!(!bundle.entries[1].cut && bundle.entries[1].bytes == 7);
    }

    #[test]
    fn the_archive_has_bounds_and_takes_no_name_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar.zst");
        let mut bundle = Bundle::begin(&file, "top", 0).unwrap();
        bundle.left = 85;
        for number in 0..9 {
            bundle.add(&format!("logs/{number}"), || Ok(b"ten bytes\n".to_vec())).unwrap();
        }
        bundle.add("gone", || anyhow::bail!("the file is gone: password=hidden")).unwrap();
        assert_eq!((bundle.entries.len(), bundle.missing.len()), (8, 2));
        assert!(!bundle.missing[1].why.contains("hidden"));
        std::fs::write(&file, "somebody's").unwrap();
        assert!(bundle.finish(&file, "about").is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "somebody's");
    }
}
