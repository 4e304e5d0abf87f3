//! `recovery etcd`, which takes the flags of etcd's own programs.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueHint};

use super::go_bool;
use crate::etcd::{DEFAULT_NAME, DEFAULT_PEER_URL, DEFAULT_TOKEN};

/// `etcd`
#[derive(Debug, Clone, Args)]
pub struct EtcdArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: EtcdVerb,
}

/// The verbs of `etcd`.
#[derive(Debug, Clone, Subcommand)]
pub enum EtcdVerb {
    /// Save a snapshot of this node's etcd; compressed when FILE ends in .zst or .zstd
    Save(EtcdSaveArgs),
    /// Check a snapshot and say what is in it
    Status(EtcdStatusArgs),
    /// Make a data directory from a snapshot, as `etcdutl snapshot restore` does
    Restore(EtcdRestoreArgs),
}

/// `etcd save`
#[derive(Debug, Clone, Args)]
pub struct EtcdSaveArgs {
    /// The new file
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Client URL; this node's etcd unless given
    #[arg(long, value_name = "URL", requires_all = ["cacert", "cert", "key"])]
    pub endpoint: Option<String>,
    /// CA bundle that etcd's certificate is checked against
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub cacert: Option<PathBuf>,
    /// Client certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub cert: Option<PathBuf>,
    /// Client key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
}

/// The hash at the end of a snapshot, which two commands may do without
#[derive(Debug, Clone, Args)]
pub struct TrailerArgs {
    /// Take a database that has no hash at its end, as one copied from a data directory
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        value_parser = go_bool,
        action = ArgAction::Set,
        hide_default_value = true
    )]
    pub skip_hash_check: bool,
}

/// `etcd status`
#[derive(Debug, Clone, Args)]
pub struct EtcdStatusArgs {
    /// The snapshot, plain or compressed with zstd
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Whether the hash is needed
    #[command(flatten)]
    pub trailer: TrailerArgs,
}

/// `etcd restore`: the flags and defaults of `etcdutl snapshot restore` (3.4 to 3.7; in 3.4, `etcdctl snapshot restore`).
#[derive(Debug, Clone, Args)]
pub struct EtcdRestoreArgs {
    /// The snapshot, plain or compressed with zstd
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The new data directory, made with those above it [default: NAME.etcd]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// Name of the member
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
    /// Peer URLs of the member, separated by commas
    #[arg(long, value_name = "URLS", value_delimiter = ',', default_value = DEFAULT_PEER_URL)]
    pub initial_advertise_peer_urls: Vec<String>,
    /// The cluster, NAME=URL for each peer URL of its one member [default: the member that the other options say]
    #[arg(long, value_name = "NAME=URL,...")]
    pub initial_cluster: Option<String>,
    /// Token of the cluster
    #[arg(long, value_name = "TOKEN", default_value = DEFAULT_TOKEN)]
    pub initial_cluster_token: String,
    /// How much to raise the newest revision by
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub bump_revision: u64,
    /// Mark the revisions before the newest as compacted; needs --bump-revision
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false",
        value_parser = go_bool,
        action = ArgAction::Set,
        hide_default_value = true
    )]
    pub mark_compacted: bool,
    /// Whether the hash is needed
    #[command(flatten)]
    pub trailer: TrailerArgs,
    /// Only `DATA_DIR/member/wal`: move the directory after the restore to have it elsewhere
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub wal_dir: Option<PathBuf>,
    /// Taken and without effect: the database is not mapped into memory
    #[arg(long, value_name = "BYTES")]
    pub initial_memory_map_size: Option<u64>,
    /// Only simple, and json, which is --json
    #[arg(short, long, value_name = "FORMAT")]
    pub write_out: Option<String>,
    /// etcdutl's and etcdctl's flags that a restore does not use, there or here.
    #[command(flatten)]
    pub unused: Unused,
}

/// The global flags of etcdutl 3.7 (`--timeout`) and etcdctl 3.4, which had `snapshot restore` before etcdutl: a restore talks to no etcd
/// and waits for no lock, so that they are taken and have no effect, as there.
#[derive(Debug, Clone, Copy)]
pub struct Unused;

impl Unused {
    const WITH_VALUE: [&str; 13] = [
        "timeout",
        "cacert",
        "cert",
        "command-timeout",
        "dial-timeout",
        "discovery-srv",
        "discovery-srv-name",
        "endpoints",
        "keepalive-time",
        "keepalive-timeout",
        "key",
        "password",
        "user",
    ];
    const BOOLEAN: [&str; 5] = ["debug", "hex", "insecure-discovery", "insecure-skip-tls-verify", "insecure-transport"];
}

impl clap::FromArgMatches for Unused {
    fn from_arg_matches(_: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &clap::ArgMatches) -> Result<(), clap::Error> {
        Ok(())
    }
}

impl Args for Unused {
    fn augment_args(command: clap::Command) -> clap::Command {
        let unused = |name: &'static str| clap::Arg::new(name).long(name).hide(true);
        let with_value = Self::WITH_VALUE.map(|name| if name == "discovery-srv" { unused(name).short('d') } else { unused(name) });
        let boolean = Self::BOOLEAN.map(|name| {
            unused(name).num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(go_bool).action(ArgAction::Set)
        });
        command.args(with_value).args(boolean)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}
