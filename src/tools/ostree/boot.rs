//! Boot loader entries: `/boot/loader/entries/*.conf`, of the Boot Loader Specification, as libostree writes them.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result};

use super::deployment::Deployment;
use crate::error::misfit;
use crate::node::Node;

const ENTRIES: &str = "/boot/loader/entries";

/// The kernel arguments of a deployment, from its boot loader entry. The `ostree=` argument is left out: it is the deployment's place in
/// the list, and changes whenever the list does.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when no entry boots this deployment (a staged one has none yet); when the entries
/// cannot be read.
pub fn kernel_arguments(node: &Node, deployment: &Deployment) -> Result<Vec<String>> {
    let folder = node.real_path(ENTRIES);
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {ENTRIES}"))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {ENTRIES}"))?.path();
        if path.extension() != Some(OsStr::new("conf")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", node.shown(&path).display()))?;
        let arguments = options(&text);
        let target = arguments.iter().find_map(|argument| argument.strip_prefix("ostree="));
        if target.is_some_and(|target| leads_to(node, target, deployment)) {
            return Ok(arguments.iter().filter(|argument| !argument.starts_with("ostree=")).map(|&a| a.to_owned()).collect());
        }
    }
    Err(misfit(format!("no boot loader entry in {ENTRIES} boots the deployment {deployment}")))
}

/// The words of an entry's `options` lines.
fn options(entry: &str) -> Vec<&str> {
    let value = |line| str::strip_prefix(line, "options").filter(|rest| rest.starts_with([' ', '\t']));
    entry.lines().filter_map(value).flat_map(str::split_whitespace).collect()
}

/// True when `target` (`/ostree/boot.0/<stateroot>/<boot checksum>/<n>`, a chain of links below the physical root) leads to this
/// deployment's `/ostree/deploy/<stateroot>/deploy/<checksum>.<serial>`.
fn leads_to(node: &Node, target: &str, deployment: &Deployment) -> bool {
    let link = node.real_path(Path::new("/sysroot").join(target.trim_start_matches('/')));
    let Ok(place) = link.canonicalize() else { return false };
    let is = |path: Option<&Path>, name: &str| path.and_then(Path::file_name) == Some(OsStr::new(name));
    is(Some(&place), &format!("{}.{}", deployment.checksum, deployment.serial)) && is(place.ancestors().nth(2), &deployment.stateroot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn deployment(stateroot: &str, serial: u32) -> Deployment {
        let mut all = super::super::parse::text(&format!("* {stateroot} {}.{serial}\n", "a".repeat(64))).expect("a deployment");
        all.remove(0)
    }

    /// As ostree 2022.7 lays it out: two serials of one commit with other kernel arguments, and the same in another stateroot.
    #[test]
    fn the_entry_is_found_by_where_it_leads() -> Result<()> {
        let root = tempfile::tempdir()?;
        let sysroot = root.path().join("sysroot/ostree");
        std::fs::create_dir_all(root.path().join("boot/loader.1/entries"))?;
        symlink("loader.1", root.path().join("boot/loader"))?;
        std::fs::create_dir_all(sysroot.join("boot.1.1/rhcos/cafe"))?;
        symlink("boot.1.1", sysroot.join("boot.1"))?;
        for (number, (stateroot, serial)) in [("rhcos", 0), ("rhcos", 1), ("other", 0)].into_iter().enumerate() {
            let name = format!("{}.{serial}", "a".repeat(64));
            std::fs::create_dir_all(sysroot.join("deploy").join(stateroot).join("deploy").join(&name))?;
            symlink(format!("../../../deploy/{stateroot}/deploy/{name}"), sysroot.join(format!("boot.1.1/rhcos/cafe/{number}")))?;
            std::fs::write(
                root.path().join(format!("boot/loader.1/entries/ostree-{number}-rhcos.conf")),
                format!(
                    "title x\nversion {number}\noptions root=LABEL=root  nosmt={number} ostree=/ostree/boot.1/rhcos/cafe/{number}\nlinux /k\n"
                ),
            )?;
        }
        let node = Node::at(root.path(), None);
        assert_eq!(kernel_arguments(&node, &deployment("rhcos", 0))?, ["root=LABEL=root", "nosmt=0"]);
        assert_eq!(kernel_arguments(&node, &deployment("rhcos", 1))?, ["root=LABEL=root", "nosmt=1"]);
        assert_eq!(kernel_arguments(&node, &deployment("other", 0))?, ["root=LABEL=root", "nosmt=2"]);
        assert_eq!(crate::error::exit_code(&kernel_arguments(&node, &deployment("other", 1)).unwrap_err()), 78);
        Ok(())
    }
}
