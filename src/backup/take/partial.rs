//! A backup that is being taken: a directory `<id>.partial` with the journal of its [steps](super::procedure), so that the next `backup`
//! can continue it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use super::procedure::{Beginning, Conditions, Event, Journal, MANIFEST, Phase, Plan, Reading};
use crate::backup::layout::{PARTIAL, is_file};
use crate::backup::names;
use crate::backup::sums::{Cached, hash};
use crate::backup::survey::{Survey, remove};
use crate::engine::journal::New;
use crate::error::{FailureKind, kind};
use crate::formats::partial::{DoneV2, FinishedV2};
use crate::node::{Node, dir::RecoveryDir, durable};

/// Its journal, which is removed when the backup is published.
pub const JOURNAL: &str = "journal";
/// An unfinished backup that is older than this, in seconds, is not continued: its finished part is too old for the rest.
const GOES_STALE: u64 = 3600;

/// A file of the backup that is finished and on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Bytes of content, before compression.
    pub bytes: u64,
    /// Bytes of the file.
    pub stored: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
}

/// A backup that is being taken.
#[derive(Debug)]
pub struct Partial {
    /// The id it will have.
    pub id: String,
    /// Its directory.
    pub path: PathBuf,
    /// Its journal.
    pub journal: Journal,
}

impl Partial {
    /// Continues the newest unfinished backup when boot, agent, plan and `conditions` are the same, it is less than an hour old, and its
    /// archives are as they were written; else begins a new one. All other unfinished backups are discarded.
    ///
    /// # Errors
    /// When one cannot be discarded, or the new directory cannot be made; when interrupted: then the finished part stays.
    pub fn continue_or_begin(
        node: &Node,
        dir: &RecoveryDir,
        survey: &mut Survey,
        plan: &Plan,
        conditions: &Conditions,
        release: Option<&str>,
    ) -> Result<Self> {
        let continued = match newest(node, dir, survey, plan, conditions)? {
            Some((id, reading)) if is_whole(&dir.backups().join(&id), &reading)? => Some(id),
            _ => None,
        };
        for id in survey.partial.clone().iter().filter(|id| Some(*id) != continued.as_ref()) {
            survey.remove(dir, id)?;
        }
        for id in survey.deleting.drain(..) {
            durable::remove_tree(&dir.backups().join(id))?;
        }
        let Some(name) = continued else { return Self::begin(node, dir, plan, node.clock().now(), conditions, release) };
        let path = dir.backups().join(&name);
        let journal =
            Journal::open(&path.join(JOURNAL), &node.clock().boot_id()?)?.context("the journal of the unfinished backup is gone")?;
        let partial = Self { id: journal.reading().subject.clone(), path, journal };
        partial.keep_archives_alone()?;
        Ok(partial)
    }

    /// Begins a new one; `taken` is its time.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn begin(
        node: &Node,
        dir: &RecoveryDir,
        plan: &Plan,
        taken: Timestamp,
        conditions: &Conditions,
        release: Option<&str>,
    ) -> Result<Self> {
        let wanted = names::id(taken, release);
        let free = |id: &String| !dir.backups().join(id).exists() && !dir.backups().join(format!("{id}{PARTIAL}")).exists();
        let id = std::iter::once(wanted.clone()).chain((2..100).map(|n| format!("{wanted}-{n}"))).find(free).unwrap_or(wanted);
        let path = dir.backups().join(format!("{id}{PARTIAL}"));
        durable::create_dir(&path, 0o700)?;
        let beginning = Beginning { taken, begun: node.clock().since_boot().as_secs(), conditions: conditions.clone() };
        let new = New { run: &id, subject: &id, boot: &node.clock().boot_id()? };
        let journal = Journal::begin(&path.join(JOURNAL), new, plan, &beginning)?;
        Ok(Self { id, path, journal })
    }

    /// When it was begun.
    #[must_use]
    pub fn taken(&self) -> Timestamp {
        self.journal.reading().beginning.taken
    }

    /// Deletes it: on a full disk, an unfinished backup would keep the disk full.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn discard(self, dir: &RecoveryDir) -> Result<()> {
        remove(dir, &format!("{}{PARTIAL}", self.id))
    }

    /// Removes everything but the finished archives: etcd and the static pods are saved again, together.
    fn keep_archives_alone(&self) -> Result<()> {
        let archives = archives(self.journal.reading())?;
        for entry in std::fs::read_dir(&self.path).with_context(|| format!("listing {}", self.path.display()))? {
            let entry = entry.with_context(|| format!("listing {}", self.path.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != JOURNAL && !archives.contains_key(&name) {
                durable::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The path at which a file is to be written. A file that an earlier attempt left there is removed.
///
/// # Errors
/// When that cannot be removed.
pub fn room_for(partial: &Path, name: &str) -> Result<PathBuf> {
    let path = partial.join(name);
    durable::remove(&path)?;
    Ok(path)
}

/// What the journal records of a step that has finished these files.
///
/// # Errors
/// When they cannot be serialized.
pub fn figures(files: BTreeMap<String, Finished>) -> Result<Value> {
    let files = files.into_iter().map(|(name, one)| (name, one.into())).collect();
    serde_json::to_value(DoneV2 { files }).context("serializing what is finished")
}

/// The files of all steps that are done.
///
/// # Errors
/// When the journal has a record of a step in another format.
pub fn finished(reading: &Reading) -> Result<BTreeMap<String, Finished>> {
    let mut files = BTreeMap::new();
    for record in reading.records.iter().filter(|record| matches!(record.event, Event::StepDone(..)) && !record.detail.is_null()) {
        let done: DoneV2 = serde_json::from_value(record.detail.clone()).context("reading what the journal says is finished")?;
        files.extend(done.files.into_iter().map(|(name, one)| (name, Finished::from(one))));
    }
    Ok(files)
}

/// Those of the finished files that the next process keeps: the archives that have a step of their own.
///
/// # Errors
/// As [`finished`].
pub fn archives(reading: &Reading) -> Result<BTreeMap<String, Finished>> {
    let mut files = finished(reading)?;
    files.retain(|name, _| reading.last_of(&Event::StepDone(Phase::Take, name.clone())).is_some());
    Ok(files)
}

/// True when only the final rename is missing.
#[must_use]
pub fn is_done(reading: &Reading) -> bool {
    reading.last_of(&Event::StepDone(Phase::Take, MANIFEST.to_owned())).is_some()
}

/// The newest one that can be continued, by the name of its directory.
fn newest(node: &Node, dir: &RecoveryDir, survey: &Survey, plan: &Plan, conditions: &Conditions) -> Result<Option<(String, Reading)>> {
    let (boot, now) = (node.clock().boot_id()?, node.clock().since_boot().as_secs());
    let fits = |id: &str, reading: &Reading| {
        format!("{}{PARTIAL}", reading.subject) == id
            && reading.torn() == 0
            && !is_done(reading)
            && reading.records[0].boot == boot
            && reading.agent.as_deref() == Some(env!("CARGO_PKG_VERSION"))
            && *reading.plan == *plan
            && reading.beginning.conditions == *conditions
            && !is_stale(reading.beginning.begun, now)
    };
    // One whose journal cannot be read is not continued.
    let read = |id: &String| Some((id.clone(), Reading::of(&dir.backups().join(id).join(JOURNAL)).ok()??));
    let fitting = survey.partial.iter().filter_map(read).filter(|(id, reading)| fits(id, reading));
    Ok(fitting.max_by_key(|(_, reading)| reading.beginning.begun))
}

/// Both are seconds since the same boot.
fn is_stale(begun: u64, now: u64) -> bool {
    now < begun || now - begun >= GOES_STALE
}

/// True when the archives in `path` are as the journal says they were written.
fn is_whole(path: &Path, reading: &Reading) -> Result<bool> {
    let Ok(archives) = archives(reading) else { return Ok(false) };
    for (name, finished) in &archives {
        // Nobody waits for the writer of a FIFO, and what is published has no links.
        if !is_file(&path.join(name)) {
            return Ok(false);
        }
        match hash(&path.join(name), Cached::Take, &|_| {}) {
            Ok(sum) if sum.bytes == finished.stored && sum.sha256 == finished.sha256 => {}
            // An interruption says nothing about the file.
            Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
            _ => return Ok(false),
        }
    }
    Ok(true)
}

impl From<FinishedV2> for Finished {
    fn from(FinishedV2 { bytes, stored, sha256 }: FinishedV2) -> Self {
        Self { bytes, stored, sha256 }
    }
}

impl From<Finished> for FinishedV2 {
    fn from(Finished { bytes, stored, sha256 }: Finished) -> Self {
        Self { bytes, stored, sha256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::parts::{ETC, ETCD, KUBELET, STATIC_PODS};
    use crate::backup::survey::survey;
    use crate::backup::take::procedure::{ETCD_AND_STATIC_PODS, HOLD_FILES, INSTALL, plan};

    struct Place {
        _root: tempfile::TempDir,
        node: Node,
        dir: RecoveryDir,
        plan: Plan,
        conditions: Conditions,
    }

    fn place() -> Place {
        let root = tempfile::tempdir().unwrap();
        let node = Node::at(root.path(), None);
        std::fs::create_dir_all(root.path().join("proc/sys/kernel/random")).unwrap();
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        // Not made by `prepare`, which requires that root owns it: the tests of a room need no root.
        std::fs::create_dir_all(dir.backups()).unwrap();
        let conditions = Conditions::of(&node, None).unwrap();
        let place = Place { _root: root, node, dir, plan: plan(false, &[ETC, KUBELET]), conditions };
        place.boot("b-1");
        place
    }

    impl Place {
        fn boot(&self, id: &str) {
            std::fs::write(self.node.real_path("/proc/sys/kernel/random/boot_id"), id).unwrap();
        }

        fn open(&self) -> Partial {
            let mut survey = survey(&self.dir).unwrap();
            Partial::continue_or_begin(&self.node, &self.dir, &mut survey, &self.plan, &self.conditions, Some("4.16.8")).unwrap()
        }

        /// One that was stopped before its check.
        fn with_files(&self) -> Partial {
            let mut partial = self.open();
            partial.journal.append(&Event::PhaseBegun(Phase::Take), Value::Null).unwrap();
            let steps: [(&str, &[&str]); 5] =
                [(INSTALL, &[]), (HOLD_FILES, &[]), (ETC, &[ETC]), (KUBELET, &[KUBELET]), (ETCD_AND_STATIC_PODS, &[ETCD, STATIC_PODS])];
            for (step, files) in steps {
                partial.journal.append(&Event::StepIntent(Phase::Take, step.to_owned()), Value::Null).unwrap();
                let written = |name: &&str| {
                    let path = room_for(&partial.path, name).unwrap();
                    std::fs::write(&path, name).unwrap();
                    let sum = hash(&path, Cached::Take, &|_| {}).unwrap();
                    ((*name).to_owned(), Finished { bytes: 7, stored: sum.bytes, sha256: sum.sha256 })
                };
                let figures = figures(files.iter().map(written).collect()).unwrap();
                partial.journal.append(&Event::StepDone(Phase::Take, step.to_owned()), figures).unwrap();
            }
            assert_eq!(finished(partial.journal.reading()).unwrap().len(), 4);
            partial
        }

        /// True when the next backup begins anew, and nothing is left of any other.
        fn begins_again(&self) -> bool {
            let next = self.open();
            let survey = survey(&self.dir).unwrap();
            assert_eq!((survey.partial.len(), survey.deleting.len()), (1, 0));
            let begun = next.journal.reading().records.len() == 1;
            assert_eq!(std::fs::read_dir(&next.path).unwrap().count(), if begun { 1 } else { 3 });
            begun
        }
    }

    #[test]
    fn it_is_continued_with_its_archives_alone() {
        let place = place();
        let first = place.with_files();
        std::fs::write(first.path.join("usr-local.tar.zst"), "half").unwrap();
        let second = place.open();
        assert_eq!((&second.id, second.taken()), (&first.id, first.taken()));
        assert!(archives(second.journal.reading()).unwrap().keys().eq([ETC, KUBELET]));
        assert!(!place.begins_again());
    }

    #[test]
    fn an_archive_that_is_not_as_it_was_written_discards_it() {
        for damage in ["kubelet.tar.zsx", "short"] {
            let place = place();
            let first = place.with_files();
            std::fs::write(first.path.join(KUBELET), damage).unwrap();
            assert!(place.begins_again());
        }
    }

    #[test]
    fn other_conditions_discard_it() {
        let changes: [fn(&mut Place); 3] = [
            |place| place.boot("b-2"),
            |place| place.conditions.current_config = Some("x".to_owned()),
            |place| place.plan = plan(true, &[ETC, KUBELET]),
        ];
        for change in changes {
            let mut place = place();
            place.with_files();
            assert!(!place.begins_again());
            change(&mut place);
            assert!(place.begins_again());
        }
    }

    /// Replaces lines in the journal of the unfinished backup.
    fn rewritten(path: &Path, change: impl Fn(usize, &str) -> String) {
        let journal = path.join(JOURNAL);
        let text = std::fs::read_to_string(&journal).unwrap();
        std::fs::write(&journal, text.lines().enumerate().map(|(i, line)| change(i, line)).collect::<String>()).unwrap();
    }

    /// The line with a new checksum.
    fn sealed(line: &str) -> String {
        let content = format!("{}}}", line.rsplit_once(",\"sum\"").unwrap().0);
        format!("{},\"sum\":\"{:08x}\"}}\n", content.strip_suffix('}').unwrap(), crc32c::crc32c(content.as_bytes()))
    }

    #[test]
    fn one_whose_journal_is_damaged_or_of_another_agent_or_time_is_discarded() {
        let changes: [fn(usize, &str) -> String; 6] = [
            |i, line| if i == 4 { format!("{}\n", &line[..9]) } else { format!("{line}\n") },
            |i, line| if i == 10 { line[..9].to_owned() } else { format!("{line}\n") },
            |_, line| sealed(&line.replace("\"files\"", "\"file\"")),
            |_, line| sealed(&line.replace(&format!("\"agent\":\"{}\"", env!("CARGO_PKG_VERSION")), "\"agent\":\"0.0.9\"")),
            |_, line| sealed(&line.replace("\"begun\":", "\"begun\":9")),
            |_, line| sealed(&line.replace("\"procedure\":\"backup\"", "\"procedure\":\"recovery\"")),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let place = place();
            let first = place.with_files();
            rewritten(&first.path, |_, line| sealed(line));
            assert!(!place.begins_again());
            rewritten(&first.path, change);
            assert!(place.begins_again(), "change {number}");
        }
    }

    #[test]
    fn one_of_an_agent_that_kept_state_json_is_discarded() {
        let place = place();
        let path = place.with_files().path;
        std::fs::remove_file(path.join(JOURNAL)).unwrap();
        std::fs::write(path.join("state.json"), crate::formats::samples::read("partial.1.json")).unwrap();
        assert!(place.begins_again());
        assert!(!path.join("state.json").exists());
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
        std::fs::rename(&first.path, place.dir.backups().join(&first.id)).unwrap();
        assert_ne!(first.id, place.open().id);
    }

    #[test]
    fn giving_up_leaves_nothing() {
        let place = place();
        place.with_files().discard(&place.dir).unwrap();
        assert_eq!(std::fs::read_dir(place.dir.backups()).unwrap().count(), 0);
    }
}
