//! `status --watch`: what a person sees of a recovery on a terminal of 24 lines, on a serial console, and in a file.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use recovery::engine::journal::New;
use recovery::error::{AndNext, by_hand, misfit};
use recovery::formats::journal::FailedV1;
use recovery::node::profile::Kind;
use recovery::recovery::procedure::{Asked, Beginning, Event, Journal, Phase, Plan};
use serde_json::Value;

use crate::place::Place;

/// As long as a look takes, and another for a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Escape sequences that a VT100 knows: clear, home, clear to the end of line and screen, line wrap off and on.
const KNOWN: [&str; 6] = ["[2J", "[H", "[K", "[J", "[?7l", "[?7h"];

/// The agent on a terminal of its own, and what that shows.
struct Watched {
    agent: Child,
    terminal: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Watched {
    fn new(place: &Place, term: &str, (rows, columns): (u16, u16)) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        // Its own side must be open here no longer than the agent has it, or the end would not be seen.
        let mut agent = place.agent_command(&["status", "--watch"]);
        agent.env("TERM", term).stdin(pty.slave.try_clone().unwrap()).stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        let child = agent.spawn().unwrap();
        drop(agent);
        let shown = if rows == 0 { (24, 80) } else { (rows, columns) };
        let screen = Arc::new(Mutex::new(vt100::Parser::new(shown.0, shown.1, 0)));
        let bytes = Arc::default();
        let watched = Self { agent: child, terminal: pty.master, screen, bytes };
        let (screen, bytes) = (Arc::clone(&watched.screen), Arc::clone(&watched.bytes));
        let mut from = std::fs::File::from(watched.terminal.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // At its end, a terminal fails to be read.
            while let Ok(length) = from.read(&mut buffer) {
                bytes.lock().unwrap().extend_from_slice(&buffer[..length]);
                screen.lock().unwrap().process(&buffer[..length]);
            }
        });
        watched
    }

    /// Another size, as when its window is drawn smaller.
    fn resize(&self, rows: u16, columns: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(rows, columns);
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.terminal, size).unwrap();
    }

    fn lines(&self) -> Vec<String> {
        let screen = self.screen.lock().unwrap();
        let columns = screen.screen().size().1;
        screen.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect()
    }

    fn written(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }

    /// Waits until the screen is as it should be.
    fn shows(&self, what: &str, is: impl Fn(&[String]) -> bool) -> Vec<String> {
        let end = Instant::now() + SOON;
        loop {
            let lines = self.lines();
            if is(&lines) {
                return lines;
            }
            assert!(Instant::now() < end, "{what}:\n{}", lines.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.agent.kill().ok();
        self.agent.wait().ok();
    }
}

fn any(lines: &[String], says: &str) -> bool {
    lines.iter().any(|line| line.contains(says))
}

/// An open recovery with everything in it that may be long, at this step of phase `resume`.
fn long_recovery(place: &Place, at: &str) -> Journal {
    let plan: Plan = place.plan(recovery::recovery::Options::default()).unwrap().report.phases.clone();
    let warning = |number: usize| format!("warning {number}: {}", "/etc/site/some-file differs from the machine configuration, ".repeat(5));
    let beginning = Beginning {
        profile: Kind::Kubeadm,
        target: None,
        asked: Asked::default(),
        restarts: None,
        inherits: false,
        warnings: (0..20).map(warning).collect(),
        rules: None,
    };
    let new = New { run: "5b5e8f1e-6f3c-4b0e-9d6c-0f5d3f1f0c11", subject: "b1", boot: "boot-1" };
    let mut journal = Journal::begin(&place.dir.journal(), new, &plan, &beginning).unwrap();
    for planned in plan {
        let phase = planned.phase;
        let mut add = |event| journal.append(&event, Value::Null).unwrap();
        add(Event::PhaseBegun(phase));
        for step in planned.steps {
            add(Event::StepIntent(phase, step.name.clone()));
            if phase == Phase::Resume && step.name == at {
                return journal;
            }
            add(Event::StepDone(phase, step.name));
        }
        if planned.reboot {
            add(Event::RebootRequested(phase));
        }
        add(Event::PhaseDone(phase));
    }
    panic!("there is no step {at}");
}

fn fails(journal: &mut Journal, at: &str) {
    let next = by_hand(format!(
        "look at the pod with `crictl ps -a`, {} and then `recovery resume`",
        "put right what keeps it from starting, ".repeat(3)
    ));
    let error = misfit(format!("the container does not start: {}", "no such file or directory, ".repeat(60))).and_next(next);
    let detail = serde_json::to_value(FailedV1::of(&error).unwrap()).unwrap();
    journal.append(&Event::StepFailed(Phase::Resume, at.to_owned()), detail).unwrap();
}

#[test]
fn a_screen_of_24_lines_has_the_step_at_work_and_what_to_do_next() {
    let place = Place::new();
    let at = "etcd-answers";
    let mut journal = long_recovery(&place, at);
    let watched = Watched::new(&place, "vt220", (24, 80));
    let lines = watched.shows("the step at work", |lines| any(lines, "  > etcd-answers") && any(lines, "next: "));
    assert!(any(&lines, "a run in the middle of step etcd-answers of resume, since ") && lines[23].is_empty(), "{lines:#?}");
    assert!(any(&lines, "s so far") && any(&lines, "  + start-kubelet") && any(&lines, "finish"), "{lines:#?}");
    assert!(any(&lines, "warning: warning 0") && any(&lines, "    ..."), "nothing says that warnings are left out: {lines:#?}");
    let cut = lines.iter().filter(|line| !line.is_empty()).count();
    assert!(cut > 15, "the screen is not made use of: {lines:#?}");

    fails(&mut journal, at);
    let failed = |lines: &[String]| any(lines, "  ! etcd-answers") && any(lines, "failed: the container does not start");
    let lines = watched.shows("the failure", failed);
    let next = lines.iter().position(|line| line.starts_with("next: ")).unwrap();
    let next = lines[next..].iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
    assert!(next.contains("look at the pod") && next.trim_end().ends_with("resume`"), "not whole: {lines:#?}");
    assert!(any(&lines, "  + start-kubelet") && any(&lines, "finish"), "{lines:#?}");
    assert!(lines[23].is_empty() && !lines[0].is_empty(), "{lines:#?}");

    // Cleared once for each size, and so without flicker.
    let cleared = || watched.written().matches("\x1b[2J").count();
    for (times, (rows, columns)) in [(12, 60), (24, 40), (40, 132), (24, 80)].into_iter().enumerate() {
        assert_eq!(cleared(), times + 1);
        watched.resize(rows, columns);
        watched.shows("a cleared screen", |_| cleared() == times + 2);
        let full = |lines: &[String]| any(lines, "  ! etcd-answers") && any(lines, "next: ") && lines.last().is_some_and(String::is_empty);
        let lines = watched.shows(&format!("a screen of {rows} lines and {columns} columns"), full);
        assert!(lines.len() == usize::from(rows) && any(&lines, "a run whose step etcd-answers"), "{lines:#?}");
    }
    let written = watched.written();
    let unknown = written.split('\x1b').skip(1).find(|rest| !KNOWN.iter().any(|known| rest.starts_with(known)));
    assert!(unknown.is_none() && written.is_ascii(), "a VT220 does not know {unknown:?}");
}

#[test]
fn a_serial_line_that_does_not_say_its_size_is_one_of_24_lines() {
    let place = Place::new();
    let _journal = long_recovery(&place, "api-server-ready");
    let watched = Watched::new(&place, "vt102", (0, 0));
    let lines = watched.shows("the step at work", |lines| any(lines, "  > api-server-ready") && any(lines, "next: "));
    assert!(lines[23].is_empty(), "{lines:#?}");
}

#[test]
fn a_terminal_that_knows_nothing_gets_a_report_when_something_changes() {
    let place = Place::new();
    let at = "etcd-answers";
    let mut journal = long_recovery(&place, at);
    let watched = Watched::new(&place, "dumb", (24, 80));
    let until = |what: &str, count: usize| {
        let end = Instant::now() + SOON;
        while watched.written().matches(what).count() < count {
            assert!(Instant::now() < end, "{what}: {}", watched.written());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("next: ", 1);
    // Three looks more, of which none has anything new.
    std::thread::sleep(Duration::from_secs(3));
    fails(&mut journal, at);
    until("  ! etcd-answers", 1);
    until("next: ", 2);
    let written = watched.written();
    assert!(!written.contains('\x1b'), "{written}");
    assert_eq!(written.matches("  > etcd-answers").count(), 1, "{written}");
    assert!(written.lines().all(|line| line.trim_end().chars().count() <= 80), "{written}");
}

#[test]
fn a_file_gets_a_report_when_something_changes() {
    let place = Place::new();
    let at = "etcd-answers";
    let mut journal = long_recovery(&place, at);
    for (format, at_work) in [("--verbose", "  > etcd-answers"), ("--json", "in the middle of step etcd-answers")] {
        let file = place.temporary.path().join("watched");
        let mut agent = place.agent_command(&["status", "--watch", format]);
        let mut agent = agent.stdout(std::fs::File::create(&file).unwrap()).stderr(Stdio::null()).spawn().unwrap();
        let count = |what: &str| std::fs::read_to_string(&file).unwrap().matches(what).count();
        let end = Instant::now() + SOON;
        while count(at_work) == 0 {
            assert!(Instant::now() < end, "{}", std::fs::read_to_string(&file).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(count(at_work), 1);
        fails(&mut journal, at);
        while count("the container does not start") == 0 {
            assert!(Instant::now() < end + SOON, "{}", std::fs::read_to_string(&file).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert!(!std::fs::read_to_string(&file).unwrap().contains('\x1b'));
        journal.append(&Event::StepIntent(Phase::Resume, at.to_owned()), Value::Null).unwrap();
    }
}
