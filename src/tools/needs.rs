//! What a recovery will need of the node: units, programs, directories. Looked at before the first change, and by every backup.

use std::path::Path;

use anyhow::{Context, Result};

use super::{ostree, runtime, systemctl};
use crate::error::{Failure, FailureKind, Next, by_hand, kind, next, run, said};
use crate::node::Node;
use crate::node::profile::Profile;

/// kubelet, on every kind of node.
pub const KUBELET_UNIT: &str = "kubelet.service";
/// Where `/etc` has unit files.
const UNITS: &str = "etc/systemd/system";
/// Where unit files are that no restore touches.
const UNITS_ELSEWHERE: [&str; 3] = ["/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system"];

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The unit of the container runtime; `None` when there is none.
    pub runtime: Option<String>,
    /// What is missing, and what to do about it.
    pub missing: Vec<Failure>,
}

/// What a backup's `/etc` holds under the name of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InEtc {
    /// Nothing.
    Nothing,
    /// The unit, which comes back with it.
    Unit,
    /// A link to `/dev/null`, which masks it (`systemd.unit(5)`).
    Mask,
}

impl InEtc {
    /// By where the link of this name points, and whether there is anything.
    #[must_use]
    pub fn of(link: Option<&Path>, is_there: bool) -> Self {
        match (link == Some(Path::new("/dev/null")), is_there) {
            (true, _) => Self::Mask,
            (false, true) => Self::Unit,
            (false, false) => Self::Nothing,
        }
    }
}

/// Looks at everything. `recorded` is the runtime's unit as the backup has it; `programs` are needed beyond what every recovery needs;
/// `in_etc` says what the backup's `/etc` brings for a unit.
///
/// # Errors
/// When systemd does not answer, or there is no `systemctl`.
pub fn look(node: &Node, profile: &Profile, recorded: Option<&str>, programs: &[&str], in_etc: &dyn Fn(&str) -> InEtc) -> Result<Found> {
    let mut missing = Vec::new();
    let always = ["systemctl", "crictl"].into_iter().chain(ostree::is_ostree(node).then_some("ostree")).chain(programs.iter().copied());
    for program in always.filter(|program| !node.has_program(program)) {
        missing.push(lack(format!("`{program}` is missing on this node"), by_hand("install it, or put it into the PATH")));
    }
    let lasts = |unit: &str| lasts(node, unit, in_etc(unit));
    if let Some(why) = lasts(KUBELET_UNIT)? {
        missing.push(why);
    }
    let runtime = match runtime::unit(node, profile, recorded, &|unit| Ok(lasts(unit)?.is_none())) {
        Ok(unit) => {
            missing.extend(lasts(&unit)?);
            Some(unit)
        }
        Err(error) if kind(&error) == FailureKind::Misfit => {
            missing.push(Failure { kind: FailureKind::Misfit, message: said(&error), next: next(&error).cloned() });
            None
        }
        Err(error) => return Err(error),
    };
    let data = Path::new(profile.etcd_data).parent().unwrap_or(Path::new("/"));
    for folder in [Path::new("/etc"), Path::new("/usr/local"), Path::new("/var/lib/kubelet"), Path::new(profile.kubernetes), data] {
        missing.extend(unusable(node, folder)?);
    }
    Ok(Found { runtime, missing })
}

/// What is wrong with a unit that has to be there when `/etc` is restored; `None` when it will be.
fn lasts(node: &Node, unit: &str, in_etc: InEtc) -> Result<Option<Failure>> {
    match in_etc {
        InEtc::Nothing => {}
        InEtc::Unit => return Ok(None),
        InEtc::Mask => {
            let way = by_hand(format!("a backup taken after `systemctl unmask {unit}`"));
            return Ok(Some(lack(format!("the unit {unit} is masked in the backup's /etc"), way)));
        }
    }
    let now = systemctl::show(node, unit)?;
    let status = || run(format!("systemctl status {unit}"), "shows it");
    Ok(match now.load.as_str() {
        "loaded" => {
            let only_in_etc = node.exists(Path::new("/").join(UNITS).join(unit))
                && !UNITS_ELSEWHERE.iter().any(|folder| node.exists(Path::new(folder).join(unit)));
            only_in_etc.then(|| {
                lack(
                    format!("the unit file of {unit} is in /etc and not in the backup, whose /etc takes its place: it would be gone"),
                    status(),
                )
            })
        }
        "not-found" => {
            Some(lack(format!("there is no unit {unit} on this node"), run("systemctl list-unit-files", "shows those that there are")))
        }
        "masked" => Some(lack(format!("the unit {unit} is masked"), run(format!("systemctl unmask {unit}"), ""))),
        load => Some(lack(format!("systemd cannot load the unit {unit} ({load})"), status())),
    })
}

/// What is wrong with a directory that is written to; one that is not there is made.
fn unusable(node: &Node, shown: &Path) -> Result<Option<Failure>> {
    let path = node.real_path(shown);
    let nearest = path.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    let at = node.shown(nearest);
    if !nearest.is_dir() {
        let way = by_hand(format!("move it away (`ls -ld {}` shows it)", at.display()));
        return Ok(Some(lack(format!("{} is no directory", at.display()), way)));
    }
    let flags = rustix::fs::statvfs(nearest).with_context(|| format!("looking at the file system of {}", at.display()))?.f_flag;
    Ok(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY).then(|| {
        lack(
            format!("{} is on a file system that is mounted read-only", at.display()),
            run(format!("findmnt --target {}", at.display()), "shows it"),
        )
    }))
}

fn lack(message: String, next: Next) -> Failure {
    Failure { kind: FailureKind::Misfit, message, next: Some(next) }
}

/// The path of a unit's file in an archive of `/etc`.
#[must_use]
pub fn in_etc(unit: &str) -> String {
    format!("systemd/system/{unit}")
}
