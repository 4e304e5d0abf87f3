//! Recovery directories with ever more backups.

use std::fs;

use anyhow::{Result, ensure};
use recovery::backup::manifest::Manifest;
use recovery::backup::survey::survey;
use recovery::node::identity::Identity;
use recovery::node::profile::OPENSHIFT;

use super::{Curve, agent, head};
use crate::disk::Disk;
use crate::place::{self, Sno};

fn of_ever_more_backups(sizes: &[u64]) -> Result<()> {
    head("backups");
    let sno = Sno::new();
    let dir = &sno.place.dir;
    let on_it = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(words);
        command
    };
    // So many, some of them as yet missing.
    let publish = |size: u64| -> Result<()> {
        for n in 1..=size {
            let id = format!("b{n:04}");
            if !dir.backups().join(&id).exists() {
                let identity = Identity::of(&sno.place.node, &OPENSHIFT)?;
                sno.place.published_as(&Manifest { identity, ..place::manifest(&id, n) });
            }
        }
        // One more was taken to be measured.
        for entry in fs::read_dir(dir.backups())? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with('b') {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    };
    let [mut list, mut status, mut metrics, mut backup, mut delete, mut prune] =
        ["list", "status", "metrics", "backup", "delete one", "prune half"].map(Curve::of);
    for size in sizes.iter().copied() {
        publish(size)?;
        list.measure(size, || Ok(on_it(&["list"])))?;
        status.measure(size, || Ok(on_it(&["status"])))?;
        metrics.measure(size, || Ok(on_it(&["metrics"])))?;
        backup.measure(size, || {
            publish(size)?;
            Ok(on_it(&["backup", "--force", "--keep", "5000"]))
        })?;
        delete.measure(size, || {
            publish(size)?;
            Ok(on_it(&["--yes", "delete", "b0001"]))
        })?;
        let half = (size / 2).to_string();
        prune.measure(size, || {
            publish(size)?;
            Ok(on_it(&["--yes", "prune", "--keep", &half]))
        })?;
        let left = survey(dir)?.backups.len();
        ensure!(left == usize::try_from(size / 2)?, "{left} are left of {size}");
    }
    Ok(())
}

#[test]
#[ignore = "minutes, for it measures: `tests/run.sh sweep size`"]
fn more_backups_take_little_memory_and_no_more_time_for_each() -> Result<()> {
    let _disk = Disk::make()?;
    of_ever_more_backups(&[40, 200])
}

#[test]
#[ignore = "minutes: `tests/run.sh sweep size`"]
fn a_thousand_backups() -> Result<()> {
    of_ever_more_backups(&[50, 250, 1000])
}
