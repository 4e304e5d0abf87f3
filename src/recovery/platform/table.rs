//! Which deployment is booted, which boots next, and what has to be done so that both are the backup's: the platform table
//! (`ARCHITECTURE.md`, "Deployments").
//!
//! The table is a pure function of the list of deployments and the target. It is reported, with the commands that do what it asks for.

use anyhow::Result;
use serde::Serialize;

use crate::backup::manifest::DeploymentId;
use crate::error::{AndNext, Next, by_hand, misfit, run};
use crate::node::Node;
use crate::recovery::report::words_of;
use crate::tools::ostree::{self, Deployment};

/// Which deployment a backup belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The one it recorded.
    Recorded(DeploymentId),
    /// The one that is pinned: a backup by the old script records none, but pinned what was booted.
    Pinned,
}

/// What has to be done before the target is booted and first in boot order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Nothing.
    Nothing,
    /// The target is booted: drop what stands before it.
    Drop {
        /// Staged or pending deployments.
        ahead: Vec<Deployment>,
    },
    /// Drop what stands before the booted one, undeploy what stands between it and the target, `rpm-ostree rollback`, reboot.
    RollBack {
        /// Staged or pending deployments.
        ahead: Vec<Deployment>,
        /// Unpinned standbys between the booted one and the target.
        between: Vec<Deployment>,
    },
    /// The target is first after those are dropped: reboot.
    Reboot {
        /// Staged or pending deployments before it.
        ahead: Vec<Deployment>,
    },
    /// There is no way that this agent takes by itself.
    Refuse {
        /// Why.
        why: String,
        /// What a person can do about it, when it is one thing.
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "words_of")]
        way: Option<Next>,
    },
}

/// The table, filled in.
#[derive(Debug, Clone, Serialize)]
pub struct PlatformReport {
    /// The deployments in boot order; empty where the node is not an ostree host.
    pub deployments: Vec<Deployment>,
    /// What the backup wants; `None` where deployments do not matter.
    pub target: Option<Target>,
    /// What has to be done.
    pub action: Action,
    /// The same in words.
    pub summary: String,
    /// The commands that do it, in order.
    pub commands: Vec<String>,
    /// What a plain reboot would do instead of booting the first deployment, when a soft reboot is prepared. A recovery takes that back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_reboot: Option<String>,
}

impl Target {
    /// That of a backup, by the deployment that it recorded, if it did.
    #[must_use]
    pub fn of(recorded: Option<&DeploymentId>) -> Self {
        recorded.cloned().map_or(Self::Pinned, Self::Recorded)
    }

    /// Finds it, or says why it is not there.
    pub(in crate::recovery) fn find<'a>(&self, all: &'a [Deployment]) -> Result<&'a Deployment, String> {
        let mut pinned = all.iter().filter(|d| d.pinned);
        match self {
            Self::Recorded(id) => all.iter().find(|d| id.is(d)).ok_or_else(|| {
                let other = pinned.next().map_or("nothing is pinned".to_owned(), |d| format!("pinned is {}", short(d)));
                format!("the backup's deployment {} is gone; {other}", id.short())
            }),
            Self::Pinned => match (pinned.next(), pinned.next()) {
                (Some(one), None) => Ok(one),
                (None, _) => Err("the backup records no deployment, and nothing is pinned".to_owned()),
                (Some(one), Some(two)) => {
                    Err(format!("the backup records no deployment, and more than one is pinned: {} and {}", short(one), short(two)))
                }
            },
        }
    }
}

/// What the table asks for: a pure function. `all` is in boot order.
#[must_use]
pub fn judge(all: &[Deployment], target: &Target) -> Action {
    decide(all, target).unwrap_or_else(|No { why, way }| Action::Refuse { why, way })
}

/// Why the table refuses, and what a person can do about it.
struct No {
    why: String,
    way: Option<Next>,
}

impl<T: Into<String>> From<T> for No {
    fn from(why: T) -> Self {
        Self { why: why.into(), way: None }
    }
}

/// rpm-ostree drops nothing that is pinned.
fn no_because_pinned(why: &str, other: &Deployment) -> No {
    let command = format!("ostree admin pin --unpin {}", other.index);
    let way = run(command, "lets it be dropped, also if a later backup belongs to it");
    No { why: format!("{why}: {}", short(other)), way: Some(way) }
}

fn decide(all: &[Deployment], target: &Target) -> Result<Action, No> {
    let place = |wanted: &Deployment| all.iter().position(|d| d.is(wanted)).unwrap_or(all.len());
    let booted = all.iter().find(|d| d.booted).ok_or("ostree sees no booted deployment here")?;
    let target = target.find(all)?;
    let (at, running) = (place(target), place(booted));
    if target.stateroot != booted.stateroot {
        return Err(format!("the backup's deployment {} is in another stateroot than the booted {}", short(target), short(booted)).into());
    }
    // What stands before the first of the two boots next, and has to go.
    let ahead: Vec<Deployment> = all[..at.min(running)].to_vec();
    if let Some(other) = ahead.iter().find(|d| d.stateroot != booted.stateroot) {
        let way = run(format!("ostree admin undeploy {}", other.index), "removes it");
        return Err(No { why: format!("{} of another stateroot boots next", short(other)), way: Some(way) });
    }
    if let Some(other) = ahead.iter().find(|d| d.pinned) {
        return Err(no_because_pinned("something else is pinned and boots next", other));
    }
    if target.booted {
        return Ok(if ahead.is_empty() { Action::Nothing } else { Action::Drop { ahead } });
    }
    if !target.pinned {
        return Err(format!("the backup's deployment {} is not pinned: it may be about to be removed", short(target)).into());
    }
    if at < running {
        return Ok(Action::Reboot { ahead });
    }
    let between: Vec<Deployment> = all[running + 1..at].iter().filter(|d| d.stateroot == booted.stateroot).cloned().collect();
    match between.iter().find(|d| d.pinned) {
        Some(other) => Err(no_because_pinned("something else is pinned before the backup's deployment", other)),
        None => Ok(Action::RollBack { ahead, between }),
    }
}

/// The platform table of a node for a target.
///
/// # Errors
/// When ostree does not answer.
pub fn report(node: &Node, target: Target) -> Result<PlatformReport> {
    if !ostree::is_ostree(node) {
        if let Target::Recorded(id) = &target {
            let why =
                format!("the backup was taken on the deployment {}, and this node does not say that it is an ostree host", id.short());
            return Ok(PlatformReport {
                deployments: Vec::new(),
                summary: why.clone(),
                target: Some(target),
                action: Action::Refuse { why, way: None },
                commands: Vec::new(),
                soft_reboot: None,
            });
        }
        let summary = "this node is not an ostree host: it has no deployments to choose from".to_owned();
        return Ok(PlatformReport {
            deployments: Vec::new(),
            target: None,
            action: Action::Nothing,
            summary,
            commands: Vec::new(),
            soft_reboot: None,
        });
    }
    let deployments = ostree::deployments(node)?;
    let action = judge(&deployments, &target);
    let (summary, mut commands) = (action.summary(), action.commands());
    let soft_reboot = prepared(node, &deployments);
    if soft_reboot.is_some() {
        commands.insert(0, ostree::UNDO_SOFT_REBOOT.to_owned());
    }
    Ok(PlatformReport { deployments, target: Some(target), action, summary, commands, soft_reboot })
}

/// A prepared soft reboot, in words. ostree says which deployment it goes into, unless that was dropped.
fn prepared(node: &Node, all: &[Deployment]) -> Option<String> {
    let into = all.iter().find(|d| d.soft_reboot).map(short);
    if into.is_none() && !ostree::soft_reboot_is_prepared(node) {
        return None;
    }
    let into = into.unwrap_or_else(|| format!("{}, a deployment that was dropped or none of ostree's,", ostree::NEXT_ROOT));
    Some(format!(
        "a soft reboot into {into} is prepared: a plain `systemctl reboot` goes there, past the boot loader; a recovery takes that back"
    ))
}

/// That a plain reboot would not boot the first deployment but go into another, past the boot loader, when one is prepared for that.
#[must_use]
pub fn goes_past(all: &[Deployment]) -> Option<anyhow::Error> {
    let into = all.iter().find(|d| d.soft_reboot)?;
    let said = format!("a soft reboot into {} is prepared, and a reboot would go there, past the boot loader", short(into));
    Some(misfit(said).and_next(run(ostree::UNDO_SOFT_REBOOT, "takes it back, then `recovery resume`")))
}

/// When a recovery looks at the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// No run is open.
    Before,
    /// One is.
    Open,
    /// One is, and the node has rebooted since that asked for it.
    Rebooted,
}

impl PlatformReport {
    /// Checks that the target is booted and first in boot order, and that nothing goes past that; with `force`, a difference is returned as
    /// a warning.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) with the table when it is not, and not forced.
    pub fn check(&self, force: bool, when: When) -> Result<Option<String>> {
        if let Some(past) = goes_past(&self.deployments) {
            return Err(past);
        }
        if self.action == Action::Nothing { Ok(None) } else { self.refused(force, when).map(Some) }
    }

    /// That another deployment was booted than the one that was to be: which.
    fn booted_another(&self) -> Option<String> {
        let booted = self.deployments.iter().find(|d| d.booted)?;
        let target = self.target.as_ref()?.find(&self.deployments).ok().filter(|target| !target.booted)?;
        Some(format!("the node has rebooted, but it booted {} and not the backup's deployment {}; ", short(booted), short(target)))
    }

    /// Why a recovery does not go on with these deployments; with `force`, the warning with which it does.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit), with the table, unless forced.
    pub fn refused(&self, force: bool, when: When) -> Result<String> {
        let open = when != When::Before;
        // --force chooses which deployment is recovered; that it boots next is no choice, because only the booted one's kubelet is held.
        let first = self.deployments.first();
        if force && first.is_none_or(|d| d.booted) {
            return Ok(format!("going on with what is booted, by --force: {}", self.summary));
        }
        let way = match (&self.action, first) {
            (Action::Refuse { way: Some(way), .. }, _) => way.clone(),
            (Action::Refuse { .. }, Some(first)) if !first.booted => {
                run("rpm-ostree cleanup -p", "drops what boots before the booted deployment")
            }
            (Action::Refuse { .. }, _) if open => run("recovery restart --force", "begins again with what is booted"),
            (Action::Refuse { .. }, _) => by_hand("--force goes on with what is booted"),
            // The boot loader fell back, or somebody chose another entry.
            (Action::Reboot { ahead }, _) if when == When::Rebooted && ahead.is_empty() => {
                run("systemctl reboot", ", with an eye on the boot loader, then `recovery resume`")
            }
            _ if open => run("recovery restart", "begins again, with that"),
            _ => run("recovery platform --rollback", "does that, `recovery recover` the whole recovery"),
        };
        let another = self.booted_another().filter(|_| when == When::Rebooted).unwrap_or_default();
        Err(misfit(format!("{another}{}; {}", self.summary, in_order(&self.deployments))).and_next(way))
    }
}

/// The deployments as a part of one sentence.
#[must_use]
pub fn in_order(deployments: &[Deployment]) -> String {
    let rows: Vec<_> = table(deployments).lines().map(|row| row.trim().to_owned()).collect();
    format!("in boot order: {}", rows.join("; "))
}

/// The deployments as lines for people.
#[must_use]
pub fn table(deployments: &[Deployment]) -> String {
    deployments.iter().fold(String::new(), |text, d| {
        let marks = [
            (d.booted, "booted"),
            (d.staged, "staged"),
            (d.pending, "pending"),
            (d.rollback, "rollback"),
            (d.pinned, "pinned"),
            (d.soft_reboot, "soft reboot"),
        ];
        let marks: Vec<&str> = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        format!("{text}  {} {} {}\n", d.index, short(d), marks.join(", "))
    })
}

impl Action {
    /// What has to be dropped because it would boot before the target.
    #[must_use]
    pub fn ahead(self) -> Vec<Deployment> {
        match self {
            Self::Drop { ahead } | Self::RollBack { ahead, .. } | Self::Reboot { ahead } => ahead,
            Self::Nothing | Self::Refuse { .. } => Vec::new(),
        }
    }

    /// The action in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let list = |all: &[Deployment]| all.iter().map(short).collect::<Vec<_>>().join(", ");
        let first = |all: &[Deployment]| if all.is_empty() { String::new() } else { format!("drop {}; ", list(all)) };
        match self {
            Self::Nothing => "the backup's deployment is booted and boots next".to_owned(),
            Self::Drop { ahead } => format!("the backup's deployment is booted, but another one boots next: drop {}", list(ahead)),
            Self::RollBack { ahead, between } if between.is_empty() => {
                format!("the backup's deployment is the rollback slot: {}roll back and reboot", first(ahead))
            }
            Self::RollBack { ahead, between } => {
                format!("the backup's deployment stands further down: {}undeploy {}; roll back and reboot", first(ahead), list(between))
            }
            Self::Reboot { ahead } => format!("the backup's deployment is pending: {}reboot", first(ahead)),
            Self::Refuse { why, .. } => why.clone(),
        }
    }

    /// The commands that do it, in order. Indexes are those of now; the highest goes first, so that the others stay right.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        let (ahead, between, roll_back, reboot) = match self {
            Self::Nothing | Self::Refuse { .. } => return Vec::new(),
            Self::Drop { ahead } => (ahead, &Vec::new(), false, false),
            Self::RollBack { ahead, between } => (ahead, between, true, true),
            Self::Reboot { ahead } => (ahead, &Vec::new(), false, true),
        };
        let mut commands: Vec<String> = between.iter().rev().map(|d| format!("ostree admin undeploy {}", d.index)).collect();
        commands.extend((!ahead.is_empty()).then(|| "rpm-ostree cleanup -p".to_owned()));
        commands.extend(roll_back.then(|| "rpm-ostree rollback".to_owned()));
        commands.extend(reboot.then(|| "systemctl reboot".to_owned()));
        commands
    }
}

fn short(d: &Deployment) -> String {
    let version = d.version.as_ref().map_or(String::new(), |v| format!(" ({v})"));
    ostree::short(&d.stateroot, &d.checksum, d.serial) + &version
}

#[cfg(test)]
mod tests;
