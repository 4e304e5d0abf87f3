//! `recovery partition create` on disks, with the agent killed everywhere.

use std::path::Path;

use recovery::node::{Node, dir::RecoveryDir};
use recovery::partition::create::{Proposal, create, propose};
use serde_json::json;

use crate::machine::{DISK, Machine};
use crate::{printed, said};

/// A table with two partitions, as a disk in use has it; the kernel knows them.
const IN_USE: &str = "printf 'label: gpt\\nsize=100MiB, name=EFI\\nsize=1500MiB, name=root\\n' | sfdisk --no-tell-kernel";

/// Makes it on a disk that has partitions, which stay as they are; returns the table.
fn made_beside(machine: &Machine, before: &str, contents: &str) -> String {
    let made = machine.agent(&["partition", "create", "--device", DISK, "--yes"]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    is_complete(machine, contents);
    let after = machine.table();
    let others: Vec<&str> = after.lines().filter(|line| !line.contains("recovery")).collect();
    assert_eq!(others, before.lines().collect::<Vec<_>>());
    after
}

/// The partition is there, mounted by the unit, with all of the contents; nothing is below it, open or left over.
fn is_complete(machine: &Machine, contents: &str) {
    assert_eq!(machine.contents(), contents);
    let status = machine.status();
    assert_eq!(
        (&status["own_file_system"], &status["cost"], &status["what"], &status["below"], &status["open"], &status["problem"]),
        (&json!(true), &json!("nothing"), &json!("/dev/disk/by-partlabel/recovery"), &json!(0), &json!(null), &json!(null)),
        "{status}"
    );
    assert_eq!(machine.run("ls -A root/var/lib/recovery/partition"), "lock\n");
    let mounted = machine.run("findmnt --noheadings --output FSTYPE,OPTIONS root/var/recovery");
    assert!(mounted.starts_with("xfs"), "{mounted}");
    let again = machine.create();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(printed(&again).contains("nothing to do"), "{}", printed(&again));
}

#[test]
fn a_spare_disk_gets_the_partition_and_everything_is_moved_there() {
    let machine = Machine::new(&[2048]);
    let contents = machine.contents();
    assert_eq!(machine.status()["cost"], "everything");
    // A directory of the same file system, mounted there, costs as much.
    machine.run("mkdir -m 700 root/var/other && mount --bind root/var/other root/var/recovery");
    let bound = machine.status();
    assert_eq!((&bound["own_file_system"], &bound["cost"]), (&json!(false), &json!("everything")), "{bound}");
    machine.run("umount root/var/recovery");
    let asked = machine.agent(&["partition", "create", "--device", DISK, "--size-mib", "1024"]);
    assert_eq!(asked.status.code(), Some(2), "{}", said(&asked));
    assert!(said(&asked).contains("recovery (new)") && said(&asked).contains("not confirmed"), "{}", said(&asked));
    assert_eq!(machine.exec(&["blkid", "-p", &machine.disk(0)]).status.code(), Some(2), "nothing was written");
    let made = machine.create();
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    is_complete(&machine, &contents);
    let table = machine.table();
    assert!(table.contains("label: gpt") && table.contains("name=\"recovery\"") && table.contains("size=     2097152"), "{table}");
    // Kernels of older releases mount it.
    let features = machine.run(&format!("xfs_db -r -c version {}p1", machine.disk(0)));
    assert!(features.contains("V5") && !["BIGTIME", "INOBTCNT", "NREXT64"].iter().any(|new| features.contains(new)), "{features}");
    // Both names lead to it.
    assert_eq!(machine.run("readlink root/dev/disk/by-label/recovery"), machine.run("readlink root/dev/disk/by-partlabel/recovery"));
    machine.reboot();
    is_complete(&machine, &contents);
    // A directory of the partition lies on it as well: nothing is wrong with that, nor with what does not say its device.
    machine.run("mkdir -m 700 root/var/recovery/of-two root/var/apart && mkdir -m 700 root/var/hidden && mount -t tmpfs -o mode=700 tmpfs root/var/hidden");
    for (dir, warned) in [("/var/recovery/of-two", false), ("/var/hidden", false), ("/var/apart", true)] {
        let output = machine.agent(&["--dir", dir, "partition", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&printed(&output)).unwrap();
        assert_eq!(!status["problem"].is_null(), warned, "{status}");
    }
    machine.run("umount root/var/hidden");
    // It is where a backup goes now: the room of the disk, not of the root file system.
    assert!(machine.status()["size"].as_u64().unwrap() < 1 << 30);
}

/// As many a disk has them: the table counts in these.
#[test]
fn a_disk_with_sectors_of_4096_bytes() {
    let machine = Machine::of_sectors(4096, &[3072]);
    let contents = machine.contents();
    machine.run(&format!(
        "printf 'label: gpt\\nstart=1MiB, size=1024MiB, name=root\\n' | sfdisk -q --no-reread {0} && partx --update {0}",
        machine.disk(0)
    ));
    let made = machine.create();
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    is_complete(&machine, &contents);
    let table = machine.table();
    assert!(table.contains("sector-size: 4096") && table.contains("start=      262400, size=      262144"), "{table}");
    machine.reboot();
    is_complete(&machine, &contents);
    assert_eq!(machine.create().status.code(), Some(0));
}

/// A `mkfs.xfs` that does not know the newer options is not given them: those of RHEL 9.0 and of RHEL 8.
#[test]
fn an_older_mkfs_makes_it_too() {
    for unknown in ["nrext64", "bigtime"] {
        let machine = Machine::new(&[2048]);
        let contents = machine.contents();
        let older = format!("#!/bin/bash\n[[ \"$*\" != *{unknown}* ]] || exit 1\nexec \"${{0%/*}}/mkfs.new\" \"$@\"\n");
        machine.run(&format!("mv tools/mkfs.xfs tools/mkfs.new; cat > tools/mkfs.xfs <<'E'\n{older}E\nchmod +x tools/mkfs.xfs"));
        machine.run("sed 's/^name=.*/name=mkfs.xfs/' \"$(readlink tools/mkfs.new)\" > tools/real && chmod +x tools/real && mv tools/real tools/mkfs.new");
        let made = machine.create();
        assert_eq!(made.status.code(), Some(0), "{unknown}: {}", said(&made));
        is_complete(&machine, &contents);
    }
}

#[test]
fn a_disk_in_use_keeps_its_partitions() {
    let machine = Machine::new(&[4096]);
    machine.run(&format!(
        "{IN_USE} {0} && partx --add {0} && mkfs.xfs -q {0}p2 && mkdir mnt && mount {0}p2 mnt && echo kept > mnt/file",
        machine.disk(0)
    ));
    let (before, contents) = (machine.table(), machine.contents());
    let after = made_beside(&machine, &before, &contents);
    // All the room behind the last one.
    assert!(after.contains("start=     3278848, size=     5107712"), "{after}");
    assert_eq!(machine.run("cat mnt/file"), "kept\n");
    machine.run("umount mnt");
}

/// Numbers in another order than places, one as high as the table has them, and ends that lie at no whole MiB: every byte of theirs stays, and the new one
/// lies behind the last one on the disk.
#[test]
fn entries_out_of_order_and_ends_at_odd_places_stay_as_they_are() {
    let machine = Machine::new(&[4096]);
    machine.run(&format!(
        "printf 'label: gpt\\n{0}p5 : start=2048, size=204801, name=five\\n{0}p1 : start=1026049, size=409601, name=one\\n\
         {0}p128 : start=614401, size=100001, name=last\\n' | sfdisk --no-tell-kernel {0}",
        machine.disk(0)
    ));
    let areas = [(2048, 204_801), (614_401, 100_001), (1_026_049, 409_601)];
    for (start, sectors) in areas {
        machine.run(&format!(
            "head -c {0} /dev/urandom | dd of={1} oflag=seek_bytes seek={2} conv=notrunc status=none",
            sectors * 512,
            machine.disk(0),
            start * 512
        ));
    }
    let bytes = || {
        let sum = |(start, sectors): (u64, u64)| {
            machine.run(&format!(
                "dd if={} iflag=skip_bytes,count_bytes bs=1M skip={} count={} status=none | sha256sum",
                machine.disk(0),
                start * 512,
                sectors * 512
            ))
        };
        areas.map(sum)
    };
    let (before, sums, contents) = (machine.table(), bytes(), machine.contents());
    let after = made_beside(&machine, &before, &contents);
    // The next whole MiB behind sector 1435650.
    assert!(after.contains("start=     1437696,"), "{after}");
    assert_eq!(bytes(), sums);
}

/// The agent is killed before and after each program that changes something; then it is run again, with and without a reboot in between.
#[test]
fn a_kill_around_every_program_costs_nothing() {
    let calls = [
        ("before", "sfdisk", "--no-reread*"),
        ("after", "sfdisk", "--no-reread*"),
        ("before", "partx", "--add*"),
        ("after", "partx", "--add*"),
        ("before", "mkfs.xfs", "*=0 /*"),
        ("after", "mkfs.xfs", "*=0 /*"),
        ("before", "cp", "*"),
        ("after", "cp", "*"),
        ("before", "systemctl", "daemon-reload"),
        ("before", "systemctl", "start*"),
        ("after", "systemctl", "start*"),
    ];
    for (number, (when, tool, arguments)) in calls.into_iter().enumerate() {
        let machine = Machine::new(&[2048]);
        let contents = machine.contents();
        machine.die(when, tool, arguments);
        let killed = machine.create();
        assert!(!killed.status.success() && !machine.is_waiting(when, tool), "{when} {tool}: {killed:?}");
        if number % 2 == 0 {
            machine.reboot();
        }
        let name = format!("{when} {tool}");
        // Whatever has happened, each file is there: where the partition is not mounted yet, at the old place.
        if machine.status()["problem"].is_null() {
            assert_eq!(machine.contents(), contents, "{name}");
        }
        let again = machine.create();
        assert_eq!(again.status.code(), Some(0), "{name}: {}", said(&again));
        is_complete(&machine, &contents);
    }
}

/// Not a test: [`a_kill_at_every_line_of_the_journal_costs_nothing`] starts it in a process of its own, in the machine's mounts and its folder, where
/// `stop-at` says how many lines of the journal are written. It ends by a kill.
pub(crate) fn until_the_power_fails() {
    let here = std::env::current_dir().unwrap();
    let left: u32 = std::fs::read_to_string(here.join("stop-at")).expect("it is started by another test").trim().parse().unwrap();
    let node = Node::at(&here.join("root"), Some(&here.join("tools")));
    let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
    let locked = testing::session::locked(&node, &dir);
    let Proposal::Do(plan, begun) = propose(&locked, DISK, Some(1024)).unwrap() else { panic!("there is nothing to do") };
    let written = std::cell::Cell::new(0);
    let stop = || {
        if written.get() == left {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
        written.set(written.get() + 1);
        Ok(())
    };
    create(&locked, *plan, begun.as_ref(), &stop).unwrap();
    std::fs::write(here.join("finished"), "").unwrap();
}

#[test]
fn a_kill_at_every_line_of_the_journal_costs_nothing() {
    let me = std::env::current_exe().unwrap();
    // One line when the phase begins and when it ends, two for each of six steps, one when all is over.
    for lines in 0..=15 {
        let machine = Machine::new(&[2048]);
        let contents = machine.contents();
        std::fs::write(machine.at("stop-at"), lines.to_string()).unwrap();
        let ended = machine.exec(&[me.to_str().unwrap(), "--ignored", "--exact", "until_the_power_fails", "--nocapture"]);
        if lines == 15 {
            assert!(ended.status.success() && machine.at("finished").exists(), "{ended:?}");
            break;
        }
        assert!(!machine.at("finished").exists(), "{lines}: {ended:?}");
        // Once with the lock and the mounts of the same boot, once in the next.
        if lines % 2 == 1 {
            machine.reboot();
        }
        assert!(!machine.status()["open"].is_null(), "{lines}: {ended:?}");
        let again = machine.create();
        assert_eq!(again.status.code(), Some(0), "{lines}: {}", said(&again));
        is_complete(&machine, &contents);
    }
}

#[test]
fn an_open_one_is_gone_on_with_on_its_own_disk_alone() {
    let machine = Machine::new(&[2048, 2048]);
    machine.die("before", "mkfs.xfs", "*=0 /*");
    assert!(!machine.create().status.success());
    // The partition is there and not in use: that is no problem while what goes on with it is said.
    let status = machine.status();
    assert!(status["problem"].is_null() && status["open"]["command"].as_str().is_some_and(|command| command.contains(DISK)), "{status}");
    let other = machine.agent(&["partition", "create", "--device", "/dev/disk/by-id/disk-1", "--yes"]);
    assert_eq!(other.status.code(), Some(78), "{}", said(&other));
    assert!(said(&other).contains(&format!("partition create --device {DISK}")), "{}", said(&other));
    // A recovery that was begun meanwhile is over first.
    machine.run("echo '{}' > root/var/recovery/progress");
    let busy = machine.create();
    assert_eq!(busy.status.code(), Some(75), "{}", said(&busy));
    machine.run("rm root/var/recovery/progress");
    // Another disk in its place.
    machine.run("ln -sfn ../../$(basename $(readlink root/dev/disk/by-id/disk-1)) root/dev/disk/by-id/disk-0");
    let swapped = machine.create();
    assert_eq!(swapped.status.code(), Some(78), "{}", said(&swapped));
    assert!(said(&swapped).contains("another disk"), "{}", said(&swapped));
    assert_eq!(machine.exec(&["blkid", "-p", &machine.disk(1)]).status.code(), Some(2), "nothing was written");
}

/// What a person makes in the place of the new partition while the run is open is not written over.
#[test]
fn what_somebody_else_has_made_there_meanwhile_stays() {
    let machine = Machine::new(&[2048]);
    machine.die("before", "mkfs.xfs", "*=0 /*");
    assert!(!machine.create().status.success() && !machine.is_waiting("before", "mkfs.xfs"));
    machine.run(&format!("mkfs.xfs -q -L mine {}p1", machine.disk(0)));
    let refused = machine.create();
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    assert!(said(&refused).contains("has the signature of xfs"), "{}", said(&refused));
    // The same place and size, in another partition: the kernel's knowledge of it is not enough.
    machine.run(&format!(
        "wipefs --all {0}p1 && sfdisk --no-reread --no-tell-kernel --part-uuid {0} 1 6F0E9D65-1F6C-4F0E-9D65-0A4C2F6A5B11",
        machine.disk(0)
    ));
    let refused = machine.create();
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    assert!(said(&refused).contains("no longer in the table"), "{}", said(&refused));
    assert_eq!(machine.exec(&["blkid", "-p", "-s", "TYPE", "-o", "value", &format!("{}p1", machine.disk(0))]).stdout, b"");
}

/// A person mounts the new partition and moves the backups over while the run is open: going on would empty the only copy.
#[test]
fn a_partition_that_a_person_has_mounted_meanwhile_is_not_emptied() {
    let machine = Machine::new(&[2048]);
    let contents = machine.contents();
    machine.die("before", "cp", "*");
    assert!(!machine.create().status.success() && !machine.is_waiting("before", "cp"));
    machine.run(&format!("mkdir mnt && mount {}p1 mnt && cp -aT root/var/recovery mnt && rm -rf root/var/recovery/*", machine.disk(0)));
    machine.run("umount mnt");
    machine.run(&format!("mount {}p1 root/var/recovery", machine.disk(0)));
    let refused = machine.create();
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    let mounted = format!("{}p1 is mounted at /var/recovery", machine.disk(0));
    assert!(said(&refused).contains(&mounted) && said(&refused).contains("umount /var/recovery"), "{}", said(&refused));
    assert_eq!(machine.contents(), contents);
    // What it says to do.
    machine.run("cp -aT root/var/recovery aside && umount root/var/recovery && cp -aT aside root/var/recovery");
    let again = machine.create();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    is_complete(&machine, &contents);
}

/// Another file system over the new partition: what lies below it is the partition, and not the old copy.
#[test]
fn a_mount_over_the_new_partition_does_not_empty_it() {
    let machine = Machine::new(&[2048]);
    let contents = machine.contents();
    machine.die("after", "systemctl", "start*");
    assert!(!machine.create().status.success() && !machine.is_waiting("after", "systemctl"));
    machine.run("mount -t tmpfs -o mode=700 tmpfs root/var/recovery");
    let refused = machine.create();
    assert!(!refused.status.success(), "{}", printed(&refused));
    machine.run("umount root/var/recovery");
    assert_eq!(machine.contents(), contents);
    // The other way round: between the partition and the old copy.
    machine.run("umount root/var/recovery && mount -t tmpfs tmpfs root/var/recovery && echo kept > root/var/recovery/file");
    machine.run(&format!("mount {}p1 root/var/recovery", machine.disk(0)));
    let refused = machine.create();
    assert!(!refused.status.success() && said(&refused).contains("something else is mounted"), "{}", said(&refused));
    machine.run("umount root/var/recovery && grep -q kept root/var/recovery/file && umount root/var/recovery");
    machine.run(&format!("mount {}p1 root/var/recovery", machine.disk(0)));
    let again = machine.create();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    is_complete(&machine, &contents);
}

/// A copy that is not what it is a copy of is never mounted.
#[test]
fn a_copy_that_differs_is_refused_and_the_directory_stays_where_it_is() {
    let machine = Machine::new(&[2048]);
    let contents = machine.contents();
    let cp = "#!/bin/bash\n/bin/cp \"$@\" && printf X | dd of=\"${@: -1}/backups/b1/etc.tar.zst\" bs=1 seek=1000 conv=notrunc status=none && \
              touch -r \"${@: -2:1}/backups/b1/etc.tar.zst\" \"${@: -1}/backups/b1/etc.tar.zst\"\n";
    std::fs::remove_file(machine.at("tools/cp")).unwrap();
    machine.run(&format!("cat > tools/cp <<'E'\n{cp}E\nchmod +x tools/cp"));
    let made = machine.create();
    assert_eq!(made.status.code(), Some(1), "{}", said(&made));
    assert!(said(&made).contains("another content") && said(&made).contains("step move"), "{}", said(&made));
    assert_eq!(machine.contents(), contents);
    assert!(!machine.at("root/etc/systemd/system/var-recovery.mount").exists());
    machine.run("ln -sf \"$(readlink tools/partx)\" tools/cp");
    let again = machine.create();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    is_complete(&machine, &contents);
}
