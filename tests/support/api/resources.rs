//! The resources that are served, and where a real API server keeps them in etcd.

/// One resource.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// API group; empty for the core group.
    pub(crate) group: &'static str,
    /// Version in that group.
    pub(crate) version: &'static str,
    /// Plural name, as in paths.
    pub(crate) plural: &'static str,
    /// Kind.
    pub(crate) kind: &'static str,
    /// True when its objects are in namespaces.
    pub(crate) namespaced: bool,
    /// Its directory in etcd, below the prefix.
    directory: &'static str,
}

const fn core(plural: &'static str, kind: &'static str, namespaced: bool, directory: &'static str) -> Resource {
    Resource { group: "", version: "v1", plural, kind, namespaced, directory }
}

const fn cluster(group: &'static str, plural: &'static str, kind: &'static str, directory: &'static str) -> Resource {
    Resource { group, version: "v1", plural, kind, namespaced: false, directory }
}

/// All of them.
pub(crate) static RESOURCES: &[Resource] = &[
    core("namespaces", "Namespace", false, "namespaces"),
    core("nodes", "Node", false, "minions"),
    core("pods", "Pod", true, "pods"),
    core("configmaps", "ConfigMap", true, "configmaps"),
    core("endpoints", "Endpoints", true, "services/endpoints"),
    Resource { group: "apps", version: "v1", plural: "deployments", kind: "Deployment", namespaced: true, directory: "deployments" },
    cluster("certificates.k8s.io", "certificatesigningrequests", "CertificateSigningRequest", "certificatesigningrequests"),
    cluster(
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
    cluster(
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
    ),
    cluster("config.openshift.io", "clusterversions", "ClusterVersion", "config.openshift.io/clusterversions"),
    cluster("config.openshift.io", "clusteroperators", "ClusterOperator", "config.openshift.io/clusteroperators"),
    cluster("operator.openshift.io", "etcds", "Etcd", "operator.openshift.io/etcds"),
    cluster("operator.openshift.io", "kubeapiservers", "KubeAPIServer", "operator.openshift.io/kubeapiservers"),
    cluster("operator.openshift.io", "kubecontrollermanagers", "KubeControllerManager", "operator.openshift.io/kubecontrollermanagers"),
    cluster("operator.openshift.io", "kubeschedulers", "KubeScheduler", "operator.openshift.io/kubeschedulers"),
    cluster(
        "machineconfiguration.openshift.io",
        "machineconfigpools",
        "MachineConfigPool",
        "machineconfiguration.openshift.io/machineconfigpools",
    ),
    Resource {
        group: "k0rdent.mirantis.com",
        version: "v1beta1",
        plural: "managements",
        kind: "Management",
        namespaced: false,
        directory: "k0rdent.mirantis.com/managements",
    },
];

impl Resource {
    /// The one at `/apis/<group>/<version>/<plural>`.
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// `v1`, `operator.openshift.io/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `etcds.operator.openshift.io`, as messages name it.
    pub(crate) fn full_name(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// True for OpenShift's, which are custom resources.
    pub(crate) fn is_custom(&self) -> bool {
        self.group.ends_with("openshift.io")
    }

    /// Where its objects are, one namespace's or all.
    pub(crate) fn below(&self, namespace: Option<&str>) -> String {
        namespace.map_or_else(|| format!("{}/", self.directory), |namespace| format!("{}/{namespace}/", self.directory))
    }

    /// Where one object is.
    pub(crate) fn key(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}{name}", self.below(namespace))
    }
}
