//! `backup`, and what is done with backups: on a small OpenShift node with a real etcd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use recovery::backup::last_run::NOTE;
use recovery::backup::survey::survey;
use recovery::backup::verify;
use recovery::node::durable;
use recovery::report::Progress;
use testing::node::checked;

use super::{agent, copy, empty, remove, tree, without_time};
use crate::place::Sno;
use crate::subject::{State, Subject};

/// What a command leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// The recovery directory, whole.
    Backups,
    /// What was exported.
    Export,
    /// One more backup, which is new each time.
    OneMore,
}

struct Store {
    sno: Sno,
    /// The recovery directory as it is before.
    before: PathBuf,
    /// Its backups.
    ids: Vec<String>,
    words: Vec<String>,
    leads: Leads,
    /// Of those there were, what has to stay.
    stays: usize,
}

/// A node with three backups, the oldest first.
fn store(disk: &Path, leads: Leads, stays: usize, words: impl FnOnce(&[String]) -> Vec<String>) -> Result<Box<dyn Subject>> {
    let sno = Sno::new();
    let mut ids = Vec::new();
    for _ in 0..3 {
        checked(on(&sno).args(["backup", "--force", "--keep", "9"]))?;
        ids = survey(&sno.place.dir)?.backups.into_iter().rev().map(|backup| backup.id).collect();
    }
    ensure!(ids.len() == 3, "{ids:?}");
    let before = disk.join("before");
    fs::create_dir(&before)?;
    copy(sno.place.dir.path(), &before)?;
    let words = words(&ids);
    Ok(Box::new(Store { sno, before, ids, words, leads, stays }))
}

pub(super) fn delete(disk: &Path) -> Result<Box<dyn Subject>> {
    store(disk, Leads::Backups, 2, |ids| ["--yes", "delete", &ids[0]].map(str::to_owned).to_vec())
}

pub(super) fn prune(disk: &Path) -> Result<Box<dyn Subject>> {
    store(disk, Leads::Backups, 1, |_| ["--yes", "prune", "--keep", "1"].map(str::to_owned).to_vec())
}

pub(super) fn export(disk: &Path) -> Result<Box<dyn Subject>> {
    let to = disk.join("exported");
    store(disk, Leads::Export, 3, |ids| ["export", &ids[1], &to.display().to_string()].map(str::to_owned).to_vec())
}

pub(super) fn backup(disk: &Path) -> Result<Box<dyn Subject>> {
    store(disk, Leads::OneMore, 2, |_| ["backup", "--force", "--keep", "3"].map(str::to_owned).to_vec())
}

/// The agent on the node, ready for a verb.
fn on(sno: &Sno) -> Command {
    let mut command = agent(["--root"]);
    command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools"));
    command
}

impl Store {
    /// Where the backup is exported to.
    fn exported(&self) -> PathBuf {
        self.before.with_file_name("exported")
    }

    /// The node's files, but for the recovery directory, etcd's data, and the note of how the last run ended.
    fn node(&self) -> State {
        let mut state = State::new();
        for part in ["etc", "var/usrlocal", "var/opt", "var/lib/kubelet"] {
            state.extend(tree(&self.sno.root().join(part)).into_iter().map(|(path, facts)| (format!("/{part}/{path}"), facts)));
        }
        let own = tree(&self.sno.root().join("var/lib/recovery")).into_iter();
        let own = own.map(|(path, facts)| (format!("/var/lib/recovery/{path}"), without_time(&facts)));
        // What is left beside it goes with the next note.
        let note = Path::new(NOTE);
        state.extend(own.filter(|(path, _)| Some(Path::new(path)) != durable::beside(note).ok().as_deref() && path != NOTE));
        state
    }
}

impl Subject for Store {
    fn prepare(&mut self) -> Result<()> {
        // Not the directory itself: a backup holds the time of the one above it.
        let dir = self.sno.place.dir.path();
        empty(dir)?;
        copy(&self.before, dir)?;
        remove(&self.exported())
    }

    fn command(&self) -> Command {
        let mut command = on(&self.sno);
        // A Job's pod comes again until one has ended well; a person who asks twice wants two backups.
        command.args(&self.words).env("RECOVERY_JOB_UID", "0b0c3e5a-0000-4000-8000-000000000001");
        command
    }

    fn port(&self) -> Option<u16> {
        self.sno.etcd.client_url.rsplit(':').next()?.parse().ok()
    }

    fn intact(&self) -> Result<()> {
        for id in &self.ids[self.ids.len() - self.stays..] {
            let report = verify::report(&self.sno.place.dir.backups().join(id), id, false, &Progress::hidden())?;
            ensure!(report.good, "{id}: {report:?}");
        }
        Ok(())
    }

    fn state(&self) -> Result<State> {
        let mut state = self.node();
        match self.leads {
            Leads::Backups => {
                let all = tree(self.sno.place.dir.path()).into_iter().map(|(path, facts)| (path, without_time(&facts)));
                // The lock says who has had it.
                state.extend(all.filter(|(path, _)| path != "lock"));
            }
            Leads::Export => state.extend(tree(&self.exported()).into_iter().map(|(path, facts)| (path, without_time(&facts)))),
            Leads::OneMore => {
                for entry in fs::read_dir(self.sno.place.dir.path())? {
                    state.insert(entry?.file_name().display().to_string(), String::new());
                }
                for entry in fs::read_dir(self.sno.place.dir.backups())? {
                    let path = entry?.path();
                    // Not finished, or half deleted: an untroubled run leaves none.
                    if let Some(unfinished) = path.extension() {
                        state.insert(unfinished.display().to_string(), String::new());
                        continue;
                    }
                    state.extend(backed_up(&path).with_context(|| format!("looking at {}", path.display()))?);
                }
            }
        }
        Ok(state)
    }
}

/// What a backup holds and says, but for what is its own; sums are checked by sha256sum(1).
fn backed_up(backup: &Path) -> Result<State> {
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(backup.join("manifest.json"))?)?;
    let fields = manifest.as_object_mut().context("the manifest is no object")?;
    let sequence = fields.remove("sequence").context("no sequence")?;
    for own in ["id", "taken", "seconds"] {
        fields.remove(own);
    }
    // Its log tells of what went wrong, and packed again or taken over, an archive need not be as long.
    fields.remove("sizes");
    let script = "sha256sum -c --quiet --strict SHA256SUMS; ls -A; for tar in *.tar.zst; do echo $tar; zstd -qdc $tar | sha256sum; done";
    let content = checked(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(backup))?;
    Ok(State::from([(format!("backup {sequence}"), format!("{manifest} {content}"))]))
}
