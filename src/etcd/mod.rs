//! etcd: saving a snapshot over gRPC, checking it, and rebuilding a single-member data directory from it without `etcdutl`.
//!
//! Reading order: this page, which has everything that other rooms use; `client` and `save` (the node's etcd); `snapshot` and `pipe` (the
//! file, as a stream); `bolt`, `revision`, `check`, `status` and `live` (the database in it, whether etcd can start on it, and what it contains);
//! `edit`, `wal`, `ids` and `restore` (a new member from it); `data_dir` and `replace` (the same in place, safe against crashes).
//!
//! Everything is streamed: a snapshot of any size is never held in memory as a whole.

mod bolt;
mod check;
mod client;
mod data_dir;
mod edit;
mod ids;
mod live;
mod pipe;
mod replace;
mod restore;
mod revision;
mod save;
mod snapshot;
mod status;
mod wal;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::node::Node;
use crate::node::profile::Profile;
use crate::node::static_pod::{EtcdAccess, etcd_access};
/// Called with the bytes done since the last call: bytes of the stream while saving, else bytes of the stored file.
pub type Tick<'a> = &'a (dyn Fn(u64) + Sync);
pub use client::Store;
pub use data_dir::kept_of;
/// Called with a key and its value.
pub type EachValue<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<()>;

/// `--name` of `etcdutl snapshot restore`, unless given.
pub const DEFAULT_NAME: &str = "default";
/// `--initial-advertise-peer-urls` of `etcdutl snapshot restore`, unless given.
pub const DEFAULT_PEER_URL: &str = "http://localhost:2380";
/// `--initial-cluster-token` of `etcdutl snapshot restore`, unless given.
pub const DEFAULT_TOKEN: &str = "etcd-cluster";

/// How far a recovery raises revisions when nothing more is known (etcd's disaster recovery guide, cluster-etcd-operator).
const USUAL_BUMP: u64 = 1_000_000_000;
/// How many revisions etcd may have answered that are not yet in its database on disk: it commits every 100 ms or 10,000 operations.
const UNCOMMITTED: u64 = 1_000_000;

/// How to reach the node's etcd.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `https://127.0.0.1:2379`: always an IP address, never a name that would have to be looked up (`localhost` stands for 127.0.0.1).
    /// With `http://` there are no certificates.
    pub url: String,
    /// The name that etcd's certificate is checked for.
    pub server_name: String,
    /// CA bundle, PEM.
    pub ca: PathBuf,
    /// Client certificate, PEM.
    pub cert: PathBuf,
    /// Client key, PEM.
    pub key: PathBuf,
}

impl Endpoint {
    /// The etcd of `node`, as its static pod describes it.
    ///
    /// # Errors
    /// When the static pod cannot be read; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when no client certificate is there.
    pub fn of(node: &Node, profile: &Profile) -> Result<Self> {
        let EtcdAccess { url, server_name, ca, cert, key } = etcd_access(node, profile)?;
        Ok(Self { url, server_name, ca: node.real_path(ca), cert: node.real_path(cert), key: node.real_path(key) })
    }
}

/// What a healthy etcd reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    /// Server version, `3.5.21`.
    pub version: String,
    /// Current revision.
    pub revision: i64,
    /// Live keys.
    pub keys: i64,
    /// Size of its database, bytes.
    pub db_size: i64,
    /// Members of the cluster.
    pub members: usize,
}

/// What [`save()`] wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// Bytes of the stream, trailer included.
    pub bytes: u64,
    /// Size of the file written.
    pub stored: u64,
    /// SHA-256 of the file written, hex.
    pub sha256: String,
}

/// What is in a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// CRC-32C over the names, keys and values of all buckets: the "hash" of `etcdutl snapshot status`.
    pub hash: u32,
    /// Greatest revision.
    pub revision: i64,
    /// Live keys: the "total keys" of etcdutl 3.6 and later.
    pub total_keys: u64,
    /// Items in all buckets, including old revisions and etcd's own: the "total keys" of etcdutl and etcdctl up to 3.5.
    pub items: u64,
    /// Bytes of the database, without the trailer: the "total size" of etcdutl.
    pub db_size: u64,
    /// Version of the storage schema, `3.6.0`; up to 3.5 etcd does not record one.
    pub version: Option<String>,
    /// The members that the database records.
    pub members: Vec<Member>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// Its client URLs.
    pub client_urls: Vec<String>,
}

/// How a data directory is rebuilt. Token, bump and checks default to those of `etcdutl snapshot restore`; name and peer URLs to those
/// of the snapshot's own member (etcdutl's defaults for them are [`DEFAULT_NAME`] and [`DEFAULT_PEER_URL`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Member name; by default that of the snapshot's single member.
    pub name: Option<String>,
    /// Peer URLs; the same.
    pub peer_urls: Vec<String>,
    /// Cluster token; [`DEFAULT_TOKEN`] unless given.
    pub token: Option<String>,
    /// Added to the greatest revision; 0 for no change. Needs `mark_compacted`, as in etcdutl.
    pub bump_revision: u64,
    /// Old revisions answer "compacted". Needs `bump_revision`, as in etcdutl.
    pub mark_compacted: bool,
    /// Accept a file without a valid trailer (a copied database).
    pub skip_hash_check: bool,
}

/// What a restore made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Member id.
    pub member_id: u64,
    /// Cluster id.
    pub cluster_id: u64,
    /// Member name.
    pub name: String,
    /// The revision etcd will start at.
    pub revision: i64,
}

/// Asks etcd for its state; fails when it does not answer, has no leader, has an alarm, or does not serve a linearizable read.
/// `limit` applies to each of these answers.
///
/// # Errors
/// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) with the cause when it does not answer or has no leader,
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for a URL without an IP address, and a plain error with what to do for an
/// alarm.
pub fn health(endpoint: &Endpoint, limit: Duration) -> Result<Health> {
    client::health(endpoint, limit)
}

/// Streams a snapshot into the new file `file` (0600, synced; zstd-compressed when its name ends in `.zst` or `.zstd`) and checks the
/// trailer on the way. `limit` is how long etcd may send nothing.
///
/// # Errors
/// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when etcd does not answer, fails or stalls,
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the stream ended before its trailer,
/// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted; when the file exists already or cannot be
/// written. The file gets its name only when it is whole; a failure leaves no part of it.
pub fn save(endpoint: &Endpoint, file: &Path, limit: Duration, tick: Tick<'_>) -> Result<Saved> {
    save::save(endpoint, file, limit, tick)
}

/// Checks a snapshot's trailer and structure and returns what it contains. The file may be plain or compressed with zstd, whatever its
/// name; a compressed database is unpacked into `$TMPDIR`, or `/var/tmp`.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when anything in it is wrong; when it cannot be read, or there is no
/// scratch space.
pub fn status(file: &Path, tick: Tick<'_>) -> Result<Status> {
    status::status(file, false, tick)
}

/// As [`status()`], but a file without a valid trailer (a copied database) is accepted too.
///
/// # Errors
/// As [`status()`].
pub fn status_without_hash(file: &Path, tick: Tick<'_>) -> Result<Status> {
    status::status(file, true, tick)
}

/// A snapshot that was found to be whole, to be read as often as needed; a compressed one is unpacked once.
#[derive(Debug)]
pub struct Snapshot(status::Database);

impl Snapshot {
    /// Opens a snapshot; the trailer is checked, and scratch space is as for [`status()`].
    ///
    /// # Errors
    /// As [`status()`].
    pub fn open(file: &Path, tick: Tick<'_>) -> Result<Self> {
        status::Database::open(file, false, tick).map(Self)
    }

    /// As [`Self::open`], but a file without a valid trailer (the database of a stopped etcd) is accepted too.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_without_hash(file: &Path, tick: Tick<'_>) -> Result<Self> {
        status::Database::open(file, true, tick).map(Self)
    }

    /// Calls `each` with key and value of every live key that is `wanted`, the one that was last written first.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when anything in it is wrong, which may be found when some were called with already;
    /// those of `each`.
    pub fn live(&self, wanted: &mut dyn FnMut(&[u8]) -> bool, each: EachValue<'_>) -> Result<()> {
        let status::Database { file, len, name } = &self.0;
        live::each(&bolt::Bolt::open(file, *len, name)?, wanted, each)
    }
}

/// Checks only that the file is whole: decompresses it and compares the trailer. Needs no scratch space.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not; when it cannot be read.
pub fn verify(file: &Path, tick: Tick<'_>) -> Result<()> {
    snapshot::verify(file, false, tick).map(drop)
}

/// Checks by its first bytes that a snapshot is of a supported kind. For a file whose content is already known to be unchanged.
///
/// # Errors
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is packed with another program,
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is no snapshot; when it cannot be read.
pub fn look(file: &Path) -> Result<()> {
    snapshot::look(file)
}

/// Checks all that [`restore()`] checks with the default options, without making anything; scratch space as for [`status()`].
///
/// # Errors
/// As [`status()`]; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the snapshot does not say which member to make.
pub fn check_restorable(file: &Path, tick: Tick<'_>) -> Result<()> {
    restore::check_restorable(file, tick)
}

/// The bytes that etcd sent, from a snapshot file that is plain or compressed with zstd. Nothing is checked.
///
/// # Errors
/// When it cannot be opened; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is packed with another program.
pub fn reader(file: &Path) -> Result<Box<dyn Read + Send>> {
    snapshot::reader(file)
}

/// As `etcdutl snapshot restore`: makes the data directory `data_dir`, which must be empty or not exist.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) for a damaged snapshot,
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for invalid options, [`FailureKind::Misfit`](crate::error::FailureKind::Misfit)
/// when the snapshot does not say which member to make; when the directory is not empty or cannot be written. After a failure, what was
/// made is removed.
pub fn restore(file: &Path, data_dir: &Path, options: &Options, tick: Tick<'_>) -> Result<Restored> {
    restore::restore(file, data_dir, options, tick)
}

/// The restore of a recovery: builds a new member beside `member` inside `data_dir`, then swaps them; the old one is kept as
/// `member.before-<run>`. Safe to run again after a crash at any point: the run id in the new directory tells how far it came. Owner, mode
/// and security label are those of the old `member`. Other files in the data directory are left alone.
///
/// # Errors
/// As [`restore()`]; also while etcd runs on `data_dir`. The old member is then untouched.
pub fn replace(file: &Path, data_dir: &Path, run: &str, options: &Options, tick: Tick<'_>) -> Result<Restored> {
    replace::replace(file, data_dir, run, options, tick)
}

/// True when `data_dir` holds the member that [`replace()`] made for this run, whether or not etcd has run on it since.
#[must_use]
pub fn is_replaced(data_dir: &Path, run: &str) -> bool {
    replace::is_replaced(data_dir, run)
}

/// At finish: removes the old members that [`replace()`] kept in this run, and in the `earlier` runs that this one replaced. Can be run
/// again.
///
/// # Errors
/// When the new member is not in place (the old one may then be the only copy), or something cannot be removed.
pub fn drop_kept(data_dir: &Path, run: &str, earlier: &[String]) -> Result<()> {
    replace::drop_kept(data_dir, run, earlier)
}

/// The greatest revision in the data directory of a stopped etcd, including members that a recovery has put aside: clients have seen those
/// revisions too. `None` when there is no member. A member that cannot be read gives a warning and is not counted, unless none can be read.
/// After an unclean stop etcd may have answered a little more than its database holds: [`bump_for`] allows for that.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when every database is damaged; when none can be read.
pub fn revision_of(data_dir: &Path) -> Result<Option<i64>> {
    data_dir::revision_of(data_dir)
}

/// The bump for a recovery from a snapshot at `snapshot_revision`, when the data directory that it replaces was at `old`: 1,000,000,000, or
/// as much more as is needed to begin beyond every revision that any client has seen. Otherwise a second recovery from the same snapshot
/// would give out the revisions of the first one again.
#[must_use]
pub fn bump_for(snapshot_revision: i64, old: Option<i64>) -> u64 {
    let ahead = old.map_or(0, |old| u64::try_from(old.saturating_sub(snapshot_revision)).unwrap_or(0));
    USUAL_BUMP.max(ahead.saturating_add(UNCOMMITTED))
}

/// Makes a new file that only its owner can access, open for reading and writing.
fn new_file(path: &Path) -> Result<File> {
    let open = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    open.with_context(|| format!("making the file {}", path.display()))
}

/// Sets permissions, whatever the umask.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(|| format!("setting the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bump_leaves_every_revision_behind() {
        assert_eq!(bump_for(500, None), 1_000_000_000);
        assert_eq!(bump_for(500, Some(700)), 1_000_000_000);
        assert_eq!(bump_for(500, Some(100)), 1_000_000_000);
        // The second recovery from the same snapshot: the first one had raised the revision by the usual bump.
        let old = 500 + 1_000_000_000 + 42;
        assert!(500 + i64::try_from(bump_for(500, Some(old))).unwrap() > old);
    }
}
