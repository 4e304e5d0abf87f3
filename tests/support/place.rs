//! Where an emulated node is: one directory, with everything of the node below it. Shared by the stand-ins and by the harness of the tests.
//!
//! ```text
//! DIR/sysroot     the physical root: a real ostree repository, its deployments, /boot (or DIR/plain: a node without ostree)
//! DIR/root        the node's `/`, mounted together at each boot
//! DIR/run proc sys    what the kernel would make; /run is empty after a boot
//! DIR/tools       the programs: links to the one stand-in
//! DIR/state       what the stand-ins remember
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Every process of an emulated node has this in its environment, with the node's directory: that is how a power cut finds them all.
pub const MARK: &str = "EMULATED_NODE";

/// What every sandbox is made of. No container names it; the runtime keeps it from being collected, and without it no pod starts.
pub const PAUSE_IMAGE: &str = "registry.example.com/release/pause:4.16.4";

/// The directory of one emulated node.
#[derive(Debug, Clone)]
pub struct Place {
    dir: PathBuf,
}

/// Where a release says how its unit of the container runtime is called, when not as the node's first one has it.
pub const RUNTIME_OF_THE_RELEASE: &str = "/usr/lib/emulated-runtime-unit";

/// What does not change while the node lives.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// True where the root file system is an ostree deployment.
    pub ostree: bool,
    /// Units that start at boot, in order.
    pub enabled: Vec<String>,
    /// Unit of the container runtime.
    pub runtime_unit: String,
    /// Where it listens; CRI-O's is called `crio.sock`.
    pub runtime_socket: String,
    /// True when the drop-in of kubelet may pull in the resume unit, which then runs the installed agent.
    pub resume_unit: bool,
    /// True when kubelet asks for its certificates with certificate requests at every start, and is Ready only when they are approved.
    pub bootstrap: bool,
    /// Pods that come from the API and not from a manifest: kubelet starts them once the API is ready.
    pub api_pods: Vec<ApiPod>,
}

impl Config {
    /// True where the container runtime is CRI-O, and not containerd.
    #[must_use]
    pub fn is_crio(&self) -> bool {
        self.runtime_socket.ends_with("/crio.sock")
    }
}

/// A pod that kubelet learns of from the API server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApiPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its one container.
    pub container: String,
    /// Its image.
    pub image: String,
}

/// The file with the images that a registry has; none where no registry is reached.
pub const REGISTRY: &str = "registry.json";

/// An image in the runtime's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As a manifest names it.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// The real program behind it; a sleeping process where there is none.
    pub program: Option<PathBuf>,
}

/// What goes wrong with a tool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// Which tool; every one where this is empty.
    pub tool: String,
    /// Only calls whose arguments, joined with blanks, contain this.
    pub matching: String,
    /// So many of them go well before.
    pub after: u32,
    /// How often; for ever where there is no number.
    pub times: Option<u32>,
    /// What happens.
    pub what: Wrong,
}

/// Ways in which a call of a tool goes wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrong {
    /// It does nothing, for ever.
    Hang,
    /// It does nothing, says this on standard error, and exits with this status.
    Fail(String, u8),
    /// It does nothing, prints this, and exits 0.
    Print(String),
    /// It does its work after so many milliseconds.
    Slow(u64),
    /// It does its work, then says this on standard error and exits with this status.
    FailAfter(String, u8),
    /// It does its work, and the second half of what it prints is lost.
    Half,
    /// It says this on standard output and on standard error, then does its work.
    Warn(String),
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its name.
    pub tool: String,
    /// Its arguments, joined with blanks.
    pub args: String,
}

impl Place {
    /// The node in this directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's `/` while it is on.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The folder of its programs.
    #[must_use]
    pub fn tools(&self) -> PathBuf {
        self.dir.join("tools")
    }

    /// The physical root.
    #[must_use]
    pub fn sysroot(&self) -> PathBuf {
        self.dir.join("sysroot")
    }

    /// A file of the stand-ins' own.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        self.dir.join("state").join(name)
    }

    /// Where the node's absolute path is.
    #[must_use]
    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// What does not change while it is on: a release may have another name for the runtime's unit.
    pub fn config(&self) -> Result<Config> {
        let mut config: Config = self.load("config.json")?;
        if let Ok(unit) = std::fs::read_to_string(self.at(RUNTIME_OF_THE_RELEASE)) {
            config.enabled.iter_mut().filter(|enabled| **enabled == config.runtime_unit).for_each(|enabled| enabled.clone_from(&unit));
            config.runtime_unit = unit;
        }
        Ok(config)
    }

    /// Reads a state file; its default where there is none.
    pub fn load<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T> {
        match std::fs::read(self.state(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading the state file {name}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
            Err(error) => Err(error).with_context(|| format!("reading the state file {name}")),
        }
    }

    /// Writes a state file in one step.
    pub fn save(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.state(name);
        let temporary = self.state(&format!(".{name}.{}", std::process::id()));
        std::fs::write(&temporary, serde_json::to_vec_pretty(value)?)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("writing the state file {name}"))
    }

    /// Reads, changes and writes a state file, alone.
    pub fn change<T: DeserializeOwned + Serialize + Default, R>(&self, name: &str, change: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let _alone = self.lock(name)?;
        let mut value: T = self.load(name)?;
        let result = change(&mut value)?;
        self.save(name, &value)?;
        Ok(result)
    }

    /// Waits until nobody else is at this piece of state; alone until dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.state(&format!("{name}.lock"));
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// Notes a call.
    pub fn note(&self, call: &Call) -> Result<()> {
        let mut line = serde_json::to_vec(call)?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).open(self.state("calls"))?.write_all(&line).context("noting a call")
    }

    /// The calls so far.
    pub fn calls(&self) -> Result<Vec<Call>> {
        let text = std::fs::read_to_string(self.state("calls")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).context("reading the calls")).collect()
    }

    /// The processes of this node. One that ends meanwhile may be among them.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mark = [MARK.as_bytes(), b"=", self.dir.as_os_str().as_encoded_bytes()].concat();
        let marked = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.split(|b| *b == 0).any(|variable| variable == mark))
        };
        let all = std::fs::read_dir("/proc").context("reading /proc")?;
        Ok(all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(marked).collect())
    }

    /// Ends every process of this node at once, as a power cut does, and waits until they are gone.
    pub fn kill_all(&self) -> Result<()> {
        let me = i32::try_from(std::process::id())?;
        // What is being started while the list is made is found the next time round.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::time::Instant::now() < end {
            let left: Vec<i32> = self.processes()?.into_iter().filter(|pid| *pid != me && !is_zombie(*pid)).collect();
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                signal(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        anyhow::bail!("processes of {} cannot be killed: {:?}", self.dir.display(), self.processes()?)
    }
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// True for a process that has ended and that nobody has waited for yet.
fn is_zombie(pid: i32) -> bool {
    stat(pid).is_none_or(|fields| fields.first().is_some_and(|state| state == "Z"))
}

/// The fields of `/proc/PID/stat` from the state on; `None` when it is gone.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before them is in parentheses and can hold anything.
    Some(text.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

/// A process, told from a later one of the same number by its start time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let start = stat(pid).and_then(|fields| fields.get(19)?.parse().ok()).unwrap_or(0);
        Self { pid, start }
    }

    /// True while it runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        self.pid > 0 && Self::of(self.pid) == self && self.start > 0 && !is_zombie(self.pid)
    }

    /// Asks it to end, waits for `grace`, and kills it.
    pub fn stop(self, grace: std::time::Duration) {
        if self.is_alive() {
            signal(self.pid, rustix::process::Signal::TERM);
        }
        let end = std::time::Instant::now() + grace;
        while self.is_alive() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        while self.is_alive() {
            signal(self.pid, rustix::process::Signal::KILL);
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}
