//! A tar archive without an index, packed or not. The checksums of its headers are made right, so that what is behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery_fuzz::{Bytes, archive};

const BLOCK: usize = 512;

fuzz_target!(|tar: &[u8]| {
    let mut tar = tar.to_vec();
    for block in tar.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive(&Bytes::of(&tar).path());
});
