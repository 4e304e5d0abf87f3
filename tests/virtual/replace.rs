//! What a recovery does with etcd: a member from a snapshot takes the place of the one that is there. No command of the agent's does it alone, so
//! this program does it in a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use recovery::etcd::{self, Options, verify};
use testing::etcd::{Etcd, Options as Start, Version};
use testing::node::checked;

use crate::subject::{State, Subject, same};

/// The variable that names the directory.
const WORK: &str = "REPLACES_ETCD_IN";
const RUN: &str = "run";

struct Replace {
    dir: PathBuf,
    /// The old member.
    old: State,
}

/// A data directory in which etcd has gone on since the snapshot.
pub(crate) fn replace(disk: &Path) -> Result<Box<dyn Subject>> {
    let dir = disk.join("etcd");
    fs::create_dir(&dir)?;
    let etcd = Etcd::start(Version::V34, &disk.join("before"), &Start { ends_with_its_thread: true, ..Start::default() })?;
    etcd.put_many(300)?;
    etcd::save(&etcd.endpoint, &dir.join("snapshot.db.zst"), Duration::from_secs(30), &|_| ())?;
    etcd.put_many(500)?;
    etcd.stop()?;
    let old = facts(&disk.join("before/member"));
    Ok(Box::new(Replace { dir, old }))
}

impl Replace {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
}

impl Subject for Replace {
    fn prepare(&mut self) -> Result<()> {
        checked(Command::new("rm").arg("-rf").arg(self.data()))?;
        checked(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.dir.with_file_name("before")).arg(self.data())).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_default());
        command.args(["--ignored", "--exact", "replace::in_a_process_of_its_own"]).env(WORK, &self.dir);
        command
    }

    fn intact(&self) -> Result<()> {
        verify(&self.dir.join("snapshot.db.zst"), &|_| ())?;
        // Until the end the old member is there, by one name or the other, as it was.
        let [member, aside] = ["member", &format!("member.before-{RUN}")].map(|name| self.data().join(name));
        same(&self.old, &facts(if aside.exists() { &aside } else { &member })).context("the old member")
    }

    fn state(&self) -> Result<State> {
        Ok(facts(&self.data()))
    }
}

/// What is in a directory, but for the times: what a restore makes is new each time.
fn facts(dir: &Path) -> State {
    let without_time = |facts: String| facts.split(", ").filter(|fact| !fact.contains("\"mtime\"")).collect::<Vec<_>>().join(", ");
    testing::tree::facts(dir).into_iter().map(|(path, facts)| (path.display().to_string(), without_time(format!("{facts:?}")))).collect()
}

/// A process that is killed leaves its last renames where only the kernel knows of them; the next one finds nothing to do.
#[test]
fn a_replacing_that_was_killed_at_its_end_is_on_disk_after_the_next() -> Result<()> {
    let below = tempfile::tempdir()?;
    real_node::disk::own_mounts()?;
    let (image, at) = (below.path().join("xfs"), below.path().join("at"));
    real_node::disk::make(&image, 400 << 20, "data")?;
    real_node::disk::mount(&image, &at)?;
    let mut subject = replace(&at)?;
    subject.prepare()?;
    checked(&mut subject.command())?;
    let data = at.join("etcd/data");
    let [member, new, aside] = ["member", "member.new-run", "member.before-run"].map(|name| data.join(name));
    // As before the two renames, on disk.
    fs::rename(&member, &new)?;
    fs::rename(&aside, &member)?;
    checked(Command::new("sync").arg("-f").arg(&data))?;
    fs::rename(&member, &aside)?;
    fs::rename(&new, &member)?;
    checked(&mut subject.command())?;
    // All that is not on disk is lost.
    checked(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&at))?;
    checked(Command::new("umount").arg(&at))?;
    real_node::disk::mount(&image, &at)?;
    let replaced = etcd::is_replaced(&data, RUN);
    checked(Command::new("umount").arg("-l").arg(&at))?;
    ensure!(replaced, "the power cut took the member back");
    Ok(())
}

#[test]
#[ignore = "no test: others start it in a process of its own, to have the power fail in it"]
fn in_a_process_of_its_own() -> Result<()> {
    let dir = PathBuf::from(std::env::var_os(WORK).context("no directory")?);
    etcd::replace(&dir.join("snapshot.db.zst"), &dir.join("data"), RUN, &Options::default(), &|_| ()).map(drop)
}
