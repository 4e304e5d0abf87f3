//! Where a new partition fits on a disk, and a picture of the disk before and after. Pure.

use serde::Serialize;

use super::{LABEL, LEAST};
use crate::error::{AndNext, by_hand, misfit, no_space, unsupported};
use crate::report::words::line;
use crate::tools::sfdisk::{Entry, Table};
use anyhow::Result;

/// Where partitions begin and end: what every disk and every file system is content with, bytes.
pub const ALIGNMENT: u64 = 1 << 20;
/// What GPT takes at the end of a disk, at most: 128 entries and a header in sectors of 4096 bytes, rounded up.
const TAIL: u64 = 1 << 20;
/// How many characters the parts of a picture have together; the lines between them come on top.
const WIDTH: usize = 70;

/// Where a partition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Room {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// The room behind the last partition of a disk of `disk_size` bytes, for a partition of `size_mib`; all of it unless given. `table` is `None` for a
/// disk that has none.
///
/// # Errors
/// [`FailureKind::NoSpace`](crate::error::FailureKind::NoSpace) when it is too small; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there
/// is a partition of that name; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for a table that is no GPT.
pub fn room(table: Option<&Table>, disk_size: u64, size_mib: Option<u64>) -> Result<Room> {
    if let Some(table) = table {
        if table.kind != "gpt" {
            return Err(unsupported(format!(
                "the disk has a partition table of the kind {}, and only GPT names its partitions",
                line(&table.kind)
            ))
            .and_next(by_hand("take another disk; or, where nothing on this one is needed, remove the table with `wipefs --all`")));
        }
        if let Some(there) = table.partitions.iter().find(|part| part.name == LABEL) {
            return Err(misfit(format!("the disk has a partition `{LABEL}` already, number {}", there.number)).and_next(by_hand(
                "it may hold backups of before the node was installed again: mount it and look; to use it as it is, put systemd/var-recovery.mount into \
                 /etc/systemd/system and enable it",
            )));
        }
    }
    let last = table.and_then(|table| table.partitions.iter().map(|part| part.start.saturating_add(part.size)).max()).unwrap_or(0);
    let first = table.map_or(0, |table| table.first).max(ALIGNMENT);
    let end = table.map_or(disk_size.saturating_sub(TAIL), |table| table.end.min(disk_size));
    let start = last.max(first).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
    let free = end.saturating_sub(start) / ALIGNMENT;
    let wanted = size_mib.unwrap_or(free);
    if wanted > free || wanted < LEAST {
        let why = if wanted < LEAST { format!("at least {LEAST} MiB are needed") } else { format!("{wanted} MiB were asked for") };
        let place = if last == 0 { "the disk has".to_owned() } else { "behind the last partition the disk has".to_owned() };
        return Err(no_space(format!("{place} {free} MiB free, and {why}")).and_next(by_hand("take another disk, or a smaller --size-mib")));
    }
    Ok(Room { start, size: wanted * ALIGNMENT })
}

/// A disk in text: a bar whose parts are about as wide as the partitions are large, and a line for each of them.
#[must_use]
pub fn picture(table: Option<&Table>, disk_size: u64, new: Option<Room>) -> String {
    let mut parts: Vec<(u64, u64, String, String)> = Vec::new();
    let named = |part: &Entry| (part.start, part.size, part.number.to_string(), line(&part.name).into_owned());
    parts.extend(table.iter().flat_map(|table| &table.partitions).map(named));
    parts.extend(new.map(|new| (new.start, new.size, "+".to_owned(), format!("{LABEL} (new)"))));
    parts.sort();
    let mut segments: Vec<(u64, char, String)> = Vec::new();
    let mut here = 0;
    for (start, size, mark, _) in &parts {
        let gap = start.saturating_sub(here);
        if gap > 2 * ALIGNMENT {
            segments.push((gap, '.', String::new()));
        }
        segments.push((*size, if mark == "+" { '#' } else { ' ' }, mark.clone()));
        here = start.saturating_add(*size);
    }
    let rest = disk_size.saturating_sub(here);
    if rest > 2 * ALIGNMENT {
        segments.push((rest, '.', String::new()));
    }
    let mut text = bar(&segments);
    for (start, size, mark, name) in &parts {
        text += &format!("  {mark:>3}  {name:<24} {:>12} MiB from {:>12} MiB\n", size / ALIGNMENT, start / ALIGNMENT);
    }
    let free: u64 = segments.iter().filter(|segment| segment.1 == '.').map(|segment| segment.0).sum();
    text += &format!("       {:<24} {:>12} MiB\n", "free", free / ALIGNMENT);
    text
}

fn bar(segments: &[(u64, char, String)]) -> String {
    let total: u64 = segments.iter().map(|segment| segment.0).sum::<u64>().max(1);
    let mut text = "  |".to_owned();
    for (size, fill, mark) in segments {
        let share = usize::try_from(u128::from(*size) * (WIDTH as u128) / u128::from(total)).unwrap_or(WIDTH);
        let width = share.max(mark.len()).max(1);
        text += mark;
        text.extend(std::iter::repeat_n(*fill, width - mark.len()));
        text.push('|');
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    const MIB: u64 = ALIGNMENT;

    fn table(parts: &[(u32, &str, u64, u64)]) -> Table {
        let partitions = parts.iter().map(|(number, name, start, size)| Entry {
            number: *number,
            name: (*name).to_owned(),
            id: String::new(),
            start: start * MIB,
            size: size * MIB,
        });
        Table { kind: "gpt".to_owned(), id: "T".to_owned(), first: MIB, end: 10_000 * MIB - 17 * 512, partitions: partitions.collect() }
    }

    #[test]
    fn it_lies_behind_the_last_partition() {
        let disk = 10_000 * MIB;
        let used = table(&[(2, "root", 200, 3000), (1, "EFI", 1, 100)]);
        assert_eq!(room(Some(&used), disk, Some(2000)).unwrap(), Room { start: 3200 * MIB, size: 2000 * MIB });
        assert_eq!(room(Some(&used), disk, None).unwrap(), Room { start: 3200 * MIB, size: 6799 * MIB });
        assert_eq!(room(None, disk, None).unwrap(), Room { start: MIB, size: 9998 * MIB });
        // What does not begin at a whole MiB is passed.
        let mut odd = used.clone();
        odd.partitions[0].size += 512;
        assert_eq!(room(Some(&odd), disk, Some(2000)).unwrap().start, 3201 * MIB);
        for (table, size, code) in [
            (Some(&used), Some(6800), 73),
            (Some(&used), Some(LEAST - 1), 73),
            (Some(&table(&[(1, "a", 1, 9500)])), None, 73),
            // Behind the last block that the table says it has, which another tool has drawn in.
            (Some(&Table { end: 5000 * MIB, ..table(&[(1, "a", 1, 100), (2, "hidden", 6000, 1500)]) }), None, 73),
            // One that begins behind the disk, and one that ends nowhere.
            (Some(&table(&[(1, "a", 1, 100), (2, "beyond", 20_000, 100)])), None, 73),
            (Some(&table(&[(1, "a", 1, u64::MAX / MIB)])), None, 73),
            (Some(&table(&[(1, "recovery", 1, 2000)])), None, 78),
            (Some(&Table { kind: "dos".to_owned(), ..used.clone() }), None, 64),
            (None, Some(u64::MAX), 73),
        ] {
            assert_eq!(exit_code(&room(table, disk, size).unwrap_err()), code);
        }
    }

    #[test]
    fn a_picture_shows_the_disk() {
        let before = table(&[(1, "EFI", 1, 500), (2, "ro\x1bot", 501, 4500)]);
        let new = room(Some(&before), 10_000 * MIB, Some(2000)).unwrap();
        let text = picture(Some(&before), 10_000 * MIB, Some(new));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("  |1  |2  ") && lines[0].contains("|+###") && lines[0].ends_with("....|"), "{text}");
        assert!(lines[0].len() <= 80, "{text}");
        assert!(lines[2].contains("ro\\x1bot") && lines[2].contains("4500 MiB from          501 MiB"), "{text}");
        assert!(lines[3].contains("recovery (new)") && lines[3].contains("2000 MiB from         5001 MiB"), "{text}");
        assert!(lines[4].contains("free") && lines[4].contains("2999 MiB"), "{text}");
        assert_eq!(picture(None, 10_000 * MIB, None).lines().count(), 2);
    }
}
