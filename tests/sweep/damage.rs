//! Damage, counted: each byte of what a backup consists of, and of what the agent notes for itself, changed in two ways; and files that are cut off,
//! gone, or something else. It is found, and what is done instead is nothing, or the same as untroubled.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use recovery::backup::KUBELET;
use recovery::backup::last_run::{LastRun, NOTE};
use recovery::backup::verify;
use recovery::error::{FailureKind, exit_code, next};
use recovery::node::hold::{HOLD, KEEP_IMAGES};
use recovery::recovery::{FirstPhase, Options, ResumeOptions};
use recovery::report::Progress;
use recovery::schedule::Schedules;
use testing::node::checked;

use crate::disk::Disk;
use crate::injector::{self, Fault};
use crate::place::Sno;
use crate::small_node::Place;
use crate::subject::{State, same};
use crate::subjects::phase::state_of;
use crate::subjects::{agent, copy, empty, tree};
use crate::sweep::Reach;

/// Of larger files, not every byte is tried.
const SMALL: usize = 64 << 10;
/// So many at the beginning, at the end and in between.
const OF_LARGE: usize = 512;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// One bit of this byte is another.
    Bit(usize),
    /// This byte is another.
    Byte(usize),
    /// It ends here.
    Cut(usize),
    /// One byte comes after its end.
    Longer,
    Gone,
    Directory,
    /// A link to a file with the same content.
    Link,
    Fifo,
}

impl Damage {
    /// What stays a file of the same length.
    fn is_of_a_byte(self) -> bool {
        matches!(self, Self::Bit(_) | Self::Byte(_))
    }
}

/// Numbers that look like chance, the same each time: xorshift64.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap_or_default()
    }
}

/// What is done to a file of so many bytes, as far as the reach goes; and how much there is.
fn damages(len: usize, reach: Reach) -> (usize, Vec<Damage>) {
    let mut chance = Chance(7 + len as u64);
    let places: Vec<usize> = match reach {
        Reach::Only(at) => vec![at],
        Reach::All if len <= SMALL => (0..len).collect(),
        Reach::All => {
            let between = (0..OF_LARGE).map(|_| chance.below(len));
            (0..OF_LARGE).chain(len - OF_LARGE..len).chain(between).collect()
        }
        // The first and the last are never left out.
        Reach::Sample(most) if most < len => [0, len - 1].into_iter().chain((2..most).map(|_| chance.below(len))).collect(),
        Reach::Sample(_) => (0..len).collect(),
    };
    let bytes = places.into_iter().flat_map(|at| [Damage::Bit(at), Damage::Byte(at)]);
    let whole = [Damage::Cut(0), Damage::Cut(len / 2), Damage::Cut(len.saturating_sub(1)), Damage::Longer];
    let whole = whole.into_iter().chain([Damage::Gone, Damage::Directory, Damage::Link, Damage::Fifo]);
    (2 * len + 8, bytes.chain(whole).collect())
}

/// A file that is damaged until this is dropped.
struct Damaged<'a> {
    file: PathBuf,
    aside: PathBuf,
    damage: Damage,
    was: &'a [u8],
}

impl<'a> Damaged<'a> {
    fn new(file: &Path, aside: &Path, was: &'a [u8], damage: Damage) -> Result<Self> {
        let damaged = Self { file: file.to_owned(), aside: aside.join("aside"), damage, was };
        let put = |at: usize, byte: u8| File::options().write(true).open(file)?.write_all_at(&[byte], at as u64);
        match damage {
            Damage::Bit(at) => put(at, was[at] ^ (1 << (at % 8)))?,
            Damage::Byte(at) => put(at, was[at] ^ u8::try_from(1 + Chance(at as u64 + 1).below(255))?)?,
            Damage::Cut(len) => File::options().write(true).open(file)?.set_len(len as u64)?,
            Damage::Longer => put(was.len(), b'\n')?,
            Damage::Gone | Damage::Directory | Damage::Link | Damage::Fifo => {
                fs::rename(file, &damaged.aside)?;
                match damage {
                    Damage::Directory => fs::create_dir(file)?,
                    Damage::Link => std::os::unix::fs::symlink(&damaged.aside, file)?,
                    Damage::Fifo => drop(checked(Command::new("mkfifo").arg(file))?),
                    _ => {}
                }
            }
        }
        Ok(damaged)
    }

    fn mend(&self) -> std::io::Result<()> {
        match self.damage {
            Damage::Bit(at) | Damage::Byte(at) => File::options().write(true).open(&self.file)?.write_all_at(&self.was[at..=at], at as u64),
            Damage::Cut(_) | Damage::Longer => fs::write(&self.file, self.was),
            _ => {
                fs::remove_file(&self.file).or_else(|_| fs::remove_dir(&self.file)).ok();
                fs::rename(&self.aside, &self.file)
            }
        }
    }
}

impl Drop for Damaged<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.mend() {
            eprintln!("{} is not mended: {error}", self.file.display());
        }
    }
}

/// What came of one file: printed as a line of the table when it is dropped.
struct Count {
    what: String,
    exist: usize,
    tried: usize,
    failed: Vec<String>,
    begun: Instant,
}

impl Count {
    fn of(what: &str, exist: usize) -> Self {
        Self { what: what.to_owned(), exist, tried: 0, failed: Vec::new(), begun: Instant::now() }
    }

    fn add(&mut self, damage: impl std::fmt::Debug, survived: Result<()>) {
        self.tried += 1;
        if let Err(error) = survived {
            let line = format!("{} {damage:?}: {error:#}", self.what);
            println!("{line}");
            self.failed.push(line);
        }
    }

    fn end(self) -> Vec<String> {
        let (tried, failed) = (self.tried, self.failed.len());
        println!("| damage | {} | {} | {tried} | {} | {:.1} |", self.what, self.exist, tried - failed, self.begun.elapsed().as_secs_f64());
        self.failed
    }
}

fn files_in(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = fs::read_dir(dir)?.map(|entry| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?))
    });
    entries.collect()
}

/// The only backup there is.
fn only_in(backups: &Path) -> Result<PathBuf> {
    Ok(fs::read_dir(backups)?.next().context("no backup")??.path())
}

/// `verify` finds it, and names the file.
fn is_found(backup: &Path, name: &str) -> Result<()> {
    let id = backup.file_name().context("no name")?.to_string_lossy();
    let report = verify::report(backup, &id, false, &Progress::hidden())?;
    let found = matches!(report.kind, Some(FailureKind::Damaged | FailureKind::Unsupported));
    ensure!(!report.good && found, "it is not found: {report:?}");
    ensure!(report.problems.iter().any(|problem| problem.contains(name)), "{name} is not named: {:?}", report.problems);
    Ok(())
}

/// What does not end is ended; 137 is no documented exit code.
fn with_a_deadline(command: &Command) -> Command {
    let mut deadline = Command::new("timeout");
    deadline.args(["-s", "KILL", "60"]).arg(command.get_program()).args(command.get_args());
    deadline
}

/// The agent ends with one of these codes, and names the file.
fn is_refused(command: &Command, codes: &[i32], name: &str) -> Result<()> {
    let output = with_a_deadline(command).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let code = output.status.code().unwrap_or(-1);
    ensure!(codes.contains(&code) && said.contains(name), "{command:?} ended with {code}: {said}");
    Ok(())
}

/// A backup with all that one has, on a node with a real etcd: `verify`, of the library for each place, and of the binary for a few.
pub(crate) fn of_a_backup(reach: Reach) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    let sno = Sno::new();
    // More than is tried whole.
    sno.place.put("/etc/large", testing::tree::noise(4, 200_000));
    let on = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(words);
        command
    };
    checked(&mut on(&["backup", "--force"]))?;
    let backup = only_in(&sno.place.dir.backups())?;
    let mut failed = Vec::new();
    for (name, was) in files_in(&backup)? {
        let (exist, damages) = damages(was.len(), reach);
        let mut count = Count::of(&format!("backup {name}"), exist);
        for (number, damage) in damages.into_iter().enumerate() {
            let _damaged = Damaged::new(&backup.join(&name), sno.root(), &was, damage)?;
            let by_binary = !damage.is_of_a_byte() || number % 500 == 0;
            let found =
                is_found(&backup, &name).and_then(|()| if by_binary { is_refused(&on(&["verify"]), &[64, 65], &name) } else { Ok(()) });
            count.add(damage, found);
        }
        failed.append(&mut count.end());
    }
    let mut count = Count::of("backup: one too many", 4);
    for more in ["more", ".hidden", "manifest.json.new", "etc.tar.zst~"] {
        fs::write(backup.join(more), "")?;
        count.add(more, is_found(&backup, more).and_then(|()| is_refused(&on(&["verify"]), &[65], more)));
        fs::remove_file(backup.join(more))?;
    }
    failed.append(&mut count.end());
    // What was tried is damage, and no more than that.
    checked(&mut on(&["verify"]))?;
    Ok(failed)
}

/// A node's files, with the attributes, without what the recovery directory holds.
fn node(place: &Place) -> State {
    let mut node = tree(&place.at("/"));
    // Whoever only looks takes the lock, too.
    node.retain(|path, _| !path.starts_with("var/recovery"));
    node
}

/// A backup of which a node is to be restored: the restore is refused, and the node is as it was.
pub(crate) fn of_a_restore(reach: Reach) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    let place = Place::new();
    let backup = place.dir.backups().join("b1");
    let before = node(&place);
    let mut failed = Vec::new();
    for (name, was) in files_in(&backup)? {
        let (exist, damages) = damages(was.len(), reach);
        let mut count = Count::of(&format!("restore from {name}"), exist);
        for (number, damage) in damages.into_iter().enumerate() {
            let _damaged = Damaged::new(&backup.join(&name), place.temporary.path(), &was, damage)?;
            let survived = || {
                is_found(&backup, &name)?;
                // The two verbs differ in where they begin.
                let from = if number % 2 == 0 { FirstPhase::Files } else { FirstPhase::Platform };
                let error = place.plan(Options { from, ..Options::default() }).err().context("it would be restored")?;
                ensure!([64, 65].contains(&exit_code(&error)) && format!("{error:#}").contains(&name), "{error:#}");
                if !damage.is_of_a_byte() || number % 500 == 0 {
                    let verb = if number % 2 == 0 { "restore-files" } else { "recover" };
                    is_refused(&place.agent_command(&["--yes", verb]), &[64, 65], &name)?;
                }
                // Nothing puts it back: what is looked at now and then, and at the end, is seen.
                if number % 100 == 0 { same(&before, &node(&place)).context("the node") } else { Ok(()) }
            };
            count.add(damage, survived());
        }
        same(&before, &node(&place)).with_context(|| format!("the node, after all that was done to {name}"))?;
        failed.append(&mut count.end());
    }
    ensure!(!place.dir.in_recovery() && place.calls().is_empty(), "something was begun");
    Ok(failed)
}

/// A recovery that has stopped in its middle.
struct Stopped {
    place: Place,
    before: tempfile::TempDir,
}

impl Stopped {
    fn new() -> Result<Self> {
        let place = Place::new();
        place.fail("systemctl stop containerd.service");
        ensure!(place.agent(&["--yes", "--wait", "1", "restore-files"]).code == Some(1), "it did not stop");
        let before = tempfile::tempdir()?;
        copy(place.temporary.path(), before.path())?;
        Ok(Self { place, before })
    }

    fn reset(&self) -> Result<()> {
        empty(self.place.temporary.path())?;
        copy(self.before.path(), self.place.temporary.path())
    }

    /// All there is, but for what is written by who only looks.
    fn all(&self) -> State {
        let mut all = tree(self.place.temporary.path());
        all.retain(|path, _| !["root/var/recovery/lock", "state/calls", "state/endpoint"].contains(&path.as_str()));
        all
    }

    /// What it has led to.
    fn state(&self) -> Result<State> {
        let mut state = state_of(&self.place)?;
        // Which program that is differs by who went on: the binary, or this test.
        state.remove("/var/recovery/recovery");
        Ok(state)
    }

    fn resume(&self) -> Result<()> {
        self.place.resume(&ResumeOptions::default())?.context("there is nothing to go on with").map(drop)
    }
}

/// What the agent notes for itself. The failures, one line each.
pub(crate) fn of_notes_of_its_own(reach: Reach) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    Ok([of_a_recovery(reach)?, of_notes(reach)?, of_an_unfinished_backup(reach)?].concat())
}

/// What a recovery notes for itself. Going on either is refused, with the file and the way out, and changes nothing; or it leads to what it leads to
/// untroubled.
fn of_a_recovery(reach: Reach) -> Result<Vec<String>> {
    let stopped = Stopped::new()?;
    stopped.resume()?;
    let expected = stopped.state()?;
    let mut failed = Vec::new();
    let recovery = |name: &str| format!("/var/recovery/{name}");
    for path in [recovery("progress"), recovery("undo.json"), HOLD.to_owned(), KEEP_IMAGES.to_owned()] {
        stopped.reset()?;
        let file = stopped.place.at(&path);
        let was = fs::read(&file)?;
        let (exist, damages) = damages(was.len(), reach);
        let mut count = Count::of(&path, exist);
        for damage in damages {
            let survived = || -> Result<bool> {
                let before = stopped.all();
                // Who looks is told, and never fails.
                recovery::recovery::status(&testing::session::session(&stopped.place.node, &stopped.place.dir))?;
                if let Err(error) = stopped.resume() {
                    let said = format!("{error:#}");
                    ensure!([64, 65, 75, 78].contains(&exit_code(&error)), "it ends with {}: {said}", exit_code(&error));
                    ensure!(said.contains(&path) && (next(&error).is_some() || said.contains("run the same command again")), "{said}");
                    same(&before, &stopped.all()).with_context(|| format!("after `{said}`"))?;
                    return Ok(false);
                }
                same(&expected, &stopped.state()?)?;
                Ok(true)
            };
            let went_on = {
                let _damaged = Damaged::new(&file, stopped.before.path(), &was, damage)?;
                let survived = survived();
                let went_on = survived.as_ref().copied().unwrap_or(true);
                count.add(damage, survived.map(drop));
                went_on
            };
            if went_on {
                stopped.reset()?;
            }
        }
        failed.append(&mut count.end());
    }
    Ok(failed)
}

/// What the agent notes beside the recovery directory: it is as it was written, or is said to be none.
fn of_notes(reach: Reach) -> Result<Vec<String>> {
    let place = Place::new();
    place.agent(&["schedule", "set", "nightly", "--cron", "0 3 * * *", "--keep", "3"]).expect(0, &[])?;
    // It has no etcd: a backup fails, and that is noted.
    ensure!(place.agent(&["backup", "--force"]).code != Some(0), "a backup was taken");
    let mut failed = Vec::new();
    let run = LastRun::of(&place.node)?.context("nothing is noted")?;
    let schedules = Schedules::of(&place.node)?.all;
    ensure!(schedules.len() == 1, "{schedules:?}");
    for path in [NOTE.to_owned(), "/var/lib/recovery/schedules/nightly.json".to_owned()] {
        let file = place.at(&path);
        let was = fs::read(&file)?;
        let (exist, damages) = damages(was.len(), reach);
        let mut count = Count::of(&path, exist);
        for damage in damages {
            let _damaged = Damaged::new(&file, place.temporary.path(), &was, damage)?;
            let survived = || -> Result<()> {
                if path == NOTE {
                    match LastRun::of(&place.node) {
                        Ok(None) => ensure!(damage == Damage::Gone, "it is taken for missing"),
                        Ok(Some(read)) => ensure!(damage == Damage::Link && read == run, "it is read as {read:?}"),
                        Err(error) => ensure!(format!("{error:#}").contains(&path), "{error:#}"),
                    }
                    return Ok(());
                }
                let found = Schedules::of(&place.node)?;
                match (found.all.get("nightly"), found.unreadable.get("nightly")) {
                    (None, None) => ensure!(damage == Damage::Gone, "it is taken for missing"),
                    (Some(read), None) => ensure!(damage == Damage::Link && *read == schedules["nightly"], "it is read as {read:?}"),
                    (None, Some(error)) => {
                        ensure!(format!("{error:#}").contains(&path), "{error:#}");
                        // Of one that cannot be read, all backups are kept.
                        ensure!(found.keeps().values().all(|keep| *keep == usize::MAX), "{:?}", found.keeps());
                    }
                    both => anyhow::bail!("{both:?}"),
                }
                Ok(())
            };
            count.add(damage, survived());
        }
        failed.append(&mut count.end());
    }
    Ok(failed)
}

/// A backup that was killed in its middle: the next one is good, whatever has become of what there was.
fn of_an_unfinished_backup(reach: Reach) -> Result<Vec<String>> {
    let sno = Sno::new();
    let dir = sno.place.dir.path();
    let backup = || {
        let mut backup = agent(["--root"]);
        backup.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(["backup", "--force"]);
        backup
    };
    let untroubled = injector::run(&mut backup(), None)?;
    let snapshot = untroubled.points.iter().position(|point| point.path.contains("etcd-snapshot")).context("no snapshot is taken")?;
    empty(dir)?;
    injector::run(&mut backup(), Some((snapshot + 1, Fault::Kill)))?;
    let before = tempfile::tempdir()?;
    copy(dir, before.path())?;
    let partial = only_in(&sno.place.dir.backups())?;
    let mut failed = Vec::new();
    // The tests that always run take what is continued, and what says so.
    let is_chosen = |name: &str| matches!(reach, Reach::All) || [KUBELET, "journal"].contains(&name);
    for (name, was) in files_in(&partial)?.into_iter().filter(|(name, _)| is_chosen(name)) {
        // Each takes a whole backup: not more than some hundred.
        let (exist, mut damages) = damages(was.len(), if let Reach::All = reach { Reach::Sample(20) } else { Reach::Sample(2) });
        if let Reach::Sample(_) = reach {
            damages.retain(|damage| matches!(damage, Damage::Bit(_) | Damage::Link | Damage::Fifo));
        }
        let mut count = Count::of(&format!("unfinished backup {name}"), exist);
        for damage in damages {
            let aside = tempfile::tempdir()?;
            // What is done to it is not mended: the next backup does away with it.
            std::mem::forget(Damaged::new(&partial.join(&name), aside.path(), &was, damage)?);
            let output = with_a_deadline(&backup()).output()?;
            let survived = || -> Result<()> {
                ensure!(output.status.code() == Some(0), "{output:?}");
                let taken = only_in(&sno.place.dir.backups())?;
                ensure!(fs::read_dir(sno.place.dir.backups())?.count() == 1, "something is left");
                let id = taken.file_name().context("no name")?.to_string_lossy();
                let report = verify::report(&taken, &id, true, &Progress::hidden())?;
                ensure!(report.good, "{report:?}");
                Ok(())
            };
            count.add(damage, survived());
            empty(dir)?;
            copy(before.path(), dir)?;
        }
        failed.append(&mut count.end());
    }
    Ok(failed)
}

fn none(failed: &[String]) -> Result<()> {
    ensure!(failed.is_empty(), "{} failed, see above", failed.len());
    Ok(())
}

#[test]
fn damage_to_a_backup_is_found_wherever_it_is() -> Result<()> {
    none(&[of_a_backup(Reach::Sample(8))?, of_a_restore(Reach::Sample(6))?].concat())
}

#[test]
fn damage_to_what_the_agent_notes_is_found_or_leads_to_the_same() -> Result<()> {
    let _disk = Disk::make()?;
    none(&[of_a_recovery(Reach::Sample(2))?, of_notes(Reach::Sample(20))?].concat())
}

#[test]
fn whatever_becomes_of_an_unfinished_backup_the_next_is_good() -> Result<()> {
    let _disk = Disk::make()?;
    none(&of_an_unfinished_backup(Reach::Sample(2))?)
}
