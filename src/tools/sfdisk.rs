//! `sfdisk` and `partx` (util-linux 2.32 and later): the partition table on the disk, and the kernel's own idea of it.
//!
//! A table of a disk in use is written without asking the kernel to read it again, which it refuses while any partition is mounted; the one new
//! partition is told to it by itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::error::damaged;
use crate::node::Node;

/// The time limit of a write: it is a few sectors, on a disk that may be busy.
const LIMIT: Duration = Duration::from_secs(120);
/// "Linux filesystem data" (UAPI Discoverable Partitions Specification).
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// A partition table. Numbers are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its kind: `gpt`, `dos`.
    pub kind: String,
    /// Its identifier.
    pub id: String,
    /// The first byte that a partition may have.
    pub first: u64,
    /// The byte after the last one that a partition may have.
    pub end: u64,
    /// The partitions, by where they begin.
    pub partitions: Vec<Entry>,
}

/// A partition in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub number: u32,
    /// Its name (label) in the table.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// Its first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// A partition that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its name in the table.
    pub name: &'a str,
    /// Its identifier.
    pub id: &'a str,
    /// Its first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(Deserialize)]
struct Raw {
    partitiontable: RawTable,
}
#[derive(Deserialize)]
struct RawTable {
    label: String,
    #[serde(default)]
    id: String,
    firstlba: Option<u64>,
    lastlba: Option<u64>,
    #[serde(default)]
    partitions: Vec<RawEntry>,
}
#[derive(Deserialize)]
struct RawEntry {
    node: String,
    start: u64,
    size: u64,
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    name: String,
}

/// The table on the disk at `disk`, whose sectors have `sector` bytes. There has to be one: `sfdisk` does not say so by its exit status alone.
///
/// # Errors
/// When it cannot be read.
pub fn table(node: &Node, disk: &Path, sector: u64) -> Result<Table> {
    let output = node.command("sfdisk")?.arg("--json").arg(disk).limit(LIMIT).run().context("reading the partition table")?;
    parse(output.text()?, sector)
}

fn parse(json: &str, sector: u64) -> Result<Table> {
    let Raw { partitiontable: raw } =
        serde_json::from_str(json).map_err(|error| damaged(format!("`sfdisk --json` printed something else: {error}")))?;
    let bytes = |sectors: u64| sectors.checked_mul(sector).ok_or_else(|| damaged("the partition table has a number that no disk has"));
    let mut partitions = Vec::new();
    for entry in raw.partitions {
        // The name of the device ends in the number: sda4, nvme0n1p4.
        let digits = entry.node.len() - entry.node.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let number =
            entry.node[entry.node.len() - digits..].parse().with_context(|| format!("the number of the partition {}", entry.node))?;
        partitions.push(Entry { number, name: entry.name, id: entry.uuid, start: bytes(entry.start)?, size: bytes(entry.size)? });
    }
    partitions.sort_by_key(|entry| entry.start);
    let end = raw.lastlba.map_or(Ok(0), |last| bytes(last.saturating_add(1)))?;
    Ok(Table { kind: raw.label, id: raw.id, first: bytes(raw.firstlba.unwrap_or(0))?, end, partitions })
}

/// Adds a partition to the table on the disk at `disk`, in the next free number; with `new_table`, makes a GPT of that identifier first. The kernel does
/// not hear of it.
///
/// # Errors
/// When it cannot be written.
pub fn add(node: &Node, disk: &Path, sector: u64, new_table: Option<&str>, new: New<'_>) -> Result<()> {
    ensure!(new.start.is_multiple_of(sector) && new.size.is_multiple_of(sector), "a partition begins and ends with a sector");
    // A disk whose best size of a write is above 1 MiB would have its first partition later than that.
    let first = (1 << 20) / sector;
    let head = new_table.map_or_else(String::new, |id| format!("label: gpt\nlabel-id: {id}\nfirst-lba: {first}\n"));
    let script =
        format!("{head}start={}, size={}, type={LINUX}, uuid={}, name=\"{}\"\n", new.start / sector, new.size / sector, new.id, new.name);
    let command = node.command("sfdisk")?.args(["--no-reread", "--no-tell-kernel", "--wipe", "never", "--wipe-partitions", "never"]);
    let command = if new_table.is_none() { command.arg("--append") } else { command };
    command.arg(disk).stdin(script).limit(LIMIT).run().context("writing the partition table")?;
    Ok(())
}

/// Tells the kernel of the partition of this number.
///
/// # Errors
/// When it does not take it.
pub fn tell_kernel(node: &Node, disk: &Path, number: u32) -> Result<()> {
    node.command("partx")?
        .args(["--add", "--nr", &number.to_string()])
        .arg(disk)
        .limit(LIMIT)
        .run()
        .context("telling the kernel of the partition")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_in_bytes() {
        // sfdisk 2.38.1.
        let table = parse(include_str!("../../tests/fixtures/tools/sfdisk-gpt.json"), 512).unwrap();
        assert_eq!((table.kind.as_str(), table.first, table.end), ("gpt", 2048 * 512, 4_194_271 * 512));
        let rows: Vec<_> =
            table.partitions.iter().map(|part| (part.number, part.name.as_str(), part.start >> 20, part.size >> 20)).collect();
        assert_eq!(rows, [(1, "EFI", 1, 100), (2, "boot", 101, 300), (12, "recovery", 401, 200)]);
        assert_eq!(crate::error::exit_code(&parse("sfdisk: cannot open", 512).unwrap_err()), 65);
        assert_eq!(
            crate::error::exit_code(&parse(r#"{"partitiontable":{"label":"gpt","lastlba":18446744073709551615}}"#, 4096).unwrap_err()),
            65
        );
    }
}
