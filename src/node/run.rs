//! External programs: one way to run them, always with a time limit, and with errors that carry the argv and the tail of stderr.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;

use super::clock::{boottime, interrupted};
use crate::error::{misfit, unanswered};

/// The time limit of a program that is given no other.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// The most bytes of a program's output that are kept: `rpm-ostree status --json` has container manifests of over 100 KiB each.
const MOST_OUTPUT: u64 = 64 << 20;
/// The longest pause between two looks at a running program. The pauses begin short, so that the end of a short call is seen at once.
const LOOK: Duration = Duration::from_millis(20);
/// How long a killed program may take to be gone. One that waits in the kernel, for a disk that does not answer, goes only when that wait
/// ends.
const GONE: Duration = Duration::from_secs(5);

/// One call of an external program, built up and then [run](Command::run).
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    limit: Duration,
    last: Option<usize>,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output, or its [end](Command::last).
    pub stdout: Vec<u8>,
    /// The same of its standard error.
    pub stderr: Vec<u8>,
    argv: String,
}

impl Command {
    pub(super) fn in_path(program: &str) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), stdin: Vec::new(), limit: DEFAULT_LIMIT, last: None }
    }

    /// A call of the program in a file, on the live machine.
    pub(crate) fn of_file(path: &Path) -> Self {
        Self { program: path.to_owned(), ..Self::in_path("") }
    }

    pub(super) fn in_folder(folder: &Path, program: &str) -> Result<Self> {
        let path = folder.join(program);
        if path.exists() { Ok(Self { program: path, ..Self::in_path(program) }) } else { Err(missing(program)) }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// What the program reads from its standard input; nothing unless given.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The time limit, [`DEFAULT_LIMIT`] unless given.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Of a longer output, only so many bytes of its end are kept.
    #[must_use]
    pub fn last(mut self, bytes: usize) -> Self {
        self.last = Some(bytes);
        self
    }

    /// The command line, for messages.
    #[must_use]
    pub fn shown(&self) -> String {
        std::iter::once(self.program.as_os_str())
            .chain(self.args.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs the program and returns what it printed; a status other than 0 is an error.
    ///
    /// # Errors
    /// As [`Command::output`]; also when the program fails, with its argv, its status and the tail of its standard error.
    pub fn run(self) -> Result<Output> {
        let output = self.output()?;
        if output.status.success() { Ok(output) } else { Err(output.error()) }
    }

    /// Runs the program to its end, whatever its status.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such program,
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when it does not end within its limit (it and its process group are killed),
    /// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when the agent is interrupted meanwhile.
    pub fn output(self) -> Result<Output> {
        let argv = self.shown();
        let mut command = std::process::Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        // A group of its own, so that what it started can be killed with it. C locale: messages and numbers as the parsers expect.
        command.env("LC_ALL", "C").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing(&self.program.to_string_lossy()),
            _ => anyhow!(error).context(format!("running `{argv}`")),
        })?;
        let stdin = child.stdin.take();
        let input = self.stdin;
        // A program that does not read its input closes the pipe, which is no error here.
        std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
        let (out, err) = (collect(child.stdout.take(), self.last), collect(child.stderr.take(), self.last));
        let end = boottime() + self.limit;
        let status = wait(&mut child, end, &argv, self.limit)?;
        // A process that the program left running may hold the pipes open: the limit covers that too.
        let drain = |pipe: mpsc::Receiver<std::io::Result<Vec<u8>>>| {
            let left = end.saturating_sub(boottime()).max(Duration::from_millis(200));
            let Ok(bytes) = pipe.recv_timeout(left) else {
                signal_group(&child, Signal::KILL);
                return Err(unanswered(format!("`{argv}` ended, but something it started keeps its output open")));
            };
            bytes.with_context(|| format!("reading the output of `{argv}`"))
        };
        Ok(Output { status, stdout: drain(out)?, stderr: drain(err)?, argv: argv.clone() })
    }
}

impl Output {
    /// Standard output as text.
    ///
    /// # Errors
    /// When it is not UTF-8; the message names the command.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.stdout).map_err(|_| anyhow!("`{}` printed something that is not text", self.argv))
    }

    /// The last lines of standard error, as one line.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(5)..].join(" | ");
        let cut = tail.char_indices().rev().nth(800).map_or(0, |(at, _)| at);
        tail[cut..].to_owned()
    }

    /// The error for a program that failed: argv, status, tail of standard error.
    #[must_use]
    pub fn error(&self) -> anyhow::Error {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("failed with exit status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "failed".to_owned(),
        };
        let tail = self.stderr_tail();
        let said = if tail.is_empty() { "it printed nothing".to_owned() } else { tail };
        anyhow!("`{}` {how}: {said}", self.argv)
    }
}

fn missing(program: &str) -> anyhow::Error {
    misfit(format!("`{program}` is missing on this node"))
}

fn wait(child: &mut Child, end: Duration, argv: &str, limit: Duration) -> Result<ExitStatus> {
    let mut look = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for `{argv}`"))? {
            return Ok(status);
        }
        let stop = if boottime() >= end {
            Some(unanswered(format!("`{argv}` did not end within {} s and was killed", limit.as_secs_f32())))
        } else {
            interrupted().err().map(|e| e.context(format!("running `{argv}`")))
        };
        if let Some(error) = stop {
            // A program that still had time gets SIGTERM first: it may be in the middle of something.
            if boottime() < end {
                signal_group(child, Signal::TERM);
                is_gone(child).with_context(|| format!("waiting for `{argv}`"))?;
            }
            signal_group(child, Signal::KILL);
            let gone = is_gone(child).with_context(|| format!("waiting for `{argv}`"))?;
            let stays = || format!("`{argv}` was killed and is still there: it waits in the kernel, for a disk perhaps (`dmesg`)");
            return Err(if gone { error } else { error.context(stays()) });
        }
        std::thread::sleep(look);
        look = (look * 2).min(LOOK);
    }
}

/// Waits a limited time until a signalled program has ended; true when it has.
fn is_gone(child: &mut Child) -> std::io::Result<bool> {
    let end = boottime() + GONE;
    while child.try_wait()?.is_none() {
        if boottime() >= end {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

fn signal_group(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // The group may have ended a moment ago; then there is nothing to signal.
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>, last: Option<usize>) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let end = match (pipe, last) {
            (Some(pipe), Some(last)) => read_end(pipe, last),
            (Some(mut pipe), None) => (&mut pipe)
                .take(MOST_OUTPUT)
                .read_to_end(&mut bytes)
                .and_then(|_| std::io::copy(&mut pipe, &mut std::io::sink()).map(|_| bytes)),
            (None, _) => Ok(bytes),
        };
        // The receiver is gone when the command was given up.
        let _ = send.send(end);
    });
    receive
}

/// The last bytes of a stream; no more than twice as many are held.
fn read_end(mut from: impl Read, last: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while (&mut from).take(last as u64).read_to_end(&mut bytes)? > 0 {
        bytes.drain(..bytes.len().saturating_sub(last));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::time::Instant;

    fn sh(script: &str) -> Command {
        Command::in_path("sh").args(["-c", script])
    }

    #[test]
    fn output_and_input_pass_through() -> Result<()> {
        let output = sh("tr a-z A-Z").stdin("abc").run()?;
        assert_eq!(output.text()?, "ABC");
        Ok(())
    }

    #[test]
    fn the_end_of_a_long_output_is_kept() -> Result<()> {
        assert_eq!(sh("seq 100000").last(13).run()?.text()?, "99999\n100000\n");
        assert_eq!(sh("echo short").last(100).run()?.text()?, "short\n");
        Ok(())
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = sh("echo one >&2; echo two >&2; exit 3").run().unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("exit status 3") && error.contains("one | two"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_what_it_started() {
        let before = Instant::now();
        let error = sh("sleep 60 & sleep 60").limit(Duration::from_millis(200)).run().unwrap_err();
        assert_eq!(exit_code(&error), 69);
        assert!(before.elapsed() < Duration::from_secs(30));
    }

    /// A dead program whose tracer does not wait for it cannot be waited for by its parent either, as if it were waiting in the kernel.
    #[test]
    fn a_program_that_cannot_be_killed_is_given_up() {
        let seize = "import ctypes, sys, time
if ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0) != 0: sys.exit('ptrace')
print('seized', flush=True); time.sleep(60)";
        let dir = tempfile::tempdir().unwrap();
        let script = r#"setsid python3 -c "$0" $$ > "$1/said" & echo $! > "$1/pid"; sleep 60; :"#;
        let call = sh(script).args([seize, dir.path().to_str().unwrap()]).limit(Duration::from_secs(10));
        let before = Instant::now();
        let error = call.run().unwrap_err();
        let took = before.elapsed();
        let tracer: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        let tracer = rustix::process::Pid::from_raw(tracer).unwrap();
        rustix::process::kill_process(tracer, rustix::process::Signal::KILL).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("said")).unwrap(), "seized\n");
        assert_eq!(exit_code(&error), 69);
        assert!(format!("{error:#}").contains("still there"), "{error:#}");
        assert!(took < Duration::from_secs(45), "{took:?}");
    }

    #[test]
    fn a_missing_program_does_not_fit_the_node() {
        assert_eq!(exit_code(&Command::in_path("no-such-program-here").run().unwrap_err()), 78);
    }
}
