//! A backup's manifest with nothing special in it, and files to go with it, for tests that put backups in place by hand.

use std::collections::BTreeMap;

use recovery::archive::{Selection, pack};
use recovery::backup::asked_by::AskedBy;
use recovery::backup::manifest::{Etcd, Manifest};
use recovery::backup::{ETCD, STATIC_PODS};
use recovery::node::{identity::Identity, profile::Kind};
use sha2::{Digest, Sha256};

/// Of a backup without files, taken at the beginning of 2026.
#[must_use]
pub fn plain(id: &str, sequence: u64) -> Manifest {
    Manifest {
        sequence,
        id: id.to_owned(),
        name: None,
        labels: BTreeMap::new(),
        asked_by: AskedBy::User(0),
        taken: jiff::Timestamp::from_second(1_767_225_600).unwrap_or_default(),
        seconds: None,
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
        management: None,
        warnings: Vec::new(),
        workloads: None,
        sizes: BTreeMap::new(),
    }
}

/// The file `name` of a backup of [`plain`]'s profile as a recovery takes it, with as little as possible in it.
///
/// # Panics
/// When a temporary directory cannot be written to.
#[must_use]
pub fn part(name: &str) -> Vec<u8> {
    if name == ETCD {
        return snapshot();
    }
    let made = || -> anyhow::Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let tree = dir.path().join("tree/manifests");
        std::fs::create_dir_all(&tree)?;
        if name == STATIC_PODS {
            for pod in ["etcd-pod.yaml", "kube-apiserver-pod.yaml"] {
                std::fs::write(tree.join(pod), pod)?;
            }
        }
        let file = dir.path().join(name);
        pack(&dir.path().join("tree"), &file, &Selection::all(), None, &|_| ())?;
        Ok(std::fs::read(&file)?)
    };
    made().unwrap_or_else(|error| panic!("making {name}: {error:#}"))
}

/// What is a whole snapshot by its beginning and its SHA-256, and holds nothing that etcd could be restored from: a meta page of bbolt
/// (`internal/common/meta.go`), and an empty page.
#[must_use]
pub fn snapshot() -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [0xED0C_DAED_u32, 2, 4096, 0] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    for number in [3_u64, 0, u64::MAX, 4, 1] {
        meta.extend_from_slice(&number.to_le_bytes());
    }
    let sum = meta.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3));
    meta.extend_from_slice(&sum.to_le_bytes());
    let mut bytes = vec![0; 4 * 4096];
    bytes[16..16 + meta.len()].copy_from_slice(&meta);
    let sha256 = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sha256);
    bytes
}
