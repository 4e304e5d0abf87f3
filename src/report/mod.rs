//! What the agent reports while it works: [`Progress`] for people, the [`log`] for journald and stderr with what it tells there
//! ([`event`]), [`mod@unit`] for systemd, [`termination`] for whoever looks at a pod. [`paths`] and [`words`] make text from outside safe
//! for a terminal.
//!
//! On a terminal, long work shows bars; elsewhere (a Job's log, a unit's journal) it prints a plain line every few seconds. Reports go to
//! standard output, everything here to standard error.

pub mod event;
pub mod log;
pub mod paths;
pub mod termination;
pub mod unit;
pub mod words;

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often long work prints its progress in a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Where progress goes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Hidden,
    Bars(MultiProgress),
    Lines,
}

/// One piece of long work; it ends when dropped. Shared between threads by reference.
#[derive(Debug)]
pub struct Task {
    what: String,
    total: Option<u64>,
    done: AtomicU64,
    begun: Instant,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Hidden,
    Bar(ProgressBar),
    Lines(Mutex<Instant>),
}

impl Progress {
    /// Shows nothing.
    #[must_use]
    pub fn hidden() -> Self {
        Self { form: Form::Hidden }
    }

    /// Bars when standard error is a terminal, lines otherwise.
    #[must_use]
    pub fn to_stderr() -> Self {
        let form = if std::io::stderr().is_terminal() { Form::Bars(MultiProgress::new()) } else { Form::Lines };
        Self { form }
    }

    /// Begins a piece of work named `what`, of `total` bytes when that is known.
    #[must_use]
    pub fn task(&self, what: &str, total: Option<u64>) -> Task {
        let shown = match &self.form {
            Form::Hidden => Shown::Hidden,
            Form::Lines => Shown::Lines(Mutex::new(Instant::now())),
            Form::Bars(all) => {
                let bar = all.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
                let template = if total.is_some() {
                    "{prefix:28} {bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {wide_msg}"
                } else {
                    "{prefix:28} {spinner} {elapsed} {wide_msg}"
                };
                bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(words::line(what).into_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
                Shown::Bar(bar)
            }
        };
        Task { what: what.to_owned(), total, done: AtomicU64::new(0), begun: Instant::now(), shown }
    }

    /// A line for people: what happens now.
    pub fn say(&self, line: &str) {
        if !matches!(self.form, Form::Hidden) {
            self.pause(|| to_stderr(line));
        }
    }

    /// Runs `show`, which writes to the terminal, while the bars are hidden.
    pub fn pause<T>(&self, show: impl FnOnce() -> T) -> T {
        match &self.form {
            Form::Bars(all) => all.suspend(show),
            Form::Hidden | Form::Lines => show(),
        }
    }
}

impl Task {
    /// Adds the bytes that were done since the last call.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.shown {
            Shown::Hidden => {}
            Shown::Bar(bar) => bar.inc(bytes),
            Shown::Lines(last) => self.line(last, || match self.total {
                Some(total) if total > 0 => format!("{} of {} ({} %)", mib(done), mib(total), done.min(total) * 100 / total),
                _ => mib(done),
            }),
        }
    }

    /// Shows that the work still waits.
    pub fn alive(&self) {
        if let Shown::Lines(last) = &self.shown {
            self.line(last, || format!("{} s so far", self.begun.elapsed().as_secs()));
        }
    }

    /// Shows what the work is doing or waiting for now.
    pub fn note(&self, what: &str) {
        match &self.shown {
            Shown::Hidden => {}
            Shown::Bar(bar) => bar.set_message(words::line(what).into_owned()),
            Shown::Lines(last) => self.line(last, || what.to_owned()),
        }
    }

    fn line(&self, last: &Mutex<Instant>, text: impl FnOnce() -> String) {
        // If another thread is writing the line at this moment, one line is enough.
        let Ok(mut last) = last.try_lock() else { return };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            to_stderr(&format!("{}: {}", self.what, text()));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// One line. A closed standard error must not end a recovery.
pub fn to_stderr(line: &str) {
    writeln!(std::io::stderr(), "{}", words::line(line)).ok();
}

/// Bytes for people: `12.3 MiB`.
#[must_use]
pub fn mib(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 19)) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib(1 << 20), "1.0 MiB");
        assert_eq!(mib(1_600_000), "1.5 MiB");
        assert_eq!(mib(u64::MAX), "17592186044416.0 MiB");
    }

    #[test]
    fn hidden_progress_says_nothing_and_counts() {
        let task = Progress::hidden().task("packing", Some(10));
        task.add(4);
        task.note("etc");
        task.add(6);
        assert_eq!(task.done.load(Ordering::Relaxed), 10);
    }
}
