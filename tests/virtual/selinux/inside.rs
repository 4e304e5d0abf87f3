//! What is done in the virtual machine: entries of the test program, which `selinux.rs` starts there, as an administrator who has logged in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use real_node::command::{Done, Limit, checked, run};
use recovery::node::Node;
use recovery::node::dir::RecoveryDir;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::{AGENT as AGENT_THERE, HERE, PERMISSIVE};
use crate::injector::{self, Ended, Fault};
use crate::small_node::{Place, TOOL, authority};

const AGENT: &str = "/host/recovery";
const ENFORCE: &str = "/sys/fs/selinux/enforce";
const UNIT: &str = "recovery-resume.service";
/// For one command, and for what the unit does, where the processor is emulated.
const SOON: Limit = Limit::of(600);

/// What the backup holds, with its type. The running policy does not know the last two.
const FILES: [(&str, &str); 5] = [
    ("/etc/site/plain", "etc_t"),
    ("/etc/site/secret", "shadow_t"),
    ("/usr/local/bin/tool", "bin_t"),
    ("/etc/site/settings", "of_the_next_release_t"),
    ("/usr/local/bin/newer", "of_the_next_release_exec_t"),
];

fn is_enforcing() -> Result<bool> {
    Ok(fs::read_to_string(ENFORCE)? == "1")
}

/// As an administrator does for a moment: only then does the kernel show and take labels that its policy does not know.
fn permissive<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = fs::read(ENFORCE)?;
    fs::write(ENFORCE, "0")?;
    let result = work();
    fs::write(ENFORCE, before)?;
    result
}

fn label(path: &Path) -> Result<String> {
    let mut value = vec![0; 256];
    let length = lgetxattr(path, "security.selinux", &mut value).with_context(|| format!("the label of {}", path.display()))?;
    Ok(String::from_utf8(value[..length].to_vec())?)
}

fn labelled(kind: &str) -> String {
    format!("system_u:object_r:{kind}:s0\0")
}

fn set_label(path: &Path, kind: &str) -> Result<()> {
    lsetxattr(path, "security.selinux", labelled(kind).as_bytes(), XattrFlags::empty())
        .with_context(|| format!("labelling {}", path.display()))
}

/// All files are as they were when they were backed up, with their labels as they are on the disk.
fn are_restored(place: &Place) -> Result<()> {
    permissive(|| {
        for (path, kind) in FILES {
            ensure!(place.read(path) == "before", "{path} is `{}`", place.read(path));
            let found = label(&place.at(path))?;
            ensure!(found == labelled(kind), "{path} has the label {found}");
        }
        Ok(())
    })
}

/// Backs up the files with their labels, by a policy that knows them, and changes them.
fn back_up(place: &Place, id: &str, sequence: u64) -> Result<()> {
    permissive(|| {
        for (path, kind) in FILES {
            place.put(path, "before");
            set_label(&place.at(path), kind)?;
        }
        place.back_up(id, sequence);
        Ok(())
    })?;
    change(place)
}

/// Other content, and the labels that new files get.
fn change(place: &Place) -> Result<()> {
    for (path, _) in FILES {
        fs::remove_file(place.at(path))?;
        place.put(path, "after");
    }
    Ok(())
}

/// This machine as a node of the kubeadm kind, which was backed up as `b1`, and whose files have changed since. Its systemd is a real one.
fn node() -> Result<Place> {
    let place = again()?;
    place.state("containerd.service", "active");
    place.state("containers.json", r#"{"containers":[]}"#);
    fs::copy(TOOL, "/usr/bin/crictl")?;
    place.put("/etc/kubernetes/pki/ca.crt", authority());
    place.put("/etc/kubernetes/manifests/kube-apiserver.yaml", "before");
    place.put("/var/lib/kubelet/config.yaml", "before");
    place.put("/var/lib/etcd/member/old", "before");
    place.dir.prepare()?;
    back_up(&place, "b1", 1)?;
    Ok(place)
}

/// The same after it has booted again.
fn again() -> Result<Place> {
    let temporary = tempfile::tempdir()?;
    symlink("/", temporary.path().join("root"))?;
    fs::create_dir_all("/usr/state")?;
    symlink("/usr/state", temporary.path().join("state"))?;
    let node = Node::live();
    let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
    Ok(Place { temporary, node, dir })
}

/// Starts, with the agent and the programs where they are on the machine that this was compiled on.
fn begin() -> Result<()> {
    ensure!(Path::new(HERE).is_file(), "this is a part of a test, and runs in its virtual machine");
    for (there, here) in [(AGENT_THERE, AGENT), (TOOL, "/host/tool.sh")] {
        if !Path::new(there).exists() {
            fs::create_dir_all(Path::new(there).parent().context("a path without a directory")?)?;
            symlink(here, there)?;
        }
    }
    Ok(())
}

/// Begins a recovery, and stops it as soon as SELinux is permissive.
fn stopped_while_permissive() -> Result<Pid> {
    let agent = Command::new(AGENT).args(["--yes", "--wait", "1", "restore-files"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let process = Pid::from_raw(agent.id().cast_signed());
    let end = std::time::Instant::now() + SOON.0;
    while is_enforcing()? {
        ensure!(std::time::Instant::now() < end, "it does not become permissive");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(process, Signal::SIGSTOP)?;
    // It may have been about to put it back.
    std::thread::sleep(Duration::from_millis(100));
    ensure!(!is_enforcing()?, "it was not stopped in time");
    Ok(process)
}

/// Waits until the unit has done what it can: the process was in this domain, and what systemd says of it at the end.
fn unit_ends() -> Result<(String, String)> {
    let mut domain = String::new();
    let look = || {
        let shown =
            checked(Command::new("systemctl").args(["show", UNIT, "--property=MainPID,ActiveState,SubState,Result,ExecMainStatus"]), SOON)?;
        let of = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned();
        if let Ok(now) = fs::read_to_string(format!("/proc/{}/attr/current", of("MainPID"))) {
            // Before it has become the agent, it is systemd itself.
            if fs::read_link(format!("/proc/{}/exe", of("MainPID"))).is_ok_and(|program| program == Path::new("/var/recovery/recovery")) {
                now.trim_end_matches('\0').clone_into(&mut domain);
            }
        }
        Ok((["inactive", "failed"].contains(&of("ActiveState").as_str()) && !domain.is_empty()).then_some(shown))
    };
    let shown = SOON.wait("the unit", look, || format!("{:?}", log(&["-u", UNIT])))?;
    Ok((domain, shown))
}

fn log(arguments: &[&str]) -> Result<String> {
    checked(Command::new("journalctl").args(["-b", "--no-pager", "-o", "cat"]).args(arguments), SOON)
}

/// What the policy has kept, or in permissive mode would have kept, from the agent in this domain.
fn denied(domain: &str) -> Result<Vec<String>> {
    let of_the_agent =
        |line: &&str| ["avc:  denied", "comm=\"recovery\"", &format!("scontext={domain}")].iter().all(|part| line.contains(part));
    Ok(log(&[])?.lines().filter(of_the_agent).map(str::to_owned).collect())
}

/// The installed agent has the label with which systemd may start it, and the unit has brought the files back, in its own domain.
fn the_unit_has_restored(place: &Place) -> Result<()> {
    let (domain, shown) = unit_ends()?;
    println!("the unit ran as {domain}: {shown}");
    ensure!(domain == "system_u:system_r:initrc_t:s0", "not as other services: {domain}");
    ensure!(label(&place.dir.agent())? == labelled("bin_t"), "the agent has the label {}", label(&place.dir.agent())?);
    let status = checked(Command::new(AGENT).arg("status"), SOON)?;
    ensure!(status.contains("waits for the reboot at the end of restore-files"), "{status}{shown}");
    are_restored(place)?;
    let kept: Vec<String> = denied(&domain)?.into_iter().filter(|line| !line.contains("permissive=1")).collect();
    ensure!(kept.is_empty(), "{kept:#?}");
    Ok(())
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn archives_and_the_unit() -> Result<()> {
    begin()?;
    ensure!(is_enforcing()?, "it has not booted enforcing");
    archives().context("archives")?;
    let place = node()?;
    let stopped = stopped_while_permissive()?;
    kill(stopped, Signal::SIGKILL)?;
    ensure!(!is_enforcing()?, "somebody else has put it back");
    checked(Command::new("systemctl").args(["start", UNIT]), SOON)?;
    the_unit_has_restored(&place)?;
    ensure!(is_enforcing()?, "the unit has left it permissive");
    // What was refused above: the log would have shown it of the unit too.
    let refused = denied("unconfined_u:unconfined_r:unconfined_t:s0")?;
    ensure!(refused.iter().any(|line| line.contains("mac_admin") && line.contains("permissive=0")), "{refused:#?}");
    Ok(())
}

/// Labels that the policy knows are restored by whoever restores; the others are taken in permissive mode alone, which is said.
fn archives() -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let (tree, known, unknown) = (folder.path().join("tree"), folder.path().join("known.tar.zst"), folder.path().join("unknown.tar.zst"));
    let (plain, link, below) = (tree.join("plain"), tree.join("link"), tree.join("below"));
    fs::create_dir_all(&below)?;
    fs::write(&plain, "plain")?;
    symlink("plain", &link)?;
    let agent = |verb: &str, first: &Path, second: &Path| -> Result<Done> {
        run(Command::new(AGENT).args(["--yes", "archive", verb]).args([first, second]), &[], SOON)
    };
    let all = [(&tree, "var_lib_t"), (&plain, "shadow_t"), (&link, "etc_t"), (&below, "bin_t")];
    all.iter().try_for_each(|(path, kind)| set_label(path, kind))?;
    agent("pack", &tree, &known)?.checked()?;
    all.iter().try_for_each(|(path, _)| set_label(path, "tmp_t"))?;
    agent("restore", &known, &tree)?.checked()?;
    for (path, kind) in all {
        ensure!(label(path)? == labelled(kind), "{} has the label {}", path.display(), label(path)?);
    }

    permissive(|| {
        set_label(&plain, "of_the_next_release_t")?;
        agent("pack", &tree, &unknown)?.checked().map(drop)
    })?;
    fs::remove_file(&plain)?;
    let refused = agent("restore", &unknown, &tree)?;
    let says = ["plain", "a label that the running policy does not know can be set in permissive mode only"];
    ensure!(refused.code() == 78 && says.iter().all(|words| refused.stderr.contains(words)), "{refused:?}");
    ensure!(is_enforcing()?, "restoring an archive by itself has changed the mode");
    permissive(|| {
        agent("restore", &unknown, &tree)?.checked()?;
        ensure!(label(&plain)? == labelled("of_the_next_release_t"), "it has the label {}", label(&plain)?);
        Ok(())
    })?;
    // As the kernel shows it now, so it is packed.
    agent("pack", &tree, &known)?.checked()?;
    let packed = zstd::stream::decode_all(fs::File::open(&known)?)?;
    let has = |kind: &str| packed.windows(kind.len()).any(|part| part == kind.as_bytes());
    ensure!(has(":unlabeled_t:") && has(":bin_t:") && !has("of_the_next_release_t"), "packed while enforcing, it has other labels");
    Ok(())
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn until_the_power_fails() -> Result<()> {
    begin()?;
    node()?;
    stopped_while_permissive()?;
    println!("{PERMISSIVE}");
    std::thread::sleep(SOON.0);
    bail!("the power has not failed")
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn after_the_power_failed() -> Result<()> {
    begin()?;
    the_unit_has_restored(&again()?)?;
    ensure!(is_enforcing()?, "the unit has left it permissive");
    Ok(())
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn after_the_power_failed_and_permissive_by_the_kernels_arguments() -> Result<()> {
    begin()?;
    the_unit_has_restored(&again()?)?;
    ensure!(!is_enforcing()?, "the administrator has booted it permissive, and it is not");
    Ok(())
}

/// A small node in a directory, whose mode is this machine's.
struct Small {
    place: Place,
    before: tempfile::TempDir,
}

impl Small {
    fn new() -> Result<Self> {
        let small = Self { place: Place::new(), before: tempfile::tempdir()? };
        fs::create_dir_all(small.mode())?;
        back_up(&small.place, "b2", 2)?;
        checked(Command::new("cp").arg("-a").arg(small.place.temporary.path().join(".")).arg(small.before.path()), SOON)?;
        mount_bind("/sys/fs/selinux", small.mode())?;
        Ok(small)
    }

    fn mode(&self) -> PathBuf {
        self.place.at("/sys/fs/selinux")
    }

    /// As it is before the command.
    fn prepare(&self) -> Result<()> {
        unmount(self.mode(), UnmountFlags::empty())?;
        let script = r#"find "$2" -mindepth 1 -delete; cp -a "$1/." "$2""#;
        checked(Command::new("sh").args(["-euc", script, "sh"]).args([self.before.path(), self.place.temporary.path()]), SOON)?;
        Ok(mount_bind("/sys/fs/selinux", self.mode())?)
    }

    fn command(&self) -> Command {
        self.place.agent_command(&["--yes", "--wait", "1", "restore-files"])
    }

    /// The same once more, with a fault.
    fn struck(&self, number: usize, fault: Fault) -> Result<Ended> {
        self.prepare()?;
        let ended = injector::run(&mut self.command(), Some((number, fault)))?;
        ensure!(ended.hit.is_some(), "it does not come to place {number}");
        Ok(ended)
    }

    /// The command leads to the end, and to everything that was backed up.
    fn again(&self) -> Result<()> {
        run(&mut self.command(), &[], SOON)?.checked()?;
        are_restored(&self.place)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(self.mode(), UnmountFlags::DETACH).ok();
    }
}

/// So many places are tried, as the kernel's arguments say.
fn most() -> Result<usize> {
    let arguments = fs::read_to_string("/proc/cmdline")?;
    let number = arguments.split_whitespace().find_map(|word| word.strip_prefix("places="));
    number.context("the kernel's arguments do not say how many places")?.parse().context("no number of places")
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn struck_at_places() -> Result<()> {
    begin()?;
    ensure!(is_enforcing()?, "it has not booted enforcing");
    let small = Small::new()?;
    let untroubled = injector::run(&mut small.command(), None)?;
    ensure!(untroubled.how == Ok(0) && is_enforcing()?, "{:?}, {}", untroubled.how, untroubled.said);
    are_restored(&small.place)?;
    // To and fro, for each tree that is restored.
    let sets = untroubled.points.iter().enumerate().filter(|(_, point)| point.call.name == "write" && point.path.ends_with(ENFORCE));
    let sets: Vec<usize> = sets.map(|(index, _)| index + 1).collect();
    ensure!(sets.len() >= 4, "the mode is set at the places {sets:?}");
    let within = |number: usize| sets.iter().filter(|set| **set < number).count() % 2 == 1;
    let places: Vec<usize> = (1..=untroubled.points.len()).filter(|number| within(*number)).collect();
    println!("{} places, {} of them while it is permissive", untroubled.points.len(), places.len());

    // A mode that the administrator has set is nobody else's.
    fs::write(ENFORCE, "0")?;
    small.prepare()?;
    small.again().context("permissive before")?;
    ensure!(!is_enforcing()?, "it was permissive before");
    fs::write(ENFORCE, "1")?;

    // Where the first of the trees is written.
    let is_written = |number: &&usize| untroubled.points[**number - 1].call.name == "fsync";
    let middle = *places.iter().find(is_written).context("nothing is synced while it is permissive")?;
    for fault in [Fault::Fail(Errno::EIO), Fault::Signal(Signal::SIGTERM, 1)] {
        let ended = small.struck(middle, fault)?;
        let hit = ended.hit.context("nowhere")?;
        println!("{fault:?} at place {middle}, {hit}: it ends with {:?}", ended.how);
        ensure!(ended.how.is_ok_and(|code| code != 0), "{fault:?} at {hit}: {:?}, {}", ended.how, ended.said);
        ensure!(is_enforcing()?, "permissive after {fault:?} at {hit}: {}", ended.said);
        small.again().with_context(|| format!("after {fault:?}"))?;
    }

    let most = most()?.min(places.len());
    let (mut tried, mut left) = (0, 0);
    for number in (0..most).map(|nth| places[nth * places.len() / most]) {
        let ended = small.struck(number, Fault::Kill)?;
        let hit = ended.hit.context("nowhere")?;
        let at = || format!("killed at place {number}, {hit}");
        tried += 1;
        left += usize::from(!is_enforcing()?);
        println!("{}", at());
        small.again().with_context(at)?;
        ensure!(is_enforcing()?, "{} and run again, it is permissive", at());
    }
    println!(
        "killed at {tried} of {} places, permissive at {left} of them, enforcing and restored after the next command at {tried}",
        places.len()
    );
    ensure!(left > 0, "nothing was left permissive, so nothing was tried");
    Ok(())
}
