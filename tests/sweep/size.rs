//! Load and size: the agent's own program with ever more files, keys, backups and levels. A small curve for each among the tests that always run;
//! `tests/run.sh sweep size` draws the large ones, which `tests/README.md` has.

mod deep;
mod etcd;
mod many;
mod trees;
mod writers;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most resident memory that the agent takes, KiB.
const MEMORY: u64 = 64 << 10;
/// A piece of the largest may take so many times as long as one of a smaller size.
const STEEPEST: f64 = 1.5;
/// So often at most is something measured; the shortest counts, since whatever else the machine does only adds to it.
const TIMES: usize = 5;
/// What has taken so many seconds in all is measured no more, unless it looks too steep.
const LONG: f64 = 3.0;
/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(1200);

/// The agent that the variable `RECOVERY` names, as on the emulated node, else the one of this profile; ready to be run.
fn agent<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut agent = Command::new(std::env::var_os("RECOVERY").unwrap_or_else(|| env!("CARGO_BIN_EXE_recovery").into()));
    agent.args(args);
    agent
}

/// How a command ended, and what it took.
#[derive(Debug)]
struct Took {
    code: i32,
    time: Time,
    /// The most resident memory that it had, KiB.
    memory: u64,
    said: String,
}

impl Took {
    /// Fails unless it ended with this exit code within its memory, and said all of this.
    fn expect(&self, code: i32, says: &[&str]) -> Result<()> {
        ensure!(self.code == code, "it ended with {}: {}", self.code, self.said);
        for words in says {
            ensure!(self.said.contains(words), "it does not say \"{words}\": {}", self.said);
        }
        ensure!(self.memory <= MEMORY, "it took {} MiB of memory", self.memory >> 10);
        Ok(())
    }
}

/// What something took, in seconds.
#[derive(Debug, Clone, Copy)]
struct Time {
    by_the_clock: f64,
    /// Of all processors, by all of its threads and the programs that it started.
    processor: f64,
}

impl Time {
    /// The less of each.
    fn least(self, other: Self) -> Self {
        Self { by_the_clock: self.by_the_clock.min(other.by_the_clock), processor: self.processor.min(other.processor) }
    }

    fn over(self, pieces: f64) -> Self {
        Self { by_the_clock: self.by_the_clock / pieces, processor: self.processor / pieces }
    }

    /// True when it is more by the clock and of the processor: others that are at work only slow the clock's down.
    fn is_steep(self, flattest: Self) -> bool {
        self.by_the_clock > flattest.by_the_clock * STEEPEST && self.processor > flattest.processor * STEEPEST
    }
}

/// Runs a command to its end, after everything that was written before is on its disk. Its memory is what the kernel noted of it (`VmHWM`) when it is
/// looked at for the last time, at its end: what wait4(2) tells is no less than what its parent had when it started it.
fn measured(command: &mut Command) -> Result<Took> {
    rustix::fs::syncfs(File::open(std::env::temp_dir())?)?;
    let mut said = File::from(rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::CLOEXEC)?);
    command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said.try_clone()?);
    let in_child = || {
        // Those of a unit and of a session.
        let files = Rlimit { current: Some(1024), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, files)?;
        Ok(ptrace::traceme()?)
    };
    // SAFETY: system calls, which allocate nothing.
    unsafe { command.pre_exec(in_child) };
    let begun = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let process = Pid::from_raw(i32::try_from(child.id())?);
    ensure!(matches!(waitpid(process, None)?, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{command:?} does not begin");
    ptrace::setoptions(process, Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL)?;
    ptrace::cont(process, None)?;
    let (ended, end) = channel::<()>();
    std::thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            kill(process, Signal::SIGKILL).ok();
        }
    });
    let mut memory = None;
    let (code, processor) = loop {
        let (status, processor) = wait(process)?;
        match status {
            WaitStatus::Exited(_, code) => break (code, processor),
            WaitStatus::Signaled(_, signal, _) => bail!("{signal} ended {command:?} after {} s", begun.elapsed().as_secs()),
            WaitStatus::PtraceEvent(..) => {
                memory = Some(peak(process)?);
                ptrace::cont(process, None)?;
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(process, Some(signal))?,
            _ => {}
        }
    };
    let time = Time { by_the_clock: begun.elapsed().as_secs_f64(), processor };
    drop(ended);
    let mut bytes = Vec::new();
    said.rewind()?;
    said.read_to_end(&mut bytes)?;
    let memory = memory.with_context(|| format!("{command:?} ended unseen"))?;
    Ok(Took { code, time, memory, said: String::from_utf8_lossy(&bytes).into_owned() })
}

/// Waits for the next that happens to a process, and how long it has been at work, in seconds: known when it ends.
fn wait(process: Pid) -> Result<(WaitStatus, f64)> {
    let mut status = 0;
    // SAFETY: all fields of `rusage` are numbers, for which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it is a child that nobody else waits for; both pointers are to values that outlive the call.
    let waited = unsafe { libc::wait4(process.as_raw(), &raw mut status, 0, &raw mut usage) };
    Errno::result(waited)?;
    let seconds =
        |time: libc::timeval| Duration::from_micros(u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0)).as_secs_f64();
    Ok((WaitStatus::from_raw(process, status)?, seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}

/// The most resident memory that a process has had, KiB.
fn peak(process: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel does not tell")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// What some work takes for ever larger sizes, the smallest first.
struct Curve {
    work: &'static str,
    /// What a piece took where it took least.
    flattest: Option<Time>,
}

impl Curve {
    fn of(work: &'static str) -> Self {
        Self { work, flattest: None }
    }

    /// Measures the work for a size of so many pieces: `prepare` puts everything as it is before, and says what is run. Fails when that does not end
    /// with 0, takes too much memory, or takes longer for each piece than for a smaller size.
    fn measure(&mut self, size: u64, mut prepare: impl FnMut() -> Result<Command>) -> Result<()> {
        let pieces = f64::from(u32::try_from(size)?);
        let (mut least, mut memory, mut spent): (Option<Time>, _, _) = (None, 0, 0.0);
        let is_steep = |time: Time| self.flattest.is_some_and(|flattest| time.over(pieces).is_steep(flattest));
        for _ in 0..TIMES {
            let took = measured(&mut prepare()?)?;
            took.expect(0, &[]).with_context(|| format!("{}, {size}", self.work))?;
            (memory, spent) = (took.memory.max(memory), spent + took.time.by_the_clock);
            let time = *least.insert(least.map_or(took.time, |least| took.time.least(least)));
            if spent > LONG && !is_steep(time) {
                break;
            }
        }
        let least = least.context("nothing was measured")?;
        let (each, mib) = (least.over(pieces), f64::from(u32::try_from(memory)?) / 1024.0);
        let (clock, processor) = (each.by_the_clock * 1e6, each.processor * 1e6);
        println!("| {} | {size} | {:.2} | {clock:.1} | {processor:.1} | {mib:.1} |", self.work, least.by_the_clock);
        ensure!(!is_steep(least), "{}, {size}: {each:?} for each, and {:?} where there are fewer", self.work, self.flattest);
        self.flattest = Some(self.flattest.map_or(each, |flattest| flattest.least(each)));
        Ok(())
    }
}

/// The head of the table that [`Curve::measure`] prints.
fn head(of: &str) {
    println!("| work | {of} | seconds | µs for each | of a processor | MiB |\n|---|---|---|---|---|---|");
}
