//! Hostile and wrong input, to the binary: the documented exit code, what to do about it, and the node as it was.

use std::path::Path;
use std::process::Command;

use crate::place::{Place, authority};
use crate::through::Ended;

/// Runs the agent, which must end with this code, say all of this, and change nothing.
fn refused(place: &Place, args: &[&str], code: i32, says: &[&str]) -> Ended {
    let (files, calls) = (place.files(), place.calls());
    let ended = place.agent(args).expect(code, says).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    assert!(place.files() == files, "{args:?} changed files: {ended}");
    assert_eq!(place.calls(), calls, "{args:?} changed what runs: {ended}");
    ended
}

fn begin(place: &Place, code: i32, says: &[&str]) {
    refused(place, &["restore-files", "--yes"], code, says);
    assert!(!place.dir.in_recovery() && !place.dir.undo().exists(), "a recovery was begun");
}

fn sh(folder: &Path, script: &str) {
    let status = Command::new("bash").args(["-euc", script]).current_dir(folder).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Archives made by tar(1) of what no backup holds, and what is said of them; `evil` is what would be written.
const HOSTILE: [(&str, &str); 6] = [
    ("tar -cP --transform 's#^evil#../evil#' evil", "\"../evil\" leaves its directory"),
    ("mkdir dir && cp evil dir && tar -cP --transform 's#^dir/evil#dir/../../evil#' dir", "\"dir/../../evil\" leaves its directory"),
    ("tar -cP --transform 's#^evil#/../evil#' evil", "\"/../evil\" leaves its directory"),
    ("ln -s /tmp l && tar -cf x l && rm l && mkdir l && cp evil l && tar -rf x l/evil && cat x", "\"l/evil\" is below \"l\""),
    ("ln evil h && tar -cP --transform 's#^evil#../outside#RS' evil h", "../outside"),
    ("ln evil h && tar -cP --transform 's#^evil#/etc/shadow#RS' evil h", "\"etc/shadow\", which is not in it"),
];

#[test]
fn hostile_archives_whose_sums_are_right() {
    for (make, says) in HOSTILE {
        let place = Place::new();
        let (backup, scratch) = (place.dir.backups().join("b1"), place.temporary.path().join("scratch"));
        std::fs::create_dir(&scratch).unwrap();
        std::fs::write(scratch.join("evil"), "evil").unwrap();
        let archive = backup.join("etc.tar.zst");
        sh(&scratch, &format!("({make}) | zstd -q > made && mv made {}", archive.display()));
        Place::publish(&backup, &place.manifest("b1", 1));
        begin(&place, 65, &["etc.tar.zst", says]);
        let (archive, tree) = (archive.display().to_string(), place.at("/etc").display().to_string());
        for verb in [vec!["archive", "restore", &archive, &tree, "--yes"], vec!["archive", "diff", &archive, &tree]] {
            refused(&place, &verb, 65, &[says]);
        }
        assert!(!place.temporary.path().join("root/evil").exists());
    }
}

/// What is right by its sums and no recovery takes: a script in the backup's directory that makes it of one part, the code, and what is said.
const UNUSABLE: [(&str, i32, &str); 12] = [
    ("echo none > etc.tar.zst", 65, "etc.tar.zst"),
    ("printf 'PK\\3\\4\\24\\0' > usr-local.tar.zst", 64, "usr-local.tar.zst"),
    ("touch a && tar -cP --transform 's#a#../a#' a | zstd -q > kubelet.tar.zst && rm a", 65, "\"../a\" leaves its directory"),
    ("touch a && tar -cP --transform 's#a#../a#' a | zstd -q > static-pods.tar.zst && rm a", 65, "\"../a\" leaves its directory"),
    ("touch a && tar -cP --transform 's#a#../a#' a | zstd -q > extras.tar.zst && rm a", 65, "\"../a\" leaves its directory"),
    (
        "mkdir manifests && touch manifests/kube-apiserver.yaml && tar -c manifests | zstd -q > static-pods.tar.zst && rm -r manifests",
        65,
        "no /etc/kubernetes/manifests/etcd.yaml",
    ),
    (
        "mkdir manifests && touch manifests/etcd.yaml && tar -c manifests | zstd -q > static-pods.tar.zst && rm -r manifests",
        65,
        "no /etc/kubernetes/manifests/kube-apiserver.yaml",
    ),
    ("gzip -c etcd-snapshot.db.zst > made && mv made etcd-snapshot.db.zst", 64, "gzip -dc"),
    ("truncate -s -1 etcd-snapshot.db.zst", 65, "is not a whole snapshot"),
    (
        "truncate -s -1 etcd-snapshot.db.zst && zstd -q etcd-snapshot.db.zst -o made && truncate -s 20 made && mv made etcd-snapshot.db.zst",
        65,
        "etcd-snapshot.db.zst",
    ),
    ("head -c 8224 /dev/zero > etcd-snapshot.db.zst", 65, "is not an etcd database"),
    ("head -c 8224 /dev/zero | zstd -q > made && mv made etcd-snapshot.db.zst", 65, "is not an etcd database"),
];

#[test]
fn what_a_recovery_does_not_take_is_good_to_nobody() {
    for (damage, code, says) in UNUSABLE {
        let place = Place::new();
        let backup = place.dir.backups().join("b1");
        sh(&backup, damage);
        let mut manifest = place.manifest("b1", 1);
        if damage.contains("extras") {
            manifest.sizes.insert("extras.tar.zst".to_owned(), 20);
        }
        Place::publish(&backup, &manifest);
        let report = recovery::backup::verify::report(&backup, "b1", false, &recovery::report::Progress::hidden()).unwrap();
        let [problem] = report.problems.as_slice() else { panic!("{damage}: {report:?}") };
        assert!(
            problem.contains(says) && i32::from(report.kind.map_or(0, recovery::error::FailureKind::code)) == code,
            "{damage}: {report:?}"
        );
        let problem = problem.replace(&backup.display().to_string(), "");
        // This place's own snapshot is no whole one either, which `verify` finds.
        let with_it = if says == "gzip -dc" { code } else { 65 };
        for (args, code) in [(["restore-files", "--yes"], code), (["verify", "b1"], with_it)] {
            let ended = refused(&place, &args, code, &[]);
            let (out, said) = (&ended.out, &ended.err);
            let text = format!("{out}{said}").replace(&backup.display().to_string(), "");
            assert!(text.contains(&problem), "{damage}: {args:?}: {text}, not {problem}");
        }
    }
    // Only all of it tells: nothing but the restore itself reads the snapshot to its end, and `verify`.
    let place = Place::new();
    let ended = refused(&place, &["verify", "b1"], 65, &["damaged: b1"]);
    assert!(ended.out.contains("etcd-snapshot.db.zst is damaged: page 3 is neither"), "{ended}");
}

#[test]
fn damaged_archives_and_manifests() {
    let place = Place::new();
    let backup = place.dir.backups().join("b1");
    let whole = place.temporary.path().join("whole");
    sh(place.temporary.path(), &format!("cp -a {} {}", backup.display(), whole.display()));
    for (damage, says, code) in [
        ("truncate -s -1 etc.tar.zst", "etc.tar.zst", 65),
        ("printf x | dd of=kubelet.tar.zst bs=1 seek=70 conv=notrunc status=none", "kubelet.tar.zst", 65),
        ("rm static-pods.tar.zst", "static-pods.tar.zst", 65),
        ("sed -i 's/\"version\": *[0-9][0-9]*/\"version\": 99/' manifest.json", "99", 64),
        ("echo '{' > manifest.json", "manifest.json", 65),
        ("rm SHA256SUMS", "SHA256SUMS", 65),
    ] {
        sh(&backup, damage);
        begin(&place, code, &[says]);
        let ended = refused(&place, &["verify"], code, &[]);
        assert!(format!("{ended}").contains("recovery backup"), "{damage}: {ended}");
        sh(place.temporary.path(), &format!("rm -r {0} && cp -a {1} {0}", backup.display(), whole.display()));
    }
    // The sums are right, and what they are of is not: a part is missing, a version that is not known, another node, another cluster.
    for part in ["etc.tar.zst", "etcd-snapshot.db.zst"] {
        std::fs::remove_file(backup.join(part)).unwrap();
        let mut manifest = place.manifest("b1", 1);
        manifest.sizes.remove(part);
        Place::publish(&backup, &manifest);
        begin(&place, 65, &["b1", "does not name", part]);
        std::fs::copy(whole.join(part), backup.join(part)).unwrap();
    }
    Place::publish(&backup, &place.manifest("b1", 1));
    sh(&backup, "sed -i 's/\"version\": [0-9][0-9]*,/\"version\": 99,/' manifest.json && sha256sum -- *.zst manifest.json > SHA256SUMS");
    begin(&place, 64, &["version 99", "written by recovery", "use that agent"]);
    let mut manifest = place.manifest("b1", 1);
    manifest.identity.machine_id = "4567".to_owned();
    manifest.identity.node_name = "another".to_owned();
    Place::publish(&backup, &manifest);
    begin(&place, 78, &["machine id", "another", "--force restores it all the same"]);
    let mut manifest = place.manifest("b1", 1);
    manifest.etcd.bytes = 1 << 60;
    Place::publish(&backup, &manifest);
    begin(&place, 73, &["/var/lib/etcd", "bytes free", "next: make room"]);
    Place::publish(&backup, &place.manifest("b1", 1));
    place.put("/etc/kubernetes/pki/ca.crt", authority());
    begin(&place, 78, &["different clusters", "--force"]);
}

#[test]
fn journals_that_are_torn_or_garbage() {
    for (then, restarts) in [("restart", true), ("abandon", false)] {
        let place = Place::new();
        place.agent(&["restore-files", "--yes"]).expect(0, &[]).unwrap();
        let journal = place.dir.journal();
        let text = std::fs::read_to_string(&journal).unwrap();
        // Torn: cut off in the middle of the last line, as a power cut may leave it.
        std::fs::write(&journal, &text[..text.len() - 30]).unwrap();
        place.agent(&["status"]).expect(0, &[]).unwrap();
        place.agent(&["restore-files", "--yes"]).expect(0, &["warning: "]).unwrap();
        let lines = std::fs::read_to_string(&journal).unwrap();
        assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{lines}");

        let at = lines.len() / 2;
        std::fs::write(&journal, format!("{}\0\u{1}garbage{}", &lines[..at], &lines[at..])).unwrap();
        for verb in ["resume", "restore-files"] {
            refused(&place, &[verb, "--yes"], 65, &["recovery restart", "recovery abandon"]);
        }
        place.agent(&["status"]).expect(0, &[]).unwrap();
        place.agent(&["backup"]).expect(75, &["a recovery is in progress"]).unwrap();
        place.agent(&[then, "--yes"]).expect(0, &[]).unwrap();
        assert_eq!(place.dir.in_recovery(), restarts);
        assert_eq!(place.at("/var/lib/recovery/hold-kubelet").exists(), restarts);
        assert!(place.history().iter().any(|name| name.ends_with(".progress")), "{:?}", place.history());
    }
}

#[test]
fn a_journal_that_is_gone_and_a_hold_that_is_no_file() {
    let place = Place::new();
    place.agent(&["restore-files", "--yes"]).expect(0, &[]).unwrap();
    let hold = place.at("/var/lib/recovery/hold-kubelet");
    let text = std::fs::read(&hold).unwrap();
    // Nobody writes into it, and nobody waits for that.
    sh(place.temporary.path(), &format!("rm {0} && mkfifo {0}", hold.display()));
    place.agent(&["status"]).expect(0, &[]).unwrap();
    place.agent(&["resume"]).expect(75, &["has not rebooted"]).unwrap();
    std::fs::remove_file(&hold).unwrap();
    std::fs::write(&hold, text).unwrap();
    std::fs::remove_file(place.dir.journal()).unwrap();
    refused(&place, &["resume"], 65, &["the journal /var/recovery/progress is missing", "recovery restart", "recovery abandon"]);
    place.agent(&["abandon", "--yes"]).expect(0, &[]).unwrap();
    assert!(!hold.exists());
    place.agent(&["resume"]).expect(0, &[]).unwrap();
}

#[test]
fn images_are_kept_again_when_somebody_has_let_them_go() {
    let place = Place::new();
    place.fail("systemctl stop containerd.service");
    place.agent(&["restore-files", "--yes"]).expect(1, &["stop-runtime"]).unwrap();
    let kept = place.at("/var/lib/recovery/keep-images");
    std::fs::remove_file(&kept).unwrap();
    place.agent(&["resume"]).expect(0, &["keep-images was removed"]).unwrap();
    assert!(kept.exists());
}

#[test]
fn programs_that_are_missing_fail_or_print_garbage() {
    for (tool, how, code, says) in [
        ("systemctl", "missing", 78, "`systemctl` is missing on this node"),
        ("systemctl", "fails", 1, "failed with exit status 1: as told"),
        ("systemctl", "prints garbage", 1, "printed something"),
        ("crictl", "missing", 78, "`crictl` is missing on this node"),
        ("ostree", "missing", 78, "`ostree` is missing on this node"),
        ("ostree", "fails", 1, "as told"),
        ("ostree", "prints garbage", 1, "ostree admin status"),
    ] {
        let place = Place::new();
        wrong(&place, tool, how);
        begin(&place, code, &[says]);
        if tool == "ostree" {
            refused(&place, &["platform"], code, &[says]);
            refused(&place, &["backup"], code, &[says]);
        }
    }
    // A runtime that is down may be what is to be mended.
    let place = Place::new();
    wrong(&place, "crictl", "fails");
    place.agent(&["restore-files", "--yes"]).expect(0, &["the container runtime does not answer"]).unwrap();
}

fn wrong(place: &Place, tool: &str, how: &str) {
    if tool == "ostree" {
        place.put("/run/ostree-booted", "");
        place.add_tool("ostree");
    }
    match how {
        "missing" => std::fs::remove_file(place.temporary.path().join("tools").join(tool)).unwrap(),
        how => place.goes_wrong(tool, how),
    }
}

#[test]
fn programs_that_hang_are_given_up() {
    // Side by side: each takes its whole time limit.
    std::thread::scope(|scope| {
        for (tool, verb, code, says) in [
            ("systemctl", "restore-files", 69, "did not end within 60 s and was killed"),
            ("ostree", "restore-files", 69, "did not end within 60 s and was killed"),
            ("ostree", "backup", 69, "did not end within 60 s and was killed"),
            ("ostree", "platform", 69, "did not end within 60 s and was killed"),
        ] {
            scope.spawn(move || {
                let place = Place::new();
                wrong(&place, tool, "hangs");
                refused(&place, &[verb, "--yes"], code, &[says]);
                assert!(!place.dir.in_recovery());
            });
        }
    });
}

#[test]
fn two_agents_at_once() {
    let place = Place::new();
    // The first is held up where it waits for a program.
    place.goes_wrong("systemctl", "hangs");
    let mut first = place.agent_command(&["restore-files", "--yes"]).spawn().unwrap();
    let lock = place.dir.path().join("lock");
    let says_who = || Ok(std::fs::read_to_string(&lock).unwrap_or_default().contains("restore-files"));
    testing::node::wait_for("the first to hold the lock", says_who).unwrap();
    let holder = format!("`recovery restore-files` (process {}", first.id());
    for verb in ["restore-files", "backup", "restart", "prune"] {
        refused(&place, &[verb, "--yes"], 75, &[&holder, "run this again when that has ended"]);
    }
    for verb in ["list", "status", "show b1"] {
        place.agent(&verb.split(' ').collect::<Vec<_>>()).expect(0, &[]).unwrap();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), rustix::process::Signal::TERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(75));
}
