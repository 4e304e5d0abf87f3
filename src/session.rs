//! What a command works on, and the proof that it may: the recovery directory of a [`Session`] was checked, and that of a [`Locked`] one is
//! also locked.

use std::ops::Deref;

use anyhow::Result;

use crate::node::Node;
use crate::node::dir::{Lock, RecoveryDir};
use crate::report::Progress;

/// A node, its recovery directory, which only root can write to, and where progress is shown.
#[expect(clippy::manual_non_exhaustive, reason = "not other crates, but all other modules are to be kept from making one unchecked")]
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// The node.
    pub node: &'a Node,
    /// Its recovery directory.
    pub dir: &'a RecoveryDir,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// Only [`Session::open`] and [`Session::prepare`] make one.
    _checked: (),
}

impl<'a> Session<'a> {
    /// Checks the recovery directory; one that does not exist passes.
    ///
    /// # Errors
    /// As [`RecoveryDir::check_owner`].
    pub fn open(node: &'a Node, dir: &'a RecoveryDir, progress: &'a Progress) -> Result<Self> {
        dir.check_owner()?;
        Ok(Self { node, dir, progress, _checked: () })
    }

    /// Makes the recovery directory when it does not exist, and checks it.
    ///
    /// # Errors
    /// As [`RecoveryDir::prepare`].
    pub fn prepare(node: &'a Node, dir: &'a RecoveryDir, progress: &'a Progress) -> Result<Self> {
        dir.prepare()?;
        Ok(Self { node, dir, progress, _checked: () })
    }

    /// For tests in which the owner of the directory does not matter, so that they need not run as root.
    #[cfg(test)]
    pub(crate) fn unchecked(node: &'a Node, dir: &'a RecoveryDir) -> Self {
        Self { node, dir, progress: Box::leak(Box::new(Progress::hidden())), _checked: () }
    }

    /// Takes the lock, without waiting.
    ///
    /// # Errors
    /// As [`RecoveryDir::lock`].
    pub fn lock(self, verb: &str) -> Result<Locked<'a>> {
        Ok(Locked { lock: self.dir.lock(verb)?, session: self })
    }
}

/// A session that holds the lock until it is dropped. Whatever changes the recovery directory requires one.
#[derive(Debug)]
pub struct Locked<'a> {
    session: Session<'a>,
    lock: Lock,
}

impl<'a> Locked<'a> {
    /// Releases the lock.
    #[must_use]
    pub fn unlock(self) -> Session<'a> {
        drop(self.lock);
        self.session
    }
}

impl<'a> Deref for Locked<'a> {
    type Target = Session<'a>;

    fn deref(&self) -> &Session<'a> {
        &self.session
    }
}
