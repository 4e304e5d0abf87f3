//! Every row of the table, and the table over every captured list of deployments.

use std::path::Path;

use super::*;
use crate::tools::rpm_ostree;

/// Deployments from a sketch, in boot order: `*` booted, `s` staged, `!` pinned, `~` prepared for a soft reboot; the letter is the
/// checksum, `x/` another stateroot.
fn sketch(text: &str) -> Vec<Deployment> {
    let deployment = |(index, word): (usize, &str)| {
        let (stateroot, rest) = word.split_once('/').map_or(("os", word), |(stateroot, rest)| (stateroot, rest));
        Deployment {
            index,
            stateroot: stateroot.to_owned(),
            checksum: rest[..1].repeat(64),
            serial: 0,
            booted: rest.contains('*'),
            staged: rest.contains('s'),
            pending: false,
            rollback: false,
            pinned: rest.contains('!'),
            soft_reboot: rest.contains('~'),
            version: None,
        }
    };
    text.split_whitespace().enumerate().map(deployment).collect()
}

fn recorded(stateroot: &str, letter: &str) -> Target {
    Target::Recorded(DeploymentId {
        stateroot: stateroot.to_owned(),
        checksum: letter.repeat(64),
        serial: 0,
        version: None,
        kernel_arguments: Vec::new(),
    })
}

/// The action as a word and the commands.
fn row(text: &str, target: &Target) -> String {
    let action = judge(&sketch(text), target);
    match &action {
        Action::Nothing => "none".to_owned(),
        Action::Refuse { why, .. } => format!("refuse: {why}"),
        _ => action.commands().join("; "),
    }
}

#[test]
fn every_row_of_the_table_has_its_action() {
    let a = recorded("os", "a");
    assert_eq!(row("a*! b", &a), "none");
    assert_eq!(row("a*", &a), "none", "booted and next is enough");
    assert_eq!(row("bs a*!", &a), "rpm-ostree cleanup -p");
    assert_eq!(row("b a*!", &a), "rpm-ostree cleanup -p");
    assert_eq!(row("b* a!", &a), "rpm-ostree rollback; systemctl reboot");
    assert_eq!(row("cs b* a!", &a), "rpm-ostree cleanup -p; rpm-ostree rollback; systemctl reboot");
    assert_eq!(row("b* c d a!", &a), "ostree admin undeploy 2; ostree admin undeploy 1; rpm-ostree rollback; systemctl reboot");
    assert_eq!(row("b* x/c a!", &a), "rpm-ostree rollback; systemctl reboot", "another stateroot's standby is not in the way");
    assert_eq!(row("a! b*", &a), "systemctl reboot");
    assert_eq!(row("cs a! b*", &a), "rpm-ostree cleanup -p; systemctl reboot");
}

#[test]
fn what_is_no_row_is_refused() {
    let a = recorded("os", "a");
    for (text, why) in [
        ("b* x/a!", "is gone; pinned is x"),
        ("b* a", "is not pinned"),
        ("a b*", "is not pinned"),
        ("b* c!", "is gone; pinned is os cccc"),
        ("b*", "is gone; nothing is pinned"),
        ("b* c! a!", "something else is pinned before"),
        ("c! a*!", "something else is pinned and boots next"),
        ("x/c a*!", "another stateroot boots next"),
        ("a! b", "no booted deployment"),
        ("", "no booted deployment"),
    ] {
        assert!(row(text, &a).starts_with("refuse: ") && row(text, &a).contains(why), "{text}: {}", row(text, &a));
    }
    assert!(row("b* x/a!", &recorded("x", "a")).contains("another stateroot than the booted"));
}

#[test]
fn a_backup_that_records_no_deployment_means_the_pinned_one() {
    assert_eq!(row("b* a!", &Target::Pinned), "rpm-ostree rollback; systemctl reboot");
    assert_eq!(row("a*! b", &Target::Pinned), "none");
    assert!(row("b* a", &Target::Pinned).contains("nothing is pinned"));
    assert!(row("b* a! c!", &Target::Pinned).contains("more than one is pinned"));
}

#[test]
fn what_rpm_ostree_does_not_drop_is_named_with_the_command_that_lets_it_go() {
    let way = |all: &[Deployment], target: &str| match judge(all, &recorded("os", target)) {
        Action::Refuse { way, .. } => way.map_or_else(String::new, |way| way.to_string()),
        action => panic!("{action:?}"),
    };
    assert!(way(&sketch("c! b* a!"), "a").starts_with("`ostree admin pin --unpin 0`"));
    assert!(way(&sketch("b* c! a!"), "a").starts_with("`ostree admin pin --unpin 1`"));
    let mut other = sketch("c b* a!");
    other[0].stateroot = "other".to_owned();
    assert!(way(&other, "a").starts_with("`ostree admin undeploy 0`"));
}

#[test]
fn the_same_checksum_with_another_serial_is_another_deployment() {
    let mut all = sketch("a* a!");
    all[1].serial = 1;
    assert_eq!(judge(&all, &recorded("os", "a")), Action::Nothing);
    all[0].serial = 2;
    assert!(matches!(judge(&all, &recorded("os", "a")), Action::Refuse { .. }));
}

/// A node whose `ostree` and `rpm-ostree` print this capture.
fn printing(capture: &Path) -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("root/run")).unwrap();
    std::fs::write(dir.path().join("root/run/ostree-booted"), "").unwrap();
    std::os::unix::fs::symlink(capture, dir.path().join("capture")).unwrap();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tools/print-capture");
    for tool in ["ostree", "rpm-ostree"] {
        std::os::unix::fs::symlink(&program, dir.path().join(tool)).unwrap();
    }
    let node = Node::at(&dir.path().join("root"), Some(dir.path()));
    (dir, node)
}

fn captures(folder: &str, wanted: &str) -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|path| path.file_name().unwrap().to_string_lossy().ends_with(wanted));
    all.sort();
    assert!(all.len() > 5);
    all
}

/// Whatever the list, each of its deployments as the target has an action that fits where it stands, and doing it leads to the target.
fn every_target_of(all: &[Deployment], from: &Path) {
    let running = all.iter().position(|d| d.booted);
    for (at, wanted) in all.iter().enumerate() {
        let target = Target::Recorded(DeploymentId {
            stateroot: wanted.stateroot.clone(),
            checksum: wanted.checksum.clone(),
            serial: wanted.serial,
            version: None,
            kernel_arguments: Vec::new(),
        });
        let action = judge(all, &target);
        let Some(running) = running else {
            assert!(matches!(action, Action::Refuse { .. }), "{}", from.display());
            continue;
        };
        match &action {
            Action::Nothing => assert!(wanted.booted && at == 0),
            Action::Drop { ahead } => assert!(wanted.booted && ahead.len() == at && at > 0),
            Action::RollBack { between, .. } => {
                assert!(at > running && wanted.pinned && between.len() < at - running);
                assert_eq!(between.is_empty(), wanted.rollback, "{}: the rollback slot is what ostree marks", from.display());
            }
            Action::Reboot { ahead } => assert!(at < running && wanted.pinned && ahead.len() == at),
            Action::Refuse { why, .. } => assert!(!(why.is_empty() || wanted.booted && at == 0), "{}: {why}", from.display()),
        }
    }
}

#[test]
fn the_table_holds_for_every_capture_of_ostree() {
    for capture in captures("ostree", ".txt").into_iter().chain(captures("ostree", ".json")) {
        let (_dir, node) = printing(&capture);
        every_target_of(&ostree::deployments(&node).unwrap(), &capture);
    }
}

#[test]
fn the_table_holds_for_every_capture_of_rpm_ostree() {
    for capture in captures("rpm-ostree", ".json") {
        let (_dir, node) = printing(&capture);
        every_target_of(&rpm_ostree::deployments(&node).unwrap(), &capture);
    }
}

#[test]
fn captured_arrangements_are_the_rows_they_look_like() {
    let judged = |name: &str| {
        let (_dir, node) = printing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ostree").join(name));
        report(&node, Target::Pinned).unwrap()
    };
    let rollback = judged("gen-05-booted-plus-pinned-rollback.txt");
    assert_eq!(rollback.commands, ["rpm-ostree rollback", "systemctl reboot"], "{}", rollback.summary);
    assert_eq!(judged("gen-02-single-booted-pinned.txt").action, Action::Nothing);
    assert!(judged("gen-15-staged-booted-pinned.txt").deployments[0].staged);
    assert!(matches!(judged("gen-01-single-booted.txt").action, Action::Refuse { .. }));
}

#[test]
fn what_is_refused_shows_the_table_and_can_be_forced() {
    let (_dir, node) =
        printing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ostree/gen-05-booted-plus-pinned-rollback.txt"));
    let report = report(&node, Target::Pinned).unwrap();
    let error = report.check(false, When::Open).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 78);
    let text = error.to_string();
    assert!(text.contains("rollback, pinned") && text.contains("next: `recovery restart`"), "{text}");
    let before_a_run = report.refused(false, When::Before).unwrap_err().to_string();
    assert!(before_a_run.contains("next: `recovery platform --rollback`"), "{before_a_run}");
    assert!(report.check(true, When::Open).unwrap().unwrap().contains("by --force"));
}

/// A report on a sketch.
fn of(text: &str, target: Target) -> PlatformReport {
    let deployments = sketch(text);
    let action = judge(&deployments, &target);
    let (summary, commands) = (action.summary(), action.commands());
    PlatformReport { deployments, target: Some(target), action, summary, commands, soft_reboot: None }
}

#[test]
fn after_the_reboot_another_deployment_than_meant_is_named_with_the_way_to_the_right_one() {
    let said = |text: &str, when| of(text, recorded("os", "a")).check(false, when).unwrap_err().to_string();
    let another = "the node has rebooted, but it booted os bbbbbbbbbbbb.0 and not the backup's deployment os aaaaaaaaaaaa.0; ";
    let fell_back = said("a! b*", When::Rebooted);
    assert!(
        fell_back.starts_with(another) && fell_back.contains("next: `systemctl reboot`, with an eye on the boot loader"),
        "{fell_back}"
    );
    let chosen = said("b* a!", When::Rebooted);
    assert!(chosen.starts_with(another) && chosen.contains("next: `recovery restart` begins again"), "{chosen}");
    // It did not reboot, or is what was meant and something else boots next.
    for (text, when) in [("a! b*", When::Open), ("b* a!", When::Open), ("b a*!", When::Rebooted)] {
        let said = said(text, when);
        assert!(!said.contains("the node has rebooted") && said.contains("next: `recovery restart`"), "{said}");
    }
    assert_eq!(of("a*! b", recorded("os", "a")).check(false, When::Rebooted).unwrap(), None);
}

#[test]
fn what_a_soft_reboot_goes_into_is_not_what_boots_next() {
    // Nothing else is wrong; and --force is no answer.
    let report = of("a*! b~", recorded("os", "a"));
    assert_eq!(report.action, Action::Nothing);
    for force in [false, true] {
        let said = report.check(force, When::Open).unwrap_err().to_string();
        assert!(
            said.contains("a soft reboot into os bbbbbbbbbbbb.0 is prepared") && said.contains("prepare-soft-reboot --reset"),
            "{said}"
        );
    }
    let (_dir, node) = printing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ostree/json-13-soft-reboot-prepared.json"));
    let report = super::report(&node, Target::Pinned).unwrap();
    assert_eq!(report.commands[0], ostree::UNDO_SOFT_REBOOT);
    assert!(report.soft_reboot.unwrap().contains("into rhcos a5010d058888.0 (416.94.202406172220-0) is prepared"));
    assert!(table(&report.deployments).contains("pending, soft reboot\n"), "{}", table(&report.deployments));
}

/// As `ostree admin undeploy` leaves it: nothing in the list tells of it.
#[test]
fn a_soft_reboot_into_what_was_dropped_is_seen() {
    let (dir, node) = printing(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ostree/json-14-soft-reboot-undeployed.json"));
    assert_eq!(super::report(&node, Target::Pinned).unwrap().soft_reboot, None);
    std::fs::create_dir_all(dir.path().join("root/run/nextroot/usr")).unwrap();
    let report = super::report(&node, Target::Pinned).unwrap();
    assert!(report.soft_reboot.unwrap().contains("/run/nextroot, a deployment that was dropped"));
    assert_eq!(report.commands, [ostree::UNDO_SOFT_REBOOT]);
}
