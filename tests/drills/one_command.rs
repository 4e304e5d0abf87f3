//! The failed upgrade of a standard node, and the one command after it.

use std::path::Path;

use anyhow::{Result, ensure};
use recovery::recovery::RunReport;
use recovery::report::event;
use serde_json::Value;

use super::hands::{self, agent, back_up, is_accounted_for, nothing_was_pulled, wait_recovered};
use super::moment::{Stopped, wait_event};
use real_node::{Broken, Limit, Node, Variant};

/// The agent's own part of a recovery, seconds, on a machine with two cores.
const OWN: f64 = 15.0;
const SOON: Limit = Limit::of(600);

/// The entries of the node's log that bear these fields: phase, step, message.
fn logged(node: &Node, fields: &[String]) -> Result<Vec<[String; 3]>> {
    let argv = [&["journalctl", "--output=json", "--no-pager"][..], &fields.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let entry = |line: &str| {
        let entry: Value = serde_json::from_str(line)?;
        Ok(["RECOVERY_PHASE", "RECOVERY_STEP", "MESSAGE"].map(|field| entry[field].as_str().unwrap_or_default().to_owned()))
    };
    node.run(&argv)?.lines().map(entry).collect()
}

/// By its fields, the run is found in the log of all its boots: when each phase began and ended, and every step that was done.
fn is_in_the_log(node: &Node, report: &RunReport) -> Result<()> {
    let run = format!("RECOVERY_RUN={}", report.run.id);
    let outline = logged(node, &[run.clone(), format!("MESSAGE_ID={}", event::PHASE.id)])?;
    let ends = |phase: &str| ["begins", "is done"].map(|end| [phase.to_owned(), String::new(), format!("phase {phase} {end}")]);
    let phases: Vec<_> = report.run.phases.iter().flat_map(|phase| ends(&phase.phase.to_string())).collect();
    ensure!(outline == phases, "the outline of the run in the log is {outline:?}");
    let all = logged(node, &[run])?;
    for phase in &report.run.phases {
        for step in &phase.steps {
            let is_it = |[of, name, message]: &&[String; 3]| *of == phase.phase.to_string() && *name == step.name && !message.is_empty();
            ensure!(all.iter().any(|entry| is_it(&entry)), "the log has no step {} of {}", step.name, phase.phase);
        }
    }
    Ok(())
}

#[test]
fn one_command_brings_a_failed_upgrade_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut node, alone) = Node::up_alone(&dir.path().join("node"), &Variant::default())?;
    node.install(Path::new(env!("CARGO_BIN_EXE_recovery")))?;
    let before = back_up(&node)?;
    node.upgrade(Broken::ApiServer)?;
    let begun = std::time::Instant::now();
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    // The agent's own part is done but for what comes between waits.
    wait_event(&node, "redeploy etcds step-intent", SOON)?;
    drop(alone);
    let report = wait_recovered(&node, 1)?;
    eprintln!("recovered in {:.0} s, from the command to the end", begun.elapsed().as_secs_f64());
    before.is_back(&node)?;
    is_accounted_for(&node, &before, &report, OWN)?;
    is_in_the_log(&node, &report)?;
    // The same backup once more, on the release that it belongs to; and the power fails in the middle of the operators' roll-out.
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost"])?;
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    let _stopped = Stopped::at(&node, "redeploy kubeapiservers step-intent", SOON)?;
    node.kill()?;
    node.boot()?;
    let report = wait_recovered(&node, 2)?;
    before.is_back(&node)?;
    nothing_was_pulled(&node)?;
    let again = agent(&node, &["resume"])?.stdout;
    ensure!(again.contains("nothing to do"), "{again}; {report:?}");
    node.down()
}
