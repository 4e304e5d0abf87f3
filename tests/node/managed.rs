//! The machine configuration: the files of `managed/<set>/`, written where they belong, and the record of them that machine-config-daemon
//! keeps (`currentconfig`). Units that say how are enabled.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testing::cargo::in_checkout;

use super::root::Root;

/// Where the record is.
pub const CURRENT_CONFIG: &str = "/etc/machine-config-daemon/currentconfig";

/// A managed file.
#[derive(Debug, Clone)]
pub struct Managed {
    /// Where it belongs.
    pub path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

impl Managed {
    /// A file of the machine configuration.
    #[must_use]
    pub fn new(path: &str, text: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), bytes: text.as_bytes().to_vec(), mode }
    }

    fn unit(&self) -> Option<&str> {
        self.path.strip_prefix("/etc/systemd/system/").filter(|name| !name.contains('/'))
    }

    /// The links that enabling it makes: where, and to what. Empty for what is no unit.
    #[must_use]
    pub fn links(&self) -> Vec<(String, String)> {
        let Some(unit) = self.unit() else { return Vec::new() };
        let text = String::from_utf8_lossy(&self.bytes);
        let mut links = Vec::new();
        for (key, folder) in [("WantedBy=", "wants"), ("RequiredBy=", "requires")] {
            for target in text.lines().filter_map(|line| line.strip_prefix(key)).flat_map(str::split_whitespace) {
                links.push((format!("/etc/systemd/system/{target}.{folder}/{unit}"), self.path.clone()));
            }
        }
        links
    }
}

/// The files of a set, in `tests/node/managed`. A later set replaces files of the same path.
pub fn files(sets: &[&str]) -> Result<Vec<Managed>> {
    let mut all: Vec<Managed> = Vec::new();
    for set in sets {
        let folder = in_checkout("tests/node/managed").join(set);
        // A link leads to a file that is packaged for nodes.
        for entry in walkdir::WalkDir::new(&folder).follow_links(true).sort_by_file_name() {
            let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
            if !entry.file_type().is_file() {
                continue;
            }
            let path = PathBuf::from("/").join(entry.path().strip_prefix(&folder)?).to_string_lossy().into_owned();
            // Git keeps no other modes.
            let mode = if entry.metadata()?.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
            all.retain(|managed| managed.path != path);
            all.push(Managed { path, bytes: std::fs::read(entry.path())?, mode });
        }
    }
    Ok(all)
}

/// What machine-config-daemon writes down: a `MachineConfig`, Ignition inside.
#[must_use]
pub fn record(name: &str, files: &[Managed], version: &str) -> Value {
    let url = |bytes: &[u8]| format!("data:,{}", percent_encoding::percent_encode(bytes, percent_encoding::NON_ALPHANUMERIC));
    let plain: Vec<Value> = files
        .iter()
        .filter(|file| file.unit().is_none())
        .map(|file| json!({"contents": {"source": url(&file.bytes)}, "mode": file.mode, "overwrite": true, "path": file.path}))
        .collect();
    let units: Vec<Value> = files
        .iter()
        .filter_map(|file| Some(json!({"contents": String::from_utf8_lossy(&file.bytes), "enabled": true, "name": file.unit()?})))
        .collect();
    json!({
        "kind": "MachineConfig",
        "apiVersion": "machineconfiguration.openshift.io/v1",
        "metadata": {"name": name, "creationTimestamp": null},
        "spec": {
            "baseOSExtensionsContainerImage": "",
            "config": {"ignition": {"version": "3.2.0"}, "storage": {"files": plain}, "systemd": {"units": units}},
            "extensions": [],
            "fips": false,
            "kernelArguments": ["psi=1"],
            "kernelType": "default",
            "osImageURL": format!("registry.test/release/rhel-coreos:{version}"),
        },
    })
}

/// Writes files into a node that is off, and enables units.
pub fn write(root: &Root, files: &[Managed]) -> Result<()> {
    for file in files {
        root.put(&file.path, &file.bytes, file.mode)?;
        for (link, target) in file.links() {
            root.link(&target, &link)?;
        }
    }
    Ok(())
}
