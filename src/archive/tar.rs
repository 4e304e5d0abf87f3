//! What writing and reading tar share.

/// The size of a tar block, bytes.
pub(super) use crate::compression::TAR_BLOCK as BLOCK;

/// The comment on the first entry of an archive that has an index: if the index is missing, the archive has lost its end.
pub(super) const INDEXED: &[u8] = b"recovery: an index follows the data";

/// The comment on an entry of which only the existence is recorded: a parent of what was selected, or a mount point, which was not entered.
/// Without the index, only this distinguishes it from an empty directory.
pub(super) const EXISTENCE: &[u8] = b"recovery: only that it exists is meant";

/// Where a sparse file has data: offset and length of each piece, in order. The last piece is empty when the file ends with a hole.
pub(super) type Segments = Vec<(u64, u64)>;

/// The zeros that fill up the last block of content of this length.
pub(super) fn padding(len: u64) -> &'static [u8] {
    let used = usize::try_from(len % BLOCK as u64).unwrap_or(0);
    &[0; BLOCK][..(BLOCK - used) % BLOCK]
}
