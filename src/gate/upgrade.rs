//! An upgrade in one command: a good backup, then the change, then watching it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::pass::{Asked, Passed, pass};
use crate::error::{AndNext, FailureKind, Next, kind, next, run, unanswered};
use crate::kube::{Client, Upgrade, Upgraded, is_gate};
use crate::node::profile::Profile;
use crate::session::Session;

/// How long the API server may take to see that its gate is open.
const SEEN: Duration = Duration::from_secs(30);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(5);
/// For how long the operator has to refuse the release: it looks again at times, and what it could not reach may be there then.
const REFUSED: Duration = Duration::from_secs(60);
/// For how long it has to be done: operators that have settled may move once more.
const HOLD: Duration = Duration::from_secs(10);

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Arrived {
    /// The backup to go back to.
    #[serde(flatten)]
    pub passed: Passed,
    /// The release that it is at now.
    pub to: String,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// Brings the cluster to the release `to`: with a good backup first. `patience` is for the upgrade alone.
///
/// # Errors
/// As [`pass`]; [`FailureKind::Unsupported`] where the API has nothing to change;
/// [`FailureKind::Unanswered`] when it has not arrived by the deadline, or when the operator has refused the release for a minute: nothing is upgraded then.
/// What leads back is its `next`.
pub fn upgrade(session: Session<'_>, asked: &Asked, to: &str, patience: Duration) -> Result<Arrived> {
    let clock = session.node.clock();
    let began = clock.since_boot();
    let (passed, here, client) = pass(session, &Asked { through_the_api: true, ..asked.clone() })?;
    let upgraded = here.upgraded_object()?;
    if passed.release != to {
        session.progress.say(&format!("asking for {to}; `recovery recover --backup {}` leads back", passed.good.id));
        let go_on = ask(session, &client, upgraded, to).and_then(|()| watch(session, upgraded, &passed.release, to, patience));
        go_on.map_err(|error| match kind(&error) {
            // An upgrade that nobody watches any more goes on.
            FailureKind::Interrupted => error.and_next(run("recovery up", "waits until everything is up")),
            FailureKind::Unanswered if next(&error).is_none() => error.and_next(way_back(&passed.good.id)),
            _ => error,
        })?;
    }
    Ok(Arrived { passed, to: to.to_owned(), seconds: clock.since_boot().saturating_sub(began).as_secs_f64() })
}

/// Asks for the release. The API server takes a moment to see that its gate is open.
fn ask(session: Session<'_>, client: &Client, upgraded: Upgraded, to: &str) -> Result<()> {
    let deadline = session.node.clock().deadline(SEEN);
    loop {
        match client.ask_for_release(upgraded, to, false) {
            Err(error) if is_gate(&error) && !deadline.passed() => session.node.clock().sleep(Duration::from_secs(1))?,
            done => return done,
        }
    }
}

fn way_back(id: &str) -> Next {
    run(format!("recovery recover --backup {id}"), "brings the release before back; `recovery status` shows how far it is")
}

/// What takes back that another release was asked for.
fn take_back(upgraded: Upgraded, from: &str) -> Next {
    let command = match upgraded {
        Upgraded::ClusterVersion => "oc adm upgrade --clear".to_owned(),
        Upgraded::Management => format!("kubectl patch management kcm --type=merge -p '{{\"spec\":{{\"release\":\"{from}\"}}}}'"),
    };
    run(command, "takes back what was asked for; nothing has been upgraded")
}

fn watch(session: Session<'_>, upgraded: Upgraded, from: &str, to: &str, patience: Duration) -> Result<()> {
    let clock = session.node.clock();
    let (deadline, mut said) = (clock.deadline(patience), String::new());
    let (mut done_since, mut refused_since) = (None, None);
    let profile = Profile::of(session.node)?;
    loop {
        // The API server is replaced under way, its certificates too.
        let look = Client::of(session.node, profile).and_then(|client| client.upgrade(upgraded, to));
        let now = clock.since_boot();
        if !matches!(look, Ok(Upgrade::Done)) {
            done_since = None;
        }
        // Whoever does not answer may refuse it still.
        if matches!(look, Ok(Upgrade::Done | Upgrade::Going(_))) {
            refused_since = None;
        }
        let says = match look {
            Ok(Upgrade::Done) if done_since.is_some_and(|since| now.saturating_sub(since) >= HOLD) => return Ok(()),
            Ok(Upgrade::Done) => {
                done_since.get_or_insert(now);
                format!("{upgraded} is at {to}")
            }
            Ok(Upgrade::Going(says)) => says,
            Ok(Upgrade::Refused(why)) if now.saturating_sub(*refused_since.get_or_insert(now)) >= REFUSED => {
                return Err(unanswered(format!("the upgrade to {to} is refused: {why}")).and_next(take_back(upgraded, from)));
            }
            Ok(Upgrade::Refused(why)) => format!("the upgrade is refused, as yet: {why}"),
            Err(error) => format!("{error:#}"),
        };
        if deadline.passed() {
            return Err(unanswered(format!("the upgrade to {to} has not arrived: {says}"))).context("watching the upgrade");
        }
        if says != said {
            session.progress.say(&says);
            said = says;
        }
        clock.sleep(PAUSE)?;
    }
}
