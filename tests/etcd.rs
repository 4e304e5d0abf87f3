//! The room `etcd`, as its users see it: against real etcd, etcdctl and etcdutl.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etcd_client::{CompactionOptions, GetOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions};
use recovery::error::exit_code;
use recovery::etcd::{self, Endpoint, Options};
use sha2::{Digest, Sha256};
use testing::etcd::{Certs, Etcd, HashKv, Options as Start, Version};

const LIMIT: Duration = Duration::from_secs(30);

fn save(etcd: &Etcd, file: &Path) -> Result<()> {
    let saved = etcd::save(&etcd.endpoint, file, LIMIT, &|_| ())?;
    let meta = file.metadata()?;
    assert_eq!((meta.permissions().mode() & 0o7777, meta.len()), (0o600, saved.stored));
    assert_eq!(hex(&Sha256::digest(std::fs::read(file)?)), saved.sha256);
    etcd::verify(file, &|_| ())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// `etcdutl snapshot restore` of the snapshot's own version, with the name and URL that the native restore takes from the snapshot.
fn etcdutl_restore(version: Version, file: &Path, data_dir: &Path, peer_url: &str, more: &[&str]) -> Result<()> {
    let mut command = version.restorer()?;
    command.arg(file).arg("--data-dir").arg(data_dir).args(["--name", "default", "--initial-advertise-peer-urls", peer_url]);
    let output = command.arg(format!("--initial-cluster=default={peer_url}")).args(more).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Each lease: its id, for how long it was granted (seconds), and the keys that go with it.
type Leases = Vec<(i64, i64, Vec<Vec<u8>>)>;

fn leases(etcd: &Etcd) -> Result<Leases> {
    etcd.with_client(async |client| {
        let mut leases = Vec::new();
        for lease in client.leases().await?.leases() {
            let one = client.lease_time_to_live(lease.id(), Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
            let mut keys = one.keys().to_vec();
            keys.sort();
            leases.push((lease.id(), one.granted_ttl(), keys));
        }
        leases.sort();
        Ok(leases)
    })
}

/// What an etcd on `data_dir` says of itself, before and after a write and a restart.
fn look(version: Version, data_dir: &Path) -> Result<(HashKv, String, usize, Leases, HashKv)> {
    let etcd = Etcd::start(version, data_dir, &Start::default())?;
    let (hash, members, contents, leases) = (settled(&etcd)?, etcd.etcdctl(&["member", "list"])?, etcd.contents()?, leases(&etcd)?);
    etcd.with_client(async |client| Ok(client.put("written", "after", None).await.map(drop)?))?;
    etcd.stop()?;
    let etcd = Etcd::start(version, data_dir, &Start::default())?;
    let (value, _) = etcd.contents()?.remove(&b"written"[..]).context("what was written is not there after a restart")?;
    assert_eq!(value, b"after");
    // The client URL is the port of the moment.
    let members = members.split(", ").take(4).collect::<Vec<_>>().join(", ");
    Ok((hash, members, contents.len(), leases, settled(&etcd)?))
}

/// The hash, once the compaction that a restart may have scheduled is through.
fn settled(etcd: &Etcd) -> Result<HashKv> {
    let mut last = etcd.hashkv()?;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let next = etcd.hashkv()?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
}

/// Snapshots of one etcd: empty, small, with leases and compacted, large.
fn snapshots(version: Version, dir: &Path) -> Result<(String, Vec<PathBuf>)> {
    let etcd = Etcd::start(version, &dir.join("source"), &Start::default())?;
    let mut files = Vec::new();
    let mut keep = |name: &str| -> Result<()> {
        let file = dir.join(name);
        save(&etcd, &file)?;
        files.push(file);
        Ok(())
    };
    keep("empty.db")?;
    etcd.put_many(30)?;
    keep("small.db.zst")?;
    etcd.with_client(async |client| {
        let lease = client.lease_grant(3600, None).await?.id();
        for i in 0..50 {
            client.put(format!("leased/{i}"), "for an hour", Some(PutOptions::new().with_lease(lease))).await?;
            client.put("changing", format!("{i}"), None).await?;
            client.delete(format!("leased/{}", i / 2), None).await?;
        }
        let revision = client.get("changing", None).await?.header().context("no header")?.revision();
        client.compact(revision - 20, Some(CompactionOptions::new().with_physical())).await?;
        Ok(())
    })?;
    keep("compacted.db")?;
    etcd.put_many(50_000)?;
    etcd.with_client(async |client| {
        client.put("large", vec![b'x'; 1_400_000], None).await?;
        Ok(())
    })?;
    keep("large.db.zst")?;
    keep("large.db")?;
    let peer_url = etcd.peer_url.clone();
    etcd.stop()?;
    Ok((peer_url, files))
}

fn native_equals_etcdutl(version: Version) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (peer_url, files) = snapshots(version, dir.path())?;
    for file in &files {
        let plain = file.with_extension("plain");
        if file.extension().is_some_and(|extension| extension == "zst") {
            let unpacked = Command::new("zstd").args(["-q", "-d"]).arg(file).arg("-o").arg(&plain).status()?;
            ensure!(unpacked.success(), "zstd -d {}", file.display());
        } else {
            std::fs::copy(file, &plain)?;
        }
        same_status(version, file, &plain)?;
        let (theirs, ours) = (file.with_extension("theirs"), file.with_extension("ours"));
        etcdutl_restore(version, &plain, &theirs, &peer_url, &[])?;
        let restored = etcd::restore(file, &ours, &Options::default(), &|_| ())?;
        assert_eq!(restored.name, "default");
        let (theirs, ours) = (look(version, &theirs)?, look(version, &ours)?);
        assert_eq!(theirs, ours, "{version:?}, {}", file.display());
        assert_eq!(restored.revision, ours.0.revision);
        // Of fifty keys with the one lease, as granted, every other one was deleted again.
        let leased: Vec<_> = ours.3.iter().map(|(_, granted, keys)| (*granted, keys.len())).collect();
        let is_leased =
            !["empty", "small"].iter().any(|name| file.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)));
        assert_eq!(leased, if is_leased { vec![(3600, 25)] } else { Vec::new() }, "{}", file.display());
        assert!(ours.1.starts_with(&format!("{:x}, started, default, {peer_url}", restored.member_id)), "{}", ours.1);
    }
    Ok(())
}

/// Compares `status` with `snapshot status -w json`.
fn same_status(version: Version, file: &Path, plain: &Path) -> Result<()> {
    let tool = version.program(if version == Version::V34 { "etcdctl" } else { "etcdutl" })?;
    let output = Command::new(tool).env("ETCDCTL_API", "3").args(["snapshot", "status", "-w", "json"]).arg(plain).output()?;
    let theirs: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let ours = etcd::status(file, &|_| ())?;
    assert_eq!(theirs["hash"], ours.hash);
    assert_eq!(theirs["revision"], ours.revision);
    assert_eq!(theirs["totalSize"], ours.db_size);
    let live = matches!(version, Version::V36 | Version::V37);
    assert_eq!(theirs["totalKey"], if live { ours.total_keys } else { ours.items }, "{version:?}, {}", file.display());
    assert_eq!(theirs["version"].as_str().filter(|version| !version.is_empty()), ours.version.as_deref());
    assert_eq!(ours.members.len(), 1);
    Ok(())
}

#[test]
fn native_restore_equals_etcdutl_3_4() -> Result<()> {
    native_equals_etcdutl(Version::V34)
}

#[test]
fn native_restore_equals_etcdutl_3_5() -> Result<()> {
    native_equals_etcdutl(Version::V35)
}

#[test]
fn native_restore_equals_etcdutl_3_6() -> Result<()> {
    native_equals_etcdutl(Version::V36)
}

#[test]
fn native_restore_equals_etcdutl_3_7() -> Result<()> {
    native_equals_etcdutl(Version::V37)
}

#[test]
fn a_bump_leaves_old_revisions_behind() -> Result<()> {
    const BUMP: u64 = 1_000_000_000;
    for version in [Version::V34, Version::V35, Version::V36, Version::V37] {
        let dir = tempfile::tempdir()?;
        for (name, keys) in [("none", 0), ("few", 10), ("many", 3000)] {
            let data = dir.path().join(format!("{name}-source"));
            let source = Etcd::start(version, &data, &Start::default())?;
            source.put_many(keys)?;
            let old = source.hashkv()?.revision;
            let file = dir.path().join(format!("{name}.db"));
            save(&source, &file)?;
            let peer_url = source.peer_url.clone();
            source.stop()?;

            let ours = dir.path().join(format!("{name}-ours"));
            let options = Options { bump_revision: BUMP, mark_compacted: true, ..Options::default() };
            let restored = etcd::restore(&file, &ours, &options, &|_| ())?;
            let etcd = Etcd::start(version, &ours, &Start::default())?;
            let hash = settled(&etcd)?;
            assert_eq!(hash.revision, restored.revision);
            // The database of an etcd on which nothing was written, which says that it is at revision 1, has none.
            let latest = if keys == 0 { 0 } else { old };
            assert_eq!(hash.revision, latest + i64::try_from(BUMP)?);
            compacted(&etcd, old)?;
            assert_eq!(etcd.contents()?.len(), keys, "{version:?}, {name}");
            etcd.stop()?;
            if version != Version::V34 {
                let theirs = dir.path().join(format!("{name}-theirs"));
                let more = ["--bump-revision", &BUMP.to_string(), "--mark-compacted"];
                etcdutl_restore(version, &file, &theirs, &peer_url, &more)?;
                assert_eq!(look(version, &theirs)?, look(version, &ours)?, "{version:?}, {name}");
            }
        }
    }
    Ok(())
}

/// Reads and watches at revision `old` are told that it is compacted.
fn compacted(etcd: &Etcd, old: i64) -> Result<()> {
    etcd.with_client(async |client| {
        let read = client.get("x", Some(GetOptions::new().with_revision(old))).await;
        assert!(read.as_ref().is_err_and(|error| error.to_string().contains("compacted")), "{read:?}");
        let mut watch = client.watch("x", Some(WatchOptions::new().with_start_revision(old))).await?;
        loop {
            let answer = watch.message().await?.context("the watch ended")?;
            if answer.canceled() {
                assert!(answer.compact_revision() > old, "compacted up to {}", answer.compact_revision());
                return Ok(());
            }
        }
    })
}

/// A snapshot of `keys` keys, with the data directory it is from.
fn small(dir: &Path, version: Version, keys: usize) -> Result<(PathBuf, PathBuf)> {
    let data = dir.join("data");
    let etcd = Etcd::start(version, &data, &Start::default())?;
    etcd.put_many(keys)?;
    let file = dir.join("snapshot.db");
    save(&etcd, &file)?;
    etcd.stop()?;
    Ok((data, file))
}

/// A file, with owner, mode and content.
type Seen = (PathBuf, u32, u32, Vec<u8>);

/// Every file below `dir`.
fn everything(dir: &Path) -> Result<Vec<Seen>> {
    let mut all = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry?;
        let meta = entry.metadata()?;
        let content = if meta.is_file() { std::fs::read(entry.path())? } else { Vec::new() };
        all.push((entry.path().to_owned(), meta.uid(), meta.mode(), content));
    }
    Ok(all)
}

/// The names in a directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn what_lives_in_a_snapshot_is_what_etcd_says() -> Result<()> {
    for version in [Version::V34, Version::V36] {
        let dir = tempfile::tempdir()?;
        let etcd = Etcd::start(version, &dir.path().join("data"), &Start::default())?;
        etcd.put_many(1000)?;
        etcd.with_client(async |client| {
            for i in 0..300 {
                client.delete(format!("/registry/things/{:07}", i * 3), None).await?;
                client.put(format!("/registry/things/{:07}", i * 2), "again", None).await?;
            }
            // Twice in one revision, which only its second part tells apart; gone and back; and what is not asked for.
            client.put("/registry/things/back", "old", None).await?;
            let revision = client.delete("/registry/things/back", None).await?.header().context("no header")?.revision();
            client.put("/registry/things/back", "new", None).await?;
            client.put("/registry/things/empty", "", None).await?;
            client.put("/other/things", "not asked for", None).await?;
            Ok(client.compact(revision, None).await.map(drop)?)
        })?;
        for name in ["snapshot.db", "snapshot.db.zst"] {
            let file = dir.path().join(name);
            save(&etcd, &file)?;
            let mut seen = std::collections::BTreeMap::new();
            let mut each = |key: &[u8], value: &[u8]| {
                ensure!(seen.insert(key.to_vec(), value.to_vec()).is_none(), "{key:?} is there twice");
                Ok(())
            };
            etcd::Snapshot::open(&file, &|_| ())?.live(&mut |key| key.starts_with(b"/registry/"), &mut each)?;
            let mut expected: std::collections::BTreeMap<_, _> =
                etcd.contents()?.into_iter().map(|(key, (value, _))| (key, value)).collect();
            ensure!(expected.remove(&b"/other/things"[..]).is_some() && expected.len() > 500, "{}", expected.len());
            ensure!(seen == expected, "{version:?}: {} keys, not {}", seen.len(), expected.len());
        }
    }
    Ok(())
}

#[test]
fn a_value_is_replaced_only_where_nobody_else_was_faster() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(Version::V36, &dir.path().join("data"), &Start::default())?;
    etcd.with_client(async |client| Ok(client.put("key", "one", None).await.map(drop)?))?;
    let mut store = etcd::Store::open(&etcd.endpoint, LIMIT)?;
    ensure!(store.get(b"none")?.is_none());
    let (value, revision) = store.get(b"key")?.context("the key is not there")?;
    ensure!(value == b"one");
    ensure!(store.replace(b"key", b"two", revision)?);
    ensure!(!store.replace(b"key", b"three", revision)?, "it was written since");
    let (value, revision) = store.get(b"key")?.context("the key is gone")?;
    ensure!(value == b"two");
    etcd.with_client(async |client| Ok(client.delete("key", None).await.map(drop)?))?;
    ensure!(!store.replace(b"key", b"three", revision)? && store.get(b"key")?.is_none(), "it is not made anew");
    etcd.kill()?;
    assert_eq!(exit_code(&store.get(b"key").unwrap_err()), 69);
    Ok(())
}

#[test]
fn a_flipped_byte_or_a_missing_end_is_refused_before_anything_is_touched() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = small(dir.path(), Version::V35, 1000)?;
    let packed = dir.path().join("snapshot.db.zst");
    std::fs::write(&packed, zstd::encode_all(std::fs::File::open(&file)?, 1)?)?;
    let before = everything(&data)?;
    let refused = |bad: &Path, what: &str| {
        for error in [
            etcd::verify(bad, &|_| ()).err(),
            etcd::status(bad, &|_| ()).err(),
            etcd::replace(bad, &data, "run-1", &Options::default(), &|_| ()).err(),
            etcd::restore(bad, &dir.path().join("new"), &Options::default(), &|_| ()).err(),
        ] {
            assert_eq!(error.as_ref().map(exit_code), Some(65), "{what}: {error:?}");
        }
        assert!(!dir.path().join("new").exists(), "{what}");
    };
    for (source, bad) in [(&file, dir.path().join("bad.db")), (&packed, dir.path().join("bad.db.zst"))] {
        let good = std::fs::read(source)?;
        // The compressed file has no check on a few bits of its header that change nothing (the content's checksum is optional).
        let first = if source == &packed { 12 } else { 0 };
        for at in (first..good.len()).step_by(good.len() / 40).chain([good.len() - 1]) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&bad, bytes)?;
            refused(&bad, &format!("{} with byte {at} flipped", source.display()));
        }
        for len in [0, 1, 31, 32, 100, 4096, good.len() / 2, good.len() - 512, good.len() - 32, good.len() - 1] {
            std::fs::write(&bad, &good[..len])?;
            refused(&bad, &format!("{} cut to {len} bytes", source.display()));
        }
    }
    let nonsense = dir.path().join("nonsense.db");
    let mut bytes = b"not a database ".repeat(1024);
    bytes.truncate(8192);
    std::fs::write(&nonsense, with_trailer(bytes))?;
    let error = etcd::replace(&nonsense, &data, "run-1", &Options::default(), &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 65);
    assert!(format!("{error:#}").contains("is not an etcd database"), "{error:#}");
    assert!(everything(&data)? == before);
    Ok(())
}

fn with_trailer(mut database: Vec<u8>) -> Vec<u8> {
    let sum = Sha256::digest(&database);
    database.extend_from_slice(&sum);
    database
}

/// A snapshot with a valid trailer over a database that lies: every 8 bytes of its structure in turn say something evil.
#[test]
fn a_hostile_database_ends_with_65_and_nothing_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_, file) = small(dir.path(), Version::V35, 200)?;
    let good = std::fs::read(&file)?;
    let database = &good[..good.len() - 32];
    let (bad, new) = (dir.path().join("bad.db"), dir.path().join("new"));
    let bump = Options { bump_revision: 5, mark_compacted: true, ..Options::default() };
    let (mut refused, mut harmless) = (0, 0);
    for page in (0..database.len()).step_by(4096) {
        for at in (page..page + 160).step_by(8) {
            for evil in [0, 1, 2, 3, 0xFFFF, u64::MAX, u64::from_le_bytes(*b"\x02\0\xff\xff\xff\xff\xff\x7f"), page as u64 / 4096] {
                let mut bytes = database.to_vec();
                bytes[at..at + 8].copy_from_slice(&evil.to_le_bytes());
                // A meta page is taken only with its checksum.
                if at >= page + 16 && at < page + 72 && page < 8192 {
                    let sum = bytes[page + 16..page + 72]
                        .iter()
                        .fold(0xCBF2_9CE4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
                    bytes[page + 72..page + 80].copy_from_slice(&sum.to_le_bytes());
                }
                std::fs::write(&bad, with_trailer(bytes))?;
                let mut results = vec![etcd::status(&bad, &|_| ()).map(drop)];
                // A restore takes its time to be durable: only for what is in a page's header and first element.
                if at < page + 32 && results[0].is_err() {
                    results.push(etcd::restore(&bad, &new, &bump, &|_| ()).map(drop));
                }
                for result in results {
                    match result {
                        Ok(()) => harmless += 1,
                        Err(error) if [65, 78].contains(&exit_code(&error)) => refused += 1,
                        Err(error) => panic!("{evil:#x} at {at}: {error:#}"),
                    }
                }
                if new.exists() {
                    std::fs::remove_dir_all(&new)?;
                }
            }
        }
    }
    println!("{refused} refused, {harmless} harmless");
    assert!(refused > 500 && harmless > 0);
    Ok(())
}

#[test]
fn the_trailer_is_missed_in_a_copied_database_unless_asked_not_to() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, _) = small(dir.path(), Version::V36, 1000)?;
    let copy = dir.path().join("copy.db");
    std::fs::copy(data.join("member/snap/db"), &copy)?;
    let new = dir.path().join("new");
    let error = etcd::restore(&copy, &new, &Options::default(), &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 65);
    assert!(format!("{error:#}").contains("--skip-hash-check"), "{error:#}");
    let skip = Options { skip_hash_check: true, ..Options::default() };
    etcd::restore(&copy, &new, &skip, &|_| ())?;
    let etcd = Etcd::start(Version::V36, &new, &Start::default())?;
    assert_eq!(etcd.contents()?.len(), 1000);
    Ok(())
}

#[test]
fn a_restore_makes_the_directories_above_and_knows_its_own_log_by_any_spelling() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_, file) = small(dir.path(), Version::V36, 10)?;
    let damaged = dir.path().join("damaged.db");
    std::fs::copy(&file, &damaged)?;
    let mut bytes = std::fs::read(&file)?;
    bytes[9000] ^= 1;
    std::fs::write(&damaged, bytes)?;
    let restore = |file: &Path, data: &str, more: &[&str]| -> Result<(Option<i32>, String)> {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_recovery"));
        let output = agent.args(["etcd", "restore"]).arg(file).args(["--data-dir", data]).args(more).current_dir(dir.path()).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    assert_eq!(restore(&damaged, "a/b/c", &[])?.0, Some(65));
    assert_eq!(restore(&damaged, "a/../b", &[])?.0, Some(65));
    assert!(!dir.path().join("a").exists() && !dir.path().join("b").exists(), "what a failed call has made");
    let (code, said) = restore(&file, "/proc/recovery/data", &[])?;
    assert!(code == Some(1) && said.contains("making the directory /proc/recovery"), "{said}");
    assert_eq!(restore(&file, "a/b/c", &[])?.0, Some(0));
    assert!(dir.path().join("a/b/c/member/snap/db").exists());
    assert_eq!(restore(&damaged, "a/x", &[])?.0, Some(65));
    assert_eq!(names(&dir.path().join("a"))?, ["b"]);
    let absolute = dir.path().join("three/member/./wal");
    for (data, log) in [("one", "./one/member/wal/"), ("./two//", "two/member/wal"), ("three", absolute.to_str().context("a path")?)] {
        let (code, said) = restore(&file, data, &["--wal-dir", log])?;
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(restore(&file, "four", &["--wal-dir", "four/wal"])?.0, Some(64));
    assert!(!dir.path().join("four").exists());
    Ok(())
}

#[test]
fn what_a_killed_save_or_restore_has_left_is_in_nobodys_way() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(Version::V35, &dir.path().join("source"), &Start::default())?;
    etcd.put_many(100)?;
    let file = dir.path().join("snapshot.db");
    std::fs::write(dir.path().join("snapshot.db.part"), "cut off")?;
    save(&etcd, &file)?;
    let error = etcd::save(&etcd.endpoint, &file, LIMIT, &|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("exists already"), "{error:#}");
    etcd::verify(&file, &|_| ())?;
    etcd.stop()?;
    assert_eq!(names(dir.path())?, ["snapshot.db", "source"]);

    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("member.new/snap"))?;
    std::fs::write(data.join("member.new/snap/db"), "cut off")?;
    etcd::restore(&file, &data, &Options::default(), &|_| ())?;
    assert_eq!(names(&data)?, ["member"]);
    // With anything beside it, the directory is somebody else's.
    std::fs::create_dir(data.join("member.new"))?;
    assert!(etcd::restore(&file, &data, &Options::default(), &|_| ()).is_err());
    assert_eq!(names(&data)?, ["member", "member.new"]);
    Ok(())
}

#[test]
fn a_call_that_was_stopped_at_its_end_is_ended_by_the_next_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(Version::V35, &dir.path().join("source"), &Start::default())?;
    etcd.put_many(100)?;
    for name in ["snapshot.db", "snapshot.db.zstd"] {
        let (file, part) = (dir.path().join(name), dir.path().join(format!("{name}.part")));
        let first = etcd::save(&etcd.endpoint, &file, LIMIT, &|_| ())?;
        std::fs::hard_link(&file, &part)?;
        let again = etcd::save(&etcd.endpoint, &file, LIMIT, &|_| ())?;
        assert_eq!((again.bytes, again.stored, again.sha256), (first.bytes, first.stored, first.sha256));
        assert!(!part.exists());
        // Beside a part of another file, it is somebody else's.
        std::fs::write(&part, "cut off")?;
        let error = etcd::save(&etcd.endpoint, &file, LIMIT, &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("exists already"), "{error:#}");
        etcd::verify(&file, &|_| ())?;
    }
    etcd.put_many(10)?;
    let (file, newer) = (dir.path().join("snapshot.db"), dir.path().join("newer.db"));
    save(&etcd, &newer)?;
    etcd.stop()?;

    let (data, options) = (dir.path().join("data"), Options::default());
    let restored = etcd::restore(&file, &data, &options, &|_| ())?;
    assert_eq!(names(&data.join("member"))?, ["snap", "wal"]);
    let stopped = || -> Result<()> {
        let bytes = std::fs::read(&file)?;
        let sum = hex(&bytes[bytes.len() - 32..]);
        let mut files = Vec::new();
        for part in ["snap", "wal"] {
            for name in names(&data.join("member").join(part))? {
                let meta = data.join("member").join(part).join(&name).metadata()?;
                files.push((format!("{part}/{name}"), meta.len(), meta.mtime(), meta.mtime_nsec()));
            }
        }
        let made = serde_json::json!({"snapshot": sum, "options": recovery::formats::made::OptionsV1::from(options.clone()), "restored": restored, "files": files});
        Ok(std::fs::write(data.join("member/recovery-restore"), made.to_string())?)
    };
    stopped()?;
    let before = everything(&data)?;
    let other = Options { token: Some("another".to_owned()), ..Options::default() };
    for (file, options) in [(&newer, &options), (&file, &other)] {
        let error = etcd::restore(file, &data, options, &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("is not empty"), "{error:#}");
        assert!(everything(&data)? == before);
    }
    assert_eq!(etcd::restore(&file, &data, &options, &|_| ())?, restored);
    assert_eq!(names(&data.join("member"))?, ["snap", "wal"]);
    // An etcd that has run on it since has made it its own, and nothing tells the snapshot's revision any more.
    stopped()?;
    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    etcd.put_many(3)?;
    etcd.stop()?;
    let error = etcd::restore(&file, &data, &options, &|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("is not empty"), "{error:#}");
    Ok(())
}

#[test]
fn a_compressed_snapshot_is_told_by_its_content() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_, file) = small(dir.path(), Version::V36, 1000)?;
    let plain = etcd::status(&file, &|_| ())?;
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.window_log(27)?;
        std::io::copy(&mut std::fs::File::open(&file)?, &mut encoder)?;
        encoder.finish()?
    };
    for name in ["named.db", "named.db.zstd", "named.gz"] {
        let packed = dir.path().join(name);
        std::fs::write(&packed, &wide)?;
        etcd::verify(&packed, &|_| ())?;
        let before = names(dir.path())?;
        assert_eq!(etcd::status(&packed, &|_| ())?.hash, plain.hash);
        assert_eq!(names(dir.path())?, before);
        let new = dir.path().join(format!("{name}.restored"));
        assert_eq!(etcd::restore(&packed, &new, &Options::default(), &|_| ())?.revision, plain.revision);
    }
    let bytes = std::fs::read(&file)?;
    std::fs::write(dir.path().join("plain.zst"), &bytes)?;
    assert_eq!(etcd::status(&dir.path().join("plain.zst"), &|_| ())?.hash, plain.hash);
    // A frame whose window is 256 MiB, and those of other programs.
    let too_wide = [&[0x28, 0xB5, 0x2F, 0xFD, 0, 0x90][..], &[0; 100]].concat();
    for (head, words) in [
        (&too_wide[..], "`zstd -d --long=31"),
        (&b"\x1f\x8b\x08\0\0\0\0\0"[..], "packed with gzip"),
        (b"PK\x03\x04\x14\0\0\0", "`unzip -p"),
        (b"\xFD7zXZ\0\0\x04", "`xz -dc"),
    ] {
        let odd = dir.path().join("odd.db");
        std::fs::write(&odd, head)?;
        for error in [
            etcd::verify(&odd, &|_| ()).unwrap_err(),
            etcd::status(&odd, &|_| ()).unwrap_err(),
            etcd::restore(&odd, &dir.path().join("new"), &Options::default(), &|_| ()).unwrap_err(),
        ] {
            let text = format!("{error:#}");
            assert!(exit_code(&error) == 64 && text.contains(words) && !text.contains("damaged"), "{text}");
        }
        assert!(!dir.path().join("new").exists());
    }
    let made = |script: &str| {
        let script = format!("set -o pipefail; cd \"$0\"; f=named.db.zstd; {script}");
        assert!(Command::new("bash").arg("-ec").arg(&script).arg(dir.path()).status().unwrap().success(), "{script}");
        dir.path().join("made.db")
    };
    // As several frames, with a skippable one between, and filled up.
    let skippable = r"printf '\x50\x2a\x4d\x18\x03\0\0\0abc'";
    let frames = format!(
        "(head -c 70000 snapshot.db | zstd -q; {skippable}; tail -c +70001 snapshot.db | zstd -q; head -c 512 /dev/zero) > made.db"
    );
    assert_eq!(etcd::status(&made(&frames), &|_| ())?.hash, plain.hash);
    for broken in
        ["(cat $f; head -c 512 /dev/zero; echo more) > made.db", "(cat $f; echo more) > made.db", "(cat $f; head -c 9 $f) > made.db"]
    {
        assert_eq!(exit_code(&etcd::status(&made(broken), &|_| ()).unwrap_err()), 65, "{broken}");
    }
    for (script, words) in [
        ("zstd -q < $f > made.db", "packed twice, with zstd"),
        ("gzip -c snapshot.db | zstd -q > made.db", "`gzip -dc"),
        ("tar -cf made.db snapshot.db", "`tar -xf"),
        ("tar --format=posix -cf made.db $f", "`tar -xf"),
        ("tar -c snapshot.db | zstd -q > made.db", "`tar -xf"),
    ] {
        let file = made(script);
        let skip = Options { skip_hash_check: true, ..Options::default() };
        for error in [
            etcd::verify(&file, &|_| ()).unwrap_err(),
            etcd::look(&file).unwrap_err(),
            etcd::status_without_hash(&file, &|_| ()).unwrap_err(),
            etcd::restore(&file, &dir.path().join("new"), &skip, &|_| ()).unwrap_err(),
        ] {
            let text = format!("{error:#}");
            assert!(exit_code(&error) == 64 && text.contains(words) && !text.contains("damaged"), "{script}: {text}");
            // What it says to do leads there.
            if let Some((_, rest)) = text.split_once("unpack it first: `") {
                let mut commands: Vec<&str> = rest.split('`').step_by(2).collect();
                commands.truncate(2);
                made(&commands.join("; "));
                assert_eq!(etcd::status(&dir.path().join("snapshot.db"), &|_| ())?.hash, plain.hash, "{text}");
            }
        }
    }
    // What is none needs no flag.
    for (script, hint) in [("printf '%1000s' x > made.db", false), ("head -c -32 snapshot.db > made.db", true)] {
        let file = made(script);
        for error in [etcd::verify(&file, &|_| ()).unwrap_err(), etcd::look(&file).unwrap_err()] {
            let text = format!("{error:#}");
            assert!(exit_code(&error) == 65 && text.contains("--skip-hash-check") == hint, "{text}");
        }
    }
    Ok(())
}

/// A number of `N` bytes in a database.
fn number<const N: usize>(bytes: &[u8], at: usize) -> usize {
    bytes[at..at + N].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// The page at which the bucket `key` begins.
fn page_of_keys(db: &[u8]) -> usize {
    let newest = [0, 4096].into_iter().max_by_key(|at| number::<8>(db, at + 64)).unwrap_or(0);
    let root = number::<8>(db, newest + 32) * 4096;
    let elements = (0..number::<2>(db, root + 10)).map(|i| root + 16 + i * 16);
    let mut values = elements.filter_map(|at| {
        let key = at + number::<4>(db, at + 4);
        (&db[key..key + number::<4>(db, at + 8)] == b"key").then(|| key + 3)
    });
    values.next().map_or(0, |value| number::<8>(db, value))
}

/// Pages that etcd cannot start on, or that it never writes, under a hash that holds.
#[test]
fn a_database_that_etcd_cannot_start_on_is_refused_before_the_old_one_goes() -> Result<()> {
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let dir = tempfile::tempdir()?;
    let (data, file) = small(dir.path(), Version::V35, 3000)?;
    let good = std::fs::read(&file)?;
    let db = &good[..good.len() - 32];
    let is_branch = |page: usize| number::<2>(db, page * 4096 + 8) == 1;
    let children = |page: usize| {
        (0..number::<2>(db, page * 4096 + 10)).map(move |i| number::<8>(db, page * 4096 + 16 + i * 16 + 8)).collect::<Vec<_>>()
    };
    // The first branch whose children are leaves: etcd on a slow machine commits more often, and has more pages and levels.
    let mut branch = page_of_keys(db);
    assert!(is_branch(branch), "the bucket `key` begins with a branch");
    while is_branch(children(branch)[0]) {
        branch = children(branch)[0];
    }
    let (leaves, branch) = (children(branch), branch * 4096);
    let leaf = leaves[1] * 4096;
    let key = |i: usize| leaf + 16 + i * 16 + number::<4>(db, leaf + 16 + i * 16 + 4);
    let set = |bytes: &mut Vec<u8>, at: usize, value: usize| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    // The two leaves that are nearest to each other in the file, whatever lies between them.
    let mut in_file = leaves.clone();
    in_file.sort_unstable();
    let near = in_file.windows(2).min_by_key(|pair| pair[1] - pair[0]).context("a branch with one leaf")?;
    let (nearest, distance) = (near[0] * 4096, u32::try_from(near[1] - near[0])?);
    let changes: [(&str, bool, Change<'_>); 8] = [
        ("a page twice", true, &|db| set(db, branch + 24, leaves[1])),
        ("a page of another page's overflow", true, &|db| db[nearest + 12..nearest + 16].copy_from_slice(&distance.to_le_bytes())),
        ("a page out of range", true, &|db| set(db, branch + 24, db.len() / 4096 + 7)),
        ("a cycle", true, &|db| set(db, branch + 24, branch / 4096)),
        ("keys out of order", true, &|db| {
            let first = db[key(0)..key(0) + 17].to_vec();
            db.copy_within(key(1)..key(1) + 17, key(0));
            db[key(1)..key(1) + 17].copy_from_slice(&first);
        }),
        ("a value that is none of etcd's", true, &|db| db[key(0) + 17] = 0x0F),
        ("a key that is no revision", false, &|db| db[key(0) + 8] = b'x'),
        ("a key that is a bucket", false, &|db| db[leaf + 16] = 1),
    ];
    let before = everything(&data)?;
    for (what, fatal, change) in changes {
        let mut bytes = db.to_vec();
        change(&mut bytes);
        let bad = dir.path().join("bad.db");
        std::fs::write(&bad, with_trailer(bytes))?;
        let new = dir.path().join("new");
        for error in [
            etcd::status(&bad, &|_| ()).map(drop),
            etcd::replace(&bad, &data, RUN, &Options::default(), &|_| ()).map(drop),
            etcd::restore(&bad, &new, &Options::default(), &|_| ()).map(drop),
        ] {
            assert_eq!(error.as_ref().map_err(exit_code), Err(65), "{what}: {error:?}");
        }
        assert!(everything(&data)? == before && !new.exists(), "{what}");
        if fatal {
            let theirs = dir.path().join("theirs");
            let restored = etcdutl_restore(Version::V35, &bad, &theirs, "http://127.0.0.1:1", &[]);
            let started = restored.and_then(|()| Etcd::start(Version::V35, &theirs, &Start::default()).map(drop));
            assert!(started.is_err(), "etcd starts with {what}");
            std::fs::remove_dir_all(&theirs).ok();
        }
    }
    Ok(())
}

#[test]
fn options_are_those_of_etcdutl() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = small(dir.path(), Version::V36, 1000)?;
    let new = dir.path().join("new");
    let error = etcd::restore(&file, &data, &Options::default(), &|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("is not empty"), "{error:#}");
    let only_bump = Options { bump_revision: 1, ..Options::default() };
    let only_mark = Options { mark_compacted: true, ..Options::default() };
    let too_far = Options { bump_revision: u64::MAX, mark_compacted: true, ..Options::default() };
    let no_port = Options { peer_urls: vec!["https://host".to_owned()], ..Options::default() };
    for options in [only_bump, only_mark, too_far, no_port] {
        let error = etcd::restore(&file, &new, &options, &|_| ()).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{options:?}: {error:#}");
        assert!(!new.exists());
    }
    // The real one, for comparison.
    let refused = Version::V36.restorer()?.arg(&file).arg("--data-dir").arg(&new).arg("--mark-compacted").output()?;
    assert!(!refused.status.success());

    let options = Options {
        name: Some(etcd::DEFAULT_NAME.to_owned()),
        peer_urls: vec![etcd::DEFAULT_PEER_URL.to_owned()],
        token: Some(etcd::DEFAULT_TOKEN.to_owned()),
        ..Options::default()
    };
    let ours = etcd::restore(&file, &new, &options, &|_| ())?;
    let theirs = dir.path().join("theirs");
    let output = Version::V36.restorer()?.arg(&file).arg("--data-dir").arg(&theirs).output()?;
    assert!(output.status.success());
    assert_eq!(look(Version::V36, &new)?, look(Version::V36, &theirs)?);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains(&format!("\"cluster-id\": \"{:x}\"", ours.cluster_id)), "{log}");
    Ok(())
}

const RUN: &str = "0198-run";

/// A data directory whose etcd has gone on since the snapshot, with files that are not etcd's.
fn advanced(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (data, file) = small(dir, Version::V35, 1000)?;
    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    etcd.with_client(async |client| Ok(client.put("after", "the snapshot", None).await.map(drop)?))?;
    etcd.stop()?;
    std::fs::write(data.join("revision.json"), "")?;
    std::fs::create_dir(data.join("lost+found"))?;
    Ok((data, file))
}

fn bumped(data: &Path, file: &Path) -> Result<Options> {
    let snapshot = etcd::status(file, &|_| ())?.revision;
    Ok(Options { bump_revision: etcd::bump_for(snapshot, etcd::revision_of(data)?), mark_compacted: true, ..Options::default() })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp -a {}", from.display());
    Ok(())
}

/// Makes a data directory what a crash would have left of it.
type Crash<'a> = &'a dyn Fn(&Path) -> Result<()>;

#[test]
fn a_replacement_survives_a_crash_at_every_boundary() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = advanced(dir.path())?;
    let options = bumped(&data, &file)?;
    let old = everything(&data.join("member"))?.len();
    // The untroubled run, on a copy.
    let done = dir.path().join("done");
    copy(&data, &done)?;
    let restored = etcd::replace(&file, &done, RUN, &options, &|_| ())?;
    let whole = done.join("member");
    let end = ["lost+found", "member", "member.before-0198-run", "revision.json"];
    assert_eq!(names(&done)?, end);

    let new = format!("member.new-{RUN}");
    let crashes: [(&str, Crash<'_>); 6] = [
        ("before anything", &|_| Ok(())),
        ("with an empty directory made", &|at| Ok(std::fs::create_dir(at.join(&new))?)),
        ("in the middle of the database", &|at| {
            copy(&whole, &at.join(&new))?;
            std::fs::remove_file(at.join(&new).join("recovery-run"))?;
            std::fs::remove_dir_all(at.join(&new).join("wal"))?;
            Ok(std::fs::File::options().write(true).open(at.join(&new).join("snap/db"))?.set_len(5000)?)
        }),
        ("before the renames", &|at| copy(&whole, &at.join(&new))),
        ("between the renames", &|at| {
            copy(&whole, &at.join(&new))?;
            Ok(std::fs::rename(at.join("member"), at.join(format!("member.before-{RUN}")))?)
        }),
        ("after the renames", &|at| {
            std::fs::rename(at.join("member"), at.join(format!("member.before-{RUN}")))?;
            copy(&whole, &at.join("member"))
        }),
    ];
    for (name, crash) in crashes {
        let at = dir.path().join("crashed");
        copy(&data, &at)?;
        crash(&at)?;
        assert_eq!(etcd::is_replaced(&at, RUN), name == "after the renames", "{name}");
        assert_eq!(etcd::replace(&file, &at, RUN, &options, &|_| ())?, restored, "{name}");
        assert!(etcd::is_replaced(&at, RUN) && !etcd::is_replaced(&at, "another"), "{name}");
        assert_eq!(names(&at)?, end, "{name}");
        assert_eq!(everything(&at.join("member.before-0198-run"))?.len(), old, "{name}");
        // Again, after etcd has run on it: nothing happens.
        let etcd = Etcd::start(Version::V35, &at, &Start::default())?;
        assert_eq!(etcd.contents()?.len(), 1000, "{name}");
        assert_eq!(settled(&etcd)?.revision, restored.revision, "{name}");
        etcd.with_client(async |client| Ok(client.put("kept", "", None).await.map(drop)?))?;
        etcd.stop()?;
        assert_eq!(etcd::replace(&file, &at, RUN, &options, &|_| ())?, restored, "{name}");
        assert_eq!(etcd::revision_of(&at)?, Some(restored.revision + 1), "{name}");
        etcd::drop_kept(&at, RUN, &[])?;
        etcd::drop_kept(&at, RUN, &[])?;
        assert_eq!(names(&at)?, ["lost+found", "member", "revision.json"], "{name}");
        std::fs::remove_dir_all(&at)?;
    }
    Ok(())
}

#[test]
fn a_running_etcd_is_left_alone_and_a_kept_member_that_may_be_the_only_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = advanced(dir.path())?;
    let options = bumped(&data, &file)?;
    etcd::replace(&file, &data, RUN, &options, &|_| ())?;
    let error = etcd::drop_kept(&data, "another", &[]).err();
    assert!(error.is_none(), "nothing of another run is there: {error:?}");

    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    let running = etcd::replace(&file, &data, "another", &options, &|_| ()).unwrap_err();
    assert!(format!("{running:#}").contains("etcd is running on"), "{running:#}");
    etcd.kill()?;
    assert!(etcd::is_replaced(&data, RUN));

    // Without the new member in place, the old one is never removed.
    std::fs::rename(data.join("member"), dir.path().join("gone"))?;
    assert!(etcd::drop_kept(&data, RUN, &[]).is_err());
    assert!(data.join("member.before-0198-run/snap/db").exists());
    Ok(())
}

#[test]
fn a_second_recovery_does_not_repeat_revisions() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = advanced(dir.path())?;
    let mut highest = 0;
    for run in ["first", "second", "third"] {
        let restored = etcd::replace(&file, &data, run, &bumped(&data, &file)?, &|_| ())?;
        assert!(restored.revision > highest, "{run}: {} after {highest}", restored.revision);
        let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
        etcd.put_many(500)?;
        highest = etcd.hashkv()?.revision;
        compacted(&etcd, restored.revision - 1)?;
        // Its database may lag behind what it has answered, as after a crash.
        etcd.kill()?;
        let seen = etcd::revision_of(&data)?.context("no revision")?;
        assert!(seen >= restored.revision && seen <= highest, "{seen}, {highest}");
        // What an earlier run has left, damaged, hides nothing.
        std::fs::create_dir_all(data.join("member.before-older/snap"))?;
        std::fs::write(data.join("member.before-older/snap/db"), "damaged")?;
        assert_eq!(etcd::revision_of(&data)?, Some(seen));
        // What runs before this one have put aside goes with its own, under every name that they gave it.
        std::fs::create_dir(data.join("member.before-older.1"))?;
        etcd::drop_kept(&data, run, &["older".to_owned()])?;
        let put_aside =
            |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("member."));
        assert!(!std::fs::read_dir(&data)?.any(put_aside), "something is left beside the member");
    }
    Ok(())
}

#[test]
fn the_new_member_looks_like_the_old_one() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = advanced(dir.path())?;
    let member = data.join("member");
    let label = b"system_u:object_r:container_var_lib_t:s0\0";
    std::os::unix::fs::chown(&member, Some(1234), Some(4321))?;
    std::fs::set_permissions(&member, std::fs::Permissions::from_mode(0o710))?;
    rustix::fs::setxattr(&member, "security.selinux", label, rustix::fs::XattrFlags::empty())?;
    etcd::replace(&file, &data, RUN, &Options::default(), &|_| ())?;
    assert_eq!(member.metadata()?.mode() & 0o7777, 0o710);
    for entry in walkdir::WalkDir::new(&member) {
        let entry = entry?;
        let meta = entry.metadata()?;
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{}", entry.path().display());
        let mut value = vec![0; 100];
        let len = rustix::fs::getxattr(entry.path(), "security.selinux", &mut value)?;
        assert_eq!(&value[..len], label, "{}", entry.path().display());
        if meta.is_file() {
            assert_eq!(meta.mode() & 0o7777, 0o600, "{}", entry.path().display());
        }
    }
    // Where there was no member at all.
    let empty = dir.path().join("empty");
    etcd::replace(&file, &empty, RUN, &Options::default(), &|_| ())?;
    assert_eq!(names(&empty)?, ["member"]);
    assert_eq!(etcd::revision_of(&empty)?, Some(11));
    Ok(())
}

/// A file system of its own, gone with the test.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn tmpfs(size: &str) -> Result<Self> {
        Self::mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    fn xfs(image: &Path) -> Result<Self> {
        std::fs::File::create(image)?.set_len(400 << 20)?;
        let made = Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(image).status()?;
        ensure!(made.success(), "mkfs.xfs {}", image.display());
        Self::mount(&["-o", "loop", &image.display().to_string()])
    }

    fn mount(args: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mounted = Command::new("mount").args(args).arg(dir.path()).status()?;
        ensure!(mounted.success(), "mount {args:?}");
        Ok(Self(dir))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = advanced(dir.path())?;
    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    let full = Mounted::tmpfs("100k")?;
    for name in ["snapshot.db", "snapshot.db.zst"] {
        let error = etcd::save(&etcd.endpoint, &full.0.path().join(name), LIMIT, &|_| ()).unwrap_err();
        assert_eq!(exit_code(&error), 73, "{error:#}");
        assert_eq!(names(full.0.path())?, [] as [&str; 0]);
    }
    etcd.stop()?;
    // Room for the database, but not for the log.
    let small = Mounted::tmpfs("20m")?;
    let there = small.0.path().join("etcd");
    copy(&data.join("member/snap"), &there)?;
    let before = everything(&there)?;
    let error = etcd::replace(&file, &there, RUN, &Options::default(), &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 73, "{error:#}");
    assert!(everything(&there)? == before);
    let error = etcd::restore(&file, &small.0.path().join("new"), &Options::default(), &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 73, "{error:#}");
    assert!(!small.0.path().join("new").exists());
    Ok(())
}

#[test]
fn where_blocks_can_be_shared_the_database_is_checked_all_the_same() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_, file) = small(dir.path(), Version::V36, 1000)?;
    let xfs = Mounted::xfs(&dir.path().join("xfs.img"))?;
    let (here, data) = (xfs.0.path().join("snapshot.db"), xfs.0.path().join("etcd"));
    std::fs::copy(&file, &here)?;
    let restored = etcd::restore(&here, &data, &Options::default(), &|_| ())?;
    let etcd = Etcd::start(Version::V36, &data, &Start::default())?;
    assert_eq!((etcd.contents()?.len(), etcd.hashkv()?.revision), (1000, restored.revision));
    etcd.stop()?;
    // The snapshot's own blocks are as they were.
    assert!(std::fs::read(&here)? == std::fs::read(&file)?);
    let mut bytes = std::fs::read(&file)?;
    bytes[20_000] ^= 1;
    std::fs::write(&here, bytes)?;
    let error = etcd::restore(&here, &xfs.0.path().join("new"), &Options::default(), &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 65, "{error:#}");
    Ok(())
}

#[test]
fn a_healthy_etcd_says_so() -> Result<()> {
    for (version, number) in [(Version::V34, "3.4.23"), (Version::V35, "3.5.21"), (Version::V36, "3.6.8"), (Version::V37, "3.7.3")] {
        let dir = tempfile::tempdir()?;
        let etcd = Etcd::start(version, &dir.path().join("data"), &Start::default())?;
        etcd.put_many(250)?;
        let health = etcd::health(&etcd.endpoint, LIMIT)?;
        assert_eq!((health.version.as_str(), health.keys, health.revision, health.members), (number, 250, 4, 1));
        assert!(health.db_size > 0);
    }
    Ok(())
}

#[test]
fn an_alarm_is_told_with_the_way_out() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = Start { args: vec!["--quota-backend-bytes=2000000".to_owned()], ..Start::default() };
    let etcd = Etcd::start(Version::V35, &dir.path().join("data"), &options)?;
    assert!(etcd.put_many(20_000).is_err());
    let error = etcd::health(&etcd.endpoint, LIMIT).unwrap_err();
    assert!(error.to_string().contains("alarm NOSPACE") && error.to_string().contains("`etcdctl alarm disarm`"), "{error:#}");
    assert_eq!(exit_code(&error), 1);
    Ok(())
}

#[test]
fn whatever_keeps_etcd_from_answering_is_69_with_its_cause() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (short, long) = (Duration::from_secs(2), Duration::from_secs(10));
    let etcd = Etcd::start(Version::V36, &dir.path().join("data"), &Start::default())?;
    let other = Certs::make()?;
    let unknown_ca = Endpoint { ca: other.dir().join("ca.pem"), ..etcd.endpoint.clone() };
    let wrong_name = Endpoint { server_name: "etcd.example".to_owned(), ..etcd.endpoint.clone() };
    let stranger = Endpoint { cert: other.dir().join("client.pem"), key: other.dir().join("client.key"), ..etcd.endpoint.clone() };
    let nobody = Endpoint { url: "https://127.0.0.1:1".to_owned(), ..etcd.endpoint.clone() };
    let file = dir.path().join("snapshot.db.zst");
    for (endpoint, cause) in [
        (unknown_ca, "invalid peer certificate"),
        (wrong_name, "not valid for name"),
        (stranger, "does etcd accept the client certificate?"),
        (nobody, "Connection refused"),
    ] {
        for error in [etcd::health(&endpoint, long).unwrap_err(), etcd::save(&endpoint, &file, long, &|_| ()).unwrap_err()] {
            assert_eq!(exit_code(&error), 69, "{error:#}");
            assert!(format!("{error:#}").contains(cause), "wanted `{cause}`: {error:#}");
        }
    }

    // Two members are asked for and one is there: it never gets a leader.
    let args = vec![
        "--initial-cluster=default=http://127.0.0.1:1,other=http://127.0.0.1:2".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:1".to_owned(),
    ];
    let lonely = Etcd::start(Version::V36, &dir.path().join("lonely"), &Start { args, do_not_wait: true, ..Start::default() })?;
    std::thread::sleep(short);
    let error = etcd::health(&lonely.endpoint, short).unwrap_err();
    assert_eq!(exit_code(&error), 69, "{error:#}");

    // Frozen.
    let pid = rustix::process::Pid::from_raw(i32::try_from(etcd.pid())?).context("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    let error = etcd::health(&etcd.endpoint, short).unwrap_err();
    assert!(exit_code(&error) == 69 && error.to_string().contains("within 2 s"), "{error:#}");
    rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    etcd::health(&etcd.endpoint, LIMIT)?;
    Ok(())
}

#[test]
fn a_stream_that_stalls_or_breaks_off_is_69() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(Version::V35, &dir.path().join("data"), &Start::default())?;
    etcd.put_bytes(30_000_000)?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(etcd.pid())?).context("no pid")?;
    for (signal, cause) in
        [(rustix::process::Signal::STOP, "did not answer within"), (rustix::process::Signal::KILL, "receiving the snapshot")]
    {
        let file = dir.path().join(format!("{signal:?}.db"));
        // With the first megabyte the signal comes; the rest is more than the buffers in between hold.
        let seen = std::sync::atomic::AtomicBool::new(false);
        let stop = |_| {
            if !seen.swap(true, std::sync::atomic::Ordering::Relaxed) {
                rustix::process::kill_process(pid, signal).unwrap();
            }
        };
        let error = etcd::save(&etcd.endpoint, &file, Duration::from_secs(10), &stop).unwrap_err();
        assert_eq!(exit_code(&error), 69, "{error:#}");
        assert!(format!("{error:#}").contains(cause), "{error:#}");
        assert!(!names(dir.path())?.iter().any(|name| name.starts_with(&format!("{signal:?}.db"))));
        rustix::process::kill_process(pid, rustix::process::Signal::CONT)?;
    }
    Ok(())
}
