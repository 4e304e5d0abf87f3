//! What upgrade-recovery.sh left: listed, checked, imported; and exported again.

use std::path::{Path, PathBuf};
use testing::session::{locked, session};

use recovery::backup::{self, Backup};
use recovery::error::exit_code;
use recovery::node::{Node, dir::RecoveryDir};
use recovery::report::Progress;

use crate::place::{PODS, Sno, fingerprint, sh};

/// Takes a backup as the old script does: its own commands, on this node.
fn old_backup(sno: &Sno, to: &Path) {
    let cluster = to.join("cluster");
    std::fs::create_dir_all(&cluster).unwrap();
    let snapshot = cluster.join("snapshot_2024-05-01_120000__POSSIBLY_DIRTY__.db");
    sno.etcd.etcdctl(&["snapshot", "save", snapshot.to_str().unwrap()]).unwrap();
    let dirs: Vec<String> = PODS.iter().map(|(pod, revision)| format!("static-pod-resources/{pod}-pod-{revision}")).collect();
    let tar = cluster.join("static_kuberesources_2024-05-01_120000__POSSIBLY_DIRTY__.tar.gz");
    sh(sno.root(), &format!("tar -cpzf {} -C etc/kubernetes {}", tar.display(), dirs.join(" ")));
    let to = to.display();
    sh(
        sno.root(),
        &format!(
            "cat etc/tmpfiles.d/* | sed 's/#.*//' | awk '{{print $2}}' | grep '^/etc/' | sed 's#^/etc/##' > {to}/etc.exclude.list
             echo .updated >> {to}/etc.exclude.list; echo kubernetes/manifests >> {to}/etc.exclude.list
             cp -Ra etc/ {to}/; cp -Ra usr/local/ {to}/; cp -Ra var/lib/kubelet/ {to}/
             tar czf {to}/extras.tgz opt/managed/tool"
        ),
    );
}

fn choose(node: &Node, dir: &RecoveryDir, wanted: Option<&str>) -> Result<Backup, (u8, String)> {
    let session = locked(node, dir);
    let chosen = backup::store::finish_interrupted(&session).and_then(|survey| backup::choose(&session, &survey, wanted));
    chosen.map_err(|e| (exit_code(&e), format!("{e:#}")))
}

/// The archive `name` of a backup, unpacked by tar(1).
fn unpacked(backup: &Backup, name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    sh(&backup.path, &format!("tar --zstd --xattrs --xattrs-include='*' --acls -xpf {name} -C {}", to.path().display()));
    to
}

#[test]
fn an_old_backup_is_listed_checked_and_imported_once() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    old_backup(&sno, dir.path());
    let agent = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_recovery")).arg("--root").arg(sno.root()).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = agent(&["verify", "upgrade-recovery"]);
    let size = format!(
        "upgrade-recovery: good, {:.1} MiB\n",
        f64::from(u32::try_from(backup::legacy::find(dir).unwrap().usage()).unwrap()) / f64::from(1 << 20)
    );
    assert!(code == Some(0) && said.contains(&size) && !size.contains(" 0.0 MiB"), "{said}");
    let (code, said) = agent(&["restore-files", "--dry-run", "--backup", "upgrade-recovery"]);
    assert!(code == Some(64) && said.contains("has to be imported"), "{code:?} {said}");
    let original = fingerprint(dir.path());
    assert_eq!(sno.place.listed(), [("upgrade-recovery".to_owned(), "legacy".to_owned())]);
    let old = backup::legacy::find(dir).unwrap();
    assert_eq!(old.taken().unwrap().to_string(), "2024-05-01T12:00:00Z");
    let report = backup::legacy::verify(&old, &Progress::hidden()).unwrap();
    assert!(report.good, "{:?}", report.problems);

    let found = backup::store::find(&session(node, dir), &backup::store::survey(dir).unwrap(), None).unwrap();
    assert!(matches!(found, backup::store::Found::Old(_)));
    assert_eq!(fingerprint(dir.path()), original, "a report changes nothing");
    let imported = choose(node, dir, None).unwrap();
    assert_eq!(choose(node, dir, Some("upgrade-recovery")).unwrap().id, imported.id);
    backup::verify(&imported, true, &Progress::hidden()).unwrap();
    let manifest = &imported.manifest;
    assert_eq!(manifest.asked_by.to_string(), "upgrade-recovery.sh");
    assert_eq!((manifest.sequence, &manifest.deployment, manifest.taken.to_string().as_str()), (0, &None, "2024-05-01T12:00:00Z"));
    assert_eq!((manifest.identity.node_name.as_str(), manifest.etcd.revision), ("sno", 4));
    assert!(manifest.managed_files.contains(&"/opt/managed/tool".into()));
    for left_alone in ["resolv.conf", "deep/resolv.conf", ".updated"] {
        assert!(manifest.etc_excludes.contains(&PathBuf::from(left_alone)), "{left_alone}: {:?}", manifest.etc_excludes);
    }
    let now = fingerprint(dir.path());
    let old_ones = |text: &str| {
        let ours = |line: &str| line.contains(" ./backups") || line.ends_with(" .") || line.ends_with(" ./lock");
        text.lines().filter(|line| !ours(line)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(old_ones(&original), old_ones(&now), "the original is untouched");

    let kubernetes = unpacked(&imported, "static-pods.tar.zst");
    for owned in ["manifests", "static-pod-resources"] {
        let copied = sums(&dir.path().join("etc/kubernetes").join(owned));
        let expected: Vec<&str> = copied.lines().filter(|line| !line.contains("startup-monitor")).collect();
        assert_eq!(sums(&kubernetes.path().join(owned)).lines().collect::<Vec<_>>(), expected);
    }
    assert_eq!(fingerprint(unpacked(&imported, "kubelet.tar.zst").path()), fingerprint(&dir.path().join("kubelet")));
    assert_eq!(fingerprint(unpacked(&imported, "usr-local.tar.zst").path()), fingerprint(&dir.path().join("local")));
    // Newer ones of the agent's own come first, whatever the clock says.
    let taken = backup::take(&locked(node, dir), &crate::take::options()).unwrap();
    assert_eq!(choose(node, dir, None).unwrap().id, taken.manifest.id);
}

#[test]
fn an_export_that_imports_takes_the_lock() {
    let sno = Sno::new();
    old_backup(&sno, sno.place.dir.path());
    std::fs::remove_dir(sno.place.dir.backups()).unwrap();
    let to = sno.root().join("exported");
    let export = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_recovery"));
        command.arg("--root").arg(sno.root()).args(["export", "upgrade-recovery"]).arg(&to).output().unwrap()
    };
    let held = sno.place.dir.lock("backup").unwrap();
    let refused = export();
    assert_eq!(refused.status.code(), Some(75), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(sno.place.listed().len(), 1, "nothing is imported");
    drop(held);
    let done = export();
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(to.join("cluster").exists());
}

fn sums(dir: &Path) -> String {
    sh(dir, "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum")
}

#[test]
fn the_pods_are_those_saved_with_the_snapshot() {
    let sno = Sno::new();
    old_backup(&sno, sno.place.dir.path());
    // /etc was copied a moment later, with the scheduler at its next revision and without the directory of the one before.
    let kubernetes = sno.place.dir.path().join("etc/kubernetes");
    sh(
        &kubernetes,
        "mv static-pod-resources/kube-scheduler-pod-5 static-pod-resources/kube-scheduler-pod-6 && echo later > manifests/kube-scheduler-pod.yaml",
    );
    let imported = choose(&sno.place.node, &sno.place.dir, None).unwrap();
    let out = unpacked(&imported, "static-pods.tar.zst");
    let text = std::fs::read_to_string(out.path().join("manifests/kube-scheduler-pod.yaml")).unwrap();
    assert!(text.contains(r#""revision":"5""#), "{text}");
    assert!(out.path().join("static-pod-resources/kube-scheduler-pod-5/secrets/encryption-config/key").exists());
    assert!(out.path().join("manifests/criometricsproxy.yaml").exists());
}

#[test]
fn a_damaged_old_backup_is_refused_and_leaves_nothing() {
    let sno = Sno::new();
    let dir = sno.place.dir.path().to_owned();
    old_backup(&sno, &dir);
    let refused = |damage: &str, says: &str| {
        let copy = tempfile::tempdir().unwrap();
        sh(&dir, &format!("cp -a . {}", copy.path().display()));
        sh(&dir, damage);
        let (code, message) = choose(&sno.place.node, &sno.place.dir, Some("upgrade-recovery")).unwrap_err();
        assert_eq!(code, 65, "{damage}: {message}");
        assert!(message.contains(says), "{damage}: {message}");
        assert_eq!(sh(&sno.place.dir.backups(), "ls -A"), "");
        sh(&dir, &format!("rm -rf cluster etc local kubelet extras.tgz etc.exclude.list && cp -a {}/. .", copy.path().display()));
    };
    refused("printf x | dd of=$(ls cluster/*.db) bs=1 seek=5000 conv=notrunc status=none", "snapshot");
    refused("truncate -s -20 cluster/*.tar.gz", "static_kuberesources");
    refused("truncate -s -5 extras.tgz", "extras.tgz");
    refused("rm -r local", "local/");
    refused("rm cluster/*.db", "snapshot");
    refused("rm etc/machine-id", "machine-id");
    refused("cd etc/kubernetes && tar -czf ../../cluster/*.tar.gz static-pod-resources/etcd-pod-3", "kube-apiserver");
    refused("ln etc/machine-id x && tar -P -czf extras.tgz --transform 's#^x#../../x#' x", "holds the name");
    refused("ln -s /etc var && mkdir opt && touch opt/x && tar -czf extras.tgz var opt/x && rm -r var opt", "have conflicting paths");
    assert!(choose(&sno.place.node, &sno.place.dir, Some("upgrade-recovery")).is_ok());
}

/// One judge: `list` (as far as it looks), `verify` and the import say the same, and of what is wrong.
#[test]
fn what_no_recovery_can_use_is_good_to_nobody() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    let here = dir.path().to_owned();
    old_backup(&sno, &here);
    let copy = tempfile::tempdir().unwrap();
    sh(&here, &format!("cp -a . {}", copy.path().display()));
    let refused = |damage: &str, says: &str, is_quick: bool| {
        sh(&here, damage);
        let old = backup::legacy::find(dir).unwrap();
        let report = backup::legacy::verify(&old, &Progress::hidden()).unwrap();
        assert!(!report.good && report.problems.join("; ").contains(says), "{damage}: {:?}", report.problems);
        let listed = sno.place.listed();
        assert_eq!(listed, [("upgrade-recovery".to_owned(), if is_quick { "damaged" } else { "legacy" }.to_owned())], "{damage}");
        let (code, message) = choose(node, dir, Some("upgrade-recovery")).unwrap_err();
        let sound = ["more than 1024 levels", "longer than the 4,095 bytes", "without tar's option -P"].contains(&says);
        assert!(code == if sound { 64 } else { 65 } && message.contains(says) && message.len() < 2000, "{damage}: {code} {message}");
        assert_eq!(sh(&dir.backups(), "ls -A"), "", "{damage}");
        sh(&here, &format!("rm -rf cluster etc local kubelet extras.tgz etc.exclude.list && cp -a {}/. .", copy.path().display()));
    };
    // Quick to see.
    refused(": > etc/machine-config-daemon/currentconfig", "not a MachineConfig", true);
    refused(": > etc/kubernetes/manifests/etcd-pod.yaml", "is not the manifest of a pod", true);
    refused(
        "find etc/kubernetes -name '*ca.crt' -delete; rm -f etc/kubernetes/kubeconfig etc/kubernetes/*kubeconfig*; find etc/kubernetes -name '*kubeconfig*' -delete",
        "no certificate authority",
        true,
    );
    refused("cp -a etc inner && mv inner etc/etc", "mv etc/etc etc.inner && mv etc etc.outer", true);
    refused("mkdir -p local/local/bin", "local/local is a copy inside", true);
    refused("mkdir kubelet/kubelet", "kubelet/kubelet is a copy inside", true);
    refused("truncate -s 40M etc/machine-config-daemon/currentconfig", "no more than 8388608 are read", true);
    refused("truncate -s 40M etc.exclude.list", "no more than 1048576 are read", true);
    for odd in ["mkfifo extras.tgz", "mkdir extras.tgz", "ln -s nowhere extras.tgz"] {
        refused(&format!("rm extras.tgz && {odd}"), "extras.tgz of the backup of upgrade-recovery.sh is not a regular file", true);
    }
    refused("rm etc/machine-id && mkfifo etc/machine-id", "etc/machine-id is not a regular file", true);
    // Seen in what is packed.
    let snapshot = "f=$(ls cluster/*.db) && head -c 8192 /dev/zero > $f && sha256sum $f | cut -c1-64 | xxd -r -p >> $f";
    refused(snapshot, "the etcd snapshot", false);
    let pod = "static-pod-resources/etcd-pod-3/etcd-pod.yaml";
    let again = "tar -czf $OLDPWD/$f static-pod-resources";
    let unpacked = |change: &str| {
        format!("f=$(ls cluster/*.tar.gz) && d=$(mktemp -d) && tar -xzf $f -C $d && cd $d && {change} && {again} && rm -r $d")
    };
    refused(&unpacked(&format!("rm {pod}")), &format!("{pod} is not in it"), false);
    refused(&unpacked(&format!(": > {pod}")), "is not the manifest of a pod", false);
    refused(&unpacked(&format!("truncate -s 40M {pod}")), "no more than 1048576 are read", false);
    refused(
        "mkdir x && touch x/y x/z && tar -cf e x/y && rm -r x && touch x && tar -rf e x && gzip -c e > extras.tgz && rm e x",
        "have conflicting paths",
        false,
    );
    refused("touch a && ln a b && tar -cf e a b && tar --delete -f e a && gzip -c e > extras.tgz && rm a b e", "is a link to a", false);
    refused("mkdir x && touch x/a && ln x/a x/b && tar -czPf extras.tgz $PWD/x && rm -r x", "without tar's option -P", false);
    let deep = "d=$PWD/kubelet; for i in $(seq 15); do d=$d/$(printf 'd/%.0s' $(seq 100)); done; mkdir -p $d";
    refused(deep, "more than 1024 levels", false);
    let long = "cd local; n=$(printf 'n%.0s' $(seq 250)); for i in $(seq 20); do mkdir $n && cd $n; done";
    refused(long, "longer than the 4,095 bytes", false);
    assert!(choose(node, dir, None).is_ok(), "as it was, it is good");
}

/// What a recovery would find in its etcd step only, and an import when it writes the manifest, is known before.
#[test]
fn what_a_recovery_cannot_use_is_no_good_old_backup() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    let judged = |code: u8, says: &str| {
        let report = backup::legacy::verify(&backup::legacy::find(dir).unwrap(), &Progress::hidden()).unwrap();
        assert!(!report.good && report.problems.join("; ").contains(says), "{:?}", report.problems);
        let (met, message) = choose(node, dir, Some("upgrade-recovery")).unwrap_err();
        assert!(met == code && message.contains(says) && !message.contains("damaged"), "{met} {message}");
        assert_eq!(sh(&dir.backups(), "ls -A"), "");
    };
    old_backup(&sno, dir.path());
    sh(
        dir.path(),
        "cp etc.exclude.list list; echo '*.crl' >> etc.exclude.list; mkdir -p etc/pki/crl; cd etc/pki/crl; seq -f %g.crl 12000 | xargs touch",
    );
    judged(64, "more than 10000 patterns");
    sh(dir.path(), "mv list etc.exclude.list; rm -r etc/pki/crl");
    // Nobody says which of two members this node is.
    sno.etcd.etcdctl(&["member", "add", "other", "--peer-urls=http://127.0.0.1:1"]).unwrap();
    let file = sh(dir.path(), "ls $PWD/cluster/*.db");
    std::fs::remove_file(file.trim()).unwrap();
    sno.etcd.etcdctl(&["snapshot", "save", file.trim()]).unwrap();
    judged(78, "2 members");
}

/// Sound, and nothing that is taken: no word of damage, neither by `verify` nor by the import.
#[test]
fn what_is_not_supported_is_not_called_damaged() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    old_backup(&sno, dir.path());
    sh(dir.path(), "f=$(ls cluster/*.db) && gzip -c $f > g && mv g $f");
    let (code, message) = choose(node, dir, Some("upgrade-recovery")).unwrap_err();
    assert!(code == 64 && message.contains("is packed with gzip") && !message.contains("damaged"), "{code} {message}");
    let verify = |more: &[&str]| {
        let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_recovery"));
        agent.arg("--root").arg(sno.root()).args(more).args(["verify", "upgrade-recovery"]).output().unwrap()
    };
    let said = verify(&[]);
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert_eq!(said.status.code(), Some(64), "{text}");
    assert!(text.contains("not supported") && !text.to_lowercase().contains("damaged"), "{text}");
    assert_eq!(verify(&["--json"]).status.code(), Some(64));
    // With damage besides, it is damaged.
    sh(dir.path(), "truncate -s -5 extras.tgz");
    assert_eq!(choose(node, dir, Some("upgrade-recovery")).unwrap_err().0, 65);
    assert_eq!(verify(&[]).status.code(), Some(65));
}

/// As tar unpacks it: the last member of a name counts, and a link may be named twice.
#[test]
fn what_tar_takes_is_taken() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    old_backup(&sno, dir.path());
    let make = "rm etc.exclude.list && mkdir -p opt/managed && echo one > opt/managed/tool && ln opt/managed/tool opt/managed/twin
        tar -cf e opt/managed/tool opt/managed/twin opt/managed/twin opt/managed/tool opt/managed/twin
        rm opt/managed/tool && echo two > opt/managed/tool && tar -rPf e --transform 's#^opt#/opt#rSH' opt/managed && gzip -c e > extras.tgz && rm -r opt e";
    sh(dir.path(), make);
    let old = backup::legacy::find(dir).unwrap();
    let report = backup::legacy::verify(&old, &Progress::hidden()).unwrap();
    assert!(report.good, "{:?}", report.problems);
    let imported = choose(node, dir, None).unwrap();
    let out = unpacked(&imported, "extras.tar.zst");
    assert_eq!(sh(out.path(), "cd var/opt/managed && cat tool twin"), "two\none\n");
    assert_eq!(choose(node, dir, Some("upgrade-recovery")).unwrap().id, imported.id, "it is known again without its list");
}

#[test]
fn what_is_exported_is_an_old_backup_and_imports_to_the_same() {
    let sno = Sno::new();
    let (node, dir) = (&sno.place.node, &sno.place.dir);
    let taken = backup::take(&locked(node, dir), &crate::take::options()).unwrap();
    let native = choose(node, dir, None).unwrap();
    let elsewhere = RecoveryDir::new(node, Path::new("/var/elsewhere"));
    let to = elsewhere.path().to_owned();
    backup::export(&native, &to, &Progress::hidden()).unwrap();

    assert_eq!(sh(&to, "ls -A"), "cluster\netc\netc.exclude.list\nextras.tgz\nkubelet\nlocal\n");
    assert_eq!(sh(&to, "stat -c '%a' . cluster cluster/* extras.tgz etc.exclude.list"), "700\n700\n600\n600\n600\n600\n");
    let status = sno.etcd.etcdctl(&["snapshot", "status", sh(&to, "ls $PWD/cluster/*.db").trim(), "-w", "json"]).unwrap();
    assert!(status.contains(&format!("\"revision\":{}", taken.manifest.etcd.revision)), "{status}");
    // As `cluster-restore.sh` looks for a manifest.
    assert_eq!(sh(&to, "tar --wildcards -tf cluster/*.tar.gz '*etcd-pod.yaml'"), "static-pod-resources/etcd-pod-3/etcd-pod.yaml\n");
    assert_eq!(sh(&to, "tar -tf extras.tgz"), "var/opt/managed/tool\n");
    assert!(sh(&to, "cat etc.exclude.list").lines().any(|line| line == "/kubernetes/manifests"));
    // The tree is the node's, but for the monitor that no backup holds.
    sh(&sno.root().join("etc"), "rm kubernetes/manifests/kube-apiserver-startup-monitor-pod.yaml");
    assert_eq!(without_dirs(&to.join("etc")), without_dirs(&sno.root().join("etc")));
    // rsync, with that list, has nothing to do.
    let rsync = sh(&to, &format!("rsync -aAXnic --delete --exclude-from etc.exclude.list etc/ {}/etc/", sno.root().display()));
    assert_eq!(rsync.lines().filter(|line| !line.starts_with(".d..t")).collect::<Vec<_>>(), Vec::<&str>::new());
    // Called again, it says that it is done; cut short anywhere, it is begun again; and what is somebody else's is left alone.
    let export = || backup::export(&native, &to, &Progress::hidden()).map(|exported| exported.already);
    let before = sh(&to, "find . -printf '%p %i %C@\\n' | sort");
    assert!(export().unwrap());
    assert_eq!(sh(&to, "find . -printf '%p %i %C@\\n' | sort"), before);
    for (cut_short, already) in [
        ("touch .unfinished-export", false),
        ("rm -r etc/kubernetes extras.tgz; mkdir .extras; touch .unfinished-export", false),
        ("rm -r * && touch .unfinished-export", false),
        ("rm -r *", false),
        ("true", true),
    ] {
        sh(&to, cut_short);
        assert_eq!(export().unwrap(), already, "{cut_short}");
        assert_eq!(sh(&to, "ls -A"), "cluster\netc\netc.exclude.list\nextras.tgz\nkubelet\nlocal\n");
    }
    for change in
        ["rm extras.tgz", "echo x >> etc.exclude.list", "rm etc/machine-id", "echo x >> cluster/*.db", "truncate -s -9 cluster/*.tar.gz"]
    {
        sh(&to, change);
        assert_eq!(exit_code(&export().unwrap_err()), 2, "{change}");
        sh(&to, "touch .unfinished-export");
        assert!(!export().unwrap(), "{change}");
    }

    elsewhere.prepare().unwrap();
    let imported = choose(node, &elsewhere, None).unwrap();
    for name in ["etc.tar.zst", "usr-local.tar.zst", "kubelet.tar.zst", "static-pods.tar.zst"] {
        assert_eq!(without_dirs(unpacked(&imported, name).path()), without_dirs(unpacked(&native, name).path()), "{name}");
    }
    // The old layout's tar keeps whole seconds.
    let [one, other] = [&imported, &native].map(|b| unpacked(b, "extras.tar.zst"));
    for dir in [one.path(), other.path()] {
        sh(dir, "find . -type f -exec sh -c 'touch -d @$(stat -c %Y {}) {}' ';'");
    }
    assert_eq!(without_dirs(one.path()), without_dirs(other.path()));
    let snapshot = |b: &Backup| sh(&b.path, "zstd -qdc etcd-snapshot.db.zst | sha256sum");
    assert_eq!(snapshot(&imported), snapshot(&native));
    let (a, b) = (&imported.manifest, &native.manifest);
    assert_eq!((&a.etc_excludes, &a.managed_files, &a.identity), (&b.etc_excludes, &b.managed_files, &b.identity));
    assert_eq!(a.certificates_expire, b.certificates_expire);
}

/// Directories change when something is put into them.
fn without_dirs(dir: &Path) -> String {
    let all = fingerprint(dir);
    all.lines().filter(|line| !line.starts_with("d ")).collect::<Vec<_>>().join("\n")
}
