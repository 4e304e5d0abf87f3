//! A recovery directory, on a file system of its own, that is full or nearly so: before a recovery, and in the middle of one.

use std::process::Command;

use recovery::node::recovery_mount::{BY_PARTLABEL, make};

use crate::place::Place;

/// A node whose recovery directory is a tmpfs, with this agent installed in it and two backups.
struct Small {
    place: Place,
}

impl Small {
    fn new() -> Self {
        let small = Self { place: Place::new() };
        small.place.back_up("b0", 0);
        let agent = env!("CARGO_BIN_EXE_recovery");
        let installed = std::fs::metadata(agent).unwrap().len();
        small.sh(&format!(
            "mv $1 $1.before; mkdir -m 700 $1; mount -t tmpfs -o mode=700,size={} tmpfs $1; cp -a $1.before/. $1; cp {agent} $1/recovery",
            installed + (32 << 20)
        ));
        small
    }

    /// Runs a script, whose `$1` is the recovery directory, and `$2` the root of the node.
    fn sh(&self, script: &str) {
        let status =
            Command::new("bash").args(["-euc", script, "bash"]).arg(self.place.dir.path()).arg(self.place.at("/")).status().unwrap();
        assert!(status.success(), "{script}");
    }

    fn leave_free(&self, bytes: u64) {
        self.sh(&format!("rm -f $1/filler; fallocate -l $(($(stat -f -c '%f * %S' $1) - {bytes})) $1/filler"));
    }

    fn agent(&self, args: &[&str], code: i32, says: &[&str]) -> String {
        self.place.agent(args).expect(code, says).unwrap().err
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.place.dir.path()).status().ok();
    }
}

#[test]
fn a_directory_that_nobody_mounts_at_boot_is_a_warning() {
    let small = Small::new();
    let warned = || {
        let plan = small.place.agent(&["restore-files", "--dry-run"]).expect(0, &[]).unwrap();
        plan.out.contains("no unit that mounts /var/recovery at boot")
    };
    assert!(warned());
    small.place.state("mounted-by", "/run/systemd/generator/var-recovery.mount");
    assert!(!warned());
}

/// The backup is of before the partition: its `/etc` knows nothing of it. What the agent has made stays, and so does what somebody else has.
#[test]
fn a_partition_that_was_made_after_the_backup_is_mounted_after_the_recovery_too() {
    let unit = "/etc/systemd/system/var-recovery.mount";
    let link = "/etc/systemd/system/local-fs.target.wants/var-recovery.mount";
    for mark in ["", "s/^# Made by.*//"] {
        let small = Small::new();
        make(&small.place.node, &small.place.dir, BY_PARTLABEL).unwrap();
        let made = small.place.at(unit);
        small.sh(&format!("sed -i '{mark}' {}", made.display()));
        small.place.state("mounted-by", unit);
        small.agent(&["restore-files", "--yes"], 0, &[]);
        let there = |path: &str| small.place.at(path).symlink_metadata().is_ok();
        assert_eq!((there(unit), there(link)), (true, true));
        assert!(!there("/etc/site/added"));
    }
}

#[test]
fn a_line_of_fstab_that_the_backup_does_not_have_is_refused_with_the_way_to_keep_it() {
    let small = Small::new();
    small.sh("mkdir -p $2/run/systemd/generator/local-fs.target.requires");
    small.sh("printf '[Mount]\nWhat=none\nWhere=/var/recovery\n' > $2/run/systemd/generator/var-recovery.mount");
    small.sh("ln -s ../var-recovery.mount $2/run/systemd/generator/local-fs.target.requires/");
    small.place.state("mounted-by", "/run/systemd/generator/var-recovery.mount");
    let says =
        ["a line of /etc/fstab mounts /var/recovery, and /etc/fstab of backup", "systemctl add-wants local-fs.target var-recovery.mount"];
    small.agent(&["restore-files", "--yes"], 78, &says);
    // As it says.
    small.sh(
        "mkdir -p $2/etc/systemd/system/local-fs.target.wants && cp $2/run/systemd/generator/var-recovery.mount $2/etc/systemd/system/",
    );
    small.sh("ln -s /etc/systemd/system/var-recovery.mount $2/etc/systemd/system/local-fs.target.wants/");
    small.agent(&["restore-files", "--yes"], 0, &[]);
    assert!(small.place.at("/etc/systemd/system/local-fs.target.wants/var-recovery.mount").is_symlink());
}

#[test]
fn a_recovery_directory_that_did_not_come_up_is_not_taken_for_an_empty_one() {
    let small = Small::new();
    make(&small.place.node, &small.place.dir, BY_PARTLABEL).unwrap();
    small.sh("umount $1");
    let says = ["/var/recovery is not mounted, although", "`systemctl start var-recovery.mount`"];
    for verb in [&["restore-files", "--yes"][..], &["recover", "--yes"], &["backup"], &["recover", "--dry-run"]] {
        small.agent(verb, 78, &says);
    }
    let status = small.place.agent(&["status"]).expect(0, &[]).unwrap();
    assert!(status.out.contains("wrong: /var/recovery is not mounted"), "{}", status.out);
    assert!(!small.place.dir.backups().exists() || std::fs::read_dir(small.place.dir.backups()).unwrap().count() == 0);
    assert!(!small.place.at("/var/lib/recovery/hold-kubelet").exists());
}

#[test]
fn a_recovery_that_could_not_be_written_down_is_not_begun() {
    let small = Small::new();
    let begin = ["restore-files", "--yes"];
    let files = small.place.files();
    small.leave_free(512 << 10);
    small.agent(&begin, 73, &["the recovery writes up to 1048576", "next: ", "`recovery delete ID`"]);
    // Another version of the agent is to be installed.
    small.sh("echo another > $1/recovery");
    small.leave_free(8 << 20);
    small.agent(&begin, 73, &["the recovery writes", "`recovery delete ID`"]);
    assert!(!small.place.dir.in_recovery() && small.place.files() == files);
    // As the message says.
    small.agent(&["delete", "b0", "--yes"], 0, &[]);
    small.sh("rm $1/filler");
    small.agent(&begin, 0, &[]);
}

#[test]
fn out_of_a_recovery_whose_disk_is_full_leads_a_way_by_hand() {
    let small = Small::new();
    small.leave_free(4 << 20);
    small.agent(&["restore-files", "--yes"], 0, &[]);
    small.leave_free(0);
    small.agent(&["prune", "--yes"], 75, &["a recovery is in progress"]);
    let by_hand = ["next: if the full disk is that of /var/recovery", "`recovery list`", "`rm -r /var/recovery/backups/ID`"];
    small.agent(&["restart", "--yes"], 73, &by_hand);
    small.agent(&["abandon", "--yes"], 73, &by_hand);
    assert!(small.place.dir.in_recovery());
    // What could not be written whole is not left in the way.
    small.sh("! find $1 -name '*.new' | grep .");
    small.sh("rm -r $1/backups/b0");
    small.agent(&["abandon", "--yes"], 0, &[]);
    assert!(!small.place.dir.in_recovery() && small.place.history().len() == 2);
}
