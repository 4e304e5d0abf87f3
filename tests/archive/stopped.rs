//! One large file that is read or written: how far it is, and that the agent ends at once at SIGTERM, not when the file is done.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::hostile::{entry, pax};
use crate::{pack, text};
use testing::tree::{Scratch, noise};

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_recovery")).args(args).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Sends SIGTERM; the exit code.
fn stop(child: &mut Child) -> Option<i32> {
    let pid = i32::try_from(child.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it went on for a minute");
}

/// Before that, a signal ends it as any program.
fn wait_until_it_catches_signals(child: &Child) {
    let catches_sigterm = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (nix::libc::SIGTERM - 1)) != 0
    };
    let begun = Instant::now();
    while !catches_sigterm() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not catch SIGTERM");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn reading_one_large_file_can_be_stopped() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar");
    let size = 1_u64 << 40;
    let mut tar = File::create(&file).unwrap();
    // The content is a hole in the archive: an hour to be read.
    tar.write_all(&[pax(&[("size", &size.to_string())]), entry("large", b'0', "", b"")].concat()).unwrap();
    tar.set_len(size + (1 << 20)).unwrap();
    let mut child = start(&["archive", "diff", text(&file), text(&scratch.path("tree"))]);
    wait_until_it_catches_signals(&child);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(stop(&mut child), Some(75));
}

#[test]
fn how_far_it_is_stands_in_a_log_line_by_line() {
    let scratch = Scratch::new();
    let file = scratch.path("snapshot.db");
    // A hole, of which the sum is to be found: an hour.
    File::create(&file).unwrap().set_len((1 << 40) + 32).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_recovery"));
    let mut child = agent.args(["etcd", "status", text(&file)]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut far = || -> f64 {
        let line = lines.next().unwrap();
        let far = line.strip_prefix("checking: ").and_then(|rest| rest.strip_suffix(" MiB")).and_then(|far| far.parse().ok());
        far.unwrap_or_else(|| panic!("{line:?}"))
    };
    let (first, second) = (far(), far());
    assert!(0.0 < first && first < second, "{first}, {second}");
    assert_eq!(stop(&mut child), Some(75));
}

#[test]
fn how_far_it_is_stands_on_a_terminal_as_a_bar() {
    let scratch = Scratch::new();
    let (tree, file) = (scratch.path("tree"), scratch.path("a.tar.zst"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), noise(1, 128 << 20)).unwrap();
    pack(&tree, &file);
    let agent = format!("{} --yes archive restore '{}' '{}'", env!("CARGO_BIN_EXE_recovery"), text(&file), text(&scratch.path("to")));
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &agent, "/dev/null"]);
    let output = terminal.env("TERM", "xterm").stdin(Stdio::null()).output().unwrap();
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{screen:?}");
    let (bar, report) = screen.rsplit_once('\u{1b}').unwrap_or_else(|| panic!("no terminal is driven: {screen:?}"));
    assert!(bar.contains("restoring") && bar.contains("/128.00 MiB") && !bar.contains("restoring: "), "{screen:?}");
    assert!(report.contains("1 created"), "{screen:?}");
}

#[test]
fn restoring_one_large_file_can_be_stopped() {
    let scratch = Scratch::new();
    let (from, to, file) = (scratch.path("from"), scratch.path("to"), scratch.path("a.tar.zst"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("large"), noise(1, 128 << 20)).unwrap();
    pack(&from, &file);
    let mut child = start(&["--yes", "archive", "restore", text(&file), text(&to)]);
    let begun = Instant::now();
    while !is_begun(&to.join(".recovery-stage")) && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(stop(&mut child), Some(75));
    assert!(!to.join("large").exists(), "it was finished first");
}

/// Some file below `dir` has content.
fn is_begun(dir: &Path) -> bool {
    let meta = dir.symlink_metadata();
    let within = || fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| is_begun(&entry.path())));
    meta.is_ok_and(|meta| if meta.is_dir() { within() } else { meta.len() > 0 })
}
