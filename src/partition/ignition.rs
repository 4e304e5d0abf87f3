//! An Ignition configuration of version 3.2.0 that makes the partition, its file system and its mount: what `ignitionConfigOverride` of a node takes.
//! (<https://coreos.github.io/ignition/configuration-v3_2/>)

use serde_json::{Value, json};

use super::{LABEL, Wanted};
use crate::node::recovery_mount::{BY_PARTLABEL, unit, unit_name};

/// The version that is written: the first that `MachineConfig`s have, and all that is needed.
pub const VERSION: &str = "3.2.0";

/// The whole configuration. Keys are in the specification's order.
#[must_use]
pub fn config(wanted: &Wanted) -> Value {
    json!({
        "ignition": { "version": VERSION },
        "storage": { "disks": [disk(wanted)], "filesystems": [file_system(wanted)] },
        "systemd": { "units": [{
            "name": unit_name(&wanted.dir),
            "enabled": true,
            "contents": unit(&wanted.dir, BY_PARTLABEL, true),
        }] },
    })
}

/// The disk with the one partition. What else is on it stays: Ignition takes away what it is told to, and nothing else.
pub(super) fn disk(wanted: &Wanted) -> Value {
    json!({ "device": wanted.device, "wipeTable": false, "partitions": [partition(wanted)] })
}

/// The partition.
pub(super) fn partition(wanted: &Wanted) -> Value {
    let mut partition = json!({ "label": LABEL });
    if let Some(start) = wanted.start_mib {
        partition["startMiB"] = start.into();
    }
    partition["sizeMiB"] = wanted.size_mib.into();
    partition
}

/// The file system, by the partition's name: Ignition has no other yet. It has the label, so that both names lead to it.
pub(super) fn file_system(wanted: &Wanted) -> Value {
    json!({ "device": BY_PARTLABEL, "path": wanted.dir, "format": "xfs", "label": LABEL, "wipeFilesystem": true })
}

/// The configuration as the value of `ignitionConfigOverride`: one line.
#[must_use]
pub fn one_line(config: &Value) -> String {
    config.to_string()
}
