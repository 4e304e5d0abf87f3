//! `rpm-ostree`: deployments, and the change of what boots next.
//!
//! It is a client of a daemon that D-Bus starts on demand. That start fails now and then, more often on a busy machine.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use super::ostree::{Deployment, are_names, mark_neighbours};
use crate::node::Node;
use crate::node::clock::interrupted;
use crate::node::run::Output;

/// How often a query is tried before its failure counts, and the pause between two tries.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);
/// The time limit of a change: it writes boot loader entries and prunes.
const CHANGE: Duration = Duration::from_secs(300);
/// The messages with which rpm-ostree refuses, at once and with nothing done, while another transaction runs or an `ostree admin` holds the
/// lock (2025.1).
const BUSY: [&str; 2] = ["Transaction in progress", "System transaction in progress"];

#[derive(Deserialize)]
struct Status {
    deployments: Vec<Row>,
    /// The transaction that runs: its name, who started it, where. It goes on when its client is killed.
    #[serde(default)]
    transaction: Option<Vec<String>>,
}

/// Only the needed fields: the rest varies by release and origin, and some numbers fit no type.
#[derive(Deserialize)]
struct Row {
    osname: String,
    checksum: String,
    serial: u32,
    booted: bool,
    #[serde(default)]
    staged: bool,
    #[serde(default)]
    pinned: bool,
    version: Option<String>,
}

/// `rpm-ostree status --json`: the deployments in boot order.
///
/// # Errors
/// When the output is anything else.
pub fn parse(bytes: &[u8]) -> Result<Vec<Deployment>> {
    let status: Status =
        serde_json::from_slice(bytes).map_err(|error| anyhow!("`rpm-ostree status --json` printed something else: {error}"))?;
    if let Some(Row { osname, checksum, .. }) = status.deployments.iter().find(|row| !are_names(&row.osname, &row.checksum)) {
        return Err(anyhow!("`rpm-ostree status --json` has a deployment that cannot be one: {osname:?} {checksum:?}"));
    }
    let deployment = |(index, row): (usize, Row)| Deployment {
        index,
        stateroot: row.osname,
        checksum: row.checksum,
        serial: row.serial,
        booted: row.booted,
        staged: row.staged,
        pending: false,
        rollback: false,
        pinned: row.pinned,
        // The JSON does not have it (2025.1).
        soft_reboot: false,
        version: row.version,
    };
    let mut all: Vec<Deployment> = status.deployments.into_iter().enumerate().map(deployment).collect();
    mark_neighbours(&mut all);
    Ok(all)
}

/// The deployments in boot order, from `rpm-ostree status --json`: the same as `ostree admin status`, but without marks for pending and
/// rollback.
///
/// # Errors
/// When it fails four times in a row; when it prints anything but its status.
pub fn deployments(node: &Node) -> Result<Vec<Deployment>> {
    parse(&patiently(node, &["status", "--json"])?.stdout)
}

/// Puts the rollback deployment first in boot order; with only a pending deployment, the booted one. It does not reboot, so that what boots
/// next can be checked first. While rpm-ostree is busy it is waited for, at most `wait`.
///
/// # Errors
/// When rpm-ostree fails: "No rollback deployment found", a staged deployment is in the way, another transaction runs for longer than `wait`.
pub fn rollback(node: &Node, wait: Duration) -> Result<()> {
    change(node, &["rollback"], wait)
}

/// Removes the staged or pending deployment (`rpm-ostree cleanup -p`); it is fine when there is none. While rpm-ostree is busy it is waited
/// for, at most `wait`.
///
/// # Errors
/// When rpm-ostree fails, or another transaction runs for longer than `wait`.
pub fn cleanup_pending(node: &Node, wait: Duration) -> Result<()> {
    change(node, &["cleanup", "-p"], wait)
}

/// Waits until no transaction runs, at most `wait`. A transaction goes on when its client is stopped, and may yet stage a deployment: the
/// list of deployments is final only after it. Where rpm-ostree does not answer four times in a row, returns why: a recovery may not need
/// it, and goes on.
///
/// # Errors
/// When a transaction runs for longer than `wait`; when interrupted.
pub fn idle(node: &Node, wait: Duration) -> Result<Option<String>> {
    if !node.has_program("rpm-ostree") {
        return Ok(None);
    }
    let (deadline, mut told) = (node.clock().deadline(wait), None);
    loop {
        let name = match patiently(node, &["status", "--json"]).map(|output| running(&output.stdout)) {
            Ok(None) => return Ok(None),
            Ok(Some(name)) => name,
            Err(error) => {
                interrupted()?;
                return Ok(Some(format!("it is unknown whether rpm-ostree is at work: {error:#}")));
            }
        };
        if deadline.passed() {
            return Err(anyhow!(kept_busy(&format!(" ({name})"), wait)));
        }
        wait_for_it(node, &format!(" ({name})"), &mut told)?;
    }
}

/// Logs once for each transaction that it is waited for.
fn wait_for_it(node: &Node, what: &str, told: &mut Option<String>) -> Result<()> {
    if told.as_deref() != Some(what) {
        tracing::warn!("rpm-ostree is busy with another transaction{what}; waiting for its end");
        *told = Some(what.to_owned());
    }
    node.clock().sleep(PAUSE)
}

fn kept_busy(what: &str, wait: Duration) -> String {
    let seconds = wait.as_secs();
    format!("another transaction{what} kept rpm-ostree busy for {seconds} s; `rpm-ostree status` shows it, `rpm-ostree cancel` ends it")
}

fn change(node: &Node, arguments: &[&str], wait: Duration) -> Result<()> {
    let (deadline, mut told) = (node.clock().deadline(wait), None);
    // A query first wakes the daemon, so that the change finds it running: the change itself must not be repeated blindly.
    patiently(node, &["status", "--json"]).context("waking rpm-ostree's daemon")?;
    loop {
        let output = node.command("rpm-ostree")?.args(arguments).limit(CHANGE).output()?;
        if output.status.success() {
            return Ok(());
        }
        if !is_busy(&output.stderr) {
            return Err(output.error());
        }
        // A refusal has changed nothing, so the change may be tried again.
        let what = transaction(node).map_or_else(String::new, |name| format!(" ({name})"));
        if deadline.passed() {
            return Err(output.error().context(kept_busy(&what, wait)));
        }
        wait_for_it(node, &what, &mut told)?;
    }
}

fn is_busy(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    BUSY.iter().any(|refusal| text.contains(refusal))
}

/// The name of the transaction that runs, as the daemon shows it; `None` when it shows none, for example for an `ostree admin`.
fn transaction(node: &Node) -> Option<String> {
    running(&node.command("rpm-ostree").ok()?.args(["status", "--json"]).output().ok()?.stdout)
}

fn running(status: &[u8]) -> Option<String> {
    serde_json::from_slice::<Status>(status).ok()?.transaction?.into_iter().next()
}

fn patiently(node: &Node, arguments: &[&str]) -> Result<Output> {
    for _ in 1..ATTEMPTS {
        let output = node.command("rpm-ostree")?.args(arguments).output()?;
        if output.status.success() {
            return Ok(output);
        }
        tracing::warn!("{:#}; asking again", output.error());
        node.clock().sleep(PAUSE)?;
    }
    node.command("rpm-ostree")?.args(arguments).run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::path::PathBuf;

    #[test]
    fn every_arrangement_that_was_captured() -> Result<()> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rpm-ostree");
        // `*` booted, `s` staged, `p` pending, `r` rollback, `P` pinned.
        let expected = [
            ("assembled-lca-two-stateroots", "* P "),
            ("assembled-none-booted", " "),
            ("assembled-rhcos-4.5-pivot-custom-origin", "* r"),
            ("assembled-rhcos-booted-pinned-rollback", "* rP"),
            ("assembled-rhcos-pending-not-booted", "p *P"),
            ("assembled-rhcos-staged-booted-two-standby", "sp *P rP"),
            ("booted-rollback-layered-rhel-edge", "* r"),
            ("booted-rollback-layered-silverblue", "* r"),
            ("real-transaction-in-progress", "*P"),
            ("single-booted-fcos-2019", "*"),
            ("single-booted-fcos-oci-remote-image", "*"),
            ("single-booted-fcos-oci-signed-zincati", "*"),
            ("single-booted-rhcos-4.12-container", "*"),
            ("single-booted-rhel-edge", "*"),
            ("staged-booted-rollback-three", "sp * r"),
            ("staged-container-plus-booted-ostree-fcos36", "sp *"),
            ("staged-locked-plus-booted-fcos", "sp *"),
            ("staged-only-bootc-no-origin", "s"),
            ("staged-overrides-plus-booted-fcos37", "sp *"),
        ];
        for (name, marks) in expected {
            let all = parse(&std::fs::read(folder.join(format!("{name}.json")))?)?;
            let row = |d: &Deployment| -> String {
                [(d.booted, '*'), (d.staged, 's'), (d.pending, 'p'), (d.rollback, 'r'), (d.pinned, 'P')]
                    .iter()
                    .filter_map(|(is, mark)| is.then_some(*mark))
                    .collect()
            };
            assert_eq!(all.iter().map(row).collect::<Vec<_>>().join(" "), marks, "{name}");
            assert!(all.iter().enumerate().all(|(place, d)| d.index == place && d.checksum.len() == 64), "{name}");
        }
        for entry in std::fs::read_dir(&folder)? {
            let (path, bytes) = entry.and_then(|e| Ok((e.path(), std::fs::read(e.path())?)))?;
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            match name.strip_suffix(".json") {
                Some(stem) => assert!(expected.iter().any(|(known, _)| *known == stem), "{name} is not looked at"),
                None => assert_eq!(exit_code(&parse(&bytes).unwrap_err()), 1, "{name}"),
            }
        }
        Ok(())
    }

    #[test]
    fn a_transaction_that_runs_is_seen() -> Result<()> {
        let busy =
            std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rpm-ostree/real-transaction-in-progress.json"))?;
        let status: Status = serde_json::from_slice(&busy)?;
        assert_eq!(status.transaction.and_then(|words| words.into_iter().next()).as_deref(), Some("Rebase"));
        let refusals = [
            "error: cleanup: Invoking cleanup: GDBus.Error:org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code26: Transaction \
             in progress: rollback\n You can cancel the current transaction with `rpm-ostree cancel`",
            "error: System transaction in progress",
        ];
        assert!(refusals.iter().all(|said| is_busy(said.as_bytes())) && !is_busy(b"error: No rollback deployment found"));
        Ok(())
    }

    #[test]
    fn a_version_may_be_missing() -> Result<()> {
        let row = format!(r#"{{"osname":"rhcos","checksum":"{}","serial":2,"booted":true}}"#, "b".repeat(64));
        let all = parse(format!(r#"{{"deployments":[{row}],"transaction":null}}"#).as_bytes())?;
        assert_eq!((all[0].version.as_deref(), all[0].serial, all[0].staged, all[0].pinned), (None, 2, false, false));
        let elsewhere = format!(r#"{{"deployments":[{}]}}"#, row.replace("rhcos", "../../x"));
        for bad in ["", "null", "{}", elsewhere.as_str(), r#"{"deployments":[{}]}"#, "error: Could not activate remote peer"] {
            assert_eq!(exit_code(&parse(bad.as_bytes()).unwrap_err()), 1);
        }
        Ok(())
    }
}
