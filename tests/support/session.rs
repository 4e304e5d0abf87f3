//! Sessions for tests that call the library.

use recovery::node::Node;
use recovery::node::dir::RecoveryDir;
use recovery::report::Progress;
use recovery::session::{Locked, Session};

/// A session whose progress nobody sees.
///
/// # Panics
/// When others can write to the recovery directory.
#[must_use]
pub fn session<'a>(node: &'a Node, dir: &'a RecoveryDir) -> Session<'a> {
    opened(node, dir).unwrap()
}

/// The same, or why not.
pub fn opened<'a>(node: &'a Node, dir: &'a RecoveryDir) -> anyhow::Result<Session<'a>> {
    // For as long as the test runs.
    Session::open(node, dir, Box::leak(Box::new(Progress::hidden())))
}

/// The same with the lock.
///
/// # Panics
/// When somebody else has it.
#[must_use]
pub fn locked<'a>(node: &'a Node, dir: &'a RecoveryDir) -> Locked<'a> {
    session(node, dir).lock("test").unwrap()
}
