//! The node's kubeconfig. Secrets in it are not in what a refusal says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::kube::Client;
use recovery::node::Node;
use recovery::node::profile::OPENSHIFT;
use recovery_fuzz::{directory, put, refused};

/// The token in the seeds, and the beginning of the key in them.
const SECRETS: [&str; 2] = ["sha256~gC1vJtQb0w", "LS0tLS1CRUdJTiBFQyBQUklWQVRF"];

fuzz_target!(|text: &[u8]| {
    let dir = directory();
    put(&dir.path().join(OPENSHIFT.kubeconfigs[0].trim_start_matches('/')), text);
    if let Err(error) = Client::of(&Node::at(dir.path(), None), &OPENSHIFT) {
        refused(&error);
        let said = format!("{error:#}");
        assert!(SECRETS.iter().all(|secret| !said.contains(secret)), "a secret is shown: {said}");
    }
});
