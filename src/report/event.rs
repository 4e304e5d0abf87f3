//! What happens to a node's recovery and backups, as entries of the systemd journal: a table of kinds, each with its `MESSAGE_ID`
//! (`systemd.journal-fields(7)`) and its explanation. There is no other list: the [catalog] and the README's table are made of it.
//!
//! `journalctl -x` shows the explanation below the entry, with the values of its fields, when the catalog is installed
//! (<https://systemd.io/CATALOG/>). An id is never given to something else, and fields are only ever added.

use std::fmt::Write as _;

use tracing::Level;

use crate::error;

/// A kind of entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its `MESSAGE_ID`: 128 random bits, hex.
    pub id: &'static str,
    /// In a few words.
    pub subject: &'static str,
    /// Its level: an error needs a person, unless the unit tries again by itself.
    pub level: Level,
    /// Also a line on standard error; of all other kinds the command's own report, or its error, says the same.
    pub said: bool,
    /// The fields that every entry of it has.
    pub fields: &'static [&'static str],
    /// What it means, and what to do.
    pub explanation: &'static str,
}

/// What an entry is about: its fields.
#[derive(Debug, Default, Clone, Copy)]
pub struct About<'a> {
    /// `RECOVERY_RUN`: the id of the recovery.
    pub run: Option<&'a str>,
    /// `RECOVERY_PHASE`: its phase.
    pub phase: Option<&'a str>,
    /// `RECOVERY_STEP`: its step.
    pub step: Option<&'a str>,
    /// `RECOVERY_BACKUP`: the id of the backup.
    pub backup: Option<&'a str>,
    /// `RECOVERY_SCHEDULE`: the name of the schedule.
    pub schedule: Option<&'a str>,
    /// `RECOVERY_EXIT`: the exit code that the failure leads to.
    pub exit: Option<u8>,
    /// `RECOVERY_NEXT`: what to do next, as the message says it after "next: ".
    pub next: Option<&'a str>,
}

/// What `RECOVERY_NEXT` says of a failure that names no way out.
pub const NO_NEXT: &str = "put right what the message names, and run the same command again";

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $id:literal $level:ident $said:literal [$($field:literal)*] $subject:literal $explanation:literal)*) => {
        $($(#[$doc])* pub static $name: Kind = Kind {
            id: $id, subject: $subject, level: Level::$level, said: $said, fields: &[$($field),*], explanation: $explanation,
        };)*
        /// All kinds.
        pub static KINDS: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    /// A recovery was begun.
    RECOVERY_BEGUN "38bf259860ac44b2a3bfc8c8a4facf17" INFO false ["RECOVERY_RUN" "RECOVERY_BACKUP"] "A recovery of this node begins"
    "Recovery @RECOVERY_RUN@ brings this node back to its backup @RECOVERY_BACKUP@.
It goes on by itself after each reboot, and after a power cut, unless it was
begun to go one phase at a time. Until everything on disk is restored, kubelet
does not start.

`recovery status --watch` shows where it is. All that it says, in every boot:
`journalctl RECOVERY_RUN=@RECOVERY_RUN@`."

    /// Another process goes on with a recovery that is open.
    RECOVERY_RESUMED "0d62c5bfad45400baeb4f385b0e5e3cd" INFO false ["RECOVERY_RUN" "RECOVERY_BACKUP"] "The recovery of this node goes on"
    "Recovery @RECOVERY_RUN@, back to backup @RECOVERY_BACKUP@, goes on after its
last finished step: after a reboot, a power cut, a failure, or because a person
asked for it. What was being done is done again; every step can be done twice.

`recovery status --watch` shows where it is."

    /// A phase of a recovery begins or is done.
    PHASE "a4c4c7eb11d94d0385259294778c1f2f" INFO true ["RECOVERY_RUN" "RECOVERY_BACKUP" "RECOVERY_PHASE"] "A phase of the recovery begins or is done"
    "Phase @RECOVERY_PHASE@ of recovery @RECOVERY_RUN@. The phases are platform
(which release boots), restore-files, resume (etcd and the control plane),
redeploy (the operators' pods) and finish.

`recovery status` shows every step."

    /// A step of a recovery failed.
    STEP_FAILED "f1c594d3ffff49419f5bfc4c56dcce99" ERROR false
    ["RECOVERY_RUN" "RECOVERY_BACKUP" "RECOVERY_PHASE" "RECOVERY_STEP" "RECOVERY_EXIT" "RECOVERY_NEXT"] "A step of the recovery failed"
    "Step @RECOVERY_STEP@ of phase @RECOVERY_PHASE@ failed, with exit code
@RECOVERY_EXIT@. The recovery stays open, and nothing of it is lost. The message
above says what failed, and why.

Next: @RECOVERY_NEXT@

After exit code 69 (something did not answer in time) or 75 (interrupted, or
another agent is at work) recovery-resume.service tries again by itself, five
times in four hours. After any other it waits for a person. kubelet stays held
while `recovery status` says so: do not start it by hand."

    /// A step of a recovery found something that people should know.
    STEP_WARNED "3d2ba71fe3b54dea8150e5b9f10c106a" WARN true ["RECOVERY_RUN" "RECOVERY_BACKUP" "RECOVERY_PHASE" "RECOVERY_STEP"]
    "The recovery goes on with a warning"
    "Step @RECOVERY_STEP@ of phase @RECOVERY_PHASE@ found what the message above says.
The recovery goes on all the same. The warning is also in `recovery status`, and
in the report of the recovery when it is over."

    /// The node goes down for the reboot of a recovery.
    REBOOT_ASKED "611f2f5701b34360a6306228174260d0" INFO false ["RECOVERY_RUN" "RECOVERY_BACKUP" "RECOVERY_PHASE"]
    "The node reboots for its recovery"
    "Phase @RECOVERY_PHASE@ of recovery @RECOVERY_RUN@ is done but for the reboot,
which the agent has asked systemd for. After it, recovery-resume.service goes on
by itself, unless the recovery goes one phase at a time.

`recovery status` says so where the reboot does not come; what holds it up is in
`systemd-inhibit --list`."

    /// A person has to reboot the node.
    REBOOT_NEEDED "8c44eea80ff44c3b8eaf174c28893184" WARN false
    ["RECOVERY_RUN" "RECOVERY_BACKUP" "RECOVERY_PHASE" "RECOVERY_NEXT"] "The recovery waits for a reboot of this node"
    "Phase @RECOVERY_PHASE@ of recovery @RECOVERY_RUN@ is done but for the reboot,
which is left to a person, because the recovery was begun so.

Next: @RECOVERY_NEXT@"

    /// kubelet is held.
    HOLD_SET "a9a59609a43546788aea8fa67c25b636" INFO false ["RECOVERY_RUN"] "kubelet is held by a recovery"
    "While recovery @RECOVERY_RUN@ has this node half restored, kubelet does not start,
whatever boots: /var/lib/recovery/hold-kubelet is there. It is taken away by the
recovery itself when everything on disk is restored, or by `recovery abandon`.
Remove it by hand only when you know that the node is whole."

    /// kubelet is held no longer.
    HOLD_LIFTED "4d529a7766d845f090f5b9ef82026af4" INFO false ["RECOVERY_RUN"] "kubelet is no longer held"
    "Recovery @RECOVERY_RUN@ lets kubelet start again: everything on disk is restored,
or the recovery was abandoned."

    /// A recovery has reached its end.
    RECOVERY_FINISHED "4b384296e09e4197ae3545edf9caec68" INFO false ["RECOVERY_RUN" "RECOVERY_BACKUP"] "The recovery of this node is finished"
    "The node is as its backup @RECOVERY_BACKUP@ recorded it, and the cluster has
stayed up. Journal and report of recovery @RECOVERY_RUN@ are in
/var/recovery/history. What etcd stored after that backup is lost.

`recovery up --backup @RECOVERY_BACKUP@` compares once more."

    /// A recovery was given up.
    RECOVERY_ABANDONED "438e2f198dae480e8ea41b6357df588f" WARN false ["RECOVERY_RUN" "RECOVERY_NEXT"] "The recovery of this node was abandoned"
    "Somebody ended recovery @RECOVERY_RUN@ before it was finished. The message above
says what state the node is in. kubelet is no longer held: it starts at the next
boot, on whatever is there.

Next: @RECOVERY_NEXT@"

    /// A backup is complete.
    BACKUP_GOOD "d4b2705751bf4b80a3e5ab090380573e" INFO false ["RECOVERY_BACKUP"] "A backup of this node is complete"
    "All of @RECOVERY_BACKUP@ was read back from the disk before it was published.

`recovery show @RECOVERY_BACKUP@` shows what is in it."

    /// A backup could not be taken.
    BACKUP_FAILED "46fa7adc5cf54a798a4e242ad0cabe82" ERROR false ["RECOVERY_EXIT" "RECOVERY_NEXT"] "A backup of this node failed"
    "The message above says what failed, and why; the exit code is @RECOVERY_EXIT@.
Older backups are as they were, and so is the node.

Next: @RECOVERY_NEXT@

Do not begin an upgrade before there is a good backup: `recovery gate` says
whether there is one."

    /// No backup can be taken at this time.
    BACKUP_NOT_NOW "e714db2e18ae4cfb9f347602ef6dde03" WARN false ["RECOVERY_EXIT" "RECOVERY_NEXT"] "No backup can be taken now"
    "Something is changing on this node, or does not answer, so that no backup is
taken: the message above says what. A schedule tries again by itself.

Next: @RECOVERY_NEXT@"

    /// A schedule runs later than it should have.
    SCHEDULE_MISSED "1a5bcc32bbf24ebb93159a1b83616a19" WARN false ["RECOVERY_SCHEDULE"] "A scheduled backup was missed and is taken late"
    "At its time, the backup of schedule @RECOVERY_SCHEDULE@ could not be taken: the
node was off, a recovery was in progress, or something else was in the way.
However many were missed, one is taken now.

`recovery schedule show @RECOVERY_SCHEDULE@` shows its next instants."

    /// The run of a schedule failed.
    SCHEDULE_FAILED "f282e468371248d8a2350bd3b1166947" ERROR false ["RECOVERY_SCHEDULE" "RECOVERY_EXIT" "RECOVERY_NEXT"] "A scheduled backup failed"
    "The message above says why the backup of schedule @RECOVERY_SCHEDULE@ failed; the
exit code is @RECOVERY_EXIT@. It is tried again after 5, 10, 20 and 40 minutes, and
then each hour.

Next: @RECOVERY_NEXT@

`recovery schedule show @RECOVERY_SCHEDULE@` says when it is tried again."

    /// An upgrade may begin.
    GATE_OPEN "16331eda3e6e4d969ab957be7f0a5142" INFO false ["RECOVERY_BACKUP"] "The gate is open: an upgrade may begin"
    "Backup @RECOVERY_BACKUP@ brings this cluster back to where it is now."

    /// No upgrade may begin.
    GATE_CLOSED "8b68e9c312ca4bc49cfa2d10b4a58f98" WARN false ["RECOVERY_EXIT" "RECOVERY_NEXT"] "The gate is closed: no upgrade may begin"
    "There is no good backup of where the cluster is now, or it cannot be told. The
message above says why.

Next: @RECOVERY_NEXT@"

    /// A command ended with a failure.
    COMMAND_FAILED "3cb1c6f9f2ce4b3c8609cb254952275b" ERROR true ["RECOVERY_EXIT" "RECOVERY_NEXT"] "A command of the recovery agent failed"
    "A command ended with exit code @RECOVERY_EXIT@. The message above says what
failed, and why. What failed in a recovery or a backup has an entry of its own
before this one.

Next: @RECOVERY_NEXT@

The exit codes are listed by `recovery --help`."
}

/// The kind that has this `MESSAGE_ID`.
#[must_use]
pub fn of(id: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|kind| kind.id == id)
}

/// Writes an entry. On a machine that is not the node, or has no journald, only what is [`said`](Kind::said) appears.
pub fn tell(kind: &'static Kind, about: About<'_>, message: &str) {
    debug_assert!(kind.fields.iter().all(|field| about.has(field)), "{kind:?}: {about:?}");
    let About { run, phase, step, backup, schedule, exit, next } = about;
    macro_rules! entry {
        ($level:ident) => {
            tracing::$level!(
                message_id = kind.id,
                recovery_run = run,
                recovery_phase = phase,
                recovery_step = step,
                recovery_backup = backup,
                recovery_schedule = schedule,
                recovery_exit = exit,
                recovery_next = next,
                "{message}"
            )
        };
    }
    match kind.level {
        Level::ERROR => entry!(error),
        Level::WARN => entry!(warn),
        _ => entry!(info),
    }
}

/// Writes an entry about a failure of `doing`: its message, exit code and the way out.
pub fn tell_error(kind: &'static Kind, about: About<'_>, doing: &str, error: &anyhow::Error) {
    let next = error::next(error).map(ToString::to_string);
    let (exit, next) = (Some(error::exit_code(error)), Some(next.as_deref().unwrap_or(NO_NEXT)));
    tell(kind, About { exit, next, ..about }, &format!("{doing}: {error:#}"));
}

impl About<'_> {
    fn has(&self, field: &str) -> bool {
        match field {
            "RECOVERY_RUN" => self.run.is_some(),
            "RECOVERY_PHASE" => self.phase.is_some(),
            "RECOVERY_STEP" => self.step.is_some(),
            "RECOVERY_BACKUP" => self.backup.is_some(),
            "RECOVERY_SCHEDULE" => self.schedule.is_some(),
            "RECOVERY_EXIT" => self.exit.is_some(),
            "RECOVERY_NEXT" => self.next.is_some(),
            _ => false,
        }
    }
}

/// The message catalog of journald: what is committed as `systemd/recovery.catalog`.
#[must_use]
pub fn catalog() -> String {
    let mut text = "# Made by `recovery generate catalog DIR`. In /usr/lib/systemd/catalog, or in /usr/local/lib/systemd/catalog where /usr is read-only;\n\
                    # `journalctl --update-catalog` reads it, and `journalctl -x` shows it. `recovery` is /var/recovery/recovery where it is not in the PATH.\n"
        .to_owned();
    for kind in KINDS {
        let Kind { id, subject, explanation, .. } = kind;
        writeln!(text, "\n-- {id}\nSubject: {subject}\nDefined-By: recovery\nDocumentation: man:recovery(8)\n\n{explanation}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The names between two `@`.
    fn variables(text: &str) -> Vec<&str> {
        text.split('@').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_catalog_is_made_of_the_table() {
        let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/recovery.catalog")).unwrap_or_default();
        let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/target/recovery.catalog");
        if committed != catalog() {
            std::fs::write(beside, catalog()).unwrap();
        }
        assert!(committed == catalog(), "systemd/recovery.catalog is not what the table makes, which is in {beside}");
    }

    #[test]
    fn the_readme_lists_every_kind() {
        for Kind { id, subject, .. } in KINDS {
            assert!(include_str!("../../README.md").contains(&format!("| `{id}` | {subject} |\n")), "{id} {subject}");
        }
    }

    #[test]
    fn every_explanation_fits_and_has_the_fields_that_it_shows() {
        let ids: HashSet<&str> = KINDS.iter().map(|kind| kind.id).collect();
        assert_eq!(ids.len(), KINDS.len(), "an id is there twice");
        for kind in KINDS {
            assert!(kind.id.len() == 32 && kind.id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{}", kind.id);
            assert!(variables(kind.explanation).iter().all(|name| kind.fields.contains(name)), "{kind:?}");
            assert!(kind.explanation.matches('@').count() % 2 == 0 && kind.explanation.lines().all(|line| line.len() <= 84), "{kind:?}");
            // What can be done about a failure is shown.
            assert!(kind.level != Level::ERROR || variables(kind.explanation).contains(&"RECOVERY_NEXT"), "{kind:?}");
            assert_eq!(of(kind.id), Some(*kind));
        }
        assert_eq!(of("0"), None);
    }
}
