//! A backup's manifest with nothing special in it, for tests that put backups in place by hand.

use std::collections::BTreeMap;

use recovery::backup::manifest::{Etcd, Manifest, VERSION};
use recovery::node::{identity::Identity, profile::Kind};

/// Of a backup without files, taken at the beginning of 2026.
#[must_use]
pub fn plain(id: &str, sequence: u64) -> Manifest {
    Manifest {
        version: VERSION,
        sequence,
        id: id.to_owned(),
        name: None,
        labels: BTreeMap::new(),
        asked_by: "user/0".to_owned(),
        taken: jiff::Timestamp::from_second(1_767_225_600).unwrap_or_default(),
        agent: "0.1.0".to_owned(),
        profile: Kind::OpenShift,
        identity: Identity { machine_id: "m".to_owned(), node_name: "sno".to_owned(), root_ca: vec!["ca".to_owned()] },
        boot_id: "b".to_owned(),
        cluster: None,
        deployment: None,
        etcd: Etcd { version: None, revision: 7, keys: None, bytes: 1 },
        operators: Vec::new(),
        images: Vec::new(),
        certificates_expire: None,
        etc_excludes: Vec::new(),
        managed_files: Vec::new(),
        runtime_unit: None,
        operator_containers: None,
        sizes: BTreeMap::new(),
    }
}
