//! A command, the log of what it writes to a disk in a virtual machine, and the power cut at the moments in it: after each the file system comes
//! up, what was there before is intact, and the same command again leads to what it leads to untroubled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use real_node::command::{Limit, checked};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use testing::cargo::in_checkout;

use crate::disk::Disk;
use crate::guest::{self, Kind, MARKS, Work};
use crate::log::{Chance, Cut, Fate, Log, Replay, SECTOR};
use crate::machine::{Drive, Machine};
use crate::subject::{Named, State, Subject, again, same};

/// Of a file system.
const SIZE: u64 = 600 << 20;
/// For all disks and logs together, of which most is never written.
const ROOM: u64 = 64 << 30;
/// So many disks are kept of a run.
const KEPT: usize = 3;
const LIMIT: Limit = Limit::of(60);
/// For a command in the machine, which emulates the processor.
const SLOW: Limit = Limit::of(300);

/// A subject, and disks with it as it is before the command.
pub(crate) struct Bench {
    name: &'static str,
    subject: Box<dyn Subject>,
    sides: Vec<Side>,
    room: PathBuf,
    disk: Disk,
    _below: tempfile::TempDir,
}

/// One file system.
struct Side {
    kind: Kind,
    /// The disk before.
    before: PathBuf,
    /// What the command leads to there, untroubled.
    expected: State,
}

/// The log of one run.
pub(crate) struct Recorded {
    pub(crate) side: usize,
    /// It is no control.
    does_sync: bool,
    pub(crate) log: Log,
    /// When the command had begun, and when it had ended well: so many entries.
    pub(crate) begun: usize,
    pub(crate) ended: usize,
    pub(crate) took: Duration,
}

/// What came of some cuts.
#[derive(Debug, Default)]
pub(crate) struct Count {
    pub(crate) tried: usize,
    /// A line for each that was not survived.
    pub(crate) lost: Vec<String>,
}

impl Count {
    pub(crate) fn survived(&self) -> usize {
        self.tried - self.lost.len()
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        self.tried += other.tried;
        self.lost.append(&mut other.lost);
    }
}

impl Bench {
    pub(crate) fn new((name, make): Named) -> Result<Self> {
        let below = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        // A mount namespace of this thread's own, with a temporary directory in it: the subject is made there, and what it has running stays there.
        let disk = Disk::make()?;
        let (memory, room) = (below.path().join("memory"), below.path().join("room"));
        fs::create_dir(&memory)?;
        checked(Command::new("mount").args(["-t", "tmpfs", "-o", "size=3g", "none"]).arg(&memory), LIMIT)?;
        // An XFS, on which the copy of a disk costs nothing.
        real_node::disk::make(&memory.join("xfs"), ROOM, "room")?;
        real_node::disk::mount(&memory.join("xfs"), &room)?;
        fs::create_dir(room.join("at"))?;
        let subject = make(disk.path())?;
        // Another one, in which disks are mounted over that directory.
        real_node::disk::own_mounts()?;
        let mut bench = Self { name, subject, sides: Vec::new(), room, disk, _below: below };
        for kind in [Kind::Xfs, Kind::Ext4] {
            let side = bench.side(kind).with_context(|| format!("making the {kind}"))?;
            bench.sides.push(side);
        }
        Ok(bench)
    }

    fn side(&mut self, kind: Kind) -> Result<Side> {
        let (before, after) = (self.room.join(format!("{kind}.before")), self.room.join("after"));
        File::create_new(&before)?.set_len(SIZE + MARKS * SECTOR)?;
        let mut make = Command::new(format!("mkfs.{kind}"));
        match kind {
            Kind::Xfs => make.args(["-q", "-d", &format!("size={SIZE}")]).arg(&before),
            Kind::Ext4 => make.args(["-q", "-b", "4096", "-E", "lazy_itable_init=1"]).arg(&before).arg((SIZE / 4096).to_string()),
        };
        checked(&mut make, LIMIT)?;
        on(kind, &before, &self.room.join("at"), |at| {
            let all = std::env::temp_dir().join(".");
            checked(Command::new("cp").args(["-a", "-x", "--sparse=always"]).arg(all).arg(at), LIMIT).map(drop)
        })?;
        let temporary = std::env::temp_dir();
        mount(kind, &before, &temporary)?;
        let prepared = self.subject.prepare();
        // That is what it is prepared from, and only makes each copy longer.
        let needless = self.disk.path().join("before");
        let removed = if needless.exists() { fs::remove_dir_all(&needless) } else { Ok(()) };
        off(&temporary)?;
        prepared?;
        removed?;
        let mut expected = State::new();
        // What is not the same twice would not be noticed after a cut.
        for first in [true, false] {
            copy(&before, &after)?;
            let state = on(kind, &after, &temporary, |_| {
                checked(&mut self.subject.command(), LIMIT)?;
                self.subject.state()
            })?;
            if first {
                expected = state;
            } else {
                same(&expected, &state).context("untroubled, a second time")?;
            }
        }
        Ok(Side { kind, before, expected })
    }

    pub(crate) fn kind(&self, side: usize) -> Kind {
        self.sides[side].kind
    }

    /// Turns a machine on that does the command once on each of these sides, or does it without syncing.
    fn machine(&self, works: Vec<(usize, PathBuf, Option<PathBuf>, bool)>) -> Result<Machine> {
        let works = works.into_iter().map(|(side, image, log, does_not_sync)| Work {
            drive: Drive { image, log },
            kind: self.sides[side].kind,
            does_not_sync,
        });
        guest::start(&self.room.join("machine"), &self.subject.command(), self.subject.port(), works.collect())
    }

    /// The logs of the command in the machine: on each side, first as it is, then without syncing.
    pub(crate) fn record(&self) -> Result<[Vec<Recorded>; 2]> {
        let runs: Vec<(usize, bool)> =
            [false, true].iter().flat_map(|control| (0..self.sides.len()).map(|side| (side, *control))).collect();
        let name = |side: usize, control: bool, what: &str| self.room.join(format!("{}.{control}.{what}", self.sides[side].kind));
        let mut works = Vec::new();
        for &(side, control) in &runs {
            let (image, log) = (name(side, control, "disk"), name(side, control, "log"));
            copy(&self.sides[side].before, &image)?;
            works.push((side, image, Some(log), control));
        }
        let mut machine = self.machine(works)?;
        let mut all = [Vec::new(), Vec::new()];
        for (letter, (side, control)) in ('a'..).zip(runs) {
            machine.wait_for(&format!("begins {letter}"), SLOW)?;
            let begun = Instant::now();
            machine.wait_for(&format!("ended {letter} 0"), SLOW)?;
            let took = begun.elapsed();
            let log = Log::read(&name(side, control, "log"))?;
            let marks = SIZE + (MARKS - 2) * SECTOR;
            let (begun, ended) = (log.write_to(marks)? + 1, log.write_to(marks + SECTOR)? + 1);
            all[usize::from(control)].push(Recorded { side, does_sync: !control, log, begun, ended, took });
        }
        machine.wait_off(SLOW)?;
        for letter in [false, true] {
            for side in 0..self.sides.len() {
                fs::remove_file(name(side, letter, "disk"))?;
            }
        }
        Ok(all)
    }

    /// Cuts the power in a run at each of these moments.
    pub(crate) fn cut(&self, recorded: &Recorded, mut cuts: Vec<Cut>) -> Result<Count> {
        let side = &self.sides[recorded.side];
        let (flushed, image) = (self.room.join("flushed"), self.room.join("cut"));
        copy(&side.before, &flushed)?;
        let mut replay = Replay::new(&recorded.log, &flushed, side.kind.whole())?;
        cuts.sort_by_key(|cut| cut.after);
        let mut count = Count::default();
        for cut in cuts {
            replay.cut(cut, &image)?;
            count.tried += 1;
            if let Err(error) = self.survives(side, &image, cut.after >= recorded.ended) {
                let line = format!("{} {} {cut}", self.name, side.kind);
                let kept = if recorded.does_sync && count.lost.len() < KEPT { keep(&mut replay, cut, &line)? } else { String::new() };
                count.lost.push(format!("{line}: {error:#}{kept}"));
            }
        }
        Ok(count)
    }

    fn survives(&self, side: &Side, image: &Path, has_ended: bool) -> Result<()> {
        on(side.kind, image, &std::env::temp_dir(), |_| {
            if has_ended {
                same(&side.expected, &self.subject.state().context("it had ended")?).context("it had ended")?;
            }
            again(&*self.subject, &side.expected)
        })
    }

    /// Kills the machine at a moment in the command, boots another one with what is on the disk, and does the command there.
    pub(crate) fn kill(&self, recorded: &Recorded, seed: u64) -> Result<Count> {
        let side = &self.sides[recorded.side];
        let (image, log, cut) = (self.room.join("killed"), self.room.join("killed.log"), self.room.join("cut"));
        copy(&side.before, &image)?;
        let mut machine = self.machine(vec![(recorded.side, image.clone(), Some(log.clone()), false)])?;
        machine.wait_for("begins a", SLOW)?;
        let moment = recorded.took * Chance::of(seed).below(1000) / 1000;
        std::thread::sleep(moment);
        machine.cut_power()?;
        let left = Log::read(&log)?;
        let after = Cut { after: left.len(), fate: Fate::Torn(seed) };
        copy(&side.before, &image)?;
        Replay::new(&left, &image, side.kind.whole())?.cut(after, &cut)?;
        fs::remove_file(&log)?;
        let survives = || -> Result<()> {
            let mut machine = self.machine(vec![(recorded.side, cut.clone(), None, false)])?;
            machine.wait_for("ended a 0", SLOW)?;
            machine.wait_off(SLOW)?;
            on(side.kind, &cut, &std::env::temp_dir(), |_| same(&side.expected, &self.subject.state()?))
        };
        let lost =
            survives().err().map(|error| format!("{} {} killed {} ms on, {after}: {error:#}", self.name, side.kind, moment.as_millis()));
        Ok(Count { tried: 1, lost: lost.into_iter().collect() })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The directories below them are removed then.
        for mounted in [self.room.clone(), self.room.with_file_name("memory")] {
            Command::new("umount").arg("-l").arg(mounted).status().ok();
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    checked(Command::new("cp").args(["--reflink=auto", "--sparse=always"]).args([from, to]), LIMIT).map(drop)
}

fn mount(kind: Kind, image: &Path, at: &Path) -> Result<()> {
    let options = if kind == Kind::Xfs { "loop,nouuid" } else { "loop" };
    checked(Command::new("mount").args(["-t", &kind.to_string(), "-o", options]).args([image, at]), LIMIT).map(drop)
}

fn off(at: &Path) -> Result<()> {
    // A process that another thread has just started holds this namespace until it has one of its own.
    let busy = || match unmount(at, UnmountFlags::empty()) {
        Err(Errno::BUSY) => Ok(None),
        unmounted => unmounted.map(Some).context("unmounting a disk"),
    };
    LIMIT.wait("the disk to be free", busy, || "something still has a file of it open".to_owned())
}

/// Does something to a disk while it is mounted.
fn on<T>(kind: Kind, image: &Path, at: &Path, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    mount(kind, image, at)?;
    let done = work(at);
    let off = off(at);
    done.and_then(|done| off.map(|()| done))
}

/// Keeps the disk as the cut left it, for those who look into it: another run of the machine does not write the same.
fn keep(replay: &mut Replay<'_>, cut: Cut, line: &str) -> Result<String> {
    let dir = in_checkout("target/virtual/lost");
    fs::create_dir_all(&dir)?;
    let image = dir.join(line.replace(' ', "-"));
    replay.cut(cut, &image)?;
    Ok(format!(" (the disk is {})", image.display()))
}
