//! What lies in the recovery directory beside the backups: the agent's own binary and the old tool's front. A failed upgrade may leave a node
//! without images or network, so what recovers it must already be there.

use std::fs::{File, OpenOptions};
use std::io::{Cursor, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, XattrFlags, fchmod, fsetxattr};

use super::{Agent, SELF, answers, is_roots};
use crate::node::{Node, dir::RecoveryDir, durable, selinux};

/// The front's name.
pub const FRONT: &str = "upgrade-recovery.sh";
const FRONT_TEXT: &str = include_str!("../../packaging/upgrade-recovery.sh");
/// Below `/var`, files are labelled `var_t`, which systemd may not run.
const BIN_LABEL: &[u8] = b"system_u:object_r:bin_t:s0\0";

/// Installs both, replacing older ones in one step each. A file with the same content stays, and gets the right mode and label; so does a newer agent
/// of root's that runs, with the front that it has brought along.
///
/// # Errors
/// When one cannot be written or, on a host with `SELinux`, labelled.
pub fn install(node: &Node, dir: &RecoveryDir) -> Result<()> {
    let labelled = selinux::mode(node)?.is_some();
    let path = dir.agent();
    if let Some(newer) = newer_of_roots(dir)? {
        File::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|file| dress(&file, labelled))
            .with_context(|| format!("looking after {}", dir.shown_agent().display()))?;
        // The units start it: one that does not run would leave a recovery where it is. Nothing of another root is run.
        let runs = if node.is_live() { answers(&path) } else { Ok(()) };
        let Err(why) = runs else {
            tracing::info!("{} is {newer}, and stays", dir.shown_agent().display());
            return Ok(());
        };
        tracing::warn!("{} is {newer}, and is replaced by this agent, because it cannot be run: {why:#}", dir.shown_agent().display());
    }
    let binary = File::open(SELF).with_context(|| format!("opening {SELF}"))?;
    place(&path, binary, labelled).context("installing the agent in the recovery directory")?;
    place(&dir.path().join(FRONT), Cursor::new(FRONT_TEXT), labelled).context("installing the front of the old tool")
}

/// Bytes that [`install`] needs in the recovery directory: the size of the agent, unless the same one, or a newer one, is already there.
///
/// # Errors
/// When the agent's own program cannot be read.
pub fn room(dir: &RecoveryDir) -> Result<u64> {
    let look = || -> Result<u64> {
        let mut own = File::open(SELF)?;
        let length = own.metadata()?.len();
        // A file that cannot be read is replaced.
        let is_there = newer_of_roots(dir)?.is_some() || durable::is_same(&dir.agent(), &mut own).unwrap_or(false);
        Ok(if is_there { 0 } else { length })
    };
    look().with_context(|| format!("comparing {SELF} with the agent in the recovery directory"))
}

/// The agent that is there, when it is newer than this one and nobody but root can have put it there.
fn newer_of_roots(dir: &RecoveryDir) -> Result<Option<Agent>> {
    Ok(Agent::own()?.leading(dir).filter(|_| is_roots(&dir.agent())))
}

fn place(path: &Path, mut content: impl Read + Seek, labelled: bool) -> Result<()> {
    let temporary = durable::beside(path)?;
    // What a killed call left is of no use, and takes room.
    durable::remove(&temporary)?;
    if durable::is_same(path, &mut content)? {
        return dress(&File::open(path)?, labelled);
    }
    content.rewind()?;
    let mut write = || -> Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(&temporary)?;
        std::io::copy(&mut content, &mut file)?;
        dress(&file, labelled)?;
        // A running program keeps its inode, so the rename does not disturb it.
        durable::rename(&temporary, path)
    };
    // A partial file must not fill the disk on which the recovery will write; only the error matters.
    write().inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

/// Gives a file the mode and, where there are labels, the label with which it can be run; durably, with its content.
fn dress(file: &File, labelled: bool) -> Result<()> {
    fchmod(file, Mode::from_raw_mode(0o755))?;
    if labelled {
        fsetxattr(file, selinux::LABEL, BIN_LABEL, XattrFlags::empty()).context("labelling it so that systemd may run it")?;
    }
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A recovery directory with the front, and an agent that prints its arguments. A child process writes both: if this process wrote
    /// them, a child that another thread forks at that moment would hold them open, and they could not be run ("text file busy").
    fn fronted() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("with blank ").tempdir().unwrap();
        for (name, text) in [(FRONT, FRONT_TEXT), ("recovery", "#!/bin/sh\nprintf '%s|' \"$@\"\n")] {
            let (written, copied) = (dir.path().join("text"), dir.path().join(name));
            std::fs::write(&written, text).unwrap();
            assert!(Command::new("install").arg("--mode=755").args([written, copied]).status().unwrap().success());
        }
        dir
    }

    fn handed_on(dir: &Path, flags: &[&str]) -> String {
        let output = Command::new(dir.join(FRONT)).args(flags).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_old_flags_are_handed_on() {
        let dir = fronted();
        let here = dir.path().to_str().unwrap();
        assert_eq!(handed_on(dir.path(), &[]), format!("restore-files|--dir={here}|--yes|"));
        assert_eq!(handed_on(dir.path(), &["--force"]), format!("restore-files|--dir={here}|--yes|--force|"));
        assert_eq!(handed_on(dir.path(), &["--dir", "/x y"]), "restore-files|--yes|--dir|/x y|");
        assert_eq!(handed_on(dir.path(), &["--dir=/x", "--resume"]), "--yes|--dir=/x|--resume|");
        assert_eq!(handed_on(dir.path(), &["--take-backup"]), format!("--dir={here}|--yes|--take-backup|"));
        assert_eq!(handed_on(dir.path(), &["--restart", "--step"]), format!("--dir={here}|--yes|--restart|--step|"));
    }
}
