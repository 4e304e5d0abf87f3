//! Where the parts of a node are, on the machine that runs it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A node's directory.
#[derive(Debug, Clone)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// The one at `dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir).with_context(|| format!("finding {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The one at `dir`, which has to hold a node.
    pub fn existing(dir: &Path) -> Result<Self> {
        let place = Self::new(dir)?;
        ensure!(place.disk().exists(), "there is no node in {}: `node up` makes one", dir.display());
        Ok(place)
    }

    /// Itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The disk with the operating system and `/var`.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// The disks that are partitions of their own, by label: `recovery`, and `etcd` where the variant says so.
    #[must_use]
    pub fn partition(&self, label: &str) -> PathBuf {
        self.dir.join(format!("{label}.img"))
    }

    /// The second disk, which is empty, where the variant says so.
    #[must_use]
    pub fn spare(&self) -> PathBuf {
        self.dir.join("spare.img")
    }

    /// Where the disk is mounted, in the namespace of whoever looks at it.
    #[must_use]
    pub fn sysroot(&self) -> PathBuf {
        self.dir.join("sysroot")
    }

    /// What systemd and its services say on the console, of all boots.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// A line for each boot and each end of one.
    #[must_use]
    pub fn boots(&self) -> PathBuf {
        self.dir.join("boots.log")
    }

    /// Whether it is on: see [`Power`](super::machine::Power).
    #[must_use]
    pub fn power(&self) -> PathBuf {
        self.dir.join("power.json")
    }

    /// Which node it is: a [`Variant`](super::variant::Variant).
    #[must_use]
    pub fn variant(&self) -> PathBuf {
        self.dir.join("variant.json")
    }

    /// Held by the process that plays machine, for as long as the node is on.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// What tells this node's container and control groups from another's.
    #[must_use]
    pub fn id(&self) -> String {
        format!("node-{}", &super::command::sha256(self.dir.as_os_str().as_encoded_bytes())[..8])
    }
}
