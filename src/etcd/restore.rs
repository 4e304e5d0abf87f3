//! Restoring: a member directory from a snapshot, as `etcdutl snapshot restore` makes it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use data_encoding::HEXLOWER;

use super::bolt::Bolt;
use super::edit::{Edit, Items, inline};
use super::{DEFAULT_TOKEN, Member, Options, Restored, Tick, check, ids, revision, snapshot, status, wal};
use crate::error::{misfit, usage};
use crate::formats::made::{LeftV1, OptionsV1, V1};
use crate::node::durable;

/// The name of the member directory until it is whole.
const NEW: &str = "member.new";
/// A file in the member directory, from when that is whole until the restore has ended; it says what the member was made from. A restore
/// that finds it was stopped at its very end.
const MADE: &str = "recovery-restore";

impl From<Options> for OptionsV1 {
    fn from(Options { name, peer_urls, token, bump_revision, mark_compacted, skip_hash_check }: Options) -> Self {
        Self { name, peer_urls, token, bump_revision, mark_compacted, skip_hash_check }
    }
}

/// The files of a member directory as they are.
fn left(member: &Path) -> Result<Vec<LeftV1>> {
    let mut files = Vec::new();
    for dir in ["snap", "wal"] {
        for entry in std::fs::read_dir(member.join(dir)).with_context(|| format!("listing {dir} of {}", member.display()))? {
            let entry = entry.with_context(|| format!("listing {dir} of {}", member.display()))?;
            let meta = entry.metadata().with_context(|| format!("looking at {}", entry.path().display()))?;
            files.push((format!("{dir}/{}", entry.file_name().to_string_lossy()), meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    files.sort();
    Ok(files)
}

/// Checks a snapshot as far as [`build`] does; see [`super::check_restorable`].
pub(super) fn check_restorable(file: &Path, tick: Tick<'_>) -> Result<()> {
    status::in_database(file, false, tick, |bolt, _| {
        check::sound(bolt, &mut |_| Ok(()))?;
        Options::default().member(bolt).map(drop)
    })
}

/// Restores into a new data directory; see [`super::restore()`].
pub(super) fn restore(file: &Path, data_dir: &Path, options: &Options, tick: Tick<'_>) -> Result<Restored> {
    options.validate()?;
    let names = || std::fs::read_dir(data_dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>();
    let found = match names() {
        Ok(names) => Some(names),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading the data directory {}", data_dir.display())),
    };
    // The member gets its own name only when it is whole, so that nobody starts etcd on half of it.
    let (new, member) = (data_dir.join(NEW), data_dir.join("member"));
    // The data directory and those above it that do not exist, the deepest first.
    let missing: Vec<&Path> = data_dir.ancestors().take_while(|dir| found.is_none() && is_missing(dir)).collect();
    match found.as_deref() {
        None | Some([]) => {}
        // Left by a restore that was killed.
        Some([name]) if name == NEW => durable::remove_tree(&new)?,
        Some([name]) if name == "member" => {
            if let Some(restored) = finished(file, data_dir, options, tick)? {
                return Ok(restored);
            }
            return Err(not_empty(data_dir));
        }
        Some(_) => return Err(not_empty(data_dir)),
    }
    let make = || -> Result<Restored> {
        missing.iter().rev().try_for_each(|dir| durable::create_dir(dir, 0o700))?;
        let (restored, snapshot) = build(file, &new, options, tick)?;
        let made = V1 { snapshot, options: options.clone().into(), restored: restored.clone().into(), files: left(&new)? };
        durable::write(&new.join(MADE), &serde_json::to_vec(&made)?, 0o600)?;
        durable::rename(&new, &member)?;
        Ok(restored)
    };
    let result = make();
    match &result {
        Ok(_) => forget(&member),
        Err(_) => take_away(data_dir, &missing).unwrap_or_else(|error| tracing::warn!("what this call made stays there: {error:#}")),
    }
    result.with_context(|| format!("restoring the snapshot {}", file.display()))
}

/// Removes what a failed call has made. The data directory was empty, or is the first of those that were `missing`.
fn take_away(data_dir: &Path, missing: &[&Path]) -> Result<()> {
    let Some((_, above)) = missing.split_first() else {
        durable::remove_tree(&data_dir.join(NEW))?;
        return durable::remove_tree(&data_dir.join("member"));
    };
    durable::remove_tree(data_dir)?;
    for dir in above {
        // A directory is kept if somebody else has put something in it meanwhile.
        std::fs::remove_dir(dir).ok();
    }
    Ok(())
}

/// True when nothing is at `dir`; an empty path is the working directory.
fn is_missing(dir: &Path) -> bool {
    !dir.as_os_str().is_empty() && dir.symlink_metadata().is_err()
}

fn not_empty(data_dir: &Path) -> anyhow::Error {
    anyhow!("the data directory {} is not empty: name an empty one, or one that does not exist", data_dir.display())
}

/// Ends an earlier restore of the same snapshot with the same options into `data_dir`, if it was stopped at its very end; returns what it
/// made.
fn finished(file: &Path, data_dir: &Path, options: &Options, tick: Tick<'_>) -> Result<Option<Restored>> {
    let member = data_dir.join("member");
    let read = std::fs::read(member.join(MADE)).ok();
    let Some(made) = read.and_then(|json| serde_json::from_slice::<V1>(&json).ok()).filter(|made| made.options == options.clone().into())
    else {
        return Ok(None);
    };
    if left(&member)? != made.files {
        return Ok(None);
    }
    let whole = snapshot::verify(file, options.skip_hash_check, tick)?;
    if HEXLOWER.encode(&whole.sha256) != made.snapshot {
        return Ok(None);
    }
    durable::sync_dir(data_dir)?;
    forget(&member);
    tracing::info!("{} is what an earlier restore of {} has made, stopped at its end", data_dir.display(), file.display());
    Ok(Some(made.restored.into()))
}

/// Removes the mark of an unfinished restore, as the last step. If it stays, or comes back after a power cut, it does no harm: etcd ignores
/// it, and once etcd has run it no longer matches.
fn forget(member: &Path) {
    std::fs::remove_file(member.join(MADE)).ok();
}

/// Makes the new directory `dir` a member directory, durably. Returns what it made, and the SHA-256 (hex) of the snapshot's database.
pub(super) fn build(file: &Path, dir: &Path, options: &Options, tick: Tick<'_>) -> Result<(Restored, String)> {
    let (snap, log) = (dir.join("snap"), dir.join("wal"));
    for dir in [dir, &snap, &log] {
        std::fs::create_dir(dir).with_context(|| format!("making the directory {}", dir.display()))?;
        super::set_mode(dir, 0o700)?;
    }
    let path = snap.join("db");
    let db = super::new_file(&path)?;
    let whole = snapshot::unpack(file, &db, options.skip_hash_check, tick)?;
    let bolt = Bolt::open(&db, whole.len, &file.display().to_string())?;
    // The disk writes the new files while the processor checks them.
    let (synced, sound) = std::thread::scope(|scope| {
        let sound = scope.spawn(|| check::sound(&bolt, &mut |_| Ok(())));
        let synced = db.sync_all();
        (synced, sound.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    sound?;
    synced.with_context(|| format!("syncing {}", path.display()))?;
    let member = options.member(&bolt)?;
    let revision = options.bumped(revision::revision(&bolt)?)?;
    rewrite(&bolt, &db, &member, options, revision)?;
    db.sync_all().with_context(|| format!("syncing {}", path.display()))?;

    let cluster_id = ids::cluster_id(member.id);
    wal::create(&log, &member, cluster_id)?;
    for dir in [&snap, &log, dir] {
        durable::sync_dir(dir)?;
    }
    // An etcd on which nothing was ever written is at revision 1.
    let restored = Restored { member_id: member.id, cluster_id, name: member.name, revision: revision.max(1) };
    Ok((restored, HEXLOWER.encode(&whole.sha256)))
}

impl Options {
    /// Checks the options as far as is possible without the snapshot.
    pub(super) fn validate(&self) -> Result<()> {
        if (self.bump_revision > 0) != self.mark_compacted {
            return Err(usage("--bump-revision and --mark-compacted go together (as in etcdutl): give both or neither"));
        }
        if self.name.as_deref() == Some("") {
            return Err(usage("the member's name must not be empty"));
        }
        self.peer_urls.iter().try_for_each(|url| ids::check_peer_url(url))
    }

    /// The member to make: the snapshot's own, where the options name no other.
    fn member(&self, bolt: &Bolt<'_>) -> Result<Member> {
        let token = self.token.as_deref().unwrap_or(DEFAULT_TOKEN);
        if let (Some(name), false) = (&self.name, self.peer_urls.is_empty()) {
            return Ok(Member::new(name, &self.peer_urls, token));
        }
        let mut members = status::members(bolt)?;
        if let Some(name) = self.name.as_ref().filter(|_| members.len() > 1) {
            members.retain(|member| member.name == *name);
        }
        let own = match members.as_slice() {
            [own] => own,
            others => {
                return Err(misfit(format!(
                    "the snapshot records {} members that could be the one to make: choose with --name and --initial-advertise-peer-urls",
                    others.len()
                )));
            }
        };
        let name = self.name.as_ref().unwrap_or(&own.name);
        let peer_urls = if self.peer_urls.is_empty() { &own.peer_urls } else { &self.peer_urls };
        if name.is_empty() || peer_urls.is_empty() {
            return Err(misfit("the snapshot's member has no name or no peer URL: give --name and --initial-advertise-peer-urls"));
        }
        Ok(Member::new(name, peer_urls, token))
    }

    fn bumped(&self, latest: i64) -> Result<i64> {
        i64::try_from(self.bump_revision)
            .ok()
            .and_then(|bump| latest.checked_add(bump))
            .ok_or_else(|| usage(format!("revision {latest} cannot be bumped by {}: revisions end at {}", self.bump_revision, i64::MAX)))
    }
}

/// Turns the database into that of a new cluster with one member: the same changes as etcdutl's, in one transaction.
fn rewrite(bolt: &Bolt<'_>, db: &std::fs::File, member: &Member, options: &Options, revision: i64) -> Result<()> {
    let mut edit = Edit::new(bolt);
    let mut root = edit.root()?;
    let mut meta = edit.bucket(&root, b"meta")?;
    let mut set = |key: &[u8], value: Vec<u8>| meta.insert(key.to_vec(), (0, value)).is_some();
    set(b"consistent_index", wal::INDEX.to_be_bytes().to_vec());
    // etcd 3.4 does not maintain these two keys, so a later version must not find outdated ones.
    let since_3_5 = root.contains_key(&b"cluster"[..]);
    if since_3_5 {
        set(b"term", wal::TERM.to_be_bytes().to_vec());
        set(b"confState", format!(r#"{{"voters":[{}],"auto_leave":false}}"#, member.id).into_bytes());
    }
    if options.mark_compacted {
        set(b"scheduledCompactRev", revision::key_of_revision(revision).to_vec());
        let (flags, header) = root.get(&b"key"[..]).ok_or_else(|| revision::not_etcd(bolt))?;
        let (flags, bucket) = (*flags, bolt.bucket(header)?);
        root.insert(b"key".to_vec(), (flags, edit.append(&bucket, &revision::key_of_revision(revision), &[])?));
    }
    root.insert(b"meta".to_vec(), inline(&meta));
    let id = format!("{:x}", member.id).into_bytes();
    root.insert(b"members".to_vec(), inline(&Items::from([(id, (0, member.json()?))])));
    root.insert(b"members_removed".to_vec(), inline(&Items::new()));
    edit.commit(&root, db)
}
