//! The operating systems that a node can have.

use serde::{Deserialize, Serialize};

/// An operating system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum System {
    /// Debian 12, ostree 2022.7, systemd 252.
    #[default]
    Debian12,
    /// Debian 13, ostree 2025.2, systemd 257; `/sysroot` is read-only.
    Debian13,
    /// The suite after Debian 13, ostree 2026.4, systemd 262; the root is a composefs, read-only as `/sysroot` is.
    Composefs,
}

impl System {
    /// Its name in options and paths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
            Self::Composefs => "composefs",
        }
    }

    /// The suite that Debian calls it.
    #[must_use]
    pub fn suite(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
            Self::Composefs => "forky",
        }
    }

    /// True where ostree's program of the initramfs makes the root (`initramfs.sh`), and systemd has control groups of version 2. Else the
    /// mounts are made as that would make them, but for a `/sysroot` that is writable: libostree 2022.7 keeps handles that it opened before
    /// it has a mount namespace of its own, and cannot clean up through them on one that is not.
    #[must_use]
    pub fn prepares_root(self) -> bool {
        self != Self::Debian12
    }
}
