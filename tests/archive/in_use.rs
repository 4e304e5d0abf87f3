//! Trees in use: stores through a mapping.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc;
use recovery::archive::Archive;

use crate::moving::{pack_after, settle};
use crate::pack;
use crate::tree::{Scratch, noise};

/// The first page of a file, mapped as databases do.
struct Mapping(*mut libc::c_void);

impl Mapping {
    const LEN: usize = 4096;

    fn of(file: &Path) -> Self {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: the kernel chooses where, so nothing else is there.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Self::LEN, access, shared, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at)
    }

    fn store(&self, bytes: &[u8; 3]) {
        // SAFETY: it is inside the mapping, and nobody else in this process uses that.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), bytes.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(self.0, Self::LEN) };
    }
}

#[test]
fn what_is_stored_through_a_mapping_is_not_taken_for_unchanged() {
    let scratch = Scratch::new();
    let (from, first, second) = (scratch.path("from"), scratch.path("1.tar.zst"), scratch.path("2.tar.zst"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("database"), noise(1, 400_000)).unwrap();
    fs::write(from.join("other"), noise(2, 400_000)).unwrap();
    let mapping = Mapping::of(&from.join("database"));
    mapping.store(b"one");
    settle();
    pack(&from, &first);
    // The kernel sets the change time when a page begins to differ from the disk, not at every store.
    mapping.store(b"two");
    let packed = pack_after(&from, &second, &first);
    let database = Archive::open(&second).unwrap().read_file(Path::new("database")).unwrap().unwrap();
    assert!(database.starts_with(b"two"), "{}", database[..3].escape_ascii());
    assert_eq!(packed.reused, 400_000, "the other and nothing else is taken over");
}
