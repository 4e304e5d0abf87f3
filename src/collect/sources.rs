//! What is looked at. Nothing here has the purpose to hold secrets: no key, no kubeconfig, no Secret, no content of a backup or of etcd.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use walkdir::WalkDir;

use super::bundle::{Bundle, READ};
use crate::backup::layout::{LOG, MANIFEST, SUMS};
use crate::backup::take::partial::JOURNAL;
use crate::error::FailureKind;
use crate::error::kind;
use crate::node::hold::{DROP_IN, HOLD, KEEP_IMAGES, RESUME, RESUME_UNIT, WIPE_DROP_IN};
use crate::node::profile::Profile;
use crate::node::{Node, timer};
use crate::report::paths;
use crate::session::Session;
use crate::tools::needs::KUBELET_UNIT;
use crate::tools::runtime;

/// The time limit of a program. Each is one that only looks.
const LIMIT: Duration = Duration::from_secs(20);
/// The same for the journal: a slow disk may have months of it.
const LOG_LIMIT: Duration = Duration::from_secs(60);
/// The most lines of a log.
const LINES: &str = "--lines=20000";
/// The most names in the list of a directory.
const NAMES: usize = 5000;

/// What takes the scheduled backups.
const SCHEDULE_SERVICE: &str = "recovery-schedule.service";

/// Files of the node that say what it is and how it boots.
const FILES: [&str; 6] =
    ["/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/uptime", "/proc/meminfo", "/proc/sys/kernel/random/boot_id"];

/// Programs that every node has, or none that can be missed: the entry, the program, its arguments.
const PROGRAMS: [(&str, &str, &[&str]); 8] = [
    ("versions/kubelet.txt", "kubelet", &["--version"]),
    ("versions/systemd.txt", "systemctl", &["--version"]),
    ("disk/df.txt", "df", &["-hT"]),
    ("disk/df-inodes.txt", "df", &["-i"]),
    ("disk/lsblk.txt", "lsblk", &["-o", "NAME,SIZE,TYPE,FSTYPE,LABEL,PARTLABEL,MOUNTPOINT"]),
    ("disk/findmnt.txt", "findmnt", &[]),
    ("units/failed.txt", "systemctl", &["list-units", "--failed", "--all", "--no-pager", "--plain"]),
    ("units/timers.txt", "systemctl", &["list-timers", "--all", "--no-pager"]),
];

/// The same of those that only some kinds of node have.
const OF_SOME: [(&str, &str, &[&str]); 4] = [
    ("versions/crio.txt", "crio", &["--version"]),
    ("versions/containerd.txt", "containerd", &["--version"]),
    ("deployments/ostree.txt", "ostree", &["admin", "status"]),
    ("deployments/rpm-ostree.json", "rpm-ostree", &["status", "--json"]),
];

/// What of a unit is shown. Not its command line or environment, which may have secrets.
const SHOWN: &str = "--property=Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,NRestarts,StatusText,ConditionResult,\
                     ActiveEnterTimestamp,InactiveEnterTimestamp,FragmentPath,DropInPaths";

/// Adds all of it.
pub(super) fn add(bundle: &mut Bundle, session: &Session<'_>, hours: u32) -> Result<()> {
    let node = session.node;
    let profile = match Profile::of(node) {
        Ok(profile) => Some(profile),
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        Err(error) => {
            bundle.lacks("node", &format!("{error:#}"));
            None
        }
    };
    recovery_files(bundle, session)?;
    for path in FILES {
        // Some are links.
        let real = node.real_path(path);
        file(bundle, &format!("node{path}"), &real.canonicalize().unwrap_or(real))?;
    }
    for entry in names_in(&node.real_path("/boot/loader/entries")) {
        file(bundle, &format!("node/boot/loader/entries/{}", safe(&entry)), &entry)?;
    }
    for path in [DROP_IN, WIPE_DROP_IN, RESUME_UNIT].map(|path| format!("/etc/{path}")) {
        optional(bundle, &format!("node{path}"), &node.real_path(&path))?;
    }
    if let Some(profile) = profile {
        directory(bundle, node, "control-plane/etcd-data.txt", profile.etcd_data)?;
        directory(bundle, node, "control-plane/manifests.txt", profile.manifests)?;
    }
    programs(bundle, session, profile, hours)
}

fn programs(bundle: &mut Bundle, session: &Session<'_>, profile: Option<&Profile>, hours: u32) -> Result<()> {
    let (node, progress) = (session.node, session.progress);
    progress.say("collecting what the node's programs say");
    for (name, program, args) in PROGRAMS {
        bundle.add(name, || said(node, program, args, LIMIT))?;
    }
    for (name, program, args) in OF_SOME.into_iter().filter(|(_, program, _)| node.has_program(program)) {
        bundle.add(name, || said(node, program, args, LIMIT))?;
    }
    let flags = runtime::crictl_flags(node);
    for (name, verb) in [("version.txt", &["version"][..]), ("ps.txt", &["ps", "-a"]), ("pods.txt", &["pods"]), ("images.txt", &["images"])]
    {
        let args: Vec<&str> = flags.iter().map(String::as_str).chain(verb.iter().copied()).collect();
        bundle.add(&format!("containers/{name}"), || said(node, "crictl", &args, LIMIT))?;
    }
    let running =
        profile.map(|profile| runtime::running(node, profile, &[]).ok().flatten().unwrap_or_else(|| profile.runtime_unit.to_owned()));
    let units: Vec<&str> = [RESUME, SCHEDULE_SERVICE, timer::TIMER, KUBELET_UNIT].into_iter().chain(running.as_deref()).collect();
    bundle.add("units/units.txt", || said(node, "systemctl", &[&["show", SHOWN, "--no-pager"], &units[..]].concat(), LIMIT))?;

    progress.say(&format!("collecting the logs of {hours} hours"));
    let since = format!("--since=-{hours}h");
    let log =
        |of: &[&str]| said(node, "journalctl", &[&["--no-pager", "--output=short-iso-precise", LINES, &since], of].concat(), LOG_LIMIT);
    bundle.add("logs/recovery.txt", || log(&["--identifier=recovery"]))?;
    for unit in units.into_iter().filter(|unit| *unit != timer::TIMER) {
        bundle.add(&format!("logs/{unit}.txt"), || log(&["--unit", unit]))?;
    }
    bundle.add("logs/kernel-warnings.txt", || log(&["--priority=warning", "_TRANSPORT=kernel"]))
}

/// What the agent has written: the open recovery, the history, the backups' manifests and logs, schedules and holds.
fn recovery_files(bundle: &mut Bundle, session: &Session<'_>) -> Result<()> {
    let Session { node, dir, progress, .. } = *session;
    progress.say(&format!("collecting the agent's own files in {}", dir.shown().display()));
    directory_at(bundle, "recovery/files.txt", dir.path(), &dir.shown().display().to_string())?;
    let pins = dir.path().join("pins.json");
    for path in [dir.journal(), dir.undo(), pins] {
        optional(bundle, &format!("recovery/{}", safe(&path)), &path)?;
    }
    for path in names_in(&dir.history()) {
        file(bundle, &format!("recovery/history/{}", safe(&path)), &path)?;
    }
    for backup in names_in(&dir.backups()) {
        for name in [MANIFEST, LOG, SUMS, JOURNAL] {
            optional(bundle, &format!("recovery/backups/{}/{name}", safe(&backup)), &backup.join(name))?;
        }
    }
    for path in [HOLD, KEEP_IMAGES] {
        optional(bundle, &format!("node{path}"), &node.real_path(path))?;
    }
    for path in names_in(&node.real_path(timer::SCHEDULES)) {
        file(bundle, &format!("recovery/schedules/{}", safe(&path)), &path)?;
    }
    Ok(())
}

/// What a program prints, its standard error after its output. That it fails is an error only where it has printed nothing.
fn said(node: &Node, program: &str, args: &[&str], limit: Duration) -> Result<Vec<u8>> {
    let output = node.command(program)?.args(args).limit(limit).last(READ).output()?;
    if !output.status.success() && output.stdout.is_empty() {
        return Err(output.error());
    }
    Ok([output.stdout, output.stderr].concat())
}

/// A file, or its end. Nothing is waited for, such as the writer of a FIFO, and no link is followed out of where it lies.
fn file(bundle: &mut Bundle, name: &str, path: &Path) -> Result<()> {
    bundle.add(name, || {
        use std::io::{Read, Seek, SeekFrom};
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).with_context(|| format!("opening {}", path.display()))?;
        let mut opened = std::fs::File::from(opened);
        let meta = opened.metadata()?;
        if !meta.is_file() {
            return Err(anyhow!("it is not a regular file"));
        }
        if meta.len() > READ as u64 {
            opened.seek(SeekFrom::Start(meta.len() - READ as u64))?;
        }
        let mut bytes = Vec::new();
        opened.take(READ as u64).read_to_end(&mut bytes).with_context(|| format!("reading {}", path.display()))?;
        Ok(bytes)
    })
}

/// The same of one that need not be there.
fn optional(bundle: &mut Bundle, name: &str, path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() { file(bundle, name, path) } else { Ok(()) }
}

/// What lies in a directory, in order of the names; of one that is missing, nothing.
fn names_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The last name of a path as a name in the archive: anybody who can make a file may choose it.
fn safe(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '_' }).take(200).collect();
    if name.trim_matches('.').is_empty() { "_".to_owned() } else { name }
}

fn directory(bundle: &mut Bundle, node: &Node, name: &str, shown: &str) -> Result<()> {
    directory_at(bundle, name, &node.real_path(shown), shown)
}

/// Names, kinds, modes, owners, sizes and times of what is in a directory, three levels of it, on its own file system.
fn directory_at(bundle: &mut Bundle, name: &str, path: &Path, shown: &str) -> Result<()> {
    bundle.add(name, || {
        let mut text = format!("{shown}\n");
        let walk = WalkDir::new(path).min_depth(1).max_depth(3).same_file_system(true).sort_by_file_name();
        for (count, entry) in walk.into_iter().enumerate() {
            if count == NAMES {
                writeln!(text, "and more")?;
                break;
            }
            let described = entry.and_then(|entry| {
                let meta = entry.metadata()?;
                let kind = if meta.is_dir() {
                    'd'
                } else if meta.is_symlink() {
                    'l'
                } else {
                    '-'
                };
                let below = entry.path().strip_prefix(path).unwrap_or(entry.path());
                let time = jiff::Timestamp::from_second(meta.mtime()).map_or_else(|_| "-".to_owned(), |time| time.to_string());
                Ok(format!("{kind} {:04o} {:>5} {:>14} {time} {}", meta.mode() & 0o7777, meta.uid(), meta.size(), paths::shown(below)))
            });
            match described {
                Ok(line) => writeln!(text, "{line}")?,
                // It may have been removed meanwhile.
                Err(error) if count > 0 => writeln!(text, "{error}")?,
                Err(error) => return Err(anyhow!(error)),
            }
        }
        Ok(text.into_bytes())
    })
}
