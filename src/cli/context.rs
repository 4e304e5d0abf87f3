//! What every command has: the node, the recovery directory, consent, and output.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::args::Global;
use super::screen::Row;
use crate::error::{Next, misfit, not_permitted, usage};
use crate::node::Node;
use crate::node::clock::interrupted;
use crate::node::dir::{DEFAULT, RecoveryDir};
use crate::recovery::WAIT;
use crate::report::{Progress, to_stderr, words};
use crate::session::Session;

/// How long a question waits for its answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// What every command has.
#[derive(Debug)]
pub(super) struct Context {
    /// The node that is meant.
    pub(super) node: Node,
    /// Its recovery directory.
    pub(super) dir: RecoveryDir,
    /// Where progress goes.
    pub(super) progress: Progress,
    /// Deadline of each wait, seconds, when it was given.
    pub(super) wait: Option<u64>,
    /// Reports are printed as JSON.
    pub(super) json: bool,
    yes: bool,
}

impl Context {
    pub(super) fn new(global: &Global, progress: Progress) -> Result<Self> {
        if !global.dir.is_absolute() {
            return Err(usage(format!("--dir {} is not an absolute path", global.dir.display())));
        }
        // It goes into a unit file, and into commands for people to copy.
        if !global.dir.to_str().is_some_and(|dir| dir.chars().all(|c| c.is_ascii_alphanumeric() || "/_.-".contains(c))) {
            return Err(usage(format!("--dir {} has other characters than letters, digits, / _ . -", global.dir.display())));
        }
        let node = match &global.root {
            None => Node::live(),
            Some(root) => {
                let root = root.canonicalize().map_err(|e| misfit(format!("--root {}: {e}", root.display())))?;
                let tools = global.tools.as_deref().map(|t| t.canonicalize().map_err(|e| misfit(format!("--tools {}: {e}", t.display()))));
                Node::at(&root, tools.transpose()?.as_deref())
            }
        };
        let dir = RecoveryDir::new(&node, &global.dir);
        Ok(Self { node, dir, progress, wait: global.wait, json: global.json, yes: global.yes })
    }

    /// Deadline of each wait.
    pub(super) fn deadline(&self) -> Duration {
        self.wait.map_or(WAIT, Duration::from_secs)
    }

    /// Fails unless this process is root and the recovery directory is root's alone.
    pub(super) fn require_root(&self) -> Result<()> {
        require_to_be_root()?;
        self.session().map(drop)
    }

    /// The node with its recovery directory, which is checked.
    pub(super) fn session(&self) -> Result<Session<'_>> {
        Session::open(&self.node, &self.dir, &self.progress)
    }

    /// The same, with the recovery directory made when it is missing.
    pub(super) fn prepared_session(&self) -> Result<Session<'_>> {
        Session::prepare(&self.node, &self.dir, &self.progress)
    }

    /// Says what is about to be done and asks. `--yes` is consent; without a terminal to ask on there is none.
    pub(super) fn confirm(&self, what: &[String]) -> Result<()> {
        self.progress.pause(|| what.iter().for_each(|line| to_stderr(&self.as_called(line))));
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(usage("not confirmed: there is no terminal to ask on; give --yes to do it"));
        }
        let answer = self.progress.pause(|| {
            write!(std::io::stderr(), "Do it? [y/N] ")?;
            self.answer()
        })?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(usage("not confirmed: nothing was changed")) }
    }

    /// A line from the terminal. Nobody's answer is waited for without end: the lock is held meanwhile.
    fn answer(&self) -> Result<String> {
        let (stdin, deadline) = (std::io::stdin(), self.node.clock().deadline(PATIENCE));
        loop {
            let ready = {
                let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
                match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 200_000_000 })) {
                    Err(Errno::INTR) => 0,
                    ready => ready.context("waiting for an answer")?,
                }
            };
            interrupted()?;
            if ready > 0 {
                let mut answer = String::new();
                stdin.lock().read_line(&mut answer).context("reading the answer")?;
                return Ok(answer);
            }
            if deadline.passed() {
                return Err(usage(format!("not confirmed: nobody answered in {} minutes; nothing was changed", PATIENCE.as_secs() / 60)));
            }
        }
    }

    /// Commands in `text` as they have to be typed here.
    pub(super) fn as_called(&self, text: &str) -> String {
        as_called(text, self.dir.shown())
    }

    /// The rows of a report as they are shown, as [`Context::text`] does it.
    pub(super) fn rows(&self, mut rows: Vec<Row>) -> Vec<Row> {
        rows.iter_mut().for_each(|row| row.text = words::line(&self.as_called(&row.text)).into_owned());
        rows
    }

    /// Prints a report: as JSON, or as `people` writes it.
    pub(super) fn print<T: Serialize>(&self, report: &T, people: impl FnOnce(&T) -> String) -> Result<()> {
        reported(to_stdout(&self.text(report, people)?))
    }

    /// A report as it is printed: as JSON, or as `people` writes it, with what a terminal would obey spelled out.
    pub(super) fn text<T: Serialize>(&self, report: &T, people: impl FnOnce(&T) -> String) -> Result<String> {
        if self.json {
            Ok(json(&serde_json::to_value(report).context("writing the report as JSON")?))
        } else {
            Ok(words::lines(&self.as_called(&people(report))).into_owned())
        }
    }
}

/// Fails unless this process is root.
pub(super) fn require_to_be_root() -> Result<()> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(not_permitted("this needs root: run it with sudo, or as root")) }
}

/// Commands in texts for people, `recovery …`, as they have to be typed here: the agent is in nobody's `PATH` on the node, and its recovery
/// directory, `dir`, may be another than the usual one.
pub(super) fn as_called(text: &str, dir: &Path) -> String {
    let called = std::env::args().next().filter(|program| program.contains('/'));
    let program = called.as_deref().unwrap_or("recovery");
    let option = if dir == Path::new(DEFAULT) { String::new() } else { format!("--dir {} ", dir.display()) };
    // What names its directory already is left at that.
    text.replace("`recovery --dir ", "`\0--dir ")
        .replace("`recovery ", &format!("`{program} {option}"))
        .replace('\0', &format!("{program} "))
}

/// What to do next, with its commands as they have to be typed here.
pub(super) fn next_as_called(next: &Next, dir: &Path) -> Next {
    match next.clone() {
        Next::Run { command, why } => {
            let typed = as_called(&format!("`{command}`"), dir);
            Next::Run { command: typed.trim_matches('`').to_owned(), why: as_called(&why, dir) }
        }
        Next::Again { when } => Next::Again { when: as_called(&when, dir) },
        Next::MakeRoom { dir: full, how } => Next::MakeRoom { dir: full, how: as_called(&how, dir) },
        Next::ByHand { what } => Next::ByHand { what: as_called(&what, dir) },
        // No words: a program knows what they ask for.
        next @ (Next::Resume | Next::Restart { .. } | Next::Reboot) => next,
    }
}

/// Prints one JSON document on standard output.
pub(super) fn print_json(value: &serde_json::Value) -> Result<()> {
    reported(to_stdout(&json(value)))
}

fn json(value: &serde_json::Value) -> String {
    words::json(&format!("{value:#}")).into_owned()
}

/// A report that is lost is a failure, after work that is done. A reader that has gone away (`| head`) is none.
pub(super) fn reported(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("what was asked for is done, but standard output does not take the report"),
    }
}

/// Writes text to standard output as it is, whole lines.
///
/// # Errors
/// As the system has it: [`BrokenPipe`](std::io::ErrorKind::BrokenPipe) when its reader has gone away.
pub(super) fn to_stdout(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    out.write_all(text.as_bytes())?;
    out.write_all(end.as_bytes())?;
    out.flush()
}

/// True when standard output is a pipe whose reader has gone away: who has nothing to write would not be told.
pub(super) fn nobody_reads() -> bool {
    let stdout = std::io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && polled[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::run;

    #[test]
    fn a_command_in_json_can_be_typed_as_it_is() {
        let Next::Run { command, why } = next_as_called(&run("recovery verify b1", "checks it"), Path::new("/x")) else { unreachable!() };
        assert!(command.starts_with('/') && command.ends_with(" --dir /x verify b1"), "{command}");
        assert_eq!(why, "checks it");
        let other = run("systemctl reboot", "");
        assert_eq!(next_as_called(&other, Path::new("/x")), other);
    }
}
