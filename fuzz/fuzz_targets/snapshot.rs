//! An etcd snapshot. The checksums of its two meta pages and of the whole are made right, so that what is behind them is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::etcd::{Options, check_restorable, look, restore, revision_of, status, status_without_hash, verify};
use recovery_fuzz::{Bytes, directory, refused};
use sha2::{Digest, Sha256};

/// A file is whole sectors, and its SHA-256 behind them.
const SECTOR: usize = 512;
/// Bytes of a page's header, and of what a meta page's checksum is over.
const HEADER: usize = 16;
const SUMMED: usize = 56;
/// A restore reserves a log of 64 MB, which takes its time: one in so many.
const RESTORED: u8 = 16;

fuzz_target!(|database: &[u8]| {
    let mut bytes = database.to_vec();
    bytes.truncate(bytes.len() / SECTOR * SECTOR);
    summed(&mut bytes, 0);
    let size = bytes.get(HEADER + 8..HEADER + 12).map_or(0, |size| u32::from_le_bytes([size[0], size[1], size[2], size[3]]));
    summed(&mut bytes, size as usize);
    let sum = Sha256::digest(&bytes);
    let plain = Bytes::of(&bytes);
    bytes.extend_from_slice(&sum);
    let snapshot = Bytes::of(&bytes);
    let of_database = status_without_hash(&plain.path(), &|_| ());
    let said = match status(&snapshot.path(), &|_| ()) {
        Ok(said) => said,
        Err(error) => {
            assert!(of_database.is_err(), "the same database is sound without a checksum");
            return refused(&error);
        }
    };
    let of_database = of_database.expect("the same database");
    assert_eq!((said.hash, said.revision, said.items), (of_database.hash, of_database.revision, of_database.items));
    assert!(said.db_size == (bytes.len() - 32) as u64 && said.total_keys <= said.items);
    look(&snapshot.path()).expect("its beginning");
    verify(&snapshot.path(), &|_| ()).expect("its checksum");
    let restorable = check_restorable(&snapshot.path(), &|_| ());
    if let Err(error) = &restorable {
        return refused(error);
    }
    if sum[0] % RESTORED != 0 {
        return;
    }
    // What is found to be restorable is restored, with what is in it.
    let dir = directory();
    let data = dir.path().join("data");
    let restored = restore(&snapshot.path(), &data, &Options::default(), &|_| ()).expect("what can be restored");
    assert_eq!((restored.revision, revision_of(&data).expect("the new database")), (said.revision, Some(said.revision)));
    let made = status_without_hash(&data.join("member/snap/db"), &|_| ()).expect("the new database");
    assert_eq!((made.revision, made.total_keys), (said.revision, said.total_keys));
    assert!(made.members.len() == 1 && made.members[0].name == restored.name && made.members[0].id == restored.member_id);
});

/// Makes the checksum right of a meta page (FNV-1a).
fn summed(bytes: &mut [u8], page: usize) {
    let Some(meta) = bytes.get_mut(page.saturating_add(HEADER)..).and_then(|bytes| bytes.get_mut(..SUMMED + 8)) else { return };
    let sum = meta[..SUMMED].iter().fold(0xCBF2_9CE4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
    meta[SUMMED..].copy_from_slice(&sum.to_le_bytes());
}
