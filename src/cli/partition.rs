//! `recovery partition`: the recovery directory on a file system of its own.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::args::partition::{CreateArgs, DiskArgs, IgnitionArgs, MachineconfigArgs, PartitionVerb};
use super::context::Context;
use crate::error::{AndNext, by_hand, misfit, usage};
use crate::node::clock::interrupted;
use crate::node::{block, durable};
use crate::partition::create::{Plan, Proposal, propose};
use crate::partition::status::{self, Cost, Status};
use crate::partition::{Wanted, create as making, ignition, machineconfig, named, siteconfig};
use crate::report::words::line;
use crate::report::{mib, paths};

/// The most bytes of a file that is edited.
const MOST: u64 = 16 << 20;

pub(super) fn run(context: &Context, verb: &PartitionVerb) -> Result<ExitCode> {
    match verb {
        PartitionVerb::Ignition(args) => ignition(context, args),
        PartitionVerb::Machineconfig(args) => machine_config(context, args),
        PartitionVerb::Create(args) => create(context, args),
        PartitionVerb::Status => context.print(&status::status(&context.session()?)?, describe),
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// Refuses a disk that the override names already, by another name; where this machine does not know what the others are, that is a warning.
fn other_names(context: &Context, wanted: &Wanted, others: &[String]) -> Result<Option<String>> {
    let name = |device: &str| block::name_of(&context.node, Path::new(device)).ok();
    let (device, own) = (&wanted.device, name(&wanted.device));
    let mut untold = Vec::new();
    for other in others {
        match (&own, name(other)) {
            (Some(own), Some(name)) if *own == name => {
                return Err(usage(format!("the override names {device} already, as {other}: Ignition would take two names for two disks"))
                    .and_next(by_hand(format!("name it so: --device {other}"))));
            }
            (Some(_), Some(_)) => {}
            _ => untold.push(other.as_str()),
        }
    }
    Ok((!untold.is_empty()).then(|| {
        let others = untold.join(", ");
        format!("warning: the override names {others} too. If that is {device} by another name, give --device that name: Ignition takes two names for two disks")
    }))
}

fn ignition(context: &Context, args: &IgnitionArgs) -> Result<()> {
    let wanted = wanted(context, &args.disk, Some(args.start_mib), args.size_mib)?;
    let note = note(context, &wanted)?;
    note.iter().for_each(|note| context.progress.say(note));
    let Some(file) = &args.siteconfig else {
        let value = ignition::one_line(&ignition::config(&wanted));
        let report = Override { value, node: None, written: None, note, kept: Vec::new(), warning: None };
        // As it is pasted behind the key: without the quotes YAML reads a mapping.
        return context.print(&report, |report| format!("{}\n", siteconfig::quoted(&report.value)));
    };
    // A link stays a link.
    let place = file.canonicalize().map_err(|error| misfit(format!("{}: {error}", file.display())))?;
    let edit = || -> Result<siteconfig::Edited> {
        let bytes = durable::read(&place, MOST)?;
        siteconfig::put(std::str::from_utf8(&bytes).context("it is not text")?, args.node.as_deref(), &wanted)
    };
    let siteconfig::Edited { node, value, text, kept, others } = edit().with_context(|| format!("reading {}", file.display()))?;
    let warning = other_names(context, &wanted, &others)?;
    if let Some(text) = &text {
        durable::rewrite(&place, text.as_bytes())?;
    }
    kept.iter().chain(&warning).for_each(|said| context.progress.say(said));
    let report = Override { value, written: Some(text.is_some()), node: Some(node), note, kept, warning };
    context.print(&report, |report| {
        let (name, file) = (line(report.node.as_deref().unwrap_or_default()).into_owned(), paths::shown(file));
        if text.is_some() {
            format!("the entry of {name} in {file} has the recovery partition now\n")
        } else {
            format!("the entry of {name} in {file} has this recovery partition: nothing to do\n")
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

fn create(context: &Context, args: &CreateArgs) -> Result<()> {
    let device = named(&args.disk.device, args.disk.force)?;
    let session = context.prepared_session()?;
    // Before the question: what is shown must still be so after the answer.
    let locked = session.lock("partition create")?;
    let (plan, begun) = match propose(&locked, &device, args.size_mib)? {
        Proposal::Nothing => {
            return context.print(&serde_json::json!({ "already": true }), |_| {
                format!("{} lies on a partition of that disk already: nothing to do\n", context.dir.shown().display())
            });
        }
        Proposal::Do(plan, begun) => (*plan, begun),
    };
    context.confirm(&consent(context, &plan))?;
    let made = making::create(&locked, plan, begun.as_ref(), &interrupted)?;
    context.print(&made, |made| format!("{} lies on {} now\n", context.dir.shown().display(), line(&made.partition)))
}

fn consent(context: &Context, plan: &Plan) -> Vec<String> {
    let dir = context.dir.shown().display();
    let mut text = vec![format!("the disk {} ({}) now:", plan.device, plan.disk)];
    text.extend(plan.before.lines().map(str::to_owned));
    if plan.continues {
        text.push("An interrupted run is gone on with.".to_owned());
    } else {
        text.push("and then:".to_owned());
        text.extend(plan.after.lines().map(str::to_owned));
    }
    if plan.root_disk {
        text.push(
            "This node runs from that disk: a failure of the disk takes the backups with it, one of the root file system does not."
                .to_owned(),
        );
    }
    text.push(format!(
        "The new partition gets an XFS file system; what {dir} holds is moved onto it, and it is mounted there, now and at every boot."
    ));
    text
}

fn describe(status: &Status) -> String {
    let joined = |disks: &[String]| if disks.is_empty() { "a disk that the kernel does not name".to_owned() } else { disks.join(", ") };
    let own = if status.own_file_system { "a file system of its own" } else { "no file system of its own" };
    let mut text =
        format!("{} lies on {own}, on {}: {} free of {}\n", status.dir, joined(&status.disks), mib(status.free), mib(status.size));
    text += match status.cost {
        Cost::Nothing => "a failure of the root disk would cost no backup\n",
        Cost::WithTheDisk => "a failure of the root file system would cost no backup; one of the root disk would cost all of them\n",
        Cost::Everything => {
            "a failure of the root file system or of its disk would cost all backups: `recovery partition create` gives them a partition\n"
        }
    };
    if let (Some(unit), Some(what)) = (&status.unit, &status.what) {
        text += &format!("mounted at a boot: {} ({})\n", line(what), line(unit));
    }
    if let Some(problem) = &status.problem {
        text += &format!("wrong: {}\n", line(problem));
    }
    if status.below > 0 {
        text += &format!("below the mount, out of sight: {}", mib(status.below));
        let (folder, name) = status.dir.rsplit_once('/').unwrap_or_default();
        // What goes on with a creation removes it.
        text += &if status.open.is_some() { "\n".to_owned() } else { format!("; `mount --bind {folder}/ /mnt` shows it in /mnt/{name}\n") };
    }
    for next in status.next.iter().chain(&status.open) {
        text += &format!("next: {}\n", line(&next.to_string()));
    }
    text
}
