//! The phases of a recovery on the emulated node, with a real etcd. The node is prepared once, up to where the phase begins; for each place its file
//! system is a fresh copy of that one, and it boots.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use recovery::backup::verify;
use recovery::node::dir::{DEFAULT, RecoveryDir};
use recovery::recovery::procedure::Phase;
use recovery::report::Progress;
use recovery::tools::crictl;
use testing::etcd::Version;
use testing::node::{Kind, Node, Options, Snapshot, checked, wait_for};
use testing::place::Wrong;
use testing::session::session;

use crate::subject::{State, Subject};
use crate::through::{everything, may_differ, of_the_redeployment, ok, over_the_reboot};

/// MiB of the node's file system, most of them holes.
const SIZE: u64 = 900;
/// How a person does one phase.
const ONE_PHASE: &[&str] = &["resume", "--step", "--hold", "1"];

struct OnNode {
    node: Node,
    before: Snapshot,
    /// The images of file systems: as it is before, and the one that is mounted.
    images: PathBuf,
    dir: PathBuf,
    phase: Phase,
    words: &'static [&'static str],
    /// What runs before, and all that runs after it has been restored.
    runs: Vec<&'static str>,
    is_first: Cell<bool>,
}

pub(super) fn platform(disk: &Path) -> Result<Box<dyn Subject>> {
    let runs = ["etcd", "kube-controller-manager", "kube-scheduler"].to_vec();
    OnNode::make(disk, Phase::Platform, &["--yes", "platform", "--rollback"], runs)
}

pub(super) fn resume(disk: &Path) -> Result<Box<dyn Subject>> {
    OnNode::make(disk, Phase::Resume, ONE_PHASE, Vec::new())
}

pub(super) fn redeploy(disk: &Path) -> Result<Box<dyn Subject>> {
    OnNode::make(disk, Phase::Redeploy, ONE_PHASE, everything(Kind::OpenShift))
}

pub(super) fn finish(disk: &Path) -> Result<Box<dyn Subject>> {
    OnNode::make(disk, Phase::Finish, &["resume", "--unit", "--hold", "1"], everything(Kind::OpenShift))
}

pub(super) fn restart(disk: &Path) -> Result<Box<dyn Subject>> {
    OnNode::make(disk, Phase::RestoreFiles, &["--yes", "restart", "--hold", "1"], Vec::new())
}

impl OnNode {
    /// The node at the beginning of the phase, off.
    fn make(disk: &Path, phase: Phase, words: &'static [&'static str], runs: Vec<&'static str>) -> Result<Box<dyn Subject>> {
        let (images, dir) = (disk.join("images"), disk.join("node"));
        for dir in [&images, &dir] {
            fs::create_dir(dir)?;
        }
        checked(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2g", "none"]).arg(&images))?;
        let image = images.join("now");
        File::create(&image)?.set_len(SIZE << 20)?;
        checked(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1"]).arg(&image))?;
        mount(&image, &dir)?;
        let on_it = dir.join("node");
        let node = Node::build(&on_it, &Options::new(Kind::OpenShift, &Version::V34.program("etcd")?))?;
        node.wait_containers(&everything(Kind::OpenShift))?;
        // A place is not to wait for operators that take their time.
        let emulated = node.at("/var/lib/emulated");
        fs::create_dir_all(&emulated)?;
        fs::write(emulated.join("api-operators.json"), r#"{"react_ms": 0, "stale_ms": 100, "install_ms": 100}"#)?;
        ok(&node, &["backup", "--name", "good"])?;
        let before = node.snapshot()?;
        node.ruin()?;
        if phase != Phase::Platform {
            node.roll_back_platform()?;
            over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
        }
        let phases = match phase {
            Phase::Redeploy => 1,
            Phase::Finish => 2,
            _ => 0,
        };
        for _ in 0..phases {
            ok(&node, ONE_PHASE)?;
        }
        node.shutdown()?;
        unmount(&dir)?;
        fs::rename(image, images.join("before"))?;
        Ok(Box::new(Self { node, before, images, dir, phase, words, runs, is_first: Cell::new(true) }))
    }

    /// How far the recovery is: the phase, whether it is to reboot first, and what is in the way. Nothing without one.
    fn status(&self) -> Result<(Option<Phase>, String)> {
        let (node, dir) = (self.node.agent(), self.recovery_dir());
        let status = recovery::recovery::status(&session(&node, &dir))?;
        let run = status.run.as_ref();
        let words = run.map(|run| format!("{:?} {:?} reboot {} failure {:?}", run.phase, run.step, run.needs_reboot, run.failure));
        Ok((run.and_then(|run| run.phase), format!("{words:?} hold {}", status.hold)))
    }

    fn recovery_dir(&self) -> RecoveryDir {
        RecoveryDir::new(&self.node.agent(), Path::new(DEFAULT))
    }
}

fn mount(image: &Path, dir: &Path) -> Result<()> {
    checked(Command::new("mount").args(["-o", "loop"]).arg(image).arg(dir)).map(drop)
}

/// A process that was killed holds its files for a moment longer than it is to be seen.
fn unmount(dir: &Path) -> Result<()> {
    wait_for("the node's disk to be let go", || Ok(Command::new("umount").arg(dir).output()?.status.success()))
}

impl Drop for OnNode {
    /// What runs of the node ends before its disk goes.
    fn drop(&mut self) {
        self.node.power_cut().ok();
    }
}

impl Subject for OnNode {
    fn prepare(&mut self) -> Result<()> {
        if !self.is_first.take() {
            self.node.power_cut()?;
            unmount(&self.dir)?;
        }
        let now = self.images.join("now");
        // A file of its own: the kernel may not be through with the one before.
        fs::remove_file(&now).or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        checked(Command::new("cp").arg("--sparse=always").arg(self.images.join("before")).arg(&now))?;
        mount(&now, &self.dir)?;
        self.node.boot()?;
        // The node would be gone before what is on it is looked at.
        self.node.fault("systemctl", "reboot", None, Wrong::Print(String::new()))?;
        self.node.wait_containers(&self.runs).with_context(|| {
            let state = self.node.place().state("");
            let said = Command::new("bash")
                .args(["-c", "tail -n 5 kubelet* machine* logs/*; cat units.json runtime.json"])
                .current_dir(state)
                .output();
            said.map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said.stdout).into_owned())
        })
    }

    fn command(&self) -> Command {
        // A person who does one phase looks first whether it is done.
        let is_over = || self.words == ONE_PHASE && self.status().is_ok_and(|(phase, _)| phase.is_none_or(|phase| phase > self.phase));
        let words = if is_over() { &["status"] } else { self.words };
        let mut command = crate::through::command(&self.node, words).unwrap_or_else(|error| panic!("{error:#}"));
        command.stdin(std::process::Stdio::null());
        command
    }

    fn intact(&self) -> Result<()> {
        let backups = self.recovery_dir().backups();
        for entry in fs::read_dir(&backups)? {
            let id = entry?.file_name().to_string_lossy().into_owned();
            let report = verify::report(&backups.join(&id), &id, false, &Progress::hidden())?;
            ensure!(report.good, "{id}: {report:?}");
        }
        Ok(())
    }

    fn node(&self) -> Option<&Node> {
        Some(&self.node)
    }

    fn state(&self) -> Result<State> {
        let is_up = !matches!(self.phase, Phase::Platform | Phase::RestoreFiles);
        let mut state = State::new();
        let now = if is_up {
            self.node.wait_containers(&everything(Kind::OpenShift))?;
            self.node.wait_api()?;
            self.node.snapshot()?
        } else {
            Snapshot { files: Snapshot::files_of(&self.node)?, keys: self.before.keys.clone() }
        };
        let explained = |line: &str| may_differ(line) || (self.phase > Phase::Resume && of_the_redeployment(line));
        for line in self.before.differences(&now).into_iter().filter(|line| !explained(line)) {
            let (name, how) = line.rsplit_once(": ").context("a difference without a name")?;
            state.insert(name.to_owned(), how.to_owned());
        }
        state.insert("status".to_owned(), self.status()?.1);
        for unit in ["kubelet.service", "crio.service"] {
            let active = self.node.tool("systemctl").args(["is-active", unit]).output()?;
            state.insert(unit.to_owned(), String::from_utf8_lossy(&active.stdout).into_owned());
        }
        state.insert("SELinux".to_owned(), fs::read_to_string(self.node.at("/sys/fs/selinux/enforce"))?);
        if is_up {
            let mut running: Vec<String> =
                crictl::containers(&self.node.agent())?.into_iter().filter(|c| c.running).map(|c| c.name).collect();
            running.sort();
            running.dedup();
            state.insert("running".to_owned(), running.join(" "));
        }
        for dir in ["/var/recovery", "/var/lib/recovery", "/var/lib/etcd"] {
            let (root, mut count) = (self.node.at(dir), 0);
            for entry in walkdir::WalkDir::new(&root).max_depth(2) {
                let path = entry?.path().strip_prefix(&root)?.display().to_string();
                match dir {
                    // It has the id of the run in its name.
                    "/var/lib/etcd" => count += 1,
                    // Each begun run is kept there.
                    "/var/recovery" if path.starts_with("history") => {}
                    _ => drop(state.insert(format!("{dir}/{path}"), String::new())),
                }
            }
            state.insert(dir.to_owned(), count.to_string());
        }
        if self.phase == Phase::Platform {
            state.insert("deployments".to_owned(), ok(&self.node, &["platform"])?);
        }
        if state.is_empty() {
            bail!("nothing");
        }
        Ok(state)
    }
}
