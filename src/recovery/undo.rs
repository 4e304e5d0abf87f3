//! `undo.json`: what a recovery changed that is not part of the backup, and must put back however the recovery ends.
//!
//! It is written before the change, so that nothing is forgotten when the power fails between the two; and it is a file of its own, so
//! that `restart` and `abandon` need no journal.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::procedure::{Asked, Reading};
use crate::error::{FailureKind, damaged, kind};
use crate::formats::{self, undo as format};
use crate::node::dir::RecoveryDir;
use crate::node::selinux::{self, Mode};
use crate::node::{Node, crio, durable, hold};
use crate::report::event::{self, About, tell};
use crate::session::{Locked, Session};
use crate::tools::systemctl;

/// What must be put back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undo {
    /// The run, and before it those that it restarts, oldest first: each may have kept an etcd member.
    pub runs: Vec<String>,
    /// The backup that is being restored: `restart` takes it from here when the journal cannot be read.
    pub backup: String,
    /// What was asked for: likewise.
    pub asked: Asked,
    /// The SELinux mode to put back.
    pub selinux: Option<Mode>,
    /// Units that are stopped, and whether they ran, or would have by themselves, before the first of the runs.
    pub units: BTreeMap<String, bool>,
    /// The unit of the container runtime that ran when the run began, or that was stopped since: while it is stopped, or its files are half restored,
    /// nothing tells it.
    pub runtime: Option<String>,
    /// The number of the journal's last line when kubelet was found to be let go in the middle of the run: whatever was stopped up to that line may
    /// have been started again.
    pub undone_at: Option<u64>,
}

/// Whether the units that were running before are started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// They are: the node's files are of one release.
    Start,
    /// They are not: the files may be half restored, and a person decides.
    Leave,
}

impl Undo {
    /// What a recovery from a backup must undo before it has begun: nothing.
    #[must_use]
    pub fn of(backup: &str, asked: Asked) -> Self {
        Self { runs: Vec::new(), backup: backup.to_owned(), asked, selinux: None, units: BTreeMap::new(), runtime: None, undone_at: None }
    }

    /// What an open run must undo. Where the file is missing, all that can be known of is a hold, and the node shows that.
    ///
    /// # Errors
    /// As [`Undo::load`].
    pub fn of_run(dir: &RecoveryDir, reading: &Reading) -> Result<Self> {
        if let Some(undo) = Self::load(dir)? {
            return Ok(undo);
        }
        let mut undo = Self::of(&reading.subject, reading.beginning.asked);
        undo.runs.push(reading.run.clone());
        Ok(undo)
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`] when it cannot be read, or is not what an agent writes; [`FailureKind::Unsupported`] when a newer one wrote it.
    pub fn load(dir: &RecoveryDir) -> Result<Option<Self>> {
        let path = dir.undo();
        let refused = |why: String| {
            damaged(format!(
                "{} cannot be read: {why}; it says which SELinux mode and which units to put back: look at it and put them back by hand \
                 (`setenforce`, `systemctl start`), then move it away and run the same command again",
                path.display()
            ))
        };
        let bytes = match durable::read(&path, durable::SMALL) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|e| refused(e.to_string()))?,
        };
        let read = format::read(&bytes).map(|read| Some(Self::from(read)));
        read.map_err(|error| if kind(&error) == FailureKind::Unsupported { error } else { refused(error.to_string()) })
    }

    /// Writes it, durably. To be called before the change it notes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, session: &Locked<'_>) -> Result<()> {
        let bytes = formats::seal(&format::V2::from(self.clone())).context("serializing what the recovery must undo")?;
        durable::write(&session.dir.undo(), &bytes, 0o600)
    }

    /// Notes whether a unit runs, or would by itself, the first time it is asked about: before it is held or stopped.
    ///
    /// # Errors
    /// When systemd does not say, or the note cannot be written.
    pub fn note_unit(&mut self, session: &Locked<'_>, unit: &str) -> Result<()> {
        if self.units.contains_key(unit) {
            return Ok(());
        }
        let wanted = systemctl::show(session.node, unit)?.is_wanted();
        self.units.insert(unit.to_owned(), wanted);
        self.save(session)
    }

    /// Notes which unit is the container runtime's in this boot, before it is stopped.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_runtime(&mut self, session: &Locked<'_>, unit: &str) -> Result<()> {
        if self.runtime.as_deref() == Some(unit) {
            return Ok(());
        }
        self.runtime = Some(unit.to_owned());
        self.save(session)
    }

    /// Places the hold, and keeps CRI-O's images for as long as the recovery is open. That the files are there says by itself that they must go.
    ///
    /// # Errors
    /// When the file cannot be written, or the hold not placed.
    pub fn place_hold(&self, session: &Locked<'_>) -> Result<()> {
        let Session { node, dir, .. } = **session;
        self.save(session)?;
        let run = self.runs.last().map_or("", String::as_str);
        let was_held = hold::is_placed(node);
        hold::place(node, dir, run)?;
        if !was_held {
            let about = About { run: Some(run), ..About::default() };
            tell(&event::HOLD_SET, about, &format!("kubelet is held by recovery {run}: it does not start until the files are restored"));
        }
        hold::keep_images(node, run)
    }

    /// Does `work` with SELinux permissive where it is enforcing: only then can labels be written that the running policy does not know.
    /// The mode is put back in every case: when `work` fails or panics, and by whatever verb comes next when the power does.
    ///
    /// # Errors
    /// Those of `work`; and when the mode cannot be noted, set or put back.
    pub fn permissive<T>(&mut self, session: &Locked<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let node = session.node;
        if selinux::mode(node)? != Some(Mode::Enforcing) {
            return work();
        }
        self.selinux = Some(Mode::Enforcing);
        self.save(session)?;
        selinux::set_mode(node, Mode::Permissive)?;
        let guard = Enforce(node);
        let result = work();
        drop(guard);
        let put_back = self.restore_selinux(session);
        // The failure of the work is the one to show; that of putting back is shown by the next verb, which tries it again.
        result.and_then(|value| put_back.map(|_| value))
    }

    /// Forgets the SELinux mode when the node has rebooted since the run's last line: a mode that was set ends with its boot, and an administrator
    /// may have booted permissive on purpose.
    ///
    /// # Errors
    /// When that cannot be noted.
    pub fn leave_mode_of_next_boot(&mut self, session: &Locked<'_>, reading: &Reading, boot: &str) -> Result<()> {
        if self.selinux.is_none() || !reading.is_of_an_earlier_boot(boot) {
            return Ok(());
        }
        self.selinux = None;
        self.save(session)
    }

    /// Puts the SELinux mode back when one is noted; says so.
    ///
    /// # Errors
    /// When it cannot be set, or that cannot be noted.
    pub fn restore_selinux(&mut self, session: &Locked<'_>) -> Result<Option<String>> {
        let node = session.node;
        let Some(mode) = self.selinux else { return Ok(None) };
        // A node that booted with SELinux disabled since has no mode to put back.
        let is_on = selinux::mode(node)?.is_some();
        if is_on {
            selinux::set_mode(node, mode)?;
        }
        self.selinux = None;
        self.save(session)?;
        Ok(is_on.then(|| format!("SELinux is {mode:?} again")))
    }

    /// Puts back all that is noted, and says what it did. What is noted stays in the file until [`Undo::forget`], which keeps the images no longer.
    ///
    /// # Errors
    /// When the SELinux mode cannot be put back (the hold is lifted all the same), the hold cannot be lifted, or systemd does not answer.
    pub fn put_back(&mut self, session: &Locked<'_>, units: Units) -> Result<Vec<String>> {
        let node = session.node;
        let mut said = Vec::new();
        let mode = self.restore_selinux(session).map(|line| said.extend(line));
        let held = hold::is_placed(node);
        let lifted = hold::lift(node);
        if held && lifted.is_ok() {
            tell_lifted(self.runs.last().map_or("unknown", String::as_str));
            said.push("the hold on kubelet is lifted".to_owned());
        }
        mode.and(lifted)?;
        let were_running: Vec<&String> = self.units.iter().filter(|(_, wanted)| **wanted).map(|(unit, _)| unit).collect();
        for unit in were_running {
            let now = systemctl::show(node, unit)?;
            if now.is_wanted() {
                continue;
            }
            // Only what the recovery has replaced had it: the failed release, or its /etc.
            if !now.exists() {
                said.push(format!("{unit} was running before the recovery and cannot be started: there is no such unit any more"));
                continue;
            }
            if units == Units::Start {
                said.push(match systemctl::start(node, unit) {
                    Ok(()) => format!("{unit} is running again"),
                    Err(error) => format!("{unit} was running before the recovery and does not start: {error:#}"),
                });
            } else {
                said.push(format!(
                    "{unit} was running before the recovery and is stopped: `systemctl start {unit}` when the node is whole"
                ));
            }
        }
        said.extend(self.erased_next(node)?);
        // What the unit gave up and a person has ended is nothing to look at any more.
        match systemctl::reset_failed(node, hold::RESUME) {
            Ok(true) => said.push(format!("{} is no longer marked as failed", hold::RESUME)),
            Ok(false) => {}
            Err(error) => tracing::debug!("{} may be marked as failed: {error:#}", hold::RESUME),
        }
        Ok(said)
    }

    /// The warning that the next boot erases the images: CRI-O was not stopped in order, and stays stopped, and no hold keeps the images any more.
    fn erased_next(&self, node: &Node) -> Result<Option<String>> {
        let Some(mark) = crio::missing_mark(node) else { return Ok(None) };
        let is_runtime = |unit: &&String| self.runtime.as_ref().map_or_else(|| unit.starts_with("crio"), |runtime| runtime == *unit);
        for unit in self.units.keys().filter(is_runtime) {
            if systemctl::show(node, unit)?.is_stopped() && systemctl::show(node, crio::WIPE_UNIT)?.exists() {
                return Ok(Some(format!(
                    "{} erases all images at the next boot, because CRI-O left no {}: `systemctl start {unit}` before it, which keeps them",
                    crio::WIPE_UNIT,
                    mark.display()
                )));
            }
        }
        Ok(None)
    }

    /// Removes the file: everything is put back, and the run is over. Only now CRI-O's images are no longer kept: until its journal says that it is
    /// over, a power cut would have the next boot erase them in the middle of it.
    ///
    /// # Errors
    /// When it cannot be removed, or the images not be let go.
    pub fn forget(session: &Locked<'_>) -> Result<()> {
        hold::release_images(session.node)?;
        durable::remove(&session.dir.undo())
    }
}

impl From<format::V2> for Undo {
    fn from(read: format::V2) -> Self {
        let format::V2 { version: _, runs, backup, asked, selinux, units, runtime, undone_at } = read;
        let selinux = selinux.map(|mode| match mode {
            format::SelinuxModeV1::Enforcing => Mode::Enforcing,
            format::SelinuxModeV1::Permissive => Mode::Permissive,
        });
        Self { runs, backup, asked: asked.into(), selinux, units, runtime, undone_at }
    }
}

impl From<Undo> for format::V2 {
    fn from(undo: Undo) -> Self {
        let Undo { runs, backup, asked, selinux, units, runtime, undone_at } = undo;
        let selinux = selinux.map(|mode| match mode {
            Mode::Enforcing => format::SelinuxModeV1::Enforcing,
            Mode::Permissive => format::SelinuxModeV1::Permissive,
        });
        Self { version: format::FORMAT.version, runs, backup, asked: asked.into(), selinux, units, runtime, undone_at }
    }
}

/// Tells journald that the hold of a run is lifted.
pub(super) fn tell_lifted(run: &str) {
    tell(
        &event::HOLD_LIFTED,
        About { run: Some(run), ..About::default() },
        &format!("recovery {run} no longer holds kubelet: it may start"),
    );
}

/// Makes SELinux enforcing again when it goes out of scope by a panic as well.
struct Enforce<'a>(&'a Node);

impl Drop for Enforce<'_> {
    fn drop(&mut self) {
        if let Err(error) = selinux::set_mode(self.0, Mode::Enforcing) {
            tracing::error!("SELinux is still permissive: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::path::Path;

    fn node() -> (tempfile::TempDir, Node, RecoveryDir) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/fs/selinux")).unwrap();
        std::fs::write(root.path().join("sys/fs/selinux/enforce"), "1").unwrap();
        let node = Node::at(root.path(), None);
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        // Not by `prepare`, which wants it to be root's: the tests of a room need no root.
        std::fs::create_dir_all(dir.backups()).unwrap();
        (root, node, dir)
    }

    #[test]
    fn what_is_noted_is_read_again() {
        let (_root, node, dir) = node();
        let session = Session::unchecked(&node, &dir).lock("test").unwrap();
        assert_eq!(Undo::load(&dir).unwrap(), None);
        let mut undo = Undo::of("b1", Asked::default());
        undo.units.insert("kubelet.service".to_owned(), true);
        undo.selinux = Some(Mode::Enforcing);
        undo.save(&session).unwrap();
        assert_eq!(Undo::load(&dir).unwrap(), Some(undo));
        Undo::forget(&session).unwrap();
        assert_eq!(Undo::load(&dir).unwrap(), None);
    }

    #[test]
    fn another_version_or_unknown_fields_are_refused() {
        let (_root, node, dir) = node();
        let session = Session::unchecked(&node, &dir).lock("test").unwrap();
        Undo::of("b1", Asked::default()).save(&session).unwrap();
        let whole = std::fs::read(dir.undo()).unwrap();
        let with = |field: &str, value: u32| {
            let mut document: serde_json::Value = serde_json::from_slice(&formats::unsealed(&whole).unwrap()).unwrap();
            document[field] = value.into();
            formats::seal(&document).unwrap()
        };
        for (changed, code) in [(with("version", 4), 64), (with("more", 1), 65), (b"{".to_vec(), 65)] {
            std::fs::write(dir.undo(), changed).unwrap();
            assert_eq!(exit_code(&Undo::load(&dir).unwrap_err()), code);
        }
    }

    #[test]
    fn selinux_is_permissive_only_while_the_work_goes_on() {
        let (_root, node, dir) = node();
        let session = Session::unchecked(&node, &dir).lock("test").unwrap();
        let mut undo = Undo::of("b1", Asked::default());
        let looked = undo.permissive(&session, || Ok((selinux::mode(&node)?, Undo::load(&dir)?.unwrap().selinux))).unwrap();
        assert_eq!(looked, (Some(Mode::Permissive), Some(Mode::Enforcing)), "permissive, and noted before");
        assert_eq!(selinux::mode(&node).unwrap(), Some(Mode::Enforcing));
        assert_eq!(Undo::load(&dir).unwrap().unwrap().selinux, None);
        assert!(undo.permissive(&session, || Err::<(), _>(anyhow::anyhow!("no"))).is_err());
        assert_eq!(selinux::mode(&node).unwrap(), Some(Mode::Enforcing));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| undo.permissive::<()>(&session, || panic!("oh"))));
        assert!(panicked.is_err());
        assert_eq!(selinux::mode(&node).unwrap(), Some(Mode::Enforcing));
    }

    #[test]
    fn what_a_crash_left_behind_is_put_back() {
        let (_root, node, dir) = node();
        let session = Session::unchecked(&node, &dir).lock("test").unwrap();
        let mut undo = Undo::of("b1", Asked::default());
        undo.selinux = Some(Mode::Enforcing);
        undo.place_hold(&session).unwrap();
        assert!(node.exists(hold::KEEP_IMAGES));
        selinux::set_mode(&node, Mode::Permissive).unwrap();
        let said = Undo::load(&dir).unwrap().unwrap().put_back(&session, Units::Start).unwrap();
        assert_eq!(said, ["SELinux is Enforcing again", "the hold on kubelet is lifted"]);
        assert_eq!(selinux::mode(&node).unwrap(), Some(Mode::Enforcing));
        // The run may still go on for a while, and the power may fail meanwhile.
        assert!(!hold::is_placed(&node) && node.exists(hold::KEEP_IMAGES));
        Undo::forget(&session).unwrap();
        assert!(!node.exists(hold::KEEP_IMAGES) && !dir.undo().exists());
    }
}
