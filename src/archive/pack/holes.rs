//! Where a file with holes has data. A hole costs no time, however long it is.

use std::os::fd::OwnedFd;

use anyhow::Result;

use crate::archive::inode::next_data;
use crate::archive::tar::{BLOCK, Segments};
use crate::node::clock::interrupted;

/// The most pieces in which a file is packed.
pub(super) const MOST_SEGMENTS: usize = 1 << 16;
/// Where there are too many pieces, those no farther apart than this are joined; the distance is doubled until there are few enough.
const CLOSE: u64 = 4096;

/// Where a file of `size` bytes with holes has data, and how many bytes; `None` when it should be stored from start to end. Where there are
/// more pieces than an archive can hold, those closest to each other are joined.
pub(super) fn segments(file: &OwnedFd, size: u64) -> Result<Option<(Segments, u64)>> {
    let (mut segments, mut data, mut close, mut at) = (Segments::new(), 0, 0, 0);
    while let Some((start, end)) = next_data(file, at, size)? {
        interrupted()?;
        // Pieces begin and end at blocks of the archive.
        let (start, end) = (start / BLOCK as u64 * BLOCK as u64, end.next_multiple_of(BLOCK as u64).min(size));
        data += end - start;
        add_piece(&mut segments, start, end, close);
        // The empty one at the end counts too.
        while segments.len() >= MOST_SEGMENTS - 1 {
            close = (close * 2).max(CLOSE);
            for (start, len) in std::mem::take(&mut segments) {
                add_piece(&mut segments, start, start + len, close);
            }
        }
        at = end;
    }
    if segments.first().is_some_and(|(start, len)| *start == 0 && *len == size) {
        return Ok(None);
    }
    if segments.last().is_none_or(|(start, len)| start + len < size) {
        segments.push((size, 0));
    }
    Ok(Some((segments, data)))
}

/// Adds a piece, or joins it to the last one when that is no farther away than `close`.
fn add_piece(segments: &mut Segments, start: u64, end: u64, close: u64) {
    match segments.last_mut() {
        Some((last, len)) if (*last + *len).saturating_add(close) >= start => *len = end - *last,
        _ => segments.push((start, end - start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_beyond_what_an_archive_takes_are_joined() {
        let file = tempfile::tempfile().unwrap();
        let size = 200_000 * 8192;
        file.set_len(size).unwrap();
        for n in 0..80_000_u64 {
            use std::os::unix::fs::FileExt;
            file.write_all_at(b"x", n * 16_384).unwrap();
        }
        let (segments, data) = segments(&file.into(), size).unwrap().unwrap();
        assert!(segments.len() <= MOST_SEGMENTS, "{}", segments.len());
        let stored: u64 = segments.iter().map(|(_, len)| len).sum();
        assert!(data >= 80_000 * 512 && stored > data && stored < size, "{stored} of {data}");
        assert_eq!(segments.last(), Some(&(size, 0)));
    }
}
