//! The format that Prometheus and `node_exporter`'s textfile collector read ([exposition format](https://prometheus.io/docs/instrumenting/exposition_formats/),
//! text, 0.0.4). All are gauges: what was counted is in files, which may go.

use std::fmt::{Display, Write};

use jiff::Timestamp;

use super::gather::{Backups, Good, Metrics, Open, PARTS, Scheduled};
use crate::report::words::line;

/// The name of the file in `node_exporter`'s directory.
pub const FILE: &str = "recovery.prom";

/// The recovery directory that a text of metrics is about, as its label has it; `None` where that is not to be told.
#[must_use]
pub fn directory_of(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("recovery_info{"))?;
    line.split_once(",directory=\"")?.1.strip_suffix("\"} 1")
}

/// The text of all metrics. What is not known has no line.
#[must_use]
pub fn text(metrics: &Metrics) -> String {
    let mut text = Text::default();
    text.about(metrics);
    if let Some(backups) = &metrics.backups {
        text.backups(backups);
    }
    text.last_run(metrics);
    text.schedules(&metrics.schedules);
    text.recovery(metrics);
    text.0
}

#[derive(Default)]
struct Text(String);

/// Labels with their values.
pub type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Text {
    fn gauge<'a, V: Display>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, V)>) {
        family(&mut self.0, name, "gauge", help, samples);
    }

    /// A metric without labels, where its value is known.
    fn one<V: Display>(&mut self, name: &str, help: &str, value: Option<V>) {
        self.gauge(name, help, value.map(|value| (Vec::new(), value)));
    }

    fn is(&mut self, name: &str, help: &str, value: Option<bool>) {
        self.one(name, help, value.map(u8::from));
    }

    fn time(&mut self, name: &str, help: &str, value: Option<Timestamp>) {
        self.one(name, help, value.map(Timestamp::as_second));
    }

    fn about(&mut self, metrics: &Metrics) {
        let info = vec![("version", metrics.agent), ("directory", metrics.directory.as_str())];
        self.gauge("recovery_info", "The agent that wrote this, and the recovery directory that it is about.", [(info, 1)]);
        self.time("recovery_metrics_written_timestamp_seconds", "When this was written.", Some(metrics.looked));
        for (part, why) in &metrics.errors {
            // A comment, as the format has it: for people who look for the reason.
            writeln!(self.0, "# {part}: {}", line(why)).ok();
        }
        let parts = PARTS.map(|part| (vec![("part", part)], u8::from(metrics.errors.contains_key(part))));
        self.gauge(
            "recovery_metrics_errors",
            "1 where this part could not be read, or not all of it: what else is missing here is not known.",
            parts,
        );
    }

    fn backups(&mut self, Backups { states, good }: &Backups) {
        let states = states.iter().map(|(state, count)| (vec![("state", *state)], *count));
        self.gauge("recovery_backups", "How many backups there are, by their state.", states);
        let Some(Good { id: _, taken, seconds, stored, certificates_expire, warnings }) = good else { return };
        let name = |what: &str| format!("recovery_backup_last_good_{what}");
        self.time(
            &name("timestamp_seconds"),
            "When the newest backup was begun that is complete, of this node, and with certificates that have not expired.",
            Some(*taken),
        );
        self.one(&name("size_bytes"), "Bytes that the last good backup takes on disk.", Some(*stored));
        self.one(&name("duration_seconds"), "How long the last good backup took.", *seconds);
        self.one(&name("warnings"), "How many warnings there were when the last good backup was taken.", Some(*warnings));
        self.time(
            &name("certificates_expire_timestamp_seconds"),
            "When the first of the certificates in the last good backup expires: after that a recovery from it has to renew certificates.",
            *certificates_expire,
        );
    }

    fn last_run(&mut self, metrics: &Metrics) {
        let Some(run) = &metrics.last_run else { return };
        let name = |what: &str| format!("recovery_backup_last_run_{what}");
        self.time(&name("timestamp_seconds"), "When the last run of a backup ended, whoever asked for it.", Some(run.ended));
        let seconds = run.ended.duration_since(run.begun).as_secs().max(0);
        self.one(&name("duration_seconds"), "How long the last run of a backup took, by the wall clock.", Some(seconds));
        self.is(&name("success"), "Whether the last run of a backup took one.", Some(run.exit == 0));
        self.one(&name("exit_code"), "The exit code of the last run of a backup.", Some(run.exit));
        let result = vec![("result", run.failure.as_deref().unwrap_or("done"))];
        self.gauge(&name("info"), "How the last run of a backup ended: done, or the kind of its failure.", [(result, 1)]);
    }

    fn schedules(&mut self, schedules: &[Scheduled]) {
        let mut each = |what: &str, help: &str, value: &dyn Fn(&Scheduled) -> Option<i64>| {
            let samples = schedules.iter().filter_map(|one| Some((vec![("schedule", one.schedule.as_str())], value(one)?)));
            self.gauge(&format!("recovery_schedule_{what}"), help, samples);
        };
        let seconds = |time: Option<Timestamp>| time.map(Timestamp::as_second);
        each("paused", "Whether the schedule is paused.", &|one| Some(i64::from(one.paused)));
        each("next_timestamp_seconds", "The next instant of the schedule.", &|one| seconds(one.next));
        each("due_timestamp_seconds", "Since when a backup of the schedule is due that has not been taken yet.", &|one| seconds(one.due));
        each("last_success_timestamp_seconds", "When the last run of the schedule ended that took a backup.", &|one| seconds(one.good));
        each("last_run_success", "Whether the last run of the schedule that is over took a backup.", &|one| {
            one.last_is_good.map(i64::from)
        });
    }

    fn recovery(&mut self, metrics: &Metrics) {
        if let Some(recovery) = &metrics.recovery {
            self.is("recovery_open", "Whether a recovery is in progress.", Some(recovery.is_open));
            if let Some(open) = &recovery.open {
                self.open(open);
            }
        }
        self.is("recovery_old_script_open", "Whether upgrade-recovery.sh has begun a recovery and not ended it.", Some(metrics.old_script));
        self.is("recovery_agent_at_work", "Whether an agent has the lock of the recovery directory.", Some(metrics.at_work));
        self.is("recovery_hold", "Whether kubelet is kept from starting, for a recovery.", Some(metrics.hold));
        self.one("recovery_directory_size_bytes", "Size of the file system of the recovery directory.", metrics.room.map(|room| room.size));
        self.one("recovery_directory_free_bytes", "Bytes free there.", metrics.room.map(|room| room.free));
    }

    fn open(&mut self, open: &Open) {
        let (phase, step) = (open.phase.as_deref().unwrap_or_default(), open.step.as_deref().unwrap_or_default());
        let info = vec![("run", open.run.as_str()), ("backup", open.backup.as_str()), ("phase", phase), ("step", step)];
        self.gauge("recovery_open_info", "The recovery in progress, and the phase and step that it is at.", [(info, 1)]);
        self.time("recovery_open_begun_timestamp_seconds", "When the recovery in progress was begun.", Some(open.begun));
        self.time("recovery_open_changed_timestamp_seconds", "When something last happened in the recovery in progress.", Some(open.since));
        self.is("recovery_open_failed", "Whether the step that the recovery in progress is at has failed.", Some(open.failed));
        self.is("recovery_open_reboot_needed", "Whether the recovery in progress waits for a reboot.", Some(open.needs_reboot));
    }
}

/// Adds a metric with its samples to a text; nothing without one. `kind` is the format's word: `gauge`, `counter`.
pub fn family<'a, V: Display>(text: &mut String, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (Labels<'a>, V)>) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    for (labels, value) in samples {
        let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        writeln!(text, "{name}{labels} {value}").ok();
    }
}

/// The value of a label. What a terminal would obey, and with it the end of a line, is spelled out first; then the format needs only these two escaped.
fn escaped(value: &str) -> String {
    line(value).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_its_line_or_itself() {
        assert_eq!(escaped("a\"b\\c\nd\x1b"), "a\\\"b\\\\c\\\\nd\\\\x1b");
        let mut text = Text::default();
        text.gauge("recovery_x", "Help.", [(vec![("name", "a\"} 1\nrecovery_y 2")], 1)]);
        assert_eq!(text.0, "# HELP recovery_x Help.\n# TYPE recovery_x gauge\nrecovery_x{name=\"a\\\"} 1\\\\nrecovery_y 2\"} 1\n");
    }

    #[test]
    fn the_directory_is_found_again() {
        let mut text = Text("# HELP x\n".to_owned());
        let info = vec![("version", "0.1.0"), ("directory", "/srv/a\"} 1\nb")];
        text.gauge("recovery_info", "Help.", [(info, 1)]);
        assert_eq!(directory_of(&text.0), Some("/srv/a\\\"} 1\\\\nb"), "{}", text.0);
        assert_eq!((directory_of(""), directory_of("recovery_info 1")), (None, None));
    }

    #[test]
    fn what_is_not_known_has_no_line() {
        let mut text = Text::default();
        text.time("recovery_x", "Help.", None);
        text.gauge("recovery_y", "Help.", Vec::<(Labels<'_>, u8)>::new());
        assert_eq!(text.0, "");
    }
}
