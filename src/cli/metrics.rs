//! `recovery metrics`: what a monitoring system asks of this node.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::args::MetricsArgs;
use super::context::{Context, require_to_be_root};
use crate::error::{AndNext, by_hand, locked, misfit};
use crate::metrics::text::{FILE, directory_of, text};
use crate::metrics::{Metrics, gather};
use crate::node::durable;
use crate::report::paths;

/// What cannot be read is one of the metrics, and no failure; a recovery directory that others can write to is, too.
pub(super) fn run(context: &Context, args: &MetricsArgs) -> Result<ExitCode> {
    require_to_be_root()?;
    let metrics = gather(&context.node, &context.dir, &context.session());
    let Some(dir) = &args.textfile else {
        context.print(&metrics, text)?;
        return Ok(ExitCode::SUCCESS);
    };
    if !dir.is_dir() {
        return Err(misfit(format!(
            "{} is no directory: name the one that node_exporter reads (its flag --collector.textfile.directory)",
            paths::shown(dir)
        )));
    }
    // Two that write at once would take each other's file, unfinished.
    let place = File::open(dir).with_context(|| format!("opening {}", paths::shown(dir)))?;
    if flock(&place, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Err(
            locked(format!("another process writes the metrics to {} just now", paths::shown(dir))).and_next(by_hand("run this again"))
        );
    }
    let (file, new) = (dir.join(FILE), text(&metrics));
    // One node_exporter takes each metric once: two recovery directories would write over each other, and the alerts be about now one, now the other.
    let there = durable::read(&file, durable::SMALL).unwrap_or_default();
    if let Some(other) = directory_of(&String::from_utf8_lossy(&there)).filter(|there| Some(*there) != directory_of(&new)) {
        let file = paths::shown(&file);
        return Err(misfit(format!("{file} is about the recovery directory {other}, and not about {}", context.dir.shown().display()))
            .and_next(by_hand(format!("leave that to the timer of {other}, or remove {file} where it is no longer to be told of"))));
    }
    durable::write(&file, new.as_bytes(), 0o644)?;
    if context.json {
        context.print(&metrics, |_: &Metrics| String::new())?;
    }
    Ok(ExitCode::SUCCESS)
}
