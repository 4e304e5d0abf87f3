//! take: on a node with a real etcd whose API server does not answer (`--force`).

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;
use testing::session::{locked, session};

use anyhow::Result;
use recovery::backup::asked_by::AskedBy;
use recovery::backup::last_run::LastRun;
use recovery::backup::store;
use recovery::backup::take::{Outcome, TakeOptions, Taken};
use recovery::backup::{self};
use recovery::error::exit_code;
use recovery::node::dir::RecoveryDir;
use recovery::report::Progress;

use crate::place::{Sno, fingerprint, sh};

pub(crate) fn options() -> TakeOptions {
    TakeOptions {
        name: None,
        labels: BTreeMap::new(),
        force: true,
        keep: 3.into(),
        wait: Duration::from_secs(60),
        asked_by: AskedBy::User(0),
    }
}

fn take(sno: &Sno, options: &TakeOptions) -> Result<Taken> {
    backup::take(&locked(&sno.place.node, &sno.place.dir), options)
}

#[test]
fn a_backup_is_whole_and_needs_no_agent_to_be_read() {
    let sno = Sno::new();
    let mut asked = options();
    asked.name = Some("before-4.17".to_owned());
    asked.labels = backup::names::parse_labels(&["policy=p1"]).unwrap();
    let taken = take(&sno, &asked).unwrap();
    assert_eq!(taken.outcome, Outcome::Taken);
    let manifest = &taken.manifest;
    assert_eq!((manifest.sequence, manifest.name.as_deref(), manifest.labels["policy"].as_str()), (1, Some("before-4.17"), "p1"));
    assert_eq!(manifest.identity.node_name, "sno");
    assert_eq!(manifest.etcd.keys, Some(300));
    assert!(manifest.etcd.version.as_deref().unwrap().starts_with("3.4."));
    assert!(!manifest.images.is_empty());
    assert!(manifest.certificates_expire.is_some());
    assert!(manifest.managed_files.contains(&"/opt/managed/tool".into()));
    assert!(manifest.etc_excludes.contains(&"resolv.conf".into()) && manifest.etc_excludes.contains(&".updated".into()));
    assert!(taken.warnings.iter().any(|w| w.contains("API server")), "{:?}", taken.warnings);

    let path = sno.place.dir.backups().join(&manifest.id);
    sh(&path, "sha256sum -c --quiet --strict SHA256SUMS && test $(ls -A | wc -l) = 9");
    assert_eq!(sh(&path, "stat -c %a . *|sort -u"), "600\n700\n");
    assert_eq!(std::fs::read_link(sno.place.dir.latest()).unwrap(), Path::new("backups").join(&manifest.id));

    let log = backup::store::logs(&session(&sno.place.node, &sno.place.dir), "before-4.17").unwrap();
    for words in ["begins, by recovery", "etc.tar.zst: done", "etcd-and-static-pods: done", "warning: the API server did not say"] {
        assert!(log.contains(words), "it does not say `{words}`: {log}");
    }
    assert_eq!(log, sh(&path, "cat log"));

    let out = tempfile::tempdir().unwrap();
    let unpack = |name: &str| {
        let to = out.path().join(name);
        std::fs::create_dir(&to).unwrap();
        sh(&path, &format!("tar --zstd --xattrs --xattrs-include='*' --acls -xpf {name}.tar.zst -C {}", to.display()));
        to
    };
    let kubernetes = sno.root().join("etc/kubernetes");
    let static_pods = unpack("static-pods");
    assert!(!static_pods.join("manifests/kube-apiserver-startup-monitor-pod.yaml").exists());
    for owned in ["manifests", "static-pod-resources"] {
        sh(&kubernetes, "rm -f manifests/kube-apiserver-startup-monitor-pod.yaml");
        assert_eq!(without_times_of_dirs(&static_pods.join(owned)), without_times_of_dirs(&kubernetes.join(owned)));
    }
    let etc = unpack("etc");
    assert!(!etc.join("kubernetes/manifests").exists() && !etc.join("kubernetes/static-pod-resources").exists());
    assert!(etc.join("systemd/system/recovery-resume.service").exists());
    sh(&sno.root().join("etc"), "rm -r kubernetes/manifests kubernetes/static-pod-resources");
    assert_eq!(without_times_of_dirs(&etc), without_times_of_dirs(&sno.root().join("etc")));
    assert_eq!(fingerprint(&unpack("kubelet")), fingerprint(&sno.root().join("var/lib/kubelet")));
    assert_eq!(fingerprint(&unpack("usr-local")), fingerprint(&sno.root().join("var/usrlocal")));
    assert_eq!(sh(&unpack("extras"), "find . -type f"), "./var/opt/managed/tool\n");
    sh(&path, &format!("zstd -qd etcd-snapshot.db.zst -o {}/s.db", out.path().display()));
    let status = sno.etcd.etcdctl(&["snapshot", "status", &format!("{}/s.db", out.path().display()), "-w", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["revision"], manifest.etcd.revision);
}

/// What the test itself removed changed the times of directories.
fn without_times_of_dirs(dir: &Path) -> String {
    sh(
        dir,
        r"{ find . ! -type d -printf '%y %m %n %U:%G %T@ %s %l %p\n'; find . -type d -printf '%y %m %U:%G %p\n'; getfattr -dRhm - . ; find . -type f -exec sha256sum {} +; } | LC_ALL=C sort",
    )
}

#[test]
fn the_agent_is_installed_and_the_node_holds_both_files() {
    let sno = Sno::new();
    take(&sno, &options()).unwrap();
    let dir = sno.place.dir.path();
    assert_eq!(dir.join("recovery").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(std::fs::read_to_string(dir.join("upgrade-recovery.sh")).unwrap().contains("exec"));
    assert!(recovery::node::hold::is_installed(&sno.root().join("etc"), &sno.place.dir));
}

#[test]
fn extras_are_restored_through_a_mount_on_the_way() {
    use recovery::archive::{Archive, Extra};
    let sno = Sno::new();
    // As on an ostree host, /var is mounted, and the agent's own directory lies in it.
    let var = sno.root().join("var");
    sh(sno.root(), "mv var real-var && mkdir var && mount --bind real-var var");
    let work = || -> Result<()> {
        let taken = take(&sno, &options())?;
        let path = sno.place.dir.backups().join(&taken.manifest.id);
        let archive = Archive::open(&path.join("extras.tar.zst"))?;
        let tool = var.join("opt/managed/tool");
        std::fs::write(&tool, "a newer one")?;
        let selection = backup::parts::extras_in(&archive);
        let counts = archive.restore(sno.root(), &selection, Extra::Keep, &|_| {})?;
        assert_eq!((counts.replaced, counts.created, counts.deleted), (1, 0, 0));
        assert_eq!(std::fs::read_to_string(&tool)?, "tool");
        assert_eq!(std::fs::read_to_string(var.join("opt/managed/other"))?, "nobody's");
        Ok(())
    };
    let done = work();
    sh(sno.root(), &format!("umount -l {}", var.display()));
    done.unwrap();
}

#[test]
fn the_next_backup_takes_over_what_is_unchanged_and_old_ones_go() {
    let sno = Sno::new();
    // Less than a few MiB are not worth taking over.
    sh(sno.root(), "head -c 16000000 /dev/urandom > var/lib/kubelet/large");
    let first = take(&sno, &options()).unwrap();
    // What changed less than two seconds before the first backup is read again; the second can take over what the first found settled.
    std::thread::sleep(Duration::from_millis(2500));
    let settled = take(&sno, &options()).unwrap();
    sno.place.put("/etc/new", "new");
    let mut keep_one = options();
    keep_one.keep = 1.into();
    let second = take(&sno, &keep_one).unwrap();
    assert_eq!(second.manifest.sequence, 3);
    assert!(second.reused > 10_000_000, "{}", second.reused);
    assert_eq!(second.pruned, [settled.manifest.id, first.manifest.id]);
    assert_eq!(sh(&sno.place.dir.backups(), "ls"), format!("{}\n", second.manifest.id));
    let chosen = store::survey(&sno.place.dir).unwrap().backups[0].clone();
    backup::verify(&chosen, true, &Progress::hidden()).unwrap();
}

/// They are only recorded.
#[test]
fn certificates_that_cannot_be_read_cost_a_warning_and_no_backup() {
    let sno = Sno::new();
    sh(sno.root(), "mkdir -p var/lib/kubelet/pki/kubelet-server-current.pem");
    let taken = take(&sno, &options()).unwrap();
    assert!(taken.warnings.iter().any(|w| w.contains("does not record when the first certificate expires")), "{:?}", taken.warnings);
    assert_eq!(taken.manifest.certificates_expire, None);
}

#[test]
fn damage_inside_an_archive_is_found_by_a_deep_check() {
    let sno = Sno::new();
    let taken = take(&sno, &options()).unwrap();
    let path = sno.place.dir.backups().join(&taken.manifest.id);
    let chosen = store::survey(&sno.place.dir).unwrap().backups[0].clone();
    for name in ["etc.tar.zst", "etcd-snapshot.db.zst"] {
        let file = path.join(name);
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let at = bad.len() / 3;
        bad[at] ^= 0x40;
        std::fs::write(&file, bad).unwrap();
        let error = backup::verify(&chosen, false, &Progress::hidden()).unwrap_err();
        assert_eq!(exit_code(&error), 65, "{error:#}");
        // With sums that fit the damage, only the contents tell. (So small a snapshot is read whole where its beginning is.)
        sh(&path, "sha256sum -- $(ls -A | grep -v SHA256SUMS) > ../s && mv ../s SHA256SUMS");
        if name == "etc.tar.zst" {
            backup::verify(&chosen, false, &Progress::hidden()).unwrap();
        }
        let error = backup::verify(&chosen, true, &Progress::hidden()).unwrap_err();
        assert_eq!(exit_code(&error), 65, "{error:#}");
        assert!(format!("{error:#}").contains(name), "{error:#}");
        std::fs::write(&file, good).unwrap();
        sh(&path, "sha256sum -- $(ls -A | grep -v SHA256SUMS) > ../s && mv ../s SHA256SUMS");
    }
    backup::verify(&chosen, true, &Progress::hidden()).unwrap();
}

#[test]
fn a_recovery_that_the_old_script_left_open_is_a_warning_and_nothing_that_it_may_need_goes() {
    let sno = Sno::new();
    let few = TakeOptions { keep: 1.into(), ..options() };
    let first = take(&sno, &few).unwrap();
    std::fs::write(sno.place.dir.journal(), "started\nrestore_files\nrestore_cluster\n").unwrap();
    let second = take(&sno, &few).unwrap();
    assert!(second.warnings.iter().any(|warning| warning.contains("upgrade-recovery.sh has begun a recovery")), "{:?}", second.warnings);
    assert!(second.pruned.is_empty() && second.undeployed.is_empty());
    std::fs::remove_file(sno.place.dir.journal()).unwrap();
    assert!(take(&sno, &few).unwrap().pruned.contains(&first.manifest.id));
}

#[test]
fn a_job_that_comes_back_ends_quietly_and_nobody_else_is_served_during_a_recovery() {
    let sno = Sno::new();
    let by = |asked_by: AskedBy| TakeOptions { asked_by, ..options() };
    let job = by(AskedBy::Job("0a1b2c3d-1111".to_owned()));
    let taken = take(&sno, &job).unwrap();
    assert_eq!(taken.manifest.asked_by.to_string(), "job/0a1b2c3d-1111");
    let of_the_job = (0, Some(taken.manifest.id.clone()));
    assert_eq!(last_run(&sno), Some(of_the_job.clone()));
    let again = take(&sno, &job).unwrap();
    assert_eq!((again.outcome, &again.manifest), (Outcome::AlreadyDone, &taken.manifest));
    // Its last attempt was cut short before the last rename.
    let path = sno.place.dir.backups().join(&taken.manifest.id);
    std::fs::rename(&path, path.with_file_name(format!("{}.partial", taken.manifest.id))).unwrap();
    assert_eq!(take(&sno, &job).unwrap().outcome, Outcome::AlreadyDone);
    std::fs::write(sno.place.dir.journal(), "{}").unwrap();
    assert_eq!(take(&sno, &job).unwrap().outcome, Outcome::AlreadyDone);
    // That it has its backup is no run; to be refused is one.
    assert_eq!(last_run(&sno), Some(of_the_job));
    for other in [AskedBy::Job("0a1b2c3d-2222".to_owned()), AskedBy::Pod("0a1b2c3d-1111".to_owned()), AskedBy::User(0)] {
        assert_eq!(exit_code(&take(&sno, &by(other)).unwrap_err()), 75);
        assert_eq!(last_run(&sno), Some((75, None)));
    }
    std::fs::remove_file(sno.place.dir.journal()).unwrap();
    assert_eq!(take(&sno, &by(AskedBy::User(0))).unwrap().outcome, Outcome::Taken);
    assert_eq!(take(&sno, &by(AskedBy::User(0))).unwrap().outcome, Outcome::Taken);
}

/// The exit code and the backup of the last run, as `metrics` tells it.
fn last_run(sno: &Sno) -> Option<(u8, Option<String>)> {
    LastRun::of(&sno.place.node).unwrap().map(|run| (run.exit, run.backup))
}

/// What a backup holds, but for etcd's snapshot, and what its manifest says, but for what is its own.
fn content(backup: &Path) -> (String, serde_json::Value) {
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(backup.join("manifest.json")).unwrap()).unwrap();
    for own in ["id", "sequence", "taken"] {
        assert!(manifest.as_object_mut().unwrap().remove(own).is_some(), "{own}");
    }
    // How long it took is known where one process has done all of it.
    manifest["seconds"] = manifest["seconds"].is_u64().into();
    // Its log tells of the interruption.
    assert!(manifest["sizes"].as_object_mut().unwrap().remove("log").is_some());
    (sh(backup, "sha256sum -c --quiet --strict SHA256SUMS; ls -A; for tar in *.tar.zst; do zstd -qdc $tar | sha256sum; done"), manifest)
}

#[test]
fn a_backup_that_is_killed_at_any_line_of_its_journal_is_taken_as_one_that_is_not() {
    let sno = Sno::new();
    let agent = |under: &[&str]| {
        let at = [env!("CARGO_BIN_EXE_recovery"), "--root", sno.root().to_str().unwrap()].map(str::to_owned);
        let tools = sno.root().join("tools").to_str().unwrap().to_owned();
        let words = under.iter().map(|word| (*word).to_owned()).chain(at).chain(["--tools".to_owned(), tools, "backup".to_owned()]);
        let words: Vec<String> = words.chain(["--force".to_owned()]).collect();
        std::process::Command::new(&words[0]).args(&words[1..]).output().expect("strace is needed")
    };
    let backups = sno.place.dir.backups();
    let backed_up = || {
        let output = agent(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths: Vec<_> = std::fs::read_dir(&backups).unwrap().map(|entry| entry.unwrap().path()).collect();
        let contents: Vec<_> = paths.iter().map(|path| content(path)).collect();
        sh(&backups, "rm -r -- *");
        (contents, String::from_utf8(output.stderr).unwrap())
    };
    let untroubled = backed_up().0.remove(0);
    assert_eq!(untroubled.1["seconds"], true);
    let (mut killed, mut continued) = (0, 0);
    // Each line but the first is synced with fdatasync(2), and nothing else is: killed there, it is written, or is lost as in a power cut.
    for (number, lost) in (1..).flat_map(|number| [(number, false), (number, true)]) {
        let inject = format!("inject=fdatasync:signal=KILL:when={number}");
        let output = agent(&["strace", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject]);
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
        let journal = sh(&backups, "echo $PWD/*.partial/journal");
        let journal = Path::new(journal.trim());
        let lines = std::fs::read_to_string(journal).unwrap();
        assert_eq!(lines.lines().count(), number + 1);
        if lost {
            std::fs::write(journal, lines.split_inclusive('\n').take(number).collect::<String>()).unwrap();
        }
        let kept: Vec<&str> = lines.lines().take(if lost { number } else { number + 1 }).collect();
        let is_sealed = kept.iter().any(|line| line.contains(r#""step":"manifest""#) && line.contains(r#""event":"step-done""#));
        let mut expected = untroubled.clone();
        expected.1["seconds"] = (kept.len() == 1 || is_sealed).into();
        let (contents, said) = backed_up();
        assert!(!contents.is_empty() && contents.iter().all(|content| *content == expected), "line {number}, lost: {lost}: {contents:?}");
        killed += 1;
        continued += usize::from(said.contains("/usr/local is finished already"));
    }
    // 21 lines, of which 10 stand between the end of that step and the end of the last one.
    assert_eq!((killed, continued), (2 * 21, 2 * 10));
}

#[test]
fn a_roll_out_in_between_is_noticed_and_the_next_attempt_goes_on() {
    let sno = Sno::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let port = sno.etcd.client_url.rsplit(':').next().unwrap().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for revision in 100.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let manifest = format!("/etc/kubernetes/manifests/.kube-scheduler-pod.yaml.{revision}");
                let new = sno.place.put(&manifest, format!(r#"{{"metadata":{{"name":"kube-scheduler","labels":{{"revision":"{revision}"}}}},"spec":{{"containers":[{{"name":"kube-scheduler"}}]}}}}"#));
                std::fs::rename(new, sno.root().join("etc/kubernetes/manifests/kube-scheduler-pod.yaml")).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // A panic in `take` must not leave the other thread at its work.
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| take(&sno, &options())));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = taken.unwrap().unwrap_err();
        assert_eq!(exit_code(&error), 75, "{error:#}");
        let said = format!("{error:#}");
        assert!(said.starts_with("step etcd-and-static-pods failed: static pods were rolled out during each attempt"), "{said}");
        assert!(said.ends_with("; next: `recovery backup` again then"), "{said}");
    });
    sno.roll_out("kube-scheduler", 5, &port);
    let listed = sno.place.listed();
    assert_eq!((listed.len(), listed[0].1.as_str()), (1, "partial"));
    let partial = sno.place.dir.backups().join(&listed[0].0);
    let before = partial.join("kubelet.tar.zst").metadata().unwrap();
    let taken = take(&sno, &options()).unwrap();
    assert_eq!(format!("{}.partial", taken.manifest.id), listed[0].0);
    let after = sno.place.dir.backups().join(&taken.manifest.id).join("kubelet.tar.zst").metadata().unwrap();
    assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()));
    assert_eq!(sno.place.listed().len(), 1);
}

#[test]
fn what_cannot_be_is_refused_before_anything_changes() {
    let sno = Sno::new();
    let before = fingerprint(&sno.root().join("etc"));
    let code = |options: &TakeOptions| take(&sno, options).map_err(|e| exit_code(&e)).map(drop);
    assert_eq!(code(&TakeOptions { name: Some("../x".to_owned()), ..options() }), Err(2));
    assert_eq!(code(&TakeOptions { labels: BTreeMap::from([("a b".to_owned(), String::new())]), ..options() }), Err(2));
    assert_eq!(code(&TakeOptions { keep: 0.into(), ..options() }), Err(2));
    assert_eq!(last_run(&sno), None);
    // Nobody says which release this is.
    assert_eq!(code(&TakeOptions { force: false, ..options() }), Err(78));
    let inside = RecoveryDir::new(&sno.place.node, Path::new("/usr/local/recovery"));
    let refused = backup::take::trees::refuse_dir_inside(&sno.place.node, &inside);
    assert_eq!(refused.map_err(|e| exit_code(&e)).map(drop), Err(2));
    let pid = sno.etcd.pid();
    sh(sno.root(), &format!("kill -9 {pid}"));
    assert_eq!(code(&options()), Err(69));
    assert_eq!(fingerprint(&sno.root().join("etc")), before);
    assert_eq!(sh(sno.place.dir.path(), "ls"), "backups\nlock\n");
    assert_eq!(sh(&sno.place.dir.backups(), "ls"), "");
}

/// A loop-mounted XFS in place of the recovery directory.
struct Xfs {
    at: std::path::PathBuf,
    image: tempfile::NamedTempFile,
}

impl Xfs {
    fn mount(at: &Path) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        let path = image.path().display();
        sh(Path::new("/"), &format!("truncate -s 1G {path} && mkfs.xfs -q {path} && mount -o loop {path} {}", at.display()));
        sh(at, "chmod 700 . && mkdir -m 700 backups");
        Self { at: at.to_owned(), image }
    }

    /// Fills it until so many bytes are free, within a megabyte. XFS gives back what was deleted a moment later.
    fn leave_free(&self, bytes: u64) {
        let free = "sync .; free=$(($(stat -f -c '%f * %S' .)))";
        let script = format!(
            "for i in {{1..100}}; do
               : > filler; {free}; [ $free -lt {bytes} ] || fallocate -l $((free - {bytes})) filler
               {free}; off=$((free - {bytes})); [ ${{off#-}} -gt 1048576 ] || exit 0; sleep 0.1
             done; echo $free bytes are free >&2; exit 1"
        );
        sh(&self.at, &script);
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.at).status().ok();
        let _ = &self.image;
    }
}

#[test]
fn a_full_disk_costs_the_new_backup_only() {
    let sno = Sno::new();
    let xfs = Xfs::mount(sno.place.dir.path());
    let first = take(&sno, &options()).unwrap();
    let path = sno.place.dir.backups().join(&first.manifest.id);
    // It would fit, but leave no room for a recovery.
    xfs.leave_free(12_000_000);
    let error = take(&sno, &options()).unwrap_err();
    assert_eq!(exit_code(&error), 73);
    assert!(format!("{error:#}").contains("stay free for a recovery"), "{error:#}");
    // Much too little: refused with the numbers, before anything is written.
    let noise = 120_000_000;
    sh(sno.root(), &format!("head -c {noise} /dev/urandom > var/lib/kubelet/noise"));
    xfs.leave_free(8_000_000);
    let error = take(&sno, &options()).unwrap_err();
    assert_eq!(exit_code(&error), 73);
    assert!(format!("{error:#}").contains("free"), "{error:#}");
    // As much as was thought, but it does not compress: the disk fills up on the way.
    xfs.leave_free(noise * 9 / 10);
    let error = take(&sno, &options()).unwrap_err();
    assert_eq!(exit_code(&error), 73, "{error:#}");
    assert!(format!("{error:#}").contains("untouched"), "{error:#}");
    assert_eq!(last_run(&sno), Some((73, None)));
    sh(&path, "sha256sum -c --quiet --strict SHA256SUMS");
    assert_eq!(sno.place.listed(), [(first.manifest.id.clone(), "complete".to_owned())]);
    assert_eq!(sh(&sno.place.dir.backups(), "ls -A"), format!("{}\n", first.manifest.id));
}
