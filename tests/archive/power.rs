//! Power cuts, on a real XFS whose log and data part company: `xfs_io shutdown` throws away all that is not on disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::{Mount, compare, pack, restore, restorer, run, text};
use testing::tree::{self, Scratch, assert_same, noise};

const FILES: u64 = 50;
/// Files of which only the mode differs: to set it takes the restore a while after the others are in place.
const SLOW: u64 = 6_000;

/// An XFS of its own.
pub(crate) struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    pub(crate) fn make(scratch: &Scratch) -> Self {
        // In no other mount namespace but that of this test: whoever has it mounted too keeps it from being unmounted.
        // SAFETY: neither flag touches file descriptors or memory. The working directory is unshared with the namespace, for this thread alone.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        run("mount", &["--make-rprivate", "/"]);
        let disk = Self { image: scratch.path("xfs"), at: scratch.path("disk") };
        File::create(&disk.image).unwrap().set_len(400 << 20).unwrap();
        run("mkfs.xfs", &["-q", text(&disk.image)]);
        fs::create_dir(&disk.at).unwrap();
        disk.mount();
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", text(&self.image), text(&self.at)]);
    }

    /// The power fails just after the file system has written its journal, as it does whenever any file is synced.
    fn cut_power(&self) {
        let mut other = File::create(self.at.join("other")).unwrap();
        other.write_all(b"x").unwrap();
        other.sync_all().unwrap();
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.at)]);
    }

    /// What is on disk is all that is there.
    fn boot(&self) {
        // Not lazily: it has to be gone. A child that another thread forks at that moment holds its files open until it is another program.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !Command::new("umount").arg(&self.at).status().unwrap().success() {
            assert!(Instant::now() < deadline, "{} stays busy", self.at.display());
        }
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.at).status().unwrap();
    }
}

fn content(n: u64, new: bool) -> Vec<u8> {
    noise(n * 2 + u64::from(new), 10_000)
}

#[test]
fn a_file_that_is_replaced_is_the_old_or_the_new_one_after_a_power_cut() {
    let scratch = Scratch::new();
    let (from, file, disk) = (scratch.path("from"), scratch.path("a.tar.zst"), Disk::make(&scratch));
    let tree = disk.at.join("tree");
    fs::create_dir(&from).unwrap();
    let name = |n: u64| format!("passwd-{n:02}");
    for n in 0..FILES {
        fs::write(from.join(name(n)), content(n, true)).unwrap();
    }
    // The last of them has another name, which replaces a file too.
    fs::hard_link(from.join(name(FILES - 1)), from.join("second")).unwrap();
    fs::create_dir(from.join("slow")).unwrap();
    for n in 0..SLOW {
        File::create(from.join(format!("slow/{n:05}"))).unwrap();
    }
    pack(&from, &file);
    let is_new = |path: &Path, n| fs::read(path).is_ok_and(|bytes| bytes == content(n, true));
    // Stopped after the last was renamed and before all is synced: it may take a few attempts to hit that.
    for _ in 0..30 {
        run("rsync", &["-a", "--delete", &format!("{}/", text(&from)), text(&tree)]);
        for n in 0..FILES {
            fs::write(tree.join(name(n)), content(n, false)).unwrap();
        }
        fs::write(tree.join("second"), content(FILES, false)).unwrap();
        fs::remove_file(tree.join(name(FILES - 1))).unwrap();
        run("chmod", &["-R", "go-rwx", text(&tree.join("slow"))]);
        run("sync", &["-f", text(&tree)]);
        let mut child = restorer(&[], &file, &tree, &[]).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let begun = Instant::now();
        while !is_new(&tree.join("second"), FILES - 1) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_micros(200));
        }
        kill(pid, Signal::SIGSTOP).unwrap();
        let stopped_in_time = tree.join(".recovery-stage").exists();
        let synced_late = compare_modes(&from, &tree);
        if stopped_in_time && synced_late {
            disk.cut_power();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !(stopped_in_time && synced_late) {
            continue;
        }
        disk.boot();
        for n in 0..FILES - 1 {
            let bytes = fs::read(tree.join(name(n))).unwrap();
            assert!(bytes == content(n, true) || bytes == content(n, false), "{} has {} bytes", name(n), bytes.len());
        }
        let second = fs::read(tree.join("second")).unwrap();
        assert!(second == content(FILES - 1, true) || second == content(FILES, false), "the second name has {} bytes", second.len());
        restore(&file, &tree).unwrap();
        assert_same(&from, &tree);
        return;
    }
    panic!("the restore could not be stopped between the last rename and the sync");
}

/// True when the last of the slow files still has its old mode.
fn compare_modes(from: &Path, tree: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let last = format!("slow/{:05}", SLOW - 1);
    from.join(&last).metadata().unwrap().mode() != tree.join(&last).metadata().unwrap().mode()
}

#[test]
fn a_restore_that_was_killed_is_synced_even_if_the_next_one_fails_too() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let (from, file, disk) = (scratch.path("from"), scratch.path("a.tar.zst"), Disk::make(&scratch));
    let tree = disk.at.join("tree");
    fs::create_dir_all(from.join("directory")).unwrap();
    fs::create_dir(&tree).unwrap();
    pack(&from, &file);
    restore(&file, &tree).unwrap();
    // As a restore leaves it that was killed when it had done all but the sync.
    fs::write(from.join("passwd"), content(1, true)).unwrap();
    let root = from.metadata().unwrap();
    pack(&from, &file);
    run("cp", &["-a", text(&from.join("passwd")), text(&tree)]);
    fs::create_dir(tree.join(".recovery-stage")).unwrap();
    fs::write(tree.join(".recovery-stage/secret"), "key").unwrap();
    tree::set_mtime(&tree, root.mtime(), root.mtime_nsec());
    // The next one does not get beyond the comparison; the one after it finds nothing to do.
    let mount = Mount::tmpfs(&tree.join("directory"), "size=1m");
    fs::write(tree.join("directory/file"), "of somebody else").unwrap();
    restore(&file, &tree).unwrap_err();
    drop(mount);
    assert_eq!(compare(&file, &tree).0, []);
    restore(&file, &tree).unwrap();
    disk.cut_power();
    disk.boot();
    assert!(fs::read(tree.join("passwd")).unwrap() == content(1, true));
    restore(&file, &tree).unwrap();
    assert_same(&from, &tree);
}
