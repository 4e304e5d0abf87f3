//! A real single-node control plane that reboots: systemd as process 1 of a container whose root is an ostree deployment, with the real
//! kubelet, containerd, etcd, kube-apiserver, kube-controller-manager and kube-scheduler, on disks of its own. `tests/README.md` says what
//! in it is real. For people there is the example program `node` (`node.rs`); for drills:
//!
//! ```ignore
//! let node = Node::up(&dir, &Variant::default())?;    // made, booted, Ready; a few seconds
//! node.install(&agent)?;                              // the agent's binary at /var/recovery/recovery
//! node.run(&["/var/recovery/recovery", "backup"])?;   // fails unless it exits 0
//! node.upgrade(Broken::ApiServer)?;                   // the next release, booted, then the API server ruined
//! let boots = node.boots()?;
//! node.exec(&["/var/recovery/recovery", "recover", "--yes"], Limit::of(300))?;
//! node.wait_boots(boots + 1)?;
//! node.kill()?;                                       // a power cut
//! node.boot()?;                                       // on again
//! node.wait_ready()?;
//! ```
//!
//! A node is a directory with disk images, so that it can be copied. While it is on, a process of its own plays machine and boot loader
//! (`machine.rs`): it starts the deployment that `/boot/loader/entries` puts first, again after each reboot. Mounts are made in that
//! process's mount namespace and are gone with it. The process ends with the one that turned the node on, unless that said `Stay`.

#![allow(clippy::missing_errors_doc, reason = "every one fails when the node cannot be made to do it, which ends the test")]

pub mod base;
pub mod cgroup;
pub mod cluster;
pub mod command;
pub mod disk;
pub mod image;
pub mod inside;
pub mod machine;
pub mod managed;
pub mod pki;
pub mod place;
pub mod pods;
pub mod release;
pub mod root;
pub mod slots;
pub mod spare;
pub mod system;
pub mod unsynced;
pub mod upgrade;
pub mod variant;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use testing::cargo::example;

pub use command::{Done, Limit};
pub use machine::Power;
pub use place::Place;
pub use release::Kind;
pub use system::System;
pub use upgrade::Broken;
pub use variant::{Ahead, Variant};

/// How long a node that was turned on stays on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Until this process ends, or the [`Node`] is dropped.
    WithMe,
    /// Until somebody turns it off.
    Forever,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    place: Place,
    variant: Variant,
    stay: Stay,
    machine: Option<Child>,
    /// What keeps other nodes off, for as long as this one is there.
    _slots: Vec<File>,
}

impl Node {
    /// Where its parts are.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The kind of its control plane.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.variant.kind
    }

    /// Turns it on, and waits until systemd takes commands and the file systems are mounted.
    pub fn boot(&mut self) -> Result<()> {
        let machine = machine::start(&self.place, &machine_program()?, self.stay == Stay::Forever)?;
        self.machine = (self.stay == Stay::WithMe).then_some(machine);
        self.wait_boots(self.boots()?)
    }

    /// How often it has booted.
    pub fn boots(&self) -> Result<u32> {
        Ok(Power::of(&self.place)?.boots)
    }

    /// Whether it is on, and what is booted.
    pub fn power(&self) -> Result<Power> {
        Power::of(&self.place)
    }

    /// A power cut: every process of it ends at once. What was written survives, synced or not.
    pub fn kill(&mut self) -> Result<()> {
        machine::cut(&self.place)?;
        self.reap()
    }

    /// A power cut that takes with it what the node's file systems have not yet written to its disks.
    pub fn kill_unsynced(&mut self) -> Result<()> {
        unsynced::lose(&self.place)?;
        self.kill()
    }

    /// An orderly end.
    pub fn power_off(&mut self) -> Result<()> {
        // systemd may end before it has answered.
        self.exec(&["systemctl", "poweroff"], Limit::of(60))?;
        Limit::of(120).wait("the node to power off", || Ok((!machine::is_on(&self.place)?).then_some(())), || self.explain())?;
        let power = self.power()?;
        ensure!(power.ended == "power off", "the node did not power off in order: {}", power.ended);
        self.reap()
    }

    /// An orderly reboot, waited for.
    pub fn reboot(&self) -> Result<()> {
        let boots = self.boots()?;
        // It may fail with "Connection reset by peer" although the reboot happens.
        self.exec(&["systemctl", "reboot"], Limit::of(60))?;
        self.wait_boots(boots + 1)
    }

    /// Puts the agent's binary where its first backup would: `/var/recovery/recovery`.
    pub fn install(&self, agent: &Path) -> Result<()> {
        self.put_file(agent, "/var/recovery/recovery", 0o755)
    }

    fn reap(&mut self) -> Result<()> {
        self.machine.take().map_or(Ok(()), |mut machine| machine.wait().map(drop)).context("waiting for the machine")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.machine.is_some() && machine::cut(&self.place).is_ok() {
            let _ = self.reap();
        }
    }
}

/// The program that plays machine, built once.
fn machine_program() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| example("node").map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}
