//! The log: journald with structured fields, and plain lines on standard error.
//!
//! Events carry the fields `recovery_run`, `recovery_phase`, `recovery_step` and, for a change of phase, `message_id`; journald shows them as
//! `RECOVERY_RUN`, … and `MESSAGE_ID`, so that `journalctl RECOVERY_RUN=…` is one recovery and `journalctl MESSAGE_ID=…` its outline.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::Progress;

/// Where journald listens (`man 8 systemd-journald.service`).
const JOURNALD: &str = "/run/systemd/journal/socket";

/// Starts logging. To journald when `live` (it is this machine's node) and it is there; to standard error as plain lines, unless that already
/// ends in the journal. `verbose` shows debug lines on standard error.
pub fn start(live: bool, verbose: bool, progress: &Progress) {
    let journald = (live && Path::new(JOURNALD).exists()).then(tracing_journald::layer).and_then(Result::ok);
    let in_journal = journald.is_some() && std::env::var_os("JOURNAL_STREAM").is_some();
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let plain = (!in_journal).then(|| Plain { progress: progress.clone() }.with_filter(level));
    // A second start in one process (tests) keeps the first.
    tracing_subscriber::registry()
        .with(journald.map(|layer| layer.with_field_prefix(None).with_filter(level)))
        .with(plain)
        .with(tracing_subscriber::filter::Targets::new().with_target("recovery", LevelFilter::DEBUG))
        .try_init()
        .ok();
}

/// Plain lines on standard error: the message alone, with its level when it is not information.
struct Plain {
    progress: Progress,
}

#[derive(Default)]
struct Message {
    text: String,
    of_a_step: bool,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => drop(write!(self.text, "{value:?}")),
            "recovery_step" => self.of_a_step = true,
            _ => {}
        }
    }
}

impl<S: Subscriber> Layer<S> for Plain {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        // The command ends with what its step failed with, in the same words.
        if message.of_a_step && *event.metadata().level() == Level::ERROR {
            return;
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            _ => "debug: ",
        };
        self.progress.pause(|| writeln!(std::io::stderr(), "{level}{}", message.text).ok());
    }
}
