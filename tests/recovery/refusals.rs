//! What is refused before anything is changed, with the documented exit code and a way out.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use recovery::archive::{Selection, pack};
use recovery::backup::EXTRAS;
use recovery::backup::manifest::Manifest;
use recovery::error::exit_code;
use recovery::node::dir::RecoveryDir;
use recovery::recovery::{Asked, Options, ResumeOptions};

use crate::place::{Place, authority};

/// The plan fails with this code and these words, and has changed nothing.
fn refused(place: &Place, options: Options, code: u8, words: &[&str]) {
    let (files, calls) = (place.files(), place.calls());
    let Err(error) = place.plan(options) else { panic!("it was not refused: {words:?}") };
    let text = format!("{error:#}");
    assert_eq!(exit_code(&error), code, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert_eq!((place.files(), place.calls()), (files, calls));
    assert!(!place.dir.in_recovery() && !place.dir.undo().exists());
}

fn forced() -> Options {
    Options { asked: Asked { force: true, ..Asked::default() }, ..Options::default() }
}

#[test]
fn a_damaged_backup() {
    let place = Place::new();
    let file = place.dir.backups().join("b1/kubelet.tar.zst");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    refused(&place, Options::default(), 65, &["kubelet.tar.zst"]);
    refused(&place, forced(), 65, &["kubelet.tar.zst"]);
}

#[test]
fn a_damaged_backup_names_another_and_one_that_is_passed_over_is_a_warning() {
    let place = Place::new();
    let file = place.back_up("b2", 2).join("kubelet.tar.zst");
    std::fs::write(&file, "no archive").unwrap();
    refused(&place, Options::default(), 65, &["kubelet.tar.zst", "next: --backup b1"]);
    std::fs::write(place.dir.backups().join("b2/manifest.json"), "{").unwrap();
    let plan = place.plan(Options::default()).unwrap();
    assert_eq!(plan.report.backup, "b1");
    let says_why = |w: &String| w.contains("the backup b2 is damaged and passed over") && w.contains("manifest.json is not valid: EOF");
    assert_eq!(plan.report.warnings.iter().filter(|w| says_why(w)).count(), 1, "{:?}", plan.report.warnings);
}

#[test]
fn a_backup_of_another_node_unless_forced() {
    let place = Place::new();
    place.put("/etc/machine-id", "4567\n");
    place.put("/etc/kubernetes/pki/ca.crt", authority());
    refused(&place, Options::default(), 78, &["the machine id is 4567, not 0123", "different clusters", "--force"]);
    let plan = place.plan(forced()).unwrap();
    assert!(plan.report.warnings.iter().any(|w| w.contains("machine id")), "{:?}", plan.report.warnings);
}

#[test]
fn a_unit_that_a_later_step_needs_and_that_is_not_there() {
    for (unit, load, words) in [
        ("containerd.service", "not-found", ["there is no unit containerd.service", "next: start the container runtime"]),
        ("containerd.service", "masked", ["the unit containerd.service is masked; next:", "`systemctl unmask containerd.service`"]),
        ("containerd.service", "bad-setting", ["containerd.service (bad-setting); next:", "`systemctl status containerd.service`"]),
        ("kubelet.service", "not-found", ["there is no unit kubelet.service", "next: `systemctl list-unit-files`"]),
        ("kubelet.service", "masked", ["kubelet.service is masked", "next: `systemctl unmask kubelet.service`"]),
        ("kubelet.service", "bad-setting", ["bad-setting", "next: `systemctl status kubelet.service`"]),
    ] {
        let place = Place::new();
        place.state(&format!("{unit}.load"), load);
        refused(&place, Options::default(), 78, &words);
        refused(&place, forced(), 78, &words);
        // One that the backup brings is no reason.
        place.put(&format!("/etc/systemd/system/{unit}"), "[Service]\nExecStart=/usr/bin/x\n");
        place.back_up("b2", 2);
        let file = place.at(&format!("/etc/systemd/system/{unit}"));
        std::fs::remove_file(&file).unwrap();
        place.plan(Options::default()).unwrap();
        // A mask that it brings is no unit.
        symlink("/dev/null", &file).unwrap();
        place.back_up("b3", 3);
        std::fs::remove_file(&file).unwrap();
        place.state(&format!("{unit}.load"), "loaded");
        let words = format!("the unit {unit} is masked in the backup's /etc; next: a backup taken after `systemctl unmask {unit}`");
        refused(&place, Options::default(), 78, &[&words]);
    }
}

#[test]
fn a_unit_that_the_restore_itself_would_take_away() {
    let place = Place::new();
    place.put("/etc/systemd/system/kubelet.service", "[Service]\nExecStart=/usr/bin/kubelet\n");
    refused(&place, Options::default(), 78, &["kubelet.service is in /etc but not in the backup", "next:"]);
    place.put("/usr/lib/systemd/system/kubelet.service", "[Service]\nExecStart=/usr/bin/kubelet\n");
    place.plan(Options::default()).unwrap();
}

/// A process that listens on CRI-O's socket, in a unit of this name.
fn listens(place: &Place, unit: &str) {
    place.put("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n");
    place.put(
        "/proc/1/net/unix",
        "Num       RefCount Protocol Flags    Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 78 /run/crio/crio.sock\n",
    );
    place.put("/proc/41/cgroup", format!("0::/system.slice/{unit}\n"));
    std::fs::create_dir_all(place.at("/proc/41/fd")).unwrap();
    symlink("socket:[78]", place.at("/proc/41/fd/3")).unwrap();
}

/// The unit that listens now has its file in `/etc` alone, and goes with that; the one that the backup recorded is there.
#[test]
fn the_recorded_unit_counts_and_not_the_one_that_listens() {
    let place = Place::new();
    listens(&place, "site-crio.service");
    place.put("/etc/systemd/system/site-crio.service", "[Service]\nExecStart=/opt/bin/crio\n");
    place.state("site-crio.service", "active");
    let manifest = Manifest { runtime_unit: Some("crio.service".to_owned()), ..place.manifest("b1", 1) };
    Place::publish(&place.dir.backups().join("b1"), &manifest);
    let plan = place.plan(Options::default()).unwrap();
    assert_eq!(plan.report.runtime_unit, "crio.service");
    plan.begin().unwrap();
    let calls = place.calls();
    let made = |call: &str| calls.iter().any(|made| made == call);
    assert!(made("systemctl stop site-crio.service") && !made("systemctl stop crio.service"), "{calls:?}");
    // Neither is there: each has its own reason, and no name stands twice.
    let place = Place::new();
    listens(&place, "site-crio.service");
    place.put("/etc/systemd/system/site-crio.service", "[Service]\nExecStart=/opt/bin/crio\n");
    let manifest = Manifest { runtime_unit: Some("crio.service".to_owned()), ..place.manifest("b1", 1) };
    Place::publish(&place.dir.backups().join("b1"), &manifest);
    place.state("crio.service.load", "masked");
    place.state("cri-o.service.load", "not-found");
    let why = "has no unit that can be started: the unit crio.service is masked; the unit file of site-crio.service is in /etc but not in the backup: \
               restoring the backup's /etc would remove it; there is no unit cri-o.service on this node; next: `systemctl unmask crio.service`";
    refused(&place, Options::default(), 78, &[why]);
}

#[test]
fn a_mask_that_the_restore_or_the_reboot_takes_away_is_no_reason() {
    for unit in ["kubelet.service", "containerd.service"] {
        for folder in ["/etc/systemd/system", "/run/systemd/system"] {
            let place = Place::new();
            place.state(&format!("{unit}.load"), "masked");
            std::fs::create_dir_all(place.at(folder)).unwrap();
            symlink("/dev/null", place.at(folder).join(unit)).unwrap();
            refused(&place, Options::default(), 78, &[&format!("there is no unit {unit}")]);
            place.put(&format!("/usr/lib/systemd/system/{unit}"), "[Service]\nExecStart=/usr/bin/x\n");
            place.plan(Options::default()).unwrap();
        }
    }
}

/// A directory of the node on a read-only mount.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn mount(folder: std::path::PathBuf) -> Self {
        let script = r#"mount --bind "$1" "$1"; mount -o remount,ro,bind "$1""#;
        assert!(Command::new("sh").args(["-ec", script, "sh"]).arg(&folder).status().unwrap().success());
        Self(folder)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        Command::new("umount").args(["--lazy"]).arg(&self.0).status().ok();
    }
}

#[test]
fn a_place_that_cannot_be_written_to() {
    let place = Place::new();
    for folder in ["/var/lib/etcd", "/var/lib/kubelet", "/usr/local"] {
        let mount = ReadOnly::mount(place.at(folder));
        refused(&place, Options::default(), 78, &[&format!("{folder} is on a file system that is mounted read-only"), "next: `findmnt"]);
        drop(mount);
        place.plan(Options::default()).unwrap();
    }
    // Managed files elsewhere: only where there is something to restore.
    let backup = place.dir.backups().join("b1");
    place.put("/var/opt/site/managed", "before");
    place.put("/var/opt/site/other", "before");
    pack(&place.at("/"), &backup.join(EXTRAS), &Selection::all().only(["var/opt/site/managed", "var/opt/site/other"]), None, &|_| ())
        .unwrap();
    let mut manifest = place.manifest("b1", 1);
    manifest.sizes.insert(EXTRAS.to_owned(), 20);
    Place::publish(&backup, &manifest);
    let mount = ReadOnly::mount(place.at("/var/opt/site"));
    place.plan(Options::default()).unwrap();
    drop(mount);
    place.put("/var/opt/site/managed", "after");
    place.plan(Options::default()).unwrap();
    let _mount = ReadOnly::mount(place.at("/var/opt/site"));
    refused(&place, Options::default(), 78, &["/var/opt/site is on a file system that is mounted read-only", "next: `findmnt"]);
}

#[test]
fn a_program_or_a_directory_that_is_not_there() {
    let place = Place::new();
    let tool = place.temporary.path().join("tools/crictl");
    std::fs::rename(&tool, place.temporary.path().join("crictl")).unwrap();
    refused(&place, Options::default(), 78, &["`crictl` is missing", "next:"]);
    std::fs::rename(place.temporary.path().join("crictl"), tool).unwrap();
    std::fs::rename(place.at("/var/lib/kubelet"), place.at("/var/lib/other")).unwrap();
    place.put("/var/lib/kubelet", "a file");
    refused(&place, Options::default(), 78, &["/var/lib/kubelet is not a directory", "next:"]);
}

/// A node whose kubelet is told CRI-O's socket, by a unit of another name, and that has no containerd.
#[test]
fn the_runtime_is_the_one_that_kubelet_is_told() {
    let place = Place::new();
    place.put("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///var/run/crio/crio.sock\n");
    place.put("/usr/lib/systemd/system/site-runtime.service", "[Service]\nExecStart=/opt/bin/crio\n");
    for unit in ["containerd.service", "crio.service", "cri-o.service"] {
        place.state(&format!("{unit}.load"), "not-found");
    }
    place.state("site-runtime.service", "active");
    let plan = place.plan(Options::default()).unwrap();
    assert_eq!(plan.report.runtime_unit, "site-runtime.service");
    plan.begin().unwrap();
    assert!(place.calls().contains(&"systemctl stop site-runtime.service".to_owned()), "{:?}", place.calls());
    assert_eq!(place.state_of("endpoint"), "unix:///run/crio/crio.sock");
    // After the reboot, what it was told may be another's: what was found is noted.
    assert!(std::fs::read_to_string(place.dir.undo()).unwrap().contains("site-runtime.service"));
}

#[test]
fn too_little_space_even_when_forced() {
    let place = Place::new();
    let mut manifest = place.manifest("b1", 1);
    manifest.etcd.bytes = 1 << 60;
    Place::publish(&place.dir.backups().join("b1"), &manifest);
    refused(&place, Options::default(), 73, &["/var/lib/etcd", "bytes free"]);
    refused(&place, forced(), 73, &["make room"]);
}

/// The root of a composefs host: an image that is full by its nature, with the writable directories mounted in it.
struct Image<'a>(&'a Path);

impl<'a> Image<'a> {
    fn mount(root: &'a Path) -> Self {
        let script = r#"
            image=${1%/}.image; mkdir "$image"; mount -t tmpfs -o size=64k tmpfs "$image"
            for each in "$1"/*; do mkdir "$image/${each##*/}"; mount --bind "$each" "$image/${each##*/}"; done
            head -c 128k /dev/zero >"$image/filler" 2>/dev/null || :
            mount -o remount,ro "$image"; mount --rbind "$image" "$1"; umount --recursive --lazy "$image"
            [ "$(stat -f -c %f "$1")" = 0 ]"#;
        assert!(Command::new("sh").args(["-ec", script, "sh"]).arg(root).status().unwrap().success());
        Self(root)
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        Command::new("umount").args(["--recursive", "--lazy"]).arg(self.0).status().ok();
    }
}

#[test]
fn a_root_that_is_full_by_its_nature_is_no_reason() {
    let place = Place::new();
    let (root, backup) = (place.at("/"), place.dir.backups().join("b1"));
    place.put("/var/opt/managed", "before");
    pack(&root, &backup.join(EXTRAS), &Selection::all().only(["var/opt/managed"]), None, &|_| ()).unwrap();
    let mut manifest = place.manifest("b1", 1);
    manifest.sizes.insert(EXTRAS.to_owned(), 20);
    Place::publish(&backup, &manifest);
    let image = Image::mount(&root);
    place.plan(Options::default()).unwrap();
    // Where they go, there has to be room for them.
    manifest.sizes.insert(EXTRAS.to_owned(), 1 << 60);
    Place::publish(&backup, &manifest);
    refused(&place, Options::default(), 73, &["/var/opt", "make room"]);
    drop(image);
}

#[test]
fn expired_certificates_and_missing_images_are_warnings() {
    let place = Place::new();
    let plan = place.plan(Options::default()).unwrap();
    let warnings = plan.report.warnings.join("\n");
    assert!(warnings.contains("certificates expired on 2026-02-01"), "{warnings}");
    assert!(warnings.contains("1 images that the node had in use, or pinned, are gone"), "{warnings}");
    assert_eq!(plan.report.missing_images[0].name, "registry/gone:1");
}

#[test]
fn a_clock_from_before_the_backup_is_given_time_and_then_warned_of() {
    let taken = |taken: &str| {
        let place = Place::new();
        let manifest = Manifest { taken: taken.parse().unwrap(), certificates_expire: None, ..place.manifest("b1", 1) };
        Place::publish(&place.dir.backups().join("b1"), &manifest);
        let begun = Instant::now();
        let plan = place.agent(&["--json", "restore-files", "--dry-run"]).expect(0, &[]).unwrap();
        let plan: serde_json::Value = serde_json::from_str(&plan.out).unwrap();
        (plan["warnings"].to_string(), begun.elapsed())
    };
    std::thread::scope(|scope| {
        let never = scope.spawn(|| taken("2099-01-01T00:00:00Z"));
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(8);
        let (warnings, _) = taken(&soon.to_string());
        assert!(jiff::Timestamp::now() >= soon && !warnings.contains("the clock says"), "{warnings}");
        let (warnings, waited) = never.join().unwrap();
        assert!(
            warnings.contains("the clock says") && warnings.contains("before the backup was taken (2099-01-01T00:00:00Z)"),
            "{warnings}"
        );
        assert!(waited >= Duration::from_secs(30), "{waited:?}");
    });
}

#[test]
fn a_second_agent_while_one_is_at_work() {
    let place = Place::new();
    let held = place.plan(Options::default()).unwrap();
    for error in [place.plan(Options::default()).unwrap_err(), place.restart(None).unwrap_err()] {
        assert_eq!(exit_code(&error), 75);
        assert!(error.to_string().contains("`recovery restore-files` (process"), "{error}");
    }
    drop(held);
    place.restore_files(Asked::default()).unwrap();
}

#[test]
fn another_backup_or_a_new_run_while_one_is_open() {
    let place = Place::new();
    place.back_up("b2", 2);
    let b1 = || Options { backup: Some("b1".to_owned()), ..Options::default() };
    place.plan(b1()).unwrap().begin().unwrap();
    let other = place.plan(Options { backup: Some("b2".to_owned()), ..Options::default() }).unwrap_err();
    assert_eq!(exit_code(&other), 75);
    assert!(other.to_string().contains("from backup b1 is in progress"), "{other}");
    place.reboot("boot-2");
    let later = place.plan(b1()).unwrap_err();
    assert_eq!(exit_code(&later), 75, "after the reboot it is resume's turn: {later}");
}

#[test]
fn a_recovery_directory_that_others_can_write_to() {
    let place = Place::new();
    std::fs::set_permissions(place.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    refused(&place, Options::default(), 77, &["chmod 0700"]);
    assert_eq!(exit_code(&place.resume(&ResumeOptions::default()).unwrap_err()), 77);
    assert_eq!(exit_code(&place.abandon().unwrap_err()), 77);
}

#[test]
fn nothing_to_go_on_with() {
    let place = Place::new();
    assert!(place.resume(&ResumeOptions::default()).unwrap().is_none());
    assert!(place.abandon().unwrap().is_none());
    assert_eq!(exit_code(&place.restart(None).unwrap_err()), 2);
    let status = place.status();
    assert!(status.run.is_none() && !status.hold && status.next.is_none());
    let nowhere = RecoveryDir::new(&place.node, std::path::Path::new("/var/nowhere"));
    let error = recovery::recovery::propose(&testing::session::session(&place.node, &nowhere), Options::default()).unwrap_err();
    assert_eq!(exit_code(&error), 78);
}
