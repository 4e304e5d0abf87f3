//! The way through the first phase, over the reboot, to etcd's data; and every way out of it.

use std::path::Path;

use recovery::error::exit_code;
use recovery::recovery::procedure::Phase;
use recovery::recovery::{Asked, Options, Outcome, ResumeOptions};

use testing::sealed;

use crate::place::Place;

const HOLD: &str = "/var/lib/recovery/hold-kubelet";
const DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/10-recovery-hold.conf";

fn resumed() -> ResumeOptions {
    ResumeOptions::default()
}

#[test]
fn the_first_phase_restores_the_files_and_asks_for_the_reboot() {
    let place = Place::new();
    // It says something of this boot, and no backup of another agent's need say so.
    place.put("/etc/.updated", "now");
    let report = place.restore_files(Asked::default()).unwrap();
    assert_eq!(report.outcome, Outcome::RebootNeeded);
    assert!(report.next.unwrap().to_string().contains("systemctl reboot"));
    assert_eq!(place.read("/etc/site/settings"), "before");
    assert_eq!(place.read("/etc/site/gone"), "before");
    assert_eq!(place.read("/usr/local/bin/tool"), "before");
    assert!(!place.at("/etc/site/added").exists());
    assert_eq!(place.read("/etc/.updated"), "now");
    assert!(place.at(HOLD).exists() && place.at(DROP_IN).exists(), "held, though the backup's /etc knows nothing of it");
    let calls = place.calls();
    let order = ["systemctl stop kubelet.service", "crictl stop", "systemctl stop containerd.service", "systemctl daemon-reload"];
    let at: Vec<usize> = order.iter().map(|call| calls.iter().rposition(|c| c.starts_with(call)).unwrap()).collect();
    assert!(at.is_sorted(), "{calls:?}");
    assert!(!calls.contains(&"systemctl reboot".to_owned()), "the reboot is asked for, not done");
    let status = place.status();
    assert!(status.hold && status.run.unwrap().needs_reboot);
    assert_eq!(status.next.unwrap().to_string(), "`systemctl reboot`");
}

#[test]
fn the_reboot_is_done_when_it_was_asked_for() {
    let place = Place::new();
    let report = place.restore_files(Asked { reboot: true, ..Asked::default() }).unwrap();
    assert_eq!(report.outcome, Outcome::Rebooting);
    assert_eq!(place.calls().last().unwrap(), "systemctl reboot");
}

#[test]
fn a_reboot_asked_for_later_is_done_then() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let report = place.restore_files(Asked { reboot: true, ..Asked::default() }).unwrap();
    assert_eq!(report.outcome, Outcome::Rebooting);
    assert_eq!(place.done().iter().filter(|(_, times)| *times > 1).count(), 0, "nothing is done twice");
}

#[test]
fn resume_needs_the_reboot_and_goes_on_after_it() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let error = place.resume(&resumed()).unwrap_err();
    assert_eq!(exit_code(&error), 75);
    assert!(error.to_string().contains("has not rebooted"), "{error:#}");
    place.reboot("boot-2");
    place.put("/etc/kubernetes/manifests/kube-apiserver.yaml", "after");
    place.put("/etc/kubernetes/manifests/added.yaml", "after");
    place.put("/var/lib/kubelet/config.yaml", "after");
    // There is no snapshot in the backup: the phase comes as far as etcd's data, and leaves what is there alone.
    let error = place.resume(&resumed()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("phase resume, step etcd-data failed: ") && text.contains("; next: "), "{text}");
    assert_eq!(place.read("/var/lib/kubelet/config.yaml"), "before");
    assert_eq!(std::fs::read_dir(place.at("/etc/kubernetes/manifests")).unwrap().count(), 0, "emptied, and etcd is not restored yet");
    assert_eq!(place.read("/var/lib/etcd/member/old"), "before");
    assert!(place.at(HOLD).exists());
    assert!(!place.calls().iter().any(|call| call.starts_with("systemctl start kubelet")));
    let run = place.status().run.unwrap();
    assert_eq!((run.phase, run.step.as_deref()), (Some(Phase::Resume), Some("etcd-data")));
    assert!(run.failure.is_some());
}

#[test]
fn a_reboot_in_the_middle_makes_the_volatile_steps_come_again() {
    let place = Place::new();
    // A directory where the archive wants a file, that cannot be removed: a mount point would be one.
    place.fail("systemctl stop containerd.service");
    let error = place.restore_files(Asked::default()).unwrap_err();
    assert!(format!("{error:#}").starts_with("phase restore-files, step stop-runtime failed: "), "{error:#}");
    place.reboot("boot-2");
    let report = place.resume(&resumed()).unwrap().unwrap();
    assert_eq!(report.outcome, Outcome::RebootNeeded, "the files were restored in this boot");
    let twice: Vec<String> = place.done().into_iter().filter(|(_, times)| *times == 2).map(|(step, _)| step).collect();
    assert_eq!(twice, ["deployment", "stop-kubelet", "stop-containers"]);
    assert_eq!(place.read("/etc/site/settings"), "before");
}

#[test]
fn one_phase_at_a_time_waits_for_a_person() {
    let place = Place::new();
    place.restore_files(Asked { step: true, ..Asked::default() }).unwrap();
    place.reboot("boot-2");
    let report = place.resume(&ResumeOptions { unit: true, ..resumed() }).unwrap().unwrap();
    assert_eq!(report.outcome, Outcome::LeftToAPerson);
    assert_eq!(place.status().next.unwrap().to_string(), "`recovery resume --step`");
    assert!(place.resume(&resumed()).unwrap_err().to_string().contains("step etcd-data"));
}

#[test]
fn a_backup_that_is_lost_before_the_second_phase_names_the_way_out() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    place.reboot("boot-2");
    std::fs::remove_file(place.dir.backups().join("b1/SHA256SUMS")).unwrap();
    let error = place.resume(&resumed()).unwrap_err();
    assert_eq!(exit_code(&error), 65);
    assert!(error.to_string().contains("b1") && error.to_string().contains("next: `recovery verify` says which"), "{error}");
    assert!(error.to_string().contains("`recovery restart --backup ID` with that one"), "{error}");
}

#[test]
fn the_unit_that_comes_second_does_not_take_the_reboot_for_one_to_come() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    place.reboot("boot-2");
    // Another verb only looks.
    let lock = place.dir.lock("backup").unwrap();
    let looks = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(5));
        drop(lock);
    });
    let error = place.resume(&ResumeOptions { unit: true, ..resumed() }).unwrap_err();
    assert_eq!(exit_code(&error), 75, "systemd starts it again: {error}");
    looks.join().unwrap();
}

#[test]
fn old_containers_are_noted_once() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    place.state("containers.json", r#"{"containers":[]}"#);
    place.resume(&resumed()).unwrap();
    let notes: Vec<_> =
        place.journal().records.iter().filter(|r| r.detail == serde_json::json!(["old-etcd"])).map(|r| r.sequence).collect();
    assert_eq!(notes.len(), 1);
}

#[test]
fn a_dry_run_lists_the_changes_and_makes_none() {
    let place = Place::new();
    let before = place.files();
    let plan = place.plan(Options { compare: true, ..Options::default() }).unwrap();
    let etc = plan.report.changes.iter().find(|c| c.tree == "/etc").unwrap();
    let mut paths: Vec<String> = etc.changes.iter().map(|c| c.path.display().to_string()).collect();
    paths.retain(|path| path.starts_with("site/"));
    paths.sort();
    assert_eq!(paths, ["site/added", "site/gone", "site/settings"]);
    drop(plan);
    assert_eq!(place.files(), before);
    assert!(place.status().run.is_none() && place.calls().is_empty());
}

#[test]
fn selinux_is_put_back_when_a_restore_fails() {
    let place = Place::new();
    place.put("/sys/fs/selinux/enforce", "1");
    let backup = place.dir.backups().join("b1");
    let plan = place.plan(Options::default()).unwrap();
    // Damaged after it was checked.
    std::fs::write(backup.join("etc.tar.zst"), "no archive").unwrap();
    assert_eq!(exit_code(&plan.begin().unwrap_err()), 65);
    assert!(place.status().next.unwrap().to_string().contains("`recovery restart --backup ID`"), "going on would fail the same way");
    assert_eq!(place.read("/sys/fs/selinux/enforce"), "1");
    assert_eq!(place.read("/etc/site/settings"), "after");
}

#[test]
fn abandoning_before_anything_was_changed_leaves_the_node_as_it_was() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    let report = place.abandon().unwrap().unwrap();
    assert!(report.changed.is_empty() && report.state.contains("as it was before"), "{report:?}");
    assert!(!place.at(HOLD).exists() && !place.dir.in_recovery() && !place.dir.undo().exists());
    assert!(place.calls().contains(&"systemctl start kubelet.service".to_owned()), "it was running before");
    assert_eq!(place.history().len(), 2, "journal and report");
    assert!(place.abandon().unwrap().is_none());
}

#[test]
fn a_kubelet_that_fails_and_is_tried_again_was_running() {
    // It is, after most upgrades that have failed. The power may go before it is stopped: held, it does not run after the boot.
    for cut in [false, true] {
        let place = Place::new();
        place.state("kubelet.service", "activating");
        place.fail(if cut { "systemctl daemon-reload" } else { "systemctl stop containerd.service" });
        place.restore_files(Asked::default()).unwrap_err();
        if cut {
            place.fail("systemctl stop containerd.service");
            place.reboot("boot-2");
            place.resume(&resumed()).unwrap_err();
        }
        let report = place.abandon().unwrap().unwrap();
        assert!(report.state.contains("as it was before"), "{report:?}");
        assert_eq!(place.state_of("kubelet.service"), "active", "cut: {cut}");
    }
}

#[test]
fn abandoning_half_way_says_so_and_starts_nothing() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let report = place.abandon().unwrap().unwrap();
    assert_eq!(report.changed.len(), 4, "{:?}", report.changed);
    assert!(report.put_back.iter().any(|line| line.contains("kubelet.service was running")), "{:?}", report.put_back);
    assert!(!place.at(HOLD).exists());
    assert!(!place.calls().contains(&"systemctl start kubelet.service".to_owned()));
    // What is on the node now can be recovered again.
    assert_eq!(place.restore_files(Asked::default()).unwrap().outcome, Outcome::RebootNeeded);
}

#[test]
fn restart_begins_a_new_run_and_keeps_the_old_journal() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    let old = place.journal().run;
    let report = place.restart(None).unwrap();
    assert_eq!(report.outcome, Outcome::RebootNeeded);
    assert_ne!(report.run.id, old);
    assert_eq!(place.journal().beginning.restarts, Some(old.clone()));
    assert_eq!(place.history(), [format!("{old}.progress")]);
    let undo = std::fs::read_to_string(place.dir.undo()).unwrap();
    assert!(undo.contains(&old) && undo.contains(&report.run.id) && undo.contains("\"kubelet.service\": true"), "{undo}");
}

#[test]
fn a_journal_that_cannot_be_read_can_be_restarted_and_abandoned() {
    let spoil: [fn(&Path); 2] = [
        |journal| {
            let text = std::fs::read_to_string(journal).unwrap();
            std::fs::write(journal, text.replacen("phase-begun", "phase-bogun", 1)).unwrap();
        },
        // It opens, and every read of it fails, as where a disk has a bad sector.
        |journal| {
            std::fs::remove_file(journal).unwrap();
            std::os::unix::fs::symlink("/proc/self/mem", journal).unwrap();
        },
    ];
    for (restart, spoil) in [(true, spoil[0]), (false, spoil[0]), (true, spoil[1]), (false, spoil[1])] {
        let place = Place::new();
        place.restore_files(Asked::default()).unwrap();
        spoil(&place.dir.journal());
        for error in [place.resume(&resumed()).unwrap_err(), place.restore_files(Asked::default()).unwrap_err()] {
            assert_eq!(exit_code(&error), 65);
            assert!(error.to_string().contains("recovery abandon"));
        }
        assert!(place.status().unreadable.is_some());
        if restart {
            assert_eq!(place.restart(None).unwrap().outcome, Outcome::RebootNeeded);
        } else {
            let report = place.abandon().unwrap().unwrap();
            assert!(report.state.contains("half restored"));
            assert!(!place.at(HOLD).exists() && !place.dir.in_recovery());
        }
        assert!(place.history().iter().any(|name| name.ends_with(".progress")));
    }
}

#[test]
fn restart_without_journal_and_undo_needs_to_be_told_the_backup() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    std::fs::write(place.dir.journal(), "garbage\n").unwrap();
    std::fs::remove_file(place.dir.undo()).unwrap();
    assert_eq!(exit_code(&place.restart(None).unwrap_err()), 2);
    assert_eq!(place.restart(Some("b1")).unwrap().outcome, Outcome::RebootNeeded);
}

#[test]
fn an_agent_that_cannot_be_installed_is_when_the_recovery_goes_on() {
    let place = Place::new();
    let in_the_way = place.dir.path().join("upgrade-recovery.sh");
    std::fs::create_dir(&in_the_way).unwrap();
    let restore = || place.agent(&["--yes", "restore-files"]);
    restore().expect(0, &["tried again at the end of the phase", "after the reboot nothing goes on by itself"]).unwrap();
    std::fs::remove_dir(&in_the_way).unwrap();
    restore().expect(0, &[]).unwrap();
    assert!(in_the_way.is_file());
}

#[test]
fn a_recovery_that_the_old_script_left_open_is_told_from_one_of_the_agents() {
    let notes = "started\nrestore_files\n";
    let place = Place::new();
    std::fs::write(place.dir.journal(), notes).unwrap();
    let status = place.status();
    assert!(status.run.is_none() && status.unreadable.is_none() && !place.dir.in_recovery(), "{status:?}");
    assert_eq!(status.old_script.unwrap(), ["started", "restore_files"]);
    assert!(status.next.unwrap().to_string().starts_with("`recovery recover`"));
    let shown = place.agent(&["status"]);
    assert!(shown.out.starts_with("no recovery of this agent is in progress, but upgrade-recovery.sh"), "{}", shown.out);

    // The unit leaves it alone; a person is told what to do.
    let by_the_unit = ResumeOptions { unit: true, ..ResumeOptions::default() };
    assert!(place.resume(&by_the_unit).unwrap().is_none());
    let error = place.resume(&ResumeOptions::default()).unwrap_err();
    assert_eq!(exit_code(&error), 64);
    assert!(error.to_string().contains("next: `recovery recover`"), "{error}");
    assert_eq!(std::fs::read_to_string(place.dir.journal()).unwrap(), notes);

    // Put away, its notes are kept.
    let report = place.abandon().unwrap().unwrap();
    assert!(report.run.is_none() && report.put_back[0].contains("upgrade-recovery.sh"), "{report:?}");
    assert!(place.abandon().unwrap().is_none() && !place.dir.journal().exists());
    let kept = place.dir.history().join(&place.history()[0]);
    assert_eq!(std::fs::read_to_string(kept).unwrap(), notes);

    // A recovery takes its place, whichever verb begins it, and says so; given up, the node is not called whole.
    for restart in [false, true] {
        let place = Place::new();
        std::fs::write(place.dir.journal(), notes).unwrap();
        let report = if restart { place.restart(None) } else { place.restore_files(Asked::default()) }.unwrap();
        assert_eq!(report.outcome, Outcome::RebootNeeded);
        assert!(report.run.warnings.iter().any(|warning| warning.contains("upgrade-recovery.sh")), "{:?}", report.run.warnings);
        assert!(place.journal().beginning.inherits && place.status().old_script.is_none());
    }
}

#[test]
fn what_a_run_that_nobody_knows_of_had_changed_is_not_called_unchanged() {
    let lose: [fn(&Place); 3] = [
        |place| std::fs::remove_file(place.dir.journal()).unwrap(),
        |place| [place.dir.journal(), place.dir.undo()].iter().for_each(|file| std::fs::remove_file(file).unwrap()),
        |place| {
            std::fs::write(place.dir.journal(), "garbage\n").unwrap();
            std::fs::remove_file(place.dir.undo()).unwrap();
        },
    ];
    for (case, lose) in lose.iter().enumerate() {
        let place = Place::new();
        place.restore_files(Asked::default()).unwrap();
        lose(&place);
        place.state("containerd.service", "active");
        place.fail("systemctl stop containerd.service");
        let failed = if place.dir.in_recovery() { place.restart(Some("b1")) } else { place.restore_files(Asked::default()) };
        assert!(failed.unwrap_err().to_string().contains("step stop-runtime"), "{case}");
        let report = place.abandon().unwrap().unwrap();
        assert!(!report.state.contains("as it was before"), "{case}: {report:?}");
        assert!(!place.calls().contains(&"systemctl start kubelet.service".to_owned()), "{case}");
    }
}

#[test]
fn a_run_that_was_over_when_the_power_failed_is_put_away() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let mut journal = recovery::recovery::procedure::Journal::open(&place.dir.journal(), "boot-1").unwrap().unwrap();
    journal.append(&recovery::recovery::procedure::Event::Abandoned, serde_json::Value::Null).unwrap();
    drop(journal);
    let report = place.resume(&resumed()).unwrap().unwrap();
    assert_eq!(report.outcome, Outcome::Abandoned, "what was given up is not finished");
    assert!(!place.dir.in_recovery() && !place.dir.undo().exists() && !place.at(HOLD).exists());
    assert_eq!(place.history().len(), 2);
}

#[test]
fn giving_up_that_was_cut_short_says_the_same_the_second_time() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    place.put("/etc/.recovery-stage/0/new", "half a secret");
    place.put("/var/.recovery-stage/0/new", "half a secret");
    place.put("/var/recovery/cluster-restore/cluster/snapshot.db", "secrets");
    // The hold is lifted by then.
    place.fail("systemctl show --property=ActiveState");
    place.abandon().unwrap_err();
    assert!(place.dir.in_recovery() && !place.at(HOLD).exists());
    let report = place.abandon().unwrap().unwrap();
    assert_eq!(report.changed.len(), 4, "{report:?}");
    assert!(report.state.contains("restored so far"), "{}", report.state);
    let left = ["/etc/.recovery-stage", "/var/.recovery-stage", "/var/recovery/cluster-restore"];
    assert!(left.iter().all(|path| !place.at(path).exists()));
}

#[test]
fn a_run_that_was_noted_and_never_begun_is_nothing_to_worry_about() {
    let place = Place::new();
    place.plan(Options::default()).unwrap().begin().unwrap();
    let mut undo = sealed::read(&place.dir.undo()).unwrap();
    place.abandon().unwrap().unwrap();
    undo["units"] = serde_json::json!({});
    sealed::write(&place.dir.undo(), &undo).unwrap();
    let report = place.abandon().unwrap().unwrap();
    assert!(report.state.contains("nothing on disk was changed"), "{}", report.state);
    assert!(!place.dir.undo().exists());
}

#[test]
fn a_recovery_directory_that_is_not_mounted_is_not_taken_for_a_recovery_that_is_over() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let aside = place.at("/var/aside");
    std::fs::create_dir(&aside).unwrap();
    let moved = [place.dir.journal(), place.dir.undo()].map(|file| (aside.join(file.file_name().unwrap()), file));
    moved.iter().for_each(|(aside, file)| std::fs::rename(file, aside).unwrap());
    for error in [place.resume(&resumed()).unwrap_err(), place.abandon().unwrap_err()] {
        assert_eq!(exit_code(&error), 78);
        assert!(error.to_string().contains("findmnt /var/recovery"), "{error}");
    }
    let next = place.status().next.unwrap().to_string();
    assert!(next.contains("findmnt /var/recovery") && place.at(HOLD).exists(), "{next}");
    // Mounted again, it goes on; and when it is lost, kubelet can be let go.
    moved.iter().for_each(|(aside, file)| std::fs::rename(aside, file).unwrap());
    assert_eq!(exit_code(&place.resume(&resumed()).unwrap_err()), 75, "it waits for the reboot");
    moved.iter().for_each(|(_, file)| std::fs::remove_file(file).unwrap());
    let report = recovery::recovery::abandon(&testing::session::session(&place.node, &place.dir), true).unwrap().unwrap();
    assert!(report.state.contains("half restored") && !place.at(HOLD).exists(), "{report:?}");
}

#[test]
fn a_unit_that_does_not_start_does_not_keep_a_recovery_from_being_given_up() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    place.fail("systemctl start kubelet.service");
    let report = place.abandon().unwrap().unwrap();
    assert!(report.put_back.iter().any(|line| line.contains("kubelet.service") && line.contains("does not start")), "{report:?}");
    assert!(!place.dir.in_recovery() && !place.dir.undo().exists());
}

#[test]
fn giving_up_leaves_no_parts_of_files_behind() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    place.put("/etc/.recovery-stage/0/new", "half a secret");
    let report = place.abandon().unwrap().unwrap();
    assert!(!place.at("/etc/.recovery-stage").exists());
    assert!(report.put_back.iter().any(|line| line.contains("restore of /etc")), "{:?}", report.put_back);
}

#[test]
fn a_kubelet_that_is_let_go_in_the_middle_is_held_and_stopped_again() {
    // It is stopped again at once; or later than systemd was waited for; or the hold was never taken away.
    for case in ["at once", "late", "held"] {
        let place = Place::new();
        place.fail("systemctl stop containerd.service");
        place.restore_files(Asked::default()).unwrap_err();
        // Somebody wants to look at something, and starts what was stopped.
        if case != "held" {
            std::fs::remove_file(place.at(HOLD)).unwrap();
        }
        place.state("kubelet.service", "active");
        if case == "late" {
            place.fail("systemctl stop kubelet.service");
            place.resume(&resumed()).unwrap_err();
            place.state("kubelet.service", "inactive");
        }
        assert_eq!(place.resume(&resumed()).unwrap().unwrap().outcome, Outcome::RebootNeeded);
        assert!(place.at(HOLD).exists());
        assert_eq!(place.state_of("kubelet.service"), "inactive");
        let twice: Vec<String> = place.done().into_iter().filter(|(_, times)| *times == 2).map(|(step, _)| step).collect();
        assert_eq!(twice, ["deployment", "stop-kubelet", "stop-containers"], "{case}: what kubelet has started is stopped again");
    }
}

#[test]
fn a_run_that_is_asked_for_something_else_is_begun_again() {
    let stuck = |asked: Asked| {
        let place = Place::new();
        place.fail("systemctl stop containerd.service");
        place.restore_files(asked).unwrap_err();
        place
    };
    let second = |place: &Place, asked: Asked| {
        let plan = place.plan(Options { asked, ..Options::default() }).unwrap();
        (plan.report.continues.is_some(), plan.report.replaces.is_some())
    };
    let by_step = Asked { step: true, ..Asked::default() };
    let waits = |seconds| Asked { wait: Some(seconds), ..Asked::default() };
    // The wait is that of `restore_files`; who reboots is for each to say.
    for (first, then, goes_on) in [
        (Asked::default(), Asked::default(), true),
        (Asked::default(), waits(1), true),
        (Asked::default(), Asked { reboot: true, ..Asked::default() }, true),
        (Asked { force: true, ..Asked::default() }, Asked::default(), true),
        (Asked::default(), Asked { force: true, ..Asked::default() }, false),
        (by_step, Asked::default(), false),
        (Asked::default(), by_step, false),
        (Asked::default(), waits(2), false),
    ] {
        let place = stuck(first);
        assert_eq!(second(&place, then), (goes_on, !goes_on), "{first:?}, then {then:?}");
        let report = place.plan(Options { asked: then, ..Options::default() }).unwrap().begin().unwrap();
        assert_eq!(report.run.by_step, if goes_on { first.step } else { then.step });
        let next = report.next.unwrap().to_string();
        assert_eq!(next.contains("by itself"), !report.run.by_step, "{next}");
    }
}

#[test]
fn a_wait_that_was_given_holds_over_the_reboot() {
    let place = Place::new();
    place.plan(Options { asked: Asked { wait: Some(3600), ..Asked::default() }, ..Options::default() }).unwrap().begin().unwrap();
    assert_eq!(place.journal().beginning.asked.wait, Some(3600));
    place.restart(None).unwrap();
    assert_eq!(place.journal().beginning.asked.wait, Some(3600), "nor does a restart forget it");
}

#[test]
fn what_the_failed_release_left_of_its_configuration_stops_nothing() {
    for left in ["", "{", "{\"spec\":{\"config\":{\"storage\":{\"files\":[{\"path\":\"../up\"}]}}}}"] {
        let place = Place::new();
        place.put("/etc/machine-config-daemon/currentconfig", left);
        let report = place.restore_files(Asked::default()).unwrap();
        assert_eq!(report.outcome, Outcome::RebootNeeded);
        assert!(report.run.warnings.iter().any(|w| w.contains("outside /etc stay")), "{left}: {:?}", report.run.warnings);
    }
}

#[test]
fn a_new_recovery_puts_back_what_one_that_was_given_up_half_way_did_not() {
    let place = Place::new();
    place.put("/sys/fs/selinux/enforce", "0");
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    let mut undo = recovery::recovery::undo::Undo::load(&place.dir).unwrap().unwrap();
    undo.selinux = Some(recovery::node::selinux::Mode::Enforcing);
    undo.save(&testing::session::locked(&place.node, &place.dir)).unwrap();
    let mut journal = recovery::recovery::procedure::Journal::open(&place.dir.journal(), "boot-1").unwrap().unwrap();
    journal.append(&recovery::recovery::procedure::Event::Abandoned, serde_json::Value::Null).unwrap();
    drop(journal);
    assert_eq!(place.restore_files(Asked::default()).unwrap().outcome, Outcome::RebootNeeded);
    assert_eq!(place.read("/sys/fs/selinux/enforce"), "1", "its mode was noted in undo.json alone");
}

#[test]
fn a_restart_that_was_cut_short_does_not_keep_the_run_from_ending() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let run = place.journal().run;
    std::fs::create_dir_all(place.dir.history()).unwrap();
    std::fs::hard_link(place.dir.journal(), place.dir.history().join(format!("{run}.progress"))).unwrap();
    place.abandon().unwrap().unwrap();
    assert!(!place.dir.in_recovery(), "the journal has two names until then");
}

#[test]
fn a_restart_from_another_nodes_backup_is_refused() {
    let place = Place::new();
    place.restore_files(Asked::default()).unwrap();
    let path = place.back_up("b2", 2);
    let mut manifest = place.manifest("b2", 2);
    manifest.identity.machine_id = "another".to_owned();
    Place::publish(&path, &manifest);
    assert_eq!(exit_code(&place.restart(Some("b2")).unwrap_err()), 78);
    assert_eq!(place.restart(Some("b1")).unwrap().outcome, Outcome::RebootNeeded);
}

#[test]
fn a_runtime_that_answers_half_does_not_stop_a_recovery() {
    for call in ["crictl ps", "crictl pods"] {
        let place = Place::new();
        place.fail(call);
        let report = place.restore_files(Asked::default()).unwrap();
        assert_eq!(report.outcome, Outcome::RebootNeeded);
        assert!(report.run.warnings.iter().any(|warning| warning.contains("as told")), "{call}: {:?}", report.run.warnings);
    }
}

#[test]
fn a_unit_that_gave_up_is_not_left_failed() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    place.state("recovery-resume.service", "failed");
    place.abandon().unwrap().unwrap();
    assert_eq!(place.state_of("recovery-resume.service"), "inactive");
}

#[test]
fn a_runtime_that_is_slow_to_answer_is_stopped_all_the_same() {
    let place = Place::new();
    // What only asks whether it is there, for five seconds.
    place.fail("crictl version");
    place.restore_files(Asked::default()).unwrap();
    assert!(place.calls().contains(&"crictl stop --timeout=5 old-etcd".to_owned()), "{:?}", place.calls());
}

#[test]
fn a_runtime_that_does_not_come_to_the_end_of_its_start_is_waited_for_and_then_gone_on_with() {
    let place = Place::new();
    place.state("containerd.service", "activating");
    let report = place.restore_files(Asked::default()).unwrap();
    assert_eq!(report.outcome, Outcome::RebootNeeded);
    let waited = report.run.phases[0].steps.iter().find(|step| step.name == "old-containers").unwrap().waited;
    assert!(waited.is_some_and(|seconds| seconds >= 1.0), "{waited:?}");
    assert!(report.run.warnings.iter().any(|w| w.contains("the container runtime to have started")), "{:?}", report.run.warnings);
    assert_eq!(place.state_of("containerd.service"), "inactive");
}

#[test]
fn a_node_that_booted_without_selinux_has_no_mode_to_put_back() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.restore_files(Asked::default()).unwrap_err();
    sealed::edit(&place.dir.undo(), |undo| undo["selinux"] = "enforcing".into()).unwrap();
    assert_eq!(place.resume(&resumed()).unwrap().unwrap().outcome, Outcome::RebootNeeded);
}

#[test]
fn a_mode_that_selinux_has_booted_with_is_left_as_it_is() {
    for (boot, mode) in [("boot-1", "1"), ("boot-2", "0")] {
        for abandons in [false, true] {
            let place = Place::new();
            place.put("/sys/fs/selinux/enforce", "1");
            place.fail("systemctl stop containerd.service");
            place.restore_files(Asked::default()).unwrap_err();
            // Killed while it was permissive.
            sealed::edit(&place.dir.undo(), |undo| undo["selinux"] = "enforcing".into()).unwrap();
            place.put("/sys/fs/selinux/enforce", "0");
            place.boot(boot);
            if abandons {
                place.abandon().unwrap().unwrap();
            } else {
                assert_eq!(place.resume(&resumed()).unwrap().unwrap().outcome, Outcome::RebootNeeded);
            }
            assert_eq!(place.read("/sys/fs/selinux/enforce"), mode, "in {boot}, and it was permissive");
        }
    }
}
