//! CRI-O's images over power cuts: kept while a recovery is open, wiped by `crio wipe` at the next boot as ever before and after it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use recovery::tools::crictl;
use testing::node::{Kind, Node, wait_for};
use testing::place::Wrong;

use crate::through::{
    ended, everything, journal_says, json, may_differ, node, of_the_redeployment, ok, over_the_reboot, run, settled, start,
};

const MARK: &str = "/var/lib/recovery/keep-images";
const CLEAN: &str = "/var/lib/crio/clean.shutdown";
/// How long a recovery may take from the boot to its end.
const LONGEST: Duration = Duration::from_secs(600);

/// The power fails while CRI-O runs, and comes back; the agent that was at work ends with it.
fn power_cut(node: &Node) -> Result<()> {
    ensure!(!node.at(CLEAN).exists(), "CRI-O does not run");
    node.power_cut()?;
    node.boot()
}

#[test]
fn a_power_cut_costs_no_image_while_a_recovery_is_open() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    ensure!(!node.at(MARK).exists(), "a backup keeps nothing");
    node.ruin()?;
    node.wait_containers(&["etcd"])?;
    let images = crictl::images(&node.agent())?;

    // In the first phase, with the pods of the failed release running.
    let agent = start(&node, &["recover", "--yes"])?;
    journal_says(&node, "platform", "drop-ahead")?;
    power_cut(&node)?;
    ended(agent)?;
    ensure!(node.at(MARK).exists() && crictl::images(&node.agent())? == images, "the images of a held node");
    for _ in 0..2 {
        let (_, boots) = node.power()?;
        ensure!(json(&node, &["resume"])?["outcome"] == "rebooting");
        node.wait_boot(boots)?;
    }

    // In the last one, with the backup's pods coming up.
    let agent = start(&node, &["resume"])?;
    journal_says(&node, "resume", "api-server-ready")?;
    power_cut(&node)?;
    ended(agent)?;
    ensure!(crictl::images(&node.agent())? == images, "the images of a node that comes up");
    run(&node, &["resume"])?.expect(0, &[])?;
    settled(&node)?;
    ensure!(!node.at(MARK).exists() && crictl::images(&node.agent())? == images);

    // The recovery is over, and nothing holds the unit any more.
    node.wait_containers(&everything(Kind::OpenShift))?;
    power_cut(&node)?;
    ensure!(crictl::images(&node.agent())?.is_empty(), "CRI-O was not stopped in order, and nobody keeps its images");
    let plan = json(&node, &["restore-files", "--dry-run"])?;
    let missing: Vec<&str> = plan["missing_images"].as_array().into_iter().flatten().filter_map(|image| image["name"].as_str()).collect();
    let named = |name: &str| missing.iter().any(|image| image.contains(name));
    ensure!(named("/etcd:4.16.4") && named("/pause:4.16.4"), "no pod starts without the sandboxes' own image: {missing:?}");
    Ok(())
}

#[test]
fn the_images_are_kept_until_the_recovery_is_over() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| options.resume_unit = true)?;
    ok(&node, &["backup"])?;
    let images = crictl::images(&node.agent())?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    journal_says(&node, "finish", "cluster")?;
    // All is put back, and the run is not yet over.
    let asked = || -> Result<usize> { Ok(node.calls()?.iter().filter(|call| call.args.contains("recovery-resume.service")).count()) };
    let before = asked()?;
    node.fault("systemctl", "recovery-resume.service", Some(1), Wrong::Slow(60_000))?;
    journal_says(&node, "finish", "put-back")?;
    wait_for("what is put back last", || Ok(asked()? > before))?;
    power_cut(&node)?;
    over(&node)?;
    ensure!(crictl::images(&node.agent())? == images, "the recovery was still open");
    settled(&node)
}

#[test]
fn images_that_are_gone_are_named_and_the_recovery_goes_on_when_they_can_be_pulled() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| options.resume_unit = true)?;
    ok(&node, &["backup"])?;
    let images = crictl::images(&node.agent())?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes", "--wait", "15"])?;
    journal_says(&node, "resume", "api-server-ready")?;
    // Somebody has taken the hold on them away, and the power fails.
    std::fs::remove_file(node.at(MARK))?;
    power_cut(&node)?;
    ensure!(crictl::images(&node.agent())?.is_empty());
    let log = || std::fs::read_to_string(node.place().state("resume.log")).unwrap_or_default();
    wait_for("the unit to give up", || Ok(log().contains("waited 15 s")))?;
    let named = ["images that the node had in use, or pinned, are gone", "/etcd:4.16.4", "/pause:4.16.4", "podman load"];
    ensure!(named.iter().all(|words| log().contains(words)), "{}", log());

    node.reach_registry(true)?;
    node.reboot()?;
    over(&node)?;
    let now = crictl::images(&node.agent())?;
    let in_use = |name: &str| images.iter().find(|image| image.tags.iter().any(|tag| tag.contains(name)));
    for name in ["/etcd:4.16.4", "/pause:4.16.4"] {
        ensure!(now.contains(in_use(name).context("no such image")?), "{name} was not pulled: {now:?}");
    }
    settled(&node)
}

/// The recovery ends by itself: the unit is started by the boot, and nobody else does anything.
fn over(node: &Node) -> Result<()> {
    let end = Instant::now() + LONGEST;
    while node.at("/var/recovery/progress").exists() {
        let log = || std::fs::read_to_string(node.place().state("resume.log")).unwrap_or_default();
        ensure!(Instant::now() < end, "it does not end: {}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
    // Kubelet has started all that it is to start.
    node.wait_containers(&everything(Kind::OpenShift))
}

/// The steps from which on the control plane of the backup is put in place and started, as the journal of an untroubled recovery has them.
fn steps(node: &Node) -> Result<Vec<(String, String)>> {
    let newest = || -> Result<Option<String>> {
        let entries = std::fs::read_dir(node.at("/var/recovery/history"))?.map(|entry| Ok(entry?.path()));
        let journals = entries.collect::<Result<Vec<_>>>()?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "progress"));
        Ok(journals.max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok()).map(std::fs::read_to_string).transpose()?)
    };
    let journal = newest()?.context("no recovery has ended")?;
    let mut steps = Vec::new();
    for line in journal.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        if line["event"] == "step-intent" && ["resume", "redeploy", "finish"].contains(&word("phase").as_str()) {
            steps.push((word("phase"), word("step")));
        }
    }
    Ok(steps)
}

/// A recovery on which the power fails once, `when` says so, and which ends by itself. True when it was still open then.
fn cut(node: &Node, when: impl FnOnce() -> Result<()>) -> Result<bool> {
    let images = crictl::images(&node.agent())?;
    over_the_reboot(node, &["restore-files", "--reboot", "--yes"])?;
    when()?;
    node.power_cut()?;
    // Nothing is mounted while it is off.
    let was_open = node.place().sysroot().join("ostree/deploy/rhcos/var/recovery/progress").exists();
    // After its end the boot erases them as ever.
    node.reach_registry(!was_open)?;
    node.boot()?;
    over(node)?;
    ensure!(!was_open || crictl::images(&node.agent())? == images, "images are gone");
    settled(node)?;
    Ok(was_open)
}

/// With the power cut when each of these steps is about to be done, and after each of these times since the unit was started.
fn cuts(choose: impl Fn(&(String, String)) -> bool, between: u32) -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| options.resume_unit = true)?;
    ok(&node, &["backup"])?;
    let before = node.snapshot()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    journal_says(&node, "resume", "backup")?;
    let begun = Instant::now();
    over(&node)?;
    let whole = begun.elapsed();
    let steps = steps(&node)?;
    ensure!(steps.len() > 20, "{steps:?}");
    let (mut tried, mut open) = (0, 0);
    for (phase, step) in steps.iter().filter(|step| choose(step)) {
        let was_open = cut(&node, || journal_says(&node, phase, step)).with_context(|| format!("the power failed at {phase}/{step}"))?;
        (tried, open) = (tried + 1, open + u32::from(was_open));
    }
    for n in 1..=between {
        let after: Duration = whole * n / (between + 1);
        let when = || {
            journal_says(&node, "resume", "backup")?;
            std::thread::sleep(after);
            Ok(())
        };
        let was_open = cut(&node, when).with_context(|| format!("the power failed after {} ms", after.as_millis()))?;
        (tried, open) = (tried + 1, open + u32::from(was_open));
    }
    println!(
        "{} steps; the power failed {tried} times, {open} of them with the recovery open, and each ended by itself with all images",
        steps.len()
    );
    let mut differences = before.differences(&node.snapshot()?);
    differences.retain(|line| !may_differ(line) && !of_the_redeployment(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[test]
fn a_power_cut_after_etcd_is_restored_costs_no_image_and_the_recovery_ends_by_itself() -> Result<()> {
    cuts(|(phase, step)| phase == "resume" && step == "start-runtime", 0)
}

/// No test among the others, for its length.
#[test]
#[ignore = "half an hour: `cargo test --test recovery images -- --include-ignored`"]
fn a_power_cut_at_any_step_costs_no_image_and_the_recovery_ends_by_itself() -> Result<()> {
    cuts(|_| true, 12)
}
