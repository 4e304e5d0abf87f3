//! A second disk, empty, with the part of udev that it needs: nodes and names of devices. It is a loop device, whose partitions the kernel gets from
//! `partx` at each boot, so that one without GPT will do.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::command::{Limit, PAUSE, checked, run};
use super::place::Place;

/// Its stable name on the node.
pub const DISK: &str = "/dev/disk/by-id/virtio-spare";
const LIMIT: Limit = Limit::of(60);

/// The disk of a node that is on.
#[derive(Debug)]
pub struct Spare {
    /// The kernel's name.
    name: String,
    /// It goes when this is closed.
    _held: File,
    /// What the node has as `/dev/disk`.
    names: PathBuf,
}

/// A partition that the kernel knows.
struct Partition {
    name: String,
    number: String,
    device: u64,
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

impl Spare {
    /// That of this node, where it has one.
    pub fn attach(place: &Place) -> Result<Option<Self>> {
        if !place.spare().exists() {
            return Ok(None);
        }
        let losetup = || Command::new("losetup");
        let found = checked(losetup().args(["--find", "--show", "--partscan"]).arg(place.spare()), LIMIT)?;
        let held = File::open(found.trim()).context("opening the spare disk")?;
        // Whatever is open is detached when it is closed: also by a kill.
        checked(losetup().args(["--detach", found.trim()]), LIMIT)?;
        let name = found.trim().trim_start_matches("/dev/").to_owned();
        let names = place.dir().join("names");
        let _ = std::fs::remove_dir_all(&names);
        let spare = Self { name, _held: held, names };
        spare.link("by-id", "virtio-spare", &spare.name)?;
        Ok(Some(spare))
    }

    /// The kernel of this boot reads the table. What it cannot read has no partitions.
    pub fn turn_on(&self) -> Result<()> {
        for Partition { number, .. } in self.partitions()? {
            // The mounts of a boot that was cut short may take a moment to be gone.
            let delete = || Ok(self.partx("--delete", &number)?.then_some(()));
            LIMIT.wait("a partition to be free", delete, || format!("number {number} of {}", self.name))?;
        }
        for folder in ["by-partlabel", "by-label"] {
            let _ = std::fs::remove_dir_all(self.names.join(folder));
        }
        self.partx("--add", "1:")?;
        self.partitions()?.iter().try_for_each(|partition| self.name_it(partition))
    }

    fn partx(&self, what: &str, numbers: &str) -> Result<bool> {
        let mut partx = Command::new("partx");
        Ok(run(partx.arg(what).args(["--nr", numbers]).arg(device(&self.name)), &[], LIMIT)?.status.success())
    }

    /// What systemd-nspawn is told: the disk and the partitions that there are, and the folder of names.
    pub fn binds(&self) -> Result<Vec<String>> {
        let mut names = vec![self.name.clone()];
        names.extend(self.partitions()?.into_iter().map(|partition| partition.name));
        let mut binds: Vec<String> = names.iter().map(|name| format!("--bind={}", device(name).display())).collect();
        binds.push(format!("--bind={}:/dev/disk", self.names.display()));
        Ok(binds)
    }

    /// Makes nodes and names for what appears, until the node is off.
    pub fn play_udev(&self, leader: i32, on: &AtomicBool) {
        let root = PathBuf::from(format!("/proc/{leader}/root"));
        while on.load(Ordering::Relaxed) {
            // Before this, its root is still this machine's.
            if root.join(DISK.trim_start_matches('/')).exists()
                && let Err(error) = self.look(&root)
            {
                eprintln!("the names of {}: {error:#}", self.name);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn look(&self, root: &Path) -> Result<()> {
        for partition in self.partitions()? {
            let node = root.join("dev").join(&partition.name);
            if !node.exists() {
                mknodat(CWD, &node, FileType::BlockDevice, Mode::from_raw_mode(0o600), partition.device)
                    .with_context(|| format!("making {}", node.display()))?;
            }
            self.name_it(&partition)?;
        }
        Ok(())
    }

    /// The names of a partition, by its entry in the table and by its file system. One that has both keeps them until the next boot.
    fn name_it(&self, partition: &Partition) -> Result<()> {
        let is_named = |folder: &&str| {
            let links = std::fs::read_dir(self.names.join(folder)).into_iter().flatten().flatten();
            links.filter_map(|link| std::fs::read_link(link.path()).ok()).any(|target| target.ends_with(&partition.name))
        };
        if ["by-partlabel", "by-label"].iter().all(is_named) {
            return Ok(());
        }
        let found = run(Command::new("blkid").args(["-p", "-o", "export"]).arg(device(&partition.name)), &[], LIMIT)?.stdout;
        for (folder, key) in [("by-partlabel", "PART_ENTRY_NAME="), ("by-label", "LABEL=")] {
            if let Some(name) = found.lines().find_map(|line| line.strip_prefix(key)) {
                self.link(folder, name, &partition.name)?;
            }
        }
        Ok(())
    }

    fn link(&self, folder: &str, name: &str, to: &str) -> Result<()> {
        let folder = self.names.join(folder);
        let link = || -> std::io::Result<()> {
            std::fs::create_dir_all(&folder)?;
            match symlink(format!("../../{to}"), folder.join(name)) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        };
        link().with_context(|| format!("naming {to}"))
    }

    fn partitions(&self) -> Result<Vec<Partition>> {
        let disk = Path::new("/sys/class/block").join(&self.name);
        let mut partitions = Vec::new();
        for entry in std::fs::read_dir(&disk).with_context(|| format!("listing {}", disk.display()))? {
            let entry = entry?;
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file));
            // One that goes meanwhile is none.
            let (Ok(number), Ok(numbers)) = (read("partition"), read("dev")) else { continue };
            let (major, minor) = numbers.trim().split_once(':').context("a partition without a number")?;
            partitions.push(Partition {
                name: entry.file_name().to_string_lossy().into_owned(),
                number: number.trim().to_owned(),
                device: makedev(major.parse()?, minor.parse()?),
            });
        }
        Ok(partitions)
    }
}
