//! A soft reboot, as ostree 2026.4 prepares it and systemd 262 goes into it: userspace ends and begins anew in `/run/nextroot`; kernel,
//! boot id and the rest of `/run` stay, and the boot loader is not asked.
//!
//! Debian 12 has neither. `ostree admin prepare-soft-reboot` is played here, with the mark in `ostree admin status`. A deployment that is
//! dropped is gone from the next root too, as it is no composefs image here.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::booted::inside_command;
use crate::place::Place;

const NEXT_ROOT: &str = "/run/nextroot";
/// The deployment that is mounted there.
const PREPARED: &str = "next-root.json";
/// How many there were in this boot.
const COUNT: &str = "soft-reboots.json";

/// What a plain `systemctl reboot` would go into.
pub(crate) fn prepared(place: &Place) -> Result<Option<PathBuf>> {
    // A person may have unmounted it.
    let is_populated = std::fs::read_dir(place.at(NEXT_ROOT)).is_ok_and(|mut entries| entries.next().is_some());
    Ok(place.load::<Option<PathBuf>>(PREPARED)?.filter(|_| is_populated))
}

/// `ostree admin prepare-soft-reboot INDEX` or `--reset`.
pub(crate) fn prepare(place: &Place, args: &[String]) -> Result<ExitCode> {
    if prepared(place)?.is_some() {
        unmount(place.at(NEXT_ROOT), UnmountFlags::DETACH).context("unmounting the next root")?;
    }
    place.save(PREPARED, &None::<PathBuf>)?;
    let Some(index) = args.iter().find(|word| !word.starts_with('-')) else { return Ok(ExitCode::SUCCESS) };
    let status = status(place)?;
    let deployments: Vec<&str> = status.lines().filter(|line| line.contains('.') && !line.starts_with("    ")).collect();
    let row = deployments.get(index.parse::<usize>()?).copied().unwrap_or_default();
    if row.starts_with('*') || row.is_empty() {
        let what =
            if row.is_empty() { "Out of range deployment index" } else { "Cannot prepare for soft-reboot currently booted deployment" };
        eprintln!("error: {what} {index}");
        return Ok(ExitCode::FAILURE);
    }
    let mut words = row.split_whitespace();
    let (stateroot, name) = (words.next().context("no stateroot")?, words.next().context("no deployment")?);
    let deployment = place.sysroot().join(format!("ostree/deploy/{stateroot}/deploy/{name}")).canonicalize()?;
    std::fs::create_dir_all(place.at(NEXT_ROOT))?;
    mount_bind(&deployment, place.at(NEXT_ROOT)).context("mounting the next root")?;
    place.save(PREPARED, &Some(deployment))?;
    Ok(ExitCode::SUCCESS)
}

fn status(place: &Place) -> Result<String> {
    let output = inside_command(place, Command::new("/usr/bin/ostree").args(["admin", "status"])).output().context("running ostree")?;
    String::from_utf8(output.stdout).context("reading ostree's status")
}

/// `ostree admin status`, with the mark.
pub(crate) fn marked_status(place: &Place, prepared: &std::path::Path) -> Result<ExitCode> {
    let name = prepared.file_name().and_then(|name| name.to_str()).context("a deployment without a name")?;
    for line in status(place)?.lines() {
        println!("{line}{}", if line.contains(name) { " (soft-reboot)" } else { "" });
    }
    Ok(ExitCode::SUCCESS)
}

/// How many there were in this boot: `SoftRebootsCount`.
pub(crate) fn count(place: &Place) -> Result<u32> {
    place.load(COUNT)
}

/// One more, or none any more after a boot.
pub(crate) fn counts(place: &Place, soft: bool) -> Result<()> {
    place.save(PREPARED, &None::<PathBuf>)?;
    place.change(COUNT, |count: &mut u32| {
        *count = if soft { *count + 1 } else { 0 };
        Ok(())
    })
}
