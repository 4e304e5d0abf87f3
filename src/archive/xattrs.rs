//! The extended attributes that an archive keeps, by their names.

use super::acl;
use crate::node::selinux;

/// Extended attributes: name and value, sorted by name. ACLs are among them, as the kernel's `system.posix_acl_*`.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The name of the attribute that holds the SELinux label.
pub(super) const LABEL: &[u8] = selinux::LABEL.as_bytes();

/// The attribute in which a restore notes what a directory was like: see [`noted`](super::restore).
pub(super) const NOTE: &[u8] = b"trusted.recovery.before";

/// True for the extended attributes that a backup keeps: users' and administrators' own, security's, and ACLs. The rest of `system.` and
/// the file systems' own namespaces are views of something else, as are the second names of ACLs on XFS; a restore's own note is only for
/// restores.
pub(super) fn is_kept(name: &[u8]) -> bool {
    let own = |namespace: &&[u8]| name.starts_with(namespace) && name.len() > namespace.len();
    [&b"user."[..], b"trusted.", b"security."].iter().any(own) && !acl::is_twin(name) && name != NOTE || acl::is_acl(name)
}
