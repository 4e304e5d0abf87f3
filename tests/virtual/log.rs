//! What was written to a disk, in its order, and when it was flushed: the log that QEMU's `blklogwrites` keeps, in the format of the kernel's
//! dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst). From it follows what is on the disk when the power fails at any moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use real_node::command::{Limit, checked};

/// The unit of the log, bytes.
pub(crate) const SECTOR: u64 = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Flags of an entry.
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;

/// A write, or a flush.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where, bytes.
    at: u64,
    length: u64,
    /// Where in the log its bytes are.
    bytes: u64,
    /// All writes before it are on the disk for good when it has ended.
    flushes: bool,
}

/// The log of a disk.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    entries: Vec<Entry>,
}

/// What becomes of the writes that came to the disk after the last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// None is there.
    Lost,
    /// All are.
    Kept,
    /// Of each, chance decides by this seed: it is there, it is not, or some of its parts are.
    Torn(u64),
}

/// A power cut: after so many entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) after: usize,
    pub(crate) fate: Fate,
}

impl Log {
    /// Reads one, also of a machine that was killed.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut first = [0; 32];
        file.read_exact_at(&mut first, 0)?;
        ensure!(word(&first, 0) == MAGIC && word(&first, 1) == 1, "{} is no log of a disk: {first:x?}", path.display());
        let size = word(&first, 3) & u64::from(u32::MAX);
        ensure!(size == SECTOR, "sectors of {size} bytes");
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        for number in 0..word(&first, 2) {
            let mut head = [0; 32];
            file.read_exact_at(&mut head, at).with_context(|| format!("reading entry {number}"))?;
            let [sector, sectors, flags] = [0, 1, 2].map(|field| word(&head, field));
            ensure!(flags & !FLUSH == 0, "entry {number} has the flags {flags:#x}: {FORCED} or {DISCARD}, which no disk here has");
            // Where a machine was killed, what comes to the log at the same time may have left a hole.
            ensure!(sectors > 0 || flags == FLUSH, "entry {number} was not written to its end");
            entries.push(Entry { at: sector * SECTOR, length: sectors * SECTOR, bytes: at + SECTOR, flushes: flags & FLUSH != 0 });
            at += SECTOR * (1 + sectors);
        }
        Ok(Self { file, entries })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The number of the write to this place of a disk.
    pub(crate) fn write_to(&self, at: u64) -> Result<usize> {
        self.entries.iter().position(|entry| entry.at == at && entry.length > 0).with_context(|| format!("nothing was written to {at}"))
    }

    /// The number of the first write from `from` on that has these bytes.
    pub(crate) fn first_with(&self, from: usize, bytes: &[u8]) -> Result<usize> {
        for (number, entry) in self.entries.iter().enumerate().skip(from) {
            if self.bytes(entry)?.windows(bytes.len()).any(|window| window == bytes) {
                return Ok(number);
            }
        }
        anyhow::bail!("no write has `{}`", String::from_utf8_lossy(bytes))
    }

    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(entry.length)?];
        self.file.read_exact_at(&mut bytes, entry.bytes)?;
        Ok(bytes)
    }
}

/// A number of 64 bits, least significant byte first.
fn word(bytes: &[u8], number: usize) -> u64 {
    bytes[number * 8..].iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A disk as it is after one power cut and another, the moments in their order.
pub(crate) struct Replay<'a> {
    log: &'a Log,
    /// As the last flush left it: the entries before this one are written.
    image: File,
    path: &'a Path,
    done: usize,
    /// What is written whole or not at all, bytes.
    whole: u64,
}

impl<'a> Replay<'a> {
    /// `image` is the disk as it was before the log began, and is changed. It writes so many bytes whole or not at all.
    pub(crate) fn new(log: &'a Log, image: &'a Path, whole: u64) -> Result<Self> {
        Ok(Self { log, image: File::options().write(true).open(image)?, path: image, done: 0, whole })
    }

    /// Makes `to` the disk after a cut, which is not before the one before it.
    pub(crate) fn cut(&mut self, cut: Cut, to: &Path) -> Result<()> {
        let flushed = self.log.entries[..cut.after].iter().rposition(|entry| entry.flushes).map_or(0, |flush| flush + 1);
        ensure!(flushed >= self.done, "the moments are not in their order");
        for entry in &self.log.entries[self.done..flushed] {
            self.image.write_all_at(&self.log.bytes(entry)?, entry.at)?;
        }
        self.done = flushed;
        checked(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).args([self.path, to]), Limit::of(60))?;
        let (image, mut chance) = (File::options().write(true).open(to)?, Chance(0));
        if let Fate::Torn(seed) = cut.fate {
            chance = Chance::of(seed);
        }
        for entry in &self.log.entries[flushed..cut.after] {
            let bytes = self.log.bytes(entry)?;
            let kept = match cut.fate {
                Fate::Lost => 0,
                Fate::Kept => 2,
                Fate::Torn(_) => chance.below(3),
            };
            let mut from = 0;
            while from < entry.length {
                let end = ((entry.at + from) / self.whole + 1) * self.whole - entry.at;
                let part = usize::try_from(from)?..usize::try_from(end.min(entry.length))?;
                if kept == 2 || kept == 1 && chance.below(2) == 0 {
                    image.write_all_at(&bytes[part], entry.at + from)?;
                }
                from = end;
            }
        }
        Ok(())
    }
}

/// Numbers that look like chance, the same for the same seed: xorshift64.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn of(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 11) % u64::from(end)).unwrap_or_default()
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after {} ", self.after)?;
        match self.fate {
            Fate::Lost => f.write_str("lost"),
            Fate::Kept => f.write_str("kept"),
            Fate::Torn(seed) => write!(f, "torn {seed}"),
        }
    }
}

#[test]
fn what_was_flushed_stays_and_what_was_not_is_lost_kept_or_torn() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [path, image, to] = ["log", "image", "to"].map(|name| dir.path().join(name));
    let sector = |numbers: &[u64]| {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.resize(512, 0);
        bytes
    };
    // One sector of 1, a flush, eight sectors of 2 from the second on.
    let mut log = [sector(&[MAGIC, 1, 3, SECTOR]), sector(&[0, 1, 0, 0]), vec![1; 512], sector(&[0, 0, FLUSH, 0])].concat();
    log.extend([sector(&[1, 8, 0, 0]), vec![2; 8 * 512]].concat());
    std::fs::write(&path, log)?;
    std::fs::write(&image, [0; 9 * 512])?;
    let log = Log::read(&path)?;
    let mut replay = Replay::new(&log, &image, 512)?;
    let mut after = |after, fate| -> Result<Vec<u8>> {
        replay.cut(Cut { after, fate }, &to)?;
        // The first byte of each sector.
        Ok(std::fs::read(&to)?.chunks(512).map(|sector| sector[0]).collect())
    };
    assert_eq!(after(1, Fate::Lost)?, [0; 9]);
    assert_eq!(after(1, Fate::Kept)?, [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(after(3, Fate::Lost)?, [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(after(3, Fate::Kept)?, [1, 2, 2, 2, 2, 2, 2, 2, 2]);
    let torn = (0..20).map(|seed| after(3, Fate::Torn(seed))).collect::<Result<std::collections::BTreeSet<_>>>()?;
    assert!(torn.iter().all(|disk| disk[0] == 1) && torn.len() > 5, "{torn:?}");
    assert_eq!(after(3, Fate::Torn(7))?, after(3, Fate::Torn(7))?);
    assert_eq!((log.first_with(0, &[2, 2])?, log.write_to(512)?), (2, 2));
    Ok(())
}
