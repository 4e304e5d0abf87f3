//! `ostree admin`: deployments, in boot order.
//!
//! A deployment is identified by stateroot, checksum and serial. Its index is valid for one call only, because every change of the list
//! shifts it: it is looked up just before each call, and the list is read again afterwards.

mod boot;
mod deployment;
pub mod parse;
mod soft_reboot;

use anyhow::{Context, Result, bail};

use crate::error::misfit;
use crate::node::Node;

pub use boot::kernel_arguments;
use deployment::CHANGE;
pub use deployment::{Deployment, SYSROOT, etc_of, root_of, short};
pub(super) use deployment::{are_names, mark_neighbours};
pub use soft_reboot::{NEXT_ROOT, UNDO as UNDO_SOFT_REBOOT, clear as clear_soft_reboot, is_prepared as soft_reboot_is_prepared, running};

/// True where this node is an ostree host (`/run/ostree-booted`).
#[must_use]
pub fn is_ostree(node: &Node) -> bool {
    node.exists("/run/ostree-booted")
}

/// The deployments in boot order.
///
/// # Errors
/// When ostree fails ([`FailureKind::Misfit`](crate::error::FailureKind::Misfit) after a soft reboot, where ostree may not know what it
/// runs in); when neither of the two forms of its output lists deployments.
pub fn deployments(node: &Node) -> Result<Vec<Deployment>> {
    let status = || Ok::<_, anyhow::Error>(node.command("ostree")?.args(["admin", "status"]));
    // The option exists from 2025.3 on. Unlike the text form, it fails when a commit object is missing.
    let output = status()?.arg("--json").output()?;
    let json = output.status.success().then(|| parse::json(&output.stdout));
    let unusable = match json {
        Some(Ok(all)) => return Ok(all),
        Some(Err(error)) => Some(error),
        None => None,
    };
    let output = status()?.run().map_err(|error| soft_reboot::explained(node, error))?;
    // The text form has what the JSON of another version lacks.
    parse::text(output.text()?).map_err(|error| match unusable {
        Some(unusable) => error.context(format!("{unusable:#}; then without --json")),
        None => error,
    })
}

/// Pins a deployment and checks that it is pinned. One that is already pinned is left as it is.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such deployment, or it is only staged; when ostree fails, or the
/// deployment is not pinned afterwards.
pub fn pin(node: &Node, deployment: &Deployment) -> Result<()> {
    set_pin(node, deployment, true).with_context(|| format!("pinning {deployment}"))
}

/// Unpins a deployment and checks that it is unpinned. One that is not pinned is left as it is.
///
/// # Errors
/// As [`pin`].
pub fn unpin(node: &Node, deployment: &Deployment) -> Result<()> {
    set_pin(node, deployment, false).with_context(|| format!("unpinning {deployment}"))
}

fn set_pin(node: &Node, deployment: &Deployment, pinned: bool) -> Result<()> {
    let now = find(&deployments(node)?, deployment)?;
    if now.pinned == pinned {
        return Ok(());
    }
    if now.staged {
        return Err(misfit("it is only staged, and ostree cannot pin it before it has been booted"));
    }
    let options: &[&str] = if pinned { &[] } else { &["--unpin"] };
    node.command("ostree")?.args(["admin", "pin"]).args(options).arg(now.index.to_string()).limit(CHANGE).run()?;
    let after = find(&deployments(node)?, deployment)?;
    if after.pinned != pinned {
        bail!("ostree reported success, but the deployment is {} pinned", if pinned { "not" } else { "still" });
    }
    Ok(())
}

/// Removes a deployment that is neither booted nor pinned, and checks that it alone is gone. It is fine when it was gone before.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when it is booted or pinned, or when ostree sees no booted deployment at all (it
/// would then remove the running one); when ostree fails, or something else is gone afterwards.
pub fn undeploy(node: &Node, deployment: &Deployment) -> Result<()> {
    undeploy_found(node, deployment).with_context(|| format!("removing the deployment {deployment}"))
}

fn undeploy_found(node: &Node, deployment: &Deployment) -> Result<()> {
    let before = deployments(node)?;
    let Ok(now) = find(&before, deployment) else { return Ok(()) };
    if now.booted || now.pinned {
        return Err(misfit(if now.booted { "it is booted" } else { "it is pinned" }));
    }
    if !before.iter().any(|d| d.booted) {
        return Err(misfit("ostree sees no booted deployment here, so it would not protect the running one"));
    }
    node.command("ostree")?.args(["admin", "undeploy"]).arg(now.index.to_string()).limit(CHANGE).run()?;
    let after = deployments(node)?;
    if find(&after, deployment).is_ok() {
        bail!("ostree reported success, but the deployment is still there");
    }
    if let Some(lost) = before.iter().find(|d| !d.is(deployment) && find(&after, d).is_err()) {
        bail!("the list of deployments changed at the same moment, and {lost} is gone as well: look at `ostree admin status`");
    }
    Ok(())
}

fn find(all: &[Deployment], wanted: &Deployment) -> Result<Deployment> {
    all.iter().find(|d| d.is(wanted)).cloned().ok_or_else(|| misfit(format!("there is no deployment {wanted} on this node")))
}
