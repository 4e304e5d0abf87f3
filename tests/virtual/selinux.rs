//! SELinux, enforcing, with Debian's policy. What is done in the machine is in `inside.rs`: this very program, and the agent, are on a disk of its own.

mod inside;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use real_node::command::{Limit, checked, tail};
use rustix::fs::{FlockOperation, flock};
use testing::cargo::in_checkout;

use crate::machine::{Drive, Hardware, Machine};
use crate::small_node::TOOL;

const AGENT: &str = env!("CARGO_BIN_EXE_recovery");
/// For a minimal Debian, from nothing, on two busy cores.
const LONG: Limit = Limit::of(1800);
/// For a boot and a job, where the processor is emulated and others are at work too.
const JOB: Limit = Limit::of(1800);
/// So many places of a recovery in the tests that always run.
const FEW: usize = 3;
/// What tells, in the machine, that this is one.
const HERE: &str = "/host/start";
/// Printed when SELinux is permissive.
const PERMISSIVE: &str = "SELinux is permissive, and the agent stands still";
/// What makes the disk, which is made anew when this has changed.
const RECIPE: &str = include_str!("debian.sh");

fn sh(script: &str, args: &[&Path]) -> Result<String> {
    checked(Command::new("sh").args(["-euc", script, "sh"]).args(args), LONG)
}

/// A disk with a Debian that has been labelled, made once.
fn debian() -> Result<PathBuf> {
    let folder = in_checkout("target/virtual");
    fs::create_dir_all(&folder)?;
    let alone = File::create(folder.join("selinux.lock"))?;
    flock(&alone, FlockOperation::LockExclusive)?;
    let (kept, made_by) = (folder.join("selinux.img"), folder.join("selinux.recipe"));
    if !kept.exists() || fs::read_to_string(&made_by).ok().as_deref() != Some(RECIPE) {
        checked(Command::new(in_checkout("tests/virtual/debian.sh")).arg(&kept), LONG)?;
        fs::write(&made_by, RECIPE)?;
    }
    Ok(kept)
}

/// A machine's disks, over its boots.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (debian, root, host) = (debian()?, dir.path().join("root.img"), dir.path().join("host.img"));
        let me = std::env::current_exe()?;
        // Labelled as what an administrator has installed: this machine's own files have no labels.
        let script = r#"cp --sparse=always "$1" "$2"
            mkdir "$3.tree"
            strip -o "$3.tree/program" "$4"
            strip -o "$3.tree/recovery" "$5"
            cp "$6" "$3.tree/tool.sh"
            printf '%s\n' 'job=$(sed "s/.*job=\([a-z_]*\).*/\1/" /proc/cmdline)' \
                '/host/program "selinux::inside::$job" --exact --ignored --nocapture; echo "$job ended with $?"' \
                'systemctl poweroff -ff' >"$3.tree/start"
            chmod 755 "$3.tree" "$3.tree"/*
            setfattr -n security.selinux -v system_u:object_r:bin_t:s0 "$3.tree" "$3.tree"/*
            truncate -s 400M "$3"
            mkfs.ext4 -q -d "$3.tree" "$3"
            rm -r "$3.tree""#;
        sh(script, &[&debian, &root, &host, &me, Path::new(AGENT), Path::new(TOOL)])?;
        Ok(Self { dir })
    }

    /// Boots, and begins a job of `inside.rs`.
    fn begin(&self, job: &str, arguments: &str) -> Result<Machine> {
        let drives = ["root.img", "host.img"].map(|name| Drive { image: self.dir.path().join(name), log: None });
        let hardware = Hardware {
            drives: &drives,
            megabytes: 512,
            modules: &["ext4"],
            script: "mount -t ext4 /dev/vda /new && mount -t ext4 -o ro /dev/vdb /new/host && exec switch_root /new /lib/systemd/systemd",
            arguments: &format!("security=selinux audit=1 systemd.show_status=no job={job} {arguments}"),
            shares_root: false,
            is_on_network: false,
        };
        Machine::start(self.dir.path(), &hardware)
    }

    /// Does a job to its end: what it printed.
    fn job(&self, job: &str, arguments: &str) -> Result<String> {
        self.within(JOB, job, arguments)
    }

    fn within(&self, limit: Limit, job: &str, arguments: &str) -> Result<String> {
        let console = self.begin(job, arguments)?.wait_off(limit)?;
        ensure!(console.contains(&format!("{job} ended with 0")), "{job} failed: {}", tail(&console));
        Ok(console)
    }
}

#[test]
fn labels_come_back_and_the_unit_makes_it_enforcing_again() -> Result<()> {
    Guest::new()?.job("archives_and_the_unit", "").map(drop)
}

#[test]
fn nothing_is_left_permissive_by_an_agent_that_was_struck() -> Result<()> {
    struck(FEW, JOB)
}

/// In every place of a recovery at which SELinux is permissive.
#[test]
#[ignore = "hours: `cargo test --test virtual every_place_while_permissive -- --ignored --nocapture`; PLACES says how many at most"]
fn every_place_while_permissive() -> Result<()> {
    let most = std::env::var("PLACES").ok().and_then(|most| most.parse().ok());
    struck(most.unwrap_or(usize::MAX), Limit::of(6 * 3600))
}

fn struck(places: usize, limit: Limit) -> Result<()> {
    let console = Guest::new()?.within(limit, "struck_at_places", &format!("places={places}"))?;
    console.lines().filter(|line| line.contains(" place")).for_each(|line| println!("{line}"));
    Ok(())
}

#[test]
fn a_power_cut_leaves_nothing_permissive_and_a_mode_of_the_next_boot_as_it_is() -> Result<()> {
    let guest = Guest::new()?;
    let mut machine = guest.begin("until_the_power_fails", "")?;
    machine.wait_for(PERMISSIVE, JOB)?;
    machine.cut_power()?;
    sh(r#"cp --sparse=always "$1"/root.img "$1"/cut.img"#, &[guest.dir.path()])?;
    guest.job("after_the_power_failed", "")?;
    sh(r#"mv "$1"/cut.img "$1"/root.img"#, &[guest.dir.path()])?;
    guest.job("after_the_power_failed_and_permissive_by_the_kernels_arguments", "enforcing=0").map(drop)
}
