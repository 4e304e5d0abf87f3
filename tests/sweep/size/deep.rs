//! Directories nested deeper than a path can say, and than a process may have files open: whatever walks through them goes on, or says so before it
//! changes anything.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use recovery::backup::manifest::Manifest;
use recovery::backup::survey::survey;
use recovery::node::identity::Identity;
use recovery::node::profile::OPENSHIFT;
use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
use testing::node::checked;

use super::{agent, measured};
use crate::disk::Disk;
use crate::place::{self, Sno};
use crate::small_node::Place;

const LEVELS: usize = 10_000;
/// The deepest that an archive holds, of names of one byte: a path has at most 4095.
const DEEPEST: usize = 2047;
/// What is said of what is deeper.
const SAYS: [&str; 2] = ["longer than the 4095 bytes", "remove it, or leave it out by name"];

/// Makes directories one in the other, with a file in the last one.
fn nest(dir: &Path, levels: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    let into = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut here: OwnedFd = open(dir, into, Mode::empty())?;
    for _ in 0..levels {
        mkdirat(&here, "d", Mode::RWXU)?;
        here = openat(&here, "d", into, Mode::empty())?;
    }
    openat(&here, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR)?;
    Ok(())
}

/// How many levels there are: find(1) goes down without paths.
fn levels(dir: &Path) -> Result<usize> {
    let depths = checked(Command::new("sh").args(["-c", "find \"$0\" -name f -printf '%d\\n'"]).arg(dir))?;
    Ok(depths.trim().parse::<usize>()? - 1)
}

#[test]
fn what_is_nested_as_deep_as_a_path_can_say_is_packed_and_comes_back() -> Result<()> {
    let _disk = Disk::make()?;
    let scratch = tempfile::tempdir()?;
    let [tree, to, file] = ["tree", "to", "a.tar.zst"].map(|name| scratch.path().join(name));
    nest(&tree, DEEPEST)?;
    measured(agent(["archive", "pack"]).arg(&tree).arg(&file))?.expect(0, &[])?;
    for _ in 0..2 {
        measured(agent(["--yes", "archive", "restore"]).arg(&file).arg(&to))?.expect(0, &[])?;
        ensure!(levels(&to)? == DEEPEST);
    }
    measured(agent(["archive", "diff"]).arg(&file).arg(&to))?.expect(0, &[])
}

#[test]
fn what_is_nested_deeper_is_refused_by_name_before_anything_is_changed() -> Result<()> {
    let _disk = Disk::make()?;
    let scratch = tempfile::tempdir()?;
    let [tree, file] = ["tree", "a.tar.zst"].map(|name| scratch.path().join(name));
    nest(&tree, LEVELS)?;
    measured(agent(["archive", "pack"]).arg(&tree).arg(&file))?.expect(64, &SAYS)?;
    ensure!(!file.exists() && levels(&tree)? == LEVELS);

    // A backup is taken whole or not: without what is nested, a restore would remove that.
    let sno = Sno::new();
    let backup = || {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(["backup", "--force"]);
        measured(&mut command)
    };
    backup()?.expect(0, &[])?;
    for place in ["etc/load", "var/usrlocal/load", "var/lib/kubelet/pods/u-1/volumes/load"] {
        let nested = sno.root().join(place);
        nest(&nested, LEVELS)?;
        backup()?.expect(64, &SAYS)?;
        ensure!(survey(&sno.place.dir)?.backups.len() == 1 && levels(&nested)? == LEVELS, "{place}");
        checked(Command::new("rm").arg("-rf").arg(&nested))?;
    }
    backup()?.expect(0, &[])
}

#[test]
fn what_no_backup_holds_goes_however_deep_it_is_nested() -> Result<()> {
    let _disk = Disk::make()?;
    // Below what is restored.
    let node = Place::new();
    let on_node = |words: &[&str]| {
        let mut command = agent(["--root"]);
        let at = |name: &str| node.temporary.path().join(name);
        command.arg(at("root")).arg("--tools").arg(at("tools")).args(words);
        command
    };
    let nested = ["/etc/load", "/usr/local/load"].map(|path| node.at(path));
    nested.iter().try_for_each(|dir| nest(dir, LEVELS))?;
    measured(&mut on_node(&["--yes", "--wait", "1", "restore-files"]))?.expect(0, &[])?;
    ensure!(nested.iter().all(|dir| !dir.exists()));

    // In the recovery directory: damage to a backup, and what another has left there.
    let sno = Sno::new();
    let run = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(words);
        measured(&mut command)
    };
    let backups = sno.place.dir.backups();
    for n in 1..=4 {
        let identity = Identity::of(&sno.place.node, &OPENSHIFT)?;
        sno.place.published_as(&Manifest { identity, ..place::manifest(&format!("b{n}"), n) });
    }
    for id in ["b1", "b2"] {
        nest(&backups.join(id).join("load"), LEVELS)?;
    }
    nest(&backups.join("old.deleting/load"), LEVELS)?;
    run(&["list"])?.expect(0, &["b1"])?;
    run(&["verify", "b1"])?.expect(65, &["load"])?;
    for id in ["b1", "b2"] {
        run(&["--yes", "delete", id])?.expect(0, &[])?;
    }
    run(&["--yes", "prune", "--keep", "1"])?.expect(0, &[])?;
    run(&["backup", "--force"])?.expect(0, &[])?;
    ensure!(["b1", "b2", "old.deleting"].iter().all(|name| !backups.join(name).exists()));
    Ok(())
}
