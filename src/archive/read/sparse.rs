//! The map before a sparse file's content (GNU.sparse 1.0, in GNU tar's manual): the number of its pieces, then offset and length of each,
//! one decimal number a line, filled up to whole blocks.

use anyhow::Result;

use crate::archive::entry::Entry;
use crate::archive::path::shown;
use crate::archive::tar::{BLOCK, Segments, padding};
use crate::error::{damaged, unsupported};

/// The most pieces of a sparse file: their places are held in memory, 16 bytes each. (Fewer are packed: `MOST_SEGMENTS` in
/// `pack/holes.rs`.)
const MOST_PIECES: u64 = 1 << 20;

/// Reads the map of `entry`, and checks that the data after it is as long as the map says. `block` reads the next block of the content,
/// which has `left` bytes with padding. Returns the map and the length of the data.
///
/// # Errors
/// The errors of `block`; `FailureKind::Damaged` when the map is invalid; `FailureKind::Unsupported` when it has too many pieces.
pub(super) fn read_map(entry: &Entry, left: u64, block: impl FnMut() -> Result<[u8; BLOCK]>) -> Result<(Segments, u64)> {
    let bad = || damaged(format!("the archive is damaged: the map of the sparse file {} is invalid", shown(&entry.path)));
    let mut numbers = Numbers { read: block, block: [0; BLOCK], at: BLOCK, left };
    let count = numbers.next()?.ok_or_else(bad)?;
    if count > MOST_PIECES {
        return Err(unsupported(format!(
            "the sparse file {} is in the archive in {count} pieces, and {MOST_PIECES} is the limit: pack it without --sparse",
            shown(&entry.path)
        )));
    }
    let (mut segments, mut end, mut data) = (Segments::new(), 0, 0);
    for _ in 0..count {
        let (offset, len) = numbers.next()?.zip(numbers.next()?).ok_or_else(bad)?;
        if offset < end || offset.checked_add(len).is_none_or(|end| end > entry.size) {
            return Err(bad());
        }
        // Pieces begin at a block of the archive, so only the last one may end inside a block.
        if data % BLOCK as u64 != 0 && len > 0 {
            return Err(bad());
        }
        (end, data) = (offset + len, data + len);
        segments.push((offset, len));
    }
    let left = data + padding(data).len() as u64;
    if left == numbers.left { Ok((segments, left)) } else { Err(bad()) }
}

/// The numbers of a map, which is read a block at a time.
struct Numbers<F> {
    read: F,
    block: [u8; BLOCK],
    /// The next byte in the block.
    at: usize,
    /// Bytes of the content after this block.
    left: u64,
}

impl<F: FnMut() -> Result<[u8; BLOCK]>> Numbers<F> {
    /// The next number; `None` when something else is there.
    fn next(&mut self) -> Result<Option<u64>> {
        let mut number: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                let Some(left) = self.left.checked_sub(BLOCK as u64) else { return Ok(None) };
                (self.block, self.at, self.left) = ((self.read)()?, 0, left);
            }
            let byte = self.block[self.at];
            self.at += 1;
            number = match byte {
                b'0'..=b'9' => number.unwrap_or(0).checked_mul(10).and_then(|ten| ten.checked_add(u64::from(byte - b'0'))),
                b'\n' => return Ok(number),
                _ => return Ok(None),
            };
            if number.is_none() {
                return Ok(None);
            }
        }
    }
}
