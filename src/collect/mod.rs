//! What support needs to see of a node, in one archive: the verb `collect`.
//!
//! Reading order: `sources` (what is looked at: files, directories, programs), `bundle` (the archive and its bounds),
//! [`redact`](mod@redact) (no secret goes into it). Nothing on the node is changed and no lock is taken, so that it works in the middle of
//! a recovery. Whatever cannot be had is noted and passed over.

mod bundle;
pub mod redact;
mod sources;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub use bundle::{Entry, Missing};

use crate::error::{AndNext, FailureKind, by_hand, kind, usage};
use crate::node::Node;
use crate::node::durable;
use crate::session::Session;
use bundle::Bundle;

/// How far back logs are taken unless it is said, hours: an upgrade that failed on a Friday is looked at on Monday.
pub const HOURS: u32 = 72;

/// A report of the agent: the name of its entry, and what makes it.
pub type Report<'a> = (&'static str, Box<dyn Fn() -> Result<Value> + 'a>);

/// What was collected.
#[derive(Debug, Serialize)]
pub struct Collected {
    /// The archive.
    #[serde(serialize_with = "text")]
    pub file: PathBuf,
    /// Its size, bytes.
    pub bytes: u64,
    /// What is in it.
    pub entries: Vec<Entry>,
    /// What could not be had, and why.
    pub missing: Vec<Missing>,
}

fn text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&crate::report::paths::text(path))
}

/// Collects everything into `file`, which must not exist: logs of the last so many `hours`, and the agent's own `reports`.
///
/// # Errors
/// [`FailureKind::Usage`] when `file` exists; [`FailureKind::NoSpace`] when it does not fit on its disk; when it cannot be written. What
/// cannot be looked at on the node is no error: it is in the report.
pub fn collect(session: &Session<'_>, file: &Path, hours: u32, reports: &[Report<'_>]) -> Result<Collected> {
    if file.symlink_metadata().is_ok() {
        return Err(usage(format!("{} exists already: name a new file", file.display())));
    }
    let collected = write(session, file, hours, reports);
    if collected.is_err()
        && let Ok(part) = durable::beside(file)
    {
        durable::remove(&part)?;
    }
    collected.with_context(|| format!("collecting into {}", file.display())).map_err(|error| match kind(&error) {
        FailureKind::NoSpace => error.and_next(by_hand("run it again with --to and a file on a disk that has room: 64 MiB are enough")),
        _ => error,
    })
}

fn write(session: &Session<'_>, file: &Path, hours: u32, reports: &[Report<'_>]) -> Result<Collected> {
    let node = session.node;
    let now = node.clock().now();
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let mut bundle = Bundle::begin(file, &name(node, now), seconds)?;
    sources::add(&mut bundle, session, hours)?;
    for (name, report) in reports {
        session.progress.say(&format!("collecting {name}"));
        bundle.add(name, || Ok(format!("{:#}\n", report()?).into_bytes()))?;
    }
    let about = format!(
        "Collected by recovery {} on {now:.0}, with the logs of {hours} hours. Private keys, tokens and passwords are taken out, and {} stands in their place.\n\
         What could not be had is in errors.txt.\n",
        env!("CARGO_PKG_VERSION"),
        redact::REDACTED
    );
    let (bytes, entries, missing) = bundle.finish(file, &about)?;
    Ok(Collected { file: file.to_owned(), bytes, entries, missing })
}

/// What an archive of this node is called, without its ending: `recovery-NODE-20261130T120000Z`.
#[must_use]
pub fn name(node: &Node, now: Timestamp) -> String {
    let host = node.read_text("/etc/hostname").ok().or_else(|| node.read_text("/proc/sys/kernel/hostname").ok()).unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).take(63).collect();
    let host = host.trim_matches('.');
    format!("recovery-{}-{}", if host.is_empty() { "node" } else { host }, now.strftime("%Y%m%dT%H%M%SZ"))
}
