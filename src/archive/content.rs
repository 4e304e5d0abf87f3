//! The hash of a file's content. A hole costs no time, however long it is: an unprivileged pod can make a file of 8 EiB that holds nothing.

/// Zeros are left out of the hash in aligned blocks of this many bytes.
const GRAIN: usize = 4096;
/// The context of the hash of a content with gaps, so that it never equals the hash of a content without gaps.
const WITH_GAPS: &str = "recovery 2026-11 archive: a content with gaps";

/// BLAKE3 of a file's content. Aligned blocks of 4 KiB that hold only zeros are left out, whether they are stored or holes. If there are
/// any, the result is a BLAKE3 of that hash, the places of the gaps, and the size: see [`Content`].
pub(super) type Hash = [u8; 32];

/// Hash and extent of a file's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// See [`type@Hash`].
    pub(super) hash: Hash,
    /// Bytes that are stored, without holes.
    pub(super) data: u64,
}

/// Hashes a file's content, which is added in pieces, in order.
#[derive(Default)]
pub(super) struct Content {
    data: blake3::Hasher,
    /// Start and length of each gap: a block or a run of blocks with only zeros.
    gaps: Option<Box<blake3::Hasher>>,
    /// Where the current gap begins.
    gap: Option<u64>,
    /// Everything before this is hashed; it is the start of a block.
    at: u64,
    /// The bytes after that, less than a block.
    rest: Vec<u8>,
    bytes: u64,
}

impl Content {
    /// Adds the bytes at `offset`; whatever lies between them and the bytes before is a hole.
    pub(super) fn add(&mut self, offset: u64, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hole(offset);
        if !self.rest.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(GRAIN - self.rest.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            self.whole_rest();
        }
        let (blocks, rest) = bytes.split_at(bytes.len() / GRAIN * GRAIN);
        self.blocks(blocks);
        self.rest.extend_from_slice(rest);
    }

    /// The sum of a file of `size` bytes.
    pub(super) fn finish(mut self, size: u64) -> Sum {
        self.hole(size);
        let rest = std::mem::take(&mut self.rest);
        self.blocks(&rest);
        self.end_gap();
        let data = *self.data.finalize().as_bytes();
        let hash = self.gaps.map_or(data, |gaps| {
            let mut both = blake3::Hasher::new_derive_key(WITH_GAPS);
            both.update(&data).update(gaps.finalize().as_bytes()).update(&size.to_le_bytes());
            *both.finalize().as_bytes()
        });
        Sum { hash, data: self.bytes }
    }

    /// Adds zeros up to `offset`.
    fn hole(&mut self, offset: u64) {
        let end = self.at + self.rest.len() as u64;
        let Some(len) = offset.checked_sub(end).filter(|len| *len > 0) else { return };
        if !self.rest.is_empty() {
            self.rest.resize(usize::try_from(len).map_or(GRAIN, |len| GRAIN.min(self.rest.len() + len)), 0);
            self.whole_rest();
            return self.hole(offset);
        }
        let within = offset % GRAIN as u64;
        if offset - within > self.at {
            self.gap.get_or_insert(self.at);
            self.at = offset - within;
        }
        self.rest.resize(usize::try_from(within).unwrap_or(0), 0);
    }

    fn whole_rest(&mut self) {
        if self.rest.len() == GRAIN {
            let mut rest = std::mem::take(&mut self.rest);
            self.blocks(&rest);
            rest.clear();
            self.rest = rest;
        }
    }

    /// Hashes whole blocks, or the last one of the file.
    fn blocks(&mut self, mut bytes: &[u8]) {
        let run = |bytes: &[u8], zeros| bytes.chunks(GRAIN).take_while(|block| is_zeros(block) == zeros).map(<[u8]>::len).sum::<usize>();
        while !bytes.is_empty() {
            let zeros = run(bytes, true);
            if zeros > 0 {
                self.gap.get_or_insert(self.at);
            }
            let (data, after) = bytes[zeros..].split_at(run(&bytes[zeros..], false));
            self.at += zeros as u64;
            if !data.is_empty() {
                self.end_gap();
                self.data.update(data);
                self.at += data.len() as u64;
            }
            bytes = after;
        }
    }

    fn end_gap(&mut self) {
        if let Some(start) = self.gap.take() {
            self.gaps.get_or_insert_default().update(&start.to_le_bytes()).update(&(self.at - start).to_le_bytes());
        }
    }
}

fn is_zeros(block: &[u8]) -> bool {
    static ZEROS: [u8; GRAIN] = [0; GRAIN];
    *block == ZEROS[..block.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(pieces: &[(u64, &[u8])], size: u64) -> Sum {
        let mut content = Content::default();
        pieces.iter().for_each(|(offset, bytes)| content.add(*offset, bytes));
        content.finish(size)
    }

    #[test]
    fn a_content_without_gaps_has_the_plain_hash() {
        for len in [0, 1, 511, 4095, 4096, 4097, 100_000] {
            let bytes = vec![7; len];
            assert_eq!(sum(&[(0, &bytes)], len as u64).hash, *blake3::hash(&bytes).as_bytes(), "{len}");
        }
    }

    #[test]
    fn zeros_and_holes_are_the_same_however_the_content_is_cut() {
        let mut bytes = vec![0_u8; 60_000];
        for at in [0, 1, 5000, 8191, 20_000, 20_001, 40_959, 59_999] {
            bytes[at] = 1;
        }
        let whole = sum(&[(0, &bytes)], 60_000);
        for piece in [1, 7, 512, 4095, 4096, 5000, 59_999] {
            let pieces: Vec<(u64, &[u8])> = (0..).step_by(piece).zip(bytes.chunks(piece)).collect();
            assert_eq!(sum(&pieces, 60_000), whole, "pieces of {piece}");
            let data: Vec<_> = pieces.into_iter().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)).collect();
            assert_eq!(sum(&data, 60_000).hash, whole.hash, "holes of {piece}");
        }
        let other = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            sum(&[(0, &bytes)], bytes.len() as u64).hash
        };
        // A byte elsewhere in its block, a block elsewhere, another length of zeros in the middle and at the end.
        for change in [
            (&|bytes: &mut Vec<u8>| bytes.swap(5000, 5001)) as &dyn Fn(&mut Vec<u8>),
            &|bytes| bytes.swap(20_000, 24_096),
            &|bytes| bytes.extend([0; 4096]),
            &|bytes| drop(bytes.drain(24_576..28_672)),
        ] {
            assert_ne!(other(change), whole.hash);
        }
    }

    #[test]
    fn the_longest_hole_there_is_costs_nothing() {
        let size = i64::MAX.unsigned_abs();
        let (a, b) = (sum(&[(1 << 50, b"x")], size), sum(&[((1 << 50) + 4096, b"x")], size));
        assert_ne!(a.hash, b.hash);
        assert_ne!(sum(&[], size).hash, sum(&[], size - 1).hash);
        assert_eq!(a.data, 1);
    }
}
