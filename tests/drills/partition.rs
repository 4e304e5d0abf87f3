//! A recovery partition made on a second disk of a node that runs, with the power failing at each step; and recoveries, from a backup that knows nothing
//! of it, with the partition mounted in every boot.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::hands::{self, AGENT, back_up, ok, wait_recovered};
use super::moment::{Stopped, at_work, inside, said};
use real_node::spare::DISK;
use real_node::{Broken, Limit, Node};

const UNIT: &str = "var-recovery.mount";
/// Written just before each cut, and not synced.
const UNSYNCED: &str = "var/lib/unsynced";
/// What `recovery partition create` notes.
const JOURNAL: &str = "var/lib/recovery/partition/progress";
const CREATE: [&str; 7] = ["partition", "create", "--device", DISK, "--size-mib", "4096", "--yes"];
const SOON: Limit = Limit::of(60);
/// Files that make the copy take long enough to be cut short: so many of so many MiB.
const BALLAST: (u32, u64) = (20, 4);
/// Where the power fails: after this event of the journal, in the middle of what this program does then. From the unit on, which is written by the end of
/// the move, every boot mounts the partition: only the boot of the move itself has systemd mount it later.
const CUTS: [(&str, Option<&str>); 7] = [
    ("create table step-intent", None),
    ("create table step-done", None),
    ("create file-system step-intent", Some("mkfs.xfs")),
    ("create file-system step-done", None),
    ("create move step-intent", Some("cp")),
    ("create mount step-intent", Some("systemctl")),
    ("create old step-intent", None),
];
/// Written by hand, after the original guide: by the other name, and required.
const BY_HAND: &str = "[Unit]\nDescription=Backups\nBefore=local-fs.target\n\n[Mount]\nWhat=/dev/disk/by-label/recovery\nWhere=/var/recovery\nType=xfs\n\n\
                       [Install]\nRequiredBy=local-fs.target\n";

fn events(node: &Node) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(inside(node, JOURNAL)?).unwrap_or_default();
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|line: Value| said(&line)).collect())
}

/// Everything in the recovery directory but its lock.
fn contents(node: &Node) -> Result<String> {
    let script = "cd /var/recovery && find . -mindepth 1 ! -name lock -printf '%P %y %m %U:%G %T@ %l\\n' | sort && \
                  find . -type f ! -name lock -print0 | sort -z | xargs -0 sha256sum";
    Ok(node.exec(&["sh", "-c", script], SOON)?.checked()?.stdout)
}

/// Runs `create` until this event, and cuts the power. What the journal has by then; nothing when it was over before it was seen.
fn cut(node: &mut Node, event: &str, program: Option<&str>) -> Result<Option<Vec<String>>> {
    let known = events(node)?.len();
    // Not by `exec`, which lets everything go on that is stopped.
    let mut create = node.command(&[&[AGENT], &CREATE[..]].concat())?;
    let mut create = create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let has_come = || events(node).is_ok_and(|events| events.iter().skip(known).any(|one| one == event));
    let is_busy = || program.is_none_or(|name| at_work(node, name).is_ok_and(|found| !found.is_empty()));
    // On a machine that does much else the program may have ended before it was seen: the power then fails a little later.
    let is_past = || events(node).is_ok_and(|events| events.iter().skip(known).skip_while(|one| *one != event).nth(1).is_some());
    let stopped = Stopped::when(node, event, SOON, || has_come() && (is_busy() || is_past()));
    if let Err(error) = stopped {
        if create.try_wait()?.is_some_and(|ended| ended.success()) {
            return Ok(None);
        }
        let _ = create.kill();
        bail!("{error:#}: {}", String::from_utf8_lossy(&create.wait_with_output()?.stderr));
    }
    let events = events(node)?;
    // `nsenter` has stopped itself with the agent, and would keep what is left of that, and so the node, from being gone.
    create.kill().and_then(|()| create.wait()).context("ending nsenter")?;
    std::fs::write(inside(node, UNSYNCED)?, event).context("writing what is to be lost")?;
    node.kill_unsynced()?;
    Ok(Some(events))
}

fn status(node: &Node) -> Result<Value> {
    serde_json::from_str(&ok(node, &["partition", "status", "--json"])?).context("reading the status")
}

/// What is mounted at the recovery directory is the partition, once, by systemd's unit.
fn is_mounted(node: &Node) -> Result<()> {
    let mounted = node.run(&["findmnt", "--noheadings", "--output=SOURCE,FSTYPE", "/var/recovery"])?;
    let partition = node.run(&["realpath", "/dev/disk/by-partlabel/recovery"])?;
    ensure!(
        mounted.split_whitespace().collect::<Vec<_>>() == [partition.trim(), "xfs"],
        "at /var/recovery there is {mounted}, and the partition is {partition}"
    );
    let unit = node.run(&["systemctl", "show", "--property=ActiveState,FragmentPath", UNIT])?;
    ensure!(unit.contains("ActiveState=active") && unit.contains("=/etc/systemd/system/var-recovery.mount"), "{unit}");
    Ok(())
}

fn is_complete(node: &Node, before: &str) -> Result<()> {
    is_mounted(node)?;
    let now = contents(node)?;
    ensure!(now == before, "the recovery directory held\n{before}\nand holds\n{now}");
    let status = status(node)?;
    let said = ["own_file_system", "cost", "what", "below", "open", "problem"].map(|key| status[key].clone());
    let expected = [json!(true), json!("nothing"), json!("/dev/disk/by-partlabel/recovery"), json!(0), Value::Null, Value::Null];
    ensure!(said == expected, "{status}");
    ensure!(node.run(&["ls", "-A", "/var/lib/recovery/partition"])? == "lock\n", "something is left over");
    let again = ok(node, &CREATE)?;
    ensure!(again.contains("nothing to do"), "{again}");
    Ok(())
}

/// The `/etc` of each deployment that has the unit.
fn deployments_with_it(node: &Node) -> Result<usize> {
    let find = "ls /ostree/deploy/rhcos/deploy/*/etc/systemd/system/var-recovery.mount 2>/dev/null | wc -l";
    node.run(&["sh", "-c", find])?.trim().parse().context("counting units")
}

/// A recovery to its end, over so many reboots: after each, systemd has mounted the partition.
fn recover(node: &Node, before: &hands::Before, runs: usize, reboots: u32) -> Result<()> {
    let first = node.boots()?;
    hands::over_the_reboot(node, &["recover", "--yes"])?;
    is_mounted(node)?;
    wait_recovered(node, runs)?;
    is_mounted(node)?;
    ensure!(node.boots()? - first == reboots, "it took {} reboots", node.boots()? - first);
    for back in 0..reboots {
        let boot = format!("--boot=-{back}");
        let log = node.run(&["journalctl", &boot, "_PID=1", &format!("--unit={UNIT}"), "--output=cat", "--no-pager"])?;
        let count = |word: &str| log.lines().filter(|line| line.starts_with(word)).count();
        ensure!(count("Mounted ") == 1, "boot {back} before the last of {reboots} has not mounted it once: {log}");
    }
    before.is_back_beside(node, Some(UNIT))
}

#[test]
fn a_partition_is_made_whatever_the_power_does_and_recoveries_keep_it() -> Result<()> {
    let (_dir, mut node) = hands::up("kubeadm,spare-disk")?;
    let (files, size) = BALLAST;
    let fill = format!(
        "mkdir /var/recovery/kept; for n in $(seq {files}); do head --bytes={size}M /dev/urandom >/var/recovery/kept/$n; done; sync"
    );
    node.run(&["sh", "-c", &fill])?;
    let backup = back_up(&node)?;
    ensure!(status(&node)?["cost"] == "everything", "{}", status(&node)?);
    node.upgrade(Broken::ApiServer)?;
    ensure!(deployments_with_it(&node)? == 0);
    let before = contents(&node)?;

    let begun = std::time::Instant::now();
    let (mut missed, mut survived) = (0, Vec::new());
    for (event, program) in CUTS {
        let Some(events) = cut(&mut node, event, program)? else {
            eprintln!("it was done before the power could fail at {event}");
            missed += 1;
            continue;
        };
        eprintln!("{:.1} s: the power failed after {:?}", begun.elapsed().as_secs_f64(), events.last());
        node.boot()?;
        survived.push(node.run(&["sh", "-c", "cd /; cat var/lib/unsynced 2>/dev/null; rm -f var/lib/unsynced"])?);
        let now = contents(&node)?;
        ensure!(now == before, "after a cut at {event} the recovery directory held\n{before}\nand holds\n{now}");
        let status = status(&node)?;
        ensure!(!status["open"].is_null() && status["problem"].is_null(), "after a cut at {event}: {status}");
    }
    ensure!(missed <= 1, "{missed} of {} cuts came too late", CUTS.len());
    // Lost, or the cuts do not take what they are to take. Whoever syncs all of this machine at that moment may keep one.
    ensure!(survived.iter().any(String::is_empty), "what was not synced has survived each time: {survived:?}");
    ok(&node, &CREATE)?;
    is_complete(&node, &before)?;
    ensure!(deployments_with_it(&node)? == 2, "{} deployments mount it", deployments_with_it(&node)?);
    node.reboot()?;
    is_complete(&node, &before)?;

    recover(&node, &backup, 1, 2)?;
    let unit = node.read("/etc/systemd/system/var-recovery.mount")?;
    ensure!(unit.starts_with("# Made by"), "{unit}");

    // The same backup once more, on the release that it belongs to, with a unit that somebody has written.
    node.run(&["systemctl", "disable", UNIT])?;
    node.put("/etc/systemd/system/var-recovery.mount", BY_HAND.as_bytes(), 0o644)?;
    node.run(&["systemctl", "daemon-reload"])?;
    node.run(&["systemctl", "enable", UNIT])?;
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost"])?;
    recover(&node, &backup, 2, 1)?;
    ensure!(node.read("/etc/systemd/system/var-recovery.mount")? == BY_HAND, "the unit is another");
    ensure!(node.exists("/etc/systemd/system/local-fs.target.requires/var-recovery.mount")?, "nothing pulls it in");
    node.down()
}
