//! Block devices, as the kernel shows them below `/sys` (`Documentation/ABI/stable/sysfs-block`): which disk a name means, its partitions, and which
//! disks a directory lies on. No tool is asked, and nothing is written.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Node;
use crate::error::misfit;

/// Whatever a disk's own sectors are: the unit of sizes below `/sys`, bytes.
pub const SECTOR: u64 = 512;

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name: `nvme0n1`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a sector, as the partition table counts them.
    pub sector: u64,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// What is built on the disk itself: RAID, LVM, multipath.
    pub holders: Vec<String>,
    /// The partitions that the kernel knows, in the order of their numbers.
    pub partitions: Vec<Partition>,
}

/// A partition that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The kernel's name: `nvme0n1p4`.
    pub name: String,
    /// Its number in the table.
    pub number: u32,
    /// Its first byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

fn sys(name: &str) -> PathBuf {
    Path::new("/sys/class/block").join(name)
}

/// The kernel's name of the block device that `path` leads to.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is none, or something else.
pub fn name_of(node: &Node, path: &Path) -> Result<String> {
    let shown = path.display();
    let meta = node.real_path(path).metadata().map_err(|error| misfit(format!("{shown}: {error}")))?;
    if !meta.file_type().is_block_device() {
        return Err(misfit(format!("{shown} is no block device")));
    }
    name_of_number(node, meta.rdev()).ok_or_else(|| misfit(format!("the kernel does not know the device that {shown} is")))
}

/// The kernel's name of the block device of this number.
#[must_use]
pub fn name_of_number(node: &Node, device: u64) -> Option<String> {
    let link = Path::new("/sys/dev/block").join(format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)));
    let place = std::fs::canonicalize(node.real_path(link)).ok()?;
    Some(place.file_name()?.to_string_lossy().into_owned())
}

/// The name of the disk that the device of this name is a part of; the name itself when it is no partition.
#[must_use]
pub fn whole(node: &Node, name: &str) -> String {
    let place = node.real_path(sys(name));
    if !place.join("partition").exists() {
        return name.to_owned();
    }
    let place = place.canonicalize().unwrap_or(place);
    place.parent().and_then(Path::file_name).map_or_else(|| name.to_owned(), |disk| disk.to_string_lossy().into_owned())
}

/// The disks that the file system which holds `path` lies on, through whatever is between (LVM, RAID, encryption); none where the kernel does not say.
#[must_use]
pub fn disks_below(node: &Node, path: &Path) -> BTreeSet<String> {
    let mut disks = BTreeSet::new();
    let Ok(meta) = node.real_path(path).metadata() else { return disks };
    let mut rest: Vec<String> = name_of_number(node, meta.dev()).into_iter().collect();
    while let Some(name) = rest.pop() {
        let below = entries(node, &sys(&name).join("slaves"));
        if below.is_empty() {
            disks.insert(whole(node, &name));
        }
        rest.extend(below);
    }
    disks
}

/// Where what the node runs from is mounted.
const SYSTEM: [&str; 4] = ["/", "/sysroot", "/boot", "/var"];

/// The disks that the node runs from; none where the kernel does not say, as of btrfs.
#[must_use]
pub fn root_disks(node: &Node) -> BTreeSet<String> {
    SYSTEM.iter().flat_map(|point| disks_below(node, Path::new(point))).collect()
}

/// True when a path lies on a file system that the node runs from: a mount of a directory of it is none of its own.
///
/// # Errors
/// When the path cannot be looked at.
pub fn is_on_system(node: &Node, path: &Path) -> Result<bool> {
    let device = |path: &Path| node.real_path(path).metadata().map(|meta| meta.dev());
    let own = device(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(SYSTEM.iter().any(|point| device(Path::new(point)).is_ok_and(|device| device == own)))
}

impl Disk {
    /// The disk of this name.
    ///
    /// # Errors
    /// When the kernel does not say what is asked of it.
    pub fn of(node: &Node, name: &str) -> Result<Self> {
        let mut partitions = Vec::new();
        for child in entries(node, &sys(name)) {
            let place = sys(name).join(&child);
            if node.exists(place.join("partition")) {
                partitions.push(Partition {
                    number: u32::try_from(number(node, &place.join("partition"))?).context("a partition's number")?,
                    start: number(node, &place.join("start"))?.saturating_mul(SECTOR),
                    size: number(node, &place.join("size"))?.saturating_mul(SECTOR),
                    name: child,
                });
            }
        }
        partitions.sort_by_key(|partition| partition.number);
        Ok(Self {
            size: number(node, &sys(name).join("size"))?.saturating_mul(SECTOR),
            sector: number(node, &sys(name).join("queue/logical_block_size"))?.max(SECTOR),
            read_only: number(node, &sys(name).join("ro"))? != 0,
            holders: holders(node, name),
            name: name.to_owned(),
            partitions,
        })
    }
}

/// What is built on a device: the names of the devices that the kernel has on top of it.
fn holders(node: &Node, name: &str) -> Vec<String> {
    entries(node, &sys(name).join("holders"))
}

fn entries(node: &Node, dir: &Path) -> Vec<String> {
    let list = std::fs::read_dir(node.real_path(dir)).into_iter().flatten().flatten();
    let mut names: Vec<String> = list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn number(node: &Node, file: &Path) -> Result<u64> {
    let text = node.read_text(file)?;
    text.trim().parse().with_context(|| format!("reading {}: it is no number", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    /// A disk with two partitions, one of which carries a volume.
    fn node(root: &Path) -> Node {
        let disk = root.join("sys/devices/pci/block/vda");
        for (name, number, start, size) in [("vda1", "1", "2048", "4096"), ("vda2", "2", "6144", "8192")] {
            create_dir_all(disk.join(name).join("holders")).unwrap();
            for (file, text) in [("partition", number), ("start", start), ("size", size)] {
                write(disk.join(name).join(file), format!("{text}\n")).unwrap();
            }
            create_dir_all(root.join("sys/class/block")).unwrap();
            symlink(format!("../../devices/pci/block/vda/{name}"), root.join("sys/class/block").join(name)).unwrap();
        }
        write(disk.join("size"), "20480\n").unwrap();
        write(disk.join("ro"), "0\n").unwrap();
        create_dir_all(disk.join("queue")).unwrap();
        write(disk.join("queue/logical_block_size"), "4096\n").unwrap();
        symlink("../../devices/pci/block/vda", root.join("sys/class/block/vda")).unwrap();
        create_dir_all(disk.join("vda2/holders/dm-0")).unwrap();
        Node::at(root, None)
    }

    #[test]
    fn a_disk_is_read_with_its_partitions() {
        let root = tempfile::tempdir().unwrap();
        let node = node(root.path());
        let disk = Disk::of(&node, "vda").unwrap();
        assert_eq!((disk.size, disk.sector, disk.read_only, disk.holders.len()), (20480 * SECTOR, 4096, false, 0));
        let seen: Vec<_> = disk.partitions.iter().map(|part| (part.name.as_str(), part.number, part.start, part.size)).collect();
        assert_eq!(seen, [("vda1", 1, 2048 * SECTOR, 4096 * SECTOR), ("vda2", 2, 6144 * SECTOR, 8192 * SECTOR)]);
        assert_eq!(holders(&node, "vda2"), ["dm-0"]);
        assert_eq!((whole(&node, "vda2").as_str(), whole(&node, "vda").as_str()), ("vda", "vda"));
    }

    #[test]
    fn what_is_no_block_device_does_not_fit() {
        for path in ["/dev/null", "/etc", "/no/such/device"] {
            assert_eq!(crate::error::exit_code(&name_of(&Node::live(), Path::new(path)).unwrap_err()), 78, "{path}");
        }
    }
}
