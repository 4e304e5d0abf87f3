//! The gate in the API server: for whoever changes the release there, without the agent.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::good::{self, Look, ReadBack};
use super::here::Here;
use crate::error::{FailureKind, kind};
use crate::kube::{Client, Permission, Skipped, Upgraded, is_gate};
use crate::node::profile::Profile;
use crate::session::Session;

/// How long the API server has to take up a new policy.
const TAKEN_UP: Duration = Duration::from_secs(60);
/// A release that there is not.
const PROBE: &str = "0.0.1-gate-probe";

/// How the gate is.
#[derive(Debug, Clone, Serialize)]
pub struct Door {
    /// What the API server's gate says; `None` when it is not installed.
    pub installed: Option<Permission>,
    /// What it is about.
    pub upgraded: Option<Upgraded>,
    /// The upgrade that passes without a backup, by the annotation on what is upgraded.
    pub skipped: Option<Skipped>,
    /// What the agent finds in the recovery directory.
    #[serde(flatten)]
    pub found: Option<Look>,
    /// Why the agent does not look there: the cluster is between two releases.
    pub why: Option<String>,
}

/// Tells the API server's gate what was found on the node, where it is installed. Only a change is written.
///
/// # Errors
/// [`FailureKind::Unanswered`] when the API does not answer; when it refuses.
pub fn keep(session: &Session<'_>, client: &Client, release: &str, found: &Look) -> Result<()> {
    client.keep_gate(&permission(release, found), &command(session))
}

fn permission(release: &str, found: &Look) -> Permission {
    let release = release.to_owned();
    match found.good.clone() {
        // However old somebody has called good enough: here it is for everybody.
        Some(good) => {
            let longest = good.taken.saturating_add(good::age(good::MAX_AGE)).unwrap_or(good.until);
            Permission::Open { release, backup: good.id, until: good.until.min(longest) }
        }
        None => Permission::Closed { release, why: found.why() },
    }
}

fn command(session: &Session<'_>) -> String {
    format!("{}/recovery gate --take", session.dir.shown().display())
}

/// Puts the gate into the API server, and sees that it holds.
///
/// # Errors
/// [`FailureKind::Unsupported`] where nothing in the API is changed by an upgrade; [`FailureKind::Unanswered`] when the gate does not hold after a minute: it
/// is taken away again then; as [`Client::install_gate`].
pub fn install(session: &Session<'_>) -> Result<Door> {
    let (here, client) = Here::of(session.node)?;
    let upgraded = here.upgraded_object()?;
    let (release, found) = match here.release() {
        Ok(release) => (release.to_owned(), good::look(session, &here, good::MAX_AGE, &mut ReadBack::default())),
        // It is closed until the cluster has arrived.
        Err(error) if kind(&error) == FailureKind::Busy => (String::new(), Err(error)),
        Err(error) => return Err(error),
    };
    let closed = |why: String| Permission::Closed { release: release.clone(), why };
    let was_there = client.installed_gate()?.is_some();
    client
        .install_gate(upgraded, &closed("the gate has just been installed".to_owned()), &command(session))
        .context("installing the gate")?;
    if let Err(error) = see_it_hold(session, &client, upgraded, true) {
        // One that held before may hold still.
        let removed = if was_there { Ok(true) } else { client.remove_gate() };
        return Err(match removed {
            Ok(_) => error,
            Err(second) => error.context(format!("the gate could not be taken away again ({second:#})")),
        });
    }
    let permission = match &found {
        Ok(found) => permission(&release, found),
        Err(error) => closed(format!("{error:#}")),
    };
    client.set_gate(&permission, &command(session))?;
    status(session)
}

/// Tries a change that nothing keeps until the gate refuses it, or until it does so no more.
fn see_it_hold(session: &Session<'_>, client: &Client, upgraded: Upgraded, holds: bool) -> Result<()> {
    let deadline = session.node.clock().deadline(TAKEN_UP);
    let last = std::cell::RefCell::new(String::new());
    let refuses = || match client.ask_for_release(upgraded, PROBE, true) {
        Err(error) if is_gate(&error) => Ok(true),
        // The API server itself, or another's webhook, may not take such a release.
        Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
        Err(error) => {
            last.replace(format!(": {error:#}"));
            Ok(!holds && kind(&error) == FailureKind::Unanswered)
        }
        Ok(()) => Ok(false),
    };
    let (what, still) = if holds { ("refuse an upgrade", "takes") } else { ("take an upgrade", "refuses") };
    deadline.wait_for(
        &format!("the API server to {what}"),
        Duration::from_secs(1),
        || Ok((refuses()? == holds).then_some(())),
        || format!("it still {still} a change of the {upgraded}{}", last.borrow()),
    )
}

/// How the gate is; nothing is changed.
///
/// # Errors
/// [`FailureKind::Unanswered`] when the API does not answer.
pub fn status(session: &Session<'_>) -> Result<Door> {
    let (here, client) = Here::of(session.node)?;
    let found = here.release().map(drop).and_then(|()| good::look(session, &here, good::MAX_AGE, &mut ReadBack::default()));
    let (found, why) = match found {
        Ok(found) => (Some(found), None),
        Err(error) if kind(&error) == FailureKind::Busy => (None, Some(format!("{error:#}"))),
        Err(error) => return Err(error),
    };
    let upgraded = here.upgraded();
    let skipped = upgraded.map(|upgraded| client.skipped(upgraded)).transpose()?.flatten();
    Ok(Door { installed: client.installed_gate()?, upgraded, skipped, found, why })
}

/// Takes the gate away, and sees that it is gone; false when there was none.
///
/// # Errors
/// [`FailureKind::Unanswered`] when the API does not answer, or refuses upgrades a minute later still; when it refuses.
pub fn remove(session: &Session<'_>) -> Result<bool> {
    let (here, client) = Here::of(session.node)?;
    let was_there = client.remove_gate()?;
    if let Some(upgraded) = here.upgraded().filter(|_| was_there) {
        see_it_hold(session, &client, upgraded, false)?;
    }
    Ok(was_there)
}

/// Closes the API server's gate where it is open by one of the backups that are `gone`. Where the API server does not answer, nobody upgrades either.
pub fn forget(session: &Session<'_>, gone: &[String]) {
    let close = || -> Result<()> {
        let client = Client::of(session.node, Profile::of(session.node)?)?;
        match client.installed_gate()? {
            Some(Permission::Open { release, backup, .. }) if gone.contains(&backup) => {
                let why = format!("the backup {backup} was deleted");
                client.set_gate(&Permission::Closed { release, why }, &command(session))
            }
            _ => Ok(()),
        }
    };
    if let Err(error) = close() {
        tracing::debug!("looking at the gate in the API server: {error:#}");
    }
}
