//! What was written to a disk and when it was flushed.

/// In bytes.
pub(crate) const SECTOR: u64 = 512;
