//! Pins: the booted deployment is pinned before a backup, so that machine-config-daemon's clean-up does not remove it, and unpinned when no
//! backup needs it any more. Every pin keeps a kernel in `/boot`.
//!
//! `pins.json` in the recovery directory lists the agent's own pins. It is written *before* a pin is set, so nobody else's pin is ever
//! dropped. If the file is lost, pins stay; nothing worse happens.

use anyhow::{Context, Result};

use crate::backup::manifest::DeploymentId;
use crate::backup::survey::Survey;
use crate::error::{AndNext, FailureKind, by_hand, damaged, kind, unsupported};
use crate::formats::pins::{self as format, FORMAT, V1};
use crate::formats::seal;
use crate::node::{Node, dir::RecoveryDir, durable};
use crate::tools::ostree::{self, Deployment};

/// Pins `deployment`, unless it is pinned already.
///
/// # Errors
/// When `pins.json` cannot be read or written, or the pin cannot be set.
pub fn pin(node: &Node, dir: &RecoveryDir, deployment: &Deployment) -> Result<()> {
    if deployment.pinned {
        return Ok(());
    }
    let mut ours = read(dir)?;
    if !ours.iter().any(|pin| pin.is(deployment)) {
        ours.push(DeploymentId::of(deployment, Vec::new()));
        write(dir, ours)?;
    }
    ostree::pin(node, deployment).context("pinning the booted deployment")
}

/// Drops the agent's own pins that no backup in `kept` needs; returns the checksums of those deployments.
///
/// # Errors
/// When a backup that cannot be read may need one of them, `pins.json` cannot be read or written, or ostree fails.
pub fn drop_unneeded(node: &Node, dir: &RecoveryDir, kept: &Survey) -> Result<Vec<String>> {
    let ours = read(dir)?;
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    if let Some((id, _)) = kept.unsupported.first() {
        return Err(unsupported(format!("the backup {id} is not supported and does not say to this agent which deployment it needs")));
    }
    if let Some((id, _)) = kept.damaged.first() {
        return Err(damaged(format!("the backup {id} is damaged and does not say which deployment it needs")));
    }
    let needed = |pin: &DeploymentId| kept.backups.iter().filter_map(|b| b.manifest.deployment.as_ref()).any(|d| d.is_same(pin));
    let (stay, go): (Vec<_>, Vec<_>) = ours.into_iter().partition(needed);
    if go.is_empty() {
        return Ok(Vec::new());
    }
    let deployments = ostree::deployments(node)?;
    let mut dropped = Vec::new();
    for pin in &go {
        if let Some(deployment) = deployments.iter().find(|d| pin.is(d) && d.pinned) {
            ostree::unpin(node, deployment).with_context(|| format!("unpinning {}.{}", pin.checksum, pin.serial))?;
            dropped.push(pin.checksum.clone());
        }
    }
    write(dir, stay)?;
    Ok(dropped)
}

/// The deployments that the agent has pinned.
fn read(dir: &RecoveryDir) -> Result<Vec<DeploymentId>> {
    let path = dir.path().join(FORMAT.name);
    let bytes = match durable::read(&path, durable::SMALL) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let pins = format::read(&bytes).map_err(|error| match kind(&error) {
        FailureKind::Damaged => error.and_next(by_hand(format!(
            "remove {}, and look at the pins of `ostree admin status` by hand",
            dir.shown().join(FORMAT.name).display()
        ))),
        _ => error,
    })?;
    Ok(pins.ours.into_iter().map(Into::into).collect())
}

fn write(dir: &RecoveryDir, ours: Vec<DeploymentId>) -> Result<()> {
    let pins = V1 { version: FORMAT.version, ours: ours.into_iter().map(Into::into).collect() };
    let json = seal(&pins).context("putting the pins into JSON")?;
    durable::write(&dir.path().join(FORMAT.name), &json, 0o600)
}
