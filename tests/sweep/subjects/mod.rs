//! The commands that are tried.

mod archive;
mod etcd;
mod node;
pub(crate) mod phase;
mod store;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use testing::node::checked;

use crate::subject::{Named, State};

pub(crate) const SUBJECTS: [Named; 14] = [
    ("archive-pack", archive::pack),
    ("archive-restore", archive::restore),
    ("etcd-save", etcd::save),
    ("etcd-restore", etcd::restore),
    ("delete", store::delete),
    ("prune", store::prune),
    ("export", store::export),
    ("backup", store::backup),
    ("restore-files", phase::restore_files),
    ("platform", node::platform),
    ("resume", node::resume),
    ("redeploy", node::redeploy),
    ("finish", node::finish),
    ("restart", node::restart),
];

/// Those on an emulated node, whose programs can go wrong.
pub(crate) const ON_NODES: [&str; 5] = ["platform", "resume", "redeploy", "finish", "restart"];

/// The agent, ready to be run.
pub(crate) fn agent<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_recovery"));
    agent.args(args);
    agent
}

/// Everything below a directory that is there, as its facts tell.
pub(crate) fn tree(dir: &Path) -> State {
    let all = testing::tree::facts(dir);
    all.into_iter().map(|(path, facts)| (path.display().to_string(), format!("{facts:?}"))).collect()
}

/// Removes a directory with all that cannot be removed just so.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    testing::tree::release(dir);
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", dir.display())),
        _ => Ok(()),
    }
}

/// The facts without the time of the last change.
pub(crate) fn without_time(facts: &str) -> String {
    facts.split(", ").filter(|fact| !fact.contains("\"mtime\"")).collect::<Vec<_>>().join(", ")
}

/// Copies what is in one directory into another.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    checked(Command::new("cp").arg("-a").arg(from.join(".")).arg(to)).map(drop)
}

/// Removes what is in a directory.
pub(crate) fn empty(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() { remove(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}
