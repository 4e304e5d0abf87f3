//! `metrics`: what operators look at.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// `metrics`
#[derive(Debug, Clone, Default, Args)]
pub struct MetricsArgs {
    /// Write them as DIR/recovery.prom, in one step: the directory that `node_exporter` has as `--collector.textfile.directory`; a directory of the running
    /// system, with --root too
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub textfile: Option<PathBuf>,
}
