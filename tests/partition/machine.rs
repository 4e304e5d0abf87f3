//! A machine with spare disks: loop devices, with real partitions of a real kernel. It has mounts of its own, so that nothing stays mounted however a
//! test ends. What it lacks, udev and systemd, is in `tool.sh`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use testing::cargo::in_checkout;

use crate::{BINARY, printed, said};

/// How long a call of the agent may take, seconds: `mkfs.xfs` and a copy, on a machine that does much else.
const LIMIT: &str = "180";
/// The first disk's stable name.
pub(crate) const DISK: &str = "/dev/disk/by-id/disk-0";
/// The files of the recovery directory that have to come along, with a name and an attribute that are not plain.
const CONTENTS: &str = r"set -e
mkdir -p backups/b1 history
head -c 3000000 /dev/urandom > backups/b1/etc.tar.zst
echo '{}' > backups/b1/manifest.json
echo x > $'history/a name\nof two lines'
printf '#!/bin/sh\n' > recovery && chmod 700 recovery
setfattr -n user.note -v kept recovery
setfacl -m u:65534:r backups/b1/manifest.json
ln -s backups/b1 latest
truncate -s 2M backups/b1/sparse
touch -d '2020-01-02 03:04:05.678901234' backups/b1/manifest.json backups
chmod 700 . backups history";

pub(crate) struct Machine {
    dir: tempfile::TempDir,
    /// Keeps the mounts.
    holder: Child,
    disks: Vec<String>,
}

fn checked(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    printed(output)
}

impl Machine {
    /// A machine with disks of these sizes, MiB.
    pub(crate) fn new(disks: &[u64]) -> Self {
        Self::of_sectors(512, disks)
    }

    /// One whose disks have sectors of so many bytes.
    pub(crate) fn of_sectors(sector: u32, disks: &[u64]) -> Self {
        let sector = sector.to_string();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in
            ["root/dev", "root/sys", "root/proc/sys/kernel/random", "root/etc/systemd/system", "root/var/recovery", "tools", "loaded"]
        {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for tool in ["sfdisk", "partx", "blkid", "mkfs.xfs", "cp", "systemctl", "boot"] {
            std::os::unix::fs::symlink(in_checkout("tests/partition/tool.sh"), at("tools").join(tool)).unwrap();
        }
        // The mount point of names of devices: an empty folder that stays, on a machine without udev.
        std::fs::create_dir_all("/dev/disk").unwrap();
        let setup = "set -e; cd \"$0\"; mount --bind /dev dev; mount -t tmpfs tmpfs dev/disk; mount --bind /sys sys; mkdir dev/disk/by-id; echo ready; exec sleep 3600";
        let mut holder = Command::new("unshare");
        holder.args(["--mount", "--propagation", "private", "bash", "-c", setup]).arg(at("root")).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let mut machine = Self { dir, holder, disks: Vec::new() };
        for (number, size) in disks.iter().enumerate() {
            let image = machine.at(&format!("disk-{number}.img"));
            std::fs::File::create(&image).unwrap().set_len(size << 20).unwrap();
            // For the kernel, partitions are there on request alone.
            let device = checked(
                &Command::new("losetup").args(["--find", "--show", "--partscan", "--sector-size", &sector]).arg(&image).output().unwrap(),
            );
            machine.disks.push(device.trim().trim_start_matches("/dev/").to_owned());
            machine.run(&format!("ln -s ../../{} root/dev/disk/by-id/disk-{number}", machine.disks[number]));
        }
        std::fs::write(machine.at("disks"), machine.disks.join("\n")).unwrap();
        machine.new_boot();
        machine.run(&format!("cd root/var/recovery\n{CONTENTS}"));
        machine
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The kernel's name of a disk.
    pub(crate) fn disk(&self, number: usize) -> String {
        format!("/dev/{}", self.disks[number])
    }

    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).args(["timeout", LIMIT]).stdin(Stdio::null());
        command
    }

    /// A program with the machine's mounts, started in its folder.
    pub(crate) fn exec(&self, words: &[&str]) -> Output {
        let mut command = self.inside();
        command.args(["bash", "-c", "cd \"$0\" && exec \"$@\""]).arg(self.dir.path()).args(words);
        command.output().unwrap()
    }

    /// A script that has to succeed.
    pub(crate) fn run(&self, script: &str) -> String {
        checked(&self.exec(&["bash", "-c", script]))
    }

    /// The agent.
    pub(crate) fn agent(&self, words: &[&str]) -> Output {
        let (root, tools) = (self.at("root"), self.at("tools"));
        let all = [&[BINARY, "--root", root.to_str().unwrap(), "--tools", tools.to_str().unwrap()], words].concat();
        self.exec(&all)
    }

    pub(crate) fn create(&self) -> Output {
        self.agent(&["partition", "create", "--device", DISK, "--size-mib", "1024", "--yes"])
    }

    /// The report of `partition status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.agent(&["partition", "status", "--json"]);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_str(&printed(&output)).unwrap()
    }

    fn new_boot(&self) {
        let place = self.at("root/proc/sys/kernel/random/boot_id");
        let old: u32 = std::fs::read_to_string(&place).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        std::fs::write(place, format!("{}\n", old + 1)).unwrap();
    }

    /// A reboot: nothing is mounted, the kernel knows the partitions that are in the tables, and systemd mounts what it is told to.
    pub(crate) fn reboot(&self) {
        self.run("umount root/var/recovery 2>/dev/null || true");
        for disk in &self.disks {
            let again = format!("partx --delete /dev/{disk} 2>/dev/null || true; partx --add /dev/{disk} 2>/dev/null || true");
            self.run(&again);
        }
        self.new_boot();
        self.run("tools/boot");
    }

    /// Has a call of a tool kill the agent: `when` is `before` or `after`, `arguments` a pattern.
    pub(crate) fn die(&self, when: &str, tool: &str, arguments: &str) {
        std::fs::write(self.at(&format!("die-{when}-{tool}")), arguments).unwrap();
    }

    /// Whether a fault that was set has not happened.
    pub(crate) fn is_waiting(&self, when: &str, tool: &str) -> bool {
        self.at(&format!("die-{when}-{tool}")).exists()
    }

    /// Everything that can be seen of the recovery directory but its lock, as text.
    pub(crate) fn contents(&self) -> String {
        self.run(
            "cd root/var/recovery && find . -mindepth 1 ! -name lock ! -path ./backups/b1/sparse -printf '%P %y %m %U:%G %T@ %l\n' | sort && \
             find . -type f ! -name lock -print0 | sort -z | xargs -0 sha256sum && getfattr -d -R . 2>/dev/null | sort && find . ! -name lock -print0 | sort -z | xargs -0 getfacl -p -n | sha256sum",
        )
    }

    /// What the partition table on the first disk says, by sfdisk itself.
    pub(crate) fn table(&self) -> String {
        self.run(&format!("sfdisk --dump {} && sfdisk --verify {} >&2", self.disk(0), self.disk(0)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
        for disk in &self.disks {
            let device = Path::new("/dev").join(disk);
            Command::new("partx").arg("--delete").arg(&device).output().ok();
            Command::new("losetup").arg("--detach").arg(&device).output().ok();
        }
    }
}
