//! The root of a node that is off: a deployment and the stateroot's `/var`, on a mounted disk.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Both directories.
#[derive(Debug)]
pub struct Root {
    deployment: PathBuf,
    var: PathBuf,
}

impl Root {
    /// That of the only deployment on a disk that was just made.
    pub fn only(sysroot: &Path) -> Result<Self> {
        let stateroot = sysroot.join("ostree/deploy/rhcos");
        let mut found =
            std::fs::read_dir(stateroot.join("deploy"))?.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
        let deployment = found.next().context("nothing is deployed")?;
        Ok(Self { deployment, var: stateroot.join("var") })
    }

    /// Where a path of the node is: `/var` is the stateroot's, and some of `/` are links into it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        for (link, target) in [("/var/", ""), ("/usr/local/", "usrlocal"), ("/opt/", "opt"), ("/root/", "roothome")] {
            if let Some(rest) = path.strip_prefix(link) {
                return self.var.join(target).join(rest);
            }
        }
        self.deployment.join(path.trim_start_matches('/'))
    }

    /// Writes a file with exactly this mode, making its folders.
    pub fn put(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let place = self.path(path);
        let write = || -> Result<()> {
            std::fs::create_dir_all(place.parent().context("no parent")?)?;
            std::fs::write(&place, bytes)?;
            Ok(std::fs::set_permissions(&place, PermissionsExt::from_mode(mode))?)
        };
        write().with_context(|| format!("writing {path}"))
    }

    /// Makes a link, and its folders.
    pub fn link(&self, target: &str, path: &str) -> Result<()> {
        let place = self.path(path);
        let link = || -> Result<()> {
            std::fs::create_dir_all(place.parent().context("no parent")?)?;
            Ok(symlink(target, &place)?)
        };
        link().with_context(|| format!("linking {path}"))
    }
}
