//! `ostree` and `rpm-ostree` as the booted system has them: the real libostree, in a mount namespace of its own whose root is the booted
//! deployment. There it sees itself booted, so that `pin`, `undeploy`, staging and the marks are real.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{machine, soft_reboot};
use testing::place::{MARK, Place, Process};

/// What rpm-ostree does that matters here, over libostree's own bindings: Debian has no rpm-ostree.
const RPM_OSTREE: &str = include_str!("rpm-ostree.py");

/// Debian's `ostree`, from inside, and what a later one does about soft reboots.
pub(crate) fn ostree(place: &Place, args: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match &words[..] {
        ["admin", "prepare-soft-reboot", ..] => return soft_reboot::prepare(place, &args[2..]),
        ["admin", "status"] => {
            if let Some(prepared) = soft_reboot::prepared(place)? {
                return soft_reboot::marked_status(place, &prepared);
            }
        }
        _ => {}
    }
    run_inside(place, Command::new("/usr/bin/ostree").args(args))
}

/// What rpm-ostree's daemon is doing: one thing at a time, to its end, whatever becomes of the client that asked for it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Transaction {
    /// As `status --json` names it.
    name: String,
    /// As a refusal names it.
    title: String,
    process: Process,
}

const TRANSACTION: &str = "transaction.json";

/// The stand-in for rpm-ostree, from inside. The reboot of `rollback -r` is the machine's.
pub(crate) fn rpm_ostree(place: &Place, args: &[String]) -> Result<ExitCode> {
    let verb = args.first().map_or("", String::as_str);
    if !["rollback", "cleanup", "rebase"].contains(&verb) {
        let now: Transaction = place.load(TRANSACTION)?;
        let words = json!([now.name, ":1.36", "/org/projectatomic/rpmostree1/rhcos"]);
        let words = if now.process.is_alive() { words } else { Value::Null };
        return run_inside(place, python(args).env("RPM_OSTREE_TRANSACTION", words.to_string()));
    }
    let reboots = |word: &String| word == "-r" || word == "--reboot";
    let (rest, reboot): (Vec<String>, bool) = match verb {
        "rollback" => (args.iter().filter(|word| !reboots(word)).cloned().collect(), args.iter().any(reboots)),
        _ => (args.to_vec(), false),
    };
    let code = transact(place, verb, &rest)?;
    if reboot && code == ExitCode::SUCCESS {
        machine::begin_reboot(place, true)?;
    }
    Ok(code)
}

/// Has the daemon do it, waits for its end, and says what it said; refused at once while it does something else.
fn transact(place: &Place, verb: &str, args: &[String]) -> Result<ExitCode> {
    let said = ["out", "err"].map(|stream| place.state(&format!("rpm-ostreed.{}.{stream}", std::process::id())));
    let begun = place.change(TRANSACTION, |now: &mut Transaction| {
        if now.process.is_alive() {
            return Ok(Err(now.title.clone()));
        }
        let [out, err] = [File::create(&said[0])?, File::create(&said[1])?];
        let mut daemon = Command::new(place.tools().join("rpm-ostreed"));
        daemon.args(args).env(MARK, place.dir()).stdin(Stdio::null()).stdout(out).stderr(err).current_dir(place.dir()).process_group(0);
        let child = daemon.spawn().context("starting rpm-ostree's daemon")?;
        let mut name = verb.to_owned();
        name[..1].make_ascii_uppercase();
        let title = if verb == "rebase" { format!("rebase :{} ", args[1..].join(" ")) } else { verb.to_owned() };
        *now = Transaction { name, title, process: Process::of(i32::try_from(child.id())?) };
        Ok(Ok(child))
    })?;
    let mut child = match begun {
        Ok(child) => child,
        Err(title) => {
            // As 2025.1 says it, which is another way for each verb.
            let quark = "cleanup: Invoking cleanup: GDBus.Error:org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code26: ";
            let before = if verb == "cleanup" { quark } else { "" };
            eprintln!("error: {before}Transaction in progress: {title}\n You can cancel the current transaction with `rpm-ostree cancel`");
            return Ok(ExitCode::FAILURE);
        }
    };
    let status = child.wait().context("waiting for rpm-ostree's daemon")?;
    let [out, err] = said.map(|file| std::fs::read_to_string(&file).and_then(|text| std::fs::remove_file(&file).map(|()| text)));
    print!("{}", out?);
    eprint!("{}", err?);
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(137)).unwrap_or(1)))
}

/// The daemon, for one transaction.
pub(crate) fn rpm_ostreed(place: &Place, args: &[String]) -> Result<ExitCode> {
    run_inside(place, &python(args))
}

fn python(args: &[String]) -> Command {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", RPM_OSTREE]).args(args);
    python
}

/// Runs a program of this machine as if it were one of the node's. It gets a PID namespace too, where it is process 1: ostree compares
/// its mounts with those of process 1 to learn whether it must make a mount namespace before it writes.
pub(crate) fn run_inside(place: &Place, command: &Command) -> Result<ExitCode> {
    let status = inside_command(place, command).status().context("running unshare")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(137)).unwrap_or(1)))
}

/// As [`run_inside`], ready to be run.
pub(crate) fn inside_command(place: &Place, command: &Command) -> Command {
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--pid", "--fork", "--kill-child", "--"])
        .arg(place.tools().join("inside"))
        .arg(command.get_program())
        .args(command.get_args())
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare
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
