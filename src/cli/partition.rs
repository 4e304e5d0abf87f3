//! `recovery partition`: the recovery directory on a file system of its own.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::args::partition::{DiskArgs, IgnitionArgs, MachineconfigArgs, PartitionVerb};
use super::context::Context;
use crate::error::{misfit, usage};
use crate::node::{block, durable};
use crate::partition::{Wanted, ignition, machineconfig, siteconfig};
use crate::report::paths;
use crate::report::words::line;

/// The most bytes of a file that is edited.
const MOST: u64 = 16 << 20;

pub(super) fn run(context: &Context, verb: &PartitionVerb) -> Result<ExitCode> {
    match verb {
        PartitionVerb::Ignition(args) => ignition(context, args),
        PartitionVerb::Machineconfig(args) => machine_config(context, args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(context: &Context, disk: &DiskArgs, start: Option<u64>, size: u64) -> Result<Wanted> {
    Wanted::new(&disk.device, start, size, context.dir.shown(), disk.force)
}

/// What is known of the disk where the command runs on the node that has it: that the node runs from it.
fn note(context: &Context, wanted: &Wanted) -> Result<Option<String>> {
    let Ok(name) = block::name_of(&context.node, Path::new(&wanted.device)) else { return Ok(None) };
    if !block::root_disks(&context.node).contains(&block::whole(&context.node, &name)) {
        return Ok(None);
    }
    if wanted.start_mib.is_none() {
        return Err(usage(format!(
            "{} is the disk that this node runs from: give --start-mib, behind the room that the root file system is to have, or the partition is put right \
             behind the installed image and keeps it from growing",
            wanted.device
        )));
    }
    Ok(Some(format!("{} is the disk that this node runs from ({name})", wanted.device)))
}

/// `partition ignition --json`
#[derive(Serialize)]
struct Override {
    #[serde(rename = "ignitionConfigOverride")]
    value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

fn ignition(context: &Context, args: &IgnitionArgs) -> Result<()> {
    let wanted = wanted(context, &args.disk, Some(args.start_mib), args.size_mib)?;
    let note = note(context, &wanted)?;
    note.iter().for_each(|note| context.progress.say(note));
    let Some(file) = &args.siteconfig else {
        let value = ignition::one_line(&ignition::config(&wanted));
        return context.print(&Override { value, node: None, written: None, note }, |report| format!("{}\n", report.value));
    };
    // A link stays a link.
    let place = file.canonicalize().map_err(|error| misfit(format!("{}: {error}", file.display())))?;
    let edit = || -> Result<siteconfig::Edited> {
        let bytes = durable::read(&place, MOST)?;
        siteconfig::put(std::str::from_utf8(&bytes).context("it is not text")?, args.node.as_deref(), &wanted)
    };
    let siteconfig::Edited { node, value, text } = edit().with_context(|| format!("reading {}", file.display()))?;
    if let Some(text) = &text {
        durable::rewrite(&place, text.as_bytes())?;
    }
    let report = Override { value, written: Some(text.is_some()), node: Some(node), note };
    context.print(&report, |report| {
        let (node, file) = (line(report.node.as_deref().unwrap_or_default()).into_owned(), paths::shown(file));
        if text.is_some() {
            format!("the entry of {node} in {file} has the recovery partition now\n")
        } else {
            format!("the entry of {node} in {file} has this recovery partition: nothing to do\n")
        }
    })
}

fn machine_config(context: &Context, args: &MachineconfigArgs) -> Result<()> {
    let wanted = wanted(context, &args.disk, args.start_mib, args.size_mib)?;
    let note = note(context, &wanted)?;
    note.iter().for_each(|note| context.progress.say(note));
    let manifest = machineconfig::manifest(&wanted, &args.role, note.as_deref())?;
    let report: serde_json::Value = crate::node::yaml::first(&manifest)?;
    context.print(&report, |_| manifest.clone())
}
