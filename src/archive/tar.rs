//! What writing and reading tar have in common.

/// Tar works in blocks of so many bytes.
pub(super) use crate::compression::TAR_BLOCK as BLOCK;

/// The comment on the first entry of an archive that an index follows: without it, such an archive has lost its end.
pub(super) const INDEXED: &[u8] = b"recovery: an index follows the data";

/// The comment on an entry of which only that it exists is meant: the parent of what was selected, or a mount point, which was not entered.
/// Without the index this is all that tells it from an empty directory.
pub(super) const EXISTENCE: &[u8] = b"recovery: only that it exists is meant";

/// Where a sparse file has data: offset and length of each piece, in order. The last piece is empty when the file ends with a hole.
pub(super) type Segments = Vec<(u64, u64)>;

/// The zeros that fill up the last block of so many bytes.
pub(super) fn padding(len: u64) -> &'static [u8] {
    let used = usize::try_from(len % BLOCK as u64).unwrap_or(0);
    &[0; BLOCK][..(BLOCK - used) % BLOCK]
}
