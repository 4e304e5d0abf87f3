use super::*;
use crate::error::exit_code;
use crate::formats::samples;
use crate::node::dir::RecoveryDir;
use anyhow::Context;

const RUN: &str = "9d2cfb0e-5f0b-4a27-8d0d-3a8f1c3f2a77";

/// A recovery directory with what is put into it.
struct Place {
    _root: tempfile::TempDir,
    node: Node,
    dir: RecoveryDir,
}

impl Place {
    fn new() -> Result<Self> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        std::fs::create_dir_all(node.path("/var/recovery/history"))?;
        std::fs::create_dir_all(node.path("/etc"))?;
        std::fs::write(node.path("/etc/hostname"), "sno\n")?;
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        Ok(Self { _root: root, node, dir })
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(std::fs::write(self.dir.history().join(name), bytes)?)
    }

    fn told(&self, run: Option<&str>) -> Result<Account> {
        account(&Session::unchecked(&self.node, &self.dir), run)
    }
}

fn step<'a>(account: &'a Account, phase: &str, name: &str) -> &'a StepAccount {
    let phase = account.phases.iter().find(|one| one.phase == phase).unwrap();
    phase.steps.iter().find(|one| one.step == name).unwrap()
}

#[test]
fn a_run_that_was_given_up_is_told_with_each_attempt() -> Result<()> {
    let place = Place::new()?;
    place.keep(&format!("{RUN}.progress"), &samples::read("journal.4.jsonl"))?;
    place.keep(&format!("{RUN}.json"), &samples::read("history.2.json"))?;
    let told = place.told(None)?;
    assert_eq!(
        (told.id.as_str(), told.end, told.node.as_deref(), told.agent.as_deref()),
        (RUN, End::Abandoned, Some("sno"), Some("0.1.0"))
    );
    assert_eq!((told.put_back.len(), told.changed.len(), told.left.as_deref()), (1, 2, Some("the recovery ended")));
    // The phases are the report's, which this sample makes of another plan: what is not in it is not told.
    assert_eq!(step(&told, "restore-files", "stop-kubelet").attempts.len(), 1);
    assert_eq!(told.without_journal, None);
    Ok(())
}

#[test]
fn a_run_that_another_one_replaced_has_its_journal_alone() -> Result<()> {
    let place = Place::new()?;
    let journal = String::from_utf8(samples::read("journal.4.jsonl"))?;
    let open: String = journal.lines().filter(|line| !line.contains("abandoned")).map(|line| format!("{line}\n")).collect();
    place.keep(&format!("{RUN}.progress"), open.as_bytes())?;
    let told = place.told(Some(RUN))?;
    assert_eq!((told.end, told.warnings.len()), (End::Replaced, 2));
    let rolled = step(&told, "platform", "roll-back");
    assert_eq!((rolled.tries, rolled.state), (2, StepState::Done));
    let ends: Vec<_> = rolled.attempts.iter().map(|one| (one.end, one.seconds, one.waited)).collect();
    assert_eq!(ends, [(AttemptEnd::Failed, 60.0, 0.0), (AttemptEnd::Done, 12.5, 11.75)]);
    let failure = rolled.attempts[0].failure.as_ref().context("no failure")?;
    assert_eq!((failure.kind.as_str(), failure.next.is_some()), ("unanswered", true));
    let reboot = &told.phases[0].reboots[0];
    assert_eq!(reboot.back.context("not back")?.duration_since(reboot.asked).as_secs(), 60);
    // An attempt that failed took its time as well.
    assert_eq!((told.seconds, told.waited, told.unfinished), (73.0, 11.75, 60.0));
    assert_eq!((told.phases[0].seconds, told.phases[0].unfinished), (73.0, 60.0));
    // The same journal in its place is the open one.
    std::fs::copy(place.dir.history().join(format!("{RUN}.progress")), place.dir.journal())?;
    let told = place.told(None)?;
    assert_eq!(told.end, End::Open);
    assert!(told.next.is_some());
    Ok(())
}

#[test]
fn an_attempt_that_was_cut_short_ends_when_it_was_last_heard_of() -> Result<()> {
    let place = Place::new()?;
    let journal = String::from_utf8(samples::read("journal.4.jsonl"))?;
    // Up to the note of a step that was then killed.
    let open: String = journal.lines().take(17).map(|line| format!("{line}\n")).collect();
    std::fs::write(place.dir.journal(), open)?;
    let told = place.told(None)?;
    let attempt = &step(&told, "restore-files", "old-containers").attempts[0];
    assert_eq!((attempt.end, attempt.seconds), (AttemptEnd::Open, 60.0));
    Ok(())
}

#[test]
fn a_run_that_nobody_knows_is_refused_with_those_there_are() -> Result<()> {
    let place = Place::new()?;
    assert_eq!(place.told(None).map_err(|error| exit_code(&error)).err(), Some(78));
    place.keep("r1.json", &samples::read("history-finished.1.json"))?;
    place.keep("upgrade-recovery-1.progress", b"started\n")?;
    for unknown in ["r2", "../history/r1", "", "upgrade-recovery-1"] {
        let error = place.told(Some(unknown)).unwrap_err();
        assert_eq!(exit_code(&error), 78, "{unknown}: {error:#}");
        assert!(error.to_string().contains("those there are: r1;"), "{unknown}: {error:#}");
    }
    let told = place.told(Some("r1"))?;
    assert_eq!(told.end, End::Finished);
    assert!(told.without_journal.is_some());
    Ok(())
}

#[test]
fn what_cannot_be_read_of_a_run_is_said() -> Result<()> {
    let place = Place::new()?;
    place.keep("r1.json", b"{")?;
    assert_eq!(place.told(None).map_err(|error| exit_code(&error)).err(), Some(65));
    let newer = String::from_utf8(samples::read("history.2.json"))?.replacen("\"version\": 2", "\"version\": 3", 1);
    place.keep("r1.json", newer.as_bytes())?;
    assert_eq!(place.told(None).map_err(|error| exit_code(&error)).err(), Some(64));
    // The report says enough without its journal.
    place.keep("r1.json", &samples::read("history.2.json"))?;
    place.keep("r1.progress", b"{}\n{}\n")?;
    let told = place.told(Some("r1"))?;
    let why = told.without_journal.as_deref().unwrap();
    assert!(why.starts_with("the journal /var/recovery/history/r1.progress cannot be read: line 1"), "as the node calls it: {why}");
    // Of one that is over, nobody is to begin or end anything.
    place.keep("r2.progress", b"{}\n{}\n")?;
    let error = place.told(Some("r2")).unwrap_err();
    assert_eq!((exit_code(&error), crate::error::next(&error)), (65, None), "{error:#}");
    // One of which nothing but its end is known.
    place.keep("unknown-1.json", br#"{"version":2,"agent":"0.1.0","end":"abandoned","run":null,"put_back":[],"changed":[],"state":"unknown","seconds":0.0,"waited":0.0}"#)?;
    assert_eq!(place.told(Some("unknown-1"))?.left.as_deref(), Some("unknown"));
    Ok(())
}
