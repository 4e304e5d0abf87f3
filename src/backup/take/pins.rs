//! Pins: the booted deployment is pinned before a backup, so that machine-config-daemon's clean-up does not take it away, and unpinned when
//! no backup needs it any more. Every pin holds a kernel in `/boot`.
//!
//! `pins.json` in the recovery directory names the pins that are the agent's own. It is written *before* a pin is set: a pin of somebody
//! else's is never dropped; if the file is lost, pins stay, and nothing worse.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::backup::manifest::DeploymentId;
use crate::backup::survey::Survey;
use crate::error::damaged;
use crate::node::{Node, dir::RecoveryDir, durable};
use crate::tools::ostree::{self, Deployment};

const FILE: &str = "pins.json";
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pins {
    version: u32,
    ours: Vec<DeploymentId>,
}

/// Pins `deployment`, unless it is pinned already.
///
/// # Errors
/// When `pins.json` cannot be read or written, or the pin cannot be set.
pub fn pin(node: &Node, dir: &RecoveryDir, deployment: &Deployment) -> Result<()> {
    if deployment.pinned {
        return Ok(());
    }
    let mut pins = read(dir)?;
    if !pins.ours.iter().any(|ours| ours.is(deployment)) {
        pins.ours.push(DeploymentId::of(deployment, Vec::new()));
        write(dir, &pins)?;
    }
    ostree::pin(node, deployment).context("pinning the booted deployment")
}

/// Drops the agent's own pins that no backup of `kept` needs; the checksums of those deployments.
///
/// # Errors
/// When a damaged backup may need one of them, `pins.json` cannot be read or written, or ostree fails.
pub fn drop_unneeded(node: &Node, dir: &RecoveryDir, kept: &Survey) -> Result<Vec<String>> {
    let mut pins = read(dir)?;
    if pins.ours.is_empty() {
        return Ok(Vec::new());
    }
    if let Some((id, _)) = kept.damaged.first() {
        return Err(damaged(format!("the backup {id} is damaged and does not say which deployment it needs")));
    }
    let needed = |ours: &DeploymentId| {
        kept.backups
            .iter()
            .filter_map(|b| b.manifest.deployment.as_ref())
            .any(|d| (&d.stateroot, &d.checksum, d.serial) == (&ours.stateroot, &ours.checksum, ours.serial))
    };
    if pins.ours.iter().all(needed) {
        return Ok(Vec::new());
    }
    let deployments = ostree::deployments(node)?;
    let mut dropped = Vec::new();
    let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut pins.ours).into_iter().partition(|ours| needed(ours));
    for ours in &go {
        if let Some(deployment) = deployments.iter().find(|d| ours.is(d) && d.pinned) {
            ostree::unpin(node, deployment).with_context(|| format!("unpinning {}.{}", ours.checksum, ours.serial))?;
            dropped.push(ours.checksum.clone());
        }
    }
    pins.ours = stay;
    write(dir, &pins)?;
    Ok(dropped)
}

fn read(dir: &RecoveryDir) -> Result<Pins> {
    let path = dir.path().join(FILE);
    let bytes = match durable::read(&path, durable::SMALL) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Pins { version: VERSION, ours: Vec::new() }),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let wrong = |why: String| {
        damaged(format!("{} is not valid ({why}): remove it, and look at the pins of `ostree admin status` by hand", path.display()))
    };
    let pins: Pins = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    if pins.version == VERSION { Ok(pins) } else { Err(wrong(format!("version {}", pins.version))) }
}

fn write(dir: &RecoveryDir, pins: &Pins) -> Result<()> {
    let json = serde_json::to_vec_pretty(pins).context("putting the pins into JSON")?;
    durable::write(&dir.path().join(FILE), &json, 0o600)
}
