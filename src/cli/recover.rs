//! `recovery recover`: every phase of a recovery, through its reboots.

use std::process::ExitCode;

use anyhow::Result;

use super::args::RecoverArgs;
use super::context::Context;
use super::restore_files::begin;
use crate::recovery::{Asked, FirstPhase, Options, plan};

pub(super) fn run(context: &Context, args: &RecoverArgs) -> Result<ExitCode> {
    let options = Options {
        backup: args.backup.clone(),
        asked: Asked { force: args.force, reboot: true, step: false, etcd: args.etcd_restore, wait: context.wait },
        from: FirstPhase::Platform,
        compare: false,
    };
    begin(context, plan(&context.session()?, options)?)
}
