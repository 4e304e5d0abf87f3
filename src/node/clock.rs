//! Time: the wall clock for records, the boot-time clock for deadlines, the boot id as the only proof of a reboot, and interruption.
//!
//! `CLOCK_BOOTTIME` goes on during suspend and is not moved by time synchronisation, which on an edge site often happens minutes
//! after the boot and can jump by years.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{self, unanswered};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes SIGTERM, SIGINT and SIGHUP end the work at the next safe point instead of at once: see [`interrupted`].
///
/// # Errors
/// When the handlers cannot be set.
pub fn catch_signals() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn note(_: nix::libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("setting the handler of {signal}"))?;
    }
    Ok(())
}

/// Lets the work outlive the connection it was started from: SIGHUP is ignored from here on.
///
/// # Errors
/// When that cannot be set.
pub fn ignore_hangup() -> Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }.context("ignoring SIGHUP").map(drop)
}

/// Fails once a signal has asked the agent to stop. Called wherever the work can be interrupted.
///
/// # Errors
/// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) after a signal.
pub fn interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(error::interrupted("interrupted by a signal"));
    }
    Ok(())
}

/// The clock of one node.
#[derive(Debug, Clone)]
pub struct Clock {
    boot_id: PathBuf,
}

impl Clock {
    pub(super) fn of(root: &Path) -> Self {
        Self { boot_id: root.join("proc/sys/kernel/random/boot_id") }
    }

    /// The wall clock, UTC. It can be wrong: use it only in records, and to compare it with other records.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The time since boot, suspend included.
    #[must_use]
    pub fn since_boot(&self) -> Duration {
        boottime()
    }

    /// How long ago the time `then` on `CLOCK_MONOTONIC` was. systemd notes by that clock when something starts; it stands still during
    /// suspend.
    #[must_use]
    pub fn since_monotonic(&self, then: Duration) -> Duration {
        read(ClockId::Monotonic).saturating_sub(then)
    }

    /// The kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`).
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn boot_id(&self) -> Result<String> {
        let text =
            std::fs::read_to_string(&self.boot_id).with_context(|| format!("reading the boot id from {}", self.boot_id.display()))?;
        Ok(text.trim().to_owned())
    }

    /// A deadline `wait` from now.
    #[must_use]
    pub fn deadline(&self, wait: Duration) -> Deadline {
        Deadline { end: boottime() + wait, wait }
    }

    /// Sleeps; an interruption ends the sleep at once.
    ///
    /// # Errors
    /// As [`interrupted`].
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = boottime() + time;
        loop {
            interrupted()?;
            let left = end.saturating_sub(boottime());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

/// A time on the boot-time clock at which a wait gives up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Duration,
    wait: Duration,
}

impl Deadline {
    /// The time left; zero once the deadline has passed.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.end.saturating_sub(boottime())
    }

    /// True once the deadline has passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.left().is_zero()
    }

    /// Calls `look` every `pause` until it returns a value. An `Err` from `look` ends the wait at once; where things may still get better,
    /// `look` returns `Ok(None)`.
    ///
    /// # Errors
    /// The error of `look`; [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when interrupted; when the deadline
    /// passes, [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) with `what` was waited for and the cause that `why` then
    /// gives.
    pub fn wait_for<T>(
        &self,
        what: &str,
        pause: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
        why: impl FnOnce() -> String,
    ) -> Result<T> {
        loop {
            interrupted()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if self.passed() {
                return Err(unanswered(format!("waited {} s for {what}: {}", self.wait.as_secs(), why())));
            }
            std::thread::sleep(pause.min(self.left().max(Duration::from_millis(1))));
        }
    }
}

/// The time since boot, suspend included, of the machine this process runs on.
pub(super) fn boottime() -> Duration {
    read(ClockId::Boottime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn a_wait_ends_at_its_deadline_with_the_cause() {
        let deadline = Clock::of(Path::new("/")).deadline(Duration::from_millis(30));
        let error = deadline
            .wait_for("etcd to answer", Duration::from_millis(5), || Ok(None::<()>), || "connection refused".to_owned())
            .unwrap_err();
        assert_eq!(exit_code(&error), 69);
        assert!(error.to_string().contains("for etcd to answer: connection refused"));
    }

    #[test]
    fn a_wait_ends_when_the_thing_is_there() -> Result<()> {
        let mut looks = 0;
        let deadline = Clock::of(Path::new("/")).deadline(Duration::from_secs(10));
        let seen = deadline.wait_for(
            "three",
            Duration::ZERO,
            || {
                Ok(Some(()).filter(|()| {
                    looks += 1;
                    looks == 3
                }))
            },
            String::new,
        );
        seen.map(|()| assert_eq!(looks, 3))
    }
}
