//! Trees in use: stores through a mapping, inodes that are used again, mounts whose server is gone.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::libc;
use recovery::archive::{Archive, Selection};
use recovery::error::exit_code;
use recovery::node::mounts::usage;
use rustix::mount::MountFlags;

use crate::moving::{pack_after, settle};
use crate::power::Disk;
use crate::{Mount, compare, pack, restore, text};
use testing::tree::{Scratch, noise};

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

/// A FUSE file system, and the device at which it waits for what its server says: nothing.
fn silent_mount(at: &Path) -> (File, Mount) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd())).unwrap();
    rustix::mount::mount("server", at, "fuse", MountFlags::NODEV | MountFlags::NOSUID, Some(options.as_c_str())).unwrap();
    (device, Mount(at.to_owned()))
}

/// A FUSE file system whose server is gone: whoever looks at it is told `ENOTCONN`.
fn dead_mount(at: &Path) -> Mount {
    let (device, mount) = silent_mount(at);
    drop(device);
    assert_eq!(at.metadata().unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    mount
}

#[test]
fn a_mount_whose_server_is_gone_is_a_mount_point() {
    let scratch = Scratch::new();
    let (tree, to, file, before) = (scratch.path("tree"), scratch.path("to"), scratch.path("a.tar.zst"), scratch.path("before.tar.zst"));
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), noise(1, 50_000)).unwrap();
    pack(&tree, &before);
    fs::create_dir(tree.join("sub/volume")).unwrap();
    let whole = scratch.path("whole.tar.zst");
    fs::write(tree.join("sub/volume/under"), "not to be seen").unwrap();
    pack(&tree, &whole);
    {
        let _dead = dead_mount(&tree.join("sub/volume"));
        let skipped = pack(&tree, &file).skipped;
        assert_eq!(skipped.iter().map(|(path, _)| text(path)).collect::<Vec<_>>(), ["sub/volume"]);
        assert_eq!(compare(&file, &tree).0, []);
        restore(&file, &tree).unwrap();
        assert!((50_000..70_000).contains(&usage(&tree).unwrap()));
        for (what, archive) in [("it is too many", &before), ("it hides what is to be compared", &whole)] {
            let error = restore(archive, &tree).expect_err(what);
            assert_eq!(exit_code(&error), 78, "{what}: {error:#}");
            assert!(format!("{error:#}").contains("sub/volume\" is a mount point"), "{what}: {error:#}");
        }
    }
    restore(&file, &tree).unwrap();
    assert!(tree.join("sub/volume/under").exists());
    restore(&file, &to).unwrap();
    assert!(to.join("sub/volume").is_dir());
}

#[test]
fn a_mount_whose_server_says_nothing_is_not_waited_for() {
    let scratch = Scratch::new();
    let (tree, file) = (scratch.path("tree"), scratch.path("a.tar.zst"));
    fs::create_dir_all(tree.join("volume")).unwrap();
    fs::write(tree.join("file"), "1").unwrap();
    let (device, _mount) = silent_mount(&tree.join("volume"));
    let (done, wait) = std::sync::mpsc::channel();
    let work = move || {
        pack(&tree, &file);
        compare(&file, &tree);
        restore(&file, &tree).unwrap();
        usage(&tree).unwrap();
        done.send(()).unwrap();
    };
    let working = std::thread::spawn(work);
    let waited = wait.recv_timeout(Duration::from_secs(60));
    // Whoever waits for it is told that it is gone.
    drop(device);
    waited.expect("it was waited for");
    working.join().unwrap();
}
