//! Snapshots of ever more keys, of a real etcd.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use etcd_client::{GetOptions, Txn, TxnOp};
use testing::etcd::{Etcd, Options, Version, noise};
use testing::node::checked;

use super::{Curve, agent, head};
use crate::disk::Disk;
use crate::place::Sno;

/// Keys in a MiB of etcd's database, in which two of them share a page.
const IN_A_MIB: u64 = 512;
/// Bytes of a value: half of it does not compress.
const VALUE: usize = 1800;
/// Keys that one transaction puts: less than etcd takes in one request.
const AT_ONCE: u64 = 500;
/// The values' noise: more of it than a compressor looks back.
const NOISE: usize = 16 << 20;
/// Below it are the keys; the one with the number N is the (N+1)th.
const PREFIX: &str = "/kubernetes.io/configmaps/load/";

/// Puts keys until there are `to`.
fn grow(etcd: &Etcd, noise: &[u8], from: u64, to: u64) -> Result<()> {
    let value = |n: u64| -> Result<Vec<u8>> {
        let at = usize::try_from(n)?.wrapping_mul(7919) % (NOISE - VALUE);
        let mut value = noise[at..at + VALUE / 2].to_vec();
        value.resize(VALUE, b'a' + u8::try_from(n % 26)?);
        Ok(value)
    };
    let mut next = from;
    while next < to {
        // A client for a while only: its time is limited.
        let end = to.min(next + 100 * AT_ONCE);
        etcd.with_client(async |client| {
            while next < end {
                let puts: Result<Vec<TxnOp>> =
                    (next..end.min(next + AT_ONCE)).map(|n| Ok(TxnOp::put(format!("{PREFIX}{n:08}"), value(n)?, None))).collect();
                client.txn(Txn::new().and_then(puts?)).await?;
                next = end.min(next + AT_ONCE);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// All of what was restored is served by etcd itself, which checks its data at every start.
fn served(version: Version, data: &Path, keys: u64, args: &[String]) -> Result<()> {
    let etcd = Etcd::start(version, data, &Options { args: args.to_vec(), ..Options::default() })?;
    let count = etcd.with_client(async |client| {
        let options = GetOptions::new().with_prefix().with_count_only();
        Ok(client.get(PREFIX, Some(options)).await?.count())
    })?;
    ensure!(count == i64::try_from(keys)?, "etcd has {count} keys of {keys}");
    etcd.kill()
}

/// For databases of so many MiB.
fn of_ever_more_keys(version: Version, args: &[&str], sizes: &[u64]) -> Result<()> {
    head("MiB of keys");
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let sno = Sno::with(version, &args);
    let scratch = tempfile::tempdir()?;
    let (file, data) = (scratch.path().join("snapshot.db.zst"), scratch.path().join("data"));
    let noise = noise(1, NOISE);
    let [mut save, mut status, mut restore, mut backup, mut verify] =
        ["etcd save", "etcd status", "etcd restore", "backup", "verify"].map(Curve::of);
    let remove = |path: &PathBuf| match if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", path.display())),
        _ => Ok(()),
    };
    let on_it = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(words);
        command
    };
    let mut keys = 0;
    for size in sizes.iter().copied() {
        grow(&sno.etcd, &noise, keys, size * IN_A_MIB)?;
        keys = size * IN_A_MIB;
        save.measure(size, || {
            remove(&file)?;
            let endpoint = &sno.etcd.endpoint;
            let mut command = agent(["etcd", "save"]);
            command.arg(&file).args(["--endpoint", &sno.etcd.client_url]);
            command.arg("--cacert").arg(&endpoint.ca).arg("--cert").arg(&endpoint.cert).arg("--key").arg(&endpoint.key);
            Ok(command)
        })?;
        let of_the_file = |words: &[&str]| {
            let mut command = agent(words);
            command.arg(&file);
            command
        };
        status.measure(size, || Ok(of_the_file(&["etcd", "status"])))?;
        let told: serde_json::Value = serde_json::from_str(&checked(&mut of_the_file(&["--json", "etcd", "status"]))?)?;
        // Beside them, what every such node has.
        ensure!(told["total_keys"].as_u64() >= Some(keys) && told["db_size"].as_u64() >= Some(size << 20), "{told}");
        restore.measure(size, || {
            remove(&data)?;
            let mut command = of_the_file(&["etcd", "restore"]);
            command.arg("--data-dir").arg(&data).args(["--bump-revision", "1000000000", "--mark-compacted"]);
            Ok(command)
        })?;
        remove(&file)?;
        served(version, &data, keys, &args)?;
        remove(&data)?;
        backup.measure(size, || {
            sno.place.dir.prepare()?;
            remove(&sno.place.dir.backups())?;
            sno.place.dir.prepare()?;
            Ok(on_it(&["backup", "--force"]))
        })?;
        verify.measure(size, || Ok(on_it(&["verify"])))?;
        remove(&sno.place.dir.backups())?;
    }
    Ok(())
}

#[test]
#[ignore = "minutes, for it measures: `tests/run.sh sweep size`"]
fn a_larger_snapshot_takes_little_memory_and_no_more_time_for_each_key() -> Result<()> {
    let _disk = Disk::make()?;
    of_ever_more_keys(Version::V34, &["--unsafe-no-fsync", "--max-txn-ops=1000"], &[16, 96])
}

#[test]
#[ignore = "half an hour, 14 GB of disk: `tests/run.sh sweep size`"]
fn a_snapshot_of_4_gib_with_2_million_keys() -> Result<()> {
    // What etcd keeps beside its database, in memory and on disk, stays small.
    let small = ["--snapshot-count=100", "--snapshot-catchup-entries=50", "--max-wals=1"];
    let large = ["--quota-backend-bytes=8589934592", "--max-txn-ops=1000", "--unsafe-no-fsync"];
    of_ever_more_keys(Version::V36, &[large, small].concat(), &[16, 256, 1024, 4096])
}
