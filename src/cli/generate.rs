//! `recovery generate`: man pages and shell completions, from the definitions of the command line; journald's message catalog.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::{Cli, GenerateArgs};
use crate::error::usage;
use crate::report::event;

/// The manual's section of system administration.
const SECTION: &str = "8";

pub(super) fn run(args: &GenerateArgs) -> Result<ExitCode> {
    std::fs::create_dir_all(&args.to).with_context(|| format!("making {}", args.to.display()))?;
    if args.what == "man" {
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        man_pages(&command, "recovery", &args.to)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.what == "catalog" {
        let path = args.to.join("recovery.catalog");
        std::fs::write(&path, event::catalog()).with_context(|| format!("writing {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let shell = Shell::from_str(&args.what, true).map_err(|_| usage(format!("`{}` is neither `man`, `catalog` nor a shell", args.what)))?;
    clap_complete::generate_to(shell, &mut Cli::command(), "recovery", &args.to).context("writing completions")?;
    Ok(ExitCode::SUCCESS)
}

/// One page for the command and one for each verb below it: `recovery-etcd-save.8`.
fn man_pages(command: &clap::Command, name: &str, to: &Path) -> Result<()> {
    let path = to.join(format!("{name}.{SECTION}"));
    let mut page = Vec::new();
    Man::new(command.clone()).title(name).section(SECTION).render(&mut page).context("making a man page")?;
    std::fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
        .try_for_each(|verb| man_pages(verb, &format!("{name}-{}", verb.get_name()), to))
}
