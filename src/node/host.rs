//! The way from a container to the node it runs on.
//!
//! A Job's pod has a root of its own. The tools of the node (`ostree` above all, which looks for `/run/ostree-booted` and for the booted
//! deployment's root) work on the node's own root only, so the agent joins the namespaces of the host's first process and runs its
//! installed copy there. Two ways lead there, both of a privileged container: `hostPID`, and the host's `/proc` mounted at `/host/proc`.
//! The second cannot join the process namespace (a process can only join one that is below its own), so D-Bus refuses, and systemctl with it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::error::{AndNext, by_hand, misfit};

/// Where the first process of the host may be seen; the more certain place comes first.
const PROCS: [&str; 2] = ["/host/proc", "/proc"];
/// Joined in this order. The mount namespace comes last, so that a failure before it changes as little as possible; the files of all are
/// opened first.
const NAMESPACES: [(&str, CloneFlags); 4] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("mnt", CloneFlags::CLONE_NEWNS),
];
/// The search path on the host. A container with nothing but this program in it has no `PATH`, and that of another container is meant for
/// its own root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// kubelet sets it in every pod (`kubelet_pods.go`, `getServiceEnvVarMap`).
pub const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// True in a container of a pod, also after it has changed its root to the node's (`oc debug node`).
#[must_use]
pub fn is_container() -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    std::env::var_os(IN_A_POD).is_some() || groups.contains("kubepods")
}

/// The host on which this container runs.
#[derive(Debug)]
pub struct Host {
    first_process: PathBuf,
}

impl Host {
    /// The host, when this process has another root than the host's first process. `None` on the host itself, also in a `chroot` to it and
    /// in a unit with mounts of its own: their root is the same.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) in a pod that cannot reach its host.
    pub fn outside() -> Result<Option<Self>> {
        let found = Self::among(Path::new("/"), &PROCS.map(PathBuf::from));
        if found.is_none() && std::env::var_os(IN_A_POD).is_some() {
            return Err(misfit("this pod cannot reach the node it runs on")
                .and_next(by_hand("run it privileged, and with `hostPID: true` or with the node's /proc mounted at /host/proc")));
        }
        Ok(found)
    }

    fn among(root: &Path, procs: &[PathBuf]) -> Option<Self> {
        let id = |path: &Path| path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        let ours = id(root)?;
        let first = procs.iter().map(|proc| proc.join("1")).find(|first| id(&first.join("root")).is_some_and(|theirs| theirs != ours));
        first.map(|first_process| Self { first_process })
    }

    /// Joins the host's namespaces. From here on, every path is the host's.
    ///
    /// # Errors
    /// When this process already has threads, or lacks the right.
    pub fn join(&self) -> Result<()> {
        let open = |(name, flag): (&str, CloneFlags)| {
            let path = self.first_process.join("ns").join(name);
            File::open(&path).map(|file| (path.clone(), file, flag)).with_context(|| format!("opening {}", path.display()))
        };
        let all = NAMESPACES.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        for (path, file, flag) in all {
            setns(&file, flag).with_context(|| format!("joining the host's {}: is the container privileged?", path.display()))?;
        }
        Ok(())
    }
}

/// Replaces this process by `program`, with the same arguments and only `variables` as its environment.
///
/// # Errors
/// When it cannot be run.
pub fn exec(program: &Path, variables: &[(&str, OsString)]) -> Result<Infallible> {
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env_clear().env("PATH", PATH).envs(variables.iter().map(|(name, value)| (name, value)));
    Err(anyhow!(command.exec()).context(format!("running {} on the host", program.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_host_is_one_whose_first_process_has_another_root() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("container"))?;
        std::fs::create_dir_all(path("host"))?;
        for (proc, root) in [("proc", "host"), ("own-proc", "container")] {
            std::fs::create_dir_all(path(proc).join("1"))?;
            symlink(path(root), path(proc).join("1/root"))?;
        }
        let found = |procs: &[&str]| Host::among(&path("container"), &procs.iter().map(|p| path(p)).collect::<Vec<_>>());
        assert_eq!(found(&["none", "proc"]).map(|h| h.first_process), Some(path("proc/1")));
        assert!(found(&["own-proc", "none"]).is_none(), "its own first process: on the host, or in a process namespace of its own");
        assert!(found(&[]).is_none());
        Ok(())
    }
}
