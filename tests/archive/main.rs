//! The archive room, end to end.

mod fidelity;
mod foreign;
mod hostile;
mod in_use;
mod metadata;
mod moving;
mod power;
mod random;
mod selection;
mod stopped;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use recovery::archive::{Archive, Change, Counts, Extra, Packed, Selection};

fn pack(tree: &Path, file: &Path) -> Packed {
    recovery::archive::pack(tree, file, &Selection::all(), None, &|_| ()).unwrap()
}

fn restore(file: &Path, tree: &Path) -> anyhow::Result<Counts> {
    Archive::open(file)?.restore(tree, &Selection::all(), Extra::Delete, &|_| ())
}

fn compare(file: &Path, tree: &Path) -> (Vec<Change>, Counts) {
    Archive::open(file).unwrap().compare(tree, &Selection::all(), Extra::Delete, &|_| ()).unwrap()
}

/// Runs a program that must succeed; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// When each path was last changed in any way, and, but for links, read.
fn stamps(dir: &Path) -> BTreeMap<PathBuf, [i64; 4]> {
    let mut paths = vec![dir.to_owned()];
    let mut at = 0;
    // To list a directory is to read it: that is over before anything is noted.
    while let Some(path) = paths.get(at).cloned() {
        at += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let stamp = |path: PathBuf| {
        let meta = path.symlink_metadata().unwrap();
        let read = if meta.is_symlink() { [0, 0] } else { [meta.atime(), meta.atime_nsec()] };
        (path, [meta.ctime(), meta.ctime_nsec(), read[0], read[1]])
    };
    paths.into_iter().map(stamp).collect()
}

/// Something that is mounted until this is dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Self {
        run("mount", &["-t", "tmpfs", "-o", options, "none", text(at)]);
        Self(at.to_owned())
    }

    fn bind(from: &Path, at: &Path) -> Self {
        run("mount", &["--bind", text(from), text(at)]);
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", text(&self.0)]);
    }
}
