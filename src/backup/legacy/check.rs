//! Whether a recovery can use an old backup: the one judge of `list`, of `verify`, and of the import before a recovery.

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

/// Bytes of a `currentconfig`: as a `MachineConfig` it had to fit into etcd, whose requests end at 1.5 MiB.
const MOST_CONFIGURATION: u64 = 8 << 20;

/// How far it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What the files say that an import reads whole: quick.
    Files,
    /// The snapshot, the archives and the trees, too.
    Contents,
}

/// Checks it as far as it allows, and as an import and a recovery take it: all parts there, once and not too deep; the node's identity, its
/// configuration and certificate authorities in the copy of `/etc`; the structure of the snapshot; both archives readable to their end,
/// with plain names; the manifest of each of the four pods at its revision.
///
/// # Errors
/// When interrupted; what is wrong is in the report.
pub fn verify(old: &Legacy, progress: &Progress) -> Result<VerifyReport> {
    let task = progress.task("checking the backup of upgrade-recovery.sh", Some(old.usage()));
    let problems = problems(old, Depth::Contents, &|bytes| task.add(bytes))?;
    Ok(VerifyReport { bytes: old.usage(), ..VerifyReport::new(LEGACY_ID, true, BTreeMap::new(), &problems) })
}

/// What is wrong with it as far as a quick look tells, when something is: that of [`verify`], without the snapshot, the archives and the
/// trees.
///
/// # Errors
/// [`FailureKind::Interrupted`] when interrupted.
pub fn problem(old: &Legacy) -> Result<Option<String>> {
    let problems = problems(old, Depth::Files, &|_| {})?;
    let problems: Vec<String> = problems.iter().map(said).collect();
    Ok(Some(problems.join("; ")).filter(|text| !text.is_empty()))
}

/// All that is wrong with it, one sentence each; nothing when a recovery takes it.
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
        // An interruption is no damage, nor is a lack of scratch space.
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
        // The copy of /etc stands where a node's would.
        let copy = Node::at(&old.root, None);
        // It is read as a node's, and what a node lacks the copy has lost.
        let identity = Identity::of(&copy, &OPENSHIFT).map_err(|error| damaged(format!("{error:#}")));
        note("etc does not say which node it is of", identity.map(drop))?;
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

/// That the files which an import reads whole are of a sane kind and size, before any is read.
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

/// That no second copy stands within the first: `cp -Ra /etc DIR/etc`, run again, makes `DIR/etc/etc`, and what is around it is of the run
/// before or incomplete. Which of the two was meant is for somebody to say. `mark` is what every copy of this tree holds.
fn nested(tree: &Path, name: &str, mark: &str) -> Result<()> {
    let inner = tree.join(name);
    if !is_dir(&inner) || (!mark.is_empty() && inner.join(mark).symlink_metadata().is_err()) {
        return Ok(());
    }
    let outer = tree.file_name().unwrap_or_default().display().to_string();
    Err(damaged(format!(
        "{outer}/{name} is a copy within the copy: it is of the last run, and what is around it of an earlier one, which an import would take; next, when \
         the inner one is whole, in that directory: `mv {outer}/{name} {outer}.inner && mv {outer} {outer}.outer && mv {outer}.inner {outer}`; when the \
         outer one is what is meant, move the inner one away"
    )))
}

/// That each of the four pods has a revision with a manifest that is one.
fn pods(members: &Members) -> Result<()> {
    for (pod, revision) in OPENSHIFT.static_pods.iter().zip(revisions(&members.names)?) {
        let path = revision.join(pod.manifest);
        let text = members.manifests.get(&path).ok_or_else(|| damaged(format!("{} is not in it", path.display())))?;
        crate::node::static_pod::Manifest::parse(text)
            .map_err(|why| damaged(format!("{} is no manifest of a pod: {why:#}", path.display())))?;
    }
    Ok(())
}

/// That no path below `tree` is deeper than an import goes.
fn levels(tree: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(tree).max_depth(MOST_LEVELS + 1) {
        interrupted()?;
        let entry = match entry {
            Ok(entry) => entry,
            // A path of 4,096 bytes, whatever its levels.
            Err(error)
                if error.io_error().and_then(std::io::Error::raw_os_error) == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()) =>
            {
                return Err(too_deep("it holds paths that are longer than the 4,095 bytes that Linux takes in one"));
            }
            Err(error) => return Err(error).context("walking through it"),
        };
        if entry.depth() > MOST_LEVELS {
            return Err(too_deep(&format!("it has more than {MOST_LEVELS} levels of directories")));
        }
    }
    Ok(())
}

/// No node needs what is so deep, and whatever wrote it may be no more than a test: it is sound.
fn too_deep(what: &str) -> Error {
    unsupported(format!("{what}, which are not taken: remove what is so deep from the copy"))
}
