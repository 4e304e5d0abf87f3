//! `recovery restart`: begins the open recovery again from its first phase.

use std::process::ExitCode;

use anyhow::Result;

use super::args::RestartArgs;
use super::context::Context;
use super::restore_files::begin;
use crate::recovery::{Asked, FirstPhase, Options, propose_restart};

pub(super) fn run(context: &Context, args: &RestartArgs) -> Result<ExitCode> {
    let options = Options {
        backup: args.backup.clone(),
        asked: Asked { force: args.force, step: args.step, wait: context.wait, hold: args.hold, ..Asked::default() },
        from: FirstPhase::Platform,
        compare: false,
        rules: args.resource_modifier.as_deref().map(super::modifier::rules).transpose()?,
    };
    begin(context, propose_restart(&context.session()?, options)?)
}
