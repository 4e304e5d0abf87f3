//! The `MachineConfig` that makes the partition when a node is installed: an extra manifest of the installation.
//!
//! The machine-config operator cannot change disks afterwards: on a node that runs it is `recovery partition create`.

use anyhow::{Result, bail};

use super::{LABEL, Wanted};
use crate::error::usage;
use crate::node::recovery_mount::{BY_PARTLABEL, unit, unit_name};

/// Its name: that of the original guide.
pub const NAME: &str = "98-var-recovery-partition";

/// The manifest, as YAML. `note` is a comment about the disk.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when `role` is not the name of a pool.
pub fn manifest(wanted: &Wanted, role: &str, note: Option<&str>) -> Result<String> {
    check(role).map_err(|why| usage(format!("--role {role}: {why}")))?;
    let note = note.map_or_else(String::new, |note| format!("        # {}\n", note.replace('\n', " ")));
    let start = wanted.start_mib.map_or_else(String::new, |start| format!("            startMiB: {start}\n"));
    let unit_text: String = unit(&wanted.dir, BY_PARTLABEL, false)
        .lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("            {line}\n") })
        .collect();
    Ok(format!(
        "apiVersion: machineconfiguration.openshift.io/v1
kind: MachineConfig
metadata:
  labels:
    machineconfiguration.openshift.io/role: {role}
  name: {NAME}
spec:
  config:
    ignition:
      version: {version}
    storage:
      disks:
{note}        - device: {device}
          # Never true: it would take every other partition of the disk away.
          wipeTable: false
          partitions:
          - label: {LABEL}
{start}            sizeMiB: {size}
            wipePartitionEntry: true
      filesystems:
        - device: {BY_PARTLABEL}
          path: {dir}
          format: xfs
          label: {LABEL}
          wipeFilesystem: true
    systemd:
      units:
        - name: {unit}
          enabled: true
          contents: |
{unit_text}",
        version = super::ignition::VERSION,
        device = wanted.device,
        size = wanted.size_mib,
        dir = wanted.dir.display(),
        unit = unit_name(&wanted.dir),
    ))
}

fn check(role: &str) -> Result<()> {
    if role.is_empty() || role.len() > 63 || !role.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-') {
        bail!("it is not the name of a pool: `master`, or another of `oc get machineconfigpool`");
    }
    Ok(())
}
