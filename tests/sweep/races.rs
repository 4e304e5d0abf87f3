//! Races, counted. Somebody swaps directories under the hands of a command, at each place where it opens or changes something: nothing outside is written,
//! removed or read. And two commands at once, one of them a little later each time: each ends as is documented, and what they say is true.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use recovery::archive::{Archive, Extra, Selection};
use recovery::backup::store::{self, State as Listed};
use recovery::backup::verify;
use recovery::error::{EXIT_CODES, FailureKind, kind};
use recovery::report::Progress;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use testing::node::checked;
use testing::session::session;
use testing::tree::noise;

use crate::damage::Chance;
use crate::disk::Disk;
use crate::injector::{self, Fault};
use crate::place::{Place as Backups, Sno};
use crate::small_node::{Place, TOOL};
use crate::subjects::{agent, copy, empty, remove, tree};
use crate::sweep::{Reach, State, same};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What all files outside hold, and no archive may.
const SECRET: &str = "nobody is to read this, and nobody to write it";
/// How many races of two commands there are in the long run.
const ROUNDS: usize = 200;

/// What somebody does to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swap {
    /// It becomes a link to one outside.
    Link,
    /// Another one is mounted over it.
    Mount,
    /// It is moved out of the tree.
    Move,
}

const SWAPS: [Swap; 3] = [Swap::Link, Swap::Mount, Swap::Move];

/// What is attacked: all directories so deep below the root at the moment.
struct Attack<'a> {
    root: &'a Path,
    outside: &'a Path,
    aside: &'a Path,
    depth: usize,
    spares: &'static str,
}

impl Attack<'_> {
    fn directories(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in walkdir::WalkDir::new(self.root).min_depth(self.depth).max_depth(self.depth) {
            // It is being changed.
            let Ok(entry) = entry else { continue };
            if entry.file_type().is_dir() && entry.file_name() != self.spares {
                found.push(entry.into_path());
            }
        }
        found
    }

    /// Swaps them, and says how many.
    fn strike(&self, swap: Swap) -> Result<usize> {
        let directories = self.directories();
        for (number, directory) in directories.iter().enumerate() {
            let same = self.outside.join(directory.strip_prefix(self.root)?);
            let other = if same.is_dir() { same } else { self.outside.join("a") };
            let away = self.aside.join(number.to_string());
            match swap {
                Swap::Mount => mount_bind(&other, directory)?,
                Swap::Move => fs::rename(directory, away)?,
                Swap::Link => {
                    fs::rename(directory, away)?;
                    symlink(&other, directory)?;
                }
            }
        }
        Ok(directories.len())
    }

    /// Unmounts what it has mounted, wherever that is by now.
    fn end(&self) -> Result<()> {
        for mount in recovery::node::mounts::mounts()?.into_iter().rev() {
            if mount.point.starts_with(self.root) {
                unmount(&mount.point, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", mount.point.display()))?;
            }
        }
        empty(self.aside)
    }
}

/// A command that is attacked.
struct Arena {
    name: &'static str,
    root: PathBuf,
    outside: PathBuf,
    aside: PathBuf,
    /// Puts everything as it is before the command.
    prepare: Box<dyn Fn() -> Result<()>>,
    command: Box<dyn Fn() -> Command>,
    /// What must be true once nobody disturbs any more.
    after: Box<dyn Fn() -> Result<()>>,
    looks: bool,
    /// What nobody swaps.
    spares: &'static str,
}

/// What came of one of them.
#[derive(Debug, Default)]
struct Met {
    exist: usize,
    tried: usize,
    /// It did not end with 0.
    refused: usize,
    /// What is outside was written, removed or read.
    outside: usize,
    failed: Vec<String>,
}

impl Arena {
    /// The command, swapped at each place as far as the reach goes; with a control, that what is outside is touched is no failure.
    fn attacked(&self, swap: Swap, depth: usize, reach: Reach) -> Result<Met> {
        let attack = Attack { root: &self.root, outside: &self.outside, aside: &self.aside, depth, spares: self.spares };
        (self.prepare)().context("preparing it")?;
        let untroubled = injector::run_counting(&mut (self.command)(), None, self.looks, &mut || Ok(()))?;
        ensure!(untroubled.how == Ok(0), "{}, untroubled: {}", self.name, untroubled.said);
        let of_tree = |path: &str| Path::new(path).starts_with(&self.root);
        let all: Vec<usize> = (1..=untroubled.points.len()).filter(|number| of_tree(&untroubled.points[number - 1].path)).collect();
        let numbers: Vec<usize> = match reach {
            Reach::Sample(most) => all.iter().step_by(all.len().div_ceil(most).max(1)).copied().collect(),
            _ => all.clone(),
        };
        let before = tree(&self.outside);
        let mut met = Met { exist: all.len(), ..Met::default() };
        for number in numbers {
            (self.prepare)().context("preparing it")?;
            let mut swapped = 0;
            let mut strike = || {
                swapped = attack.strike(swap).context("swapping")?;
                Ok(())
            };
            let ended = injector::run_counting(&mut (self.command)(), Some((number, Fault::Act)), self.looks, &mut strike)?;
            attack.end().context("ending the attack")?;
            // With threads, it does not come so far each time; and there may be nothing yet to swap.
            if ended.hit.is_none() || swapped == 0 {
                continue;
            }
            met.tried += 1;
            met.refused += usize::from(ended.how != Ok(0));
            let mut judge = || -> Result<()> {
                let is_documented = ended.how.is_ok_and(|code| EXIT_CODES.iter().any(|(documented, _)| i32::from(*documented) == code));
                ensure!(is_documented, "it ended with {:?}", ended.how);
                let kept = same(&before, &tree(&self.outside)).context("outside");
                met.outside += usize::from(kept.is_err());
                kept?;
                (self.after)().context("afterwards")
            };
            if let Err(error) = judge() {
                let point = ended.hit.map(|point| point.to_string()).unwrap_or_default();
                met.failed.push(format!(
                    "{} {swap:?} {depth} at {number} ({point}): {error:#}; it said: {}",
                    self.name,
                    ended.said.trim_end()
                ));
                // What is outside is as it was for the next one.
                if met.outside > 0 {
                    make_outside(&self.outside)?;
                    break_even(&before, &self.outside)?;
                }
            }
        }
        Ok(met)
    }

    fn sweep(&self, depths: &[usize], reach: Reach) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        for swap in SWAPS {
            for depth in depths {
                let begun = Instant::now();
                let Met { exist, tried, refused, failed: mut lines, .. } = self.attacked(swap, *depth, reach)?;
                ensure!(tried > 0, "{} {swap:?} was never attacked", self.name);
                println!(
                    "| races | {} {swap:?} depth {depth} | {exist} | {tried} | {} | refused {refused} | {:.1} |",
                    self.name,
                    tried - lines.len(),
                    begun.elapsed().as_secs_f64()
                );
                lines.iter().for_each(|line| println!("{line}"));
                failed.append(&mut lines);
            }
        }
        Ok(failed)
    }
}

fn break_even(before: &State, outside: &Path) -> Result<()> {
    same(before, &tree(outside)).context("made again")
}

/// Directories that are called as those in the tree, with the same names in them, owners, modes and attributes of their own.
fn make_outside(outside: &Path) -> Result<()> {
    remove(outside)?;
    let files = ["a/file", "a/gone", "a/mode", "a/sub/file", "a/sub/gone", "doomed/x", "doomed/inner/x", "doomed/inner/deeper/x"];
    let parts = crate::place::PARTS.map(|part| format!("a/{part}"));
    for name in files.into_iter().map(str::to_owned).chain(parts) {
        let file = outside.join(name);
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(&file, SECRET)?;
        std::os::unix::fs::chown(&file, Some(12), Some(34))?;
        rustix::fs::setxattr(&file, "user.note", b"kept", rustix::fs::XattrFlags::empty())?;
        rustix::fs::chmod(&file, rustix::fs::Mode::from_raw_mode(0o4711))?;
    }
    // Directories last, for what is in them changes their times; and all the same for who makes it again.
    let mut all: Vec<_> = walkdir::WalkDir::new(outside).contents_first(true).into_iter().collect::<Result<_, _>>()?;
    all.iter_mut().for_each(|entry| testing::tree::set_mtime(entry.path(), 1_500_000_000, 7));
    Ok(())
}

fn put(dir: &Path, files: &[(&str, &str)]) -> Result<()> {
    for (name, text) in files {
        let file = dir.join(name);
        fs::create_dir_all(file.parent().context("no parent")?)?;
        fs::write(file, text)?;
    }
    Ok(())
}

/// A tree, an archive of what it was, and the directory outside.
struct Ground {
    disk: Disk,
    archive: PathBuf,
}

impl Ground {
    fn make() -> Result<Self> {
        let disk = Disk::make()?;
        let at = |name: &str| disk.path().join(name);
        for dir in ["aside", "before"] {
            fs::create_dir(at(dir))?;
        }
        make_outside(&at("outside"))?;
        let old =
            [("a/file", "old"), ("a/gone", "old"), ("a/mode", "same"), ("a/sub/file", "old"), ("a/sub/gone", "old"), ("b/file", "same")];
        put(&at("before"), &old)?;
        fs::write(at("before/a/large"), noise(3, 300_000))?;
        let archive = at("archive.tar.zst");
        recovery::archive::pack(&at("before"), &archive, &Selection::all(), None, &|_| ())?;
        // What has become of it since.
        for gone in ["a/gone", "a/sub/gone", "a/large"] {
            fs::remove_file(at("before").join(gone))?;
        }
        put(
            &at("before"),
            &[("a/file", "new"), ("a/sub/file", "new"), ("doomed/x", "1"), ("doomed/inner/x", "1"), ("doomed/inner/deeper/x", "1")],
        )?;
        rustix::fs::chmod(at("before/a/mode"), rustix::fs::Mode::from_raw_mode(0o666))?;
        rustix::fs::chmod(at("before/a/sub"), rustix::fs::Mode::from_raw_mode(0o711))?;
        Ok(Self { disk, archive })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn arena(&self, name: &'static str, looks: bool, command: Box<dyn Fn() -> Command>, after: Box<dyn Fn() -> Result<()>>) -> Arena {
        let (root, before) = (self.at("tree"), self.at("before"));
        let tree = root.clone();
        let prepare = move || {
            if tree.exists() {
                empty(&tree)?;
            } else {
                fs::create_dir(&tree)?;
            }
            copy(&before, &tree)
        };
        Arena {
            name,
            root,
            outside: self.at("outside"),
            aside: self.at("aside"),
            prepare: Box::new(prepare),
            command,
            after,
            looks,
            spares: "",
        }
    }

    fn restore(&self) -> Arena {
        let (archive, tree) = (self.archive.clone(), self.at("tree"));
        let (again, there) = (archive.clone(), tree.clone());
        let command = move || {
            let mut command = agent(["--yes", "archive", "restore"]);
            command.arg(&archive).arg(&tree);
            command
        };
        // Whatever was left there, the next restore makes the tree what the archive holds.
        let after = move || {
            let archive = Archive::open(&again)?;
            archive.restore(&there, &Selection::all(), Extra::Delete, &|_| ())?;
            let (changes, _) = archive.compare(&there, &Selection::all(), Extra::Delete, &|_| ())?;
            ensure!(changes.is_empty(), "{changes:?}");
            Ok(())
        };
        self.arena("archive restore", false, Box::new(command), Box::new(after))
    }

    fn pack(&self) -> Arena {
        let (tree, packed) = (self.at("tree"), self.at("packed.tar.zst"));
        let made = packed.clone();
        let command = move || {
            fs::remove_file(&packed).ok();
            let mut command = agent(["archive", "pack"]);
            command.arg(&tree).arg(&packed);
            command
        };
        let after = move || {
            if !made.exists() {
                return Ok(());
            }
            Archive::open(&made)?.verify(&|_| ())?;
            let content = zstd::decode_all(fs::File::open(&made)?)?;
            let secret = SECRET.as_bytes();
            ensure!(!content.windows(secret.len()).any(|window| window == secret), "what is outside was packed");
            Ok(())
        };
        self.arena("archive pack", true, Box::new(command), Box::new(after))
    }

    /// As anybody would write it: by paths.
    fn naive(&self) -> Arena {
        let tree = self.at("tree");
        let script = r#"for my $f ("a/file", "a/gone", "a/sub/file") { open F, ">", "$ARGV[0]/$f"; print F "old"; close F }
            unlink "$ARGV[0]/$_" for ("doomed/inner/deeper/x", "doomed/inner/x", "doomed/x")"#;
        let command = move || {
            let mut command = Command::new("perl");
            command.args(["-e", script]).arg(&tree);
            command
        };
        self.arena("naive", false, Box::new(command), Box::new(|| Ok(())))
    }
}

/// Ids as the agent makes them.
const DELETED_AND_KEPT: [&str; 2] = ["20260101T000000Z-4.16", "20260102T000000Z-4.17"];

/// A backup that is deleted while its directory is swapped.
fn deletion(disk: &Disk) -> Result<Arena> {
    let at = |name: &str| disk.path().join(name);
    fs::create_dir_all(at("aside"))?;
    make_outside(&at("outside"))?;
    let place = Backups::new();
    for (id, sequence) in DELETED_AND_KEPT.into_iter().zip(1..) {
        place.published(id, sequence);
    }
    let (before, dir) = (at("backups"), place.dir.path().to_owned());
    fs::create_dir(&before)?;
    copy(&dir, &before)?;
    let root = place.dir.backups();
    let node = place.root.path().to_owned();
    let delete = move || {
        let mut command = agent(["--root"]);
        command.arg(&node).args(["--yes", "delete", DELETED_AND_KEPT[0]]);
        command
    };
    let again = delete.clone();
    let prepare = move || {
        empty(&dir)?;
        copy(&before, &dir)
    };
    let after = move || {
        // All of it: with its directory.
        let place = &place;
        checked(&mut again())?;
        let left: Vec<_> = fs::read_dir(place.dir.backups())?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        ensure!(left == [DELETED_AND_KEPT[1]], "{left:?}");
        is_good(&place.dir.backups().join(DELETED_AND_KEPT[1]))
    };
    Ok(Arena {
        name: "delete",
        root,
        outside: at("outside"),
        aside: at("aside"),
        prepare: Box::new(prepare),
        command: Box::new(delete),
        after: Box::new(after),
        looks: true,
        spares: DELETED_AND_KEPT[1],
    })
}

/// Everything that somebody swaps. The failures, one line each.
pub(crate) fn hostile(reach: Reach) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    {
        let ground = Ground::make()?;
        // The attack is one: who goes by paths writes outside.
        for swap in [Swap::Link, Swap::Mount] {
            let Met { tried, outside, .. } = ground.naive().attacked(swap, 1, Reach::All)?;
            println!("| races | control, by paths, {swap:?} | {tried} | {tried} | {} | touched outside {outside} | |", tried - outside);
            ensure!(outside * 2 > tried, "{swap:?} harms nobody: {outside} of {tried}");
        }
        failed.append(&mut ground.restore().sweep(&[1, 2], reach)?);
        failed.append(&mut ground.pack().sweep(&[1, 2], reach)?);
    }
    let disk = Disk::make()?;
    failed.append(&mut deletion(&disk).context("preparing a deletion")?.sweep(&[1], reach)?);
    Ok(failed)
}

/// Looks at how the two have ended.
type Judge<'a> = dyn Fn(&Over, &Over) -> Result<()> + 'a;

/// Two commands at once.
struct Duel<'a> {
    name: &'static str,
    prepare: Box<dyn Fn() -> Result<()> + 'a>,
    first: Box<dyn Fn() -> Command + 'a>,
    second: Box<dyn Fn() -> Command + 'a>,
    /// What must be true after they have ended with these codes.
    judge: Box<Judge<'a>>,
    /// Looks on all the time: what it sees has to be true at each moment.
    look: Box<dyn Fn() -> Result<()> + Sync + 'a>,
}

/// How one of them ended.
#[derive(Debug)]
struct Over {
    code: i32,
    said: String,
}

fn begin(command: &mut Command) -> Result<Child> {
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

fn over(mut child: Child) -> Result<Over> {
    let end = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            bail!("it did not end within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(Over { code: output.status.code().context("a signal ended it")?, said })
}

impl Duel<'_> {
    fn fight(&self, rounds: usize) -> Result<Vec<String>> {
        let begun = Instant::now();
        (self.prepare)()?;
        let alone = Instant::now();
        let ended = over(begin(&mut (self.first)())?)?;
        ensure!(ended.code == 0, "{}, alone: {ended:?}", self.name);
        let longest = usize::try_from(alone.elapsed().as_micros())?;
        let (mut chance, mut ends, mut failed) = (Chance(longest as u64 | 1), BTreeMap::new(), Vec::new());
        let looks = AtomicUsize::new(0);
        for round in 0..rounds {
            (self.prepare)()?;
            let late = Duration::from_micros(chance.below(longest) as u64);
            // Both orders.
            let (one, other) = if round % 2 == 0 { (&self.first, &self.second) } else { (&self.second, &self.first) };
            let ended = AtomicBool::new(false);
            let look = &self.look;
            let fought = std::thread::scope(|scope| {
                let looking = scope.spawn(|| -> Result<()> {
                    while !ended.load(Ordering::Relaxed) {
                        look().context("who looked on")?;
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                });
                let both = || -> Result<(Over, Over)> {
                    let one = begin(&mut one())?;
                    std::thread::sleep(late);
                    let other = begin(&mut other())?;
                    Ok((over(one)?, over(other)?))
                };
                let both = both();
                ended.store(true, Ordering::Relaxed);
                looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(both)
            });
            let judged = fought.and_then(|(one, other)| {
                let (first, second) = if round % 2 == 0 { (one, other) } else { (other, one) };
                *ends.entry((first.code, second.code)).or_insert(0) += 1;
                (self.judge)(&first, &second).with_context(|| format!("{first:?} {second:?}"))
            });
            if let Err(error) = judged {
                let line = format!("{} round {round}, {} us late: {error:#}", self.name, late.as_micros());
                println!("{line}");
                failed.push(line);
            }
        }
        println!(
            "| races | {} | {rounds} | {} | ends {ends:?} | looked {} times | {:.1} |",
            self.name,
            rounds - failed.len(),
            looks.load(Ordering::Relaxed),
            begun.elapsed().as_secs_f64()
        );
        Ok(failed)
    }
}

fn is_good(backup: &Path) -> Result<()> {
    let id = backup.file_name().context("no name")?.to_string_lossy();
    let report = verify::report(backup, &id, false, &Progress::hidden())?;
    ensure!(report.good, "{report:?}");
    Ok(())
}

/// Each ended with one of these codes, and who had to give way says to whom.
fn ended_with(over: &Over, codes: &[i32]) -> Result<()> {
    ensure!(codes.contains(&over.code), "it ended with {}: {}", over.code, over.said);
    ensure!(over.code != 75 || over.said.contains("is locked by") || over.said.contains("in progress"), "{}", over.said);
    Ok(())
}

fn two_backups(rounds: usize) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    let sno = Sno::new();
    // It takes longer than the other waits for the lock.
    let crictl = fs::read_to_string(sno.root().join("tools/text"))?;
    fs::write(sno.root().join("tools/slow"), crictl.replacen("#!/bin/sh\n", "#!/bin/sh\nsleep 0.7\n", 1))?;
    checked(Command::new("install").args(["-m", "755", "slow", "crictl"]).current_dir(sno.root().join("tools")))?;
    let backup = || {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(sno.root().join("tools")).args(["backup", "--force", "--keep", "2"]);
        command
    };
    checked(&mut backup())?;
    let dir = &sno.place.dir;
    let duel = Duel {
        name: "two backups",
        prepare: Box::new(|| Ok(())),
        first: Box::new(backup),
        second: Box::new(backup),
        judge: Box::new(|first, second| {
            [first, second].into_iter().try_for_each(|over| ended_with(over, &[0, 75]))?;
            ensure!(first.code == 0 || second.code == 0, "neither took one");
            let mut ids = Vec::new();
            for entry in fs::read_dir(dir.backups())? {
                is_good(&entry?.path())?;
                ids.push(());
            }
            ensure!(ids.len() == 2, "{} backups", ids.len());
            Ok(())
        }),
        look: Box::new(|| {
            let session = session(&sno.place.node, dir);
            let listed = store::list(&session, &kube::core::Selector::default())?;
            ensure!(listed.iter().any(|line| line.state == Listed::Complete), "no backup is complete: {listed:?}");
            ensure!(listed.iter().all(|line| matches!(line.state, Listed::Complete | Listed::Partial)), "{listed:?}");
            ensure!(recovery::recovery::status(&session)?.run.is_none(), "a recovery is in progress");
            match store::verify_chosen(&session, None, false) {
                Ok(report) => ensure!(report.good, "{report:?}"),
                Err(error) => ensure!(kind(&error) == FailureKind::Busy, "{error:#}"),
            }
            Ok(())
        }),
    };
    duel.fight(rounds)
}

/// The backup that is restored is deleted: one of the two gives way, and nothing is half done.
fn delete_with_restore(rounds: usize) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    let place = Place::new();
    place.back_up("b2", 2);
    let before = tempfile::tempdir()?;
    copy(place.temporary.path(), before.path())?;
    let node = || {
        let mut node = tree(&place.at("etc"));
        node.extend(tree(&place.at("usr")).into_iter().map(|(path, facts)| (format!("usr/{path}"), facts)));
        node
    };
    let untouched = node();
    let duel = Duel {
        name: "restore-files with delete of its backup",
        prepare: Box::new(|| {
            empty(place.temporary.path())?;
            copy(before.path(), place.temporary.path())
        }),
        first: Box::new(|| place.agent_command(&["--yes", "--wait", "1", "restore-files", "--backup", "b1"])),
        second: Box::new(|| place.agent_command(&["--yes", "delete", "b1"])),
        judge: Box::new(|restore, delete| {
            ended_with(restore, &[0, 75, 78])?;
            ended_with(delete, &[0, 75])?;
            ensure!((restore.code == 0) != (delete.code == 0), "both or neither");
            if restore.code == 0 {
                is_good(&place.dir.backups().join("b1"))?;
                ensure!(place.dir.in_recovery() && place.read("/etc/site/settings") == "before", "nothing is restored");
            } else {
                ensure!(!place.dir.in_recovery() && !place.dir.backups().join("b1").exists(), "it is half done");
                same(&untouched, &node())?;
            }
            is_good(&place.dir.backups().join("b2"))
        }),
        look: Box::new(|| {
            let session = session(&place.node, &place.dir);
            let listed = store::list(&session, &kube::core::Selector::default())?;
            ensure!(
                listed
                    .iter()
                    .all(|line| line.state == Listed::OtherNode || line.state == Listed::Complete || line.state == Listed::Expired),
                "{listed:?}"
            );
            ensure!(listed.iter().any(|line| line.id == "b2"), "b2 is gone: {listed:?}");
            ensure!(recovery::recovery::status(&session)?.unreadable.is_none(), "its journal cannot be read");
            Ok(())
        }),
    };
    duel.fight(rounds)
}

/// A backup while a recovery begins, and the other way round.
fn backup_with_recovery(rounds: usize) -> Result<Vec<String>> {
    let _disk = Disk::make()?;
    let sno = Sno::new();
    let at = |path: &str| sno.root().join(path);
    symlink(TOOL, at("tools/systemctl"))?;
    fs::create_dir(at("state"))?;
    fs::write(at("state/kubelet.service"), "active")?;
    fs::write(at("state/crio.service"), "active")?;
    let on = |words: &[&str]| {
        let mut command = agent(["--root"]);
        command.arg(sno.root()).arg("--tools").arg(at("tools")).args(words);
        command
    };
    checked(&mut on(&["backup", "--force"]))?;
    let kept = ["etc", "var/usrlocal", "var/opt", "var/lib/kubelet", "var/lib/recovery", "var/recovery", "state"];
    let before = tempfile::tempdir()?;
    for dir in kept {
        fs::create_dir_all(before.path().join(dir))?;
        copy(&at(dir), &before.path().join(dir))?;
    }
    let dir = &sno.place.dir;
    let duel = Duel {
        name: "backup with restore-files",
        prepare: Box::new(|| {
            for dir in kept {
                empty(&at(dir))?;
                copy(&before.path().join(dir), &at(dir))?;
            }
            Ok(())
        }),
        first: Box::new(|| on(&["--yes", "--wait", "1", "restore-files"])),
        second: Box::new(|| on(&["backup", "--force", "--keep", "2"])),
        judge: Box::new(|restore, backup| {
            [restore, backup].into_iter().try_for_each(|over| ended_with(over, &[0, 75]))?;
            ensure!(restore.code == 0 || backup.code == 0, "neither");
            ensure!(dir.in_recovery() == (restore.code == 0), "a recovery is in progress, or is not");
            let mut count = 0;
            for entry in fs::read_dir(dir.backups())? {
                is_good(&entry?.path())?;
                count += 1;
            }
            ensure!(count == 1 + usize::from(backup.code == 0), "{count} backups");
            Ok(())
        }),
        look: Box::new(|| {
            let session = session(&sno.place.node, dir);
            ensure!(recovery::recovery::status(&session)?.unreadable.is_none(), "its journal cannot be read");
            let listed = store::list(&session, &kube::core::Selector::default())?;
            ensure!(listed.iter().all(|line| !matches!(line.state, Listed::Damaged | Listed::Unsupported)), "{listed:?}");
            Ok(())
        }),
    };
    duel.fight(rounds)
}

/// Two commands at once, in pairs. The failures, one line each.
pub(crate) fn duels(reach: Reach) -> Result<Vec<String>> {
    let rounds = if let Reach::Sample(most) = reach { most } else { ROUNDS };
    Ok([two_backups(rounds)?, delete_with_restore(rounds)?, backup_with_recovery(rounds)?].concat())
}

fn none(failed: &[String]) -> Result<()> {
    ensure!(failed.is_empty(), "{} failed, see above", failed.len());
    Ok(())
}

#[test]
fn nothing_outside_is_touched_whoever_swaps_directories() -> Result<()> {
    none(&hostile(Reach::Sample(4))?)
}

#[test]
fn two_backups_at_once_are_good_or_say_who_is_in_the_way() -> Result<()> {
    none(&two_backups(4)?)
}

#[test]
fn a_backup_is_not_deleted_while_it_is_restored() -> Result<()> {
    none(&delete_with_restore(4)?)
}

#[test]
fn no_backup_is_taken_while_a_recovery_goes_on() -> Result<()> {
    none(&backup_with_recovery(4)?)
}
