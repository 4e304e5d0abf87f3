//! Trees that change while they are packed, restores that are killed, disks that are full, and backups after backups.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use recovery::archive::{Archive, Packed, Selection};
use recovery::error::exit_code;

use crate::{Mount, compare, pack, restore, restorer, run, text};
use testing::tree::{self, Scratch, assert_same, make_tree, noise};

pub(crate) fn pack_after(tree: &Path, file: &Path, previous: &Path) -> Packed {
    recovery::archive::pack(tree, file, &Selection::all(), Some(previous), &|_| ()).unwrap()
}

/// Directories of files of mixed sizes, some of them larger than a frame.
fn plain_tree(dir: &Path, files: u64) {
    for n in 0..files {
        let directory = dir.join(format!("{:02}", n / 20));
        fs::create_dir_all(&directory).unwrap();
        let len = [500, 3000, 20_000, 90_000, 1_500_000]
            [usize::from(n % 50 == 7) * 4 + usize::try_from(n % 4).unwrap() * usize::from(n % 50 != 7)];
        fs::write(directory.join(format!("{n:04}")), noise(n + 1, len)).unwrap();
    }
}

/// Waits until nothing in a tree is so new that it could change again within the same tick.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(2600));
}

#[test]
fn a_tree_that_changes_while_it_is_packed_is_packed() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    plain_tree(&from, 200);
    fs::write(from.join("05/growing"), "").unwrap();
    fs::write(from.join("06/shrinking"), noise(1, 3 << 20)).unwrap();
    fs::write(from.join("07/flickering"), noise(2, 700_000)).unwrap();
    let stop = AtomicBool::new(false);
    let packed = std::thread::scope(|scope| {
        let busy = |work: &'static (dyn Fn(&Path, u64) + Sync)| {
            let (stop, from) = (&stop, &from);
            scope.spawn(move || {
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    work(from, turn);
                    turn += 1;
                }
            })
        };
        busy(&|from, _| {
            File::options().append(true).open(from.join("05/growing")).unwrap().write_all(&[b'x'; 300]).unwrap();
            // Without a pause it grows faster than a busy machine packs it, until the disk is full.
            std::thread::sleep(Duration::from_millis(1));
        });
        busy(&|from, n| {
            let file = File::options().write(true).open(from.join("06/shrinking")).unwrap();
            file.set_len(if n % 50 == 0 { 3 << 20 } else { (3 << 20) - n % 50 * 20_000 }).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        });
        busy(&|from, n| {
            fs::remove_file(from.join("07/flickering")).unwrap();
            fs::write(from.join("07/flickering"), noise(n, 700_000)).unwrap();
            let name = from.join(format!("08/temporary-{}", n % 7));
            if n % 14 < 7 { fs::write(name, "there\n").unwrap() } else { fs::remove_file(name).unwrap() }
        });
        for _ in 0..3 {
            pack(&from, &file);
        }
        let packed = pack(&from, &file);
        stop.store(true, Ordering::Relaxed);
        packed
    });
    let archive = Archive::open(&file).unwrap();
    archive.verify(&|_| ()).unwrap();
    run("tar", &["--zstd", "-tf", text(&file)]);
    restore(&file, &to).unwrap();
    let busy = ["05", "05/growing", "06", "06/shrinking", "07", "07/flickering", "08"];
    let lines = tree::differences(&from, &to);
    let quiet = |line: &&String| !busy.iter().any(|name| line.starts_with(&format!("{name:?}"))) && !line.contains("08/temporary");
    assert!(lines.iter().all(|line| !quiet(&line)), "{lines:?}");
    // Whatever was read of it, it is one of the states that it was in.
    assert!(fs::read(to.join("05/growing")).unwrap().iter().all(|byte| *byte == b'x'));
    assert!(packed.skipped.iter().all(|(path, _)| busy.contains(&text(path)) || text(path).starts_with("08/")), "{:?}", packed.skipped);
}

#[test]
fn a_killed_restore_is_finished_by_the_next() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    make_tree(&to);
    tree::release(&to);
    let (mut killed, mut delay) = (0, Duration::from_millis(8));
    loop {
        // Half of it is gone, and something else is there.
        for name in ["many", "links", "attributes", "text", "immutable.conf"] {
            let path = to.join(name);
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else if path.exists() {
                fs::remove_file(path).unwrap();
            }
        }
        plain_tree(&to.join("extra"), 60);
        let mut child = restorer(&[], &file, &to, &[]).spawn().unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        let finished = child.wait().unwrap().success();
        killed += u32::from(!finished);
        restore(&file, &to).unwrap();
        assert_same(&from, &to);
        if finished {
            break;
        }
        tree::release(&to);
        delay = delay.mul_f32(1.25);
    }
    assert!(killed >= 3, "it was killed {killed} times only");
}

#[test]
fn a_full_disk_is_an_error_and_leaves_the_old_file() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("large"), noise(1, 6 << 20)).unwrap();
    fs::write(from.join("small"), "new\n").unwrap();
    pack(&from, &file);
    fs::create_dir(&to).unwrap();
    let _mount = Mount::tmpfs(&to, "size=4m");
    fs::write(to.join("large"), "old\n").unwrap();
    let error = restore(&file, &to).unwrap_err();
    assert_eq!(exit_code(&error), 73, "{error:#}");
    assert!(format!("{error:#}").contains("large"), "{error:#}");
    assert_eq!(fs::read(to.join("large")).unwrap(), b"old\n");
    assert!(!to.join(".recovery-stage").exists());
    // Packing onto a full disk leaves nothing either.
    let error = recovery::archive::pack(&from, &to.join("a.tar.zst"), &Selection::all(), None, &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 73, "{error:#}");
    assert!(!to.join("a.tar.zst").exists());
}

#[test]
fn a_later_backup_takes_over_what_has_not_changed() {
    let scratch = Scratch::new();
    let (from, to) = (scratch.path("from"), scratch.path("to"));
    plain_tree(&from, 600);
    settle();
    let (first, second, third) = (scratch.path("1.tar.zst"), scratch.path("2.tar.zst"), scratch.path("3.tar.zst"));
    let one = pack(&from, &first);
    assert_eq!(one.reused, 0);
    let two = pack_after(&from, &second, &first);
    assert!(two.reused > two.bytes * 9 / 10, "{} of {}", two.reused, two.bytes);
    // Changes, additions and removals at the start, in the middle and at the end.
    fs::write(from.join("00/0000"), "changed").unwrap();
    fs::write(from.join("10/0200-added"), noise(5, 10_000)).unwrap();
    fs::remove_file(from.join("20/0411")).unwrap();
    fs::remove_dir_all(from.join("25")).unwrap();
    fs::write(from.join("29/zzzz"), "the last").unwrap();
    fs::set_permissions(from.join("15/0307"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // What leaves size and time as they were: an attribute, a second name, another file with the same of everything.
    rustix::fs::lsetxattr(from.join("17/0350"), "user.new", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    fs::hard_link(from.join("18/0370"), from.join("18/0370-again")).unwrap();
    let meta = from.join("22/0450").metadata().unwrap();
    let len = usize::try_from(meta.len()).unwrap();
    fs::write(from.join("replacement"), noise(77, len)).unwrap();
    tree::set_mtime(&from.join("replacement"), meta.mtime(), meta.mtime_nsec());
    fs::rename(from.join("replacement"), from.join("22/0450")).unwrap();
    let three = pack_after(&from, &third, &second);
    assert!(three.reused > three.bytes / 2 && three.reused < three.bytes, "{} of {}", three.reused, three.bytes);
    assert!(run("sha256sum", &[text(&third)]).starts_with(&three.sha256));
    Archive::open(&third).unwrap().verify(&|_| ()).unwrap();
    assert_eq!(compare(&third, &from).0, []);
    restore(&third, &to).unwrap();
    assert_same(&from, &to);
    run("zstd", &["-q", "-t", text(&third)]);
}

#[test]
fn a_change_that_keeps_size_and_time_is_not_taken_for_none() {
    let scratch = Scratch::new();
    let (from, first, second) = (scratch.path("from"), scratch.path("1.tar.zst"), scratch.path("2.tar.zst"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), noise(1, 400_000)).unwrap();
    fs::write(from.join("b"), noise(2, 400_000)).unwrap();
    settle();
    pack(&from, &first);
    let meta = from.join("a").metadata().unwrap();
    File::options().write(true).open(from.join("a")).unwrap().write_all_at(b"other", 1000).unwrap();
    tree::set_mtime(&from.join("a"), meta.mtime(), meta.mtime_nsec());
    let packed = pack_after(&from, &second, &first);
    assert_eq!(packed.reused, 400_000, "b and nothing else is taken over");
    assert_eq!(Archive::open(&second).unwrap().read_file(Path::new("a")).unwrap().unwrap(), fs::read(from.join("a")).unwrap());
}

#[test]
fn what_was_new_when_the_older_backup_was_taken_is_read_again() {
    let scratch = Scratch::new();
    let (from, first, second) = (scratch.path("from"), scratch.path("1.tar.zst"), scratch.path("2.tar.zst"));
    plain_tree(&from, 40);
    run("find", &[text(&from), "-type", "f", "-exec", "touch", "{}", "+"]);
    pack(&from, &first);
    let packed = pack_after(&from, &second, &first);
    assert_eq!(packed.reused, 0, "it had changed less than two seconds before");
    settle();
    let third = scratch.path("3.tar.zst");
    pack(&from, &third);
    assert!(pack_after(&from, &second, &third).reused > 0);
}

#[test]
fn an_older_archive_that_is_damaged_or_missing_does_no_harm() {
    let scratch = Scratch::new();
    let (from, first, second) = (scratch.path("from"), scratch.path("1.tar.zst"), scratch.path("2.tar.zst"));
    plain_tree(&from, 200);
    settle();
    pack(&from, &first);
    let whole = fs::read(&first).unwrap();
    let good = pack_after(&from, &second, &first);
    let damage = [(whole.len() / 3, "a frame"), (whole.len() - 400, "the index"), (whole.len() - 10, "the trailer")];
    for (at, what) in damage {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&first, bytes).unwrap();
        let packed = pack_after(&from, &second, &first);
        assert!(packed.reused < good.reused, "{what}");
        Archive::open(&second).unwrap().verify(&|_| ()).unwrap();
        assert!(compare(&second, &from).0.is_empty(), "{what}");
    }
    fs::remove_file(&first).unwrap();
    assert_eq!(pack_after(&from, &second, &first).reused, 0);
}

/// Packs a tree in which `a`, `b` and `c` are one file, and calls `change` while that is read.
fn pack_links_while(scratch: &Scratch, change: impl FnOnce(&Path) + Send) -> (std::path::PathBuf, Packed, Vec<u8>) {
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    fs::create_dir(&from).unwrap();
    let content = noise(1, 256 << 20);
    fs::write(from.join("a"), &content).unwrap();
    fs::hard_link(from.join("a"), from.join("b")).unwrap();
    fs::hard_link(from.join("a"), from.join("c")).unwrap();
    let packed = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Some of it is written: it has been begun, and it is not nearly read.
            let begun = || fs::read_dir(scratch.path("")).unwrap().any(|entry| entry.unwrap().metadata().is_ok_and(|m| m.len() > 2 << 20));
            let deadline = Instant::now() + Duration::from_secs(60);
            while !begun() {
                assert!(Instant::now() < deadline, "it is not begun");
                std::thread::sleep(Duration::from_millis(1));
            }
            change(&from);
        });
        pack(&from, &file)
    });
    (file, packed, content)
}

#[test]
fn a_first_name_that_is_replaced_while_it_is_read_leaves_the_others_their_content() {
    let scratch = Scratch::new();
    let (file, packed, content) = pack_links_while(&scratch, |from| {
        fs::write(from.join("new"), "another file\n").unwrap();
        fs::rename(from.join("new"), from.join("a")).unwrap();
    });
    let to = scratch.path("to");
    restore(&file, &to).unwrap();
    assert_eq!(fs::read(to.join("a")).unwrap(), b"another file\n", "it was read before it was replaced");
    assert!(fs::read(to.join("b")).unwrap() == content);
    assert_eq!(to.join("b").metadata().unwrap().ino(), to.join("c").metadata().unwrap().ino());
    assert!(packed.skipped.is_empty(), "{:?}", packed.skipped);
}

#[test]
fn a_first_name_that_vanishes_while_it_is_read_leaves_the_others_their_content() {
    let scratch = Scratch::new();
    let (file, packed, content) = pack_links_while(&scratch, |from| fs::remove_file(from.join("a")).unwrap());
    let to = scratch.path("to");
    restore(&file, &to).unwrap();
    assert_eq!(packed.skipped.len(), 1, "it was read before it vanished: {:?}", packed.skipped);
    assert!(!to.join("a").exists() && fs::read(to.join("b")).unwrap() == content);
    assert_eq!(to.join("b").metadata().unwrap().ino(), to.join("c").metadata().unwrap().ino());
}

#[test]
fn an_archive_that_is_there_stays_until_the_new_one_is_whole() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let scratch = Scratch::new();
    let (from, disk) = (scratch.path("from"), scratch.path("disk"));
    fs::create_dir(&disk).unwrap();
    let _mount = Mount::tmpfs(&disk, "size=12m");
    let file = disk.join("a.tar.zst");
    plain_tree(&from, 40);
    settle();
    pack(&from, &file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (whole, alone) = (fs::read(&file).unwrap(), ["a.tar.zst"]);
    let there = || fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    let try_to_pack = |tree: &Path, file: &Path| recovery::archive::pack(tree, file, &Selection::all(), None, &|_| ()).unwrap_err();
    // A directory that is not there; a disk that gets full.
    try_to_pack(&scratch.path("form"), &file);
    assert!(fs::read(&file).unwrap() == whole && there() == alone);
    fs::create_dir(scratch.path("large")).unwrap();
    fs::write(scratch.path("large/file"), noise(1, 16 << 20)).unwrap();
    assert_eq!(exit_code(&try_to_pack(&scratch.path("large"), &file)), 73);
    assert!(fs::read(&file).unwrap() == whole && there() == alone);
    // A child that another thread has just forked may still hold the part that is removed, and its room.
    run("mount", &["-o", "remount,size=64m", text(&disk)]);
    // What is not a file would be gone.
    symlink("/dev/null", disk.join("link")).unwrap();
    assert_eq!(exit_code(&try_to_pack(&from, &disk.join("link"))), 2);
    assert!(disk.join("link").is_symlink());
    fs::remove_file(disk.join("link")).unwrap();
    // It can be replaced by one that takes over from it, and nobody else can read that.
    let packed = pack_after(&from, &file, &file);
    assert!(packed.reused > packed.bytes / 2, "{} of {}", packed.reused, packed.bytes);
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!((compare(&file, &from).0, there()), (Vec::new(), vec!["a.tar.zst".to_owned()]));
}

#[test]
fn what_a_killed_restore_has_left_can_be_swept() {
    let scratch = Scratch::new();
    let tree = scratch.path("tree");
    assert!(!recovery::archive::sweep(&tree).unwrap());
    plain_tree(&tree, 20);
    fs::create_dir_all(tree.join(".recovery-stage/0")).unwrap();
    fs::write(tree.join(".recovery-stage/0/new"), "a key, half of it").unwrap();
    tree::set_mtime(&tree, 5, 5);
    let before = crate::stamps(&tree.join("00"));
    assert!(recovery::archive::sweep(&tree).unwrap());
    assert!(!tree.join(".recovery-stage").exists());
    assert_eq!((tree.metadata().unwrap().mtime(), crate::stamps(&tree.join("00"))), (5, before));
    assert!(!recovery::archive::sweep(&tree).unwrap());
}

#[test]
fn what_is_mounted_in_what_a_killed_restore_has_left_stays() {
    let scratch = Scratch::new();
    let (tree, kept) = (scratch.path("tree"), scratch.path("kept"));
    let point = tree.join(".recovery-stage/a/b/c/d");
    fs::create_dir_all(&point).unwrap();
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "kept").unwrap();
    run("mount", &["--bind", text(&kept), text(&point)]);
    let swept = recovery::archive::sweep(&tree);
    let mounts = recovery::node::mounts::mounts().unwrap();
    // What is deep is moved up before it is removed, mounted or not.
    let moved = mounts.into_iter().map(|mount| mount.point).find(|point| point.starts_with(&tree)).unwrap();
    run("umount", &["--lazy", text(&moved)]);
    assert_eq!(swept.map_err(|error| exit_code(&error)), Err(78));
    assert!(kept.join("file").exists());
    assert!(recovery::archive::sweep(&tree).unwrap());
    assert!(kept.join("file").exists() && !tree.join(".recovery-stage").exists());
}
