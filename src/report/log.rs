//! The log: journald with structured fields, and plain lines on standard error.
//!
//! journald shows the fields of an entry (`recovery_run`, …) as `RECOVERY_RUN`, …: `journalctl RECOVERY_RUN=…` shows one recovery. What
//! happens has a `MESSAGE_ID` besides: see [`event`]. Both outputs get each message as one line, without characters that control a
//! terminal: of a message with such a character, journalctl shows only its size.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::{Progress, event, to_stderr, words};

/// Where journald listens (`man 8 systemd-journald.service`).
const JOURNALD: &str = "/run/systemd/journal/socket";
/// The most bytes of one value for journald: together with the others, far below the 208 KiB that a datagram may have by default.
const LONGEST: usize = 32 << 10;

/// A text with its commands as they have to be typed on this node.
pub type Typed = Box<dyn Fn(&str) -> String + Send + Sync>;

/// Starts logging: to journald when `live` (this machine is the node) and journald is there; to standard error as plain lines, unless that
/// already goes to the journal. `verbose` shows debug lines on standard error. What the journal gets goes through `typed`.
pub fn start(live: bool, verbose: bool, progress: &Progress, typed: Typed) {
    let journald = live.then(|| Journald::connect(Path::new(JOURNALD), typed).ok()).flatten();
    let in_journal = journald.is_some() && std::env::var_os("JOURNAL_STREAM").is_some();
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let plain = (!in_journal).then(|| Plain { progress: progress.clone() }.with_filter(level));
    // In tests, a second start in the same process keeps the first.
    tracing_subscriber::registry()
        .with(journald.map(|layer| layer.with_filter(level)))
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
    kind: Option<&'static event::Kind>,
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message_id" {
            self.kind = event::of(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Plain {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        if message.kind.is_some_and(|kind| !kind.said) {
            return;
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            Level::INFO => "",
            _ => "debug: ",
        };
        self.progress.pause(|| to_stderr(&format!("{level}{}", message.text)));
    }
}

/// Entries for journald, in its own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
struct Journald {
    socket: UnixDatagram,
    typed: Typed,
}

impl Journald {
    fn connect(path: &Path, typed: Typed) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self { socket, typed })
    }
}

/// Lines `NAME=value`: no value has a newline.
struct Entry<'a> {
    lines: String,
    typed: &'a Typed,
}

impl Entry<'_> {
    fn put(&mut self, name: &str, value: &str) {
        let typed = if matches!(name, "message" | "recovery_next") { (self.typed)(value) } else { value.to_owned() };
        let value = words::line(&typed);
        let end = (0..=value.len().min(LONGEST)).rev().find(|at| value.is_char_boundary(*at)).unwrap_or(0);
        let _ = writeln!(self.lines, "{}={}", name.to_ascii_uppercase(), &value[..end]);
    }
}

impl Visit for Entry<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field.name(), &format!("{value:?}"));
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Numbered as in `syslog(3)`, from 3, error, to 6, information. Ordinary messages are for people, so they are 5, notice.
        let priority = match *event.metadata().level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            _ => "6",
        };
        let mut entry = Entry { lines: String::new(), typed: &self.typed };
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", env!("CARGO_PKG_NAME"));
        event.record(&mut entry);
        // A recovery must not end because the journal does not accept a message.
        self.socket.send(entry.lines.as_bytes()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journald_gets_each_field_as_one_line_that_no_terminal_obeys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let layers = tracing_subscriber::registry().with(Journald::connect(&path, Box::new(|text| text.replace('`', "'"))).unwrap());
        tracing::subscriber::with_default(layers, || {
            let step = "unit-files";
            tracing::error!(recovery_step = step, recovery_next = "`do`", "it said \x1b[31m`no`\nPRIORITY=0 {}", "\u{e9}".repeat(LONGEST));
        });
        let mut buffer = vec![0; 1 << 17];
        let length = socket.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"PRIORITY=3") && lines.contains(&"RECOVERY_STEP=unit-files"), "{text}");
        assert!(lines.contains(&"SYSLOG_IDENTIFIER=recovery") && lines.len() == 5, "{text}");
        assert!(lines.contains(&"RECOVERY_NEXT='do'"), "{text}");
        let message = lines.iter().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
        assert!(message.starts_with("it said \\x1b[31m'no'\\nPRIORITY=0 \u{e9}") && message.len() <= LONGEST, "{}", message.len());
    }
}
