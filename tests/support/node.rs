//! An emulated single-node cluster for tests and the demo: a real ostree sysroot, a real etcd, an emulated API server in front of it, and
//! programs that behave as the real ones do (`tests/standin`). `tests/README.md` lists what is real and what is not.
//!
//! Mounts are made in a mount namespace of the calling thread, so that they are gone when the test is, however it ends; every other
//! use of the node must be on that thread or on one that it started.

pub mod compare;
mod fill;
mod layout;
mod pods;
mod wreck;

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::cargo::{example, target};
pub use crate::place::{Call, Fault, Wrong};
use crate::place::{Config, Image, MARK, Place, REGISTRY};
pub use compare::Snapshot;

/// The folder in the temporary directory in which nodes lock their ports.
pub const PORTS: &str = "emulated-node-ports";
/// How long a boot, or the cluster after it, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// What each program of the node is called.
const TOOLS: [&str; 7] = ["crictl", "systemctl", "machine", "inside", "kubelet", "container", "kube-apiserver"];
const OSTREE_TOOLS: [&str; 3] = ["ostree", "rpm-ostree", "rpm-ostreed"];

/// Which kind of control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OpenShift on ostree.
    OpenShift,
    /// As kubeadm lays it out, on an ordinary root file system.
    Kubeadm,
}

/// What is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kind of control plane.
    pub kind: Kind,
    /// The etcd it runs.
    pub etcd: PathBuf,
    /// The etcd that the release after an upgrade runs; the same unless given.
    pub etcd_after_upgrade: Option<PathBuf>,
    /// Settings in the cluster (a `ConfigMap` each), besides what every cluster has.
    pub settings: usize,
    /// Plain files in `/etc`, besides what every node has.
    pub files: usize,
    /// kubelet asks for its certificates with certificate requests at every start, and is Ready only when they are approved.
    pub bootstrap: bool,
    /// The installed agent is started at boot, as its unit would.
    pub resume_unit: bool,
    /// Unit and socket of the container runtime; CRI-O's socket is called `crio.sock`.
    pub runtime: (&'static str, &'static str),
    /// The unit of the container runtime in the release after an upgrade; the same unless given.
    pub runtime_after_upgrade: Option<&'static str>,
    /// MiB of the XFS file system that is mounted at `/var/recovery`; a plain directory unless given. mkfs.xfs makes none below 300.
    pub recovery_disk: Option<u64>,
    /// The mounts are made where everyone sees them, and the node stays when it is dropped: for people to look at.
    pub keep: bool,
}

impl Options {
    /// A node of this kind with this etcd.
    #[must_use]
    pub fn new(kind: Kind, etcd: &Path) -> Self {
        Self {
            kind,
            etcd: etcd.to_owned(),
            etcd_after_upgrade: None,
            settings: 20,
            files: 100,
            bootstrap: false,
            resume_unit: false,
            runtime: match kind {
                Kind::OpenShift => ("crio.service", "/var/run/crio/crio.sock"),
                Kind::Kubeadm => ("containerd.service", "/run/containerd/containerd.sock"),
            },
            runtime_after_upgrade: None,
            recovery_disk: None,
            keep: false,
        }
    }
}

/// The ports of a node: its own, so that many can run side by side.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Ports {
    /// etcd's clients.
    pub etcd: u16,
    /// etcd's peers.
    pub peer: u16,
    /// etcd's metrics.
    pub metrics: u16,
    /// The API server.
    pub api: u16,
}

/// An emulated node.
#[derive(Debug)]
pub struct Node {
    place: Place,
    options: Options,
    ports: Ports,
    runtime: tokio::runtime::Runtime,
    ports_taken: Vec<File>,
}

impl Node {
    /// Makes a node in `dir`, boots it, and fills its cluster. What an earlier test left in `dir` is removed first.
    pub fn build(dir: &Path, options: &Options) -> Result<Self> {
        if !options.keep {
            own_mounts()?;
        }
        std::fs::create_dir_all(dir)?;
        let dir = dir.canonicalize()?;
        let whole = |program: &PathBuf| program.canonicalize().with_context(|| format!("finding {}", program.display()));
        let options = &Options {
            etcd: whole(&options.etcd)?,
            etcd_after_upgrade: options.etcd_after_upgrade.as_ref().map(whole).transpose()?,
            ..options.clone()
        };
        clean(&dir)?;
        let (ports, locks) = free_ports(&dir, options.keep)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let node = Self { place: Place::new(&dir), options: options.clone(), ports, runtime, ports_taken: locks };
        node.make().with_context(|| format!("making a node in {}", dir.display()))?;
        node.boot()?;
        node.seed()?;
        Ok(node)
    }

    /// The directory of the node.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What it was made of.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Its `/`, while it is on.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.place.root()
    }

    /// Where its absolute path is.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.place.at(path)
    }

    /// The node as the library takes it.
    #[must_use]
    pub fn agent(&self) -> recovery::node::Node {
        recovery::node::Node::at(&self.root(), Some(&self.place.tools()))
    }

    fn make(&self) -> Result<()> {
        for folder in ["state", "tools", "root", "pki"] {
            std::fs::create_dir_all(self.place.dir().join(folder))?;
        }
        let program = stand_in()?;
        let ostree = self.options.kind == Kind::OpenShift;
        for tool in TOOLS.iter().chain(OSTREE_TOOLS.iter().filter(|_| ostree)) {
            symlink(&program, self.place.tools().join(tool))?;
        }
        self.place.save("ports.json", &self.ports)?;
        self.place.save("config.json", &self.config())?;
        self.place.save("runtime.json", &serde_json::json!({"sandboxes": [], "containers": [], "images": self.images()}))?;
        if let Some(size) = self.options.recovery_disk {
            self.attach_recovery_disk(size)?;
        }
        self.lay_out()
    }

    /// An image with XFS in it, mounted once beside the node; each boot mounts it from there.
    fn attach_recovery_disk(&self, size: u64) -> Result<()> {
        let (image, disk) = (self.place.dir().join("recovery.xfs"), self.place.dir().join("disks/recovery"));
        std::fs::create_dir_all(&disk)?;
        std::fs::File::create(&image)?.set_len(size << 20)?;
        checked(Command::new("mkfs.xfs").args(["-q", "-L", "recovery"]).arg(&image))?;
        checked(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&disk))?;
        self.place.save("disks.json", &std::collections::BTreeMap::from([("/var/recovery", disk)]))
    }

    fn config(&self) -> Config {
        let openshift = self.options.kind == Kind::OpenShift;
        let (runtime_unit, runtime_socket) = self.options.runtime;
        let mut enabled = vec![runtime_unit.to_owned()];
        if openshift {
            enabled.extend(["ovsdb-server.service", "ovs-vswitchd.service"].map(str::to_owned));
        }
        enabled.push("kubelet.service".to_owned());
        Config {
            node: layout::NODE_NAME.to_owned(),
            ostree: openshift,
            enabled,
            runtime_unit: runtime_unit.to_owned(),
            runtime_socket: runtime_socket.to_owned(),
            resume_unit: self.options.resume_unit,
            bootstrap: self.options.bootstrap,
            api_pods: if openshift { pods::operators() } else { Vec::new() },
        }
    }

    /// Whether a registry is reached from now on, from which kubelet pulls each image that is not there. At first, none is.
    pub fn reach_registry(&self, reached: bool) -> Result<()> {
        self.place.save(REGISTRY, &if reached { self.images() } else { Vec::new() })
    }

    fn images(&self) -> Vec<Image> {
        pods::images(&self.options.etcd, self.options.etcd_after_upgrade.as_deref().unwrap_or(&self.options.etcd))
    }

    /// Turns it on: what the boot loader's first entry leads to is mounted, and the units start.
    pub fn boot(&self) -> Result<()> {
        self.machine(&["boot"])
    }

    /// An orderly reboot.
    pub fn reboot(&self) -> Result<()> {
        self.machine(&["reboot"])
    }

    /// An orderly end.
    pub fn shutdown(&self) -> Result<()> {
        self.machine(&["shutdown"])
    }

    /// Every process of the node ends at once, the agent too; it is off then.
    pub fn power_cut(&self) -> Result<()> {
        self.machine(&["power-cut"])
    }

    fn machine(&self, args: &[&str]) -> Result<()> {
        checked(Command::new(self.place.tools().join("machine")).args(args)).map(drop)
    }

    /// True while it is on, and how often it has booted.
    pub fn power(&self) -> Result<(bool, u32)> {
        self.place.load("power.json")
    }

    /// Waits until it has booted more often than `boots`: after something on it asked for a reboot.
    pub fn wait_boot(&self, boots: u32) -> Result<()> {
        wait_for("the node to boot", || Ok(self.power().is_ok_and(|(on, now)| on && now > boots)))
    }

    /// Waits until its API server is ready, etcd included.
    pub fn wait_api(&self) -> Result<()> {
        let agent = self.agent();
        let client = recovery::kube::Client::of(&agent, recovery::node::profile::Profile::of(&agent)?)?;
        wait_for("the API server", || Ok(client.ready().is_ok()))
    }

    /// Waits until containers of all these names run.
    pub fn wait_containers(&self, names: &[&str]) -> Result<()> {
        wait_for(&format!("containers {names:?}"), || {
            let all = recovery::tools::crictl::containers(&self.agent())?;
            Ok(names.iter().all(|name| all.iter().any(|c| c.running && c.name == *name)))
        })
    }

    /// One of its programs.
    #[must_use]
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(self.place.tools().join(name));
        command.env(MARK, self.place.dir());
        command
    }

    /// The agent, on this node: ready for a verb.
    pub fn recovery(&self) -> Result<Command> {
        let mut command = Command::new(agent()?);
        command.env(MARK, self.place.dir()).arg("--root").arg(self.root()).arg("--tools").arg(self.place.tools());
        Ok(command)
    }

    /// Runs the agent to its end; its exit status is the caller's to judge.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.recovery()?.args(args).output().context("running the agent")
    }

    /// Lets a call of a tool go wrong.
    pub fn fault(&self, tool: &str, matching: &str, times: Option<u32>, what: Wrong) -> Result<()> {
        self.add_fault(Fault { tool: tool.to_owned(), matching: matching.to_owned(), after: 0, times, what })
    }

    /// Lets the call of a tool with this number go wrong, from 1 on and counted from now, whichever tool it is. Calls that another fault is for are
    /// not counted.
    pub fn fault_at(&self, number: u32, what: Wrong) -> Result<()> {
        self.add_fault(Fault { tool: String::new(), matching: String::new(), after: number.saturating_sub(1), times: Some(1), what })
    }

    fn add_fault(&self, fault: Fault) -> Result<()> {
        self.place.change("faults.json", |faults: &mut Vec<Fault>| {
            faults.push(fault);
            Ok(())
        })
    }

    /// Lets every tool work again.
    pub fn clear_faults(&self) -> Result<()> {
        self.place.save("faults.json", &Vec::<Fault>::new())
    }

    /// The calls of tools so far.
    pub fn calls(&self) -> Result<Vec<Call>> {
        self.place.calls()
    }

    /// Everything that a recovery has to bring back: every file with all of its attributes, and every key.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::take(self)
    }

    /// Rolls the platform back as an administrator does, and waits until it has booted.
    pub fn roll_back_platform(&self) -> Result<()> {
        let (_, boots) = self.power()?;
        checked(self.tool("rpm-ostree").args(["rollback", "-r"]))?;
        self.wait_boot(boots)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.options.keep {
            return;
        }
        // A test that has failed already must not hide why behind a second panic.
        if let Err(error) = clean(self.place.dir()) {
            eprintln!("cleaning up {}: {error:#}", self.place.dir().display());
            return;
        }
        for file in &self.ports_taken {
            file.set_len(0).ok();
        }
    }
}

/// Ends what runs of the node in `dir`, takes its mounts apart, and removes everything in it.
pub fn clean(dir: &Path) -> Result<()> {
    let place = Place::new(dir);
    place.kill_all()?;
    for _ in 0..64 {
        let below = |line: &str| line.split(' ').nth(4).filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned);
        // This thread's: its mount namespace need not be the process's.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        let Some(point) = mounts.lines().filter_map(below).next_back() else { break };
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).with_context(|| format!("unmounting {point}"))?;
    }
    // Deployments are immutable, and a test may have made other files so; what cannot have the flag complains, and does not matter.
    Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(dir).output().context("running chattr (package e2fsprogs)")?;
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Runs a command; anything but success is an error with what it said.
pub fn checked(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for something, up to two minutes.
pub fn wait_for(what: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_there()? {
        if Instant::now() > end {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A mount namespace of this thread's own: what it starts inherits it, and its mounts end with the last of them.
fn own_mounts() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: neither flag touches file descriptors or memory. The working directory is unshared with the namespace, for this thread alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.context("making a mount namespace: tests run as root")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making the mounts private")
}

/// Four free ports, locked against other tests on this machine for as long as the files are open. Each file names the node that has the
/// port: one that nobody holds any more was left by a test that was killed, and is cleaned up here.
fn free_ports(dir: &Path, keep: bool) -> Result<(Ports, Vec<File>)> {
    let folder = std::env::temp_dir().join(PORTS);
    std::fs::create_dir_all(&folder)?;
    // One at a time: two would clean up the same node.
    let alone = File::create(folder.join("lock"))?;
    flock(&alone, FlockOperation::LockExclusive)?;
    let (mut ports, mut locks) = (Vec::new(), Vec::new());
    // Below the range that the kernel takes ports of outgoing connections from.
    for port in 21_000..31_000_u16 {
        let path = folder.join(port.to_string());
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let mut left = String::new();
        file.read_to_string(&mut left)?;
        if Place::new(Path::new(&left)).state("config.json").exists() {
            clean(Path::new(&left)).with_context(|| format!("cleaning up {left}, which a killed test has left"))?;
        }
        file.set_len(0)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            if !keep {
                file.write_all_at(dir.as_os_str().as_encoded_bytes(), 0)?;
            }
            ports.push(port);
            locks.push(file);
        }
        if let [etcd, peer, metrics, api] = ports[..] {
            return Ok((Ports { etcd, peer, metrics, api }, locks));
        }
    }
    bail!("no free ports")
}

/// The agent: the one that the variable `RECOVERY` names, else the one of this profile.
fn agent() -> Result<PathBuf> {
    let path = match std::env::var_os("RECOVERY") {
        Some(path) => PathBuf::from(path).canonicalize().context("finding the agent that RECOVERY names")?,
        None => target()?.join("recovery"),
    };
    ensure!(path.exists(), "{} is missing: run `cargo build`", path.display());
    Ok(path)
}

/// The stand-in, built once.
fn stand_in() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| example("standin").map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}
