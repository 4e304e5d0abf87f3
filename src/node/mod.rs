//! The node: everything the agent reads, changes or runs is reached through one [`Node`] value.
//!
//! Reading order: this page, [`run`] (external programs), [`clock`] (time, boot id, deadlines, interruption), [`durable`] (files that
//! survive a power cut), [`dir`] (the recovery directory and its lock), [`profile`] (what kind of control plane), [`identity`] (which node
//! this is), [`static_pod`] and [`certificates`] (what its manifests and certificates say), [`yaml`] (as kubelet reads it),
//! [`machine_config`] (which files are managed), [`hold`] (what keeps kubelet from starting before everything is restored), [`crio`] (what
//! it erases at a start), [`timer`] (what wakes scheduled backups), [`mounts`], [`block`] (disks) and [`recovery_mount`] (what mounts the recovery
//! directory), [`selinux`], [`host`] (the way from a container to its node).

pub mod block;
pub mod certificates;
pub mod clock;
pub mod crio;
pub mod dir;
pub mod durable;
pub mod hold;
pub mod host;
pub mod identity;
pub mod machine_config;
pub mod mounts;
pub mod profile;
pub mod recovery_mount;
pub mod run;
pub mod selinux;
pub mod static_pod;
pub mod timer;
pub mod yaml;

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::usage;
use clock::Clock;
use run::Command;

/// One machine: a root directory, where its programs come from, and its clock.
#[derive(Debug, Clone)]
pub struct Node {
    root: PathBuf,
    tools: Option<PathBuf>,
    clock: Clock,
}

impl Node {
    /// The machine this process runs on.
    #[must_use]
    pub fn live() -> Self {
        Self { root: PathBuf::from("/"), tools: None, clock: Clock::of(Path::new("/")) }
    }

    /// A node whose files are under `root`; its programs are taken only from `tools`, never from the live host.
    #[must_use]
    pub fn at(root: &Path, tools: Option<&Path>) -> Self {
        if root == Path::new("/") && tools.is_none() {
            return Self::live();
        }
        Self { root: root.to_owned(), tools: tools.map(Path::to_owned), clock: Clock::of(root) }
    }

    /// True for the machine this process runs on.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// The directory that stands for `/` of this node.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where this process finds the node's absolute `path`. Symbolic links on the way are followed *within* the node's root, as on the node
    /// itself; a link at the end of the path is not followed. The part that does not exist is appended as written.
    #[must_use]
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if self.is_live() {
            return path.to_owned();
        }
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => self.real_path(parent).join(name),
            _ => self.real_path(path),
        }
    }

    /// As [`Node::path`], but a link at the end is followed too.
    #[must_use]
    pub fn real_path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if self.is_live() {
            return path.to_owned();
        }
        // The components still to walk, last one first; a link is replaced by its target's components. 40 is the kernel's own limit of
        // links.
        let mut rest: Vec<PathBuf> = parts(path);
        let (mut here, mut links) = (self.root.clone(), 0);
        while let Some(part) = rest.pop() {
            if part == Path::new("..") {
                if here != self.root {
                    here.pop();
                }
                continue;
            }
            let next = here.join(&part);
            match std::fs::read_link(&next) {
                Ok(target) if links < 40 => {
                    links += 1;
                    if target.is_absolute() {
                        here.clone_from(&self.root);
                    }
                    rest.extend(parts(&target));
                }
                _ => here = next,
            }
        }
        here
    }

    /// The node's name for a path that this process uses: the inverse of [`Node::path`], for messages.
    #[must_use]
    pub fn shown(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    /// Reads a whole file of the node. For small files only (configuration, certificates, `/proc`). Nothing is waited for: a FIFO without a writer is
    /// empty.
    ///
    /// # Errors
    /// When it cannot be read; the message names the node's path.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let read = || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut durable::open_at_once(&self.real_path(path))?, &mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        read().with_context(|| format!("reading {}", path.display()))
    }

    /// As [`Node::read`], as text.
    ///
    /// # Errors
    /// As [`Node::read`], and when it is not UTF-8.
    pub fn read_text(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = path.as_ref();
        String::from_utf8(self.read(path)?).with_context(|| format!("reading {}", path.display()))
    }

    /// True when the node has something at `path`.
    #[must_use]
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.real_path(path).symlink_metadata().is_ok()
    }

    /// A call of an external program: see [`run`].
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when this is not the live machine and no folder of tools was given;
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when that folder has no such program.
    pub fn command(&self, program: &str) -> Result<Command> {
        match (&self.tools, self.is_live()) {
            (Some(tools), _) => Command::in_folder(tools, program),
            (None, true) => Ok(Command::in_path(program)),
            (None, false) => Err(usage(format!(
                "--root {} needs --tools DIR to run `{program}`: the live host's programs are never used on another node",
                self.root.display()
            ))),
        }
    }

    /// True when the node has this program where [`Node::command`] looks for it.
    #[must_use]
    pub fn has_program(&self, program: &str) -> bool {
        match &self.tools {
            Some(tools) => tools.join(program).exists(),
            None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).is_file()),
        }
    }

    /// Time as this node has it.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(PathBuf::from(name)),
            Component::ParentDir => Some(PathBuf::from("..")),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_within_the_root() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        std::fs::create_dir_all(root.join("var/usrlocal/bin"))?;
        std::fs::create_dir_all(root.join("usr"))?;
        symlink("/var/usrlocal", root.join("usr/local"))?;
        symlink("../../../../../etc", root.join("var/up"))?;
        symlink("loop", root.join("loop"))?;
        let node = Node::at(root, None);
        assert_eq!(node.path("/usr/local/bin/tool"), root.join("var/usrlocal/bin/tool"));
        assert_eq!(node.path("/usr/local"), root.join("usr/local"));
        assert_eq!(node.real_path("/usr/local"), root.join("var/usrlocal"));
        assert_eq!(node.path("/var/up/passwd"), root.join("etc/passwd"));
        assert_eq!(node.path("/loop/x"), root.join("loop/x"));
        assert_eq!(node.shown(&root.join("etc/passwd")), Path::new("/etc/passwd"));
        Ok(())
    }

    #[test]
    fn the_live_hosts_programs_are_not_used_on_another_root() {
        let error = Node::at(Path::new("/mnt/disk"), None).command("crictl").unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}
