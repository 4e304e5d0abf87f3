//! The SELinux mode, through the kernel's own file. On a kernel without SELinux there is no mode and nothing to do.

use anyhow::{Context, Result};

use super::Node;

/// Reads as `0` or `1`, takes the same (Linux, `security/selinux/selinuxfs.c`).
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// What the kernel does with an access that the policy does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It is denied.
    Enforcing,
    /// It is logged and allowed; labels that the policy does not know can be written.
    Permissive,
}

/// The node's mode now; `None` where SELinux is off.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn mode(node: &Node) -> Result<Option<Mode>> {
    if !node.exists(ENFORCE) {
        return Ok(None);
    }
    Ok(Some(if node.read_text(ENFORCE)?.trim() == "0" { Mode::Permissive } else { Mode::Enforcing }))
}

/// Sets the node's mode and checks that it took.
///
/// # Errors
/// When it cannot be written, or reads differently afterwards.
pub fn set_mode(node: &Node, wanted: Mode) -> Result<()> {
    let value = if wanted == Mode::Permissive { "0" } else { "1" };
    std::fs::write(node.real_path(ENFORCE), value).with_context(|| format!("making SELinux {wanted:?} through {ENFORCE}"))?;
    anyhow::ensure!(mode(node)? == Some(wanted), "SELinux did not become {wanted:?}: {ENFORCE} says otherwise");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_read_and_set() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let node = Node::at(dir.path(), None);
        assert_eq!(mode(&node)?, None);
        std::fs::create_dir_all(dir.path().join("sys/fs/selinux"))?;
        std::fs::write(dir.path().join("sys/fs/selinux/enforce"), "1")?;
        assert_eq!(mode(&node)?, Some(Mode::Enforcing));
        set_mode(&node, Mode::Permissive)?;
        assert_eq!(mode(&node)?, Some(Mode::Permissive));
        Ok(())
    }
}
