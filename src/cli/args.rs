//! What can be said on the command line: these definitions make the parser, the man pages and the shell completions.

mod etcd;
mod hub;
pub mod partition;
mod schedule;
mod watching;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueHint};

pub use self::etcd::{EtcdArgs, EtcdRestoreArgs, EtcdSaveArgs, EtcdStatusArgs, EtcdVerb, Unused};
pub use self::hub::{HubArgs, HubRunArgs, HubStatusArgs, HubVerb};
pub use self::schedule::{ScheduleArgs, ScheduleSetArgs, ScheduleVerb};
pub use self::watching::{MetricsArgs, ReportArgs};

use crate::backup::take::KEEP;
use crate::error::{EXIT_CODES, usage};
use crate::recovery::EtcdRestore;
use partition::PartitionArgs;

/// Backup and recovery of a single-node OpenShift machine.
///
/// Without a verb: prints the status and the next command, and changes nothing.
#[derive(Debug, Parser)]
#[command(name = "recovery", version = crate::agent::VERSION, after_help = exit_codes(), args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// The flags of upgrade-recovery.sh.
    #[command(flatten)]
    pub old: OldFlags,
    /// What to do.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

fn exit_codes() -> String {
    EXIT_CODES.iter().fold("Exit codes:".to_owned(), |text, (code, meaning)| format!("{text}\n  {code:2}  {meaning}"))
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The recovery directory, as the node calls it
    #[arg(long, global = true, value_name = "DIR", default_value = crate::node::dir::DEFAULT, value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Show what is done in more detail
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Print the report as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Do it without asking
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Deadline of each wait; `gate` waits only with it [default: 1200]
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1200")]
    pub wait: Option<u64>,
    /// The node's files are below DIR (a mounted disk); its programs are never the live host's
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// With --root: the folder to take programs from
    #[arg(long, global = true, value_name = "DIR", requires = "root", value_hint = ValueHint::DirPath)]
    pub tools: Option<PathBuf>,
}

/// The flags of upgrade-recovery.sh, on the bare command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Flags of upgrade-recovery.sh")]
pub struct OldFlags {
    /// As `recovery backup`
    #[arg(long = "take-backup", conflicts_with_all = ["resume", "restart", "step"])]
    pub take_backup: bool,
    /// As `recovery resume`
    #[arg(long)]
    pub resume: bool,
    /// One phase at a time: alone, or with --resume
    #[arg(long)]
    pub step: bool,
    /// As `recovery restart`
    #[arg(long)]
    pub restart: bool,
    /// Go on where a check would stop it
    #[arg(long)]
    pub force: bool,
}

/// The verbs.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Take a backup of this node
    #[command(alias = "launchBackup")]
    Backup(BackupArgs),
    /// Recover this node: every phase, rebooting and continuing by itself
    Recover(RecoverArgs),
    /// Begin a recovery: restore /usr/local, /etc and the managed files; a reboot follows
    RestoreFiles(RestoreFilesArgs),
    /// Continue the recovery after the last finished step
    Resume(ResumeArgs),
    /// Begin this recovery again from its first phase
    Restart(RestartArgs),
    /// End this recovery where it is: undo what can be undone, and say what state the node is in
    Abandon(AbandonArgs),
    /// Show which deployment a recovery needs and what it takes to boot it; with --rollback, do that
    Platform(PlatformArgs),
    /// Show the recovery in progress, or what there is to recover from
    Status(StatusArgs),
    /// Tell what became of a recovery: phases, steps, waiting, failures; as text for a ticket, or as a page
    Report(ReportArgs),
    /// Print metrics for Prometheus: backups, schedules, the recovery in progress, room
    Metrics(MetricsArgs),
    /// Before an upgrade: exit with 0 only when there is a good backup of where the cluster is
    Gate(GateArgs),
    /// Upgrade the cluster, after a good backup, and watch it
    Upgrade(UpgradeArgs),
    /// Wait until everything on this node is up, or say what is not
    Up(UpArgs),
    /// List the backups
    List(ListArgs),
    /// Show a backup's manifest
    Show(ChosenArgs),
    /// Show what was done when a backup was taken
    Logs(ChosenArgs),
    /// Check backups as a recovery would: every file against its sum, all content, and all of the etcd snapshot, which is unpacked into $TMPDIR
    Verify(VerifyArgs),
    /// Delete a backup
    Delete(DeleteArgs),
    /// Delete all but the newest verified backups
    Prune(PruneArgs),
    /// Write a backup in the layout of upgrade-recovery.sh
    Export(ExportArgs),
    /// Take backups on time: the schedules of this node
    Schedule(ScheduleArgs),
    /// Give the recovery directory a partition of its own
    Partition(PartitionArgs),
    /// Collect what support needs to see of this node into one archive, without secrets
    Collect(CollectArgs),
    /// Save, look at and restore etcd snapshots
    Etcd(EtcdArgs),
    /// Pack, compare and restore archives of a directory
    Archive(ArchiveArgs),
    /// Backups of a fleet of clusters: the controller on the hub, and what it says
    Hub(HubArgs),
    /// Write man pages, shell completions or journald's message catalog
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// `backup`
#[derive(Debug, Clone, Default, Args)]
pub struct BackupArgs {
    /// A name to find it by
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A label; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Go on although operators are progressing, or an upgrade is
    #[arg(long)]
    pub force: bool,
    /// Verified backups to keep, this one included; those of schedules, and those from before an upgrade, count by themselves
    #[arg(long, value_name = "N", default_value_t = KEEP, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
}

/// `recover`
#[derive(Debug, Clone, Default, Args)]
pub struct RecoverArgs {
    /// The backup, by id or name; the newest good one unless given
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Patch objects by the rules in FILE: Velero's resource modifiers, version v1, raw or in a `ConfigMap`; custom resources before anybody can read them,
    /// built-in kinds through the API server before the controllers run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub resource_modifier: Option<PathBuf>,
    /// The backup and the rules are those of the Restore and the `ConfigMap` of Velero in FILE
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["backup", "resource_modifier"])]
    pub file: Option<PathBuf>,
    /// Patch the `ClusterVersion` so that the cluster does not begin the upgrade again that somebody asked for before the backup was taken
    #[arg(long, conflicts_with_all = ["resource_modifier", "file"])]
    pub drop_desired_update: bool,
    /// Print the plan, with each object that a rule is about and what it changes, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with the booted deployment, and on another node than the backup's
    #[arg(long)]
    pub force: bool,
    /// Restore etcd with the cluster's own script instead of natively
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub etcd_restore: EtcdRestore,
    /// For how long the cluster has to stay as the backup recorded it before the recovery ends, an hour at most [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = hold())]
    pub hold: Option<u64>,
}

/// `restore-files`
#[derive(Debug, Clone, Default, Args)]
pub struct RestoreFilesArgs {
    /// The backup, by id or name; the newest good one unless given
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Reboot when done instead of asking for it
    #[arg(long)]
    pub reboot: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with the booted deployment, and on another node than the backup's
    #[arg(long)]
    pub force: bool,
    /// One phase at a time: nothing continues by itself after the reboot
    #[arg(long)]
    pub step: bool,
    /// Restore etcd with the cluster's own script instead of natively
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub etcd_restore: EtcdRestore,
    /// For how long the cluster has to stay as the backup recorded it before the recovery ends, an hour at most [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = hold())]
    pub hold: Option<u64>,
}

/// `resume`
#[derive(Debug, Clone, Default, Args)]
pub struct ResumeArgs {
    /// Do the next phase only
    #[arg(long)]
    pub step: bool,
    /// For how long the cluster has to stay as the backup recorded it, an hour at most, when not as the recovery was begun
    #[arg(long, value_name = "SECONDS", value_parser = hold())]
    pub hold: Option<u64>,
    /// It is the systemd unit that asks: a recovery begun with --step is left to a person
    #[arg(long, hide = true)]
    pub unit: bool,
}

/// `restart`
#[derive(Debug, Clone, Default, Args)]
pub struct RestartArgs {
    /// The backup, when the journal can no longer say which
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Patch by the rules in FILE, instead of those that the recovery was begun with
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub resource_modifier: Option<PathBuf>,
    /// Go on with the booted deployment, and on another node than the backup's
    #[arg(long)]
    pub force: bool,
    /// One phase at a time: nothing continues by itself after the reboot
    #[arg(long)]
    pub step: bool,
    /// For how long the cluster has to stay as the backup recorded it before the recovery ends, an hour at most [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = hold())]
    pub hold: Option<u64>,
}

/// `abandon`
#[derive(Debug, Clone, Default, Args)]
pub struct AbandonArgs {
    /// Let kubelet start although the recovery that holds it is not in the recovery directory
    #[arg(long)]
    pub force: bool,
}

/// `platform`
#[derive(Debug, Clone, Default, Args)]
pub struct PlatformArgs {
    /// The backup, by id or name; the newest good one unless given
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Begin a recovery with what the deployments need, reboot included
    #[arg(long)]
    pub rollback: bool,
}

/// `status`
#[derive(Debug, Clone, Default, Args)]
pub struct StatusArgs {
    /// Keep showing it
    #[arg(long)]
    pub watch: bool,
}

/// `gate`
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct GateArgs {
    /// The gate in the API server.
    #[command(subcommand)]
    pub verb: Option<GateVerb>,
    /// Name the backup after this schedule
    #[arg(long = "for", value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// Take a backup when there is no good one
    #[arg(long)]
    pub take: bool,
    /// How old a good backup may be
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub max_age: jiff::SignedDuration,
}

/// The verbs of `gate`.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum GateVerb {
    /// Put a policy into the API server that refuses an upgrade without a good backup
    Install,
    /// Show whether an upgrade may begin, and why not
    Status,
    /// Take the policy away
    Remove,
}

/// `upgrade`
#[derive(Debug, Clone, Args)]
pub struct UpgradeArgs {
    /// The release: OpenShift's version, or the name of k0rdent's Release
    #[arg(long, value_name = "RELEASE")]
    pub to: String,
    /// Name the backup after this schedule
    #[arg(long = "for", value_name = "SCHEDULE")]
    pub schedule: Option<String>,
    /// How old a good backup may be
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub max_age: jiff::SignedDuration,
}

/// For how long something has to stay up, seconds. A recovery stays open as long, and no backup is taken meanwhile.
fn hold() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(..=3600)
}

/// `up`
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Compare with how it was when this backup was taken, by id or name; without it, everything has to be well
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// For how long everything has to stay up, seconds, an hour at most
    #[arg(long, value_name = "SECONDS", default_value_t = crate::up::HOLD.as_secs(), value_parser = hold())]
    pub hold: u64,
}

/// `list`
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Only those with such labels: KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY, !KEY, with commas between
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// More columns, only the ids, or JSON as with --json
    #[arg(short, long, value_name = "HOW", value_enum)]
    pub output: Option<ListOutput>,
}

/// How `list` shows the backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ListOutput {
    /// With release, size and id.
    Wide,
    /// The ids alone.
    Name,
    /// All there is.
    Json,
}

/// A backup
#[derive(Debug, Clone, Args)]
pub struct ChosenArgs {
    /// The backup, by id or name
    #[arg(value_name = "ID")]
    pub backup: String,
}

/// `verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The backup, by id or name; all of them unless given
    #[arg(value_name = "ID")]
    pub backup: Option<String>,
}

/// `delete`
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// The backup, by id or name
    #[arg(value_name = "ID")]
    pub backup: String,
    /// Delete it although it is the last good one
    #[arg(long)]
    pub force: bool,
}

/// `prune`
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Verified backups to keep; those of each schedule count by themselves, by its own number, and so do those from before an upgrade
    #[arg(long, value_name = "N", default_value_t = KEEP, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
}

/// `export`
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The backup, by id or name
    #[arg(value_name = "ID")]
    pub backup: String,
    /// Where to: must not exist, or be empty; a directory of the running system, with --root too
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
}

/// `collect`
#[derive(Debug, Clone, Args)]
pub struct CollectArgs {
    /// The archive, a new file, `.tar.zst`; a file of the running system, with --root too [default: /var/tmp/recovery-NODE-TIME.tar.zst]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to: Option<PathBuf>,
    /// How far back logs are taken; of each, no more than 20,000 lines
    #[arg(long, value_name = "N", default_value_t = crate::collect::HOURS, value_parser = clap::value_parser!(u32).range(1..=8760))]
    pub hours: u32,
}

/// `archive`
#[derive(Debug, Clone, Args)]
pub struct ArchiveArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ArchiveVerb,
}

/// The verbs of `archive`.
#[derive(Debug, Clone, Subcommand)]
pub enum ArchiveVerb {
    /// Pack a directory
    Pack {
        /// The directory
        #[arg(value_hint = ValueHint::DirPath)]
        tree: PathBuf,
        /// The new archive
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// An older archive of the same directory, to take unchanged parts from
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        previous: Option<PathBuf>,
    },
    /// Print what a restore would change: exit 0 when equal, 1 when not
    Diff {
        /// The archive
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The directory
        #[arg(value_hint = ValueHint::DirPath)]
        tree: PathBuf,
    },
    /// Make a directory equal to an archive
    Restore {
        /// The archive
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The directory; made when it is not there
        #[arg(value_hint = ValueHint::DirPath)]
        tree: PathBuf,
    },
}

/// `generate`
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// `man`, `catalog` (of journald), or a shell: bash, zsh, fish
    pub what: String,
    /// The directory to put them into
    #[arg(value_hint = ValueHint::DirPath)]
    pub to: PathBuf,
}

/// A boolean as the flags of etcd's programs take it (Go, `strconv.ParseBool`).
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

impl Cli {
    /// The verb that is meant, old flags included; the bare command is `status`. `--step` alone is the next phase of the recovery that is
    /// open, when one is, and the first phase of a new one otherwise.
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for an old flag together with a verb.
    pub fn verb(&self, in_recovery: bool) -> Result<Verb> {
        let OldFlags { take_backup, resume, step, restart, force } = self.old;
        if let Some(verb) = &self.verb {
            if take_backup || resume || step || restart || force {
                return Err(usage("the flags of upgrade-recovery.sh go without a verb: put the verb's own options after it"));
            }
            return Ok(verb.clone());
        }
        Ok(if take_backup {
            Verb::Backup(BackupArgs { force, keep: KEEP, ..BackupArgs::default() })
        } else if restart && in_recovery {
            Verb::Restart(RestartArgs { force, step, ..RestartArgs::default() })
        } else if resume || (step && in_recovery) {
            Verb::Resume(ResumeArgs { step, ..ResumeArgs::default() })
        } else if step || restart {
            // As the old script: a restart of nothing begins.
            Verb::RestoreFiles(RestoreFilesArgs { force, step, ..RestoreFilesArgs::default() })
        } else {
            Verb::Status(StatusArgs::default())
        })
    }
}

impl Verb {
    /// True for those that a container carries out on its host: all but the plumbing, whose files are the container's own.
    #[must_use]
    pub fn is_about_the_node(&self) -> bool {
        match self {
            Self::Partition(args) => !args.verb.is_a_document(),
            _ => !matches!(self, Self::Etcd(_) | Self::Archive(_) | Self::Hub(_) | Self::Generate(_)),
        }
    }

    /// True for those that stop the node's containers, one of which must not be the one that does it.
    #[must_use]
    pub fn stops_containers(&self) -> bool {
        let rollback = matches!(self, Self::Platform(PlatformArgs { rollback: true, .. }));
        rollback || matches!(self, Self::Recover(_) | Self::RestoreFiles(_) | Self::Resume(_) | Self::Restart(_))
    }

    /// True for all but the plumbing that only touches files it is given, and `metrics`, which tells of a recovery directory that cannot be trusted, too.
    #[must_use]
    pub fn needs_root(&self) -> bool {
        match self {
            Self::Etcd(args) => matches!(args.verb, EtcdVerb::Save(EtcdSaveArgs { endpoint: None, .. })),
            Self::Archive(args) => matches!(args.verb, ArchiveVerb::Restore { .. }),
            Self::Partition(args) => !args.verb.is_a_document(),
            Self::Generate(_) | Self::Metrics(_) | Self::Hub(_) => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn verb(words: &[&str]) -> Verb {
        Cli::try_parse_from([&["recovery"], words].concat()).unwrap().verb(false).unwrap()
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_old_flags_mean_what_they_meant() {
        assert!(matches!(verb(&["--take-backup", "--force"]), Verb::Backup(BackupArgs { force: true, keep: 3, .. })));
        assert!(matches!(verb(&["--resume"]), Verb::Resume(ResumeArgs { step: false, .. })));
        assert!(matches!(verb(&["--resume", "--step"]), Verb::Resume(ResumeArgs { step: true, .. })));
        assert!(matches!(verb(&["--restart"]), Verb::RestoreFiles(RestoreFilesArgs { step: false, reboot: false, .. })));
        assert!(matches!(verb(&["--step"]), Verb::RestoreFiles(RestoreFilesArgs { step: true, reboot: false, .. })));
        assert!(matches!(verb(&["launchBackup"]), Verb::Backup(_)));
        let open = |words: &[&str]| Cli::try_parse_from([&["recovery"], words].concat()).unwrap().verb(true).unwrap();
        assert!(matches!(open(&["--step"]), Verb::Resume(ResumeArgs { step: true, .. })));
        assert!(matches!(open(&["--restart", "--resume", "--step"]), Verb::Restart(RestartArgs { step: true, .. })));
    }

    #[test]
    fn the_bare_command_changes_nothing() {
        assert!(matches!(verb(&[]), Verb::Status(_)));
        assert!(matches!(verb(&["--force", "--dir", "/var/recovery"]), Verb::Status(_)));
    }

    #[test]
    fn an_old_flag_and_a_verb_exclude_each_other() {
        let cli = Cli::try_parse_from(["recovery", "--resume", "list"]).unwrap();
        assert_eq!(crate::error::exit_code(&cli.verb(false).unwrap_err()), 2);
    }
}
