//! `recovery show`: one backup's manifest.

use std::process::ExitCode;

use anyhow::Result;

use super::args::ChosenArgs;
use super::context::Context;
use super::list::status;
use crate::backup::store::{self, Shown, State};
use crate::report::{mib, paths, words::line};

pub(super) fn run(context: &Context, args: &ChosenArgs) -> Result<ExitCode> {
    let shown = store::show(&context.session()?, &args.backup)?;
    context.print(&shown, describe)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn logs(context: &Context, args: &ChosenArgs) -> Result<ExitCode> {
    let log = store::logs(&context.session()?, &args.backup)?;
    context.print(&log, Clone::clone)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(shown: &Shown) -> String {
    let Some(m) = &shown.manifest else { return describe_old(shown) };
    let none = || "-".to_owned();
    let deployment = m
        .deployment
        .as_ref()
        .map_or_else(none, |d| format!("{} {}.{} {}", d.stateroot, d.checksum, d.serial, d.version.as_deref().unwrap_or("")));
    let cluster = m.cluster.as_ref().map_or_else(none, |c| format!("{} at {}", c.id, c.version));
    let lines = [
        ("backup", m.id.clone()),
        ("status", status(shown.state).to_owned()),
        ("name", m.name.clone().unwrap_or_else(none)),
        ("labels", m.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")),
        ("taken", format!("{}{}", m.taken, m.seconds.map_or_else(String::new, |seconds| format!(" in {seconds} s")))),
        ("asked by", m.asked_by.to_string()),
        ("node", format!("{} (machine {})", m.identity.node_name, m.identity.machine_id)),
        ("cluster", cluster),
        ("deployment", deployment.trim_end().to_owned()),
        ("etcd", format!("revision {}, {} keys, {}", m.etcd.revision, m.etcd.keys.map_or_else(none, |k| k.to_string()), mib(m.etcd.bytes))),
        ("certificates expire", m.certificates_expire.map_or_else(none, |t| t.to_string())),
        ("k0rdent", m.management.as_ref().and_then(|management| management.release.clone()).unwrap_or_else(none)),
        ("images in use", m.images.len().to_string()),
        ("workloads up", m.workloads.as_ref().map_or_else(none, |all| all.len().to_string())),
        ("in", paths::shown(&shown.path)),
    ];
    let mut text: String = lines.iter().map(|(what, value)| format!("{what:<20} {}\n", line(value))).collect();
    for (file, stored) in &shown.files {
        let content = m.sizes.get(file).map_or_else(String::new, |bytes| format!("  of {}", mib(*bytes)));
        text += &format!("  {:<26} {:>11}{content}\n", line(file), mib(*stored));
    }
    for warning in &m.warnings {
        text += &format!("warning: {}\n", line(warning));
    }
    text + &trouble(shown)
}

/// What is wrong with it, and what to do.
fn trouble(shown: &Shown) -> String {
    let Some(reason) = &shown.reason else { return String::new() };
    let next = match shown.state {
        State::Expired => "`recovery backup` takes another one; a recovery from this one has to renew certificates",
        State::OtherNode => "`recovery list` shows those of this node",
        _ => "`recovery verify` says all that is wrong with each backup",
    };
    format!("{}: {}; next: {next}\n", status(shown.state), line(reason))
}

/// What upgrade-recovery.sh left says of itself.
fn describe_old(shown: &Shown) -> String {
    let lines = [
        ("backup", shown.id.clone()),
        ("taken", shown.taken.map_or_else(|| "-".to_owned(), |t| t.to_string())),
        ("asked by", "upgrade-recovery.sh; more is known of it when a recovery has imported it".to_owned()),
        ("in", paths::shown(&shown.path)),
    ];
    let mut text: String = lines.iter().map(|(what, value)| format!("{what:<20} {}\n", line(value))).collect();
    for (part, stored) in &shown.files {
        text += &format!("  {:<26} {:>11}\n", line(part), mib(*stored));
    }
    text + &trouble(shown)
}
