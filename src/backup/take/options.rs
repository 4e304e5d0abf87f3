//! The options of a backup.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backup::asked_by::AskedBy;
use crate::backup::store::Retention;

/// How many good backups are kept by default.
pub const KEEP: u32 = 3;

/// What the caller asks for.
#[derive(Debug, Clone)]
pub struct TakeOptions {
    /// A name, for people.
    pub name: Option<String>,
    /// Labels, for programs.
    pub labels: BTreeMap<String, String>,
    /// Go on although operators progress or the API does not answer.
    pub force: bool,
    /// How many good backups are kept.
    pub keep: Retention,
    /// The deadline of each wait.
    pub wait: Duration,
    /// Who asks; determined before the host's namespaces are entered.
    pub asked_by: AskedBy,
}
