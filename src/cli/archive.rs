//! `recovery archive`: the archives of the phases, for administrators and tests.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::args::{ArchiveArgs, ArchiveVerb};
use super::context::Context;
use crate::archive::{Action, Archive, Change, Counts, Extra, Packed, Selection, pack};
use crate::error::{FailureKind, kind, said, usage};
use crate::report::{mib, paths, words};

/// `archive diff --json`
#[derive(Debug, Serialize)]
struct Diff {
    changes: Vec<Change>,
    counts: Counts,
}

pub(super) fn run(context: &Context, args: &ArchiveArgs) -> Result<ExitCode> {
    match &args.verb {
        ArchiveVerb::Pack { tree, file, previous } => {
            let task = context.progress.task("packing", None);
            let packed = pack(tree, file, &Selection::all(), previous.as_deref(), &|n| task.add(n))?;
            drop(task);
            context.print(&packed, describe_packed)?;
        }
        ArchiveVerb::Diff { file, tree } => return diff(context, file, tree).map_err(trouble),
        ArchiveVerb::Restore { file, tree } => {
            let archive = Archive::open(file)?;
            let mut lines = vec![format!(
                "{} will be made equal to {}: what is not in the archive is deleted.",
                paths::shown(tree),
                paths::shown(file)
            )];
            lines.extend(stays(&archive, tree));
            context.confirm(&lines)?;
            let task = context.progress.task("restoring", Some(archive.bytes()));
            let counts = archive.restore(tree, &Selection::all(), Extra::Delete, &|n| task.add(n))?;
            drop(task);
            context.print(&counts, describe_counts)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is not deleted: an archive that does not hold the directory itself says nothing of what lies in it.
fn stays(archive: &Archive, tree: &Path) -> Option<String> {
    (!archive.holds_root()).then(|| {
        format!(
            "{} itself is not in the archive: what lies directly in it stays, unless the archive has something of that name.",
            paths::shown(tree)
        )
    })
}

fn diff(context: &Context, file: &Path, tree: &Path) -> Result<ExitCode> {
    let archive = Archive::open(file)?;
    let task = context.progress.task("comparing", Some(archive.bytes()));
    let (changes, counts) = archive.compare(tree, &Selection::all(), Extra::Delete, &|n| task.add(n))?;
    drop(task);
    let equal = changes.is_empty();
    context.print(&Diff { changes, counts }, |diff| describe_changes(&diff.changes))?;
    Ok(ExitCode::from(u8::from(!equal)))
}

/// An error of no other kind must not look like "differs", which is 1: as with diff(1), trouble is 2.
fn trouble(error: anyhow::Error) -> anyhow::Error {
    if kind(&error) == FailureKind::Failed { usage(said(&error)) } else { error }
}

fn describe_packed(packed: &Packed) -> String {
    let mut text = format!(
        "{} entries, {} of content in {} ({} taken over)\nsha256 {}\n",
        packed.entries,
        mib(packed.bytes),
        mib(packed.stored),
        mib(packed.reused),
        packed.sha256
    );
    for (path, why) in &packed.skipped {
        text += &format!("skipped {}: {why}\n", paths::shown(path));
    }
    text
}

/// One line for each change: `+` created, `*` replaced, `~` metadata, `-` deleted.
pub(super) fn describe_changes(changes: &[Change]) -> String {
    let sign = |action| match action {
        Action::Create => '+',
        Action::Replace => '*',
        Action::Metadata => '~',
        Action::Delete => '-',
    };
    let shown = |path: &Path| if path.as_os_str().is_empty() { ".".to_owned() } else { paths::shown(path) };
    changes.iter().map(|c| format!("{} {}  {}\n", sign(c.action), shown(&c.path), words::line(&c.why))).collect()
}

pub(super) fn describe_counts(counts: &Counts) -> String {
    format!(
        "{} created, {} replaced, {} with new metadata, {} deleted, {} unchanged; {} written",
        counts.created,
        counts.replaced,
        counts.metadata,
        counts.deleted,
        counts.unchanged,
        mib(counts.bytes)
    )
}
