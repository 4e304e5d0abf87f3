//! The manifests of the control plane's static pods, shaped as OpenShift's installers and kubeadm write them.

use serde_json::{Value, json};

use super::release::{ADDRESS, COMPONENTS, Kind, NODE, Release};

/// Where OpenShift keeps what its static pods read, on the node.
pub const RESOURCES: &str = "/etc/kubernetes/static-pod-resources";
/// Upstream's folder of certificates, on the node and in the pods.
pub const PKI: &str = "/etc/kubernetes/pki";

/// Where, in a pod of OpenShift, the certificates are that are renewed in place.
const CERTS: &str = "/etc/kubernetes/static-pod-certs";
/// etcd's data.
const DATA: &str = "/var/lib/etcd";

/// Where the pods find their certificates and keys, without `.crt` and `.key` where it is a pair.
struct Paths {
    etcd_server: String,
    etcd_peer: String,
    etcd_ca: String,
    etcd_client: String,
    serving: String,
    more_serving: Vec<String>,
    client_ca: String,
    kubelet_client: String,
    service_account: String,
    aggregator: String,
    aggregator_ca: String,
    signer: String,
    root_ca: String,
    kubeconfig: fn(&str) -> String,
}

impl Paths {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::OpenShift => {
                let etcd = |which: &str| format!("{CERTS}/secrets/etcd-all-certs/etcd-{which}-{NODE}");
                let cert = |name: &str| format!("{CERTS}/secrets/{name}/tls");
                Self {
                    etcd_server: etcd("serving"),
                    etcd_peer: etcd("peer"),
                    etcd_ca: format!("{CERTS}/configmaps/etcd-all-bundles/server-ca-bundle.crt"),
                    etcd_client: format!("{RESOURCES}/secrets/etcd-client/tls"),
                    serving: cert("service-network-serving-certkey"),
                    more_serving: ["localhost-serving-cert-certkey", "localhost-recovery-serving-certkey"].map(cert).into(),
                    client_ca: format!("{CERTS}/configmaps/client-ca/ca-bundle.crt"),
                    kubelet_client: format!("{RESOURCES}/secrets/kubelet-client/tls"),
                    service_account: format!("{RESOURCES}/secrets/bound-service-account-signing-key/service-account"),
                    aggregator: cert("aggregator-client"),
                    aggregator_ca: format!("{CERTS}/configmaps/aggregator-client-ca/ca-bundle.crt"),
                    signer: cert("csr-signer"),
                    root_ca: format!("{RESOURCES}/configmaps/serviceaccount-ca/ca-bundle.crt"),
                    kubeconfig: |component| match component {
                        "kube-scheduler" => format!("{RESOURCES}/configmaps/scheduler-kubeconfig/kubeconfig"),
                        _ => format!("{RESOURCES}/configmaps/controller-manager-kubeconfig/kubeconfig"),
                    },
                }
            }
            Kind::Kubeadm => {
                let pki = |name: &str| format!("{PKI}/{name}");
                Self {
                    etcd_server: pki("etcd/server"),
                    etcd_peer: pki("etcd/peer"),
                    etcd_ca: pki("etcd/ca.crt"),
                    etcd_client: pki("apiserver-etcd-client"),
                    serving: pki("apiserver"),
                    more_serving: Vec::new(),
                    client_ca: pki("ca.crt"),
                    kubelet_client: pki("apiserver-kubelet-client"),
                    service_account: pki("sa"),
                    aggregator: pki("front-proxy-client"),
                    aggregator_ca: pki("front-proxy-ca.crt"),
                    signer: pki("ca"),
                    root_ca: pki("ca.crt"),
                    kubeconfig: |component| match component {
                        "kube-scheduler" => "/etc/kubernetes/scheduler.conf".to_owned(),
                        _ => "/etc/kubernetes/controller-manager.conf".to_owned(),
                    },
                }
            }
        }
    }
}

fn etcd(paths: &Paths) -> Vec<String> {
    let (server, peer, ca) = (&paths.etcd_server, &paths.etcd_peer, &paths.etcd_ca);
    vec![
        "etcd".to_owned(),
        format!("--name={NODE}"),
        format!("--data-dir={DATA}"),
        "--listen-client-urls=https://0.0.0.0:2379".to_owned(),
        format!("--advertise-client-urls=https://{ADDRESS}:2379"),
        "--listen-peer-urls=https://0.0.0.0:2380".to_owned(),
        format!("--initial-advertise-peer-urls=https://{ADDRESS}:2380"),
        format!("--initial-cluster={NODE}=https://{ADDRESS}:2380"),
        "--listen-metrics-urls=https://0.0.0.0:9978".to_owned(),
        "--client-cert-auth=true".to_owned(),
        "--peer-client-cert-auth=true".to_owned(),
        format!("--cert-file={server}.crt"),
        format!("--key-file={server}.key"),
        format!("--trusted-ca-file={ca}"),
        format!("--peer-cert-file={peer}.crt"),
        format!("--peer-key-file={peer}.key"),
        format!("--peer-trusted-ca-file={ca}"),
        "--logger=zap".to_owned(),
    ]
}

fn api_server(kind: Kind, paths: &Paths) -> Vec<String> {
    let mut words = vec![
        "kube-apiserver".to_owned(),
        format!("--advertise-address={ADDRESS}"),
        "--secure-port=6443".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--etcd-servers=https://localhost:2379".to_owned(),
        format!("--etcd-prefix={}", if kind == Kind::OpenShift { "kubernetes.io" } else { "/registry" }),
        format!("--etcd-cafile={}", paths.etcd_ca),
        format!("--etcd-certfile={}.crt", paths.etcd_client),
        format!("--etcd-keyfile={}.key", paths.etcd_client),
        format!("--tls-cert-file={}.crt", paths.serving),
        format!("--tls-private-key-file={}.key", paths.serving),
        format!("--client-ca-file={}", paths.client_ca),
        format!("--kubelet-client-certificate={}.crt", paths.kubelet_client),
        format!("--kubelet-client-key={}.key", paths.kubelet_client),
        format!("--service-account-key-file={}.pub", paths.service_account),
        format!("--service-account-signing-key-file={}.key", paths.service_account),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=172.30.0.0/16".to_owned(),
        format!("--proxy-client-cert-file={}.crt", paths.aggregator),
        format!("--proxy-client-key-file={}.key", paths.aggregator),
        format!("--requestheader-client-ca-file={}", paths.aggregator_ca),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
    ];
    words.extend(paths.more_serving.iter().map(|pair| format!("--tls-sni-cert-key={pair}.crt,{pair}.key")));
    words
}

/// kube-controller-manager and kube-scheduler. Their leases are short, so that a drill need not wait for the one of the boot before.
fn client(component: &str, paths: &Paths) -> Vec<String> {
    let kubeconfig = (paths.kubeconfig)(component);
    let mut words = vec![
        component.to_owned(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--leader-elect-lease-duration=5s".to_owned(),
        "--leader-elect-renew-deadline=4s".to_owned(),
        "--leader-elect-retry-period=1s".to_owned(),
    ];
    if component == "kube-controller-manager" {
        words.extend([
            format!("--root-ca-file={}", paths.root_ca),
            format!("--service-account-private-key-file={}.key", paths.service_account),
            format!("--cluster-signing-cert-file={}.crt", paths.signer),
            format!("--cluster-signing-key-file={}.key", paths.signer),
            "--use-service-account-credentials=true".to_owned(),
        ]);
    }
    words
}

/// What of the node a pod sees: name, path on the node, path in the pod.
fn volumes(kind: Kind, component: &str, revision: u32) -> Vec<(&'static str, String, String)> {
    let mut volumes = match kind {
        Kind::OpenShift => vec![
            ("resource-dir", format!("{RESOURCES}/{component}-pod-{revision}"), RESOURCES.to_owned()),
            ("cert-dir", format!("{RESOURCES}/{component}-certs"), CERTS.to_owned()),
        ],
        Kind::Kubeadm => vec![("kubernetes", "/etc/kubernetes".to_owned(), "/etc/kubernetes".to_owned())],
    };
    if component == "etcd" {
        volumes.push(("data-dir", DATA.to_owned(), DATA.to_owned()));
    }
    // The API server of OpenShift has etcd's authority among the config maps of its own revision.
    volumes
}

/// The manifest of a component (an index of [`COMPONENTS`]) at a revision.
#[must_use]
pub fn manifest(kind: Kind, release: &Release, component: usize, revision: u32) -> Value {
    let name = COMPONENTS[component];
    let mut paths = Paths::of(kind);
    if kind == Kind::OpenShift && name == "kube-apiserver" {
        paths.etcd_ca = format!("{RESOURCES}/configmaps/etcd-serving-ca/ca-bundle.crt");
    }
    if kind == Kind::OpenShift && name == "kube-controller-manager" {
        paths.service_account = format!("{RESOURCES}/secrets/service-account-private-key/service-account");
    }
    let command = match name {
        "etcd" => etcd(&paths),
        "kube-apiserver" => api_server(kind, &paths),
        _ => client(name, &paths),
    };
    let volumes = volumes(kind, name, revision);
    let mut container = json!({
        "name": name, "image": release.image(name), "imagePullPolicy": "IfNotPresent", "command": command,
        "resources": {"requests": {"cpu": "10m", "memory": "50Mi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": volumes.iter().map(|(name, _, inside)| json!({"name": name, "mountPath": inside})).collect::<Vec<_>>(),
    });
    let mut labels = json!({"component": name, "tier": "control-plane"});
    if kind == Kind::OpenShift {
        labels = json!({"app": name, "revision": revision.to_string()});
    }
    if kind == Kind::OpenShift && name == "etcd" {
        let variable = |name: String, value: String| json!({"name": name, "value": value});
        container["env"] = json!([
            variable(format!("NODE_{}_ETCD_NAME", NODE.replace(['-', '.'], "_")), NODE.to_owned()),
            variable("ETCDCTL_CERT".to_owned(), format!("{}.crt", paths.etcd_peer)),
            variable("ETCDCTL_KEY".to_owned(), format!("{}.key", paths.etcd_peer)),
            variable("ETCDCTL_CACERT".to_owned(), paths.etcd_ca.clone()),
        ]);
    }
    if name == "kube-apiserver" {
        container["readinessProbe"] = json!({"httpGet": {"scheme": "HTTPS", "port": 6443, "path": "readyz"}, "periodSeconds": 2});
    }
    // OpenShift's scheduler is called otherwise than its file.
    let pod = if kind == Kind::OpenShift && name == "kube-scheduler" { "openshift-kube-scheduler" } else { name };
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": pod, "namespace": kind.namespace(name), "creationTimestamp": null, "labels": labels},
        "spec": {
            "volumes": volumes.iter().map(|(name, host, _)| json!({"name": name, "hostPath": {"path": host}})).collect::<Vec<_>>(),
            "containers": [container],
            "hostNetwork": true,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 5,
            "tolerations": [{"operator": "Exists"}],
        },
        "status": {},
    })
}
