//! Parts of trees, and what must be left alone: what is not selected, what is excepted, what is mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use recovery::archive::{Archive, Extra, Selection, Skipped};
use recovery::error::exit_code;

use crate::{Mount, compare, of_newer_version, pack, restore, run, stamps, text};
use testing::tree::{self, Scratch, assert_same, differences, make_tree};

fn put(path: &Path, bytes: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_restore_of_named_paths_touches_nothing_else() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    make_tree(&from);
    pack(&from, &file);
    make_tree(&to);
    for name in ["many/file-001", "many/file-002", "plain", "links/other/second"] {
        fs::write(to.join(name), "changed\n").unwrap();
    }
    fs::write(to.join("many/added"), "").unwrap();
    fs::write(to.join("void/added"), "").unwrap();
    fs::remove_dir_all(to.join("names")).unwrap();
    let before = stamps(&to);
    let only = ["many/file-001", "void", "links/other/second", "names/caf\u{e9}", "not/there"];
    let selection = Selection::all().only(only);
    let counts = Archive::open(&file).unwrap().restore(&to, &selection, Extra::Delete, &|_| ()).unwrap();
    let after = stamps(&to);
    assert_eq!(fs::read(to.join("many/file-002")).unwrap(), b"changed\n");
    assert!(to.join("many/added").exists() && !to.join("void/added").exists());
    // The parent that was missing was made, with what was named in it and no more.
    assert_eq!(fs::read_dir(to.join("names")).unwrap().count(), 1);
    assert_eq!(fs::read(to.join("links/other/second")).unwrap(), fs::read(from.join("links/first")).unwrap());
    assert_eq!(counts.deleted, 1);
    // The other names of what was replaced lost one.
    let touched = [
        "links/first",
        "zz-third",
        "",
        "many",
        "many/file-001",
        "void",
        "links/other",
        "links/other/second",
        "names",
        "names/caf\u{e9}",
        "void/added",
    ];
    for path in before.keys().filter(|path| after.get(*path).is_none_or(|stamp| stamp[..2] != before[*path][..2])) {
        let name = path.strip_prefix(&to).unwrap();
        assert!(touched.iter().any(|touched| Path::new(touched) == name), "{name:?} was touched");
    }
    // The time of a directory that only leads there is as it was.
    let lines = differences(&from, &to);
    assert!(!lines.iter().any(|line| line.contains("\"links/other\": mtime")), "{lines:?}");
}

#[test]
fn named_paths_are_packed_with_what_leads_there() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    for name in ["a/b/one", "a/b/two", "a/other", "x/y"] {
        put(&from.join(name), name);
    }
    let selection = Selection::all().only(["a/b/one", "x", "optional/path"]);
    let packed = recovery::archive::pack(&from, &file, &selection, None, &|_| ()).unwrap();
    assert!(packed.skipped.is_empty());
    let archive = Archive::open(&file).unwrap();
    let paths: Vec<_> = archive.paths().map(|path| text(path).to_owned()).collect();
    assert_eq!(paths, ["", "a", "a/b", "a/b/one", "x", "x/y"]);
    // What leads there is made when it is missing, and else neither compared nor cleared of what else is in it.
    put(&to.join("a/kept"), "");
    archive.restore(&to, &Selection::all(), Extra::Delete, &|_| ()).unwrap();
    assert!(to.join("a/kept").exists());
    assert_eq!(fs::read(to.join("a/b/one")).unwrap(), b"a/b/one");
    assert_eq!(compare(&file, &to).0, []);
}

#[test]
fn a_symbolic_link_on_the_way_to_a_named_path_is_refused() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    put(&from.join("real/file"), "x");
    symlink("real", from.join("link")).unwrap();
    let selection = Selection::all().only(["link/file"]);
    let error = recovery::archive::pack(&from, &file, &selection, None, &|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("symbolic link"), "{error:#}");
    assert!(!file.exists());
}

#[test]
fn what_is_excepted_is_neither_packed_nor_deleted() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    for name in ["keep", "a/pods.yaml", "a/pods.yml", "b/deep/x.tmp"] {
        put(&from.join(name), name);
    }
    let selection = Selection::all().except(["a/*.yaml", "b/*/x.tmp", "c"]).unwrap();
    recovery::archive::pack(&from, &file, &selection, None, &|_| ()).unwrap();
    let archive = Archive::open(&file).unwrap();
    assert!(archive.paths().all(|path| path != Path::new("a/pods.yaml") && path != Path::new("b/deep/x.tmp")));
    for name in ["a/other.yaml", "b/deep/x.tmp", "b/new/x.tmp", "b/new/y.tmp", "c/d/e", "gone"] {
        put(&to.join(name), name);
    }
    archive.restore(&to, &selection, Extra::Delete, &|_| ()).unwrap();
    for name in ["keep", "a/other.yaml", "a/pods.yml", "b/deep/x.tmp", "b/new/x.tmp", "c/d/e"] {
        assert!(to.join(name).exists(), "{name}");
    }
    for name in ["b/new/y.tmp", "gone", "a/pods.yaml"] {
        assert!(!to.join(name).exists(), "{name}");
    }
    // Without the exception it is all surplus.
    restore(&file, &to).unwrap();
    assert!(!to.join("c").exists() && !to.join("b/new").exists());
    // A directory that holds something excepted cannot become a file.
    fs::remove_file(to.join("keep")).unwrap();
    put(&to.join("keep/this"), "");
    let selection = Selection::all().except(["keep/this"]).unwrap();
    let error = archive.restore(&to, &selection, Extra::Delete, &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 78, "{error:#}");
    assert!(to.join("keep/this").exists());
}

#[test]
fn what_is_not_in_the_archive_can_be_kept() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    put(&from.join("etc/one"), "1");
    pack(&from, &file);
    put(&to.join("etc/two"), "2");
    put(&to.join("etc/one/in the way"), "3");
    put(&to.join("var/three"), "3");
    let archive = Archive::open(&file).unwrap();
    let counts = archive.restore(&to, &Selection::all(), Extra::Keep, &|_| ()).unwrap();
    assert_eq!((counts.replaced, counts.deleted), (1, 1));
    assert_eq!(fs::read(to.join("etc/one")).unwrap(), b"1");
    assert!(to.join("etc/two").exists() && to.join("var/three").exists());
}

#[test]
fn sockets_are_skipped_and_told_of() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    put(&from.join("file"), "x");
    let _socket = UnixListener::bind(from.join("socket")).unwrap();
    let packed = pack(&from, &file);
    assert_eq!(packed.entries, 2);
    assert_eq!(packed.skipped, [(PathBuf::from("socket"), Skipped::Socket)]);
}

#[test]
fn mount_points_are_not_entered() {
    let scratch = Scratch::new();
    let (from, file) = (scratch.path("from"), scratch.path("a.tar.zst"));
    for name in ["etc/file", "vol/hidden", "bound/hidden", "single"] {
        put(&from.join(name), name);
    }
    put(&scratch.path("elsewhere/data"), "user data");
    let mounts = [
        Mount::tmpfs(&from.join("vol"), "size=1m"),
        // The same file system: only the kernel can tell.
        Mount::bind(&scratch.path("elsewhere"), &from.join("bound")),
        Mount::bind(&scratch.path("elsewhere/data"), &from.join("single")),
    ];
    put(&from.join("vol/data"), "user data");
    let packed = pack(&from, &file);
    let skipped: Vec<_> = packed.skipped.iter().map(|(path, _)| text(path)).collect();
    assert_eq!(skipped, ["bound", "single", "vol"]);
    // Onto the same mounts: nothing to do, nothing touched.
    assert_eq!(compare(&file, &from).0, []);
    restore(&file, &from).unwrap();
    assert_eq!(fs::read(from.join("bound/data")).unwrap(), b"user data");
    drop(mounts);
    // The index says so, and so does the tar stream by itself.
    let plain = scratch.path("plain.tar");
    run("zstd", &["-q", "-d", text(&file), "-o", text(&plain)]);
    let newer = scratch.path("newer.tar.zst");
    fs::copy(&file, &newer).unwrap();
    of_newer_version(&newer);
    for (n, file) in [&file, &plain, &newer].into_iter().enumerate() {
        // And with nothing mounted: what is under them was never looked at.
        restore(file, &from).unwrap();
        assert_eq!(fs::read(from.join("vol/hidden")).unwrap(), b"vol/hidden", "{}", file.display());
        let to = scratch.path(&format!("to{n}"));
        restore(file, &to).unwrap();
        assert!(to.join("vol").is_dir() && to.join("single").is_file(), "{}", file.display());
    }
}

#[test]
fn a_restore_that_would_change_what_is_mounted_is_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (scratch.path("tree"), scratch.path("a.tar.zst"));
    put(&tree.join("sub/file"), "packed");
    put(&tree.join("other"), "packed");
    pack(&tree, &file);
    put(&scratch.path("data/file"), "user data");
    fs::write(tree.join("other"), "changed").unwrap();
    let refused = |what: &str| {
        let error = restore(&file, &tree).unwrap_err();
        assert_eq!(exit_code(&error), 78, "{what}: {error:#}");
        assert_eq!(fs::read(tree.join("other")).unwrap(), b"changed", "{what}: something was changed");
        assert_eq!(fs::read(scratch.path("data/file")).unwrap(), b"user data");
    };
    {
        let _mount = Mount::bind(&scratch.path("data"), &tree.join("sub"));
        refused("a directory of the archive");
    }
    {
        let _mount = Mount::bind(&scratch.path("data/file"), &tree.join("sub/file"));
        refused("a file of the archive");
    }
    fs::create_dir(tree.join("extra")).unwrap();
    {
        let _mount = Mount::bind(&scratch.path("data"), &tree.join("extra"));
        refused("a directory that is too many");
    }
    // Bound onto itself nothing differs, and so nothing is refused.
    fs::remove_dir(tree.join("extra")).unwrap();
    let _mount = Mount::bind(&tree.join("sub"), &tree.join("sub"));
    restore(&file, &tree).unwrap();
    assert_eq!(fs::read(tree.join("other")).unwrap(), b"packed");
}

#[test]
fn named_paths_beyond_a_mount_point_are_packed_and_restored_there() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    for root in [&from, &to] {
        fs::create_dir_all(root.join("var")).unwrap();
    }
    let _mounts = [Mount::tmpfs(&from.join("var"), "size=1m"), Mount::tmpfs(&to.join("var"), "size=1m")];
    put(&from.join("var/lib/managed"), "by the machine config");
    put(&to.join("var/lib/user"), "data");
    let selection = Selection::all().only(["var/lib/managed", "var/lib/second"]);
    recovery::archive::pack(&from, &file, &selection, None, &|_| ()).unwrap();
    let archive = Archive::open(&file).unwrap();
    put(&to.join("var/.recovery-stage/0/new"), "left over");
    archive.restore(&to, &selection, Extra::Keep, &|_| ()).unwrap();
    assert_eq!(fs::read(to.join("var/lib/managed")).unwrap(), b"by the machine config");
    assert!(to.join("var/lib/user").exists() && !to.join("var/.recovery-stage").exists());
    fs::remove_dir_all(to.join("var/lib")).unwrap();
    // The time of a directory that only leads there is not the archive's business.
    for name in ["", "var"] {
        tree::set_mtime(&from.join(name), 1_000_000, 1);
        tree::set_mtime(&to.join(name), 1_000_000, 1);
    }
    archive.restore(&to, &Selection::all(), Extra::Keep, &|_| ()).unwrap();
    assert_same(&from, &to);
}

#[test]
fn an_archive_in_the_tree_that_it_is_restored_to_is_not_deleted() {
    let scratch = Scratch::new();
    let (tree, file) = (scratch.path("tree"), scratch.path("tree/sub/a.tar.zst"));
    put(&tree.join("sub/one"), "one");
    // It leaves itself out.
    pack(&tree, &file);
    fs::write(tree.join("sub/one"), "changed").unwrap();
    let error = restore(&file, &tree).unwrap_err();
    assert_eq!(exit_code(&error), 2, "{error:#}");
    assert!(format!("{error:#}").contains("sub/a.tar.zst"), "{error:#}");
    assert!(file.exists() && fs::read(tree.join("sub/one")).unwrap() == b"changed");
    // An archive of the tree that it was in before, to replace itself.
    let whole = scratch.path("whole.tar.zst");
    pack(&tree, &whole);
    fs::rename(&whole, &file).unwrap();
    assert_eq!(exit_code(&restore(&file, &tree).unwrap_err()), 2);
    // Where it is not meant it does no harm.
    let selection = Selection::all().except(["sub/*.zst"]).unwrap();
    Archive::open(&file).unwrap().restore(&tree, &selection, Extra::Delete, &|_| ()).unwrap();
    assert!(file.exists());
}

#[test]
fn mounts_of_the_same_file_system_are_seen_and_what_is_hidden_below_them_is_not() {
    let scratch = Scratch::new();
    let (tree, other, file) = (scratch.path("tree"), scratch.path("other"), scratch.path("a.tar.zst"));
    fs::create_dir_all(tree.join("a blank/point")).unwrap();
    fs::create_dir_all(tree.join("over/below")).unwrap();
    put(&tree.join("file"), "");
    put(&other.join("inside"), "");
    // The list of mounts has both of `over`, and the lower is not to be seen: what is at its path is the tree's.
    let above = tree.join("over");
    let _directory = Mount::bind(&other, &tree.join("a blank/point"));
    let _file = Mount::bind(&other.join("inside"), &tree.join("file"));
    let _below = Mount::bind(&other, &above.join("below"));
    let _above = Mount::bind(&above, &above);
    let packed = |tree: &Path| pack(tree, &file).skipped.iter().map(|(path, _)| text(path).to_owned()).collect::<Vec<_>>();
    assert_eq!(packed(&tree), ["a blank/point", "file", "over"]);
    assert_eq!(packed(&above), [""; 0]);
    assert!(Archive::open(&file).unwrap().paths().any(|path| path == Path::new("below")));
}
