//! From a container to its host: a verb about the node is carried out by the copy of the agent that is installed there. And on the host, from an
//! older agent to the newer one.

use std::ffi::OsString;

use anyhow::{Context as _, Result};

use super::args::Cli;
use crate::agent::{self, install};
use crate::backup::asked_by::{AskedBy, HANDED_ON};
use crate::backup::take::trees::refuse_dir_inside;
use crate::error::{AndNext, FailureKind, by_hand, kind, misfit};
use crate::node::host::{self, Host};
use crate::node::{Node, dir::RecoveryDir};
use crate::report::termination::TerminationLog;

/// In a container: joins its host, installs the agent there and becomes it. On a host that has a newer agent in its recovery directory: becomes that.
/// For verbs that are not about the node, does nothing.
///
/// # Errors
/// When no way leads from this pod to its node; when the agent cannot be installed there; as [`agent::hand_over`].
pub(super) fn host(cli: &Cli, termination: Option<&TerminationLog>) -> Result<()> {
    if cli.global.root.is_some() || !cli.verb(false)?.is_about_the_node() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if cli.verb(false)?.stops_containers() && host::is_container() {
        return Err(misfit("this runs in a container, and a recovery stops all of them, itself among them")
            .and_next(by_hand("log in to the node over SSH and run it there")));
    }
    let Some(host) = Host::outside()? else {
        return agent::hand_over(&RecoveryDir::new(&Node::live(), &cli.global.dir));
    };
    let asked_by = AskedBy::this_process().to_string();
    host.join().context("entering the host")?;
    let (node, dir) = (Node::live(), RecoveryDir::new(&Node::live(), &cli.global.dir));
    install(&node, &dir)?;
    let mut variables = vec![(HANDED_ON, OsString::from(asked_by))];
    variables.extend(termination.map(TerminationLog::hand_on).transpose()?);
    host::exec(&dir.agent(), &variables).map(|never| match never {})
}

/// Installs this program on the host. While a recovery is open, or another agent at work, the one that is there already stays.
fn install(node: &Node, dir: &RecoveryDir) -> Result<()> {
    refuse_dir_inside(node, dir)?;
    let there = dir.agent().exists();
    if there && dir.in_recovery() {
        return Ok(());
    }
    dir.prepare()?;
    match dir.lock("backup") {
        Ok(_lock) => install::install(node, dir).context("installing the agent on the host"),
        Err(error) if there && kind(&error) == FailureKind::Locked => Ok(()),
        Err(error) => Err(error),
    }
}
