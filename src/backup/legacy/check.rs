//! Whether a recovery can use an old backup. `list`, `verify`, and the import before a recovery all ask here.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Error, Result};

use super::excludes;
use super::layout::{EXCLUDE_LIST, EXTRAS_TGZ, Legacy, Parts, is_dir, revisions};
use super::members::{self, MOST_FILE, MOST_LEVELS, Members};
use crate::archive::Tick;
use crate::backup::layout::LEGACY_ID;
use crate::backup::verify::VerifyReport;
use crate::error::{FailureKind, damaged, kind, said, unsupported};
use crate::etcd;
use crate::node::identity::Identity;
use crate::node::machine_config::MachineConfig;
use crate::node::profile::OPENSHIFT;
use crate::node::{Node, clock::interrupted};
use crate::report::Progress;

/// The most bytes of a `currentconfig`: as a `MachineConfig` it had to fit into etcd, which accepts requests of up to 1.5 MiB.
const MOST_CONFIGURATION: u64 = 8 << 20;

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// The small files that an import reads whole: quick.
    Files,
    /// The snapshot, the archives and the trees as well.
    Contents,
}

/// Checks an old backup as far as it allows, by what an import and a recovery need: all parts are there, only once and not too deep; the
/// node's identity, its configuration and certificate authorities are in the copy of `/etc`; the snapshot's structure is sound; both
/// archives can be read to their end, and have plain names; the manifest of each of the four pods is there at its revision.
///
/// # Errors
/// When interrupted; what is wrong with the backup is in the report.
pub fn verify(old: &Legacy, progress: &Progress) -> Result<VerifyReport> {
    let task = progress.task("checking the backup of upgrade-recovery.sh", Some(old.usage()));
    let problems = problems(old, Depth::Contents, &|bytes| task.add(bytes))?;
    Ok(VerifyReport { bytes: old.usage(), ..VerifyReport::new(LEGACY_ID, true, BTreeMap::new(), &problems) })
}

/// What a quick check finds wrong, if anything: as [`verify`], but without the snapshot, the archives and the trees.
///
/// # Errors
/// [`FailureKind::Interrupted`] when interrupted.
pub fn problem(old: &Legacy) -> Result<Option<String>> {
    let problems = problems(old, Depth::Files, &|_| {})?;
    let problems: Vec<String> = problems.iter().map(said).collect();
    Ok(Some(problems.join("; ")).filter(|text| !text.is_empty()))
}

/// Everything that is wrong with it, one sentence each; empty when a recovery can use it.
///
/// # Errors
/// [`FailureKind::Interrupted`] when interrupted;
/// [`FailureKind::NoSpace`] without scratch space.
fn problems(old: &Legacy, depth: Depth, tick: Tick<'_>) -> Result<Vec<Error>> {
    let parts = match old.parts() {
        Ok(parts) => parts,
        Err(error) => return Ok(vec![error]),
    };
    let mut problems = Vec::new();
    let mut note = |name: &str, result: Result<()>| match result {
        // An interruption is no damage, and neither is a lack of scratch space.
        Err(error) if matches!(kind(&error), FailureKind::NoSpace | FailureKind::Interrupted) => Err(error),
        Err(error) => {
            problems.push(error.context(name.to_owned()));
            Ok(true)
        }
        Ok(()) => Ok(false),
    };
    let unreadable = note("what is read whole", small(&parts))?;
    for (name, tree, mark) in [("etc", parts.etc.as_path(), "machine-id"), ("local", parts.local, "bin"), ("kubelet", &parts.kubelet, "")] {
        note(name, nested(tree, name, mark))?;
    }
    for needed in ["machine-id", "machine-config-daemon/currentconfig", "kubernetes/manifests"] {
        if !parts.etc.join(needed).exists() {
            note("etc", Err(damaged(format!("{needed} is missing"))))?;
        }
    }
    if !unreadable {
        // The copy of /etc is read as if it were a node's.
        let copy = Node::at(&old.root, None);
        // What is reported as missing from a node is missing from the copy, so the copy is damaged.
        let identity = Identity::of(&copy, &OPENSHIFT).map_err(|error| damaged(format!("{error:#}")));
        note("etc does not say to which node it belongs", identity.map(drop))?;
        note("etc", MachineConfig::current(&copy).map(drop))?;
        note(EXCLUDE_LIST, excludes::read_list(&parts.excludes, &[&parts.etc]).map(drop))?;
    }
    if depth == Depth::Contents {
        note("the etcd snapshot", etcd::check_restorable(parts.snapshot, tick))?;
        note("static_kuberesources", members::of(parts.resources).and_then(|members| pods(&members)))?;
        if let Some(extras) = &parts.extras {
            note(EXTRAS_TGZ, members::of(extras).map(drop))?;
        }
        for tree in [&parts.etc, parts.local, &parts.kubelet] {
            note(&tree.file_name().unwrap_or_default().to_string_lossy(), levels(tree))?;
        }
    }
    Ok(problems)
}

/// Checks that the files which an import reads whole are regular and not too large, before any is read.
fn small(parts: &Parts<'_>) -> Result<()> {
    let root = parts.etc.parent().unwrap_or(Path::new("/"));
    let copy = Node::at(root, None);
    let config = Path::new("/etc/machine-config-daemon/currentconfig");
    let pods = OPENSHIFT.static_pods.iter().map(|pod| OPENSHIFT.manifest(pod));
    let others = ["/etc/machine-id", "/etc/hostname", OPENSHIFT.root_ca].into_iter().chain(OPENSHIFT.kubeconfigs.iter().copied());
    let files = pods.chain(others.map(Into::into)).map(|path| (copy.real_path(path), MOST_FILE));
    for (path, most) in files.chain([(copy.real_path(config), MOST_CONFIGURATION), (parts.excludes.clone(), MOST_FILE)]) {
        let Ok(meta) = path.metadata() else { continue };
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        if !meta.is_file() {
            return Err(damaged(format!("{name} is not a regular file")));
        }
        if meta.len() > most {
            return Err(damaged(format!("{name} has {} bytes; no more than {most} are read", meta.len())));
        }
    }
    Ok(())
}

/// Checks that there is no second copy inside the first: `cp -Ra /etc DIR/etc`, run twice, makes `DIR/etc/etc`, and the outer copy is then
/// of the earlier run or incomplete. A person must say which of the two to use. `mark` is a path that every copy of this tree has.
fn nested(tree: &Path, name: &str, mark: &str) -> Result<()> {
    let inner = tree.join(name);
    if !is_dir(&inner) || (!mark.is_empty() && inner.join(mark).symlink_metadata().is_err()) {
        return Ok(());
    }
    let outer = tree.file_name().unwrap_or_default().display().to_string();
    Err(damaged(format!(
        "{outer}/{name} is a copy inside the copy: the inner one is of the last run, and the outer one, which an import would use, of an \
         earlier one; next, when the inner one is whole, in that directory: `mv {outer}/{name} {outer}.inner && mv {outer} {outer}.outer \
         && mv {outer}.inner {outer}`; when the outer one is the right one, move the inner one away"
    )))
}

/// Checks that each of the four pods has a revision with a valid manifest.
fn pods(members: &Members) -> Result<()> {
    for (pod, revision) in OPENSHIFT.static_pods.iter().zip(revisions(&members.names)?) {
        let path = revision.join(pod.manifest);
        let text = members.manifests.get(&path).ok_or_else(|| damaged(format!("{} is not in it", path.display())))?;
        crate::node::static_pod::Manifest::parse(text)
            .map_err(|why| damaged(format!("{} is not the manifest of a pod: {why:#}", path.display())))?;
    }
    Ok(())
}

/// Checks that no path below `tree` is deeper than an import supports.
fn levels(tree: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(tree).max_depth(MOST_LEVELS + 1) {
        interrupted()?;
        let entry = match entry {
            Ok(entry) => entry,
            // A path of 4,096 bytes, with however many levels.
            Err(error)
                if error.io_error().and_then(std::io::Error::raw_os_error) == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()) =>
            {
                return Err(too_deep("it holds paths that are longer than the 4,095 bytes that Linux accepts in one"));
            }
            Err(error) => return Err(error).context("walking through it"),
        };
        if entry.depth() > MOST_LEVELS {
            return Err(too_deep(&format!("it has more than {MOST_LEVELS} levels of directories")));
        }
    }
    Ok(())
}

/// No node needs such depth, and it may be left from a test: the backup is sound.
fn too_deep(what: &str) -> Error {
    unsupported(format!("{what}, which is not supported: remove such paths from the copy"))
}
