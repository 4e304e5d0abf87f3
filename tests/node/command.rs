//! Programs that are run, on this machine or in the node: always with a limit, and with what they said in every error.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Between two looks of a wait.
pub const PAUSE: Duration = Duration::from_millis(100);

/// A limit of time.
#[derive(Debug, Clone, Copy)]
pub struct Limit(pub Duration);

impl Limit {
    /// So many seconds.
    #[must_use]
    pub const fn of(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Looks until it is so. At the limit, fails with `what` was waited for and what `why` has to say.
    pub fn wait<T>(self, what: &str, mut look: impl FnMut() -> Result<Option<T>>, why: impl FnOnce() -> String) -> Result<T> {
        let end = Instant::now() + self.0;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() >= end {
                bail!("waited {} s for {what}: {}", self.0.as_secs(), why());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// What a program did.
#[derive(Debug, Clone)]
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it said to people.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
    said: String,
}

impl Done {
    /// Its exit status; 128 and the signal when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Itself, if it ended with 0; else an error with what it said last.
    pub fn checked(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("`{}` ended with {}: {}", self.said, self.code(), tail(&format!("{}{}", self.stdout, self.stderr)));
    }
}

/// The last lines of what something said.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Runs it to its end, or to its limit.
pub fn run(command: &mut Command, stdin: &[u8], limit: Limit) -> Result<Done> {
    let said =
        [command.get_program()].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let begin = Instant::now();
    // A group of its own: what it starts ends with it at the limit.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("running `{said}`"))?;
    let (mut input, mut stdout, mut stderr) =
        (child.stdin.take().context("no stdin")?, child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    std::thread::scope(|scope| {
        let read = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (scope.spawn(move || read(&mut stdout)), scope.spawn(move || read(&mut stderr)));
        // One that ends without reading it all says itself what is wrong.
        scope.spawn(move || input.write_all(stdin));
        let look = || {
            // A node that goes down stops its processes before it ends them. nsenter then stops itself too, and is never told to go on: what
            // it started stays a zombie, for which the node's shutdown waits for a minute and a half.
            let _ = kill_process_group(Pid::from_child(&child), Signal::CONT);
            child.try_wait().context("waiting for it")
        };
        let ended = limit.wait("it to end", look, String::new);
        if ended.is_err() {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            child.wait()?;
        }
        let said_by = |thread: std::thread::ScopedJoinHandle<'_, String>| thread.join().unwrap_or_default();
        let (stdout, stderr) = (said_by(stdout), said_by(stderr));
        match ended {
            Ok(status) => Ok(Done { status, stdout, stderr, took: begin.elapsed(), said }),
            Err(_) => bail!("`{said}` was still running after {} s: {}", limit.0.as_secs(), tail(&format!("{stdout}{stderr}"))),
        }
    })
}

/// SHA-256, in hexadecimal.
#[must_use]
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a program of this machine; it has to end with 0. What it printed.
pub fn checked(command: &mut Command, limit: Limit) -> Result<String> {
    Ok(run(command, &[], limit)?.checked()?.stdout)
}
