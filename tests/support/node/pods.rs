//! The static pods of the control plane, their images, and the pods of their operators.

use std::path::Path;

use serde_json::{Value, json};

use super::{Kind, Ports, layout::NODE_NAME};
use crate::place::{ApiPod, Image, PAUSE_IMAGE};

/// A release: which revision each static pod has, and which images.
#[derive(Debug, Clone, Copy)]
pub(super) struct Release {
    /// Revisions of etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
    pub(super) revisions: [u32; 4],
    /// What tells its images from another's.
    pub(super) tag: &'static str,
}

/// What the node is installed with.
pub(super) const BEFORE: Release = Release { revisions: [3, 8, 6, 5], tag: "4.16.4" };
/// What the upgrade brings.
pub(super) const AFTER: Release = Release { revisions: [4, 9, 7, 6], tag: "4.17.0" };

/// The components, in the order of [`Release::revisions`].
pub(super) const COMPONENTS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const OPERATOR: &str = "registry.example.com/release/operators";

/// The image of a component.
pub(super) fn image(component: &str, tag: &str) -> String {
    format!("registry.example.com/release/{component}:{tag}")
}

/// All images of both releases.
pub(super) fn images(etcd: &Path, etcd_after: &Path) -> Vec<Image> {
    let named = |name: String, program: Option<&Path>| {
        let size = 40_000_000 + name.len() as u64;
        let id = format!("{:064x}", name.bytes().fold(17_u128, |hash, byte| hash.wrapping_mul(1_000_003).wrapping_add(byte.into())));
        Image { name, id, size, program: program.map(Path::to_owned) }
    };
    let mut all = Vec::new();
    for (release, etcd) in [(BEFORE, etcd), (AFTER, etcd_after)] {
        for component in COMPONENTS {
            all.push(named(image(component, release.tag), Some(etcd).filter(|_| component == "etcd")));
        }
        all.push(named(format!("{OPERATOR}:{}", release.tag), None));
    }
    all.push(named("registry.example.com/release/kube-rbac-proxy:4.16.4".to_owned(), None));
    all.push(named(PAUSE_IMAGE.to_owned(), None));
    all
}

/// The pods that kubelet learns of from the API.
pub(super) fn operators() -> Vec<ApiPod> {
    let pods = [
        ("openshift-etcd-operator", "etcd-operator-6d5c8b7f9-x2x5k", "etcd-operator"),
        ("openshift-kube-apiserver-operator", "kube-apiserver-operator-7b9f8d6c5-q8w2r", "kube-apiserver-operator"),
        ("openshift-kube-controller-manager-operator", "kube-controller-manager-operator-5f7d-z7z1m", "kube-controller-manager-operator"),
        ("openshift-kube-scheduler-operator", "openshift-kube-scheduler-operator-84c6-p4n9t", "kube-scheduler-operator-container"),
    ];
    let pod = |(namespace, name, container): (&str, &str, &str)| ApiPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        container: container.to_owned(),
        image: format!("{OPERATOR}:{}", BEFORE.tag),
    };
    pods.map(pod).into()
}

/// Where the certificates of a kind are.
struct Certificates {
    etcd: String,
    etcd_ca: String,
    etcd_client: String,
    serving: String,
    recovery_serving: Option<String>,
    client_ca: String,
}

impl Certificates {
    fn of(kind: Kind, revision: u32) -> Self {
        let resources = "/etc/kubernetes/static-pod-resources";
        match kind {
            Kind::OpenShift => Self {
                etcd: format!("{resources}/etcd-certs/secrets/etcd-all-certs/etcd-%-{NODE_NAME}"),
                etcd_ca: format!("{resources}/etcd-certs/configmaps/etcd-all-bundles/server-ca-bundle.crt"),
                etcd_client: format!("{resources}/kube-apiserver-pod-{revision}/secrets/etcd-client/tls"),
                serving: format!("{resources}/kube-apiserver-certs/secrets/localhost-serving-cert-certkey/tls"),
                recovery_serving: Some(format!("{resources}/kube-apiserver-certs/secrets/localhost-recovery-serving-certkey/tls")),
                client_ca: format!("{resources}/kube-apiserver-certs/configmaps/client-ca/ca-bundle.crt"),
            },
            Kind::Kubeadm => Self {
                etcd: "/etc/kubernetes/pki/etcd/%".to_owned(),
                etcd_ca: "/etc/kubernetes/pki/etcd/ca.crt".to_owned(),
                etcd_client: "/etc/kubernetes/pki/apiserver-etcd-client".to_owned(),
                serving: "/etc/kubernetes/pki/apiserver".to_owned(),
                recovery_serving: None,
                client_ca: "/etc/kubernetes/pki/ca.crt".to_owned(),
            },
        }
    }

    fn etcd(&self, which: &str) -> String {
        self.etcd.replace('%', which)
    }
}

fn etcd_command(kind: Kind, ports: Ports) -> Vec<String> {
    let certs = Certificates::of(kind, 0);
    let server = if kind == Kind::OpenShift { "serving" } else { "server" };
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    let mut words = vec!["etcd".to_owned()];
    let mut flag = |name: &str, value: String| words.push(format!("--{name}={value}"));
    flag("name", NODE_NAME.to_owned());
    flag("data-dir", "/var/lib/etcd".to_owned());
    flag("listen-client-urls", url(ports.etcd));
    flag("advertise-client-urls", url(ports.etcd));
    flag("listen-peer-urls", url(ports.peer));
    flag("initial-advertise-peer-urls", url(ports.peer));
    flag("initial-cluster", format!("{NODE_NAME}={}", url(ports.peer)));
    flag("listen-metrics-urls", format!("http://127.0.0.1:{}", ports.metrics));
    flag("cert-file", certs.etcd(server) + ".crt");
    flag("key-file", certs.etcd(server) + ".key");
    flag("peer-cert-file", certs.etcd("peer") + ".crt");
    flag("peer-key-file", certs.etcd("peer") + ".key");
    flag("trusted-ca-file", certs.etcd_ca.clone());
    flag("peer-trusted-ca-file", certs.etcd_ca.clone());
    flag("client-cert-auth", "true".to_owned());
    flag("peer-client-cert-auth", "true".to_owned());
    flag("logger", "zap".to_owned());
    words
}

fn api_server_command(kind: Kind, ports: Ports, revision: u32) -> Vec<String> {
    let certs = Certificates::of(kind, revision);
    let mut words = vec!["kube-apiserver".to_owned()];
    let mut flag = |name: &str, value: String| words.push(format!("--{name}={value}"));
    flag("secure-port", ports.api.to_string());
    flag("etcd-servers", format!("https://localhost:{}", ports.etcd));
    flag("etcd-cafile", certs.etcd_ca);
    flag("etcd-certfile", format!("{}.crt", certs.etcd_client));
    flag("etcd-keyfile", format!("{}.key", certs.etcd_client));
    flag("etcd-prefix", if kind == Kind::OpenShift { "kubernetes.io" } else { "/registry" }.trim_start_matches('/').to_owned());
    flag("tls-cert-file", format!("{}.crt", certs.serving));
    flag("tls-private-key-file", format!("{}.key", certs.serving));
    if let Some(serving) = certs.recovery_serving {
        flag("tls-sni-cert-key", format!("{serving}.crt,{serving}.key"));
    }
    flag("client-ca-file", certs.client_ca);
    words
}

fn container(name: &str, image: &str, command: &[String]) -> Value {
    json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": command, "resources": {"requests": {"cpu": "10m"}}})
}

/// The manifest of a component (an index of [`COMPONENTS`]), as the kind's installer writes it.
pub(super) fn manifest(kind: Kind, ports: Ports, release: Release, component: usize) -> Value {
    let (name, revision) = (COMPONENTS[component], release.revisions[component]);
    let image = image(name, release.tag);
    let command = match name {
        "etcd" => etcd_command(kind, ports),
        "kube-apiserver" => api_server_command(kind, ports, revision),
        other => vec![other.to_owned(), format!("--kubeconfig=/etc/kubernetes/{other}.kubeconfig")],
    };
    let mut containers = vec![container(name, &image, &command)];
    let side = |side: &str| container(side, &image, &[side.to_owned()]);
    let mut labels = json!({"app": name, "component": name, "tier": "control-plane"});
    if kind == Kind::OpenShift {
        labels = json!({"app": name, "revision": revision.to_string()});
        match name {
            "etcd" => {
                let key = format!("NODE_{}_ETCD_NAME", NODE_NAME.replace(['-', '.'], "_"));
                containers[0]["env"] = json!([{"name": key, "value": NODE_NAME}]);
                containers.extend(["etcdctl", "etcd-metrics", "etcd-readyz"].map(side));
            }
            "kube-apiserver" => containers.extend(["kube-apiserver-cert-syncer", "kube-apiserver-check-endpoints"].map(side)),
            _ => {}
        }
    }
    // The scheduler's pod is named otherwise than its file.
    let pod = if kind == Kind::OpenShift && name == "kube-scheduler" { "openshift-kube-scheduler" } else { name };
    let namespace = if kind == Kind::OpenShift { format!("openshift-{name}") } else { "kube-system".to_owned() };
    let resource_dir = format!("/etc/kubernetes/static-pod-resources/{name}-pod-{revision}");
    let folder = if kind == Kind::OpenShift { resource_dir } else { "/etc/kubernetes/pki".to_owned() };
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": pod, "namespace": namespace, "creationTimestamp": null, "labels": labels},
        "spec": {
            "volumes": [{"name": "resource-dir", "hostPath": {"path": folder}}],
            "containers": containers,
            "hostNetwork": true,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 5,
            "tolerations": [{"operator": "Exists"}],
        },
        "status": {},
    })
}
