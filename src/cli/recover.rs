//! `recovery recover`: every phase of a recovery, through its reboots.

use std::process::ExitCode;

use anyhow::Result;

use super::args::RecoverArgs;
use super::context::Context;
use super::modifier;
use super::restore_files::{begin, describe_plan};
use crate::modifiers::RestoreFile;
use crate::recovery::{Asked, DROP_DESIRED_UPDATE, FirstPhase, Options, propose};

pub(super) fn run(context: &Context, args: &RecoverArgs) -> Result<ExitCode> {
    let (backup, rules) = match (&args.file, &args.resource_modifier) {
        (Some(file), _) => {
            let RestoreFile { backup, rules } = modifier::restore(file)?;
            (Some(backup), rules)
        }
        (None, _) if args.drop_desired_update => (args.backup.clone(), Some(DROP_DESIRED_UPDATE.to_owned())),
        (None, file) => (args.backup.clone(), file.as_deref().map(modifier::rules).transpose()?),
    };
    let options = Options {
        backup,
        asked: Asked { force: args.force, reboot: true, step: false, etcd: args.etcd_restore, wait: context.wait, hold: args.hold },
        from: FirstPhase::Platform,
        compare: args.dry_run,
        rules,
    };
    let proposal = propose(&context.session()?, options)?;
    if args.dry_run {
        context.print(&proposal.report, |report| describe_plan(report).join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    begin(context, proposal)
}
