//! list, choose, verify, delete, prune.

use std::path::Path;
use testing::session::{locked, session};

use recovery::backup::names::{RELEASE_LABEL, SCHEDULE_LABEL};
use recovery::backup::store::{self, Retention};
use recovery::backup::{self, Backup};
use recovery::error::exit_code;
use recovery::report::Progress;

use crate::place::{PARTS, Place, Sno, manifest, sh};

fn choose(place: &Place, wanted: Option<&str>) -> Result<String, (u8, String)> {
    let session = locked(&place.node, &place.dir);
    let chosen = backup::choose(&session, &store::finish_interrupted(&session).unwrap(), wanted);
    chosen.map(|b| b.id).map_err(|e| (exit_code(&e), format!("{e:#}")))
}

fn prune(place: &Place, keep: usize, trusted: Option<&str>) -> anyhow::Result<store::Removed> {
    prune_by(place, &keep.into(), trusted)
}

fn prune_by(place: &Place, retention: &Retention, trusted: Option<&str>) -> anyhow::Result<store::Removed> {
    let session = locked(&place.node, &place.dir);
    store::prune(&session, store::finish_interrupted(&session)?, retention, trusted)
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(id, state)| ((*id).to_owned(), (*state).to_owned())).collect()
}

#[test]
fn the_order_is_the_manifests_and_latest_is_never_read() {
    let place = Place::new();
    assert_eq!(choose(&place, None).unwrap_err().0, 78);
    place.published("z-first", 1);
    place.published("a-third", 3);
    let mut named = manifest("m-second", 2);
    named.name = Some("before-4.17".to_owned());
    place.published_as(&named);
    named.id = "n-fourth".to_owned();
    named.sequence = 4;
    place.published_as(&named);
    std::os::unix::fs::symlink("backups/z-first", place.dir.latest()).unwrap();
    std::fs::create_dir(place.dir.backups().join("x.partial")).unwrap();
    std::fs::create_dir(place.dir.backups().join("y.deleting")).unwrap();

    let complete =
        [("n-fourth", "complete"), ("a-third", "complete"), ("m-second", "complete"), ("z-first", "complete"), ("x.partial", "partial")];
    assert_eq!(place.listed(), pairs(&complete));
    assert_eq!(choose(&place, None), Ok("n-fourth".to_owned()));
    assert_eq!(choose(&place, Some("z-first")), Ok("z-first".to_owned()));
    // Of two with the same name, the newer one.
    assert_eq!(choose(&place, Some("before-4.17")), Ok("n-fourth".to_owned()));
    assert_eq!(choose(&place, Some("x")).unwrap_err().0, 78);
    assert_eq!(choose(&place, Some("../z-first")).unwrap_err().0, 78);
    let shown = store::show(&session(&place.node, &place.dir), "m-second").unwrap();
    assert_eq!(shown.path, Path::new("/var/recovery/backups/m-second"));
    assert_eq!(shown.files.len(), 7);
}

#[test]
fn damage_is_seen_named_and_passed_over() {
    let damages: [(&str, &str, &str); 15] = [
        ("missing", "rm etc.tar.zst", "etc.tar.zst is missing"),
        ("added", "echo x > more", "more was added"),
        ("unknown", "sed -i 's/\"version\": [0-9][0-9]*/&, \"news\": 1/' manifest.json", "news"),
        ("garbage", "echo garbage > manifest.json", "not valid"),
        ("renamed", "sed -i 's/\"id\": \"renamed\"/\"id\": \"other\"/' manifest.json", "says that it is other"),
        ("nosums", "rm SHA256SUMS", "SHA256SUMS"),
        ("fifo", "rm SHA256SUMS && mkfifo SHA256SUMS", "SHA256SUMS is not a regular file"),
        ("huge", "truncate -s 8G SHA256SUMS", "no more than 65536 are read"),
        ("binary", "printf '\\377' > SHA256SUMS", "SHA256SUMS is not text"),
        ("long", "head -c 60000 /dev/zero | tr '\\0' x > SHA256SUMS", "x…`"),
        ("hostile", "echo \"$(printf '0%.0s' {1..64})  ../../etc/passwd\" >> SHA256SUMS", "not a checksum"),
        // What sha256sum(1) itself takes.
        ("capitals", "sed -i '1s/^[0-9a-f]*/\\U&/' SHA256SUMS", "not a checksum"),
        ("mixed", "sed -i '2s/  / */' SHA256SUMS", "not a checksum"),
        ("cut", "truncate -s -1 SHA256SUMS", "SHA256SUMS is cut off"),
        ("link", "mv etc.tar.zst ../../e && ln -s ../../e etc.tar.zst", "not a regular file"),
    ];
    let place = Place::new();
    place.published("good", 1);
    for (at, (id, damage, _)) in damages.iter().enumerate() {
        sh(&place.published(id, 10 + at as u64), damage);
    }
    assert_eq!(choose(&place, None), Ok("good".to_owned()));
    for (id, _, says) in damages {
        let (code, message) = choose(&place, Some(id)).unwrap_err();
        assert_eq!(code, 65, "{message}");
        assert!(message.contains(says), "{message}");
        assert!(message.len() < 500, "{message}");
    }
    let listed = store::list(&session(&place.node, &place.dir), &kube::core::Selector::default()).unwrap();
    assert_eq!(listed.iter().filter(|line| line.reason.is_some()).count(), damages.len());
    let only_damaged = Place::new();
    sh(&only_damaged.published("bad", 1), "rm etc.tar.zst");
    assert_eq!(choose(&only_damaged, None).unwrap_err().0, 65);
}

#[test]
fn sums_are_taken_as_sha256sum_writes_them() {
    let place = Place::new();
    for (id, files, also) in [("binary", "-b *", "true"), ("dotted", "./*", "true"), ("crlf", "*", "sed -i 's/$/\r/' ../sums")] {
        let path = place.published(id, 1);
        sh(&path, &format!("rm SHA256SUMS && sha256sum {files} > ../sums && {also} && mv ../sums SHA256SUMS"));
        let report = backup::verify::report(&path, id, false, &Progress::hidden()).unwrap();
        assert!(report.good && report.files.len() == PARTS.len() + 1, "{id}: {report:?}");
        sh(&path, "echo x >> etc.tar.zst");
        let report = backup::verify::report(&path, id, false, &Progress::hidden()).unwrap();
        assert!(!report.good && report.problems[0].contains("etc.tar.zst is not what SHA256SUMS says"), "{id}: {report:?}");
    }
}

#[test]
fn a_backup_without_a_part_that_a_recovery_needs_is_damaged_however_right_its_sums_are() {
    let place = Place::new();
    place.published("good", 1);
    for (at, part) in PARTS.iter().enumerate() {
        let mut without = manifest(&format!("without-{part}"), 10 + at as u64);
        without.sizes.remove(*part);
        let path = place.published_as(&without);
        sh(&path, "sha256sum -c --quiet --strict SHA256SUMS");
        let says = format!("does not name {part}");
        let report = backup::verify::report(&path, &without.id, false, &Progress::hidden()).unwrap();
        assert!(!report.good && report.problems[0].contains(&says), "{report:?}");
        let (code, message) = choose(&place, Some(&without.id)).unwrap_err();
        assert!(code == 65 && message.contains(&says), "{message}");
    }
    // None of them is chosen, nor counted among those that are kept.
    assert_eq!(choose(&place, None), Ok("good".to_owned()));
    let done = prune(&place, 1, None).unwrap();
    assert_eq!((done.kept.as_slice(), done.removed.len(), done.warnings.len()), (["good".to_owned()].as_slice(), 0, PARTS.len()));
}

#[test]
fn a_flipped_byte_is_found_by_us_and_by_sha256sum() {
    let place = Place::new();
    let path = place.published("b", 1);
    let backup = store::survey(&place.dir).unwrap().backups[0].clone();
    let check = |backup: &Backup| backup::verify(backup, false, &Progress::hidden());
    check(&backup).unwrap();
    sh(&path, "sha256sum -c --quiet --strict SHA256SUMS");
    for name in ["kubelet.tar.zst", "manifest.json"] {
        let file = path.join(name);
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        std::fs::write(&file, bad).unwrap();
        let error = check(&backup).unwrap_err();
        assert_eq!(exit_code(&error), 65);
        assert!(format!("{error:#}").contains(name), "{error:#}");
        std::fs::write(&file, good).unwrap();
    }
    check(&backup).unwrap();
    let report = backup::verify::report(&path, "b", false, &Progress::hidden()).unwrap();
    assert!(report.good && report.files.len() == 6);
}

#[test]
fn prune_keeps_the_newest_good_ones_and_never_the_last() {
    let place = Place::new();
    for (at, id) in ["one", "two", "three", "four", "five"].iter().enumerate() {
        place.published(id, at as u64 + 1);
    }
    // Looks whole, but is not: it does not count.
    sh(&place.dir.backups().join("four"), "echo x >> etc.tar.zst");
    std::fs::create_dir_all(place.dir.backups().join("old.deleting/deep")).unwrap();
    // Neither of them is a directory.
    sh(&place.dir.backups(), "touch stale.deleting one.deleting && ln -s /nowhere gone.deleting");
    std::fs::create_dir(place.dir.backups().join("stale.partial")).unwrap();
    assert_eq!(exit_code(&prune(&place, 0, None).unwrap_err()), 2);
    let done = prune(&place, 3, None).unwrap();
    assert_eq!(done.kept, ["five", "three", "two"]);
    assert_eq!(done.removed, ["stale.partial", "one"]);
    assert!(done.warnings[0].contains("four"), "{:?}", done.warnings);
    assert_eq!(sh(&place.dir.backups(), "ls"), "five\nfour\nthree\ntwo\n");
    assert_eq!(std::fs::read_link(place.dir.latest()).unwrap(), Path::new("backups/five"));

    sh(&place.dir.backups(), "for b in five three; do echo x >> $b/etc.tar.zst; done");
    let done = prune(&place, 1, None).unwrap();
    assert_eq!((done.kept.as_slice(), done.removed.len()), (["two".to_owned()].as_slice(), 0));
    let done = prune(&place, 1, Some("five")).unwrap();
    assert_eq!(done.removed, ["four", "three", "two"]);
}

#[test]
fn a_crash_before_the_last_rename_costs_no_backup() {
    // All is on disk and the journal is gone: only the name is missing.
    let cut_short = |place: &Place, id: &str, sequence| {
        let path = place.published(id, sequence);
        std::fs::rename(&path, path.with_file_name(format!("{id}.partial"))).unwrap();
    };
    let place = Place::new();
    place.published("old", 1);
    cut_short(&place, "new", 2);
    std::fs::write(place.dir.journal(), "{}").unwrap();
    assert_eq!(choose(&place, None), Ok("old".to_owned()), "a recovery has chosen already");
    std::fs::remove_file(place.dir.journal()).unwrap();
    assert_eq!(choose(&place, None), Ok("new".to_owned()));

    cut_short(&place, "newest", 3);
    for (id, what_is_missing) in [
        ("begun", "echo {} > journal"),
        ("earlier", "echo {} > state.json"),
        ("half", "rm etc.tar.zst"),
        ("other", "sed -i s/other/x/ manifest.json"),
    ] {
        cut_short(&place, id, 4);
        sh(&place.dir.backups().join(format!("{id}.partial")), what_is_missing);
    }
    let done = prune(&place, 2, None).unwrap();
    assert_eq!(done.kept, ["newest", "new"]);
    assert_eq!(done.removed, ["begun.partial", "earlier.partial", "half.partial", "other.partial", "old"]);
}

#[test]
fn nothing_is_deleted_during_a_recovery() {
    let place = Place::new();
    place.published("one", 1);
    place.published("two", 2);
    std::fs::write(place.dir.journal(), "{}").unwrap();
    assert_eq!(exit_code(&prune(&place, 1, None).unwrap_err()), 75);
    assert_eq!(exit_code(&delete(&place, "one", true).unwrap_err()), 75);
    assert_eq!(sh(&place.dir.backups(), "ls"), "one\ntwo\n");
}

fn delete(place: &Place, id: &str, force: bool) -> anyhow::Result<store::Removed> {
    let session = locked(&place.node, &place.dir);
    store::delete(&session, store::deletion(&session, id, force)?)
}

#[test]
fn a_deletion_is_looked_at_before_it_is_asked_for() {
    let place = Place::new();
    place.published("one", 1);
    let agent = |id: &str| {
        let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_recovery"));
        let output = agent.arg("--root").arg(place.root.path()).args(["delete", id]).stdin(std::process::Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (id, code, says) in [("nosuch", 78, "nosuch"), ("one", 2, "is the last good backup")] {
        let (ended, said) = agent(id);
        assert!(ended == Some(code) && said.contains(says) && !said.contains("will be deleted"), "{ended:?} {said}");
    }
    place.published("two", 2);
    let (ended, said) = agent("one");
    assert!(ended == Some(2) && said.contains("The backup one will be deleted") && said.contains("not confirmed"), "{ended:?} {said}");
    assert_eq!(sh(&place.dir.backups(), "ls"), "one\ntwo\n");
}

#[test]
fn the_last_good_one_is_deleted_by_force_only() {
    let place = Place::new();
    let delete = |id: &str, force| delete(&place, id, force).map_err(|e| exit_code(&e));
    place.published("one", 1);
    place.published("two", 2);
    place.published("three", 3);
    sh(&place.dir.backups().join("two"), "rm etc.tar.zst");
    std::fs::create_dir(place.dir.backups().join("p.partial")).unwrap();
    assert_eq!(delete("nothing", false).map(drop), Err(78));
    assert_eq!(delete("three", false).unwrap().removed, ["three"]);
    assert_eq!(delete("p.partial", false).unwrap().removed, ["p.partial"]);
    // The other one is damaged: this is the last.
    assert_eq!(delete("one", false).map(drop), Err(2));
    assert_eq!(delete("two", false).unwrap().removed, ["two"]);
    assert_eq!(delete("one", false).map(drop), Err(2));
    assert_eq!(delete("one", true).unwrap().removed, ["one"]);
    assert_eq!(sh(&place.dir.backups(), "ls"), "");
    assert!(place.dir.latest().symlink_metadata().is_err());
}

#[test]
fn a_deletion_that_is_asked_for_again_is_finished_or_done() {
    let place = Place::new();
    let delete = |id: &str| delete(&place, id, false);
    let ids = ["20260101T000000Z-4.16", "20260102T000000Z-4.17", "20260103T000000Z-4.18"];
    for (at, id) in ids.iter().enumerate() {
        place.published(id, at as u64 + 1);
    }
    // Cut short between its rename and its end.
    sh(&place.dir.backups(), &format!("mv {0} {0}.deleting; rm {0}.deleting/etc.tar.zst; ln -sfn backups/{0} ../latest", ids[2]));
    let done = delete(ids[2]).unwrap();
    assert_eq!((done.removed, done.kept), (vec![ids[2].to_owned()], vec![ids[1].to_owned(), ids[0].to_owned()]));
    assert_eq!(sh(&place.dir.backups(), "ls -A"), format!("{}\n{}\n", ids[0], ids[1]));
    assert_eq!(std::fs::read_link(place.dir.latest()).unwrap(), Path::new("backups").join(ids[1]));
    // Cut short after it, before the link.
    sh(&place.dir.backups(), &format!("ln -sfn backups/{} ../latest", ids[2]));
    let done = delete(ids[2]).unwrap();
    assert!(done.removed.is_empty() && done.kept.len() == 2, "{done:?}");
    assert_eq!(std::fs::read_link(place.dir.latest()).unwrap(), Path::new("backups").join(ids[1]));
    // A name may be a slip of the pen.
    assert_eq!(exit_code(&delete("nightly").unwrap_err()), 78);
    assert_eq!(exit_code(&delete("20260102T000000Z").unwrap_err()), 78);
}

#[test]
fn a_backup_that_is_pruned_while_it_is_looked_at_is_not_called_damaged() {
    let place = Place::new();
    let published: Vec<_> = (0..40).map(|at| place.published(&format!("b{at:02}"), at + 1)).collect();
    let pruned = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            prune(&place, 1, Some("b39")).unwrap();
            pruned.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !pruned.load(std::sync::atomic::Ordering::Relaxed) {
            let listed = store::list(&session(&place.node, &place.dir), &kube::core::Selector::default()).unwrap();
            let damaged: Vec<_> = listed.iter().filter(|one| one.reason.is_some()).collect();
            assert!(damaged.is_empty(), "{damaged:?}");
        }
    });
    let gone = backup::verify::report(&published[0], "b00", true, &Progress::hidden()).unwrap_err();
    assert_eq!(exit_code(&gone), 75);
    assert!(gone.to_string().contains("was deleted while it was checked"), "{gone}");
    assert!(store::is_deleted(&place.dir, "b00") && !store::is_deleted(&place.dir, "b39"));
}

/// A backup as a newer agent may take it, with fields and files that nobody here has heard of.
fn newer(place: &Place, id: &str) {
    let news =
        "sed -i 's/\"version\": [0-9][0-9]*,/\"version\": 99, \"news\": 1,/; s/\"agent\": .*/\"agent\": \"9.1.0\",/' manifest.json &&
        mv etc.tar.zst etc.new && rm SHA256SUMS && sha256sum -- * > ../sums && mv ../sums SHA256SUMS";
    sh(&place.published(id, 9), news);
}

#[test]
fn a_backup_of_a_newer_version_is_not_supported_never_damaged_and_never_good() {
    let place = Place::new();
    place.put("/proc/sys/kernel/random/boot_id", "b-1\n");
    newer(&place, "newer");
    let agent = |words: &str| {
        let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_recovery"));
        let output = agent.arg("--root").arg(place.root.path()).args(words.split(' ')).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let refused = |words: &str| {
        let (code, said) = agent(words);
        assert!(code == 64 && said.contains("written by recovery 9.1.0") && !said.contains("damaged"), "{words}: {code} {said}");
    };
    // While it is all there is, and beside a good one.
    ["recover --yes", "restore-files --dry-run", "verify"].into_iter().for_each(refused);
    place.published("old", 1);
    place.published("good", 2);
    ["show newer", "verify newer", "recover --yes --backup newer", "export newer /x"].into_iter().for_each(refused);
    assert_eq!(choose(&place, None), Ok("good".to_owned()));
    let (code, said) = agent("list");
    assert!(code == 0 && said.contains("NotSupported") && said.contains("9.1.0") && !said.contains("damaged"), "{said}");
    assert_eq!(place.listed(), pairs(&[("good", "complete"), ("old", "complete"), ("newer", "unsupported")]));
    assert_eq!(store::survey(&place.dir).unwrap().next_sequence(), 10);
    // It does not count, and stays.
    let (code, said) = agent("--yes prune --keep 1");
    assert!(
        code == 0 && said.contains("deleted old") && said.contains("newer is not supported and stays") && !said.contains("damaged"),
        "{said}"
    );
    assert_eq!(sh(&place.dir.backups(), "ls"), "good\nnewer\n");
    assert_eq!(agent("--yes delete good").0, 2);
    assert_eq!(agent("--yes delete --force good").0, 0);
    // For the agent that took it, it may be the last good one.
    let (code, said) = agent("--yes delete newer");
    assert!(code == 2 && said.contains("newer is not supported, and no other backup is good"), "{said}");
    assert_eq!(agent("--yes delete --force newer").0, 0);
    assert_eq!(sh(&place.dir.backups(), "ls"), "");
}

/// The list of deployments as ostree 2022.7 prints it; the state is in files, so that a pin stays.
const OSTREE: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
    *--json*) echo "error: Unknown option --json" >&2; exit 1 ;;
    "admin status")
        for n in 0 1; do
            [ $n = 0 ] && printf '* ' || printf '  '
            printf 'rhcos %064d.0%s\n    Version: 4.1%d\n' $n "$([ $n = 1 ] && echo ' (rollback)')" $n
            [ -e pinned.$n ] && echo '    Pinned: yes'
            echo '    origin: <unknown origin type>'
        done ;;
    "admin pin --unpin "*) rm pinned.$4 ;;
    "admin pin "*) touch pinned.$3 ;;
    *) echo "what? $*" >&2; exit 1 ;;
esac
"#;

#[test]
fn pins_of_ours_go_with_the_last_backup_that_needs_them() {
    use recovery::backup::manifest::DeploymentId;
    use recovery::backup::take::pins;
    use recovery::tools::ostree::deployments;

    let place = Place::new();
    // Copied by a child: what this process wrote, a child that another thread forks at that moment holds open ("text file busy").
    place.put("tools/text", OSTREE);
    sh(place.root.path(), "install -m 755 tools/text tools/ostree");
    let pinned = || deployments(&place.node).unwrap().iter().map(|d| d.pinned).collect::<Vec<_>>();
    let all = deployments(&place.node).unwrap();
    place.put("tools/pinned.1", "");
    for deployment in deployments(&place.node).unwrap() {
        pins::pin(&place.node, &place.dir, &deployment).unwrap();
    }
    assert_eq!(pinned(), [true, true]);
    for (id, sequence) in [("one", 1), ("two", 2)] {
        let mut manifest = manifest(id, sequence);
        manifest.deployment = Some(DeploymentId::of(&all[0], vec!["quiet".to_owned()]));
        place.published_as(&manifest);
    }
    let delete = |id: &str| delete(&place, id, true).unwrap();
    assert!(delete("one").unpinned.is_empty());
    assert_eq!(pinned(), [true, true]);
    newer(&place, "newer");
    place.published("other", 3);
    sh(&place.dir.backups().join("other"), "rm manifest.json");
    // A backup that does not say what it needs, or not to this agent, may need it.
    for (id, says) in [("two", "newer is not supported and"), ("newer", "other is damaged and")] {
        let warnings = delete(id).warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(says), "{warnings:?}");
        assert_eq!(pinned(), [true, true]);
    }
    assert_eq!(delete("other").unpinned, [all[0].checksum.clone()]);
    // The other pin was there before: it is somebody else's.
    assert_eq!(pinned(), [false, true]);
    assert!(delete_none(&place));
    // What a newer agent keeps there is not written over.
    let pins = place.put("/var/recovery/pins.json", r#"{"version": 3, "agent": "9.1.0", "others": []}"#);
    let error = pins::pin(&place.node, &place.dir, &all[0]).unwrap_err();
    assert!(exit_code(&error) == 64 && error.to_string().contains("written by recovery 9.1.0"), "{error}");
    assert!(std::fs::read_to_string(pins).unwrap().contains("others"));
}

/// With no pins of ours left, ostree is not even called.
fn delete_none(place: &Place) -> bool {
    std::fs::remove_file(place.root.path().join("tools/ostree")).unwrap();
    place.published("last", 9);
    let done = delete(place, "last", true).unwrap();
    done.warnings.is_empty()
}

#[test]
fn a_command_reads_each_manifest_once() {
    let place = Place::new();
    place.put("/proc/sys/kernel/random/boot_id", "b-1\n");
    for (id, sequence) in [("one", 1), ("two", 2), ("three", 3)] {
        place.published(id, sequence);
    }
    std::fs::create_dir(place.dir.backups().join("p.partial")).unwrap();
    // How often the agent opened the manifest of "one", which it neither deletes nor restores nor checks here.
    let opened_on = |place: &Place, words: &str, code: i32| {
        let (root, log) = (place.root.path(), place.root.path().join("opened"));
        let mut agent = std::process::Command::new("strace");
        agent.args(["-f", "-qq", "-e", "trace=open,openat,openat2", "-o"]).arg(&log).arg(env!("CARGO_BIN_EXE_recovery"));
        agent.arg("--root").arg(root).arg("--tools").arg(root.join("tools")).args(words.split(' '));
        let output = agent.output().expect("strace is needed");
        assert_eq!(output.status.code(), Some(code), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        let calls = std::fs::read_to_string(&log).unwrap();
        calls.lines().filter(|call| call.contains("/one/manifest.json\"")).count()
    };
    let opened = |words: &str, code: i32| opened_on(&place, words, code);
    assert_eq!(opened("list", 0), 1);
    assert_eq!(opened("restore-files --dry-run", 78), 1);
    assert_eq!(opened("recover --yes", 78), 1);
    assert_eq!(opened("--yes delete --force three", 0), 1);
    assert_eq!(opened("--yes prune --keep 3", 0), 1);
    assert_eq!(place.listed(), pairs(&[("two", "complete"), ("one", "complete")]));
    let sno = Sno::new();
    sno.place.published("one", 1);
    assert_eq!(opened_on(&sno.place, "backup --force", 0), 1);
    assert_eq!(sno.place.listed().len(), 2);
}

/// Of each schedule, of those from before an upgrade, and of all others, each by itself.
#[test]
fn backups_of_schedules_and_of_before_an_upgrade_count_by_themselves() {
    let place = Place::new();
    let publish = |id: &str, sequence: u64, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        place.published_as(&recovery::backup::manifest::Manifest { labels, ..manifest(id, sequence) })
    };
    let (hourly, daily, gone) = ((SCHEDULE_LABEL, "hourly"), (SCHEDULE_LABEL, "daily"), (SCHEDULE_LABEL, "gone"));
    let upgrade = (RELEASE_LABEL, "kcm-0-2-0");
    for (sequence, (id, labels)) in (1..).zip([
        ("by-hand-1", &[][..]),
        ("gone-1", &[gone]),
        ("upgrade-1", &[upgrade]),
        ("daily-1", &[daily]),
        ("daily-2", &[daily]),
        ("gone-2", &[gone]),
        ("by-hand-2", &[("app", "x")]),
        ("upgrade-2", &[upgrade, daily]),
        ("hourly-1", &[hourly]),
        ("hourly-2", &[hourly]),
        ("hourly-3", &[hourly]),
    ]) {
        publish(id, sequence, labels);
    }
    let schedules = |hourly: usize, daily: usize| [("hourly".to_owned(), hourly), ("daily".to_owned(), daily)].into();
    let pruned = |retention: &Retention| {
        let mut removed = prune_by(&place, retention, None).unwrap().removed;
        removed.sort();
        removed
    };
    // The newer one of before an upgrade is damaged: the older one is the last that is good.
    let damaged = place.dir.backups().join("upgrade-2/etc.tar.zst");
    let good = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, "damaged").unwrap();
    assert_eq!(pruned(&Retention { others: None, schedules: schedules(2, 2), gone: None }), ["hourly-1"]);
    std::fs::write(&damaged, good).unwrap();
    assert_eq!(pruned(&Retention { others: None, schedules: schedules(2, 2), gone: None }), ["upgrade-1"]);
    // As `backup --keep 1` does: what a schedule left that is gone stays.
    assert_eq!(pruned(&Retention { others: Some(1), schedules: schedules(2, 1), gone: None }), ["by-hand-1", "daily-1"]);
    // As `prune --keep 1` does.
    assert_eq!(pruned(&Retention { others: Some(1), schedules: schedules(2, 1), gone: Some(1) }), ["gone-1"]);
    let left: Vec<String> = place.listed().into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, ["hourly-3", "hourly-2", "upgrade-2", "by-hand-2", "gone-2", "daily-2"]);
    let none = Retention { schedules: schedules(1, 0), ..Retention::default() };
    assert_eq!(exit_code(&prune_by(&place, &none, None).unwrap_err()), 2);
}
