//! The trees of this node that make a backup, from the table in [`parts`](crate::backup::parts).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tmpfiles;
use crate::archive::Selection;
use crate::backup::parts::{ETC, EXTRAS, Part, STATIC_PODS, always_excluded, owned, without_owned};
use crate::error::{misfit, usage};
use crate::node::machine_config::MachineConfig;
use crate::node::profile::Profile;
use crate::node::{Node, dir::RecoveryDir, mounts};

/// One tree, and which part of it goes into one archive.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The archive's file.
    pub file: &'static str,
    /// Its path on the node.
    pub shown: &'static str,
    /// Its path for this process, with links followed.
    pub root: PathBuf,
    /// The part of it that is archived.
    pub selection: Selection,
}

/// Everything that is archived.
#[derive(Debug, Clone)]
pub struct Trees {
    /// In the order in which they are archived, without the static pods.
    pub first: Vec<Tree>,
    /// The static pods: archived last, together with etcd.
    pub static_pods: Tree,
    /// Paths below `/etc` that a restore does not touch.
    pub etc_excludes: Vec<PathBuf>,
    /// Managed files outside `/etc`, absolute.
    pub managed_files: Vec<PathBuf>,
    /// Those of the managed files that the extras hold, relative to `/`.
    extras: Vec<PathBuf>,
}

impl Trees {
    /// The trees of a node of this profile.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when one of the trees is missing; when `currentconfig` or
    /// `/etc/tmpfiles.d` cannot be read.
    pub fn of(node: &Node, profile: &'static Profile) -> Result<Self> {
        let managed_files = MachineConfig::current(node)?.map(|config| config.outside_etc()).unwrap_or_default();
        let extras = extras(node, &managed_files)?;
        let mut first = Vec::new();
        for Part { file, tree: shown, .. } in Part::whole() {
            let selection = if file == ETC { without_owned(profile)? } else { Selection::all() };
            first.push(Tree { file, shown, root: existing(node, shown)?, selection });
        }
        if !extras.is_empty() {
            first.push(Tree { file: EXTRAS, shown: "/", root: node.root().to_owned(), selection: Selection::all().only(&extras) });
        }
        let static_pods =
            Tree { file: STATIC_PODS, shown: profile.kubernetes, root: existing(node, profile.kubernetes)?, selection: owned(profile)? };
        Ok(Self { first, static_pods, etc_excludes: etc_excludes(node)?, managed_files, extras })
    }

    /// Bytes of content of all trees, without mounts. This is a little more than is archived: what the selections leave out is counted too.
    ///
    /// # Errors
    /// As [`mounts::usage`].
    pub fn usage(&self) -> Result<u64> {
        let whole = self.first.iter().filter(|tree| tree.file != EXTRAS).map(|tree| mounts::usage(&tree.root));
        let extras = self
            .first
            .iter()
            .filter(|tree| tree.file == EXTRAS)
            .flat_map(|tree| self.extras.iter().map(|p| mounts::usage(&tree.root.join(p))));
        whole.chain(extras).sum()
    }
}

/// Paths below `/etc` that a restore does not touch: what tmpfiles.d makes, and the agent's own files.
fn etc_excludes(node: &Node) -> Result<Vec<PathBuf>> {
    let mut paths = tmpfiles::paths_below_etc(node)?;
    paths.extend(always_excluded());
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// The managed files that exist and are in none of the other trees, relative to `/`. Links on the way are followed, because the archive
/// follows none.
fn extras(node: &Node, managed: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let others: Vec<PathBuf> = Part::whole().map(|part| real(node, Path::new(part.tree))).collect();
    let mut paths = Vec::new();
    for path in managed {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let path = real(node, parent).join(name);
        if path.symlink_metadata().is_ok() && !others.iter().any(|other| path.starts_with(other)) {
            paths.push(path.strip_prefix(node.root()).with_context(|| format!("{} is outside of the node", path.display()))?.to_owned());
        }
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn existing(node: &Node, shown: &str) -> Result<PathBuf> {
    let path = real(node, Path::new(shown));
    if path.is_dir() { Ok(path) } else { Err(misfit(format!("there is no directory {shown} on this node"))) }
}

/// Where this process finds the node's `path`, with every link followed; the part that does not exist is appended.
pub(crate) fn real(node: &Node, path: &Path) -> PathBuf {
    if !node.is_live() {
        return node.real_path(path);
    }
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(real), _, _) => real,
        (Err(_), Some(parent), Some(name)) => real(node, parent).join(name),
        _ => path.to_owned(),
    }
}

/// Refuses a recovery directory inside a tree that is archived: a backup would contain all earlier ones, and a restore would delete them.
/// Call it before the directory is made.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when it is.
pub fn refuse_dir_inside(node: &Node, dir: &RecoveryDir) -> Result<()> {
    let place = real(node, dir.shown());
    for Part { tree: shown, .. } in Part::whole() {
        if place.starts_with(real(node, Path::new(shown))) {
            return Err(usage(format!(
                "the recovery directory {} is inside {shown}, which every backup holds: choose another with --dir",
                dir.shown().display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_recovery_directory_inside_a_tree_is_refused_through_links_too() -> Result<()> {
        let root = tempfile::tempdir()?;
        std::fs::create_dir_all(root.path().join("var/usrlocal"))?;
        std::fs::create_dir_all(root.path().join("usr"))?;
        symlink("../var/usrlocal", root.path().join("usr/local"))?;
        symlink("/etc", root.path().join("var/link"))?;
        let node = Node::at(root.path(), None);
        for bad in ["/etc/recovery", "/etc", "/usr/local/r", "/var/usrlocal/deep/r", "/var/lib/kubelet/x", "/var/link/r"] {
            let refused = refuse_dir_inside(&node, &RecoveryDir::new(&node, Path::new(bad)));
            assert_eq!(refused.map_err(|e| exit_code(&e)), Err(2), "{bad}");
        }
        for good in ["/var/recovery", "/var/lib/kubelet2", "/etcetera", "/var"] {
            assert!(refuse_dir_inside(&node, &RecoveryDir::new(&node, Path::new(good))).is_ok(), "{good}");
        }
        Ok(())
    }

    #[test]
    fn extras_are_the_managed_files_that_no_other_archive_holds() -> Result<()> {
        let root = tempfile::tempdir()?;
        for dir in ["etc", "var/usrlocal/bin", "var/opt/x", "usr", "var/lib/kubelet"] {
            std::fs::create_dir_all(root.path().join(dir))?;
        }
        symlink("../var/usrlocal", root.path().join("usr/local"))?;
        symlink("/var/opt", root.path().join("opt"))?;
        for file in ["var/usrlocal/bin/a", "var/opt/x/b", "var/lib/kubelet/config.json"] {
            std::fs::write(root.path().join(file), "x")?;
        }
        let node = Node::at(root.path(), None);
        let managed =
            ["/usr/local/bin/a", "/var/usrlocal/bin/a", "/opt/x/b", "/var/opt/x/b", "/var/lib/kubelet/config.json", "/opt/missing"];
        assert_eq!(extras(&node, &managed.map(PathBuf::from))?, [PathBuf::from("var/opt/x/b")]);
        Ok(())
    }
}
