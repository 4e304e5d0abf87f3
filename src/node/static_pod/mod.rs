//! Static pods: [`manifest`] (containers, images, and which revision is in use), [`etcd`] (what the node and its etcd member are called, and how that
//! etcd is reached), [`releases()`] (which versions they are of).

mod etcd;
mod manifest;
mod releases;

pub use etcd::{EtcdAccess, etcd_access, etcd_member_name, etcd_prefix};
pub use manifest::*;
pub use releases::releases;
