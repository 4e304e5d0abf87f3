//! The machine: what is on while the node is. It plays boot loader, starts what the first entry leads to, and starts again after a reboot.
//!
//! It is a process of its own (`node machine DIR`), so that a node outlives the one who turned it on, if that is wanted, and so that its
//! mounts are seen by nobody else and gone when it is.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use testing::cargo::in_checkout;

use super::cgroup::Groups;
use super::command::{Limit, tail};
use super::disk;
use super::place::Place;
use super::spare::Spare;
use super::variant::Variant;

/// What systemd-nspawn exits with when the system in it wants to reboot.
const REBOOT: i32 = 133;
/// What kubelet and runc need beyond what a container may do.
const SYSTEM_CALLS: &str = "@keyring @mount @privileged bpf perf_event_open";
/// From the start of a container to the first process in it.
const START: Limit = Limit::of(30);

/// Whether a node is on, as the machine last wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Power {
    /// How often it has booted.
    pub boots: u32,
    /// The process 1 of this boot, as this machine numbers it; none while it is off.
    pub leader: Option<i32>,
    /// When that was, in seconds since 1970.
    pub since: i64,
    /// The deployment that is or was booted: `<checksum>.<serial>`.
    pub deployment: String,
    /// Why it is off, or why the boot before this one ended.
    pub ended: String,
}

impl Power {
    /// What is known of a node.
    pub fn of(place: &Place) -> Result<Self> {
        let mut power: Self = match std::fs::read(place.power()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            text => serde_json::from_slice(&text?).with_context(|| format!("reading {}", place.power().display()))?,
        };
        if !is_on(place)? && power.leader.take().is_some() {
            "its machine was killed".clone_into(&mut power.ended);
        }
        Ok(power)
    }

    fn save(&self, place: &Place) -> Result<()> {
        let new = place.power().with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, place.power()).context("noting whether the node is on")
    }
}

fn lock(place: &Place) -> Result<Option<File>> {
    let file = File::options().write(true).create(true).truncate(false).open(place.lock()).context("opening the node's lock")?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
}

/// True while a machine has this node.
pub fn is_on(place: &Place) -> Result<bool> {
    Ok(lock(place)?.is_none())
}

/// A power cut: every process of the node ends at once. What was written and not yet synced is still there afterwards, because the kernel
/// that has it is this machine's.
pub fn cut(place: &Place) -> Result<()> {
    ensure!(is_on(place)?, "the node is off");
    std::fs::write(place.dir().join("cut"), "")?;
    let dead = || {
        // Between two boots there is no first process: the next one is killed then, if there is a next one.
        if let Some(leader) = Power::of(place)?.leader.and_then(Pid::from_raw) {
            // The kernel kills everything in the PID namespace with its first process. It may have ended by itself.
            let _ = kill_process(leader, Signal::KILL);
        }
        Ok((!is_on(place)?).then_some(()))
    };
    START.wait("the node to be dead", dead, || "its machine still runs".to_owned())
}

/// Plays machine until the node is powered off, cut, or does not boot. With `stay`, also after the one who started it has ended: else
/// standard input is a pipe from that, and the power is cut when it closes.
pub fn play(place: &Place, stay: bool) -> Result<()> {
    let _lock = lock(place)?.with_context(|| format!("the node in {} is on already", place.dir().display()))?;
    let mut power = Power::of(place)?;
    let played = turn_on(place, stay, &mut power);
    if let Err(error) = &played {
        power.ended = format!("{error:#}");
        log(place, &power.ended)?;
    }
    power.leader = None;
    power.save(place)?;
    played
}

fn turn_on(place: &Place, stay: bool, power: &mut Power) -> Result<()> {
    disk::own_mounts()?;
    disk::mount(&place.disk(), &place.sysroot())?;
    let mut partitions = Vec::new();
    for label in ["recovery", "etcd"].into_iter().filter(|label| place.partition(label).exists()) {
        partitions.push((label, disk::mount(&place.partition(label), &place.dir().join(label))?));
    }
    let spare = Spare::attach(place)?;
    let _ = std::fs::remove_file(place.dir().join("cut"));
    let prepares_root = Variant::of(place)?.system.prepares_root();
    let parent = (!stay).then(watch_parent);
    loop {
        let Entry { deployment, options } = next_to_boot(&place.sysroot())?;
        power.boots += 1;
        power.since = jiff::Timestamp::now().as_second();
        power.deployment = deployment.file_name().unwrap_or_default().to_string_lossy().into_owned();
        log(place, &format!("boot {} of {}", power.boots, power.deployment))?;
        let groups = Groups::enter(&format!("{}-boot-{}", place.id(), power.boots))?;
        let mut container = container(place, &deployment, prepares_root.then_some(&options), &partitions, spare.as_ref())?;
        let leader = leader(&mut container);
        power.leader = leader.as_ref().ok().copied();
        power.save(place)?;
        if let (Some(parent), Some(leader)) = (&parent, power.leader) {
            parent.send(leader).context("telling who is to be killed")?;
        }
        let status = wait(&mut container, spare.as_ref().zip(power.leader)).context("waiting for the container")?;
        drop(groups);
        power.leader = None;
        let cut = place.dir().join("cut").exists();
        power.ended = match status.code() {
            Some(REBOOT) => "reboot".to_owned(),
            Some(0) => "power off".to_owned(),
            _ if cut => "power cut".to_owned(),
            _ => bail!("boot {} ended with {status}; the console says:\n{}", power.boots, tail(&last(&place.console())?)),
        };
        log(place, &format!("boot {} ended: {}", power.boots, power.ended))?;
        if status.code() != Some(REBOOT) || cut {
            return Ok(());
        }
    }
}

/// Waits until the container has ended, and plays udev for it meanwhile.
fn wait(container: &mut Child, spare: Option<(&Spare, i32)>) -> std::io::Result<ExitStatus> {
    let on = AtomicBool::new(true);
    std::thread::scope(|scope| {
        if let Some((spare, leader)) = spare {
            let on = &on;
            scope.spawn(move || spare.play_udev(leader, on));
        }
        let status = container.wait();
        on.store(false, Ordering::Relaxed);
        status
    })
}

/// Cuts the power when standard input is closed. It is told each boot's first process.
fn watch_parent() -> std::sync::mpsc::Sender<i32> {
    let (send, leaders) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        if let Some(pid) = leaders.try_iter().last().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::process::exit(0);
    });
    send
}

/// An entry of the boot loader.
struct Entry {
    /// The deployment that it leads to.
    deployment: PathBuf,
    /// The arguments of the kernel.
    options: String,
}

/// The entry of the highest version, as boot loaders that follow the Boot Loader Specification choose.
fn next_to_boot(sysroot: &Path) -> Result<Entry> {
    let entries = sysroot.join("boot/loader/entries");
    let mut best: Option<(u64, String)> = None;
    for entry in std::fs::read_dir(&entries).with_context(|| format!("listing {}", entries.display()))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::trim));
        let version = field("version").and_then(|number| number.parse().ok()).unwrap_or(0);
        if best.as_ref().is_none_or(|(highest, _)| version > *highest) {
            best = Some((version, field("options").context("a boot loader entry has no options")?.to_owned()));
        }
    }
    let (_, options) = best.context("the boot loader has no entry")?;
    let path = options.split(' ').find_map(|word| word.strip_prefix("ostree=")).context("a boot loader entry names no deployment")?;
    let deployment = sysroot.join(path.trim_start_matches('/'));
    Ok(Entry { deployment: deployment.canonicalize().with_context(|| format!("finding the deployment at {path}"))?, options })
}

/// Starts systemd-nspawn. With the kernel's arguments, on the root that an initramfs makes of them.
fn container(
    place: &Place,
    deployment: &Path,
    arguments: Option<&String>,
    partitions: &[(&str, PathBuf)],
    spare: Option<&Spare>,
) -> Result<Child> {
    let console = File::options().append(true).create(true).open(place.console()).context("opening the console")?;
    let sysroot = place.sysroot();
    let var = deployment.ancestors().nth(2).context("a deployment outside any stateroot")?.join("var");
    let bind = |option: &str, from: &Path, to: &str| format!("--{option}={}:{to}", from.display());
    let mut command = Command::new("systemd-nspawn");
    let at = place.dir().join("initramfs");
    if let Some(arguments) = arguments {
        command = Command::new("unshare");
        command.arg("--mount").arg(in_checkout("tests/node/initramfs.sh"));
        command.args([&sysroot, deployment, &at]).arg(arguments).arg("systemd-nspawn");
    }
    command.args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe"]);
    command.args(["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--capability=all"]);
    command.arg(format!("--system-call-filter={SYSTEM_CALLS}")).arg(format!("--machine={}", place.id()));
    if arguments.is_some() {
        command.arg(format!("--directory={}", at.join("sysroot").display()));
        command.arg(bind("bind-ro", &at.join("run"), "/run/initramfs"));
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
    } else {
        command.arg(format!("--directory={}", deployment.display()));
        command.arg(bind("bind-ro", &deployment.join("usr"), "/usr"));
        // The disk alone, not what is mounted on it for the container.
        command.arg(bind("bind", &sysroot, "/sysroot:norbind"));
        // Version 1, whatever the program in the tree looks like: `host.sh` says why.
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0");
    }
    command.arg(bind("bind-ro", &sysroot.join("boot"), "/boot:norbind")).arg(bind("bind", &var, "/var")).arg("--bind=/dev/kmsg");
    if let Some(spare) = spare {
        spare.turn_on()?;
        command.args(spare.binds()?);
    }
    for (label, device) in partitions {
        command.arg(bind("bind", device, &format!("/dev/disk/by-label/{label}")));
    }
    match arguments {
        // systemd in a container takes the kernel's arguments from its own.
        Some(arguments) => command.arg("/usr/share/node/init").args(arguments.split(' ')),
        None => command.arg("--boot"),
    };
    command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
    command.spawn().context("running systemd-nspawn")
}

/// The first process in the container: a child of systemd-nspawn that is number 1 in a namespace.
fn leader(container: &mut Child) -> Result<i32> {
    let parent = container.id();
    let find = || -> Result<Option<i32>> {
        if let Some(status) = container.try_wait()? {
            bail!("systemd-nspawn ended at once: {status}");
        }
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let is_first = |pid: &&str| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            ids.split_whitespace().count() > 1 && ids.split_whitespace().last() == Some("1")
        };
        Ok(children.split_whitespace().find(is_first).and_then(|pid| pid.parse().ok()))
    };
    START.wait("the container's first process", find, || "there is none".to_owned())
}

fn log(place: &Place, text: &str) -> Result<()> {
    let mut file = File::options().append(true).create(true).open(place.boots()).context("opening the log of boots")?;
    let now = jiff::Zoned::now().strftime("%H:%M:%S%.3f").to_string();
    writeln!(file, "{now} {text}").context("writing the log of boots")
}

fn last(path: &Path) -> Result<String> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path)?;
    let from = file.metadata()?.len().saturating_sub(8192);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Starts a machine for the node and waits until it is on. What is returned keeps it on, unless it stays by itself.
pub fn start(place: &Place, program: &Path, stay: bool) -> Result<Child> {
    ensure!(!is_on(place)?, "the node in {} is on already", place.dir().display());
    let before = Power::of(place)?.boots;
    let log = File::options().append(true).create(true).open(place.dir().join("machine.log"))?;
    let mut command = Command::new(program);
    command.arg("machine").arg(place.dir()).args(stay.then_some("--stay"));
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdin(if stay { Stdio::null() } else { Stdio::piped() }).stdout(log.try_clone()?).stderr(log);
    let mut machine = command.spawn().with_context(|| format!("running {}", program.display()))?;
    let on = || {
        if machine.try_wait()?.is_some() {
            bail!("the node does not boot: {}", tail(&last(&place.dir().join("machine.log"))?));
        }
        Ok(Some(Power::of(place)?).filter(|power| power.boots > before && power.leader.is_some()))
    };
    Limit(Duration::from_secs(60)).wait("the node to be turned on", on, || format!("see {}", place.boots().display()))?;
    Ok(machine)
}
