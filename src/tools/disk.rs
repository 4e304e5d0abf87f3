//! What is on a block device, by its signatures (`blkid`, util-linux); a new XFS file system (`mkfs.xfs`, xfsprogs); a copy of a directory (`cp`,
//! coreutils).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::error::{FailureKind, kind, misfit};
use crate::node::Node;

/// The time limit of a look: a disk that has to spin up takes seconds.
const LOOK: Duration = Duration::from_secs(60);
/// Signatures are within so many bytes of the beginning and the end (util-linux, `libblkid`).
const ENDS: u64 = 1 << 20;
/// The time limit of `mkfs.xfs`, which also tells the disk that nothing on it is used any more.
const MAKE: Duration = Duration::from_secs(900);
/// The least that a disk writes in a second, for the time limit of a copy.
const SLOWEST: u64 = 2 << 20;

/// What the signatures on a device say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// A file system, or what another tool has made of it: `xfs`, `LVM2_member`, `linux_raid_member`, `swap`.
    pub kind: Option<String>,
    /// A partition table: `gpt`, `dos`.
    pub table: Option<String>,
    /// The label of the file system.
    pub label: Option<String>,
    /// The identifier of the file system.
    pub id: Option<String>,
}

/// What is on the device at `device`, or in the part of it that begins at `from` and has a length, bytes. Nothing is believed that was found out earlier.
///
/// # Errors
/// [`FailureKind::Misfit`] when there are signatures of several things; when it cannot be looked at.
pub fn signature(node: &Node, device: &Path, part: Option<(u64, u64)>) -> Result<Signature> {
    let command = node.command("blkid")?.args(["-p", "-o", "export"]);
    let command = match part {
        Some((from, length)) => command.args(["-O", &from.to_string(), "-S", &length.to_string()]),
        None => command,
    };
    let output = command.arg(device).limit(LOOK).output()?;
    match output.status.code() {
        Some(0) => Ok(parse(output.text()?)),
        // Nothing was found, or it could not be read: blkid(8) says the same of both.
        Some(2) => readable(device, part).map(|()| Signature::default()),
        Some(8) => Err(misfit(format!("{} has signatures of several file systems or tables: `wipefs {0}` shows them", device.display()))),
        _ => Err(output.error()),
    }
}

/// Reads what signatures are looked for in: the beginning and the end.
fn readable(device: &Path, part: Option<(u64, u64)>) -> Result<()> {
    let read = || -> Result<()> {
        let mut device = File::open(device)?;
        let (from, length) = part.map_or_else(|| device.seek(SeekFrom::End(0)).map(|length| (0, length)), Ok)?;
        let mut ends = vec![0; usize::try_from(length.min(ENDS))?];
        for at in [from, from + length - ends.len() as u64] {
            device.seek(SeekFrom::Start(at))?;
            device.read_exact(&mut ends)?;
        }
        Ok(())
    };
    read().with_context(|| format!("reading {}, to see whether something is on it", device.display()))
}

fn parse(text: &str) -> Signature {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    Signature { kind: value("TYPE"), table: value("PTTYPE"), label: value("LABEL"), id: value("UUID") }
}

/// The devices of this node whose file system, or whose entry in a partition table, has this label.
///
/// # Errors
/// When it cannot be looked.
pub fn labelled(node: &Node, label: &str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for by in ["LABEL", "PARTLABEL"] {
        let command = node.command("blkid")?.args(["-c", "/dev/null", "-o", "device", "-t"]);
        let output = command.arg(format!("{by}={label}")).limit(LOOK).output()?;
        match output.status.code() {
            Some(0) => all.extend(output.text()?.lines().map(|line| node.shown(Path::new(line.trim())))),
            Some(2) => {}
            _ => return Err(output.error().context(format!("looking for what is labelled {label}"))),
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Waits until udev has done what it has to do, where there is one: it opens devices that have changed, and may have the kernel read a table again.
///
/// # Errors
/// When the agent is interrupted. That udev takes long is none: whatever needs it waits for what it makes.
pub fn settle(node: &Node) -> Result<()> {
    if !node.has_program("udevadm") {
        return Ok(());
    }
    match node.command("udevadm")?.args(["settle", "--timeout=30"]).output() {
        Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// What a kernel of an older release cannot mount, turned off: an older deployment has to, and that is what the partition is for. RHEL 9 makes file
/// systems with `bigtime` and `inobtcount`, which the kernel of RHEL 8 does not mount ("Considerations in adopting RHEL 9", 12.1), xfsprogs 6.5 and later
/// also with `nrext64`, which a kernel before Linux 5.19 does not know. What it costs: no time after 2038. A `mkfs.xfs` that does not know an option does
/// not use it by itself: xfsprogs knows the first two from 5.10 on and the third from 5.19 on.
const FOR_OLDER_KERNELS: [&[&str]; 2] = [&["-m", "bigtime=0,inobtcount=0", "-i", "nrext64=0"], &["-m", "bigtime=0,inobtcount=0"]];

/// Makes an XFS file system on the device at `device`, over whatever is there, that kernels of older releases mount as well.
///
/// # Errors
/// When `mkfs.xfs` fails.
pub fn make_xfs(node: &Node, device: &Path, label: &str, id: &str) -> Result<()> {
    let command = |options: &[&str]| {
        let command = node.command("mkfs.xfs")?.args(["-q", "-f", "-L", label, "-m", &format!("uuid={id}")]);
        Ok::<_, anyhow::Error>(command.args(options).arg(device))
    };
    let mut known: &[&str] = &[];
    for options in FOR_OLDER_KERNELS {
        // `-N` looks at everything and writes nothing.
        if command(&[options, &["-N"]].concat())?.limit(LOOK).output()?.status.success() {
            known = options;
            break;
        }
    }
    command(known)?.limit(MAKE).run().context("making the file system")?;
    Ok(())
}

/// Copies what is in the directory `from` into the directory `to`, with everything that belongs to it; `bytes` is how much that is about.
///
/// # Errors
/// When `cp` fails.
pub fn copy(node: &Node, from: &Path, to: &Path, bytes: u64) -> Result<()> {
    let limit = Duration::from_secs(600 + bytes / SLOWEST);
    let command = node.command("cp")?.args(["--archive", "--no-target-directory", "--"]).arg(from).arg(to);
    command.limit(limit).run().with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read() {
        // blkid 2.38.1, of an XFS partition and of a disk.
        let text =
            "DEVNAME=/dev/loop0p3\nLABEL=recovery\nUUID=0b7f6a52-6f1c-4f0e-9d65-0a4c2f6a5b11\nBLOCK_SIZE=512\nTYPE=xfs\nUSAGE=filesystem\n";
        let seen = parse(text);
        assert_eq!((seen.kind.as_deref(), seen.label.as_deref(), seen.table), (Some("xfs"), Some("recovery"), None));
        let disk = parse("DEVNAME=/dev/loop0\nPTUUID=17732486\nPTTYPE=gpt\n");
        assert_eq!((disk.kind, disk.table.as_deref()), (None, Some("gpt")));
    }
}
