//! `metrics` and `report`: what operators look at.

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

/// `report`
#[derive(Debug, Clone, Default, Args)]
pub struct ReportArgs {
    /// The recovery, by the id that `status` and the journal have; the one in progress, or that ended last, unless given
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// Write it as one HTML page with a timeline, which loads nothing: to FILE of the running system, with --root too; `-` is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
    /// Write over FILE where it is there
    #[arg(long, requires = "html")]
    pub force: bool,
}
