//! A soft reboot, as ostree 2026.4 prepares it and systemd 262 goes into it: userspace ends and begins anew in `/run/nextroot`; kernel,
//! boot id and the rest of `/run` stay, and the boot loader is not asked.
//!
//! Debian 12 has neither. `ostree admin prepare-soft-reboot` is played here, with the mark in `ostree admin status`. A deployment that is
//! dropped afterwards stays in the next root, as its composefs image does, and no list tells of it any more; once it is booted, ostree
//! finds itself in none of its deployments, and fails at everything.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::booted::inside_command;
use testing::place::Place;

const NEXT_ROOT: &str = "/run/nextroot";
/// The deployment that it was made of.
const PREPARED: &str = "next-root.json";
/// Where in a stateroot its image is: what is mounted.
const IMAGES: &str = "next-root";
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
    forget(place)?;
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
    let image = image(&deployment)?;
    std::fs::create_dir_all(image.parent().context("no parent")?)?;
    let copied = Command::new("cp").arg("-a").args([&deployment, &image]).status().context("running cp")?;
    anyhow::ensure!(copied.success(), "copying the deployment: {copied}");
    std::fs::create_dir_all(place.at(NEXT_ROOT))?;
    mount_bind(&image, place.at(NEXT_ROOT)).context("mounting the next root")?;
    place.save(PREPARED, &Some(deployment))?;
    Ok(ExitCode::SUCCESS)
}

/// As deep in its stateroot as the deployment is.
fn image(deployment: &Path) -> Result<PathBuf> {
    let (stateroot, name) = (deployment.ancestors().nth(2).context("no stateroot")?, deployment.file_name().context("no name")?);
    Ok(stateroot.join(IMAGES).join(name))
}

/// What a soft reboot mounts: the deployment while there is one, else what is left of it.
pub(crate) fn root_of(deployment: &Path) -> Result<PathBuf> {
    if deployment.exists() { Ok(deployment.to_owned()) } else { image(deployment) }
}

/// Nothing is prepared any more.
fn forget(place: &Place) -> Result<()> {
    if let Some(deployment) = place.load::<Option<PathBuf>>(PREPARED)? {
        let image = image(&deployment)?;
        if image.exists() {
            std::fs::remove_dir_all(&image).with_context(|| format!("removing {}", image.display()))?;
        }
    }
    place.save(PREPARED, &None::<PathBuf>)
}

fn status(place: &Place) -> Result<String> {
    let output = inside_command(place, Command::new("/usr/bin/ostree").args(["admin", "status"])).output().context("running ostree")?;
    String::from_utf8(output.stdout).context("reading ostree's status")
}

/// `ostree admin status`, with the mark.
pub(crate) fn marked_status(place: &Place, prepared: &Path) -> Result<ExitCode> {
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
    if !soft {
        forget(place)?;
    }
    place.change(COUNT, |count: &mut u32| {
        *count = if soft { *count + 1 } else { 0 };
        Ok(())
    })
}
