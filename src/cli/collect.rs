//! `recovery collect`: one archive for support.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kube::core::Selector;
use serde::Serialize;
use serde_json::Value;

use super::args::CollectArgs;
use super::context::Context;
use super::{schedule, status};
use crate::backup::store;
use crate::collect::{Collected, Report, collect, name};
use crate::gate::door;
use crate::partition;
use crate::report::{mib, paths, words::line};

/// Where the archive is put unless it is said: the root file system of the node may be read-only.
const USUAL: &str = "/var/tmp";

pub(super) fn run(context: &Context, args: &CollectArgs) -> Result<ExitCode> {
    let session = context.session()?;
    let usual = || Path::new(USUAL).join(format!("{}.tar.zst", name(&context.node, context.node.clock().now())));
    let to = args.to.clone().unwrap_or_else(usual);
    // As `--json` prints them.
    let reports: [Report<'_>; 5] = [
        ("reports/status.json", Box::new(|| json(&status::look(context)?))),
        ("reports/list.json", Box::new(|| json(&store::list(&session, &Selector::default())?))),
        ("reports/schedules.json", Box::new(|| json(&schedule::listed(context)?))),
        ("reports/partition.json", Box::new(|| json(&partition::status::status(&session)?))),
        ("reports/gate.json", Box::new(|| json(&door::status(&session)?))),
    ];
    let collected = collect(&session, &to, args.hours, &reports)?;
    context.print(&collected, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn json(report: &impl Serialize) -> Result<Value> {
    serde_json::to_value(report).context("writing the report as JSON")
}

fn describe(collected: &Collected) -> String {
    let file = paths::shown(&collected.file);
    let mut text = String::new();
    for entry in &collected.entries {
        text += &format!("{:>10}  {}{}\n", entry.bytes, line(&entry.name), if entry.cut { ", its end" } else { "" });
    }
    for missing in &collected.missing {
        text += &format!("could not be had: {}: {}\n", line(&missing.name), line(&missing.why));
    }
    text += &format!("{} files are in {file}, {}\n", collected.entries.len(), mib(collected.bytes));
    text + "keys, tokens and passwords are taken out as far as they can be told; names of hosts and addresses are in it\n"
}
