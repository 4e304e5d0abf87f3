//! Turns differences into what to do about them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::compare::{
    CONTENT, Comparison, DEVICE, Differences, FLAGS, KIND, LINK, MODE, MTIME, OWNER, SEEN, Shared, Surplus, TARGET, XATTRS, check_mounts,
};
use crate::archive::entry::Kind;
use crate::archive::path::compare_paths;
use crate::archive::read::table::{Id, Table};
use crate::archive::select::{Selection, Standing};
use crate::report::paths;

/// What a restore does or would do to one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Relative to the tree's root.
    #[serde(serialize_with = "paths::one")]
    pub path: PathBuf,
    /// What is done.
    pub action: Action,
    /// Why: which of content, mode, owner, … differ.
    pub why: String,
}

/// What is done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It does not exist yet.
    Create,
    /// Its content or kind differs.
    Replace,
    /// Only owner, mode, times or attributes differ.
    Metadata,
    /// It is not in the archive.
    Delete,
}

/// What a restore did or would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Paths that are created.
    pub created: u64,
    /// Paths that are replaced.
    pub replaced: u64,
    /// Paths of which only metadata is changed.
    pub metadata: u64,
    /// Paths that are deleted.
    pub deleted: u64,
    /// Paths that are already equal.
    pub unchanged: u64,
    /// Bytes of content written.
    pub bytes: u64,
}

/// Differences that need a new inode.
const REPLACE: Differences = KIND | CONTENT | TARGET | DEVICE | LINK;

/// What to do to one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) id: Id,
    pub(super) action: Action,
    differences: Differences,
}

impl Step {
    /// True when something of another kind is in its place.
    pub(super) fn is_of_other_kind(self) -> bool {
        self.differences & KIND != 0
    }
}

/// Everything to do.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The steps, in the order of the rows.
    pub(super) steps: Vec<Step>,
    /// What is deleted, in this order.
    pub(super) surplus: Vec<Surplus>,
    /// Directories where another file system begins, on the way to what is selected.
    pub(super) crossed: Vec<Vec<u8>>,
    pub(super) counts: Counts,
}

/// The leader of everything that has several names, by the row at which the archive has its content. The leader is the first of its
/// selected names, and the others are linked to it.
pub(super) fn leaders(table: &Table, selection: &Selection) -> HashMap<Id, Id> {
    let mut leaders = HashMap::new();
    let selected = |id: Id| selection.standing(table.path(id)) == Standing::Inside;
    for id in table.ids().filter(|id| table.row(*id).kind == Kind::HardLink) {
        let leader = table.leader(id);
        if selected(leader) {
            leaders.insert(leader, leader);
        } else if selected(id) {
            leaders.entry(leader).or_insert(id);
        }
    }
    leaders
}

/// The number of selected names of everything that has several, by the row at which the archive has its content.
pub(super) fn name_counts(table: &Table, selection: &Selection) -> HashMap<Id, u32> {
    let mut names = HashMap::new();
    let selected = |id: Id| selection.standing(table.path(id)) == Standing::Inside;
    for id in table.ids().filter(|id| table.row(*id).kind == Kind::HardLink && selected(*id)) {
        let leader = table.leader(id);
        *names.entry(leader).or_insert_with(|| u32::from(selected(leader))) += 1;
    }
    names
}

impl Plan {
    /// Makes a plan.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when it would change something at or below a mount point.
    pub(super) fn new(table: &Table, selection: &Selection, leaders: &HashMap<Id, Id>, mut found: Comparison) -> Result<Self> {
        let mut differences = std::mem::take(&mut found.differences);
        decide_links(table, leaders, &found.shared, &mut differences);
        let wanted = wanted(table, selection, &differences);
        check_mounts(table, &found, |id| wanted[id as usize] && differences[id as usize] != SEEN)?;
        let mut plan = Self { surplus: found.surplus, crossed: found.crossed, ..Self::default() };
        for id in table.ids().filter(|id| wanted[*id as usize]) {
            plan.add(table, leaders, id, differences[id as usize]);
        }
        plan.counts.deleted = plan.surplus.len() as u64;
        Ok(plan)
    }

    fn add(&mut self, table: &Table, leaders: &HashMap<Id, Id>, id: Id, differences: Differences) {
        let counts = &mut self.counts;
        let action = match differences {
            SEEN => {
                counts.unchanged += 1;
                return;
            }
            0 => {
                counts.created += 1;
                Action::Create
            }
            _ if differences & REPLACE != 0 => {
                counts.replaced += 1;
                Action::Replace
            }
            _ => {
                counts.metadata += 1;
                Action::Metadata
            }
        };
        let leader = table.leader(id);
        let follows = leaders.get(&leader).is_some_and(|first| *first != id);
        if action != Action::Metadata && !follows {
            counts.bytes += table.row(leader).sum.data;
        }
        self.steps.push(Step { id, action, differences });
    }

    /// True when nothing differs.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.surplus.is_empty()
    }

    /// True when something else is in the place of `id`.
    pub(super) fn replaces(&self, id: Id) -> bool {
        self.steps.binary_search_by_key(&id, |step| step.id).is_ok_and(|at| self.steps[at].action == Action::Replace)
    }

    /// The plan for people, in the order of the paths.
    pub(super) fn changes(&self, table: &Table) -> Vec<Change> {
        let path = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
        let steps = self.steps.iter().map(|step| (table.path(step.id), step.action, why(step.differences)));
        let surplus = self.surplus.iter().map(|surplus| (&surplus.path[..], Action::Delete, "not in the archive".to_owned()));
        let mut changes: Vec<_> = steps.chain(surplus).collect();
        changes.sort_by(|a, b| compare_paths(a.0, b.0));
        changes.into_iter().map(|(bytes, action, why)| Change { path: path(bytes), action, why }).collect()
    }
}

fn why(differences: Differences) -> String {
    if differences == 0 {
        return "missing".to_owned();
    }
    let words = [
        (KIND, "kind"),
        (CONTENT, "content"),
        (TARGET, "link target"),
        (DEVICE, "device number"),
        (LINK, "hard link"),
        (MODE, "mode"),
        (OWNER, "owner"),
        (MTIME, "modification time"),
        (XATTRS, "extended attributes"),
        (FLAGS, "flags"),
    ];
    words.iter().filter(|(bit, _)| differences & bit != 0).map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
}

/// Finds names that share an inode but should not, and names that should share one but do not.
fn decide_links(table: &Table, leaders: &HashMap<Id, Id>, shared: &[Shared], differences: &mut [Differences]) {
    let first = |id: Id| leaders.get(&table.leader(id)).copied().unwrap_or(id);
    let inodes: HashMap<Id, _> = shared.iter().map(|shared| (shared.id, shared.inode)).collect();
    // An inode belongs to the first of its names here that will not be made anew anyway.
    let mut owners = HashMap::new();
    let mut names_of: HashMap<_, u32> = HashMap::new();
    for Shared { id, inode, .. } in shared.iter().filter(|shared| first(shared.id) == shared.id) {
        if differences[*id as usize] & REPLACE == 0 && *owners.entry(*inode).or_insert(*id) != *id {
            differences[*id as usize] |= LINK;
        }
    }
    let followers: Vec<Id> = table.ids().filter(|id| first(*id) != *id).collect();
    for id in followers.iter().copied() {
        if differences[id as usize] & (SEEN | KIND) != SEEN {
            continue;
        }
        let leader = first(id) as usize;
        let kept = differences[leader] & (SEEN | REPLACE) == SEEN;
        let same = inodes.get(&id).is_some_and(|inode| inodes.get(&first(id)) == Some(inode));
        // Other differences concern the inode, and so its first name.
        differences[id as usize] = if kept && same { SEEN } else { SEEN | LINK };
    }
    for Shared { id, inode, .. } in shared.iter().filter(|shared| differences[shared.id as usize] & REPLACE == 0) {
        debug_assert!(differences[*id as usize] & SEEN != 0);
        *names_of.entry(*inode).or_default() += 1;
    }
    // Names outside the selection would be changed too, so it is made anew.
    let mut made_anew = Vec::new();
    for Shared { id, inode, links } in shared {
        let metadata = differences[*id as usize] & !SEEN != 0 && differences[*id as usize] & REPLACE == 0;
        if metadata && *links > names_of.get(inode).copied().unwrap_or(0) {
            differences[*id as usize] |= LINK;
            made_anew.push(*id);
        }
    }
    for id in followers {
        if differences[id as usize] & SEEN != 0 && made_anew.contains(&first(id)) {
            differences[id as usize] |= LINK;
        }
    }
}

/// The rows that a restore makes equal: those inside the selection, and of the directories leading to them those that exist or must be
/// made.
fn wanted(table: &Table, selection: &Selection, differences: &[Differences]) -> Vec<bool> {
    let mut wanted = vec![false; table.len()];
    let mut above: Vec<(Id, bool)> = Vec::new();
    for id in table.ids() {
        while above.last().is_some_and(|(top, _)| table.row(*top).end <= id) {
            above.pop();
        }
        let standing = selection.standing(table.path(id));
        let missing = differences[id as usize] & SEEN == 0 || differences[id as usize] & KIND != 0;
        if standing == Standing::Inside {
            wanted[id as usize] = true;
            above.iter().filter(|(_, missing)| *missing).for_each(|(top, _)| wanted[*top as usize] = true);
        }
        above.push((id, missing && standing == Standing::Parent));
    }
    wanted
}
