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
use std::process::{Command, Stdio};

use recovery::archive::{Archive, Change, Counts, Extra, Packed, Selection};
use recovery::formats::index::{FORMAT, Trailer};

fn pack(tree: &Path, file: &Path) -> Packed {
    recovery::archive::pack(tree, file, &Selection::all(), None, &|_| ()).unwrap()
}

fn restore(file: &Path, tree: &Path) -> anyhow::Result<Counts> {
    Archive::open(file)?.restore(tree, &Selection::all(), Extra::Delete, &|_| ())
}

/// Makes an archive's index one of a version that this agent does not know.
fn of_newer_version(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let trailer: &mut [u8; Trailer::LEN] = bytes.last_chunk_mut().unwrap();
    let newer = Trailer { version: FORMAT.version + 1, ..Trailer::parse(trailer).unwrap() };
    trailer.copy_from_slice(&newer.to_bytes().unwrap());
    std::fs::write(file, bytes).unwrap();
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

/// For [`restores_for_another_test`]: the archive, the tree, and what is restored if not all.
const WORK: &str = "ARCHIVE_TEST_WORK";

/// No test, and never run among them: [`restorer`] starts it, to have it stopped or killed.
#[test]
#[ignore = "no test: others start it in a process of its own, to stop it"]
fn restores_for_another_test() {
    let work = std::env::var_os(WORK).expect("other tests start this, with their work");
    let work: Vec<_> = std::env::split_paths(&work).collect();
    let [file, tree, only @ ..] = &work[..] else { panic!("neither archive nor tree: {work:?}") };
    let all = Selection::all();
    let selection = if only.is_empty() { all } else { all.only(only.iter().map(|path| text(path))) };
    Archive::open(file).unwrap().restore(tree, &selection, Extra::Delete, &|_| ()).unwrap();
}

/// A restore in a process of its own; `under` is the program with its arguments that runs it, if any.
fn restorer(under: &[&str], file: &Path, tree: &Path, only: &[&str]) -> Command {
    let me = std::env::current_exe().unwrap();
    let words = [under, &[text(&me), "--ignored", "--exact", "restores_for_another_test"]].concat();
    let mut command = Command::new(words[0]);
    let work = [file, tree].into_iter().chain(only.iter().map(Path::new));
    command.args(&words[1..]).env(WORK, std::env::join_paths(work).unwrap()).stdout(Stdio::null());
    command
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
