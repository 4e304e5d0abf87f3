//! CRI-O's images over power cuts: kept while a recovery is open, wiped by `crio wipe` at the next boot as ever before and after it.

use anyhow::{Result, ensure};
use recovery::tools::crictl;

use crate::through::{ended, everything, journal_says, json, node, ok, run, settled, start};
use testing::node::{Kind, Node};

const MARK: &str = "/var/lib/recovery/keep-images";
const CLEAN: &str = "/var/lib/crio/clean.shutdown";

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
