//! `recovery schedule`.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueHint};

use super::go_bool;

/// `schedule`
#[derive(Debug, Clone, Args)]
pub struct ScheduleArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: ScheduleVerb,
}

/// The verbs of `schedule`.
#[derive(Debug, Clone, Subcommand)]
pub enum ScheduleVerb {
    /// Make or change schedules as k0rdent's `ManagementBackup` objects say
    Apply {
        /// YAML or JSON, several documents and lists too; - is standard input (in a container, a name is one on its host)
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        filename: PathBuf,
    },
    /// Make or change a schedule; what is not said stays as it is
    Set(ScheduleSetArgs),
    /// List the schedules: when they run next, how the last run ended, and why one waits
    List,
    /// Show a schedule, with its next instants
    Show {
        /// The schedule
        name: String,
    },
    /// Delete a schedule; its backups stay
    Delete {
        /// The schedule
        name: String,
    },
    /// Take a backup of a schedule now; it runs at its next instant all the same
    Run {
        /// The schedule
        name: String,
        /// Go on although operators are progressing, or an upgrade is
        #[arg(long)]
        force: bool,
    },
    /// Take the backups that are due: what recovery-schedule.service runs
    #[command(hide = true)]
    Due {
        /// Only have the timer wake it when the next one is
        #[arg(long)]
        arm: bool,
    },
}

/// What `schedule set --help` says of the language.
const CRON_HELP: &str = "\
The expression is read as k0rdent and Velero read it (robfig/cron): minute, hour, day of the month, month, day of the week (0 is Sunday, \
7 is an error); lists, ranges and steps (5/15 is from 5 on every 15); names of months and days; @hourly, @daily, @weekly, @monthly, \
@yearly, `@every 90m`; `TZ=Europe/Berlin ` before it. Where both days are restricted, either is enough; a day of */2 is restricted, one \
of * or ? is not.

One thing differs: an instant in the hour that spring skips comes right after it, and one in the hour that autumn repeats comes once. In \
that night a schedule that runs each hour has two hours between two runs, once a year. In UTC, which is what holds without a time zone, \
there are no such hours.

How often: at least a minute apart, and no more often than a backup takes. That is looked at when a schedule is set, by the newest \
backup that tells, and at each run; where none tells yet, the first run does. One that has become too often stays, `recovery schedule \
list` says so, and instants that come while it runs are left out.

The first run is at the next instant. However many were missed while the node was off, one run follows. One that does not succeed is \
tried again after 5, 10, 20, 40 minutes, then each hour, and at the next instant in any case; `recovery schedule list` says why it waits.";

/// `schedule set`
#[derive(Debug, Clone, Args)]
#[command(after_help = CRON_HELP)]
pub struct ScheduleSetArgs {
    /// The schedule
    pub name: String,
    /// When: a cron expression; a new schedule needs it
    #[arg(long, value_name = "EXPR")]
    pub cron: Option<String>,
    /// The time zone of the expression, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// A backup before each upgrade, too
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = go_bool,
        action = ArgAction::Set
    )]
    pub before_upgrade: Option<bool>,
    /// Verified backups of this schedule to keep [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// Nothing is taken until it goes on (--paused=false)
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = go_bool,
        action = ArgAction::Set
    )]
    pub paused: Option<bool>,
}
