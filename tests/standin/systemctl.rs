//! `systemctl` 252, with as much of systemd behind it as a recovery touches: unit files and drop-ins as they were when systemd last read
//! them, conditions, kubelet, the container runtime, and the reboot.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::runtime::{Runtime, STORE};
use testing::place::{Config, MARK, Place, Process};

const UNITS: &str = "units.json";
/// Written by an orderly stop of CRI-O; without it, `crio wipe` erases the image store at a boot. With `.supported` behind its name it is
/// written by a CRI-O that knows of the mark.
const CLEAN: &str = "/var/lib/crio/clean.shutdown";
/// The runtime's process, as `/proc` has it.
const RUNTIME_PID: &str = "812";
/// How long kubelet has to stop: `DefaultTimeoutStopSec`.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// What systemd has in mind of a unit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Unit {
    /// Its conditions and what it pulls in, as read when it was loaded: a drop-in that came later counts only after a daemon-reload.
    conditions: Vec<String>,
    wants: Vec<String>,
    active: bool,
    condition_met: bool,
    /// When it was last started, microseconds of `CLOCK_MONOTONIC`; 0 if never.
    started: u64,
    /// The main process, of a unit that has one here.
    process: Option<Process>,
}

type Units = BTreeMap<String, Unit>;

pub(crate) fn run(place: &Place, args: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let Some((&verb, units)) = words.split_first() else { anyhow::bail!("systemctl without a verb is not played here") };
    let units: Vec<String> =
        units.iter().map(|unit| if unit.contains('.') { (*unit).to_owned() } else { format!("{unit}.service") }).collect();
    match verb {
        "daemon-reload" => load_all(place)?,
        "enable" | "disable" => {
            place.change("config.json", |config: &mut Config| {
                config.enabled.retain(|unit| !units.contains(unit));
                config.enabled.extend(units.iter().filter(|_| verb == "enable").cloned());
                Ok(())
            })?;
            if args.iter().any(|word| word == "--now") {
                units.iter().try_for_each(|unit| if verb == "enable" { start(place, unit) } else { stop(place, unit) })?;
            }
        }
        // Of a unit that runs it changes nothing.
        "reset-failed" => {
            for unit in &units {
                if !is_active(place, unit)? {
                    set(place, unit, |unit| unit.active = false)?;
                }
            }
        }
        // systemd 254 and later: into the next root, unless it is told not to.
        "reboot" => crate::machine::begin_reboot(place, std::env::var_os("SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT").is_none())?,
        "show" if args.iter().any(|word| word == "--property=SoftRebootsCount") => {
            println!("SoftRebootsCount={}", crate::soft_reboot::count(place)?);
        }
        // Asked of mount points only: the unit file of one, where there is one.
        "show" if args.iter().any(|word| word == "--property=FragmentPath") => {
            let point = args.last().context("show needs a unit")?;
            let file = format!("/etc/systemd/system/{}.mount", point.trim_matches('/').replace('-', "\\x2d").replace('/', "-"));
            println!("FragmentPath={}", if place.at(&file).exists() { &file } else { "" });
        }
        "show" => units.iter().try_for_each(|unit| show(place, unit))?,
        "is-active" => {
            let unit = units.first().context("is-active needs a unit")?;
            let active = is_active(place, unit)?;
            println!("{}", if active { "active" } else { "inactive" });
            return Ok(if active { ExitCode::SUCCESS } else { ExitCode::from(3) });
        }
        "start" | "stop" | "restart" => {
            for unit in &units {
                if !exists(place, unit) && verb != "stop" {
                    eprintln!("Failed to {verb} {unit}: Unit {unit} not found.");
                    return Ok(ExitCode::from(5));
                }
                if verb == "stop" && !exists(place, unit) && !is_active(place, unit)? {
                    eprintln!("Failed to stop {unit}: Unit {unit} not loaded.");
                    return Ok(ExitCode::from(5));
                }
                if verb != "start" {
                    stop(place, unit)?;
                }
                if verb != "stop" {
                    start(place, unit)?;
                }
            }
        }
        other => {
            eprintln!("Unknown command verb {other}.");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The files of a unit: its own, the drop-ins after it; of `/etc` before `/usr/lib`.
fn files(place: &Place, unit: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["/etc/systemd/system", "/usr/lib/systemd/system"] {
        let folder = place.at(folder);
        if files.is_empty() && folder.join(unit).exists() {
            files.push(folder.join(unit));
        }
    }
    for folder in ["/usr/lib/systemd/system", "/etc/systemd/system"] {
        let entries = std::fs::read_dir(place.at(folder).join(format!("{unit}.d")));
        let mut conf: Vec<_> = entries.into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
        conf.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
        conf.sort();
        files.extend(conf);
    }
    files
}

/// True when there is a file of the unit.
pub(crate) fn exists(place: &Place, unit: &str) -> bool {
    files(place, unit).iter().any(|path| path.file_name().is_some_and(|name| name == unit))
}

/// What a unit's files say now: every value of a setting.
fn values(place: &Place, unit: &str, setting: &str) -> Vec<String> {
    let texts = files(place, unit).into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let of = |text: String| text.lines().filter_map(|line| Some(line.strip_prefix(setting)?.trim().to_owned())).collect::<Vec<_>>();
    texts.flat_map(of).collect()
}

fn load(place: &Place, unit: &str, into: &mut Unit) {
    into.conditions = values(place, unit, "ConditionPathExists=");
    let wants = values(place, unit, "Wants=");
    into.wants = wants.iter().flat_map(|wants| wants.split_whitespace()).map(str::to_owned).collect();
}

/// Reads every unit that is in use again: at a boot, and for `daemon-reload`.
pub(crate) fn load_all(place: &Place) -> Result<()> {
    let enabled = place.config()?.enabled;
    place.change(UNITS, |units: &mut Units| {
        for unit in enabled {
            units.entry(unit).or_default();
        }
        for (name, unit) in units.iter_mut() {
            load(place, name, unit);
        }
        Ok(())
    })
}

/// Everything is off: before a boot.
pub(crate) fn forget(place: &Place) -> Result<()> {
    place.save(UNITS, &Units::new())
}

fn unit(place: &Place, name: &str) -> Result<Unit> {
    place.change(UNITS, |units: &mut Units| {
        if !units.contains_key(name) {
            let mut unit = Unit::default();
            load(place, name, &mut unit);
            units.insert(name.to_owned(), unit);
        }
        Ok(units[name].clone())
    })
}

fn set(place: &Place, name: &str, change: impl FnOnce(&mut Unit)) -> Result<()> {
    unit(place, name)?;
    place.change(UNITS, |units: &mut Units| {
        change(units.entry(name.to_owned()).or_default());
        Ok(())
    })
}

/// True while it is active: of a unit with a process, while that runs.
pub(crate) fn is_active(place: &Place, name: &str) -> Result<bool> {
    let unit = unit(place, name)?;
    Ok(unit.active && unit.process.is_none_or(Process::is_alive))
}

fn show(place: &Place, name: &str) -> Result<()> {
    let (load, active) = (if exists(place, name) { "loaded" } else { "not-found" }, is_active(place, name)?);
    let failed = !active && unit(place, name)?.active;
    let (active, sub) = match (active, failed) {
        (true, _) => ("active", "running"),
        (_, true) => ("failed", "failed"),
        _ => ("inactive", "dead"),
    };
    let Unit { condition_met, started, .. } = unit(place, name)?;
    let condition = if condition_met { "yes" } else { "no" };
    println!("LoadState={load}\nActiveState={active}\nSubState={sub}\nConditionResult={condition}");
    if name.ends_with(".service") {
        println!("ExecMainStartTimestampMonotonic={started}");
    }
    Ok(())
}

fn is_met(place: &Place, condition: &str) -> bool {
    let (negated, path) = condition.strip_prefix('!').map_or((false, condition), |path| (true, path));
    place.at(path).symlink_metadata().is_ok() != negated
}

/// Starts a unit. With a condition unmet this does nothing, and is no failure; what the unit wants is started all the same.
pub(crate) fn start(place: &Place, name: &str) -> Result<()> {
    let unit = unit(place, name)?;
    let config = place.config()?;
    for wanted in unit.wants.iter().filter(|wanted| exists(place, wanted)) {
        if wanted.as_str() != "recovery-resume.service" || config.resume_unit {
            start(place, wanted)?;
        }
    }
    if is_active(place, name)? {
        return Ok(());
    }
    let met = unit.conditions.iter().all(|condition| is_met(place, condition));
    set(place, name, |unit| unit.condition_met = met)?;
    if !met {
        return Ok(());
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let started = u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1000)?;
    let process = match name {
        "kubelet.service" => Some(daemon(place, Command::new(place.tools().join("kubelet")), "kubelet")?),
        "recovery-resume.service" => Some(resume(place, name)?),
        _ => None,
    };
    if name == config.runtime_unit {
        start_runtime(place)?;
    } else if name == "crio-wipe.service" {
        wipe(place)?;
    }
    set(place, name, |unit| (unit.active, unit.started, unit.process) = (true, started, process))
}

/// Runs what the resume unit runs, on this node. It is started once; whether it is to be started again is the unit's to say.
fn resume(place: &Place, name: &str) -> Result<Process> {
    let line = values(place, name, "ExecStart=").pop().context("the resume unit runs nothing")?;
    let mut words = line.split_whitespace();
    let mut agent = Command::new(place.at(words.next().context("the resume unit runs nothing")?));
    agent.arg("--root").arg(place.root()).arg("--tools").arg(place.tools()).args(words);
    daemon(place, agent, "resume.log")
}

/// Starts a process that belongs to nobody but the node.
pub(crate) fn daemon(place: &Place, mut command: Command, log: &str) -> Result<Process> {
    let log = log_file(&place.state(log))?;
    command.env(MARK, place.dir()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(place.dir()).process_group(0);
    let child = command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?;
    Ok(Process::of(i32::try_from(child.id())?))
}

pub(crate) fn log_file(path: &Path) -> Result<std::fs::File> {
    let open = std::fs::OpenOptions::new().create(true).append(true).open(path);
    open.with_context(|| format!("opening {}", path.display()))
}

/// Stops a unit. kubelet leaves its containers running, and so does the runtime.
pub(crate) fn stop(place: &Place, name: &str) -> Result<()> {
    let unit = unit(place, name)?;
    if let Some(process) = unit.process {
        process.stop(STOP_LIMIT);
    }
    let config = place.config()?;
    if name == config.runtime_unit {
        stop_listening(place)?;
        let marks = marks(place).filter(|_| unit.active && config.is_crio());
        if let Some((clean, _)) = marks {
            std::fs::create_dir_all(clean.parent().context("no parent")?)?;
            std::fs::write(clean, "")?;
        }
    }
    set(place, name, |unit| (unit.active, unit.process) = (false, None))
}

/// The runtime listens, as the kernel's lists have it. CRI-O takes its mark of an orderly stop away; containerd knows of none.
fn start_runtime(place: &Place) -> Result<()> {
    let config = place.config()?;
    listen(place, &config)?;
    if !config.is_crio() {
        return Ok(());
    }
    let Some((clean, supported)) = marks(place) else { return Ok(()) };
    std::fs::create_dir_all(supported.parent().context("no parent")?)?;
    std::fs::write(supported, "")?;
    if clean.exists() {
        std::fs::remove_file(&clean).context("removing the mark of an orderly stop")?;
    }
    Ok(())
}

/// CRI-O's mark of an orderly stop, and that it knows of it; none where it is configured to have none (`clean_shutdown_file = ""`).
fn marks(place: &Place) -> Option<(PathBuf, PathBuf)> {
    let folder = std::fs::read_dir(place.at("/etc/crio/crio.conf.d")).into_iter().flatten();
    let mut files: Vec<PathBuf> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files.insert(0, place.at("/etc/crio/crio.conf"));
    let said = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("clean_shutdown_file = ")?.trim_matches('"').to_owned()))
    };
    let clean = files.iter().filter_map(said).next_back().unwrap_or_else(|| CLEAN.to_owned());
    (!clean.is_empty()).then(|| (place.at(&clean), place.at(&format!("{clean}.supported"))))
}

/// The process of the runtime and its socket, in `/proc` (`proc_net_unix(5)`).
fn listen(place: &Place, config: &Config) -> Result<()> {
    stop_listening(place)?;
    let socket = &config.runtime_socket;
    let list = format!(
        "Num       RefCount Protocol Flags    Type St Inode Path\n\
         0000: 00000003 00000000 00000000 0001 03 31006 {socket}\n0000: 00000002 00000000 00010000 0001 01 31007 {socket}\n"
    );
    let [network, process] = [at_proc(place, "1/net"), at_proc(place, RUNTIME_PID)];
    std::fs::create_dir_all(&network)?;
    std::fs::create_dir_all(process.join("fd"))?;
    std::fs::write(process.join("cgroup"), format!("0::/system.slice/{}\n", config.runtime_unit))?;
    std::os::unix::fs::symlink("socket:[31007]", process.join("fd/9"))?;
    std::fs::write(network.join("unix"), list).context("listing the runtime's socket")
}

/// What [`listen`] made is gone.
fn stop_listening(place: &Place) -> Result<()> {
    for gone in ["1", RUNTIME_PID].map(|pid| at_proc(place, pid)).iter().filter(|path| path.exists()) {
        std::fs::remove_dir_all(gone).with_context(|| format!("removing {}", gone.display()))?;
    }
    Ok(())
}

fn at_proc(place: &Place, path: &str) -> PathBuf {
    place.dir().join("proc").join(path)
}

/// `crio-wipe.service`, which is started at a boot, before CRI-O: erases the store when CRI-O knows of its mark and left none.
fn wipe(place: &Place) -> Result<()> {
    if marks(place).is_none_or(|(clean, supported)| clean.exists() || !supported.exists()) {
        return Ok(());
    }
    place.change(STORE, |runtime: &mut Runtime| {
        crate::runtime::stop_all(&crate::crictl::processes(runtime), Duration::ZERO);
        *runtime = Runtime::default();
        Ok(())
    })
}
