//! The releases that the static pods of kubeadm are of.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Manifest;
use crate::node::Node;
use crate::node::profile::Profile;

/// The releases of kubeadm's static pods but etcd's, by the tags of their images: more than one while `kubeadm upgrade` is at work, or where it stopped
/// half-way, because it replaces them one by one. None on OpenShift, whose operators say so themselves. Without a version in its tag, an image tells nothing;
/// nor does that of another container of the pod (a plugin for encryption, a proxy), which has a version of its own.
///
/// # Errors
/// When a manifest that is there cannot be read.
pub fn releases(node: &Node, profile: &Profile) -> Result<BTreeSet<String>> {
    let mut releases = BTreeSet::new();
    for pod in profile.static_pods.iter().filter(|pod| !profile.is_openshift() && **pod != *profile.etcd()) {
        let manifest = Manifest::of(node, profile, pod)?;
        let container = manifest.as_ref().and_then(|manifest| manifest.container(pod.container));
        releases.extend(container.and_then(|container| release(&container.image)));
    }
    Ok(releases)
}

/// The version in an image's tag; a digest may follow it.
fn release(image: &str) -> Option<String> {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    Some(format!("v{}", named.rsplit_once(":v")?.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::{KUBEADM, OPENSHIFT};

    #[test]
    fn a_control_plane_of_two_versions_is_between_releases() -> Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let put = |profile: &Profile, images: [&str; 3]| -> Result<()> {
            for (pod, image) in profile.static_pods[1..].iter().zip(images) {
                let path = node.path(profile.manifest(pod));
                std::fs::create_dir_all(path.parent().expect("a directory"))?;
                let container = pod.container;
                std::fs::write(
                    path,
                    format!("metadata: {{name: {container}}}\nspec: {{containers: [{{name: {container}, image: '{image}'}}]}}\n"),
                )?;
            }
            Ok(())
        };
        let of = |profile| releases(&node, profile).map(|all| all.into_iter().collect::<Vec<_>>());
        assert_eq!(of(&KUBEADM)?, [""; 0], "no static pods");
        put(&KUBEADM, ["k8s/kube-apiserver:v1.30.1", "k8s/kube-controller-manager:v1.30.1", "k8s/kube-scheduler:v1.30.1"])?;
        assert_eq!(of(&KUBEADM)?, ["v1.30.1"]);
        put(&KUBEADM, ["k8s/kube-apiserver:v1.30.2", "k8s/kube-controller-manager:v1.30.1", "k8s/kube-scheduler:v1.30.1"])?;
        assert_eq!(of(&KUBEADM)?, ["v1.30.1", "v1.30.2"]);
        assert_eq!(of(&OPENSHIFT)?, [""; 0], "its operators say so");
        put(&KUBEADM, ["site/apiserver@sha256:1", "site/manager:latest", "site/scheduler:v1.30.1"])?;
        assert_eq!(of(&KUBEADM)?, ["v1.30.1"], "two of them say nothing");
        put(
            &KUBEADM,
            ["k8s/kube-apiserver:v1.30.1@sha256:1", "k8s/kube-controller-manager:v1.30.1@sha256:2", "k8s/kube-scheduler:v1.30.1"],
        )?;
        assert_eq!(of(&KUBEADM)?, ["v1.30.1"], "each image has its own digest");
        let with_others = "metadata: {name: kube-apiserver}\nspec: {initContainers: [{name: copy, image: 'site/copy:v1.1.0'}], containers: [\
                           {name: kms, image: 'site/kms:v0.5.2'}, {name: kube-apiserver, image: 'k8s/kube-apiserver:v1.30.1'}]}\n";
        std::fs::write(node.path(KUBEADM.manifest(&KUBEADM.static_pods[1])), with_others)?;
        assert_eq!(of(&KUBEADM)?, ["v1.30.1"], "what else is in the pod has versions of its own");
        Ok(())
    }
}
