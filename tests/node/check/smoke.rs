//! The node itself: what every other drill stands on.

use anyhow::{Result, ensure};

use real_node::{Node, Variant};

/// Up, an orderly reboot, a power cut: each time the API serves what it served before, and the node is Ready.
#[test]
fn a_node_comes_back_from_a_reboot_and_from_a_power_cut() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut node = Node::up(&dir.path().join("node"), &Variant::default())?;
    let boot_id = |node: &Node| node.read("/proc/sys/kernel/random/boot_id");
    node.kubectl(&["create", "configmap", "drill", "--from-literal=word=kept"])?;
    let first = boot_id(&node)?;

    node.reboot()?;
    node.wait_well()?;
    let second = boot_id(&node)?;
    ensure!(first != second, "the boot id is the same after a reboot");
    ensure!(node.kubectl(&["get", "configmap", "drill", "--output=jsonpath={.data.word}"])? == "kept");

    node.kill()?;
    ensure!(node.power()?.leader.is_none(), "a node that was killed is on: {:?}", node.power()?);
    node.boot()?;
    node.wait_well()?;
    ensure!(boot_id(&node)? != second, "the boot id is the same after a power cut");
    ensure!(node.kubectl(&["get", "configmap", "drill", "--output=jsonpath={.data.word}"])? == "kept");
    ensure!(node.power()?.boots == 3, "{:?}", node.power()?);
    node.down()
}
