//! `archive pack` and `archive restore`, on a tree with one of everything.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use recovery::archive::{Archive, Extra, Selection};
use rustix::fs::IFlags;
use testing::tree::{make_tree, noise, release, set_flag, set_mtime};

use super::{agent, remove, tree};
use crate::subject::{State, Subject};

/// Of the many files, those that stay: what is done to one of them is done to all.
const FEW: u32 = 12;

fn make(dir: &Path) -> Result<()> {
    make_tree(dir);
    for n in FEW..300 {
        fs::remove_file(dir.join(format!("many/file-{n:03}")))?;
    }
    // Large enough to be a frame, or several, of its own is enough.
    fs::write(dir.join("noise"), noise(2, 1_200_000))?;
    fs::write(dir.join("text"), "certificate of the day\n".repeat(10_000))?;
    set_mtime(&dir.join("many"), 1_600_000_000, 5);
    Ok(())
}

/// Changes as many things in as many ways as a failed upgrade.
fn change(dir: &Path) -> Result<()> {
    for flagged in ["immutable.conf", "append.log", "immutable.d"] {
        release(&dir.join(flagged));
    }
    let many = |n: u32| dir.join(format!("many/file-{n:03}"));
    fs::remove_file(many(1))?;
    fs::write(many(2), "other content")?;
    fs::write(many(3), "other content")?;
    fs::remove_file(many(4))?;
    fs::create_dir(many(4))?;
    fs::write(many(4).join("in the way"), "")?;
    rustix::fs::chmod(many(5), rustix::fs::Mode::from_raw_mode(0o666))?;
    std::os::unix::fs::chown(many(6), Some(9), Some(9))?;
    set_mtime(&many(7), 1, 1);
    fs::write(dir.join("immutable.conf"), "changed")?;
    set_flag(&dir.join("immutable.conf"), IFlags::IMMUTABLE);
    fs::write(dir.join("immutable.d/added"), "")?;
    set_flag(&dir.join("immutable.d"), IFlags::IMMUTABLE);
    fs::remove_file(dir.join("sparse/many-holes"))?;
    fs::remove_file(dir.join("noise"))?;
    fs::remove_file(dir.join("links/relative"))?;
    symlink("elsewhere", dir.join("links/relative"))?;
    fs::remove_file(dir.join("links/other/second"))?;
    fs::remove_file(dir.join("fifo"))?;
    fs::remove_file(dir.join("null"))?;
    fs::remove_file(dir.join("attributes/all"))?;
    rustix::fs::removexattr(dir.join("attributes/user"), "user.note")?;
    fs::remove_dir_all(dir.join("void"))?;
    fs::create_dir_all(dir.join("added/below"))?;
    for n in 0..3 {
        fs::write(dir.join(format!("added/below/{n}")), "of the new release")?;
    }
    Ok(())
}

/// Makes `dir` the changed tree again.
fn make_changed(dir: &Path) -> Result<()> {
    remove(dir)?;
    make(dir)?;
    change(dir)
}

struct Pack {
    tree: PathBuf,
    older: Vec<u8>,
    file: PathBuf,
}

/// A new archive in place of an older one of the same tree.
pub(super) fn pack(disk: &Path) -> Result<Box<dyn Subject>> {
    let (tree, file) = (disk.join("tree"), disk.join("archives/a.tar.zst"));
    make_changed(&tree)?;
    fs::create_dir(disk.join("archives"))?;
    recovery::archive::pack(&tree, &file, &Selection::all(), None, &|_| ())?;
    let older = fs::read(&file)?;
    remove(&tree)?;
    make(&tree)?;
    Ok(Box::new(Pack { tree, older, file }))
}

impl Pack {
    fn is_equal(&self) -> Result<bool> {
        Ok(Archive::open(&self.file)?.compare(&self.tree, &Selection::all(), Extra::Delete, &|_| ())?.0.is_empty())
    }
}

impl Subject for Pack {
    fn prepare(&mut self) -> Result<()> {
        let dir = self.file.with_file_name("");
        remove(&dir)?;
        fs::create_dir(&dir)?;
        Ok(fs::write(&self.file, &self.older)?)
    }

    fn command(&self) -> Command {
        let mut command = agent(["archive", "pack"]);
        command.arg(&self.tree).arg(&self.file).arg("--previous").arg(&self.file);
        command
    }

    fn intact(&self) -> Result<()> {
        ensure!(fs::read(&self.file)? == self.older || self.is_equal()?, "the archive is neither the old nor the new one");
        Ok(())
    }

    fn state(&self) -> Result<State> {
        let mut state = State::from([("equal".to_owned(), self.is_equal()?.to_string())]);
        for entry in fs::read_dir(self.file.with_file_name(""))? {
            let entry = entry?;
            state.insert(entry.file_name().display().to_string(), format!("{:?}", entry.metadata()?.permissions()));
        }
        Ok(state)
    }
}

struct Restore {
    file: PathBuf,
    tree: PathBuf,
    /// The tree is what the archive holds.
    is_restored: std::cell::Cell<bool>,
}

/// An archive over what has become of its tree.
pub(super) fn restore(disk: &Path) -> Result<Box<dyn Subject>> {
    let (tree, file) = (disk.join("tree"), disk.join("a.tar.zst"));
    make(&tree)?;
    recovery::archive::pack(&tree, &file, &Selection::all(), None, &|_| ())?;
    Ok(Box::new(Restore { file, tree, is_restored: false.into() }))
}

impl Subject for Restore {
    fn prepare(&mut self) -> Result<()> {
        if self.is_restored.take() { change(&self.tree) } else { make_changed(&self.tree) }
    }

    fn command(&self) -> Command {
        let mut command = agent(["--yes", "archive", "restore"]);
        command.arg(&self.file).arg(&self.tree);
        command
    }

    fn intact(&self) -> Result<()> {
        Archive::open(&self.file).map(drop)
    }

    fn state(&self) -> Result<State> {
        let equal = Archive::open(&self.file)?.compare(&self.tree, &Selection::all(), Extra::Delete, &|_| ())?.0.is_empty();
        self.is_restored.set(equal);
        Ok(tree(&self.tree))
    }
}
