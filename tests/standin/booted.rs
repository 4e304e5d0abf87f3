//! `ostree` and `rpm-ostree` as the booted system has them: the real libostree, in a mount namespace of its own whose root is the booted
//! deployment. There it sees itself booted, so that `pin`, `undeploy`, staging and the marks are real.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use crate::machine;
use crate::place::Place;

/// What rpm-ostree does that matters here, over libostree's own bindings: Debian has no rpm-ostree.
const RPM_OSTREE: &str = include_str!("rpm-ostree.py");

/// Debian's `ostree`, from inside.
pub(crate) fn ostree(place: &Place, args: &[String]) -> Result<ExitCode> {
    run_inside(place, Command::new("/usr/bin/ostree").args(args))
}

/// The stand-in for rpm-ostree, from inside. The reboot of `rollback -r` is the machine's.
pub(crate) fn rpm_ostree(place: &Place, args: &[String]) -> Result<ExitCode> {
    let reboots = |word: &String| word == "-r" || word == "--reboot";
    let is_rollback = args.first().is_some_and(|verb| verb == "rollback");
    let rest = args.iter().filter(|word| !is_rollback || !reboots(word));
    let code = run_inside(place, Command::new("/usr/bin/python3").args(["-c", RPM_OSTREE]).args(rest))?;
    if is_rollback && args.iter().any(reboots) && code == ExitCode::SUCCESS {
        machine::begin_reboot(place)?;
    }
    Ok(code)
}

/// Runs a program of this machine as if it were one of the node's. It gets a PID namespace too, where it is process 1: ostree compares
/// its mounts with those of process 1 to learn whether it must make a mount namespace before it writes.
pub(crate) fn run_inside(place: &Place, command: &Command) -> Result<ExitCode> {
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .arg(place.tools().join("inside"))
        .arg(command.get_program())
        .args(command.get_args())
        .status()
        .context("running unshare")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(137)).unwrap_or(1)))
}

/// The other half, in the new namespaces: mounts the deployment as the root and becomes the program.
pub(crate) fn inside(place: &Place, args: &[String]) -> Result<ExitCode> {
    let (program, args) = args.split_first().context("nothing to run")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making the mounts private")?;
    let (root, sysroot) = (place.dir().join("inside"), place.sysroot());
    std::fs::create_dir_all(&root)?;
    let deployment = machine::booted(place)?;
    let bind = |source: &Path, target: &str| {
        mount_bind(source, root.join(target)).with_context(|| format!("mounting {} inside", source.display()))
    };
    bind(&deployment, "")?;
    bind(&sysroot, "sysroot")?;
    bind(&sysroot.join("boot"), "boot")?;
    bind(&machine::var_of(&deployment)?, "var")?;
    bind(&place.dir().join("run"), "run")?;
    bind(Path::new("/dev"), "dev")?;
    // The programs and their libraries are this machine's.
    bind(Path::new("/usr"), "usr")?;
    mount("proc", root.join("proc"), "proc", MountFlags::empty(), None).context("mounting /proc inside")?;
    rustix::process::chroot(&root).context("changing the root")?;
    std::env::set_current_dir("/")?;
    Err(Command::new(program).args(args).exec()).with_context(|| format!("running {program}"))
}
