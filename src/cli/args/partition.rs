//! What can be said to `recovery partition`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

/// `partition`
#[derive(Debug, Clone, Args)]
pub struct PartitionArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: PartitionVerb,
}

/// The verbs of `partition`.
#[derive(Debug, Clone, Subcommand)]
pub enum PartitionVerb {
    /// Print the ignitionConfigOverride of a node that is to be installed with the partition, or put it into a `SiteConfig`
    Ignition(IgnitionArgs),
    /// Print the `MachineConfig` of a node that is to be installed with the partition: an extra manifest
    Machineconfig(MachineconfigArgs),
    /// Make the partition on this node, on a spare disk or behind the last partition of one in use, and move the recovery directory onto it
    Create(CreateArgs),
    /// Show where the recovery directory lies, how full that is, and what a failure of the root disk would cost
    Status,
}

impl PartitionVerb {
    /// True for those that only write a document, of a node that may not exist yet.
    #[must_use]
    pub fn is_a_document(&self) -> bool {
        matches!(self, Self::Ignition(_) | Self::Machineconfig(_))
    }
}

/// The disk, of every verb that makes a partition.
#[derive(Debug, Clone, Args)]
pub struct DiskArgs {
    /// The disk, by a name below /dev/disk/by-id or /dev/disk/by-path
    #[arg(long, value_name = "DISK", value_hint = ValueHint::AnyPath)]
    pub device: PathBuf,
    /// Take a name that may be another disk's after the next boot, such as /dev/sda
    #[arg(long)]
    pub force: bool,
}

/// `partition create`
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    /// The disk.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Its size [default: all the room behind the last partition]
    #[arg(long, value_name = "N")]
    pub size_mib: Option<u64>,
}

/// `partition ignition`
#[derive(Debug, Clone, Args)]
pub struct IgnitionArgs {
    /// The disk.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// Where the partition begins; on the disk of the operating system, behind the room that its root file system is to have
    #[arg(long, value_name = "N")]
    pub start_mib: u64,
    /// Its size
    #[arg(long, value_name = "N")]
    pub size_mib: u64,
    /// Put it into the node's entry of this `SiteConfig` or `ClusterInstance`, merged with an override that is there; the rest of the file stays as it is
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub siteconfig: Option<PathBuf>,
    /// With --siteconfig: the node's hostName, where there are several
    #[arg(long, value_name = "NAME", requires = "siteconfig")]
    pub node: Option<String>,
}

/// `partition machineconfig`
#[derive(Debug, Clone, Args)]
pub struct MachineconfigArgs {
    /// The disk.
    #[command(flatten)]
    pub disk: DiskArgs,
    /// The pool of the node
    #[arg(long, value_name = "ROLE", default_value = "master")]
    pub role: String,
    /// Where the partition begins [default: in the largest gap of the disk]
    #[arg(long, value_name = "N")]
    pub start_mib: Option<u64>,
    /// Its size
    #[arg(long, value_name = "N")]
    pub size_mib: u64,
}
