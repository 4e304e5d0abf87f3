//! The failed upgrade of a standard node, and the one command after it.

use anyhow::{Result, ensure};

use super::hands::{self, agent, back_up, is_accounted_for, nothing_was_pulled, ok, wait_recovered};
use super::node::Broken;

/// The agent's own part of a recovery, seconds, on a machine with two cores.
const OWN: f64 = 15.0;

#[test]
fn one_command_brings_a_failed_upgrade_back() -> Result<()> {
    let (node, _dir) = hands::up("")?;
    let before = back_up(&node)?;
    node.upgrade(Broken::ApiServer)?;
    let begun = std::time::Instant::now();
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    let report = wait_recovered(&node, 1)?;
    eprintln!("recovered in {:.0} s, from the command to the end", begun.elapsed().as_secs_f64());
    before.is_back(&node)?;
    is_accounted_for(&node, &before, &report, OWN)?;
    nothing_was_pulled(&node)?;
    let table = ok(&node, &["platform"])?;
    // The same backup once more, on the release that it belongs to.
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost"])?;
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    wait_recovered(&node, 2)?;
    before.is_back(&node)?;
    ensure!(agent(&node, &["resume"])?.stdout.contains("nothing to do"), "{table}");
    node.down()
}
