//! What happens in the virtual machine: commands of the tests', each on a disk of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::{Drive, Hardware, Machine};

/// Sectors at the end of a disk that are not the file system's. The machine writes the last but one when a command begins, and the last when it
/// has ended: so these moments are in the disk's log.
pub(crate) const MARKS: u64 = 8;

/// What a file system is called, and how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Xfs,
    Ext4,
}

impl Kind {
    /// What a disk has to write whole or not at all, bytes. XFS does not replay its journal over a block whose first sector is newer: where the others
    /// are not, it cannot be mounted any more (seen with Linux 6.18), so it needs a disk whose sectors are as large as its blocks.
    pub(crate) const fn whole(self) -> u64 {
        match self {
            Self::Xfs => 4096,
            Self::Ext4 => 512,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        })
    }
}

/// A command on the next disk.
pub(crate) struct Work {
    pub(crate) drive: Drive,
    pub(crate) kind: Kind,
    /// Nothing that it syncs is synced (`unsynced.rs`).
    pub(crate) does_not_sync: bool,
}

/// A word for the shell.
fn quoted(word: &std::ffi::OsStr) -> Result<String> {
    let word = word.to_str().context("a word that is not UTF-8")?;
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}

/// The command with its variables, for the shell.
fn line(command: &Command) -> Result<String> {
    let mut line = String::from("env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin ");
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            line += &format!("{}={} ", name.display(), quoted(value)?);
        }
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect::<Result<Vec<_>>>()?;
    Ok(line + &words.join(" "))
}

/// Turns a machine on that does the command on each disk after the other, where this thread's own temporary directory is. It has this
/// machine's files, its programs among them.
pub(crate) fn start(dir: &Path, command: &Command, port: Option<u16>, works: Vec<Work>) -> Result<Machine> {
    let mut script = String::from(
        "mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host /new || { dmesg | tail; poweroff -f; }\n",
    );
    for (kind, at) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys"), ("tmpfs", "run")] {
        script += &format!("mount -t {kind} none /new/{at}\n");
    }
    if let Some(port) = port {
        script += "ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0\n";
        script += &format!("nc -ll -p {port} -e nc 10.0.2.2 {port} &\n");
    }
    let temporary = std::env::temp_dir();
    let temporary = temporary.to_str().context("a temporary directory that is not UTF-8")?;
    for (letter, work) in ('a'..).zip(&works) {
        let last = work.drive.image.metadata()?.len() / 512 - 1;
        let disk = format!("/dev/vd{letter}");
        let mark = |at: u64| format!("dd status=none if=/dev/zero of={disk} bs=512 count=1 seek={at} oflag=direct conv=notrunc\n");
        // Something else on the disk syncs its own, as etcd does on a node: the file system's journal, which is everyone's, is written with it.
        script += &format!(
            "cat >/new/run/work <<'end'\nmount -t {kind} {disk} {temporary} || exit 1\n\
             while :; do dd status=none if=/dev/zero of={temporary}/neighbour bs=9 count=1 conv=fsync; sleep 0.$((RANDOM % 5)); done &\n\
             neighbour=$!\necho {line} >/run/line\n{begin}echo begins {letter}\n{runs} >/run/said 2>&1\ncode=$?\n{end}kill $neighbour; wait\n\
             cat /run/said; echo ended {letter} $code\numount {temporary}\nend\nchroot /new /bin/bash /run/work\n",
            kind = work.kind,
            begin = mark(last - 1),
            end = mark(last),
            line = quoted(line(command)?.as_ref())?,
            runs = if work.does_not_sync { crate::unsynced::line("/run/line")? } else { "bash /run/line".to_owned() },
        );
    }
    let drives: Vec<Drive> = works.into_iter().map(|work| work.drive).collect();
    let hardware = Hardware {
        drives: &drives,
        megabytes: 768,
        modules: &["ext4", "xfs", "9p", "9pnet_virtio", "virtio_net"],
        script: &script,
        arguments: "",
        shares_root: true,
        is_on_network: port.is_some(),
    };
    Machine::start(dir, &hardware)
}
