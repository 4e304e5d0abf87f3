//! Making a tree equal to an archive.
//!
//! Reading order: [`mod@compare`] (how a tree differs), [`plan`] (what to do about it), [`needed`] (which data of the archive that needs);
//! [`noted`] (what directories were like before), [`stage`] (where new files are made), [`make`], [`remove`], [`trial`] (what the file
//! system supports); [`restorer`] (the steps, in their order); here, all of it.

mod compare;
mod make;
mod needed;
mod noted;
mod plan;
mod remove;
mod restorer;
mod stage;
mod trial;

use std::path::Path;

use anyhow::{Context, Result};

use self::compare::{Comparer, Comparison};
use self::needed::Needed;
use self::plan::{Plan, leaders, name_counts};
use self::restorer::Restorer;
use self::stage::Stages;
use super::found::Found;
use super::read::Source;
use super::read::table::Table;
use super::select::{Selection, Standing};
use super::tree::Tree;
use super::work::Tick;

pub use self::compare::Extra;
pub use self::plan::{Action, Change, Counts};
pub(crate) use self::remove::remove_all;

/// Removes what an interrupted restore has left in `tree` when nobody will finish it: a directory with parts of files, some of them secret.
/// True when there was one. It is at the root of the tree, and at the root of each other file system on the way to what was restored: call
/// this for each of them. What the restore had changed so far is synced first: see [`Archive::restore`](super::Archive::restore).
///
/// # Errors
/// When it cannot be synced or removed.
pub fn sweep(tree: &Path) -> Result<bool> {
    if !tree.try_exists().with_context(|| format!("looking for {}", tree.display()))? {
        return Ok(false);
    }
    stage::sweep_alone(&Tree::open(tree)?)
}

/// What a restore would do.
pub(super) fn compare(
    table: &Table,
    source: &Source,
    path: &Path,
    selection: &Selection,
    extra: Extra,
    tick: Tick<'_>,
) -> Result<(Vec<Change>, Counts)> {
    let leaders = leaders(table, selection);
    let found = if path.try_exists().with_context(|| format!("looking for {}", path.display()))? {
        let tree = Tree::open(path)?;
        Comparer {
            table,
            tree: &tree,
            selection,
            extra,
            tick,
            leaders: &leaders,
            labelled: labelled(table, source),
            archive: Found::of(source.file())?,
        }
        .run()?
    } else {
        Comparison { differences: vec![0; table.len()], ..Comparison::default() }
    };
    let plan = Plan::new(table, selection, &leaders, found)?;
    Ok((plan.changes(table), plan.counts))
}

/// Restores: see [`Archive::restore`](super::Archive::restore).
pub(super) fn restore(table: &Table, source: &Source, path: &Path, selection: &Selection, extra: Extra, tick: Tick<'_>) -> Result<Counts> {
    std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    let tree = Tree::open(path)?;
    let leaders = leaders(table, selection);
    let labelled = labelled(table, source);
    let found =
        Comparer { table, tree: &tree, selection, extra, tick, leaders: &leaders, labelled, archive: Found::of(source.file())? }.run()?;
    let plan = Plan::new(table, selection, &leaders, found)?;
    let needed = Needed::new(table, source, &plan, &leaders);
    needed.verify(table, source, &plan)?;
    let paths = plan.steps.iter().map(|step| table.path(step.id)).chain(plan.surplus.iter().map(|surplus| &surplus.path[..]));
    let stages = Stages::new(&tree, &plan.crossed, paths)?;
    // Directories in the archive get their metadata from it, whatever an earlier restore found.
    let in_archive =
        |path: &[u8]| selection.standing(path) == Standing::Inside && table.find(path).is_some_and(|id| !table.row(id).existence);
    let mut noted = stages.noted()?;
    noted.retain(|path, _| !in_archive(path));
    if plan.is_empty() {
        // An earlier restore may have done everything, and been killed before it was on disk.
        stages.put_back(&noted)?;
        stages.finish()?;
        return Ok(plan.counts);
    }
    let restorer = Restorer {
        table,
        tree: &tree,
        leaders: &leaders,
        names: name_counts(table, selection),
        labelled,
        tick,
        plan: &plan,
        stages: &stages,
    };
    let touched = restorer.touch(noted)?;
    let done = restorer.run(source, &needed, touched.clone());
    if done.is_err() {
        // What was done so far is kept and synced; only the first error matters.
        let _ = stages.put_back(&touched).and_then(|()| stages.finish());
    }
    done.map(|()| plan.counts)
}

/// True when security labels are compared and restored: always, except for an archive of other origin that has none.
fn labelled(table: &Table, source: &Source) -> bool {
    matches!(source, Source::Indexed(_)) || table.is_labelled()
}
