//! The README's first command, after `tests/try.sh` has built everything: the agent's main job on a throw-away node, from the backup to
//! the proof that every file and every key is what it was. The node stays, for looking around.
//!
//! `demo DIR [--clean] --etcd PROGRAM --etcd-after PROGRAM`

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use testing::node::{Kind, Node, Options, Snapshot, compare::NOT_RESTORED};

/// What the roll-out at the end makes anew, in files: a revision of each static pod, its manifest, and kubelet's folder of the new pod.
const ROLLED_OUT_FILES: [&str; 3] = ["/etc/kubernetes/manifests", "/etc/kubernetes/static-pod-resources", "/var/lib/kubelet/pods"];
/// The same in keys: what the operators, and the pods they roll out, report of themselves.
const ROLLED_OUT_KEYS: [&str; 4] = [
    "/kubernetes.io/operator.openshift.io/",
    "/kubernetes.io/config.openshift.io/clusteroperators/",
    "/kubernetes.io/pods/",
    "/kubernetes.io/configmaps/openshift-",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let dir = PathBuf::from(words.next().context("demo DIR [--clean] --etcd PROGRAM --etcd-after PROGRAM")?);
    let (mut etcd, mut after) = (None, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--clean" => {
                testing::node::clean(&dir.canonicalize()?)?;
                return std::fs::remove_dir(&dir).context("removing the node's directory");
            }
            "--etcd" => etcd = words.next().map(PathBuf::from),
            "--etcd-after" => after = words.next().map(PathBuf::from),
            other => bail!("what is {other}?"),
        }
    }
    let etcd = etcd.context("--etcd PROGRAM is missing")?;
    let options = Options { etcd_after_upgrade: after, settings: 2000, files: 1000, keep: true, ..Options::new(Kind::OpenShift, &etcd) };
    show(&dir, &options)
}

fn say(text: &str) {
    println!("\n\x1b[1m==> {text}\x1b[0m");
}

fn show(dir: &Path, options: &Options) -> Result<()> {
    say("A node: ostree deployment, /etc and static pods of a single-node OpenShift 4.16, etcd with its data");
    println!("etcd: {}", version(&options.etcd)?);
    let begun = Instant::now();
    let node = Node::build(dir, options)?;
    let shortcut = write_shortcut(&node)?;
    println!("made and booted in {:.1} s, in {}", begun.elapsed().as_secs_f32(), node.place().dir().display());
    tool(&node, "ostree", &["admin", "status"])?;

    say("Before the upgrade: the backup");
    agent(&node, &["backup", "--name", "before-4.17", "--label", "ticket=1234"])?;
    agent(&node, &["list"])?;
    let before = node.snapshot()?;
    println!("noted, to compare with later: {} files with all their attributes, {} keys", before.files.len(), before.keys.len());

    say("The upgrade to 4.17, which fails: new revisions, changed objects, a new configuration, a new deployment booted, no API server");
    node.ruin()?;
    tool(&node, "ostree", &["admin", "status"])?;
    node.wait_etcd()?;
    if let Some(newer) = &options.etcd_after_upgrade {
        println!("etcd, which has taken over the data and writes them: {}", version(newer)?);
    }
    print_some("different now", &before.differences(&node.snapshot()?));

    say("What it takes, says the agent");
    agent(&node, &["platform"])?;

    say("The platform goes back: rpm-ostree rollback, reboot");
    node.roll_back_platform()?;
    tool(&node, "ostree", &["admin", "status"])?;

    say("The files go back; then the node reboots");
    let (_, boots) = node.power()?;
    agent(&node, &["restore-files", "--reboot", "--yes"])?;
    node.wait_boot(boots)?;
    println!("the node has rebooted; kubelet is held");

    say("After the reboot: kubelet's state, the static pods and etcd go back, and the control plane starts");
    agent(&node, &["resume", "--step", "--yes"])?;
    let now = node.snapshot()?;
    let different = before.differences(&now);
    print_some("different still", &different);
    ensure!(different.is_empty(), "the node is not what it was");
    println!(
        "every file ({}) and every key ({}, but for kubelet's newest heartbeat) is what it was before the upgrade",
        now.files.len(),
        now.keys.len()
    );
    println!("not compared, because a recovery leaves them as they are:\n  {}", NOT_RESTORED.join("\n  "));

    say("The operators roll their pods out once more, and the recovery ends");
    agent(&node, &["resume", "--hold", "5", "--yes"])?;
    let different = unexpected(&before, &node.snapshot()?);
    print_some("different though nobody should have changed it", &different);
    ensure!(different.is_empty(), "the end of the recovery changed something that is not its business");
    println!("nothing else has changed: below {}, and the operators' own objects, are the new revisions", ROLLED_OUT_FILES.join(", "));
    agent(&node, &["status"])?;

    say(&format!("Done in {:.0} s. Look around:", begun.elapsed().as_secs_f32()));
    let agent = shortcut.display();
    println!("  {agent} status                     where the node stands; the other verbs of the agent work on it too:");
    println!("  {agent} list, then show ID         the backups, and what is in one");
    println!("  {agent} verify                     every file of the newest backup against its sums");
    println!("  {}/var/recovery/latest/    the newest backup: standard archives, manifest.json, SHA256SUMS", node.root().display());
    println!(
        "  {}/var/recovery/history/           the journal of the recovery, and the report with the time of each step",
        node.root().display()
    );
    println!("  {}/                                the node's own files", node.root().display());
    println!("  {}/crictl ps -o json               one of its programs", node.place().tools().display());
    println!("Then:");
    println!("  tests/try.sh --clean               takes the node away");
    println!(
        "  tests/try-node.sh                  the same on a real node that reboots: systemd, kubelet, an API server (README, \"Try it\")"
    );
    Ok(())
}

/// The first line of `etcd --version`.
fn version(etcd: &Path) -> Result<String> {
    let output = std::process::Command::new(etcd).arg("--version").output().with_context(|| format!("running {}", etcd.display()))?;
    ensure!(output.status.success(), "{} --version ended with {}", etcd.display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// A script beside the node that runs the agent on it.
fn write_shortcut(node: &Node) -> Result<PathBuf> {
    let command = node.recovery()?;
    let quoted = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| format!("'{}'", word.display()));
    let marks = command.get_envs().filter_map(|(name, value)| Some(format!("{}='{}'", name.display(), value?.display())));
    let words: Vec<String> = ["exec env".to_owned()].into_iter().chain(marks).chain(quoted).collect();
    let path = node.place().dir().join("recovery");
    std::fs::write(&path, format!("#!/bin/sh\n{} \"$@\"\n", words.join(" ")))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Runs the agent as an administrator would.
fn agent(node: &Node, args: &[&str]) -> Result<()> {
    println!("$ recovery {}", args.join(" "));
    let status = node.recovery()?.args(args).status().context("running the agent")?;
    ensure!(status.success(), "recovery {} ended with {status}", args.join(" "));
    Ok(())
}

fn tool(node: &Node, name: &str, args: &[&str]) -> Result<()> {
    println!("$ {name} {}", args.join(" "));
    let status = node.tool(name).args(args).status().with_context(|| format!("running {name}"))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}

fn print_some(what: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    println!("{what}: {} files and keys, among them", lines.len());
    let of = |start: &'static str| lines.iter().filter(move |line| line.starts_with(start)).take(6);
    for line in of("/").chain(of("key ")) {
        println!("  {}", line.chars().take(150).collect::<String>());
    }
}

/// The differences that the roll-out does not explain.
fn unexpected(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let explained = |line: &String| {
        line.strip_prefix("key ").map_or_else(
            || ROLLED_OUT_FILES.iter().any(|path| line.starts_with(path)),
            |key| ROLLED_OUT_KEYS.iter().any(|part| key.contains(part)),
        )
    };
    before.differences(after).into_iter().filter(|line| !explained(line)).collect()
}
