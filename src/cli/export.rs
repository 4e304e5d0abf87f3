//! `recovery export`: a backup in the layout of upgrade-recovery.sh.

use std::process::ExitCode;

use anyhow::Result;

use super::args::ExportArgs;
use super::context::Context;
use crate::backup::store::{Found, find, finish_interrupted, survey};
use crate::backup::{choose, export};
use crate::report::{paths, words::line};

pub(super) fn run(context: &Context, args: &ExportArgs) -> Result<ExitCode> {
    let session = context.session()?;
    let backup = match find(&session, &survey(&context.dir)?, Some(&args.backup))? {
        Found::Backup(backup) => *backup,
        // It is imported on the way.
        Found::Old(_) => {
            let session = context.prepared_session()?.lock("export")?;
            choose(&session, &finish_interrupted(&session)?, Some(&args.backup))?
        }
    };
    let exported = export(&backup, &args.to, &context.progress)?;
    context.print(&exported, |e| {
        let how = if e.already { "is there already: nothing to do; exported" } else { "exported" };
        format!("{how} {} to {}\n", line(&e.id), paths::shown(&e.to))
    })?;
    Ok(ExitCode::SUCCESS)
}
