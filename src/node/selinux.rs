//! SELinux: its mode, through the kernel's own file, and the labels of files. A kernel without SELinux has no mode, and there is nothing to
//! do.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use rustix::io::Errno;

use super::Node;

/// Reads as `0` or `1`, and accepts the same when written (Linux, `security/selinux/selinuxfs.c`).
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// The extended attribute that holds a file's label, which ends with a zero byte.
pub const LABEL: &str = "security.selinux";
/// The longest label that is read, bytes.
const LONGEST: usize = 4096;

/// What the kernel does with an access that the policy forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The access is denied.
    Enforcing,
    /// The access is logged and allowed; labels that the policy does not know can be written.
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
    anyhow::ensure!(mode(node)? == Some(wanted), "SELinux did not become {wanted:?}: {ENFORCE} shows another mode");
    Ok(())
}

/// The label of what is at `path` (of the link itself where that is a link); `None` where there is none.
///
/// # Errors
/// When it cannot be read.
pub fn label(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut label = vec![0; LONGEST];
    match lgetxattr(path, LABEL, &mut label) {
        Ok(len) => {
            label.truncate(len);
            Ok(Some(label))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading the SELinux label of {}", path.display())),
    }
}

/// Gives what is at `path` a label.
///
/// # Errors
/// When the kernel does not take it.
pub fn set_label(path: &Path, label: &[u8]) -> Result<()> {
    lsetxattr(path, LABEL, label, XattrFlags::empty()).with_context(|| format!("labelling {} for SELinux", path.display()))
}

/// Gives what is at `path` the label of `like` or, when `like` does not exist, that of the nearest directory above it. Without labels there
/// is nothing to do.
///
/// # Errors
/// Those of [`label`] and [`set_label`].
pub fn label_like(like: &Path, path: &Path) -> Result<()> {
    let Some(like) = like.ancestors().find(|place| place.symlink_metadata().is_ok()) else { return Ok(()) };
    label(like)?.map_or(Ok(()), |label| set_label(path, &label))
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
