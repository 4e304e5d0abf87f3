//! A backup that is being taken: a directory `<id>.partial` with a journal of its own ([`formats::partial`](crate::formats::partial)), so
//! that the next `backup` can go on with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::backup::layout::PARTIAL;
use crate::backup::manifest::DeploymentId;
use crate::backup::names;
use crate::backup::parts::{ETCD, STATIC_PODS};
use crate::backup::sums::{Cached, hash};
use crate::backup::survey::{Survey, remove};
use crate::error::{FailureKind, kind};
use crate::formats::partial::{ConditionsV1, FORMAT, FinishedV1, V1};
use crate::formats::to_json;
use crate::node::profile::CURRENT_CONFIG;
use crate::node::{Node, dir::RecoveryDir, durable};

/// Its journal; not there any more once it is published.
pub const STATE: &str = FORMAT.name;
/// After so many seconds an unfinished backup is not gone on with: what of it is finished is too old to go with the rest.
const GOES_STALE: u64 = 3600;

/// What must be the same for a backup to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// Booted deployment.
    pub deployment: Option<DeploymentId>,
    /// Boot.
    pub boot_id: String,
    /// SHA-256 of `currentconfig`, where there is one.
    pub current_config: Option<String>,
    /// Version of the agent.
    pub agent: String,
}

/// A file of the backup that is finished and on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Bytes of content, before compression.
    pub bytes: u64,
    /// Bytes of the file.
    pub stored: u64,
    /// Of the file, hex.
    pub sha256: String,
}

#[derive(Debug, Clone)]
struct Noted {
    taken: Timestamp,
    /// Seconds since boot: with the boot id the same, time that no clock set wrong can change.
    begun: u64,
    conditions: Conditions,
    finished: BTreeMap<String, Finished>,
}

/// A backup that is being taken.
#[derive(Debug)]
pub struct Partial {
    /// The id it will have.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    state: Noted,
}

impl Conditions {
    /// As the node is now.
    ///
    /// # Errors
    /// When the boot id or `currentconfig` cannot be read.
    pub fn of(node: &Node, deployment: Option<DeploymentId>) -> Result<Self> {
        let config = if node.exists(CURRENT_CONFIG) { Some(HEXLOWER.encode(&Sha256::digest(node.read(CURRENT_CONFIG)?))) } else { None };
        Ok(Self { deployment, boot_id: node.clock().boot_id()?, current_config: config, agent: env!("CARGO_PKG_VERSION").to_owned() })
    }
}

impl Partial {
    /// Goes on with the newest unfinished backup when `conditions` are the same and it is not an hour old, else begins a new one. All other
    /// unfinished ones are discarded.
    ///
    /// # Errors
    /// When one cannot be discarded, or the new directory cannot be made; when interrupted, and then what is finished stays.
    pub fn continue_or_begin(
        node: &Node,
        dir: &RecoveryDir,
        survey: &Survey,
        conditions: &Conditions,
        release: Option<&str>,
    ) -> Result<Self> {
        let continued = newest(node, dir, survey, conditions);
        for id in survey.partial.iter().filter(|id| continued.as_ref().is_none_or(|c| c.path.file_name() != Some(id.as_ref()))) {
            remove(dir, id)?;
        }
        for id in &survey.deleting {
            durable::remove_tree(&dir.backups().join(id))?;
        }
        let Some(mut partial) = continued else { return Self::begin(node, dir, conditions, node.clock().now(), release) };
        partial.keep_what_is_whole()?;
        Ok(partial)
    }

    /// Begins a new one, of something `taken` then.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin(node: &Node, dir: &RecoveryDir, conditions: &Conditions, taken: Timestamp, release: Option<&str>) -> Result<Self> {
        let wanted = names::id(taken, release);
        let free = |id: &String| !dir.backups().join(id).exists() && !dir.backups().join(format!("{id}{PARTIAL}")).exists();
        let id = std::iter::once(wanted.clone()).chain((2..100).map(|n| format!("{wanted}-{n}"))).find(free).unwrap_or(wanted);
        let path = dir.backups().join(format!("{id}{PARTIAL}"));
        durable::create_dir(&path, 0o700)?;
        let state = Noted { taken, begun: node.clock().since_boot().as_secs(), conditions: conditions.clone(), finished: BTreeMap::new() };
        let partial = Self { id, path, state };
        partial.save()?;
        Ok(partial)
    }

    /// When it was begun.
    #[must_use]
    pub fn taken(&self) -> Timestamp {
        self.state.taken
    }

    /// The finished files.
    #[must_use]
    pub fn finished(&self) -> &BTreeMap<String, Finished> {
        &self.state.finished
    }

    /// The path at which the file `name` is to be written. What an earlier attempt left there is removed.
    ///
    /// # Errors
    /// When that cannot be removed, or the journal cannot be written.
    pub fn room_for(&mut self, name: &str) -> Result<PathBuf> {
        if self.state.finished.remove(name).is_some() {
            self.save()?;
        }
        let path = self.path.join(name);
        durable::remove(&path)?;
        Ok(path)
    }

    /// Notes, durably, that the file `name` is finished: it was synced before.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn finish(&mut self, name: &str, finished: Finished) -> Result<()> {
        self.state.finished.insert(name.to_owned(), finished);
        self.save()
    }

    /// Deletes it: on a full disk, an unfinished backup would keep the disk full.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn discard(self, dir: &RecoveryDir) -> Result<()> {
        remove(dir, &format!("{}{PARTIAL}", self.id))
    }

    /// Keeps the finished files that are still as they were written. etcd's and the static pods' are never kept: those are taken together,
    /// last.
    fn keep_what_is_whole(&mut self) -> Result<()> {
        let path = self.path.clone();
        let mut whole = BTreeMap::new();
        for (name, finished) in self.state.finished.iter().filter(|(name, _)| *name != ETCD && *name != STATIC_PODS) {
            match hash(&path.join(name), Cached::Take, &|_| {}) {
                Ok(sum) if sum.bytes == finished.stored && sum.sha256 == finished.sha256 => {
                    whole.insert(name.clone(), finished.clone());
                }
                // An interruption says nothing about the file.
                Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        self.state.finished = whole;
        self.save()?;
        for entry in std::fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
            let entry = entry.with_context(|| format!("listing {}", path.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != STATE && !self.state.finished.contains_key(&name) {
                durable::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let json = to_json(&V1::from(self.state.clone())).context("putting the backup's state into JSON")?;
        durable::write(&self.path.join(STATE), &json, 0o600)
    }
}

fn newest(node: &Node, dir: &RecoveryDir, survey: &Survey, conditions: &Conditions) -> Option<Partial> {
    let now = node.clock().since_boot().as_secs();
    let fits = |state: &Noted| state.conditions == *conditions && !is_stale(state.begun, now);
    let read = |id: &String| {
        let path = dir.backups().join(id);
        let state = read_noted(&path)?;
        Some(Partial { id: id.strip_suffix(PARTIAL)?.to_owned(), path, state })
    };
    survey.partial.iter().filter_map(read).filter(|p| fits(&p.state)).max_by_key(|p| p.state.begun)
}

/// Both in seconds since the same boot.
fn is_stale(begun: u64, now: u64) -> bool {
    now < begun || now - begun >= GOES_STALE
}

/// What the journal in `path` notes; nothing when it cannot be read, and then the backup is not gone on with.
fn read_noted(path: &Path) -> Option<Noted> {
    let json = durable::read(&path.join(STATE), durable::SMALL).ok()?;
    FORMAT.read(&json, |_, json| serde_json::from_slice::<V1>(json)).ok().map(Noted::from)
}

impl From<V1> for Noted {
    fn from(V1 { version: _, taken, begun, conditions, finished }: V1) -> Self {
        Self { taken, begun, conditions: conditions.into(), finished: finished.into_iter().map(|(name, one)| (name, one.into())).collect() }
    }
}

impl From<Noted> for V1 {
    fn from(Noted { taken, begun, conditions, finished }: Noted) -> Self {
        let finished = finished.into_iter().map(|(name, one)| (name, one.into())).collect();
        Self { version: FORMAT.version, taken, begun, conditions: conditions.into(), finished }
    }
}

impl From<ConditionsV1> for Conditions {
    fn from(ConditionsV1 { deployment, boot_id, current_config, agent }: ConditionsV1) -> Self {
        Self { deployment: deployment.map(Into::into), boot_id, current_config, agent }
    }
}

impl From<Conditions> for ConditionsV1 {
    fn from(Conditions { deployment, boot_id, current_config, agent }: Conditions) -> Self {
        Self { deployment: deployment.map(Into::into), boot_id, current_config, agent }
    }
}

impl From<FinishedV1> for Finished {
    fn from(FinishedV1 { bytes, stored, sha256 }: FinishedV1) -> Self {
        Self { bytes, stored, sha256 }
    }
}

impl From<Finished> for FinishedV1 {
    fn from(Finished { bytes, stored, sha256 }: Finished) -> Self {
        Self { bytes, stored, sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        _root: tempfile::TempDir,
        node: Node,
        dir: RecoveryDir,
        conditions: Conditions,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let node = Node::at(root.path(), None);
        std::fs::create_dir_all(root.path().join("proc/sys/kernel/random")).unwrap();
        std::fs::write(root.path().join("proc/sys/kernel/random/boot_id"), "b-1\n").unwrap();
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        // Not by `prepare`, which wants it to be root's: the tests of a room need no root.
        std::fs::create_dir_all(dir.backups()).unwrap();
        let conditions = Conditions::of(&node, None).unwrap();
        Place { _root: root, node, dir, conditions }
    }

    impl Place {
        fn open(&self, conditions: &Conditions) -> Partial {
            let survey = crate::backup::survey::survey(&self.dir).unwrap();
            Partial::continue_or_begin(&self.node, &self.dir, &survey, conditions, Some("4.16.8")).unwrap()
        }

        fn with_files(&self) -> Partial {
            let mut partial = self.open(&self.conditions);
            for name in ["etc.tar.zst", "kubelet.tar.zst", ETCD, STATIC_PODS] {
                let path = partial.room_for(name).unwrap();
                std::fs::write(&path, name).unwrap();
                let sum = hash(&path, Cached::Take, &|_| {}).unwrap();
                partial.finish(name, Finished { bytes: 7, stored: sum.bytes, sha256: sum.sha256 }).unwrap();
            }
            partial
        }
    }

    #[test]
    fn it_is_continued_with_the_archives_that_are_whole() {
        let place = place();
        let first = place.with_files();
        std::fs::write(first.path.join("usr-local.tar.zst"), "half").unwrap();
        std::fs::write(first.path.join("kubelet.tar.zst"), "kubelet.tar.zsx").unwrap();
        let second = place.open(&place.conditions);
        assert_eq!((&second.id, second.taken()), (&first.id, first.taken()));
        assert_eq!(second.finished().keys().collect::<Vec<_>>(), ["etc.tar.zst"]);
        let left: Vec<_> = std::fs::read_dir(&second.path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn other_conditions_discard_it() {
        let place = place();
        let first = place.with_files();
        for change in [
            |c: &mut Conditions| c.boot_id.push('x'),
            |c: &mut Conditions| c.current_config = Some("x".to_owned()),
            |c: &mut Conditions| c.agent.push('x'),
        ] {
            let mut conditions = place.conditions.clone();
            change(&mut conditions);
            assert!(place.open(&conditions).finished().is_empty());
            let survey = crate::backup::survey::survey(&place.dir).unwrap();
            assert_eq!((survey.partial.len(), survey.deleting.len()), (1, 0));
        }
        assert!(!first.path.join("etc.tar.zst").exists());
    }

    #[test]
    fn one_without_a_journal_or_of_another_time_is_discarded() {
        let place = place();
        let first = place.with_files();
        std::fs::write(first.path.join(STATE), "{").unwrap();
        assert!(place.open(&place.conditions).finished().is_empty());
        let mut second = place.with_files();
        second.state.begun += 1000;
        second.save().unwrap();
        assert!(place.open(&place.conditions).finished().is_empty());
    }

    #[test]
    fn an_hour_makes_it_stale() {
        assert!(!is_stale(10, 10) && !is_stale(10, 3609));
        assert!(is_stale(10, 3610) && is_stale(10, 9));
    }

    #[test]
    fn two_in_one_second_have_two_ids() {
        let place = place();
        let first = place.with_files();
        let mut other = place.conditions.clone();
        std::fs::rename(&first.path, place.dir.backups().join(&first.id)).unwrap();
        other.boot_id.push('x');
        let second = place.open(&other);
        assert_ne!(first.id, second.id);
    }

    #[test]
    fn giving_up_leaves_nothing() {
        let place = place();
        place.with_files().discard(&place.dir).unwrap();
        assert_eq!(std::fs::read_dir(place.dir.backups()).unwrap().count(), 0);
    }
}
