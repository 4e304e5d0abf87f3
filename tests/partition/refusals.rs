//! What forbids a partition: one test each, with the exit code, and nothing changed.

use crate::machine::{DISK, Machine};
use crate::said;

/// Refused with this code and words, and nothing is written: neither to the disk nor to the journal.
fn refused(machine: &Machine, device: &str, code: i32, words: &[&str]) {
    let bytes = || machine.run(&format!("head -c 4M {0} | sha256sum; tail -c 2M {0} | sha256sum", machine.disk(0)));
    let (before, contents) = (bytes(), machine.contents());
    let output = machine.agent(&["partition", "create", "--device", device, "--size-mib", "1024", "--yes"]);
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    for word in words {
        assert!(said(&output).contains(word), "{word}: {}", said(&output));
    }
    assert_eq!((bytes(), machine.contents()), (before, contents));
    assert!(!machine.at("root/var/lib/recovery/partition/progress").exists());
    assert!(!machine.at("root/etc/systemd/system/var-recovery.mount").exists());
}

fn table(machine: &Machine, script: &str) {
    machine.run(&format!("printf '{script}' | sfdisk --no-tell-kernel {0} && (partx --add {0} || true)", machine.disk(0)));
}

#[test]
fn an_unstable_name() {
    let machine = Machine::new(&[2048]);
    refused(&machine, &machine.disk(0), 2, &["/dev/disk/by-id", "--force"]);
    let forced = machine.agent(&["partition", "create", "--device", &machine.disk(0), "--force", "--size-mib", "1024"]);
    assert!(said(&forced).contains("not confirmed"), "{}", said(&forced));
}

#[test]
fn what_is_no_disk() {
    let machine = Machine::new(&[2048]);
    refused(&machine, "/dev/disk/by-id/none", 78, &["No such file"]);
    table(&machine, "label: gpt\\nsize=100MiB\\n");
    machine.run(&format!("ln -s ../../$(basename {}p1) root/dev/disk/by-id/part", machine.disk(0)));
    refused(&machine, "/dev/disk/by-id/part", 2, &["is a partition"]);
}

#[test]
fn a_file_system_on_the_whole_disk_mounted_or_not() {
    let machine = Machine::new(&[2048]);
    machine.run(&format!("mkfs.xfs -q {0} && mkdir mnt", machine.disk(0)));
    refused(&machine, DISK, 78, &["signature of xfs", "wipefs"]);
    machine.run(&format!("mount {} mnt", machine.disk(0)));
    refused(&machine, DISK, 78, &["signature of xfs"]);
    machine.run("umount mnt");
}

/// The signatures that `pvcreate` and `mdadm` (1.2) write, each at its place.
#[test]
fn a_member_of_lvm_and_one_of_a_raid() {
    let machine = Machine::new(&[2048]);
    machine.run(&format!(
        "python3 - {} <<'E'
import struct, sys
def crc(data):
    table = [0x0, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
             0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c]
    c = 0xf597a6cf
    for b in data:
        c ^= b
        c = table[c & 15] ^ c >> 4
        c = table[c & 15] ^ c >> 4
    return c
body = struct.pack('<I8s32sQQ', 32, b'LVM2 001', b'a' * 32, 2048 << 20, 0).ljust(512 - 20, b'\\0')
sector = b'LABELONE' + struct.pack('<Q', 1) + struct.pack('<I', crc(body)) + body
with open(sys.argv[1], 'r+b') as disk:
    disk.seek(512)
    disk.write(sector)
E",
        machine.disk(0)
    ));
    refused(&machine, DISK, 78, &["belongs to LVM"]);
    machine.run(&format!("wipefs --all {}", machine.disk(0)));
    machine.run(&format!(
        "python3 - {} <<'E'
import struct, sys
sb = bytearray(256)
struct.pack_into('<III', sb, 0, 0xa92b4efc, 1, 0)
sb[16:32] = b'u' * 16
struct.pack_into('<Q', sb, 144, 8)
total = sum(struct.unpack('<64I', sb))
struct.pack_into('<I', sb, 216, (total & 0xffffffff) + (total >> 32) & 0xffffffff)
with open(sys.argv[1], 'r+b') as disk:
    disk.seek(4096)
    disk.write(sb)
E",
        machine.disk(0)
    ));
    refused(&machine, DISK, 78, &["belongs to a RAID"]);
}

#[test]
fn a_table_that_names_no_partitions() {
    let machine = Machine::new(&[4096]);
    table(&machine, "label: dos\\nsize=100MiB\\n");
    refused(&machine, DISK, 64, &["dos", "GPT"]);
}

#[test]
fn too_little_room_behind_the_last_partition() {
    let machine = Machine::new(&[2048]);
    table(&machine, "label: gpt\\nstart=1100MiB, size=500MiB\\n");
    refused(&machine, DISK, 73, &["behind the last partition the disk has 447 MiB free"]);
}

#[test]
fn more_than_fits() {
    let machine = Machine::new(&[2048]);
    machine.run("fallocate -l 1000M root/var/recovery/backups/large");
    refused(&machine, DISK, 73, &["do not fit"]);
}

#[test]
fn what_lies_in_the_room_although_the_table_does_not_know_it() {
    let machine = Machine::new(&[4096]);
    table(&machine, "label: gpt\\nsize=500MiB\\nsize=1500MiB\\n");
    machine.run(&format!(
        "mkfs.xfs -q {0}p2 && partx --delete --nr 2 {0} && sfdisk --no-tell-kernel --wipe never --delete {0} 2",
        machine.disk(0)
    ));
    refused(&machine, DISK, 78, &["free by the table", "signature of xfs", "blkid -p -O"]);
}

#[test]
fn the_label_elsewhere() {
    let machine = Machine::new(&[2048, 2048]);
    machine.run(&format!("mkfs.xfs -q -L recovery {}", machine.disk(1)));
    refused(&machine, DISK, 78, &["is labelled `recovery`", &machine.disk(1)]);
    machine.run(&format!(
        "wipefs --all {0} && printf 'label: gpt\\nsize=100MiB, name=recovery\\n' | sfdisk --no-tell-kernel {0} && partx --add {0}",
        machine.disk(1)
    ));
    refused(&machine, DISK, 78, &["is labelled `recovery`", &format!("{}p1", machine.disk(1))]);
    // On the disk itself, there may be backups in it.
    refused_on_second(&machine);
}

#[test]
fn the_label_of_a_file_system_on_the_same_disk() {
    let machine = Machine::new(&[2048]);
    table(&machine, "label: gpt\\nsize=400MiB, name=data\\n");
    machine.run(&format!("mkfs.xfs -q -L recovery {}p1", machine.disk(0)));
    refused(&machine, DISK, 78, &["is labelled `recovery`", &format!("{}p1", machine.disk(0))]);
}

fn refused_on_second(machine: &Machine) {
    let output = machine.agent(&["partition", "create", "--device", "/dev/disk/by-id/disk-1", "--yes"]);
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert!(said(&output).contains("a partition `recovery` already") && said(&output).contains("may hold backups"), "{}", said(&output));
}

#[test]
fn a_disk_that_cannot_be_written_to() {
    let machine = Machine::new(&[2048]);
    machine.run(&format!("blockdev --setro {}", machine.disk(0)));
    refused(&machine, DISK, 78, &["read-only"]);
    machine.run(&format!("blockdev --setrw {}", machine.disk(0)));
}

#[test]
fn a_recovery_directory_that_is_a_mount_already() {
    let machine = Machine::new(&[2048, 2048]);
    machine.run(&format!(
        "mkfs.xfs -q {0} && mount {0} root/var/recovery && mkdir -m 700 root/var/recovery/backups && chmod 700 root/var/recovery",
        machine.disk(1)
    ));
    refused(&machine, DISK, 78, &["a file system of its own already", machine.disk(1).trim_start_matches("/dev/")]);
}

#[test]
fn something_mounted_within_it() {
    let machine = Machine::new(&[2048]);
    machine.run("mount -t tmpfs tmpfs root/var/recovery/history");
    refused(&machine, DISK, 64, &["/var/recovery/history"]);
}

#[test]
fn a_recovery_in_progress() {
    let machine = Machine::new(&[2048]);
    machine.run("echo '{}' > root/var/recovery/progress");
    refused(&machine, DISK, 75, &["a recovery is in progress"]);
}

#[test]
fn another_agent_at_work() {
    let machine = Machine::new(&[2048]);
    machine.run("touch root/var/recovery/lock; chmod 600 root/var/recovery/lock; (flock 9; sleep 60) 9>root/var/recovery/lock >/dev/null 2>&1 & sleep 0.3");
    let output = machine.create();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
}

#[test]
fn a_missing_program() {
    let machine = Machine::new(&[2048]);
    std::fs::remove_file(machine.at("tools/mkfs.xfs")).unwrap();
    refused(&machine, DISK, 78, &["`mkfs.xfs` is missing"]);
}

/// A unit that mounts something else there, which did not come up.
#[test]
fn a_mount_that_is_missing() {
    let machine = Machine::new(&[2048]);
    machine.run(
        "cd root/etc/systemd/system && mkdir -p local-fs.target.wants && printf '[Mount]\\nWhat=/dev/disk/by-label/recovery\\n' > var-recovery.mount && \
         ln -s ../var-recovery.mount local-fs.target.wants/",
    );
    let output = machine.create();
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert!(said(&output).contains("systemctl start var-recovery.mount"), "{}", said(&output));
}

/// The partition is there and mounted, but the link that starts its unit at a boot is gone.
#[test]
fn a_mount_that_nothing_starts_at_a_boot() {
    let machine = Machine::new(&[2048]);
    assert_eq!(machine.create().status.code(), Some(0));
    machine.run("rm root/etc/systemd/system/local-fs.target.wants/var-recovery.mount");
    let output = machine.create();
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    assert!(said(&output).contains("nothing mounts it at every boot; next: put"), "{}", said(&output));
}
