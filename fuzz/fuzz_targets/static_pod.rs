//! Manifests of static pods, and how etcd is reached by its own.
#![no_main]

use std::net::SocketAddr;

use libfuzzer_sys::fuzz_target;
use recovery::node::Node;
use recovery::node::profile::{KUBEADM, OPENSHIFT};
use recovery::node::static_pod::{Manifest, etcd_access, etcd_member_name, revision_in_use};
use recovery_fuzz::{directory, put, refused};

/// Where the seeds' own certificates are.
const CERTIFICATES: [&str; 6] = [
    "etc/kubernetes/pki/etcd/ca.crt",
    "etc/kubernetes/pki/etcd/server.crt",
    "etc/kubernetes/pki/etcd/server.key",
    "etc/kubernetes/static-pod-resources/etcd-certs/configmaps/etcd-serving-ca/ca-bundle.crt",
    "etc/kubernetes/static-pod-resources/etcd-certs/secrets/etcd-all-certs/etcd-serving-sno.crt",
    "etc/kubernetes/static-pod-resources/etcd-certs/secrets/etcd-all-certs/etcd-serving-sno.key",
];

fuzz_target!(|text: &[u8]| {
    let dir = directory();
    let node = Node::at(dir.path(), None);
    for profile in [&OPENSHIFT, &KUBEADM] {
        let path = profile.manifest(profile.etcd());
        let file = dir.path().join(path.strip_prefix("/").expect("a path of the node"));
        put(&file, text);
        match Manifest::read(&node, &path) {
            Ok(manifest) => {
                assert!(!manifest.metadata.name.is_empty() && !manifest.spec.containers.is_empty());
                let images = manifest.images();
                assert!(images.is_sorted_by(|a, b| a < b) && !images.contains(&""));
                assert_eq!(revision_in_use(&node, profile, profile.etcd()).expect("the same manifest"), manifest.revision());
            }
            Err(error) => return refused(&error),
        }
        match etcd_member_name(&node, profile) {
            Ok(name) => assert!(!name.expect("the manifest is there").is_empty()),
            Err(error) => refused(&error),
        }
        CERTIFICATES.iter().for_each(|path| put(&dir.path().join(path), b""));
        match etcd_access(&node, profile) {
            Ok(access) => {
                // A number, never a name that would have to be looked up.
                assert!(access.url.strip_prefix("https://").is_some_and(|at| at.parse::<SocketAddr>().is_ok()), "{}", access.url);
                assert!(node.exists(&access.ca) && node.exists(&access.cert) && node.exists(&access.key));
            }
            Err(error) => refused(&error),
        }
    }
});
