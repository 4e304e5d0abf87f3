//! Faults at each place where a command changes something: counted, tried, survived. `tests/README.md` has the table.
#![cfg(target_arch = "x86_64")]

mod damage;
mod disk;
mod injector;
#[allow(dead_code, reason = "the tests of backups use all of it")]
#[path = "../backup/place.rs"]
mod place;
mod races;
#[allow(dead_code, reason = "the tests of recoveries use all of it")]
#[path = "../recovery/place.rs"]
mod small_node;
mod subjects;
mod sweep;
#[allow(dead_code, reason = "the small node needs how the agent ended")]
#[path = "../recovery/through.rs"]
mod through;
mod tools;

use anyhow::{Context, Result, ensure};

use subjects::{ON_NODES, SUBJECTS};
use sweep::{KINDS, Reach, sweep};
use tools::KINDS as TOOL_KINDS;

/// What has kinds of its own, by the word that chooses it; it returns its failures.
type OfItsOwn = (&'static str, fn(Reach) -> Result<Vec<String>>);

const OF_THEIR_OWN: [OfItsOwn; 5] = [
    ("damage", damage::of_a_backup),
    ("damage-restore", damage::of_a_restore),
    ("damage-notes", damage::of_notes_of_its_own),
    ("swaps", races::hostile),
    ("races", races::duels),
];

/// Of each kind so many places in the tests that always run.
const SAMPLE: usize = 6;

fn sample(name: &str) -> Result<()> {
    let subject = SUBJECTS.into_iter().find(|(subject, _)| *subject == name).context("no such subject")?;
    let failed = sweep(subject, &KINDS, Reach::Sample(SAMPLE), 1)?;
    ensure!(failed.is_empty(), "{} places, see above", failed.len());
    Ok(())
}

macro_rules! samples {
    ($($test:ident: $subject:literal),* $(,)?) => {$(
        #[test]
        fn $test() -> Result<()> {
            sample($subject)
        }
    )*};
}
samples! {
    an_archive_is_packed_whatever_goes_wrong: "archive-pack",
    an_archive_is_restored_whatever_goes_wrong: "archive-restore",
    etcd_is_saved_whatever_goes_wrong: "etcd-save",
    etcd_is_restored_whatever_goes_wrong: "etcd-restore",
    a_backup_is_deleted_whatever_goes_wrong: "delete",
    backups_are_pruned_whatever_goes_wrong: "prune",
    a_backup_is_exported_whatever_goes_wrong: "export",
    a_backup_is_taken_whatever_goes_wrong: "backup",
    files_are_restored_whatever_goes_wrong: "restore-files",
}

/// No test among the others, for its length: every place. `SWEEP` may name subjects and kinds, the others are left out then, and so many
/// places of each kind at most.
#[test]
#[ignore = "hours: `tests/run.sh sweep`"]
fn every_place() -> Result<()> {
    let chosen = std::env::var("SWEEP").unwrap_or_default();
    let words: Vec<&str> = chosen.split_whitespace().collect();
    let threads = std::thread::available_parallelism()?.get();
    let is_chosen = |name: &str, among: &[&str]| !among.iter().any(|name| words.contains(name)) || words.contains(&name);
    let names = [&SUBJECTS.map(|(name, _)| name)[..], &OF_THEIR_OWN.map(|(name, _)| name)].concat();
    let kinds = [&KINDS.map(|(kind, _)| kind)[..], &TOOL_KINDS.map(|(kind, _)| kind)].concat();
    let of_tools: Vec<_> = TOOL_KINDS.into_iter().filter(|(kind, _)| is_chosen(kind, &kinds)).collect();
    let of: Vec<_> = KINDS.into_iter().filter(|(kind, _)| is_chosen(kind, &kinds)).collect();
    let reach = words.iter().find_map(|word| word.parse().ok()).map_or(Reach::All, Reach::Sample);
    let mut failed = Vec::new();
    for (_, sweep) in OF_THEIR_OWN.into_iter().filter(|(name, _)| is_chosen(name, &names)) {
        failed.append(&mut sweep(reach)?);
    }
    for subject in SUBJECTS.into_iter().filter(|(name, _)| is_chosen(name, &names)) {
        if !of.is_empty() {
            failed.append(&mut sweep(subject, &of, reach, threads)?);
        }
        if !of_tools.is_empty() && ON_NODES.contains(&subject.0) {
            failed.append(&mut tools::sweep(subject, &of_tools, reach, threads)?);
        }
    }
    ensure!(failed.is_empty(), "{} places, see above", failed.len());
    Ok(())
}

/// No test: one place, as the line of a failure names it.
#[test]
#[ignore = "no test: `SWEEP_POINT='SUBJECT KIND NUMBER'` says which place"]
fn one_place() -> Result<()> {
    let point = std::env::var("SWEEP_POINT").context("SWEEP_POINT names no place")?;
    let words: Vec<&str> = point.split_whitespace().collect();
    let [subject, kind, number] = words[..] else { anyhow::bail!("SWEEP_POINT is SUBJECT KIND NUMBER, not {point}") };
    let subject = SUBJECTS.into_iter().find(|(name, _)| *name == subject).context("no such subject")?;
    let only = Reach::Only(number.parse()?);
    let failed = if let Some(kind) = TOOL_KINDS.into_iter().find(|(name, _)| *name == kind) {
        tools::sweep(subject, &[kind], only, 1)?
    } else {
        sweep(subject, &[KINDS.into_iter().find(|(name, _)| *name == kind).context("no such kind")?], only, 1)?
    };
    ensure!(failed.is_empty(), "see above");
    Ok(())
}
