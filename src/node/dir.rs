//! The recovery directory: where its files are, who may write to it, and the one lock.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::{Node, durable};
use crate::error::{AndNext, Next, by_hand, locked, misfit, no_space, not_permitted};

/// Where it is unless `--dir` says otherwise.
pub const DEFAULT: &str = "/var/recovery";

/// The most bytes that upgrade-recovery.sh writes about a recovery: it has three stages.
const OLD_NOTES: u64 = 4096;

/// The recovery directory of a node (`ARCHITECTURE.md`, "The recovery directory").
#[derive(Debug, Clone)]
pub struct RecoveryDir {
    shown: PathBuf,
    path: PathBuf,
}

/// The lock, held until dropped. Released by the kernel when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Checks that what is at `path` is a directory of root's that nobody else can write to; one that is missing passes. `harm` is what others could do, and
/// `mode` what chmod(1) is to be given.
///
/// # Errors
/// [`FailureKind::NotPermitted`](crate::error::FailureKind::NotPermitted), with the commands that put it right.
pub fn check_is_roots(path: &Path, shown: &Path, harm: &str, mode: &str) -> Result<()> {
    let Ok(meta) = path.symlink_metadata() else { return Ok(()) };
    let shown = shown.display();
    if !meta.is_dir() {
        return Err(not_permitted(format!("{shown} is not a directory")));
    }
    if meta.uid() == 0 && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(not_permitted(format!(
        "{shown} belongs to user {} with mode {:04o}: {harm}; run `chown 0:0 {shown} && chmod {mode} {shown}` after a look at what is in it",
        meta.uid(),
        meta.mode() & 0o7777
    )))
}

impl RecoveryDir {
    /// The recovery directory of `node`, at its absolute path `dir`; nothing is made or checked yet.
    #[must_use]
    pub fn new(node: &Node, dir: &Path) -> Self {
        Self { shown: dir.to_owned(), path: node.real_path(dir) }
    }

    /// Makes the directory when it is missing, checks that nobody but root can write to it, and lets only root read it: it holds the node's
    /// secrets.
    ///
    /// # Errors
    /// [`FailureKind::NotPermitted`](crate::error::FailureKind::NotPermitted) when it is another user's or writable by group or others.
    pub fn prepare(&self) -> Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let dirs = [self.path.clone(), self.backups()];
        dirs.iter().try_for_each(|dir| durable::create_dir(dir, 0o700))?;
        self.check_owner()?;
        for dir in dirs {
            let mode = Permissions::from_mode(0o700);
            std::fs::set_permissions(&dir, mode).with_context(|| format!("setting the mode of {}", dir.display()))?;
        }
        Ok(())
    }

    /// Checks that the directory belongs to root and that nobody else can write to it or to `backups/` in it. A directory that does not
    /// exist passes.
    ///
    /// # Errors
    /// As [`RecoveryDir::prepare`].
    pub fn check_owner(&self) -> Result<()> {
        if let Ok(target) = std::fs::read_link(&self.path) {
            // The resume unit and the hold file record the directory's path, so it must be the real one.
            let place = self.path.canonicalize().unwrap_or(target);
            return Err(not_permitted(format!(
                "{} is a symbolic link: name the directory itself, `recovery --dir {} …`",
                self.shown.display(),
                place.display()
            )));
        }
        for (path, shown) in [(self.path.clone(), self.shown.clone()), (self.backups(), self.shown.join("backups"))] {
            check_is_roots(&path, &shown, "others could plant a backup there", "0700")?;
        }
        Ok(())
    }

    /// The directory's path for this process.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory's path on the node, for messages and for what is written down.
    #[must_use]
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// `backups/`: the published backups and those being taken.
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.path.join("backups")
    }

    /// `recovery`: the agent that the units run, and that recovers the node when the operating system is another.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.path.join("recovery")
    }

    /// The path of [`RecoveryDir::agent`] on the node, for messages.
    #[must_use]
    pub fn shown_agent(&self) -> PathBuf {
        self.shown.join("recovery")
    }

    /// `progress`: the journal of the recovery that is in progress. To the old tool's front, too, its presence means that a recovery is
    /// open.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("progress")
    }

    /// The path of [`RecoveryDir::journal`] on the node, for messages.
    #[must_use]
    pub fn shown_journal(&self) -> PathBuf {
        self.shown.join("progress")
    }

    /// `undo.json`: what the recovery in progress must put back.
    #[must_use]
    pub fn undo(&self) -> PathBuf {
        self.path.join("undo.json")
    }

    /// `history/`: the journals and reports of finished runs.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("history")
    }

    /// The path of [`RecoveryDir::history`] on the node, for messages.
    #[must_use]
    pub fn shown_history(&self) -> PathBuf {
        self.shown.join("history")
    }

    /// `latest`: a link to the newest backup, for people.
    #[must_use]
    pub fn latest(&self) -> PathBuf {
        self.path.join("latest")
    }

    /// True while a recovery of this agent is in progress.
    #[must_use]
    pub fn in_recovery(&self) -> bool {
        self.journal().symlink_metadata().is_ok() && self.old_stages().is_none()
    }

    /// The stages that upgrade-recovery.sh has noted of a recovery that it began and did not end, when the file at [`RecoveryDir::journal`]
    /// is its own.
    #[must_use]
    pub fn old_stages(&self) -> Option<Vec<String>> {
        // A directory or a FIFO holds no notes.
        if !self.journal().symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            return None;
        }
        let mut notes = Vec::new();
        File::open(self.journal()).ok()?.take(OLD_NOTES).read_to_end(&mut notes).ok()?;
        old_stages(&notes)
    }

    /// A sentence for people that upgrade-recovery.sh has left a recovery open; `None` when it has not.
    #[must_use]
    pub fn old_recovery(&self) -> Option<String> {
        let stages = self.old_stages()?.join(", ");
        Some(format!(
            "upgrade-recovery.sh has begun a recovery here and not ended it ({}: {stages})",
            self.shown.join("progress").display()
        ))
    }

    /// Takes the one lock of this directory, without waiting. The lock file is never replaced or removed: its inode is the lock.
    ///
    /// # Errors
    /// [`FailureKind::Locked`](crate::error::FailureKind::Locked) when another process holds it; the message names the holder.
    /// [`FailureKind::NoSpace`](crate::error::FailureKind::NoSpace) when there is no room even for the empty file: what makes room needs the lock, too.
    pub fn lock(&self, verb: &str) -> Result<Lock> {
        let path = self.path.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.no_lock(error))?;
        if let Err(error) = try_lock(&file) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
            let holder = named_in(&mut file);
            return Err(locked(format!("{} is locked by {holder}", self.shown.display())).and_next(by_hand(
                "run this again when that has ended; `recovery resume` shows a recovery at work, `systemctl stop recovery-resume.service` stops the unit's",
            )));
        }
        // Whoever had it before may have mounted another file system here meanwhile, with a lock file of its own.
        let is_here =
            path.metadata().is_ok_and(|there| file.metadata().is_ok_and(|have| (have.dev(), have.ino()) == (there.dev(), there.ino())));
        if !is_here {
            return Err(
                locked(format!("another file system was mounted at {} just now", self.shown.display())).and_next(by_hand("run this again"))
            );
        }
        let holder = format!("`recovery {verb}` (process {}, since {})\n", std::process::id(), jiff::Timestamp::now());
        // The holder's name is only for messages. Where the disk is too full to write it, `prune` must still get the lock.
        if let Err(error) = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(holder.as_bytes())) {
            tracing::debug!("the lock does not name its holder: {error}");
        }
        Ok(Lock { _file: file })
    }

    /// The process that holds the lock, as it wrote itself down: verb, process, since when. `None` also where this user may not see it.
    #[must_use]
    pub fn holder(&self) -> Option<String> {
        let mut file = File::open(self.path.join("lock")).ok()?;
        let held = flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK);
        held.then(|| named_in(&mut file))
    }

    fn no_lock(&self, error: std::io::Error) -> anyhow::Error {
        let shown = self.shown.display();
        if error.kind() == ErrorKind::NotFound {
            return misfit(format!(
                "there is no recovery directory {shown} on this node: nothing was ever backed up to it, or it is not mounted"
            ));
        }
        if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return anyhow::Error::from(error).context(format!("opening {shown}/lock"));
        }
        no_space(format!("{shown} is so full that its lock cannot be made; {}; then run this again", self.room_by_hand()))
    }

    /// What to do about a full disk where the agent itself deletes nothing: during a recovery, and without the lock.
    #[must_use]
    pub fn room_by_hand(&self) -> String {
        format!(
            "make room by hand: `recovery list` shows the backups, `rm -r {}/backups/ID` deletes one (those with the state `partial` first, never \
             the newest complete one, nor the one that is being restored)",
            self.shown.display()
        )
    }

    /// What to do about a full disk, perhaps that of this directory, where the agent can delete backups.
    #[must_use]
    pub fn make_room(&self) -> Next {
        let how = format!(
            "make room on that disk (`df -h` and `df -i` show which is full); if it is that of {}, `recovery list` shows the backups, `recovery delete ID` \
             and `recovery prune --keep 1` make room; then run this again",
            self.shown.display()
        );
        Next::MakeRoom { dir: None, how }
    }

    /// What to do about this directory's disk, which was found to be too full.
    #[must_use]
    pub fn make_room_here(&self) -> Next {
        let how = if self.in_recovery() {
            self.room_by_hand()
        } else {
            "make room there: `recovery list` shows the backups, `recovery delete ID` and `recovery prune --keep 1` delete some".to_owned()
        };
        Next::MakeRoom { dir: Some(self.shown.clone()), how: format!("{how}; then run this again") }
    }
}

/// The stages in the notes of upgrade-recovery.sh: one word a line, written as each stage ends, `started` first. `None` for anything else:
/// a line of the agent's journal begins with a brace, and is longer than all of these notes.
#[must_use]
pub fn old_stages(notes: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(notes).ok().filter(|text| (text.len() as u64) < OLD_NOTES)?;
    let is_stage = |line: &str| !line.is_empty() && line.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let stages: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    (stages.first()? == "started" && stages.iter().all(|stage| is_stage(stage))).then_some(stages)
}

fn named_in(lock: &mut File) -> String {
    let mut holder = String::new();
    lock.read_to_string(&mut holder).ok();
    if holder.trim().is_empty() { "another process".to_owned() } else { holder.trim().to_owned() }
}

/// Tries for a second. A lock may be held for an instant by a process that only looks whether it is free, or by a child process between
/// fork and exec, which has not closed the file yet.
fn try_lock(file: &File) -> rustix::io::Result<()> {
    for _ in 0..100 {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn notes_of_the_old_script_are_told_from_a_journal() {
        let stages = |notes: &str| old_stages(notes.as_bytes()).map(|stages| stages.join(" "));
        assert_eq!(stages("started\n"), Some("started".to_owned()));
        assert_eq!(stages("started\r\nrestore_files\nrestore_cluster"), Some("started restore_files restore_cluster".to_owned()));
        for other in ["", "\n", "\0\0\0", "garbage\n", "started\n\0\0", "{}", "started\n{\"version\":1}\n"] {
            assert_eq!(stages(other), None, "{other:?}");
        }
        assert_eq!(stages(&"started\n".repeat(1000)), None);
    }

    #[test]
    fn a_link_is_refused_with_the_name_of_the_place() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (place, link) = (root.path().join("disk"), root.path().join("link"));
        std::fs::create_dir(&place)?;
        std::os::unix::fs::symlink("disk", &link)?;
        let error = RecoveryDir::new(&Node::live(), &link).check_owner().unwrap_err();
        assert_eq!(exit_code(&error), 77);
        assert!(error.to_string().contains(&format!("`recovery --dir {} ", place.canonicalize()?.display())), "{error}");
        Ok(())
    }
}
