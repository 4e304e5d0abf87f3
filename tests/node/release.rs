//! The two releases that a node knows, and the kinds of control plane it can have: names, revisions, images.

use std::path::{Path, PathBuf};

use super::image::Image;

/// The node's name; the captured objects in `tests/fixtures/oc` have the same.
pub const NODE: &str = "sno-node-0";
/// Its address, on a bridge of its own network namespace.
pub const ADDRESS: &str = "192.0.2.10";
/// The static pods, in the order of [`Release::revisions`].
pub const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// What holds the namespaces of every pod.
const PAUSE: &str = "registry.test/release/pause:3.10";

/// A release of the platform.
#[derive(Debug, PartialEq, Eq)]
pub struct Release {
    /// Its version, which is also the tag of its images.
    pub version: &'static str,
    /// The etcd in it.
    pub etcd: &'static str,
    /// The revision at which its installer leaves each component.
    pub revisions: [u32; 4],
}

/// What a node is installed with.
pub const BEFORE: Release = Release { version: "4.16.4", etcd: "3.5.21", revisions: [3, 8, 6, 5] };
/// What the upgrade brings: another etcd, whose data the one before cannot read any more.
pub const AFTER: Release = Release { version: "4.17.0", etcd: "3.6.8", revisions: [4, 9, 7, 6] };

impl Release {
    /// The image of a component or an operator. No such registry exists: nothing can be pulled.
    #[must_use]
    pub fn image(&self, name: &str) -> String {
        format!("registry.test/release/{name}:{}", self.version)
    }

    /// The ostree branch of its operating system.
    #[must_use]
    pub fn branch(&self) -> String {
        format!("os/{}", self.version)
    }
}

/// The kinds of control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// As on single-node OpenShift, with operators.
    OpenShift,
    /// As kubeadm lays it out, without any.
    Kubeadm,
}

impl Kind {
    /// Its name in options and paths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenShift => "openshift",
            Self::Kubeadm => "kubeadm",
        }
    }

    /// The administrator's kubeconfig on the node.
    #[must_use]
    pub fn kubeconfig(self) -> &'static str {
        match self {
            Self::OpenShift => "/etc/kubernetes/static-pod-resources/kube-apiserver-certs/secrets/node-kubeconfigs/localhost.kubeconfig",
            Self::Kubeadm => "/etc/kubernetes/admin.conf",
        }
    }

    /// The namespace of a static pod.
    #[must_use]
    pub fn namespace(self, component: &str) -> String {
        match self {
            Self::OpenShift => format!("openshift-{component}"),
            Self::Kubeadm => "kube-system".to_owned(),
        }
    }

    /// Where kubelet looks for a static pod.
    #[must_use]
    pub fn manifest(self, component: &str) -> String {
        match self {
            Self::OpenShift => format!("/etc/kubernetes/manifests/{component}-pod.yaml"),
            Self::Kubeadm => format!("/etc/kubernetes/manifests/{component}.yaml"),
        }
    }
}

/// Where programs were built.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `tests/node/tools/build.sh`.
    pub node: PathBuf,
    /// `tests/etcd-tools/build.sh`.
    pub etcd: PathBuf,
    /// The operators of this folder.
    pub operator: PathBuf,
}

/// Every image of both releases. Only etcd differs between them.
#[must_use]
pub fn images(programs: &Programs) -> Vec<Image> {
    let kubernetes = |name: &str| programs.node.join("kubernetes").join(name);
    let etcd = |release: &Release| {
        let folder = programs.etcd.join(release.etcd);
        Image { names: vec![release.image("etcd")], programs: vec![folder.join("etcd"), folder.join("etcdctl")] }
    };
    let both = |name: &str, program: &Path| Image {
        names: [BEFORE, AFTER].map(|release| release.image(name)).into(),
        programs: vec![program.to_owned()],
    };
    let mut images = vec![
        Image {
            names: vec![PAUSE.to_owned(), BEFORE.image("pause"), AFTER.image("pause")],
            programs: vec![programs.node.join("pause/pause")],
        },
        etcd(&BEFORE),
        etcd(&AFTER),
        both("operator", &programs.operator),
    ];
    images.extend(COMPONENTS[1..].iter().map(|name| both(name, &kubernetes(name))));
    images
}
