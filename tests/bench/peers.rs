//! `cargo bench --bench peers`: the agent beside the tools that people use for the same work, on the same tree, in one run.
//!
//! Needs tar, zstd and rsync. `-- --quick` uses a tree of a tenth; `-- --dir DIR` chooses the disk (default: the system's temporary
//! directory); `-- --runs N`. Each run measures all sides one after the other, and medians are compared. Everything is synced.

mod sno;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use recovery::archive::{Archive, Extra, Selection, pack};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == "child") {
        return child(&args[1..]);
    }
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).cloned();
    let quick = args.iter().any(|arg| arg == "--quick");
    let dir = value("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let runs = value("--runs").map_or(Ok(if quick { 3 } else { 7 }), |runs| runs.parse()).context("reading --runs")?;
    let scratch = tempfile::tempdir_in(dir)?;
    let bench = Bench { dir: scratch.path().to_owned(), runs };
    println!("making the tree …");
    // By another process: what this one has in memory counts as its children's.
    let mut make = bench.own("make", &["live"])?;
    ensure!(wait(make.arg(if quick { "10" } else { "1" }))?.0.success(), "the tree could not be made");
    run(bench.shell("cp -a live copy"))?;
    println!("\n{runs} runs of each, on {}\n", machine()?);
    println!("| work | recovery, s | peer | its time, s | ratio | goal | peak memory, MiB |\n|---|---|---|---|---|---|---|");
    bench.backups()?;
    bench.restores()?;
    bench.second_backup()
}

/// The agent's side of each measurement: this program again, as a process of its own.
fn child(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let path = Path::new;
    match words.as_slice() {
        ["make", tree, share] => sno::make(path(tree), share.parse()?),
        ["pack", tree, file] => pack(path(tree), path(file), &Selection::all(), None, &|_| ()).map(drop),
        ["pack-without-etcd", tree, file, previous @ ..] => {
            let selection = Selection::all().except([sno::ETCD])?;
            pack(path(tree), path(file), &selection, previous.first().map(Path::new), &|_| ()).map(drop)
        }
        ["restore", file, tree] => Archive::open(path(file))?.restore(path(tree), &Selection::all(), Extra::Delete, &|_| ()).map(drop),
        other => bail!("unknown work {other:?}"),
    }
}

struct Bench {
    dir: PathBuf,
    runs: u64,
}

/// What one side of a measurement took.
#[derive(Default)]
struct Side {
    times: Vec<Duration>,
    /// Most resident memory of one process, KiB.
    memory: i64,
}

impl Side {
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
    }

    /// Runs it, after everything that was written before is on disk: nobody pays for another's work.
    fn measure(&mut self, mut command: Command) -> Result<()> {
        run(Command::new("sync"))?;
        let begin = Instant::now();
        let (status, memory) = wait(&mut command)?;
        self.times.push(begin.elapsed());
        self.memory = self.memory.max(memory);
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn own(&self, work: &str, paths: &[&str]) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("child").arg(work).args(paths.iter().map(|name| self.path(name)));
        Ok(command)
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).current_dir(&self.dir);
        command
    }

    fn backups(&self) -> Result<()> {
        let (mut own, mut tar, mut cp) = (Side::default(), Side::default(), Side::default());
        for _ in 0..self.runs {
            run(self.shell("rm -rf own.tar.zst tar.tar.zst cp"))?;
            own.measure(self.own("pack", &["live", "own.tar.zst"])?)?;
            tar.measure(self.shell("tar --xattrs --acls -C live -cf - . | zstd -q -1 -T0 > tar.tar.zst; sync tar.tar.zst"))?;
            cp.measure(self.shell("cp -Ra live cp; sync -f cp"))?;
        }
        row("backup, hashed and read back", "`tar \\| zstd -1 -T0`", &own, &tar, "≤ 1.0");
        row("the same", "`cp -Ra`", &own, &cp, "≤ 1.0");
        let size = |name: &str| -> Result<u64> { Ok(fs::metadata(self.path(name))?.len()) };
        let own = size("own.tar.zst")?;
        for (peer, bytes, goal) in [("`tar \\| zstd`", size("tar.tar.zst")?, ""), ("`cp`", usage(&self.path("cp"))?, "≤ 0.6")] {
            println!("| bytes of it | {} MB | {peer} | {} MB | **{:.2}** | {goal} | |", own >> 20, bytes >> 20, ratio(own, bytes));
        }
        Ok(())
    }

    /// `copy` is what rsync restores from, `own.tar.zst` what the agent does; both are of the tree as it was made.
    fn restores(&self) -> Result<()> {
        let rsync = "mkdir -p live; rsync -aAXc --delete copy/ live/; sync -f live";
        let nothing = |_| Ok(());
        let change = |seed| sno::change(&self.path("live"), seed);
        let empty = |_| Ok(fs::remove_dir_all(self.path("live"))?);
        let cases: [(&str, &str, Prepare<'_>); 3] = [
            ("restore onto an unchanged tree", "≤ 0.5", &nothing),
            ("restore, 2 % of files changed", "≤ 0.5", &change),
            ("restore into an empty tree", "≤ 0.7", &empty),
        ];
        for (work, goal, prepare) in cases {
            let (mut own, mut peer) = (Side::default(), Side::default());
            for seed in 1..=self.runs {
                prepare(seed)?;
                own.measure(self.own("restore", &["own.tar.zst", "live"])?)?;
                prepare(seed)?;
                peer.measure(self.shell(rsync))?;
            }
            row(work, "`rsync -aAXc --delete`", &own, &peer, goal);
        }
        Ok(())
    }

    fn second_backup(&self) -> Result<()> {
        let (mut first, mut second) = (Side::default(), Side::default());
        for seed in 1..=self.runs {
            run(self.shell("rm -f first.tar.zst second.tar.zst"))?;
            // Nothing is taken over that had changed less than two seconds before.
            std::thread::sleep(Duration::from_secs(3));
            first.measure(self.own("pack-without-etcd", &["live", "first.tar.zst"])?)?;
            sno::change(&self.path("live"), seed + 100)?;
            second.measure(self.own("pack-without-etcd", &["live", "second.tar.zst", "first.tar.zst"])?)?;
        }
        row("second backup, 2 % changed, etcd aside", "the first", &second, &first, "≤ 0.4");
        Ok(())
    }
}

/// Makes the tree ready for the run of this number.
type Prepare<'a> = &'a dyn Fn(u64) -> Result<()>;

fn row(work: &str, peer: &str, own: &Side, theirs: &Side, goal: &str) {
    let (mine, other) = (own.median(), theirs.median());
    println!("| {work} | {mine:.2} | {peer} | {other:.2} | **{:.2}** | {goal} | {} |", mine / other, own.memory >> 10);
}

/// As a fraction, to what is shown of it: a thousandth.
fn ratio(a: u64, b: u64) -> f64 {
    u32::try_from(a * 1000 / b.max(1)).map_or(f64::INFINITY, |thousandths| f64::from(thousandths) / 1000.0)
}

fn run(mut command: Command) -> Result<()> {
    let (status, _) = wait(&mut command)?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Runs it to its end; its status, and the most resident memory that one of its processes had, KiB.
fn wait(command: &mut Command) -> Result<(ExitStatus, i64)> {
    let child = command.spawn().with_context(|| format!("{command:?} is needed"))?;
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: all fields of `rusage` are numbers, for which zeros are values.
    let mut usage: nix::libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `pid` is a child that nobody else waits for; both pointers are to values that outlive the call.
    let waited = unsafe { nix::libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    ensure!(waited == pid, "waiting for {command:?}");
    Ok((ExitStatus::from_raw(status), usage.ru_maxrss))
}

fn usage(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { usage(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

fn machine() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{} × {}, Linux {}", std::thread::available_parallelism()?, model.trim_matches([' ', '\t', ':']), release.trim()))
}
