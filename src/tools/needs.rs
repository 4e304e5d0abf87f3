//! What a recovery will need of the node: units, programs, directories. It is checked before the first change, and by every backup.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::runtime::{self, Unfit};
use super::{ostree, systemctl};
use crate::error::{self, Failure, FailureKind, Next, by_hand, run};
use crate::node::Node;
use crate::node::profile::Profile;

/// kubelet, on every kind of node.
pub const KUBELET_UNIT: &str = "kubelet.service";
/// The folder of unit files below `/etc`.
pub const UNITS_IN_ETC: &str = "systemd/system";
/// The folder of unit files in a release.
const RELEASES_UNITS: &str = "usr/lib/systemd/system";
/// The folders of unit files that no restore touches.
const UNITS_ELSEWHERE: [&str; 3] = ["/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system"];

/// What will be restored, as far as it matters here.
pub struct Need<'a> {
    /// The runtime's unit that the backup records.
    pub recorded: Option<&'a str>,
    /// Programs that this recovery needs beyond those that every recovery needs.
    pub programs: &'a [&'a str],
    /// The root of the deployment that will be booted, when it is not the booted one.
    pub deployment: Option<&'a Path>,
    /// What the backup's `/etc` has under the name of a unit.
    pub in_etc: &'a dyn Fn(&str) -> UnitFile,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The unit of the container runtime; `None` when there is none.
    pub runtime: Option<String>,
    /// What is missing, and what to do about it; each is of kind [`FailureKind::Misfit`].
    pub missing: Vec<Failure>,
}

/// What a folder of unit files holds under the name of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitFile {
    /// Nothing.
    Nothing,
    /// The unit.
    Unit,
    /// A link to `/dev/null`, which masks it (`systemd.unit(5)`).
    Mask,
}

impl UnitFile {
    /// What a name holds, from the target of its link if it is one, and whether anything is there.
    #[must_use]
    pub fn of(link: Option<&Path>, is_there: bool) -> Self {
        match (link == Some(Path::new("/dev/null")), is_there) {
            (true, _) => Self::Mask,
            (false, true) => Self::Unit,
            (false, false) => Self::Nothing,
        }
    }

    /// What this folder of the node has under the name of `unit`.
    #[must_use]
    pub fn in_folder(node: &Node, folder: &Path, unit: &str) -> Self {
        let path = node.path(folder.join(unit));
        Self::of(std::fs::read_link(&path).ok().as_deref(), path.symlink_metadata().is_ok())
    }
}

/// Looks at everything.
///
/// # Errors
/// When systemd does not answer, or there is no `systemctl`.
pub fn look(node: &Node, profile: &Profile, need: &Need<'_>) -> Result<Found> {
    let always = ["systemctl", "crictl"].into_iter().chain(ostree::is_ostree(node).then_some("ostree"));
    let mut missing: Vec<Failure> =
        always.chain(need.programs.iter().copied()).filter_map(|program| missing_program(node, program)).collect();
    missing.extend(lasts(node, need, KUBELET_UNIT)?.map(Failure::from));
    let runtime = match runtime::unit(node, profile, need.recorded, &|unit| lasts(node, need, unit)) {
        Ok(unit) => Some(unit),
        Err(error) if error::kind(&error) == FailureKind::Misfit => {
            missing.push(lack(error::said(&error), error::next(&error).cloned()));
            None
        }
        Err(error) => return Err(error),
    };
    for folder in ["/etc", "/usr/local", "/var/lib/kubelet", profile.kubernetes, profile.etcd_data].map(Path::new) {
        missing.extend(no_directory(node, folder));
        missing.extend(read_only(node, folder)?);
    }
    missing.dedup();
    Ok(Found { runtime, missing })
}

/// A failure that says that a program is missing, and what to do about it.
#[must_use]
pub fn missing_program(node: &Node, program: &str) -> Option<Failure> {
    let next = || by_hand(format!("install `{program}`, or put it into the PATH"));
    (!node.has_program(program)).then(|| lack(format!("`{program}` is missing on this node"), Some(next())))
}

/// Something that a recovery needs, and that this node does not have.
fn lack(what: String, next: Option<Next>) -> Failure {
    Failure { kind: FailureKind::Misfit, message: what, next }
}

/// What is wrong with a unit that must be there once `/etc` is restored and the node has rebooted; `None` when it will be there.
fn lasts(node: &Node, need: &Need<'_>, unit: &str) -> Result<Option<Unfit>> {
    match (need.in_etc)(unit) {
        UnitFile::Nothing => {}
        UnitFile::Unit => return Ok(None),
        UnitFile::Mask => {
            return Ok(Some(Unfit {
                what: format!("the unit {unit} is masked in the backup's /etc"),
                next: by_hand(format!("a backup taken after `systemctl unmask {unit}`")),
                absent: false,
            }));
        }
    }
    if let Some(deployment) = need.deployment {
        return Ok(in_deployment(node, deployment, unit));
    }
    // The restore removes what is in /etc under this name, and the reboot the mask in /run; then the unit file that they hide counts.
    let in_etc = UnitFile::in_folder(node, &Path::new("/etc").join(UNITS_IN_ETC), unit);
    let masked_until_then = UnitFile::in_folder(node, Path::new("/run/systemd/system"), unit) == UnitFile::Mask;
    if in_etc == UnitFile::Nothing && !masked_until_then {
        return unloadable(node, unit);
    }
    let elsewhere = UNITS_ELSEWHERE.map(|folder| UnitFile::in_folder(node, Path::new(folder), unit));
    if elsewhere.contains(&UnitFile::Unit) {
        return Ok(None);
    }
    Ok(Some(if in_etc == UnitFile::Unit {
        Unfit {
            what: format!("the unit file of {unit} is in /etc but not in the backup: restoring the backup's /etc would remove it"),
            next: run(format!("systemctl status {unit}"), "shows it"),
            absent: false,
        }
    } else {
        not_there(unit)
    }))
}

/// What is wrong with a unit in a deployment that is not booted. `None` also where the files of the deployment are not on this node.
fn in_deployment(node: &Node, deployment: &Path, unit: &str) -> Option<Unfit> {
    let folder = deployment.join(RELEASES_UNITS);
    if !node.real_path(&folder).is_dir() {
        return None;
    }
    let (what, absent) = match UnitFile::in_folder(node, &folder, unit) {
        UnitFile::Unit => return None,
        UnitFile::Mask => (format!("the unit {unit} is masked in the backup's deployment"), false),
        UnitFile::Nothing => (format!("there is no unit {unit} in the backup's deployment or its /etc"), true),
    };
    Some(Unfit { what, next: run(format!("ls -l {}", folder.display()), "shows which units there are"), absent })
}

/// What is wrong with a unit as systemd has it now; `None` when it can be started.
///
/// # Errors
/// When systemd does not answer.
pub fn unloadable(node: &Node, unit: &str) -> Result<Option<Unfit>> {
    Ok(match systemctl::show(node, unit)?.load.as_str() {
        "loaded" => None,
        "not-found" => Some(not_there(unit)),
        "masked" => {
            Some(Unfit { what: format!("the unit {unit} is masked"), next: run(format!("systemctl unmask {unit}"), ""), absent: false })
        }
        load => Some(Unfit {
            what: format!("systemd cannot load the unit {unit} ({load})"),
            next: run(format!("systemctl status {unit}"), "shows it"),
            absent: false,
        }),
    })
}

fn not_there(unit: &str) -> Unfit {
    Unfit {
        what: format!("there is no unit {unit} on this node"),
        next: run("systemctl list-unit-files", "shows which units there are"),
        absent: true,
    }
}

/// What is at the node's path `shown`, or the nearest directory above it that exists.
fn nearest(node: &Node, shown: &Path) -> PathBuf {
    let path = node.real_path(shown);
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// A failure when something other than a directory is at the path; a directory that does not exist will be made.
fn no_directory(node: &Node, shown: &Path) -> Option<Failure> {
    let nearest = nearest(node, shown);
    (!nearest.is_dir()).then(|| {
        let at = node.shown(&nearest);
        let next = by_hand(format!("move {} away (`ls -ld {0}` shows it)", at.display()));
        lack(format!("{} is not a directory", at.display()), Some(next))
    })
}

/// A failure when nothing can be written to the directory, because its file system is mounted read-only.
///
/// # Errors
/// When its file system cannot be looked at.
pub fn read_only(node: &Node, shown: &Path) -> Result<Option<Failure>> {
    let nearest = nearest(node, shown);
    let at = node.shown(&nearest);
    let flags = rustix::fs::statvfs(&nearest).with_context(|| format!("looking at the file system of {}", at.display()))?.f_flag;
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY).then(|| {
        let next = run(format!("findmnt --target {}", at.display()), "shows it");
        lack(format!("{} is on a file system that is mounted read-only", at.display()), Some(next))
    }))
}
