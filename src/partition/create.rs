//! Making the partition on a node that runs: the steps. Each looks at the node for whether it is done, and may be done again after a crash anywhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::look::{Decision, Found, at_rest, find, look, occupied, place_of};
use super::procedure::{FILE_SYSTEM, FOLDER, Journal, KERNEL, MOUNT, MOVE, Making, OLD, Phase, TABLE, journal_of, plan};
use super::table::{Room, picture};
use super::{LABEL, contents};
use crate::engine::driver::{Until, Work, drive, with_next};
use crate::engine::journal::New;
use crate::engine::machine::Event;
use crate::error::{AndNext, Next, by_hand, misfit, unanswered};
use crate::formats::partition::BeginningV1;
use crate::node::block::{self, Disk, Partition};
use crate::node::recovery_mount::{self, BY_PARTLABEL, configured, device_of, is_mounted, unit_name};
use crate::node::{Node, dir::RecoveryDir, durable, mounts};
use crate::session::{Locked, Session};
use crate::tools::{disk, ostree, sfdisk, systemctl};

/// How long the device of a new partition may take to appear.
const APPEARS: Duration = Duration::from_secs(30);

/// What will be done: for consent, and for the report.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The disk, as it was named.
    pub device: String,
    /// Its name in the kernel.
    pub disk: String,
    /// Where the partition will be.
    pub room: Room,
    /// The node runs from this disk: its failure takes the partition with it.
    pub root_disk: bool,
    /// An interrupted run is gone on with.
    pub continues: bool,
    /// The disk as it is, and as it will be.
    pub before: String,
    /// The disk as it will be.
    pub after: String,
}

/// What is to be done, decided before anything is changed.
#[derive(Debug)]
pub enum Proposal {
    /// Nothing.
    Nothing,
    /// This. What is begun with, and for a run that is gone on with, `None`.
    Do(Box<Plan>, Option<BeginningV1>),
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// What was asked for.
    #[serde(flatten)]
    pub plan: Plan,
    /// The kernel's name of the partition.
    pub partition: String,
}

/// The folder of what is kept meanwhile, with a lock: not the recovery directory, which gets another lock when it is mounted.
fn folder(node: &Node) -> RecoveryDir {
    RecoveryDir::new(node, Path::new(FOLDER))
}

/// Looks what is to be done. Nothing is changed.
///
/// # Errors
/// Those of [`look`]; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when an interrupted run is about another disk.
pub fn propose(session: &Session<'_>, device: &str, size_mib: Option<u64>) -> Result<Proposal> {
    let node = session.node;
    if let Some(reading) = super::procedure::Reading::of(&journal_of(node))? {
        let begun = &reading.beginning;
        // One may have begun since: its journal must not be moved under it.
        at_rest(node, session.dir)?;
        not_mounted_by_hand(session, begun)?;
        if begun.device != device {
            return Err(misfit(format!("a partition on {} was begun and is not finished", begun.device)).and_next(ways_on(begun)));
        }
        let written = reading.last_of(&Event::StepDone(Phase::Create, TABLE.to_owned())).is_some();
        let found = same_disk(node, begun, written).map_err(|error| error.and_next(ways_on(begun)))?;
        let room = Room { start: begun.start, size: begun.size };
        let new = (!has(&found, &begun.partition)).then_some(room);
        return Ok(Proposal::Do(Box::new(planned(&found, begun, new, true)), None));
    }
    let (found, room) = match look(session, device, size_mib)? {
        Decision::Nothing => return Ok(Proposal::Nothing),
        Decision::Make(found, room) => (found, room),
    };
    let id = || Uuid::new_v4().to_string();
    let begun = BeginningV1 {
        device: device.to_owned(),
        disk_size: found.disk.size,
        table: found.table.as_ref().map_or_else(|| id().to_ascii_uppercase(), |table| table.id.clone()),
        new_table: found.table.is_none(),
        start: room.start,
        size: room.size,
        partition: id().to_ascii_uppercase(),
        file_system: id(),
    };
    Ok(Proposal::Do(Box::new(planned(&found, &begun, Some(room), false)), Some(begun)))
}

/// What to do about a run that was begun and cannot be gone on with here and now.
fn ways_on(begun: &BeginningV1) -> Next {
    by_hand(format!(
        "`recovery partition create --device {}` goes on with it; where that disk is lost, `rm {FOLDER}/progress` has it forgotten (`recovery partition \
         status` says whether anything is on it already)",
        begun.device
    ))
}

/// The unit has moved everything, or nothing is mounted at the recovery directory yet. Otherwise a person has mounted something there meanwhile: perhaps the
/// new partition itself, with the only copy of the backups on it, which a move would empty before it copies.
fn not_mounted_by_hand(session: &Session<'_>, begun: &BeginningV1) -> Result<()> {
    let (node, dir) = (session.node, session.dir);
    if is_moved(node, dir)? || !is_mounted(dir)? {
        return Ok(());
    }
    let shown = dir.shown().display();
    let what = recovery_mount::device_below(dir).and_then(|number| block::name_of_number(node, number));
    let what = what.map_or_else(|| "a file system".to_owned(), |name| format!("/dev/{name}"));
    Err(misfit(format!(
        "{what} is mounted at {shown}, which this run has not done: a partition on {} was begun, and nothing has been moved onto it",
        begun.device
    ))
    .and_next(by_hand(format!(
        "put what it holds aside, for what is on the new partition is lost when the run goes on: `umount {shown}`, put the backups into the directory itself, \
         and `recovery partition create --device {}`; or keep it as it is: `rm {FOLDER}/progress`, put systemd/var-recovery.mount into /etc/systemd/system \
         and enable it",
        begun.device
    ))))
}

fn is_moved(node: &Node, dir: &RecoveryDir) -> Result<bool> {
    Ok(configured(node, dir)?.is_some_and(|unit| unit.made))
}

fn planned(found: &Found, begun: &BeginningV1, new: Option<Room>, continues: bool) -> Plan {
    let draw = |new: Option<Room>| picture(found.table.as_ref(), found.disk.size, new);
    Plan {
        device: begun.device.clone(),
        disk: found.disk.name.clone(),
        room: Room { start: begun.start, size: begun.size },
        root_disk: found.root,
        continues,
        before: draw(None),
        after: draw(new),
    }
}

fn has(found: &Found, partition: &str) -> bool {
    found.table.iter().flat_map(|table| &table.partitions).any(|part| part.id.eq_ignore_ascii_case(partition))
}

/// The disk that a run was begun on: by its name, its size and its table, which is there once it is `written`.
fn same_disk(node: &Node, begun: &BeginningV1, written: bool) -> Result<Found> {
    let found = find(node, &begun.device)?;
    let table = found.table.as_ref().map(|table| table.id.as_str());
    let is_same = found.disk.size == begun.disk_size
        && match table {
            Some(id) => id.eq_ignore_ascii_case(&begun.table),
            None => begun.new_table && !written,
        };
    if is_same {
        return Ok(found);
    }
    Err(misfit(format!("{} is another disk than the one that the partition was begun on: it has another size or table", begun.device)))
}

/// Does it. `stop` is asked before each line of the journal: an error stops it there.
///
/// # Errors
/// That of a step, with the way on; it is in the journal by then.
pub fn create(locked: &Locked<'_>, plan_of: Plan, begun: Option<&BeginningV1>, stop: &dyn Fn() -> Result<()>) -> Result<Made> {
    let node = locked.node;
    for dir in [Path::new("/var/lib/recovery"), Path::new(FOLDER)] {
        let place = node.path(dir);
        std::fs::create_dir_all(place.parent().unwrap_or(&place)).with_context(|| format!("making {}", dir.display()))?;
        durable::create_dir(&place, 0o700)?;
    }
    let _alone = folder(node).lock("partition create")?;
    let (path, boot) = (journal_of(node), node.clock().boot_id()?);
    let mut journal = match begun {
        Some(begun) => {
            let run = Uuid::new_v4().to_string();
            Journal::begin(&path, New { run: &run, subject: &begun.device, boot: &boot }, &plan(), begun)?
        }
        None => Journal::open(&path, &boot)?.context("the journal is gone")?,
    };
    let written = journal.reading().last_of(&Event::StepDone(Phase::Create, TABLE.to_owned())).is_some();
    let mut work = Creation { session: locked, begun: journal.reading().beginning.clone(), written, stop };
    drive(&mut journal, &mut work, Until::End).map_err(|error| with_next(journal.reading(), &error))?;
    let partition = work.partition()?.name;
    drop(journal);
    durable::remove(&path)?;
    Ok(Made { plan: plan_of, partition })
}

/// The partition of this entry, as the kernel has it.
fn known(disk: &Disk, entry: &sfdisk::Entry) -> Option<Partition> {
    let same = |part: &&Partition| (part.number, part.start, part.size) == (entry.number, entry.start, entry.size);
    disk.partitions.iter().find(same).cloned()
}

struct Creation<'a> {
    session: &'a Session<'a>,
    begun: BeginningV1,
    /// The table has the partition.
    written: bool,
    stop: &'a dyn Fn() -> Result<()>,
}

impl Work for Creation<'_> {
    type Of = Making;

    fn perform(&mut self, journal: &mut Journal, _: Phase, step: &str) -> Result<Value> {
        match step {
            TABLE => {
                let done = self.table()?;
                self.written = true;
                Ok(done)
            }
            KERNEL => self.kernel(),
            FILE_SYSTEM => self.file_system(),
            MOVE => self.move_contents(),
            MOUNT => self.mount(),
            OLD => self.old(),
            other => Err(journal.reading().unknown(&format!("step {other}"))),
        }
    }

    fn before(&mut self, _: &Journal, event: &Event<Phase>) -> Result<()> {
        if let Event::StepIntent(_, step) = event {
            self.session.progress.say(&format!("step {step}"));
        }
        (self.stop)()
    }

    fn needs_reboot(&self, _: &Journal, _: Phase) -> Result<bool> {
        Ok(false)
    }
}

impl Creation<'_> {
    fn node(&self) -> &Node {
        self.session.node
    }

    fn disk(&self) -> Result<(Found, PathBuf)> {
        let found = same_disk(self.node(), &self.begun, self.written)?;
        let place = place_of(self.node(), &found.disk.name);
        Ok((found, place))
    }

    /// The partition, as the table on the disk has it.
    fn entry(&self, found: &Found) -> Option<sfdisk::Entry> {
        let mut all = found.table.iter().flat_map(|table| &table.partitions);
        all.find(|part| part.id.eq_ignore_ascii_case(&self.begun.partition)).cloned()
    }

    fn table(&self) -> Result<Value> {
        let BeginningV1 { start, size, partition, .. } = &self.begun;
        let (found, place) = self.disk()?;
        if self.entry(&found).is_none() {
            let new = sfdisk::New { name: LABEL, id: partition, start: *start, size: *size };
            sfdisk::add(self.node(), &place, found.disk.sector, found.table.is_none().then_some(self.begun.table.as_str()), new)?;
        }
        let (now, _) = self.disk()?;
        let entry = self.entry(&now).context("the partition table was written, and the partition is not in it")?;
        ensure!((entry.start, entry.size) == (*start, *size), "the partition lies elsewhere than it was to");
        // Nothing else of the table has changed.
        let others = |found: &Found| {
            found.table.iter().flat_map(|table| table.partitions.clone()).filter(|part| part.id != entry.id).collect::<Vec<_>>()
        };
        ensure!(others(&found) == others(&now), "other partitions of the disk are not as they were");
        Ok(json!({ "number": entry.number }))
    }

    /// The partition that this run has written, and no other that lies in the same place.
    fn written_entry(&self, found: &Found) -> Result<sfdisk::Entry> {
        let entry = self.entry(found).filter(|entry| (entry.start, entry.size) == (self.begun.start, self.begun.size));
        let gone = || misfit(format!("the partition that was begun is no longer in the table of {}", self.begun.device));
        entry.ok_or_else(|| gone().and_next(ways_on(&self.begun)))
    }

    /// The partition, as the table and the kernel have it.
    fn partition(&self) -> Result<Partition> {
        let (found, _) = self.disk()?;
        known(&found.disk, &self.written_entry(&found)?).context("the kernel does not know the partition")
    }

    fn kernel(&self) -> Result<Value> {
        let (found, place) = self.disk()?;
        let entry = self.written_entry(&found)?;
        if let Some(other) = found.disk.partitions.iter().find(|part| part.number == entry.number)
            && (other.start, other.size) != (entry.start, entry.size)
        {
            bail!("the kernel has another partition as number {}, {}: reboot, so that it reads the table", entry.number, other.name);
        }
        let (deadline, mut told) = (self.node().clock().deadline(APPEARS), None);
        loop {
            let part = known(&Disk::of(self.node(), &found.disk.name)?, &entry);
            match part {
                Some(part) if place_of(self.node(), &part.name).exists() => {
                    disk::settle(self.node())?;
                    return Ok(json!({ "device": part.name }));
                }
                // udev may have the kernel read the whole table at the same moment: whether that is so shows in a moment.
                None if told.is_none() => told = Some(sfdisk::tell_kernel(self.node(), &place, entry.number)),
                _ => {}
            }
            if deadline.passed() {
                let late = format!("the device of the new partition did not appear in {} s", APPEARS.as_secs());
                return Err(told.and_then(Result::err).map_or_else(|| unanswered(&late), |error| error.context(late.clone())));
            }
            self.node().clock().sleep(Duration::from_millis(100))?;
        }
    }

    /// Nothing is on the partition before this step but what an interrupted one left, which has the identifier of this run: what somebody else has made
    /// there meanwhile stays.
    fn file_system(&self) -> Result<Value> {
        let place = place_of(self.node(), &self.partition()?.name);
        let there = disk::signature(self.node(), &place, None)?;
        if let Some(kind) = there.kind.or(there.table)
            && there.id.as_deref() != Some(&*self.begun.file_system)
        {
            return Err(occupied(&format!("the new partition, {},", place.display()), &kind, &format!("wipefs {}", place.display())));
        }
        disk::make_xfs(self.node(), &place, LABEL, &self.begun.file_system)?;
        let made = disk::signature(self.node(), &place, None)?;
        ensure!(
            made.kind.as_deref() == Some("xfs")
                && made.label.as_deref() == Some(LABEL)
                && made.id.as_deref() == Some(&*self.begun.file_system),
            "the file system was made, and is not found"
        );
        Ok(Value::Null)
    }

    /// The unit is written last: from then on the partition is what each boot mounts, and it holds everything.
    fn move_contents(&self) -> Result<Value> {
        let (node, dir) = (self.node(), self.session.dir);
        if is_moved(node, dir)? {
            return Ok(json!({ "already": true }));
        }
        not_mounted_by_hand(self.session, &self.begun)?;
        let (device, at) = (place_of(node, &self.partition()?.name), node.path(FOLDER).join("new"));
        durable::create_dir(&at, 0o700)?;
        let bytes = contents::copy(node, &device, dir.path(), &at)?;
        durable::remove_tree(&at)?;
        recovery_mount::make(node, dir, BY_PARTLABEL)?;
        Ok(json!({ "bytes": bytes }))
    }

    fn mount(&self) -> Result<Value> {
        let (node, dir) = (self.node(), self.session.dir);
        if !is_mounted(dir)? {
            systemctl::daemon_reload(node)?;
            systemctl::start(node, &unit_name(dir.shown()))?;
        }
        let (meant, there) = (device_of(node, &format!("/dev/{}", self.partition()?.name)), recovery_mount::device_below(dir));
        ensure!(
            is_mounted(dir)? && meant.is_some() && meant == there,
            "what is mounted at {} is not the new partition",
            dir.shown().display()
        );
        recovery_mount::check(node, dir)?;
        if let Err(error) = self.other_deployments() {
            // A recovery puts it there, too; only who rolls back by hand has to mount it by hand.
            self.session.progress.say(&format!("the other deployments of this node do not mount the partition: {error:#}"));
        }
        Ok(Value::Null)
    }

    fn old(&self) -> Result<Value> {
        let name = self.partition()?.name;
        let device = device_of(self.node(), &format!("/dev/{name}")).with_context(|| format!("{name} is no block device"))?;
        Ok(json!({ "removed": contents::remove_below(self.session.dir.path(), device)? }))
    }

    /// Each deployment has an `/etc` of its own: whatever is booted, the partition is mounted. A staged one takes it over at the shutdown.
    fn other_deployments(&self) -> Result<()> {
        let (node, dir) = (self.node(), self.session.dir);
        if !ostree::is_ostree(node) {
            return Ok(());
        }
        for other in ostree::deployments(node)?.iter().filter(|other| !other.booted && !other.staged) {
            let etc = node.real_path(ostree::etc_of(other));
            mounts::writable(node, ostree::SYSROOT, || recovery_mount::install(node, dir, &etc).map(drop))?;
        }
        Ok(())
    }
}
