//! Measuring: one process or a pipeline of them, its time and its memory, and the line of the table that comes of two of them.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What one side of a measurement took.
pub(crate) struct Side {
    times: Vec<Duration>,
    /// Most resident memory of one process, KiB.
    memory: i64,
}

impl Side {
    pub(crate) const fn new() -> Self {
        Self { times: Vec::new(), memory: 0 }
    }

    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort();
        times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64)
    }

    /// Runs it, after everything that was written before is on disk: nobody pays for another's work.
    pub(crate) fn measure(&mut self, mut command: Command) -> Result<()> {
        run(Command::new("sync"))?;
        let begin = Instant::now();
        let memory = finish(&mut command)?;
        self.times.push(begin.elapsed());
        self.memory = self.memory.max(memory);
        Ok(())
    }
}

/// The table, as it is printed line by line.
#[derive(Default)]
pub(crate) struct Table {
    /// Most resident memory of the agent in all of it, KiB.
    memory: i64,
    missed: u32,
}

impl Table {
    pub(crate) fn begin() -> Self {
        println!("| work | recovery, s | peer | its time, s | ratio | goal | reached | memory, MiB | the peer's |");
        println!("|---|---|---|---|---|---|---|---|---|");
        Self::default()
    }

    /// A line of times; `goal` is the ratio that is to be reached.
    pub(crate) fn times(&mut self, work: &str, peer: &str, own: &Side, theirs: &Side, goal: f64) {
        let (mine, other) = (own.median(), theirs.median());
        self.memory = self.memory.max(own.memory);
        let verdict = self.verdict(mine / other, goal);
        println!("| {work} | {mine:.2} | {peer} | {other:.2} | {verdict} | {} | {} |", own.memory >> 10, theirs.memory >> 10);
    }

    /// A line of sizes.
    pub(crate) fn bytes(&mut self, peer: &str, own: u64, theirs: u64, goal: f64) {
        // As fractions to the thousandth.
        let ratio = u32::try_from(own * 1000 / theirs.max(1)).map_or(f64::INFINITY, |thousandths| f64::from(thousandths) / 1000.0);
        let verdict = self.verdict(ratio, goal);
        println!("| bytes of it | {} MB | {peer} | {} MB | {verdict} | | |", own / 1_000_000, theirs / 1_000_000);
    }

    /// The line of the most memory, and how many goals were missed.
    pub(crate) fn end(mut self, limit: i64) {
        let reached = self.memory <= limit << 10;
        self.missed += u32::from(!reached);
        let yes = if reached { "yes" } else { "**no**" };
        println!("| peak memory in all of it | {} MiB | | | | ≤ {limit} MiB | {yes} | | |", self.memory >> 10);
        println!("\n{} of the goals are missed.", self.missed);
    }

    fn verdict(&mut self, ratio: f64, goal: f64) -> String {
        let reached = ratio <= goal;
        self.missed += u32::from(!reached);
        format!("**{ratio:.2}** | ≤ {goal} | {}", if reached { "yes" } else { "**no**" })
    }
}

/// Runs it to its end.
pub(crate) fn run(mut command: Command) -> Result<()> {
    finish(&mut command).map(drop)
}

/// Runs it to its end; the most resident memory that one of its processes had, KiB. What it says is only shown when it fails.
fn finish(command: &mut Command) -> Result<i64> {
    let said = tempfile::NamedTempFile::new()?;
    command.stdin(Stdio::null()).stdout(said.reopen()?).stderr(append(said.path())?);
    let (status, memory) = wait(command)?;
    if !status.success() {
        bail!("{command:?}: {status}\n{}", fs::read_to_string(said.path())?);
    }
    Ok(memory)
}

fn append(path: &Path) -> Result<File> {
    Ok(File::options().append(true).open(path)?)
}

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

/// The machine that this runs on, and the disk of `dir`, in one line.
pub(crate) fn machine(dir: &Path) -> Result<String> {
    let first = |file: &str, key: &str| -> Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("unknown");
        Ok(line.trim_matches([' ', '\t', ':', '=', '"']).to_owned())
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let file_system = Command::new("findmnt").args(["-no", "FSTYPE", "-T"]).arg(dir).output().context("findmnt is needed")?;
    Ok(format!(
        "{} × {} ({}), {}, Linux {}, {}; load before: {}",
        std::thread::available_parallelism()?,
        first("/proc/cpuinfo", "model name")?,
        std::env::consts::ARCH,
        first("/etc/os-release", "PRETTY_NAME")?,
        release.trim(),
        String::from_utf8_lossy(&file_system.stdout).trim(),
        load.split(' ').next().unwrap_or_default()
    ))
}
