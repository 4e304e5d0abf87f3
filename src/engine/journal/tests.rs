//! Torn, damaged, foreign and newer journals.

use super::super::trial::{self, Event, Phase, Plan, State, Trial, phase};
use super::{LineV2, Path, PathBuf, Procedure, Value, format};
use crate::error::{FailureKind, exit_code, kind};

type Journal = super::Journal<Trial>;
type Reading = super::Reading<Trial>;

fn plan() -> Plan {
    vec![phase(Phase::Third, false, &[("stop", true), ("restore", false)])]
}

fn events() -> Vec<Event> {
    let step = |kind: fn(Phase, String) -> Event, name: &str| kind(Phase::Third, name.to_owned());
    vec![
        Event::PhaseBegun(Phase::Third),
        step(Event::StepIntent, "stop"),
        step(Event::StepNoted, "stop"),
        step(Event::StepDone, "stop"),
        step(Event::StepIntent, "restore"),
        step(Event::StepFailed, "restore"),
        step(Event::StepIntent, "restore"),
        step(Event::StepDone, "restore"),
        Event::PhaseDone(Phase::Third),
        Event::Finished,
    ]
}

/// A journal with every kind of line but one, and the lines.
fn sample(dir: &Path) -> (PathBuf, Vec<String>) {
    let path = dir.join("progress");
    let mut journal = trial::begin(&path, "boot-1", &plan());
    for event in events() {
        journal.append(&event, serde_json::json!({"é": ["quoted \" and \n"]})).unwrap();
    }
    let lines = std::fs::read_to_string(&path).unwrap().split_inclusive('\n').map(str::to_owned).collect();
    (path, lines)
}

fn refusal(path: &Path, bytes: &[u8]) -> String {
    std::fs::write(path, bytes).unwrap();
    let error = Reading::of(path).unwrap_err();
    assert_eq!(exit_code(&error), 65, "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains("recovery restart"), "{text}");
    text
}

#[test]
fn a_journal_of_many_megabytes_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("progress");
    let text = refusal(&path, &vec![b'x'; usize::try_from(Trial::MOST).unwrap() + 1]);
    assert!(text.contains("it has more than 8388608 bytes, and no more are read"), "{text}");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(format!("{:#}", Reading::of(&path).unwrap_err()).contains("it is not a regular file"));
}

/// A line with this change made to its record, and a checksum that matches.
fn altered(line: &str, change: impl FnOnce(&mut LineV2)) -> String {
    let mut record = LineV2::of(line.trim_end().as_bytes(), None).unwrap();
    change(&mut record);
    record.to_text().unwrap()
}

#[test]
fn what_was_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let reading = Reading::of(&path).unwrap().unwrap();
    assert_eq!((reading.records.len(), lines.len()), (events().len() + 1, events().len() + 1));
    assert_eq!(reading.state, State::Finished);
    assert_eq!((&*reading.plan, reading.beginning.as_str()), (&plan(), "a word"));
    assert_eq!((reading.run.as_str(), reading.subject.as_str()), ("run-1", "b-1"));
    assert_eq!(reading.agent.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    let sequence: Vec<u64> = reading.records.iter().map(|r| r.sequence).collect();
    assert_eq!(sequence, (1..=lines.len() as u64).collect::<Vec<_>>());
    assert!(Reading::of(&dir.path().join("none")).unwrap().is_none());
}

#[test]
fn a_last_line_torn_at_any_byte_is_cut_off_and_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    for last in [1, 4, lines.len() - 1] {
        let whole = lines[..last].concat();
        for torn in 0..lines[last].len() {
            let mut bytes = whole.clone().into_bytes();
            bytes.extend_from_slice(&lines[last].as_bytes()[..torn]);
            std::fs::write(&path, &bytes).unwrap();
            let reading = Reading::of(&path).unwrap().unwrap();
            assert_eq!((reading.records.len(), reading.torn()), (last, torn as u64));
            assert_eq!(std::fs::read(&path).unwrap(), bytes, "reading changes nothing");
            let mut journal = Journal::open(&path, "boot-2").unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
            journal.append(&events()[last - 1], Value::Null).unwrap();
            assert_eq!(Reading::of(&path).unwrap().unwrap().records.len(), last + 1);
        }
    }
}

#[test]
fn a_last_line_whose_bytes_never_reached_the_disk_is_torn_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let whole = lines[..4].concat();
    for tail in [vec![0; 300], b"\xff\xfe garbage\n".to_vec(), lines[4].replace("stop", "st0p").into_bytes()] {
        std::fs::write(&path, [whole.as_bytes(), &tail].concat()).unwrap();
        assert_eq!(Reading::of(&path).unwrap().unwrap().records.len(), 4);
    }
}

#[test]
fn a_flipped_byte_before_the_last_line_is_refused_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let (bytes, before_last) = (lines.concat().into_bytes(), lines[..lines.len() - 1].concat().len());
    // In a version, it makes a line of a newer agent.
    let versions: Vec<usize> = lines.iter().scan(0, |begin, line| Some(std::mem::replace(begin, *begin + line.len()) + 11)).collect();
    assert!(versions.iter().all(|at| bytes[*at..].starts_with(format::FORMAT.version.to_string().as_bytes())));
    for at in (0..before_last - 1).step_by(3).filter(|at| !versions.contains(at)) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x04;
        refusal(&path, &flipped);
    }
}

#[test]
fn gaps_repetitions_and_foreign_lines_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let with = |at: usize, line: &str| [&lines[..at].concat(), line, &lines[at + 1..].concat()].concat().into_bytes();
    assert!(refusal(&path, &with(3, "")).contains("line 4: it has number 5, not 4"));
    assert!(refusal(&path, &with(3, &lines[3].repeat(2))).contains("line 5: it has number 4, not 5"));
    assert!(refusal(&path, &with(3, "\n")).contains("line 4"));
    assert!(refusal(&path, &with(3, &altered(&lines[3], |r| r.run = "other".to_owned()))).contains("belongs to run other"));
    assert!(refusal(&path, &with(3, &altered(&lines[3], |r| r.subject = "other".to_owned()))).contains("about other"));
    assert!(refusal(&path, &with(3, &altered(&lines[3], |r| r.event = format::EventV1::StepDone))).contains("cannot follow"));
    assert!(refusal(&path, &with(3, &altered(&lines[3], |r| r.step = None))).contains("names no step"));
    // A last line that is whole is not torn, whatever it says.
    let last = lines.len() - 1;
    assert!(
        refusal(&path, &with(last, &altered(&lines[last], |r| r.event = format::EventV1::RunBegun)))
            .contains(&format!("line {}", last + 1))
    );
}

#[test]
fn a_newer_journal_is_not_supported_even_in_its_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let last = lines.len() - 1;
    for at in [0, 2, last] {
        let version = format::FORMAT.version + 1;
        let line = format!("{{\"version\":{version},\"shape\":\"another\"}}\n");
        let text = not_taken(&path, &[&lines[..at].concat(), line.as_str(), &lines[at + 1..].concat()].concat());
        assert!(text.contains(&format!("of version {version}")) && text.contains(&format!("line {}", at + 1)), "{text}");
    }
}

/// Sound, and of an agent that knows more.
fn not_taken(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    let error = Reading::of(path).unwrap_err();
    assert_eq!(kind(&error), FailureKind::Unsupported, "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains("go on with the agent that wrote it"), "{text}");
    text
}

#[test]
fn a_phase_that_is_not_known_names_the_agent_that_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let changed = altered(&lines[0], |line| {
        line.detail["plan"][0]["phase"] = "unheard-of".into();
        line.detail["agent"] = "7.2.0".into();
    });
    let text = not_taken(&path, &changed);
    assert!(text.contains("knows no phase unheard-of: the run was begun by recovery 7.2.0"), "{text}");
}

#[test]
fn the_journal_of_another_procedure_or_tool_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    let other = altered(&lines[0], |line| line.detail["procedure"] = "backup".into());
    assert!(refusal(&path, other.as_bytes()).contains("the journal of a backup, not of a trial"));
    std::fs::write(&path, "another tool's\n").unwrap();
    assert!(Reading::of(&path).unwrap().is_none());
}

#[test]
fn an_empty_or_torn_first_line_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (path, lines) = sample(dir.path());
    assert!(refusal(&path, b"").contains("it is empty"));
    assert!(refusal(&path, &lines[0].as_bytes()[..40]).contains("line 1"));
    assert!(refusal(&path, b"garbage\n").contains("line 1"));
}

#[test]
fn an_event_that_cannot_happen_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("progress");
    let mut journal = trial::begin(&path, "boot-1", &plan());
    assert!(format!("{:#}", journal.append(&Event::Finished, Value::Null).unwrap_err()).contains("cannot follow"));
    assert_eq!(Reading::of(&path).unwrap().unwrap().records.len(), 1);
}

#[test]
fn a_soft_reboot_is_told_from_a_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = sample(dir.path());
    let reading = Reading::of(&path).unwrap().unwrap();
    let since = |boot: &str| (reading.rebooted_since(Phase::Third, boot), reading.soft_rebooted_since(Phase::Third, boot));
    assert_eq!(since("boot-1"), (false, false));
    assert_eq!(since("boot-1+1"), (false, true));
    assert_eq!(since("boot-2"), (true, false));
    assert_eq!(since("boot-2+1"), (true, false));
    assert!(
        !reading.rebooted_since(Phase::Last, "boot-2") && !reading.soft_rebooted_since(Phase::Last, "boot-1+1"),
        "nothing was done there"
    );
}
