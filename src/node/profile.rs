//! What kind of control plane a node has, as data: paths, certificates, static pods, and which Kubernetes steps apply.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::error::misfit;

/// The kinds of control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenShift: revisioned static pods, operators, machine-config-daemon.
    OpenShift,
    /// Upstream static pods as kubeadm lays them out.
    Kubeadm,
}

/// One static pod of the control plane.
#[derive(Debug, PartialEq, Eq)]
pub struct StaticPod {
    /// The container whose start is waited for; its name is also the prefix of the pod's revision directories (`etcd-pod-3`).
    pub container: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
    /// Its file in [`Profile::manifests`].
    pub manifest: &'static str,
}

/// A container of an operator whose start is waited for at the end of `resume`.
#[derive(Debug, PartialEq, Eq)]
pub struct OperatorContainer {
    /// Its name.
    pub container: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
}

/// A static-pod operator whose pods are redeployed, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Redeployed {
    /// Plural resource name in `operator.openshift.io/v1`; the object is `cluster`.
    pub resource: &'static str,
    /// The object's kind.
    pub kind: &'static str,
    /// The operator's container, one of [`Profile::operator_containers`]. Where it does not run, nobody redeploys.
    pub container: &'static str,
}

/// Paths and names of one kind of control plane. Every path is absolute on the node.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// Which kind.
    pub kind: Kind,
    /// The directory kubelet watches for static pods.
    pub manifests: &'static str,
    /// The parent of [`Profile::owned`].
    pub kubernetes: &'static str,
    /// The subtrees of [`Profile::kubernetes`] that `static-pods.tar.zst` owns whole and `etc.tar.zst` leaves out.
    pub owned: &'static [&'static str],
    /// The control plane's static pods, in the order in which they start.
    pub static_pods: &'static [StaticPod],
    /// Containers of operators whose start is waited for as well.
    pub operator_containers: &'static [OperatorContainer],
    /// Static-pod operators, in the order in which they are redeployed; empty where there are none.
    pub redeployed: &'static [Redeployed],
    /// Kubeconfigs with full rights on this node's API server, the best one first.
    pub kubeconfigs: &'static [&'static str],
    /// The bundle whose self-signed certificates identify the cluster.
    pub root_ca: &'static str,
    /// etcd's data directory.
    pub etcd_data: &'static str,
    /// The unit of the container runtime.
    pub runtime_unit: &'static str,
}

const fn pod(container: &'static str, namespace: &'static str, manifest: &'static str) -> StaticPod {
    StaticPod { container, namespace, manifest }
}

const fn operator(container: &'static str, namespace: &'static str) -> OperatorContainer {
    OperatorContainer { container, namespace }
}

const fn redeployed(resource: &'static str, kind: &'static str, container: &'static str) -> Redeployed {
    Redeployed { resource, kind, container }
}

/// Single-node OpenShift 4.10 and later.
pub static OPENSHIFT: Profile = Profile {
    kind: Kind::OpenShift,
    manifests: "/etc/kubernetes/manifests",
    kubernetes: "/etc/kubernetes",
    owned: &["manifests", "static-pod-resources"],
    static_pods: &[
        pod("etcd", "openshift-etcd", "etcd-pod.yaml"),
        pod("kube-apiserver", "openshift-kube-apiserver", "kube-apiserver-pod.yaml"),
        pod("kube-controller-manager", "openshift-kube-controller-manager", "kube-controller-manager-pod.yaml"),
        pod("kube-scheduler", "openshift-kube-scheduler", "kube-scheduler-pod.yaml"),
    ],
    operator_containers: &[
        operator("etcd-operator", "openshift-etcd-operator"),
        operator("kube-apiserver-operator", "openshift-kube-apiserver-operator"),
        operator("kube-controller-manager-operator", "openshift-kube-controller-manager-operator"),
        operator("kube-scheduler-operator-container", "openshift-kube-scheduler-operator"),
    ],
    redeployed: &[
        redeployed("etcds", "Etcd", "etcd-operator"),
        redeployed("kubeapiservers", "KubeAPIServer", "kube-apiserver-operator"),
        redeployed("kubecontrollermanagers", "KubeControllerManager", "kube-controller-manager-operator"),
        redeployed("kubeschedulers", "KubeScheduler", "kube-scheduler-operator-container"),
    ],
    kubeconfigs: &[
        "/etc/kubernetes/static-pod-resources/kube-apiserver-certs/secrets/node-kubeconfigs/localhost-recovery.kubeconfig",
        "/etc/kubernetes/static-pod-resources/kube-apiserver-certs/secrets/node-kubeconfigs/localhost.kubeconfig",
    ],
    root_ca: "/etc/kubernetes/kubelet-ca.crt",
    etcd_data: "/var/lib/etcd",
    runtime_unit: "crio.service",
};

/// Upstream Kubernetes, one node, as `kubeadm init` leaves it.
pub static KUBEADM: Profile = Profile {
    kind: Kind::Kubeadm,
    manifests: "/etc/kubernetes/manifests",
    kubernetes: "/etc/kubernetes",
    owned: &["manifests", "pki"],
    static_pods: &[
        pod("etcd", "kube-system", "etcd.yaml"),
        pod("kube-apiserver", "kube-system", "kube-apiserver.yaml"),
        pod("kube-controller-manager", "kube-system", "kube-controller-manager.yaml"),
        pod("kube-scheduler", "kube-system", "kube-scheduler.yaml"),
    ],
    operator_containers: &[],
    redeployed: &[],
    kubeconfigs: &["/etc/kubernetes/super-admin.conf", "/etc/kubernetes/admin.conf"],
    root_ca: "/etc/kubernetes/pki/ca.crt",
    etcd_data: "/var/lib/etcd",
    runtime_unit: "containerd.service",
};

/// Where machine-config-daemon keeps the configuration the node is at; its presence makes a node OpenShift's.
pub const CURRENT_CONFIG: &str = "/etc/machine-config-daemon/currentconfig";

impl Kind {
    /// The profile of this kind.
    #[must_use]
    pub fn profile(self) -> &'static Profile {
        match self {
            Self::OpenShift => &OPENSHIFT,
            Self::Kubeadm => &KUBEADM,
        }
    }
}

impl Profile {
    /// True for OpenShift, with its operators.
    #[must_use]
    pub fn is_openshift(&self) -> bool {
        self.kind == Kind::OpenShift
    }

    /// The profile of a node, from what is on its disk.
    ///
    /// # Errors
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when it looks like neither kind.
    pub fn of(node: &Node) -> anyhow::Result<&'static Self> {
        if node.exists(CURRENT_CONFIG) || node.exists("/etc/kubernetes/static-pod-resources") {
            return Ok(&OPENSHIFT);
        }
        if node.exists("/etc/kubernetes/pki") || node.exists("/etc/kubernetes/admin.conf") {
            return Ok(&KUBEADM);
        }
        Err(misfit(format!(
            "this is neither an OpenShift node ({CURRENT_CONFIG}) nor one made by kubeadm (/etc/kubernetes/pki): there is no control plane \
             here to back up or recover"
        )))
    }

    /// The manifest of a static pod, on the node.
    #[must_use]
    pub fn manifest(&self, pod: &StaticPod) -> PathBuf {
        PathBuf::from(self.manifests).join(pod.manifest)
    }

    /// etcd's static pod: the first to be started.
    #[must_use]
    pub fn etcd(&self) -> &'static StaticPod {
        &self.kind.profile().static_pods[0]
    }

    /// The API server's static pod: the second.
    #[must_use]
    pub fn api_server(&self) -> &'static StaticPod {
        &self.kind.profile().static_pods[1]
    }
}
