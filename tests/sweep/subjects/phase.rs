//! The first phase of a recovery, on a small node of the kubeadm kind: `restore-files`, which ends where the reboot is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use recovery::backup::last_run::NOTE;
use recovery::backup::verify;
use recovery::report::Progress;

use super::{copy, empty, tree, without_time};
use crate::small_node::Place;
use crate::subject::{State, Subject};

struct RestoreFiles {
    place: Place,
    before: PathBuf,
}

pub(super) fn restore_files(disk: &Path) -> Result<Box<dyn Subject>> {
    let place = Place::new();
    let before = disk.join("before");
    fs::create_dir(&before)?;
    copy(place.temporary.path(), &before)?;
    Ok(Box::new(RestoreFiles { place, before }))
}

impl Subject for RestoreFiles {
    fn prepare(&mut self) -> Result<()> {
        empty(self.place.temporary.path())?;
        copy(&self.before, self.place.temporary.path())
    }

    fn command(&self) -> Command {
        self.place.agent_command(&["--yes", "--wait", "1", "restore-files"])
    }

    fn intact(&self) -> Result<()> {
        let report = verify::report(&self.place.dir.backups().join("b1"), "b1", false, &Progress::hidden())?;
        ensure!(report.good, "{report:?}");
        Ok(())
    }

    fn state(&self) -> Result<State> {
        state_of(&self.place)
    }
}

/// What there is after it.
pub(crate) fn state_of(place: &Place) -> Result<State> {
    let mut state = State::new();
    for part in ["etc", "usr/local", "var/lib", "var/recovery"] {
        for (path, facts) in tree(&place.at(part)) {
            let path = format!("/{part}/{path}");
            // The journal of a run that did not come to its first step is kept there.
            if path.starts_with("/var/recovery/history") {
                continue;
            }
            // What the recovery itself keeps there is of its own time, and so are the directories above it.
            let own = path.starts_with("/etc/systemd") || path.starts_with("/var/") || path == "/etc/";
            state.insert(path, if own { without_time(&facts) } else { facts });
        }
    }
    // They tell which run it is, or who was at work and when.
    let own = ["/var/recovery/lock", "/var/recovery/progress", "/var/recovery/undo.json", NOTE];
    for told in own.into_iter().chain(["/var/lib/recovery/hold-kubelet", "/var/lib/recovery/keep-images"]) {
        state.entry(told.to_owned()).and_modify(String::clear);
    }
    for unit in ["kubelet.service", "containerd.service"] {
        state.insert(unit.to_owned(), place.state_of(unit));
    }
    let mut done: Vec<String> = place.done().into_iter().map(|(step, _)| step).collect();
    done.sort();
    state.insert("steps".to_owned(), done.join(" "));
    let status = place.status();
    let run = status.run.context("no recovery is in progress")?;
    state.insert("status".to_owned(), format!("{:?} reboot {} hold {}", run.phase, run.needs_reboot, status.hold));
    Ok(state)
}
