//! The machine itself: power, boot loader, kernel, and as much of an init as starts the units.
//!
//! A power cut is `SIGKILL` to every process of the node at once, and the mounts gone. What had been written is still there: the page
//! cache of this machine survives, so what was not yet synced is *not* lost here.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};

use crate::runtime::{Runtime, STORE};
use crate::{booted, crictl, soft_reboot, systemctl};
use testing::place::{MARK, Place, Process};

/// `on` or `off`, and how often it has booted: written last, so that who waits for it finds a node that is up.
const POWER: &str = "power.json";
/// What init leaves to every process that is told to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the kernel and init leave to containers that are told to end.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) fn run(place: &Place, args: &[String]) -> Result<ExitCode> {
    match args.first().map(String::as_str) {
        Some("boot") => boot(place)?,
        Some("shutdown") => shut_down(place)?,
        Some("reboot") => {
            // Whoever asked for it gets an answer first, as from the real one.
            std::thread::sleep(Duration::from_millis(30));
            let next = args.get(1).map(PathBuf::from);
            shut_down(place)?;
            next.map_or_else(|| boot(place), |next| soft_boot(place, &next))?;
        }
        Some("power-cut") => power_off(place)?,
        // Not a machine's business, but it needs the node's own programs: fills the cluster of a new node.
        Some("seed") => crate::cluster::fill(place, args.get(1).context("what is to be seeded?")?)?,
        _ => bail!("a machine can boot, reboot, shutdown and power-cut"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Sets a reboot off: a soft one if that may be and is prepared. It happens by itself, whatever becomes of the caller.
pub(crate) fn begin_reboot(place: &Place, may_be_soft: bool) -> Result<()> {
    let next = soft_reboot::prepared(place)?.filter(|_| may_be_soft);
    let log = systemctl::log_file(&place.state("machine"))?;
    let mut machine = Command::new(place.tools().join("machine"));
    // Not one of the node's processes: it outlives them.
    machine
        .arg("reboot")
        .args(next)
        .env_remove(MARK)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir(place.dir())
        .process_group(0);
    machine.spawn().context("starting the reboot")?;
    Ok(())
}

fn power(place: &Place, on: bool) -> Result<()> {
    place.change(POWER, |state: &mut (bool, u32)| {
        *state = (on, state.1 + u32::from(on));
        Ok(())
    })
}

/// Everything ends at once.
fn power_off(place: &Place) -> Result<()> {
    power(place, false)?;
    place.kill_all()?;
    unmount_root(place)
}

/// An orderly end: units are stopped, containers are told to end, a staged deployment is finalised.
fn shut_down(place: &Place) -> Result<()> {
    power(place, false)?;
    let config = place.config()?;
    for unit in config.enabled.iter().rev().filter(|unit| **unit != config.runtime_unit) {
        systemctl::stop(place, unit)?;
    }
    crate::runtime::stop_all(&crictl::processes(&Runtime::load(place)?), GRACE);
    systemctl::stop(place, &config.runtime_unit)?;
    let left = place.processes()?;
    for pid in &left {
        testing::place::signal(*pid, rustix::process::Signal::TERM);
    }
    let (left, end): (Vec<_>, _) = (left.into_iter().map(Process::of).collect(), Instant::now() + PATIENCE);
    while left.iter().any(|process| process.is_alive()) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    if place.dir().join("run/ostree/staged-deployment").exists() {
        let done = booted::run_inside(place, Command::new("/usr/bin/ostree").args(["admin", "finalize-staged"]))?;
        anyhow::ensure!(done == ExitCode::SUCCESS, "finalising the staged deployment failed");
    }
    power_off(place)
}

/// Mounts what the boot loader's first entry says, and starts the units.
fn boot(place: &Place) -> Result<()> {
    unmount_root(place)?;
    let config = place.config()?;
    let chosen = if config.ostree { first_entry(place)? } else { place.dir().join("plain") };
    make_kernel_files(place, config.ostree)?;
    soft_reboot::counts(place, false)?;
    start_userspace(place, config.ostree, &chosen)
}

/// The same kernel, another root.
fn soft_boot(place: &Place, next: &Path) -> Result<()> {
    unmount_root(place)?;
    soft_reboot::counts(place, true)?;
    start_userspace(place, place.config()?.ostree, &soft_reboot::root_of(next)?)
}

fn start_userspace(place: &Place, ostree: bool, chosen: &Path) -> Result<()> {
    place.save("booted.json", &Some(chosen))?;
    mount_root(place, chosen, ostree)?;
    let config = place.config()?;
    systemctl::forget(place)?;
    // CRI-O keeps no sandbox and no container over a boot, not even one that has exited; containerd keeps all of them, ended.
    place.change(STORE, |runtime: &mut Runtime| {
        if config.is_crio() {
            (runtime.sandboxes, runtime.containers) = (Vec::new(), Vec::new());
        }
        runtime.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false);
        Ok(())
    })?;
    make_volatile_files(place)?;
    systemctl::load_all(place)?;
    if systemctl::exists(place, "crio-wipe.service") {
        systemctl::start(place, "crio-wipe.service")?;
    }
    for unit in &config.enabled {
        systemctl::start(place, unit)?;
    }
    power(place, true)
}

/// The deployment that is booted.
pub(crate) fn booted(place: &Place) -> Result<PathBuf> {
    place.load::<Option<PathBuf>>("booted.json")?.context("the node is off")
}

/// The `/var` of a deployment's stateroot.
pub(crate) fn var_of(deployment: &Path) -> Result<PathBuf> {
    Ok(deployment.ancestors().nth(2).context("a deployment is in a stateroot")?.join("var"))
}

/// The entry of the highest version in `/boot/loader/entries`: the boot loader takes it, and it leads to a deployment.
fn first_entry(place: &Place) -> Result<PathBuf> {
    let folder = place.sysroot().join("boot/loader/entries");
    let mut entries = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).map(str::to_owned);
        let version: u32 = value("version").context("an entry without a version")?.parse()?;
        let options = value("options").context("an entry without options")?;
        let target = options.split_whitespace().find_map(|word| word.strip_prefix("ostree=/")).context("an entry without ostree=")?;
        entries.insert(version, place.sysroot().join(target));
    }
    let (_, target) = entries.pop_last().context("there is nothing to boot")?;
    target.canonicalize().with_context(|| format!("following {}", target.display()))
}

/// What a kernel would make anew: `/proc`, `/sys` and `/run`, as far as the agent reads them.
fn make_kernel_files(place: &Place, ostree: bool) -> Result<()> {
    let at = |path: &str| place.dir().join(path);
    let make = |path: &str, text: &str| -> Result<()> {
        let path = at(path);
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    for folder in ["run", "proc"] {
        if at(folder).exists() {
            std::fs::remove_dir_all(at(folder)).with_context(|| format!("emptying /{folder}"))?;
        }
        std::fs::create_dir_all(at(folder))?;
    }
    if ostree {
        make("run/ostree-booted", "")?;
    }
    make("proc/sys/kernel/random/boot_id", &format!("{}\n", uuid::Uuid::new_v4()))?;
    make("sys/fs/selinux/enforce", "1")
}

/// `systemd-tmpfiles`, as far as lines of type `F` (written anew at each boot) of `/etc/tmpfiles.d` go. What is written is the boot id.
fn make_volatile_files(place: &Place) -> Result<()> {
    let boot_id = std::fs::read(place.dir().join("proc/sys/kernel/random/boot_id"))?;
    for entry in std::fs::read_dir(place.at("/etc/tmpfiles.d")).into_iter().flatten() {
        let text = std::fs::read_to_string(entry?.path())?;
        for path in text.lines().filter_map(|line| line.strip_prefix("F ")?.split_whitespace().next()) {
            std::fs::write(place.at(path), &boot_id).with_context(|| format!("writing {path}"))?;
        }
    }
    Ok(())
}

fn mount_root(place: &Place, chosen: &Path, ostree: bool) -> Result<()> {
    let root = place.root();
    std::fs::create_dir_all(&root)?;
    let bind = |source: &Path, target: &str, writable: bool| -> Result<()> {
        let target = root.join(target);
        mount_bind(source, &target).with_context(|| format!("mounting {} on {}", source.display(), target.display()))?;
        if !writable {
            mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")
                .with_context(|| format!("mounting {} read-only", target.display()))?;
        }
        Ok(())
    };
    bind(chosen, "", true)?;
    for name in ["run", "proc", "sys"] {
        bind(&place.dir().join(name), name, true)?;
    }
    if ostree {
        // As on the real one, what belongs to ostree can only be read; ostree itself makes its own mounts.
        bind(&var_of(chosen)?, "var", true)?;
        bind(&chosen.join("usr"), "usr", false)?;
        bind(&place.sysroot(), "sysroot", false)?;
        bind(&place.sysroot().join("boot"), "boot", false)?;
    }
    // Disks of their own, as /etc/fstab would name them: each path, with where the harness has mounted what belongs there.
    for (path, source) in place.load::<BTreeMap<String, PathBuf>>("disks.json")? {
        std::fs::create_dir_all(place.at(&path))?;
        bind(&source, path.trim_start_matches('/'), true)?;
    }
    Ok(())
}

/// Takes the node's `/` apart, however many mounts are on it.
fn unmount_root(place: &Place) -> Result<()> {
    let root = place.root();
    for _ in 0..32 {
        let mounted = std::fs::read_to_string("/proc/self/mountinfo")?.lines().any(|line| line.split(' ').nth(4) == root.to_str());
        if !mounted {
            return Ok(());
        }
        unmount(&root, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", root.display()))?;
    }
    bail!("{} cannot be unmounted", root.display())
}
