//! The backup as a Job: packaged, and as the old tool's hub makes it. Its three ends, which that hub reads.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::jobs::{self, Job};
use super::moment::{Stopped, inside};
use real_node::{Limit, Node, Variant};

const AGENT: &str = "/var/recovery/recovery";
/// The agent's own, at any size of what it archives.
const MOST_MEMORY: u64 = 64 << 20;
/// What takes long to archive: random, so that it takes room in the backup too; and shared blocks, so that making it is quick.
const LARGE: &str = "/var/lib/kubelet/large";
/// What of it is in the backup when the Job's deadline is over.
const SO_FAR: u64 = 400 << 20;
const LONG: u32 = 300;
const SOON: Limit = Limit::of(120);

fn node(dir: &std::path::Path) -> Result<Node> {
    let node = Node::up(dir, &"kubeadm".parse::<Variant>()?)?;
    jobs::import_image(&node)?;
    Ok(node)
}

/// Every published backup of the node: id and who asked for it, the newest first.
pub(crate) fn backups(node: &Node) -> Result<Vec<(String, String)>> {
    let list: Value = serde_json::from_str(&node.run(&[AGENT, "list", "--json"])?)?;
    let list = list.as_array().cloned().with_context(|| format!("not a list: {list}"))?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let published = |backup: &&Value| !word(&backup["id"]).ends_with(".partial");
    Ok(list.iter().filter(published).map(|backup| (word(&backup["id"]), word(&backup["asked_by"]))).collect())
}

/// The agent, stopped when it has archived what comes before, and much of what is large.
pub(crate) fn in_the_middle(node: &Node) -> Result<Stopped> {
    let stored = || -> Result<u64> {
        let mut stored = 0;
        for backup in std::fs::read_dir(inside(node, "var/recovery/backups")?)?.filter_map(Result::ok) {
            if backup.file_name().to_string_lossy().ends_with(".partial") {
                stored += std::fs::read_dir(backup.path())?.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum::<u64>();
            }
        }
        Ok(stored)
    };
    Stopped::when(node, "a backup in the middle of its work", SOON, || stored().is_ok_and(|stored| stored > SO_FAR))
}

/// The Job's deadline comes while its agent is at work. The most memory that this has had, bytes.
fn exceeds_its_deadline(job: &Job<'_>, node: &Node) -> Result<u64> {
    // Stopped, so that neither the slowest machine makes the deadline come too early, nor the fastest too late.
    let agent = in_the_middle(node)?;
    let peak = agent.peak()?;
    job.is_overdue()?;
    agent.go_on()?;
    let end = job.end()?;
    ensure!((end.how.as_str(), end.reason.as_str()) == ("Failed", "DeadlineExceeded"), "{end:?}");
    Ok(peak)
}

pub(crate) fn make_large(node: &Node) -> Result<()> {
    let script =
        r#"mkdir "$1" && cd "$1" && head --bytes=64M /dev/urandom >0 && for name in $(seq 40); do cp --reflink=always 0 $name; done"#;
    node.run(&["sh", "-c", script, "make", LARGE]).map(drop)
}

/// Leaves a little of it: the next backup is no longer slow.
pub(crate) fn make_small(node: &Node) -> Result<()> {
    node.run(&["sh", "-c", &format!("rm {LARGE}/[1-9]*")]).map(drop)
}

#[test]
fn the_packaged_job_has_three_ends() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = node(&dir.path().join("node"))?;

    let job = Job::packaged(&node, "first", LONG)?;
    job.completes()?;
    let said = job.log()?;
    ensure!(said.contains("is complete") && !said.contains("warning"), "a backup of a node where all is well said: {said}");
    let taken = backups(&node)?;
    ensure!(taken.len() == 1 && taken[0].1 == format!("job/{}", job.uid()?), "asked for by the Job {}: {taken:?}", job.uid()?);
    node.run(&[AGENT, "verify", &taken[0].0])?;
    ensure!(node.exists("/var/recovery/upgrade-recovery.sh")?, "the old tool's name was not installed");

    make_large(&node)?;
    let peak = exceeds_its_deadline(&Job::packaged(&node, "slow", LONG)?, &node)?;
    eprintln!("the agent took {} MiB at most", peak >> 20);
    ensure!(peak <= MOST_MEMORY, "the agent took {} MiB", peak >> 20);
    ensure!(backups(&node)?.len() == 1, "a backup was published past the deadline: {:?}", backups(&node)?);
    let partial = || node.run(&["sh", "-c", "cd /var/recovery/backups && ls -d *.partial"]);
    let before = partial()?;

    make_small(&node)?;
    let job = Job::packaged(&node, "second", LONG)?;
    job.completes()?;
    let said = job.log()?;
    ensure!(said.contains("/etc is finished already"), "the second Job did not go on where the first one stopped: {said}");
    let taken = backups(&node)?;
    ensure!(taken.len() == 2 && before.trim() == format!("{}.partial", taken[0].0), "{taken:?} of {before}");

    let (disconnected, job) = Job::of_overlays(&node)?;
    for words in ["image: registry.example.com:5000/edge/recovery@sha256:", "imagePullSecrets:\n  - name: recovery-registry\n"] {
        ensure!(disconnected.contains(words), "no {words:?} in {disconnected}");
    }
    job.completes()?;
    let list = node.run(&[AGENT, "list", "--selector", "ticket=1234"])?;
    ensure!(list.contains("before-4.17.3"), "the overlay's name and label are not the backup's: {list}");
    let taken = backups(&node)?;
    ensure!(taken.len() == 3, "{taken:?}");

    // Nothing more fits on the recovery partition.
    node.run(&[
        "sh",
        "-c",
        "fallocate --length=$(($(stat --file-system --format='%a * %S' /var/recovery) - (1 << 20))) /var/recovery/full",
    ])?;
    let job = Job::packaged(&node, "full", LONG)?;
    let end = job.end()?;
    ensure!((end.how.as_str(), end.reason.as_str()) == ("Failed", "BackoffLimitExceeded"), "{end:?}");
    let (code, message) = job.ended_container()?;
    ensure!(
        code == 73 && message.starts_with("taking a backup: ") && message.contains("are missing; next: make room there"),
        "it ended with {code}: {message}"
    );
    ensure!(job.log()?.contains(message.trim()), "the log does not say why: {}", job.log()?);
    ensure!(backups(&node)? == taken, "what was there is not as it was: {:?}", backups(&node)?);
    node.down()
}

#[test]
fn the_hub_of_the_old_tool_needs_another_image_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = node(&dir.path().join("node"))?;

    let job = Job::of_the_hub(&node, "first", LONG)?;
    job.completes()?;
    // It does not say of which Job its pod is; the container runtime does.
    let taken = backups(&node)?;
    ensure!(taken.len() == 1 && taken[0].1 == format!("job/{}", job.uid()?), "asked for by the Job {}: {taken:?}", job.uid()?);

    make_large(&node)?;
    exceeds_its_deadline(&Job::of_the_hub(&node, "slow", LONG)?, &node)?;
    make_small(&node)?;
    let job = Job::of_the_hub(&node, "second", LONG)?;
    job.completes()?;
    ensure!(job.log()?.contains("/etc is finished already"), "the second Job did not go on where the first one stopped: {}", job.log()?);

    node.run(&["chmod", "a+w", "/var/recovery"])?;
    let job = Job::of_the_hub(&node, "refused", LONG)?;
    let end = job.end()?;
    ensure!((end.how.as_str(), end.reason.as_str()) == ("Failed", "BackoffLimitExceeded"), "{end:?}");
    let (code, message) = job.ended_container()?;
    ensure!(code == 77 && message.contains("chmod 0700") && job.log()?.contains(&message), "{code}: {message}; {}", job.log()?);
    node.run(&["chmod", "go-w", "/var/recovery"])?;

    let before = backups(&node)?.len();
    jobs::pod_that_asks_again(&node, "again")?;
    let restarted = || Ok((jobs::restarts(&node, "again")? >= 1).then_some(()));
    Limit(Duration::from_secs(90)).wait("the pod's container to be started again", restarted, || node.explain())?;
    let again = || Ok(jobs::log_of_pod(&node, "again", false).ok().filter(|said| said.contains("already done")));
    Limit::of(30).wait("the second container to say that it is done", again, || node.explain())?;
    ensure!(backups(&node)?.len() == before + 1, "a pod that asked twice has {} backups", backups(&node)?.len() - before);
    node.down()
}
