//! What is packed comes back: all of it, by our own restore and by GNU tar, whatever became of the tree in between.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use recovery::archive::{Action, Archive, Counts, Selection};
use rustix::fs::{CWD, IFlags, Mode, XattrFlags};

use crate::{compare, of_newer_version, pack, restore, run, stamps, text};
use testing::tree::{self, Scratch, assert_same, make_tree, noise};

#[test]
fn the_tree_of_everything_is_told_from_another() {
    let scratch = Scratch::new();
    make_tree(&scratch.path("a"));
    make_tree(&scratch.path("b"));
    assert_same(&scratch.path("a"), &scratch.path("b"));
    tree::set_mtime(&scratch.path("b"), 1, 1);
    assert_eq!(tree::differences(&scratch.path("a"), &scratch.path("b")).len(), 1);
}

#[test]
fn everything_comes_back_into_an_empty_tree() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    let packed = pack(&from, &file);
    assert!(packed.skipped.is_empty(), "{:?}", packed.skipped);
    assert_eq!(packed.stored, file.metadata().unwrap().len());
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    assert!(run("sha256sum", &[text(&file)]).starts_with(&packed.sha256));
    let archive = Archive::open(&file).unwrap();
    archive.verify(&|_| ()).unwrap();
    assert_eq!(archive.bytes(), packed.bytes);
    assert_eq!(archive.paths().count() as u64, packed.entries);
    let planned = compare(&file, &to);
    assert!(!to.exists(), "comparing made the tree");
    let counts = restore(&file, &to).unwrap();
    // The root is there by the time it is compared, and only its metadata differs.
    assert_eq!(counts.created + counts.metadata, packed.entries);
    assert_eq!((planned.1.created, planned.1.bytes), (packed.entries, counts.bytes));
    assert_same(&from, &to);
    assert!(!to.join(".recovery-stage").exists());
}

#[test]
fn everything_comes_back_where_the_index_is_of_a_newer_version() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    let packed = pack(&from, &file);
    let indexed = Archive::open(&file).unwrap();
    of_newer_version(&file);
    let archive = Archive::open(&file).unwrap();
    assert!(archive.paths().eq(indexed.paths()) && archive.bytes() == packed.bytes);
    archive.verify(&|_| ()).unwrap();
    restore(&file, &to).unwrap();
    assert_same(&from, &to);
    assert_eq!(compare(&file, &to).0, []);
    // Nothing is taken over from it, and nothing is lost by that.
    let again = recovery::archive::pack(&from, &scratch.path("b.tar.zst"), &Selection::all(), Some(&file), &|_| ()).unwrap();
    assert_eq!((again.entries, again.reused), (packed.entries, 0));
}

#[test]
fn gnu_tar_and_zstd_alone_restore_it() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    run("zstd", &["-q", "-t", text(&file)]);
    fs::create_dir(&to).unwrap();
    let flags = ["--xattrs", "--xattrs-include=*", "--acls", "--selinux", "--numeric-owner"];
    run("tar", &[&["--zstd", "-xpf", text(&file), "-C", text(&to)], &flags[..]].concat());
    // GNU tar does not know of file flags.
    for name in ["immutable.conf", "immutable.d"] {
        tree::set_flag(&to.join(name), IFlags::IMMUTABLE);
    }
    tree::set_flag(&to.join("append.log"), IFlags::APPEND);
    assert_same(&from, &to);
}

#[test]
fn archives_of_gnu_tar_are_restored() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("gnu"));
    make_tree(&from);
    tree::release(&from);
    // It keeps hard links of files and symbolic links only.
    fs::remove_file(from.join("links/fifo-again")).unwrap();
    let full = ["--format=posix", "--sparse", "--xattrs", "--acls", "--selinux", "--numeric-owner"];
    for (n, compression) in ["--zstd", "--gzip", "--no-auto-compress"].into_iter().enumerate() {
        run("tar", &[&["-cpf", text(&file), compression, "-C", text(&from), "."], &full[..]].concat());
        let archive = Archive::open(&file).unwrap();
        archive.verify(&|_| ()).unwrap();
        assert_eq!(archive.read_file(Path::new("plain")).unwrap().unwrap(), b"plain text\n");
        let to = scratch.path(&format!("to-{n}"));
        restore(&file, &to).unwrap();
        assert_same(&from, &to);
        let stamps_before = stamps(&to);
        assert_eq!(compare(&file, &to).0, []);
        assert_eq!(restore(&file, &to).unwrap().unchanged, archive.paths().count() as u64);
        assert_eq!(stamps(&to), stamps_before);
    }
}

#[test]
fn an_archive_of_the_old_script_keeps_labels_that_it_does_not_know() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("old.tar.gz"));
    fs::create_dir_all(from.join("static-pod-resources/etcd")).unwrap();
    let long = format!("static-pod-resources/etcd/{}", "n".repeat(150));
    fs::write(from.join(&long), "long name\n").unwrap();
    fs::write(from.join("static-pod-resources/pod.yaml"), "new\n").unwrap();
    // As the old script called it: GNU format, no parents, no labels.
    run("tar", &["-cpzf", text(&file), "-C", text(&from), "static-pod-resources/pod.yaml", &long]);
    fs::create_dir_all(to.join("static-pod-resources")).unwrap();
    fs::write(to.join("static-pod-resources/pod.yaml"), "old\n").unwrap();
    let label = |path: &str, label: &str| {
        rustix::fs::lsetxattr(to.join(path), "security.selinux", label.as_bytes(), XattrFlags::empty()).unwrap();
    };
    let labelled = |path: &str| {
        let mut value = [0; 100];
        let len = rustix::fs::lgetxattr(to.join(path), "security.selinux", &mut value[..]).unwrap();
        String::from_utf8(value[..len].to_vec()).unwrap()
    };
    label("static-pod-resources", "directory_t");
    label("static-pod-resources/pod.yaml", "pod_t");
    restore(&file, &to).unwrap();
    assert_eq!(fs::read(to.join(&long)).unwrap(), b"long name\n");
    assert_eq!(fs::read(to.join("static-pod-resources/pod.yaml")).unwrap(), b"new\n");
    assert_eq!(labelled("static-pod-resources/pod.yaml"), "pod_t");
    label("static-pod-resources/etcd", "etcd_t");
    fs::remove_file(to.join(&long)).unwrap();
    restore(&file, &to).unwrap();
    assert_eq!(labelled(&long), "etcd_t");
    assert_eq!(compare(&file, &to).0, []);
}

/// Damages the tree of everything in every way there is.
fn wreck(dir: &Path) {
    let at = |name: &str| dir.join(name);
    let chmod = |name: &str, mode| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    tree::release(dir);
    // Content, with size and time kept.
    let mtime = at("noise").metadata().unwrap();
    File::options().write(true).open(at("noise")).unwrap().write_all_at(b"x", 1 << 20).unwrap();
    tree::set_mtime(&at("noise"), mtime.mtime(), mtime.mtime_nsec());
    fs::write(at("plain"), "longer than it was before\n").unwrap();
    fs::write(at("immutable.conf"), "changed\n").unwrap();
    // Metadata.
    chmod("secret", 0o644);
    chmod("read-only", 0o755);
    chmod("setuid", 0o755);
    std::os::unix::fs::lchown(at("links/dangling"), Some(0), Some(0)).unwrap();
    std::os::unix::fs::chown(at("sticky"), Some(0), Some(0)).unwrap();
    tree::set_mtime(&at("void"), 5, 5);
    tree::set_mtime(&at("fifo"), 6, 6);
    tree::set_mtime(&at("links/relative"), 7, 7);
    for (name, attribute) in [("attributes/user", "user.new"), ("null", "trusted.new"), ("links/absolute", "trusted.new"), ("", "user.new")]
    {
        rustix::fs::lsetxattr(at(name), attribute, b"1", XattrFlags::empty()).unwrap();
    }
    for (name, attribute) in [
        ("attributes/acl", "system.posix_acl_access"),
        ("inherit", "system.posix_acl_default"),
        ("attributes/capability", "security.capability"),
    ] {
        rustix::fs::lremovexattr(at(name), attribute).unwrap();
    }
    tree::set_flag(&at("block"), IFlags::IMMUTABLE);
    tree::set_flag(&at("many"), IFlags::IMMUTABLE);
    // Kinds.
    fs::remove_dir_all(at("closed")).unwrap();
    fs::write(at("closed"), "a file where a directory was\n").unwrap();
    fs::remove_file(at("text")).unwrap();
    fs::create_dir_all(at("text/deep")).unwrap();
    fs::write(at("text/deep/file"), "in a directory where a file was\n").unwrap();
    tree::set_flag(&at("text/deep/file"), IFlags::IMMUTABLE);
    tree::set_flag(&at("text/deep"), IFlags::APPEND);
    fs::remove_file(at("disk")).unwrap();
    rustix::fs::mkfifoat(CWD, at("disk"), Mode::RUSR).unwrap();
    fs::remove_file(at("links/not-utf-8")).ok();
    fs::remove_file(at("links/long")).unwrap();
    symlink("/etc", at("links/long")).unwrap();
    fs::remove_dir_all(at("names")).unwrap();
    symlink("/tmp", at("names")).unwrap();
    // Hard links: one that is a copy now, one that should be none, one that is gone.
    fs::remove_file(at("links/other/second")).unwrap();
    fs::copy(at("links/first"), at("links/other/second")).unwrap();
    fs::remove_file(at("links/empty-2")).unwrap();
    fs::hard_link(at("empty"), at("links/empty-2")).unwrap();
    fs::remove_file(at("zz-third")).unwrap();
    // Holes filled, and things that were not there.
    fs::write(at("sparse/data-hole"), "short\n").unwrap();
    fs::create_dir_all(at("extra/empty/deeper")).unwrap();
    fs::write(at("extra/file"), noise(9, 10_000)).unwrap();
    tree::set_flag(&at("extra"), IFlags::IMMUTABLE);
    symlink("/", at("extra-link")).unwrap();
    fs::hard_link(at("large-ids"), at("extra-name")).unwrap();
    fs::create_dir(at(".recovery-stage")).unwrap();
    fs::write(at(".recovery-stage/left over"), "by a restore that was killed\n").unwrap();
}

#[test]
fn every_kind_of_damage_is_repaired() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    make_tree(&to);
    assert_eq!(compare(&file, &to).0, []);
    wreck(&to);
    let before = stamps(&to);
    let (changes, planned) = compare(&file, &to);
    assert_eq!(stamps(&to), before, "comparing changed something");
    let why = |path: &str| changes.iter().find(|change| change.path == Path::new(path)).map(|change| (change.action, change.why.as_str()));
    assert_eq!(why("noise"), Some((Action::Replace, "content")));
    assert_eq!(why("plain"), Some((Action::Replace, "content, modification time")));
    assert_eq!(why("secret"), Some((Action::Metadata, "mode")));
    assert_eq!(why("attributes/user"), Some((Action::Metadata, "extended attributes")));
    assert_eq!(why("block"), Some((Action::Metadata, "flags")));
    assert_eq!(why("closed"), Some((Action::Replace, "kind")));
    assert_eq!(why("closed/file"), Some((Action::Create, "missing")));
    assert_eq!(why("text/deep/file"), Some((Action::Delete, "not in the archive")));
    assert_eq!(why("links/long"), Some((Action::Replace, "link target, modification time")));
    assert_eq!(why("links/other/second"), Some((Action::Replace, "hard link")));
    assert_eq!(why("links/other"), Some((Action::Metadata, "modification time")));
    assert_eq!(why("attributes/label"), None);
    assert!(changes.is_sorted_by(|a, b| a.path <= b.path));
    let counts = restore(&file, &to).unwrap();
    assert_eq!(counts, planned);
    assert_same(&from, &to);
    let (changes, counts) = compare(&file, &to);
    assert_eq!(changes, []);
    assert_eq!(counts, Counts { unchanged: Archive::open(&file).unwrap().paths().count() as u64, ..Counts::default() });
}

#[test]
fn an_equal_tree_is_not_written_to() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    make_tree(&from);
    let before = stamps(&from);
    pack(&from, &file);
    restore(&file, &from).unwrap();
    assert_eq!(stamps(&from), before);
}

#[test]
fn only_what_differs_is_written() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    fs::write(from.join("many/file-007"), "changed").unwrap();
    let before = stamps(&from);
    let counts = restore(&file, &from).unwrap();
    assert_eq!((counts.replaced, counts.metadata, counts.created, counts.deleted), (1, 0, 0, 0));
    let after = stamps(&from);
    let changed: Vec<_> = before.keys().filter(|path| before[*path][..2] != after[*path][..2]).collect();
    // The file; its directory, whose time was put back; and the root, which held the stage.
    assert_eq!(changed, [&from, &from.join("many"), &from.join("many/file-007")]);
    assert_eq!(compare(&file, &from).0, []);
}

#[test]
fn single_files_can_be_read() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    let archive = Archive::open(&file).unwrap();
    for name in ["plain", "empty", "noise", "zz-third", "sparse/many-holes", "links/first"] {
        assert_eq!(archive.read_file(Path::new(name)).unwrap().unwrap(), fs::read(from.join(name)).unwrap(), "{name}");
    }
    for name in ["nowhere", "many", "links/relative", "fifo", "../plain", "/plain"] {
        assert_eq!(archive.read_file(Path::new(name)).unwrap(), None, "{name}");
    }
}

#[test]
fn holes_cost_neither_time_nor_space() {
    let scratch = Scratch::new();
    let (from, to, first, second) = (scratch.path("from"), scratch.path("to"), scratch.path("1.tar.zst"), scratch.path("2.tar.zst"));
    fs::create_dir(&from).unwrap();
    let begun = Instant::now();
    // Any pod can make such files. To hash their zeros would take an hour.
    for (name, at) in [("void", None), ("start", Some(0)), ("middle", Some(1 << 40)), ("end", Some((4 << 40) - 6))] {
        let file = File::create(from.join(name)).unwrap();
        file.set_len(4 << 40).unwrap();
        if let Some(at) = at {
            file.write_all_at(b"sparse", at).unwrap();
        }
    }
    fs::write(from.join("dense"), noise(1, 300_000)).unwrap();
    std::thread::sleep(Duration::from_millis(2600));
    let packed = pack(&from, &first);
    // What a restore has to find room for is what is stored.
    assert!((300_000..400_000).contains(&packed.bytes), "{}", packed.bytes);
    assert_eq!(Archive::open(&first).unwrap().bytes(), packed.bytes);
    let again = recovery::archive::pack(&from, &second, &Selection::all(), Some(&first), &|_| ()).unwrap();
    assert!(again.bytes == packed.bytes && again.reused >= 300_000, "{again:?}");
    let archive = Archive::open(&second).unwrap();
    archive.verify(&|_| ()).unwrap();
    assert_eq!(compare(&second, &from).0, []);
    assert_eq!(restore(&second, &to).unwrap().bytes, packed.bytes);
    assert_eq!(compare(&second, &to).0, []);
    assert!(to.join("middle").metadata().unwrap().blocks() < 100);
    // One byte, far out.
    File::options().write(true).open(to.join("middle")).unwrap().write_all_at(b"S", 1 << 40).unwrap();
    File::options().write(true).open(to.join("void")).unwrap().write_all_at(b"\0", 3 << 40).unwrap();
    tree::set_mtime(&to.join("void"), from.join("void").metadata().unwrap().mtime(), from.join("void").metadata().unwrap().mtime_nsec());
    let changes = compare(&second, &to).0;
    assert_eq!(changes.iter().map(|change| text(&change.path)).collect::<Vec<_>>(), ["middle"], "{changes:?}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}
