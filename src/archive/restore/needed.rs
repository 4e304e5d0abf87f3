//! Which data of an archive a restore needs, and its check before anything is changed.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::plan::{Action, Plan};
use crate::archive::entry::Kind;
use crate::archive::frames::{FrameReader, Frames};
use crate::archive::read::table::{Id, Table};
use crate::archive::read::{Source, verify};
use crate::archive::work;

/// The needed data of an archive: the rows whose content will be written, by the frame in which they begin.
pub(super) struct Needed {
    pub(super) groups: Vec<Vec<Id>>,
    frames: Vec<u32>,
    /// For a row at which the archive has a content: the row to whose path that content is written.
    pub(super) content: HashMap<Id, Id>,
}

impl Needed {
    pub(super) fn new(table: &Table, source: &Source, plan: &Plan, leaders: &HashMap<Id, Id>) -> Self {
        let content: HashMap<Id, Id> = plan
            .steps
            .iter()
            .filter(|step| step.action != Action::Metadata && !table.row(step.id).existence)
            .map(|step| (table.leader(step.id), step.id))
            .filter(|(leader, id)| has_content(table, *leader) && leaders.get(leader).is_none_or(|first| first == id))
            .collect();
        let mut groups: BTreeMap<u32, Vec<Id>> = BTreeMap::new();
        let mut frames = Vec::new();
        if let Source::Indexed(all) = source {
            let mut rows: Vec<Id> = content.keys().copied().collect();
            rows.sort_unstable();
            for id in rows {
                groups.entry(table.row(id).frame).or_default().push(id);
                frames.extend(frames_of(table, all, id));
            }
            frames.dedup();
        }
        let mut groups: Vec<Vec<Id>> = groups.into_values().collect();
        // The largest comes first, so that the end does not wait for it.
        groups.sort_by_key(|group| group.iter().map(|id| table.row(*id).size).sum::<u64>());
        Self { groups, frames, content }
    }

    /// Checks the needed data before anything is changed: the frames and, when something would be lost, each content too. (A stream was
    /// checked to its end when it was opened.)
    pub(super) fn verify(&self, table: &Table, source: &Source, plan: &Plan) -> Result<()> {
        let Source::Indexed(frames) = source else { return Ok(()) };
        if plan.counts.deleted + plan.counts.replaced == 0 {
            return work::run(self.frames.clone(), || Ok(Vec::new()), |buffer, number, _| frames.read(number, buffer).map(drop)).map(drop);
        }
        let state = || FrameReader::new(frames.clone());
        work::run(self.groups.clone(), state, |reader, ids, _| ids.into_iter().try_for_each(|id| verify::check_content(reader, table, id)))
            .map(drop)
    }
}

fn has_content(table: &Table, id: Id) -> bool {
    table.row(id).kind == Kind::File && table.row(id).size > 0
}

/// The frames that hold a row's content: up to the one in which the next row begins.
fn frames_of(table: &Table, frames: &Frames, id: Id) -> std::ops::RangeInclusive<u32> {
    let first = table.row(id).frame;
    let last = u32::try_from(frames.table().len()).unwrap_or(u32::MAX).saturating_sub(1);
    let next = table.ids().nth(id as usize + 1).map_or(last, |next| match table.row(next) {
        row if row.offset == 0 => row.frame.saturating_sub(1),
        row => row.frame,
    });
    first..=next.max(first)
}
