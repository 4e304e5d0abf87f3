//! Trees of ever more files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use testing::node::checked;
use testing::tree::noise;

use super::{Curve, agent, head};
use crate::disk::Disk;
use crate::place::Sno;
use crate::small_node::Place;

/// Files in a directory.
const IN_ONE: u64 = 100;

/// Adds files to a tree that has `from` of them, until it has `to`: of a quarter to two KiB, none like another.
pub(super) fn grow(tree: &Path, from: u64, to: u64) -> Result<()> {
    for n in from..to {
        let dir = tree.join(format!("{:05}", n / IN_ONE));
        if n % IN_ONE == 0 || n == from {
            fs::create_dir_all(&dir)?;
        }
        fs::write(dir.join(format!("{n:07}.conf")), noise(n + 1, 256 << (n % 4)))?;
    }
    Ok(())
}

/// What an upgrade would leave: of twenty files one is gone, and one is another.
fn upgrade(tree: &Path, files: u64) -> Result<()> {
    for n in (0..files).step_by(10) {
        let file = tree.join(format!("{:05}/{n:07}.conf", n / IN_ONE));
        if n % 20 == 0 { fs::remove_file(file) } else { fs::write(file, "of the new release\n") }?;
    }
    Ok(())
}

/// A directory goes quickly.
fn remove(dir: &Path) -> Result<()> {
    checked(Command::new("rm").arg("-rf").arg(dir)).map(drop)
}

fn of_ever_more_files(sizes: &[u64]) -> Result<()> {
    head("files");
    let scratch = tempfile::tempdir()?;
    let (file, next, to) = (scratch.path().join("a.tar.zst"), scratch.path().join("b.tar.zst"), scratch.path().join("restored"));
    let sno = Sno::new();
    let tree = sno.root().join("etc/load");
    let [mut pack, mut again, mut restore, mut same] =
        ["archive pack", "archive pack, of an unchanged tree", "archive restore", "archive restore, of an equal tree"].map(Curve::of);
    let [mut backup, mut next_backup, mut verify, mut restore_files] =
        ["backup", "backup, the next", "verify", "restore-files, a tenth changed"].map(Curve::of);
    let on_it = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(words);
        command
    };
    let mut files = 0;
    for size in sizes.iter().copied() {
        grow(&tree, files, size)?;
        files = size;
        pack.measure(size, || {
            remove(&file)?;
            Ok(archive(&["archive", "pack"], &[&tree, &file]))
        })?;
        again.measure(size, || Ok(archive(&["archive", "pack", "--previous"], &[&file, &tree, &next])))?;
        restore.measure(size, || {
            remove(&to)?;
            Ok(archive(&["--yes", "archive", "restore"], &[&file, &to]))
        })?;
        same.measure(size, || Ok(archive(&["--yes", "archive", "restore"], &[&file, &to])))?;
        checked(Command::new("diff").arg("-r").arg(&tree).arg(&to)).context("what was restored")?;
        remove(&to)?;
        backup.measure(size, || {
            remove(sno.place.dir.path())?;
            sno.place.dir.prepare()?;
            Ok(on_it(&["backup", "--force"]))
        })?;
        next_backup.measure(size, || Ok(on_it(&["backup", "--force", "--keep", "1"])))?;
        verify.measure(size, || Ok(on_it(&["verify"])))?;
        restored(&mut restore_files, &tree, size)?;
    }
    Ok(())
}

fn archive(words: &[&str], paths: &[&Path]) -> Command {
    let mut command = agent(words);
    command.args(paths);
    command
}

/// `restore-files` of a tree that is lent for it.
fn restored(curve: &mut Curve, tree: &Path, size: u64) -> Result<()> {
    let mut node: Option<Place> = None;
    let lent = |node: &Place| node.at("/etc/load");
    let back = |node: &mut Option<Place>| -> Result<()> {
        let Some(node) = node.take() else { return Ok(()) };
        let found = checked(Command::new("sh").args(["-c", "find \"$0\" -type f | wc -l"]).arg(lent(&node)))?;
        ensure!(found.trim() == size.to_string(), "{} files are there, and not {size}", found.trim());
        Ok(fs::rename(lent(&node), tree)?)
    };
    curve.measure(size, || {
        back(&mut node)?;
        let new = node.insert(Place::new());
        fs::rename(tree, lent(new))?;
        new.back_up("b2", 2);
        upgrade(&lent(new), size)?;
        let mut command = agent(["--root"]);
        let at = |name: &str| new.temporary.path().join(name);
        command.arg(at("root")).arg("--tools").arg(at("tools")).args(["--yes", "--wait", "1", "restore-files"]);
        Ok(command)
    })?;
    back(&mut node)
}

#[test]
#[ignore = "minutes, for it measures: `tests/run.sh sweep size`"]
fn files_by_the_ten_thousand_take_little_memory_and_no_more_time_each() -> Result<()> {
    let _disk = Disk::make()?;
    of_ever_more_files(&[2_000, 20_000])
}

#[test]
#[ignore = "half an hour: `tests/run.sh sweep size`"]
fn two_hundred_thousand_files() -> Result<()> {
    of_ever_more_files(&[1_000, 10_000, 50_000, 200_000])
}
