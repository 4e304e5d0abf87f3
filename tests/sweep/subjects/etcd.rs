//! `etcd save` and `etcd restore`, with a real etcd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use testing::etcd::{Etcd, Options, Version};

use super::{agent, remove, tree, without_time};
use crate::subject::{State, Subject};

/// An etcd with something in it, which ends with this thread.
fn etcd(disk: &Path) -> Result<Etcd> {
    let options = Options { ends_with_its_thread: true, ..Options::default() };
    let etcd = Etcd::start(Version::V34, &disk.join("data"), &options)?;
    etcd.put_many(300)?;
    Ok(etcd)
}

struct Save {
    etcd: Etcd,
    dir: PathBuf,
}

/// A snapshot of an etcd that runs.
pub(super) fn save(disk: &Path) -> Result<Box<dyn Subject>> {
    Ok(Box::new(Save { etcd: etcd(disk)?, dir: disk.join("snapshots") }))
}

impl Subject for Save {
    fn prepare(&mut self) -> Result<()> {
        remove(&self.dir)?;
        Ok(fs::create_dir(&self.dir)?)
    }

    fn command(&self) -> Command {
        let endpoint = &self.etcd.endpoint;
        let mut command = agent(["etcd", "save"]);
        command.arg(self.dir.join("snapshot.db.zst")).args(["--endpoint", &self.etcd.client_url]);
        command.arg("--cacert").arg(&endpoint.ca).arg("--cert").arg(&endpoint.cert).arg("--key").arg(&endpoint.key);
        command
    }

    fn intact(&self) -> Result<()> {
        // What has the name of a snapshot is one.
        let file = self.dir.join("snapshot.db.zst");
        if file.exists() { recovery::etcd::verify(&file, &|_| ()).map(drop) } else { Ok(()) }
    }

    fn state(&self) -> Result<State> {
        let mut state = State::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let status = recovery::etcd::status(&entry.path(), &|_| ());
            state.insert(entry.file_name().display().to_string(), format!("{status:?} {:?}", entry.metadata()?.permissions()));
        }
        Ok(state)
    }
}

struct Restore {
    snapshot: PathBuf,
    data: PathBuf,
}

/// A data directory from a snapshot.
pub(super) fn restore(disk: &Path) -> Result<Box<dyn Subject>> {
    let snapshot = disk.join("snapshot.db.zst");
    let etcd = etcd(disk)?;
    recovery::etcd::save(&etcd.endpoint, &snapshot, std::time::Duration::from_secs(30), &|_| ())?;
    Ok(Box::new(Restore { snapshot, data: disk.join("new/data") }))
}

impl Subject for Restore {
    fn prepare(&mut self) -> Result<()> {
        self.data.parent().map_or(Ok(()), remove)
    }

    fn command(&self) -> Command {
        let mut command = agent(["etcd", "restore"]);
        command.arg(&self.snapshot).arg("--data-dir").arg(&self.data);
        command
    }

    fn intact(&self) -> Result<()> {
        recovery::etcd::verify(&self.snapshot, &|_| ()).map(drop)
    }

    fn state(&self) -> Result<State> {
        let mut state = tree(&self.data);
        // The mark of an unfinished restore does no harm where it cannot be removed, and etcd ignores it.
        state.remove("member/recovery-restore");
        // It is new each time.
        state.values_mut().for_each(|facts| *facts = without_time(facts));
        Ok(state)
    }
}
