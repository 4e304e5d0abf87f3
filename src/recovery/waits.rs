//! What the waits of a recovery look at, and how they say what is in the way: the API server, certificate requests.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;

use super::procedure::Phase;
use super::run::Doing;
use super::step;
use crate::formats::notes::StartKubeletV1;
use crate::kube::Client;
use crate::up::containers::explain;

/// How often a wait looks.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// Adds the obstacles that the API server knows of to what is said already.
pub(super) fn with_obstacles(said: String, client: &Client) -> String {
    let obstacles = client.obstacles();
    if obstacles.is_empty() { said } else { format!("{said}; {}", obstacles.join("; ")) }
}

/// Approves this node's certificate requests that are newer than the start of kubelet, after the hold was lifted. An API server that is away now
/// is asked again by the next look.
pub(super) fn approve(here: &Doing<'_, '_>, client: &Client) {
    let Some(since) = kubelet_started(here) else { return };
    match client.approve_requests(&here.run.backup.manifest.identity.node_name, since) {
        Ok(approved) if approved.is_empty() => {}
        Ok(approved) => here.run.session.progress.say(&format!("approved the node's certificate requests {}", approved.join(", "))),
        Err(error) => tracing::debug!("approving certificate requests: {error:#}"),
    }
}

/// When kubelet was started after the hold was lifted, as the wall clock of now has it, which may have been set right since: that is asked which
/// certificate requests are newer.
pub(super) fn kubelet_started(here: &Doing<'_, '_>) -> Option<Timestamp> {
    let started: StartKubeletV1 = here.noted_by(Phase::Resume, step::START_KUBELET).ok()??;
    let clock = here.run.session.node.clock();
    if clock.boot_id().ok()? != started.boot {
        return Some(started.wall);
    }
    let ago = clock.since_boot().as_secs_f64() - started.since_boot;
    Some(clock.now() - Duration::try_from_secs_f64(ago).ok()?)
}

/// Waits until the API server is ready, and returns a client of it.
pub(super) fn api(here: &mut Doing<'_, '_>) -> Result<Client> {
    let client = Client::of(here.run.session.node, here.run.profile)?;
    let pod = here.run.profile.api_server();
    let last = std::cell::RefCell::new(String::new());
    here.wait_for(
        "the API server to be ready",
        PAUSE,
        |_| match client.ready() {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                *last.borrow_mut() = format!("{error:#}");
                Ok(None)
            }
        },
        |node| format!("{}; {}", last.borrow(), explain(node, &[(pod.container, pod.namespace)])),
    )?;
    Ok(client)
}
