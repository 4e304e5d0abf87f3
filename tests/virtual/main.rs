//! Power cuts, in a virtual machine: what a disk's cache had not yet kept is lost; and SELinux, which is enforcing there (`selinux.rs`). `tests/README.md` has the
//! tables.
#![cfg(target_arch = "x86_64")]

mod bench;
#[path = "../sweep/disk.rs"]
mod disk;
mod guest;
#[allow(dead_code, reason = "the sweep uses all of it")]
#[path = "../sweep/injector.rs"]
mod injector;
mod log;
mod machine;
#[allow(dead_code, reason = "the tests of backups use all of it")]
#[path = "../backup/place.rs"]
mod place;
mod replace;
mod selinux;
#[allow(dead_code, reason = "the tests of recoveries use all of it")]
#[path = "../recovery/place.rs"]
mod small_node;
#[allow(dead_code, reason = "the sweep uses all of it")]
#[path = "../sweep/subject.rs"]
mod subject;
#[allow(dead_code, reason = "the sweep uses all of it")]
#[path = "../sweep/subjects/mod.rs"]
mod subjects;
#[allow(dead_code, reason = "the small node needs how the agent ended")]
#[path = "../recovery/through.rs"]
mod through;
mod unsynced;

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use bench::{Bench, Count, Recorded};
use log::{Chance, Cut, Fate};
use subject::Named;
use subjects::SUBJECTS;

/// Part of the way of a command: its name, and what is in the first write of it, if it does not begin with the command.
type Stretch = (&'static str, Option<&'static [u8]>);

/// The end of a backup, from its sums on: name and directory become those of a backup, and the oldest one is removed.
const BACKUP: [Stretch; 2] = [("backup", None), ("publish", Some(b"  manifest.json\n"))];

/// How much is tried on each file system.
#[derive(Debug, Clone, Copy)]
struct Reach {
    /// Of each stretch.
    cuts: u32,
    /// Of the control.
    controls: u32,
    kills: u64,
}

/// What always runs.
const SAMPLE: Reach = Reach { cuts: 10, controls: 4, kills: 1 };

/// So many cuts: all along the way, the last at its end; what was not flushed lost, kept or torn in turn.
fn cuts(recorded: &Recorded, from: usize, count: u32) -> Vec<Cut> {
    let mut chance = Chance::of(u64::from(count));
    let cut = |n: u32| {
        // Somewhere in its part of the way, in thousandths.
        let at = (n * 1000 + chance.below(1000)) as usize;
        let after = from + (recorded.ended - from) * at / (count as usize * 1000);
        Cut { after, fate: [Fate::Lost, Fate::Kept, Fate::Torn(u64::from(n))][n as usize % 3] }
    };
    let end = Cut { after: recorded.ended, fate: Fate::Lost };
    (0..count - 1).map(cut).chain([end]).collect()
}

/// Tries a command, prints what came of it, and is an error unless each cut was survived, and not each of those without syncing.
fn power_cuts(named: Named, stretches: &[Stretch], reach: Reach) -> Result<()> {
    let bench = Bench::new(named)?;
    let begun = Instant::now();
    let [runs, controls] = bench.record()?;
    let mut all = Count::default();
    for run in &runs {
        for (stretch, first) in stretches {
            let from = first.map_or(Ok(run.begun), |first| run.log.first_with(run.begun, first))?;
            let count = bench.cut(run, cuts(run, from, reach.cuts))?;
            println!("| {stretch} | {} | {} | {} | {} |", bench.kind(run.side), run.ended - from, count.tried, count.survived());
            all.add(count);
        }
    }
    for control in &controls {
        let count = bench.cut(control, cuts(control, control.begun, reach.controls))?;
        let (kind, exist) = (bench.kind(control.side), control.ended - control.begun);
        println!("| {}, control | {kind} | {exist} | {} | {} |", named.0, count.tried, count.survived());
        ensure!(!count.lost.is_empty(), "{} on {kind}: without syncing nothing is lost, so this shows nothing", named.0);
    }
    for run in &runs {
        let mut count = Count::default();
        for number in 0..reach.kills {
            count.add(bench.kill(run, number)?);
        }
        println!("| {}, machine killed | {} | | {} | {} |", named.0, bench.kind(run.side), count.tried, count.survived());
        all.add(count);
    }
    println!("{}: {} s", named.0, begun.elapsed().as_secs());
    ensure!(all.lost.is_empty(), "{} of {} cuts were not survived:\n{}", all.lost.len(), all.tried, all.lost.join("\n"));
    Ok(())
}

/// A command of the sweep's, by its name.
fn named(name: &str) -> Result<Named> {
    SUBJECTS.into_iter().find(|(subject, _)| *subject == name).context("no such subject")
}

#[test]
fn a_backup_and_its_publishing_survive_power_cuts() -> Result<()> {
    power_cuts(named("backup")?, &BACKUP, SAMPLE)
}

#[test]
fn a_restore_survives_power_cuts() -> Result<()> {
    power_cuts(named("archive-restore")?, &[("restore", None)], SAMPLE)
}

#[test]
fn the_replacing_of_etcd_survives_power_cuts() -> Result<()> {
    power_cuts(("etcd-replace", replace::replace), &[("etcd-replace", None)], SAMPLE)
}

/// No test among the others, for its length. `POWER` may name commands, the others are left out then, and say how many cuts are tried.
#[test]
#[ignore = "half an hour: `tests/run.sh power`"]
fn many_power_cuts() -> Result<()> {
    let chosen = std::env::var("POWER").unwrap_or_default();
    let words: Vec<&str> = chosen.split_whitespace().collect();
    let cuts = words.iter().find_map(|word| word.parse().ok()).unwrap_or(200) / 2;
    let reach = Reach { cuts, controls: 20, kills: 3 };
    let all: [(Named, &[Stretch]); 3] = [
        (named("backup")?, &BACKUP),
        (named("archive-restore")?, &[("restore", None)]),
        (("etcd-replace", replace::replace), &[("etcd-replace", None)]),
    ];
    let is_chosen = |name: &str| !all.iter().any(|((name, _), _)| words.contains(name)) || words.contains(&name);
    let mut failed = Vec::new();
    for (named, stretches) in all.iter().filter(|((name, _), _)| is_chosen(name)) {
        failed.extend(power_cuts(*named, stretches, reach).err().map(|error| format!("{error:#}")));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}
