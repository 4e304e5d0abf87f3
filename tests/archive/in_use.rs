//! Trees in use: stores through a mapping, inodes that are used again.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use recovery::archive::{Archive, Selection};

use crate::moving::{pack_after, settle};
use crate::power::Disk;
use crate::tree::{Scratch, noise};
use crate::{pack, restore, text};

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

#[test]
fn an_inode_that_is_used_again_is_another_file() {
    let scratch = Scratch::new();
    let (disk, file, to) = (Disk::make(&scratch), scratch.path("a.tar.zst"), scratch.path("to"));
    let tree = disk.path().join("tree");
    fs::create_dir_all(tree.join("new")).unwrap();
    fs::write(tree.join("a"), "old").unwrap();
    fs::hard_link(tree.join("a"), tree.join("z")).unwrap();
    fs::write(tree.join("b"), "12345").unwrap();
    let inode = tree.join("a").metadata().unwrap().ino();
    // Between `b` and `new`: with its last name the file goes, and its number is free.
    let change = |bytes| {
        if bytes != 5 {
            return;
        }
        fs::remove_file(tree.join("a")).unwrap();
        fs::remove_file(tree.join("z")).unwrap();
        crate::run("sync", &["-f", text(&tree)]);
        // XFS looks for a free one near the directory.
        let names = (0..5000).map(|n| tree.join(n.to_string()));
        let again = names.inspect(|name| fs::write(name, "new").unwrap()).find(|name| name.metadata().unwrap().ino() == inode);
        fs::rename(again.expect("the number was not used again"), tree.join("new/first")).unwrap();
        fs::hard_link(tree.join("new/first"), tree.join("new/second")).unwrap();
    };
    recovery::archive::pack(&tree, &file, &Selection::all(), None, &change).unwrap();
    restore(&file, &to).unwrap();
    assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "old");
    assert_eq!(fs::read_to_string(to.join("new/second")).unwrap(), "new");
    assert_eq!(to.join("new/second").metadata().unwrap().nlink(), 2);
}
