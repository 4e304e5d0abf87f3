//! Control groups: each boot of a node gets new ones, below those of the process that plays machine, in every hierarchy that this machine
//! has (`host.sh` says which it must have). So two nodes do not see each other's pods, and a boot finds nothing of the one before.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::command::Limit;

/// The groups of a boot; they are removed when this is dropped, with whatever is left in them.
#[derive(Debug)]
pub struct Groups {
    /// Each with the one that this process was in before.
    groups: Vec<(PathBuf, PathBuf)>,
}

impl Groups {
    /// Makes groups called `name` and moves this process into them.
    pub fn enter(name: &str) -> Result<Self> {
        let mut groups = Self { groups: Vec::new() };
        for parent in own()? {
            let group = parent.join(name);
            let inside = || -> std::io::Result<()> {
                remove(&group);
                std::fs::create_dir(&group)?;
                for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| parent.join(file).exists()) {
                    std::fs::write(group.join(file), std::fs::read(parent.join(file))?)?;
                }
                std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
            };
            inside().with_context(|| format!("making the control group {}", group.display()))?;
            groups.groups.push((parent, group));
        }
        Ok(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (parent, group) in &self.groups {
            let _ = std::fs::write(parent.join("cgroup.procs"), std::process::id().to_string());
            // The last processes of a killed container may take a moment to be gone.
            let _ = Limit::of(5).wait("a control group to be empty", || Ok(remove(group).then_some(())), String::new);
        }
    }
}

/// Removes a group with those below it; false while something is in it.
fn remove(group: &Path) -> bool {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    std::fs::remove_dir(group).map_or_else(|error| error.kind() == ErrorKind::NotFound, |()| true)
}

/// The groups that this process is in, as directories.
fn own() -> Result<Vec<PathBuf>> {
    let (mine, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let mut groups = Vec::new();
    for line in mine.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let mount = mounts.lines().find_map(|mount| {
            let (place, kind) = mount.split_once(" - ")?;
            let (point, options) = (place.split(' ').nth(4)?, kind.split(' ').nth(2)?);
            let of_version_2 = kind.starts_with("cgroup2 ");
            let ours = if controllers.is_empty() {
                of_version_2
            } else {
                !of_version_2 && kind.starts_with("cgroup ") && controllers.split(',').all(|one| options.split(',').any(|o| o == one))
            };
            ours.then(|| PathBuf::from(point))
        });
        // A hierarchy can exist without being mounted here: nobody in the node sees it either.
        if let Some(mount) = mount {
            groups.push(mount.join(path.trim_start_matches('/')));
        }
    }
    Ok(groups)
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {path}"))
}
