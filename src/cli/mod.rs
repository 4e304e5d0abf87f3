//! The command line: a file for each command (`list` has those that remove, too), which parses its arguments, calls and prints. The exit code of a
//! failure is made by [`run`].
//!
//! Reading order: [`args`] (what can be said), this page (from there to the command), [`context`] (what every command has: the node, the
//! recovery directory, consent, output), [`enter`] (from a container to its host), then the commands.

mod abandon;
mod archive;
pub mod args;
mod backup;
mod collect;
mod context;
mod enter;
mod etcd;
mod export;
mod gate;
mod generate;
mod hub;
mod list;
mod metrics;
mod modifier;
mod partition;
mod platform;
mod recover;
mod report;
mod restart;
mod restore_files;
mod resume;
mod schedule;
mod screen;
mod show;
mod status;
mod up;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::error::{self, AndNext, FailureKind, Next, by_hand, kind, to_exit};
use crate::node::clock::catch_signals;
use crate::node::dir::RecoveryDir;
use crate::report::event::{self, About};
use crate::report::{Progress, log, termination::TerminationLog, to_stderr, words};
use args::{Cli, Verb};
use context::Context;

/// The whole program: parses the command line, runs the command, says how it ended, and returns the documented exit code.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for; anything else is usage, which clap ends with 2 as documented.
            show_parser(&error);
            // Whoever asks for JSON gets JSON, for a command line that makes no sense too.
            if error.use_stderr() && std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json") {
                context::print_json(&serde_json::json!({
                    "error": said(&error),
                    "kind": FailureKind::Usage,
                    "next": null,
                    "exit": error.exit_code(),
                }))
                .ok();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let termination = TerminationLog::find();
    let failed = |error: &anyhow::Error| {
        let text = words::line(&context::as_called(&format!("{error:#}"), &cli.global.dir)).into_owned();
        termination.as_ref().inspect(|log| log.say(&text));
        text
    };
    // Before any thread exists: a process with threads cannot change its mounts.
    if let Err(error) = enter::host(&cli, termination.as_ref()) {
        to_stderr(&format!("error: {}", failed(&error)));
        return to_exit(&error);
    }
    let progress = Progress::to_stderr();
    let dir = cli.global.dir.clone();
    log::start(cli.global.root.is_none(), cli.global.verbose, &progress, Box::new(move |text| context::as_called(text, &dir)));
    let json = cli.global.json;
    match catch_signals().and_then(|()| dispatch(&cli, &progress)) {
        Ok(code) => code,
        Err(error) => {
            let (exit, next) = (Some(error::exit_code(&error)), error::next(&error).map(ToString::to_string));
            let about = About { exit, next: Some(next.as_deref().unwrap_or(event::NO_NEXT)), ..About::default() };
            event::tell(&event::COMMAND_FAILED, about, &failed(&error));
            if json {
                // The failure itself is what counts.
                context::print_json(&serde_json::json!({
                    "error": error::said(&error),
                    "kind": kind(&error),
                    "next": error::next(&error).map(|next| context::next_as_called(next, &cli.global.dir)),
                    "exit": error::exit_code(&error),
                }))
                .ok();
            }
            to_exit(&error)
        }
    }
}

/// The sentence of a parser's error, without the usage and hints that follow it.
fn said(error: &clap::Error) -> String {
    let text = error.to_string();
    let end = text.find("\n\n").unwrap_or(text.len());
    text[..end].trim_start_matches("error: ").trim_end().to_owned()
}

/// What the parser says. An error quotes the command line, in which a shell may have put names of files: it is shown without colours, which
/// such a name could bring along.
fn show_parser(error: &clap::Error) {
    if error.use_stderr() {
        error.to_string().lines().for_each(to_stderr);
    } else {
        error.print().ok();
    }
}

fn dispatch(cli: &Cli, progress: &Progress) -> Result<ExitCode> {
    if let Verb::Generate(args) = cli.verb(false)? {
        return generate::run(&args);
    }
    let context = Context::new(&cli.global, progress.clone())?;
    let verb = cli.verb(context.dir.in_recovery())?;
    if verb.needs_root() {
        context.require_root().inspect_err(|error| {
            if matches!(verb, Verb::Backup(_)) {
                backup::could_not_begin(&context, error);
            }
        })?;
    }
    perform(&context, verb).map_err(|error| match kind(&error) {
        FailureKind::NoSpace => with_way_out(&context.dir, error),
        FailureKind::Interrupted if error::next(&error).is_none() => error.and_next(by_hand("run the same command again: nothing is lost")),
        _ => error,
    })
}

/// A full disk, with what to do about it. During a recovery `delete` and `prune` refuse: what makes room then, and only then, is a person.
fn with_way_out(dir: &RecoveryDir, error: anyhow::Error) -> anyhow::Error {
    if dir.in_recovery() {
        let shown = dir.shown();
        let how = format!("if the full disk is that of {}: {}; then run this again", shown.display(), dir.room_by_hand());
        let full = match error::next(&error) {
            Some(Next::MakeRoom { dir, .. }) => dir.clone(),
            _ => None,
        };
        return error.and_next(Next::MakeRoom { dir: full, how });
    }
    // Who measured has said what to do; a write that failed, or a directory that could not be made, has not.
    if error::is_measured(&error) { error } else { error.and_next(dir.make_room()) }
}

fn perform(context: &Context, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Backup(args) => backup::run(context, &args),
        Verb::Recover(args) => recover::run(context, &args),
        Verb::RestoreFiles(args) => restore_files::run(context, &args),
        Verb::Resume(args) => resume::run(context, &args),
        Verb::Restart(args) => restart::run(context, &args),
        Verb::Abandon(args) => abandon::run(context, &args),
        Verb::Platform(args) => platform::run(context, &args),
        Verb::Status(args) => status::run(context, &args),
        Verb::Report(args) => report::run(context, &args),
        Verb::Metrics(args) => metrics::run(context, &args),
        Verb::Gate(args) => gate::run(context, &args),
        Verb::Upgrade(args) => gate::upgrade(context, &args),
        Verb::Up(args) => up::run(context, &args),
        Verb::List(args) => list::run(context, &args),
        Verb::Show(args) => show::run(context, &args),
        Verb::Logs(args) => show::logs(context, &args),
        Verb::Verify(args) => verify::run(context, &args),
        Verb::Delete(args) => list::delete(context, &args),
        Verb::Prune(args) => list::prune(context, &args),
        Verb::Export(args) => export::run(context, &args),
        Verb::Schedule(args) => schedule::run(context, &args),
        Verb::Collect(args) => collect::run(context, &args),
        Verb::Partition(args) => partition::run(context, &args.verb),
        Verb::Etcd(args) => etcd::run(context, &args),
        Verb::Archive(args) => archive::run(context, &args),
        Verb::Hub(args) => hub::run(context, &args),
        Verb::Generate(args) => generate::run(&args),
    }
}
