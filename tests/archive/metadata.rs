//! Owners, times, flags and attributes as real file systems see them: XFS, ext4, overlay.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use recovery::archive::{Archive, Extra, Selection};
use recovery::error::exit_code;
use rustix::fs::{CWD, IFlags, StatxAttributes, XattrFlags};

use crate::hostile::{entry, pax, sealed};
use crate::{Mount, compare, pack, restore, restorer, run, stamps, text};
use testing::tree::{self, Scratch, make_tree, release};

/// A file system of its own, in a file.
fn disk(scratch: &Scratch, name: &str, mkfs: &[&str]) -> (PathBuf, Mount) {
    let (image, at) = (scratch.path(&format!("{name}.img")), scratch.path(name));
    File::create(&image).unwrap().set_len(400 << 20).unwrap();
    run(mkfs[0], &[&mkfs[1..], &[text(&image)]].concat());
    fs::create_dir(&at).unwrap();
    run("mount", &["-o", "loop", text(&image), text(&at)]);
    (at.clone(), Mount(at))
}

const XFS: [&str; 2] = ["mkfs.xfs", "-q"];
const EXT4: [&str; 2] = ["mkfs.ext4", "-q"];

/// Restores twice: the tree is equal after the first, and the second leaves it alone.
fn restored_twice(file: &Path, to: &Path, what: &str) {
    restore(file, to).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_eq!(compare(file, to).0, [], "{what}");
    let before = stamps(to);
    restore(file, to).unwrap();
    assert_eq!(stamps(to), before, "{what}: the second restore changed something");
}

#[test]
fn a_tree_restored_twice_is_equal_and_left_alone_on_every_file_system() {
    let scratch = Scratch::new();
    let (xfs, _xfs) = disk(&scratch, "xfs", &XFS);
    let (ext4, _ext4) = disk(&scratch, "ext4", &EXT4);
    let overlay = scratch.path("overlay");
    for name in ["lower", "upper", "work"] {
        fs::create_dir(ext4.join(name)).unwrap();
    }
    fs::create_dir(&overlay).unwrap();
    let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", text(&ext4));
    run("mount", &["-t", "overlay", "-o", &options, "none", text(&overlay)]);
    let _overlay = Mount(overlay.clone());
    for (from, what) in [(&xfs, "made on XFS"), (&ext4, "made on ext4")] {
        let (tree, file) = (from.join("from"), scratch.path("a.tar.zst"));
        let model = scratch.path("model");
        if !model.exists() {
            make_tree(&model);
            // Its number is larger than XFS takes.
            fs::remove_file(model.join("disk")).unwrap();
        }
        run("cp", &["-a", text(&model), text(&tree)]);
        pack(&tree, &file);
        let paths = Archive::open(&file).unwrap().paths().count();
        assert!(paths > 50, "{paths}");
        for (to, where_to) in [(&xfs, "XFS"), (&ext4, "ext4"), (&overlay, "overlay")] {
            let to = to.join("to");
            restored_twice(&file, &to, &format!("{what}, restored to {where_to}"));
            release(&to);
            fs::remove_dir_all(&to).unwrap();
        }
        release(&tree);
    }
}

#[test]
fn acls_that_came_to_xfs_since_the_archive_was_made_go_and_its_own_come_back() {
    let scratch = Scratch::new();
    let ((at, _mount), file) = (disk(&scratch, "xfs", &XFS), scratch.path("a.tar.zst"));
    let tree = at.join("tree");
    fs::create_dir_all(tree.join("dir")).unwrap();
    for name in ["plain", "listed"] {
        fs::write(tree.join(name), name).unwrap();
    }
    run("setfacl", &["-m", "u:1234:rw", text(&tree.join("listed"))]);
    pack(&tree, &file);
    let unpacked = run("zstd", &["-dcq", text(&file)].map(|arg| arg));
    assert!(!unpacked.contains("SGI_ACL") && unpacked.contains("user:1234:rw-"));
    run("setfacl", &["-m", "u:1:rw", text(&tree.join("plain"))]);
    run("setfacl", &["-d", "-m", "u:1:rx", text(&tree.join("dir"))]);
    run("setfacl", &["-b", text(&tree.join("listed"))]);
    restored_twice(&file, &tree, "ACLs");
    let list = run("getfacl", &["-cpnR", text(&tree)]);
    assert!(list.contains("user:1234:rw-") && !list.contains("user:1:"), "{list}");
}

#[test]
fn what_other_programs_wrote_is_as_the_file_system_keeps_it() {
    let scratch = Scratch::new();
    let ((at, _mount), file) = (disk(&scratch, "xfs", &XFS), scratch.path("a.tar"));
    let acl = "user::---,group::r--,other::rwx,user:1234:rw-,mask::---";
    let twin = [("SCHILY.acl.access", acl), ("SCHILY.xattr.trusted.SGI_ACL_FILE", "a view of the same"), ("SCHILY.xattr.user.a", "1")];
    let named = [("SCHILY.acl.access", "user::rw-,group::r--,group:root:r--,mask::r--,other::r--")];
    let tar = [pax(&twin), entry("a", b'0', "", b"1"), pax(&named), entry("b", b'0', "", b"1"), vec![0; 1024]].concat();
    fs::write(&file, tar).unwrap();
    let tree = at.join("tree");
    restored_twice(&file, &tree, "an ACL in another order, beside a mode that says otherwise");
    let list = run("getfacl", &["-cpnR", text(&tree)]);
    assert!(list.contains("user:1234:rw-") && list.contains("group:0:r--"), "{list}");
    assert_eq!(tree.join("a").metadata().unwrap().mode() & 0o7777, 0o007, "the mode follows the ACL");
}

#[test]
fn the_mask_of_an_acl_is_what_tar_restores() {
    let scratch = Scratch::new();
    let from = scratch.path("from");
    fs::create_dir_all(from.join("dir")).unwrap();
    for name in ["wider", "narrower", "set-id", "name"] {
        fs::write(from.join(name), name).unwrap();
    }
    fs::set_permissions(from.join("set-id"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::remove_file(from.join("name")).unwrap();
    fs::hard_link(from.join("wider"), from.join("name")).unwrap();
    run("setfacl", &["-m", "u:1234:rw", text(&from.join("wider"))]);
    run("setfacl", &["-m", "u:1234:rwx,m::-", text(&from.join("narrower"))]);
    run("setfacl", &["-m", "g:7:rwx", text(&from.join("set-id"))]);
    run("setfacl", &["-m", "u:1234:rwx,d:u:1234:rwx", text(&from.join("dir"))]);
    let seen = |tree: &Path| run("bash", &["-ec", "cd $0; getfacl -pnR . ; stat -c '%n %a' . * | sort", text(tree)]);
    for (name, program) in [("bsd.tar", &["bsdtar", "--acls"][..]), ("gnu.tar", &["tar", "--acls", "--format=posix"])] {
        let (file, to, by_tar) = (scratch.path(name), scratch.path(&format!("{name}.to")), scratch.path(&format!("{name}.by-tar")));
        run(program[0], &[&program[1..], &["-C", text(&from), "-cf", text(&file), "."]].concat());
        restored_twice(&file, &to, name);
        fs::create_dir(&by_tar).unwrap();
        run(program[0], &[&program[1..2], &["-C", text(&by_tar), "-xpf", text(&file)]].concat());
        assert_eq!(seen(&to), seen(&by_tar), "{name}");
        assert!(seen(&to).contains("mask::rw-\n") && seen(&to).contains("./narrower") && !seen(&to).contains("wider 644"), "{}", seen(&to));
    }
}

/// An archive that the agent made on XFS when it still packed what XFS lists of each ACL a second time: `listed` and `dir` have both.
#[test]
fn an_archive_of_an_earlier_agent_with_the_second_view_of_acls_restores_right_and_only_once() {
    let scratch = Scratch::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/archive/xfs-acl-twins.tar.zst");
    Archive::open(&file).unwrap().verify(&|_| ()).unwrap();
    let mut held = Vec::new();
    zstd::stream::copy_decode(File::open(&file).unwrap(), &mut held).unwrap();
    assert!(held.windows(12).any(|at| at == b"SGI_ACL_FILE"), "the archive has lost what it is for");
    for (name, mkfs) in [("xfs", XFS), ("ext4", EXT4)] {
        let (at, _mount) = disk(&scratch, name, &mkfs);
        let tree = at.join("tree");
        restored_twice(&file, &tree, name);
        // As an earlier agent leaves it, and as one that gained another ACL since.
        run("setfacl", &["-b", text(&tree.join("listed"))]);
        run("setfacl", &["-m", "u:9:rw", text(&tree.join("plain"))]);
        restored_twice(&file, &tree, name);
        let list = run("getfacl", &["-cpnR", text(&tree)]);
        let count = |what: &str| list.matches(what).count();
        assert_eq!(
            (count("\nuser:1234:rw-"), count("\ngroup:55:r--"), count("default:user:1234:r--"), count("user:9:")),
            (1, 1, 1, 0),
            "{list}"
        );
        assert_eq!(run("getfattr", &["--absolute-names", "-m", "note", "-R", text(&tree)]).matches(".note").count(), 2);
    }
}

#[test]
fn what_a_file_system_does_not_take_is_told_of_before_anything_is_changed() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar");
    let (xfs, _xfs) = disk(&scratch, "xfs", &XFS);
    let (ext4, _ext4) = disk(&scratch, "ext4", &["mkfs.ext4", "-q", "-b", "1024"]);
    let device = |minor: &[u8]| {
        let mut block = entry("device", b'4', "", b"");
        block[329..337].copy_from_slice(b"0000007\0");
        block[337..345].copy_from_slice(minor);
        sealed(block)
    };
    let (long, size) = ("t/".repeat(1000), (1_u64 << 50).to_string());
    let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "sparse"), ("GNU.sparse.realsize", &size)];
    let map = [b"0\n".as_slice(), &[0; 510]].concat();
    // On the one file system it is taken, on the other not.
    let cases = [
        ("device", vec![device(b"0777777\0")], None, None),
        ("device", vec![device(b"1000000\0")], Some("XFS) does not take the device number 7:262144"), None),
        (
            "link",
            vec![pax(&[("linkpath", &long)]), entry("link", b'2', "", b"")],
            Some("a path of 2000 bytes"),
            Some("a path of 2000 bytes"),
        ),
        ("sparse", vec![pax(&sparse), entry("GNUSparseFile.0/s", b'0', "", &map)], None, Some("a file of 1125899906842624 bytes")),
        ("fifo", vec![pax(&[("SCHILY.xattr.user.a", "1")]), entry("fifo", b'6', "", b"")], Some("of this kind"), Some("of this kind")),
        (
            "file",
            vec![pax(&[("SCHILY.xattr.security.capability", "none")]), entry("file", b'0', "", b"")],
            Some("does not take this value"),
            Some("does not take this value"),
        ),
    ];
    for (name, entries, on_xfs, on_ext4) in cases {
        // What comes before it is not restored either.
        fs::write(&file, [entry("before", b'0', "", b"1"), entries.concat(), vec![0; 1024]].concat()).unwrap();
        for (at, says) in [(&xfs, on_xfs), (&ext4, on_ext4)] {
            let tree = at.join("tree");
            fs::create_dir_all(&tree).unwrap();
            fs::write(tree.join("surplus"), "").unwrap();
            tree::set_mtime(&tree, 1_000_000, 7);
            if let Some(says) = says {
                let error = restore(&file, &tree).expect_err(name);
                let said = format!("{error:#}");
                assert!(exit_code(&error) == 78 && said.contains(says) && said.contains(&format!("\"{name}\"")), "{said}");
                assert!(fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).eq(["surplus"]), "{name}");
                assert_eq!(tree.metadata().unwrap().mtime(), 1_000_000, "{name}");
            } else {
                restored_twice(&file, &tree, name);
            }
            fs::remove_dir_all(&tree).unwrap();
        }
    }
}

#[test]
fn a_name_that_this_node_does_not_have_is_named_before_anything_is_changed() {
    let scratch = Scratch::new();
    let (tree, file) = (scratch.path("tree"), scratch.path("a.tar"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("surplus"), "").unwrap();
    let named = [("SCHILY.acl.access", "user::rw-,user:nobody-has-this:rw-,group::r--,mask::rw-,other::r--")];
    fs::write(&file, [pax(&named), entry("some file", b'0', "", b"1"), vec![0; 1024]].concat()).unwrap();
    let before = stamps(&tree);
    let error = restore(&file, &tree).unwrap_err();
    assert_eq!(exit_code(&error), 64, "{error:#}");
    let said = format!("{error:#}");
    assert!(said.contains("\"some file\"") && said.contains("\"nobody-has-this\""), "{said}");
    assert_eq!(stamps(&tree), before);
}

#[test]
fn attributes_that_the_file_system_has_no_room_for_are_told_of_before_anything_is_changed() {
    let scratch = Scratch::new();
    let (xfs, _xfs) = disk(&scratch, "xfs", &XFS);
    let (ext4, _ext4) = disk(&scratch, "ext4", &EXT4);
    let (from, tree, file) = (xfs.join("from"), ext4.join("tree"), scratch.path("a.tar.zst"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    rustix::fs::setxattr(from.join("file"), "user.large", &vec![b'x'; 30_000], XattrFlags::empty()).unwrap();
    pack(&from, &file);
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("surplus"), "").unwrap();
    tree::set_mtime(&tree, 1_000_000, 7);
    let error = restore(&file, &tree).unwrap_err();
    let said = format!("{error:#}");
    assert_eq!(exit_code(&error), 78, "{said}");
    assert!(["\"file\"", "user.large", "30000 bytes", "ext4"].iter().all(|word| said.contains(word)), "{said}");
    assert!(tree.join("surplus").exists() && !tree.join("file").exists() && !tree.join(".recovery-stage").exists());
    let root = tree.metadata().unwrap();
    assert_eq!((root.mtime(), root.mtime_nsec()), (1_000_000, 7));
}

#[test]
fn what_a_full_file_system_does_not_take_is_told_of_before_anything_is_changed() {
    let scratch = Scratch::new();
    let ((at, _mount), file) = (disk(&scratch, "ext4", &EXT4), scratch.path("a.tar"));
    let (tree, large) = (at.join("tree"), "x".repeat(3000));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("surplus"), tree::noise(1, 100_000)).unwrap();
    // There is no room for the one, and there would never be any for the other.
    let entries = [
        entry("./", b'5', "", b""),
        [pax(&[("SCHILY.xattr.user.large", &large)]), entry("file", b'0', "", b"1")].concat(),
        [pax(&[("SCHILY.xattr.user.a", "1")]), entry("later", b'6', "", b"")].concat(),
    ];
    fs::write(&file, [entries.concat(), vec![0; 1024]].concat()).unwrap();
    let filling = File::create(at.join("filling")).unwrap();
    let (mut size, mut chunk) = (0, 64 << 20);
    while chunk >= 4096 {
        match rustix::fs::fallocate(&filling, rustix::fs::FallocateFlags::empty(), size, chunk) {
            Ok(()) => size += chunk,
            Err(_) => chunk /= 2,
        }
    }
    // Room for the stage and its notes.
    filling.set_len(size - 8192).unwrap();
    run("sync", &["-f", text(&at)]);
    let error = restore(&file, &tree).unwrap_err();
    assert_eq!(exit_code(&error), 78, "{error:#}");
    assert!(format!("{error:#}").contains("\"later\""), "{error:#}");
    assert!(fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).eq(["surplus"]));
}

#[test]
fn more_names_than_a_file_may_have_are_told_of_before_anything_is_changed() {
    let scratch = Scratch::new();
    let ((at, _mount), file) = (disk(&scratch, "ext4", &["mkfs.ext4", "-q", "-N", "1000"]), scratch.path("a.tar.zst"));
    let tree = at.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("surplus"), "").unwrap();
    let make = |names: u32| {
        let further = (1..names).map(|n| entry(&format!("{n}"), b'1', "0", b""));
        crate::hostile::write(
            &file,
            &[entry("./", b'5', "", b""), entry("0", b'0', "", b"1")].into_iter().chain(further).collect::<Vec<_>>(),
        );
    };
    make(65_001);
    let error = restore(&file, &tree).unwrap_err();
    assert_eq!(exit_code(&error), 78, "{error:#}");
    assert!(format!("{error:#}").contains("(ext4) does not take 65001 names of one file, only up to 65000"), "{error:#}");
    assert!(fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).eq(["surplus"]));
    // So many are tried, and taken.
    make(30_001);
    restore(&file, &tree).unwrap();
    assert_eq!(tree.join("0").metadata().unwrap().nlink(), 30_001);
    assert!(!tree.join("surplus").exists());
}

#[test]
fn times_that_a_file_system_cannot_keep_are_compared_as_it_keeps_them() {
    let scratch = Scratch::new();
    let (file, old) = (scratch.path("a.tar"), ["mkfs.ext4", "-q", "-I", "128"]);
    let made: [(&str, &[&str]); 4] =
        [("xfs", &XFS), ("xfs-2038", &["mkfs.xfs", "-q", "-m", "bigtime=0"]), ("ext4", &EXT4), ("small", &old)];
    let mut tar = Vec::new();
    for (n, time) in ["99999999999.5", "-99999999999.5", "16299260425", "5000000000.25", "1600000000.123456789"].into_iter().enumerate() {
        tar.extend([pax(&[("mtime", time)]), entry(&format!("{n}"), b'0', "", b"1")].concat());
    }
    fs::write(&file, [tar, vec![0; 1024]].concat()).unwrap();
    for (name, mkfs) in made {
        let (at, _mount) = disk(&scratch, name, mkfs);
        restored_twice(&file, &at.join("tree"), name);
        // Another time is still another.
        tree::set_mtime(&at.join("tree/4"), 1_600_000_001, 0);
        assert_eq!(compare(&file, &at.join("tree")).0.len(), 1, "{name}");
    }
}

/// Whether `path` itself is immutable.
fn is_immutable(path: &Path) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(CWD, path, flags, rustix::fs::StatxFlags::BASIC_STATS).unwrap();
    found.stx_attributes.contains(StatxAttributes::IMMUTABLE)
}

#[test]
fn a_flag_on_a_fifo_is_restored_or_refused_before_anything_is_changed() {
    let scratch = Scratch::new();
    let (xfs, _xfs) = disk(&scratch, "xfs", &XFS);
    let (ext4, _ext4) = disk(&scratch, "ext4", &EXT4);
    let file = scratch.path("a.tar");
    let flags = [("SCHILY.fflags", "schg")];
    fs::write(
        &file,
        [entry("./", b'5', "", b""), pax(&flags), entry("fifo", b'6', "", b""), pax(&flags), entry("link", b'2', "x", b""), vec![0; 1024]]
            .concat(),
    )
    .unwrap();
    for at in [&xfs, &ext4] {
        let tree = at.join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("surplus"), "").unwrap();
        match restore(&file, &tree) {
            Ok(_) => {
                restored_twice(&file, &tree, "flags");
                assert!(is_immutable(&tree.join("fifo")) && is_immutable(&tree.join("link")));
                // And goes again.
                let plain = scratch.path("plain.tar");
                fs::write(&plain, [entry("./", b'5', "", b""), entry("fifo", b'6', "", b""), vec![0; 1024]].concat()).unwrap();
                restored_twice(&plain, &tree, "no flags");
                assert!(!is_immutable(&tree.join("fifo")), "the fifo");
                assert!(!tree.join("link").is_symlink(), "the link");
            }
            Err(error) => {
                assert_eq!(exit_code(&error), 78, "{error:#}");
                assert!(tree.join("surplus").exists(), "{error:#}");
            }
        }
    }
}

#[test]
fn what_a_partial_restore_passes_through_is_as_it_was_however_often_it_is_killed() {
    let only = ["etc/kubernetes/manifests", "etc/kubernetes/single"];
    let selection = Selection::all().only(only);
    let scratch = Scratch::new();
    let ((at, _mount), file) = (disk(&scratch, "xfs", &XFS), scratch.path("a.tar.zst"));
    let (tree, passed) = (at.join("tree"), at.join("tree/etc/kubernetes"));
    let named = passed.join("manifests");
    fs::create_dir_all(&named).unwrap();
    for n in 0..200 {
        fs::write(named.join(format!("{n}")), tree::noise(n, 5000)).unwrap();
    }
    fs::write(passed.join("single"), "1").unwrap();
    recovery::archive::pack(&tree, &file, &selection, None, &|_| ()).unwrap();
    let archive = Archive::open(&file).unwrap();
    let mut killed = 0;
    for round in 0..60_u64 {
        if passed.exists() {
            release(&tree);
        }
        fs::remove_dir_all(&named).unwrap();
        fs::create_dir(&named).unwrap();
        fs::write(named.join("surplus"), "").unwrap();
        fs::write(passed.join("single"), format!("other {round}")).unwrap();
        for (path, seconds) in [(&passed, 1_000_000), (&tree.join("etc"), 2_000_000), (&tree, 3_000_000)] {
            tree::set_mtime(path, seconds, 7);
        }
        tree::set_flag(&passed, IFlags::IMMUTABLE);
        for delay in [round, round / 2] {
            let mut child = restorer(&[], &file, &tree, &only).spawn().unwrap();
            let begun = Instant::now();
            while !tree.join(".recovery-stage").exists() && child.try_wait().unwrap().is_none() {
                assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin");
            }
            std::thread::sleep(Duration::from_micros(delay * 400));
            child.kill().unwrap();
            child.wait().unwrap();
            killed += u32::from(tree.join(".recovery-stage").exists());
        }
        if round % 3 == 0 {
            // Nobody finishes it.
            recovery::archive::sweep(&tree).unwrap();
        } else {
            archive.restore(&tree, &selection, Extra::Delete, &|_| ()).unwrap();
            assert_eq!(archive.compare(&tree, &selection, Extra::Delete, &|_| ()).unwrap().0, []);
        }
        for (path, seconds) in [(&passed, 1_000_000), (&tree.join("etc"), 2_000_000), (&tree, 3_000_000)] {
            let found = path.metadata().unwrap();
            assert_eq!((found.mtime(), found.mtime_nsec()), (seconds, 7), "round {round}: the time of {}", path.display());
        }
        assert!(is_immutable(&passed), "round {round}");
        assert!(!tree.join(".recovery-stage").exists());
    }
    release(&tree);
    assert!(killed >= 20, "only {killed} were killed in the middle");
}

#[test]
fn the_root_of_a_partial_restore_is_as_it_was_wherever_it_is_killed() {
    let selection = Selection::all().only(["manifests"]);
    let scratch = Scratch::new();
    let file = scratch.path("a.tar.zst");
    let from = scratch.path("from");
    fs::create_dir_all(from.join("manifests")).unwrap();
    fs::write(from.join("manifests/pod"), "1").unwrap();
    recovery::archive::pack(&from, &file, &selection, None, &|_| ()).unwrap();
    for (name, mkfs) in [("xfs", XFS), ("ext4", EXT4)] {
        let (at, _mount) = disk(&scratch, name, &mkfs);
        let tree = at.join("kubernetes");
        let prepare = || {
            if tree.exists() {
                release(&tree);
                fs::remove_dir_all(&tree).unwrap();
            }
            fs::create_dir_all(tree.join("manifests")).unwrap();
            fs::write(tree.join("manifests/surplus"), "").unwrap();
            tree::set_mtime(&tree, 1_000_000, 7);
            tree::set_flag(&tree, IFlags::IMMUTABLE);
        };
        // Killed at the call of that number; true when it was, false when it had ended before.
        let killed = |call: &str, number: u32| {
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let mut restorer = restorer(&strace, &file, &tree, &["manifests"]);
            let ended = restorer.stdin(Stdio::null()).status().expect("strace is needed");
            assert!(ended.success() || ended.code().is_none(), "{ended}");
            !ended.success()
        };
        let mut points = 0;
        for call in ["ioctl", "fsetxattr", "fremovexattr", "mkdirat", "utimensat", "renameat", "unlinkat", "fsync", "syncfs"] {
            for number in 1.. {
                prepare();
                let was_killed = killed(call, number);
                points += u32::from(was_killed);
                // Nobody finishes it, or somebody who is killed at the same place, and then somebody to the end.
                if number % 3 == 0 {
                    recovery::archive::sweep(&tree).unwrap();
                } else {
                    killed(call, number);
                    Archive::open(&file).unwrap().restore(&tree, &selection, Extra::Delete, &|_| ()).unwrap();
                    assert_eq!(fs::read(tree.join("manifests/pod")).unwrap(), b"1");
                }
                let found = tree.metadata().unwrap();
                let flags = rustix::fs::ioctl_getflags(File::open(&tree).unwrap()).unwrap();
                let what = format!("{name}: killed at {call} {number}");
                assert_eq!((found.mtime(), found.mtime_nsec()), (1_000_000, 7), "{what}");
                assert!(flags.contains(IFlags::IMMUTABLE), "{what}: {flags:?}");
                assert!(!flags.intersects(IFlags::SYNC | IFlags::NODUMP | IFlags::NOATIME), "{what}: {flags:?}");
                let left = rustix::fs::listxattr(&tree, &mut [0; 256]).unwrap();
                assert_eq!((left, fs::read_dir(&tree).unwrap().count()), (0, 1), "{what}");
                if !was_killed {
                    break;
                }
            }
        }
        assert!(points > 20, "{name}: only {points}");
        release(&tree);
    }
}
