//! An archive with an index. The input is what is in it, unpacked; it is packed here with all checksums right, as `src/archive/index.rs` says:
//!
//! length of the tar stream (2 bytes), where its second frame begins (2 bytes), number of entries (2 bytes), the stream without its end mark, the
//! records, each with its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery_fuzz::{Bytes, archive};

const VERSION: u32 = 2;

fuzz_target!(|input: &[u8]| {
    let Some((numbers, rest)) = input.split_first_chunk::<6>() else { return };
    let [len, cut, entries] = [0, 2, 4].map(|at| u16::from_le_bytes([numbers[at], numbers[at + 1]]));
    let (tar, records) = rest.split_at(rest.len().min(len.into()));
    archive(&Bytes::of(&packed(tar, tar.len().min(cut.into()), entries.into(), records)).path());
});

fn packed(tar: &[u8], cut: usize, entries: u32, records: &[u8]) -> Vec<u8> {
    let (mut file, mut frames) = (Vec::new(), Vec::new());
    for part in [&tar[..cut], &tar[cut..]].into_iter().filter(|part| !part.is_empty()) {
        let frame = zstd(part);
        let number = |len: usize| u32::try_from(len).expect("a small input");
        frames.push((file.len() as u64, number(frame.len()), number(part.len()), *blake3::hash(&frame).as_bytes()));
        file.extend(frame);
    }
    let head = zstd(&postcard::to_stdvec(&((1_767_225_600_i64, 0_u32), entries, frames)).expect("a head"));
    let mut index =
        [&b"RECOVIDX"[..], &VERSION.to_le_bytes(), &u32::try_from(head.len()).expect("a short head").to_le_bytes(), &head].concat();
    index.extend(zstd(records));
    skippable(&mut file, index.len());
    let start = file.len() as u64;
    file.extend(&index);
    file.extend(zstd(&[0; 1024]));
    let mut trailer = Vec::new();
    skippable(&mut trailer, 76);
    trailer.extend([&b"RECOVEND"[..], &VERSION.to_le_bytes(), &start.to_le_bytes(), &(index.len() as u64).to_le_bytes()].concat());
    trailer.extend(blake3::hash(&index).as_bytes());
    let sum = blake3::hash(&trailer);
    trailer.extend(&sum.as_bytes()[..16]);
    file.extend(trailer);
    file
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("memory")
}

fn skippable(to: &mut Vec<u8>, len: usize) {
    to.extend(0x184D_2A50_u32.to_le_bytes());
    to.extend(u32::try_from(len).expect("a small input").to_le_bytes());
}
