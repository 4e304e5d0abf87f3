//! What `/etc/kubernetes` and `/var/lib/kubelet` hold when a node has been installed: authorities, certificates, kubeconfigs, static pods.

use anyhow::{Context, Result};
use rcgen::KeyPair;
use testing::pki::{Authority, Pair, kubeconfig};

use super::pods::{PKI, RESOURCES, manifest};
use super::release::{ADDRESS, BEFORE, COMPONENTS, Kind, NODE};
use super::root::Root;

/// Who asks for a kubelet's first certificate: on OpenShift a service account, upstream a member of this group.
const BOOTSTRAPPER: (&str, &str) = (
    "system:serviceaccount:openshift-machine-config-operator:node-bootstrapper",
    "system:serviceaccounts:openshift-machine-config-operator",
);
const BOOTSTRAPPERS: (&str, &str) = ("system:bootstrap:node", "system:bootstrappers");
/// By name where a kubeconfig says `localhost`, as OpenShift's do.
const SERVER: &str = "https://localhost:6443";
/// What the API server and etcd are called.
const NAMES: [&str; 9] =
    ["localhost", "127.0.0.1", "::1", NODE, ADDRESS, "172.30.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// The authorities of a cluster, and what signs its tokens.
struct Authorities {
    etcd: Authority,
    kube: Authority,
    aggregator: Authority,
    tokens: KeyPair,
}

impl Authorities {
    fn new(kind: Kind) -> Result<Self> {
        let names = match kind {
            Kind::OpenShift => ["etcd-signer", "kube-apiserver-lb-signer", "aggregator-signer"],
            Kind::Kubeadm => ["etcd-ca", "kubernetes", "front-proxy-ca"],
        };
        let [etcd, kube, aggregator] = names.map(Authority::new);
        Ok(Self { etcd: etcd?, kube: kube?, aggregator: aggregator?, tokens: KeyPair::generate()? })
    }

    fn user(&self, name: &str, group: Option<&str>) -> Result<Pair> {
        self.kube.issue(name, group, &[])
    }

    fn kubeconfig(&self, user: &Pair, more: &str) -> String {
        kubeconfig(SERVER, &self.kube, user, more)
    }
}

/// Writes all of it into the root of a node that has never booted.
pub fn lay_out(root: &Root, kind: Kind) -> Result<()> {
    let all = Authorities::new(kind)?;
    match kind {
        Kind::OpenShift => openshift(root, &all),
        Kind::Kubeadm => kubeadm(root, &all),
    }
    .with_context(|| format!("laying out a control plane in {}", root.path("/").display()))
}

fn pair(root: &Root, stem: &str, pair: &Pair) -> Result<()> {
    root.put(&format!("{stem}.crt"), pair.cert.as_bytes(), 0o600)?;
    root.put(&format!("{stem}.key"), pair.key.as_bytes(), 0o600)
}

fn tokens(root: &Root, stem: &str, all: &Authorities) -> Result<()> {
    root.put(&format!("{stem}.key"), all.tokens.serialize_pem().as_bytes(), 0o600)?;
    root.put(&format!("{stem}.pub"), all.tokens.public_key_pem().as_bytes(), 0o644)
}

fn openshift(root: &Root, all: &Authorities) -> Result<()> {
    let text = |path: &str, text: &str, mode: u32| root.put(path, text.as_bytes(), mode);
    text("/etc/kubernetes/kubelet-ca.crt", &all.kube.pem(), 0o644)?;
    let (name, group) = BOOTSTRAPPER;
    text("/etc/kubernetes/kubeconfig", &all.kubeconfig(&all.user(name, Some(group))?, ""), 0o600)?;

    let certs = format!("{RESOURCES}/etcd-certs");
    for which in ["serving", "peer", "serving-metrics"] {
        let issued = all.etcd.issue(&format!("system:etcd-{which}:{NODE}"), Some("system:etcd-servers"), &NAMES)?;
        pair(root, &format!("{certs}/secrets/etcd-all-certs/etcd-{which}-{NODE}"), &issued)?;
    }
    text(&format!("{certs}/configmaps/etcd-all-bundles/server-ca-bundle.crt"), &all.etcd.pem(), 0o644)?;

    let certs = format!("{RESOURCES}/kube-apiserver-certs");
    let recovery: &[&str] = &["localhost-recovery"];
    for (folder, names) in [
        ("service-network-serving-certkey", &NAMES[..]),
        ("localhost-serving-cert-certkey", &NAMES[..2]),
        ("localhost-recovery-serving-certkey", recovery),
    ] {
        pair(root, &format!("{certs}/secrets/{folder}/tls"), &all.kube.issue(folder, None, names)?)?;
    }
    pair(root, &format!("{certs}/secrets/aggregator-client/tls"), &all.aggregator.issue("front-proxy-client", None, &[])?)?;
    text(&format!("{certs}/configmaps/aggregator-client-ca/ca-bundle.crt"), &all.aggregator.pem(), 0o644)?;
    text(&format!("{certs}/configmaps/client-ca/ca-bundle.crt"), &all.kube.pem(), 0o644)?;
    let admin = all.user("system:admin", Some("system:masters"))?;
    for (name, more) in [("localhost", ""), ("localhost-recovery", "    tls-server-name: localhost-recovery\n")] {
        text(&format!("{certs}/secrets/node-kubeconfigs/{name}.kubeconfig"), &all.kubeconfig(&admin, more), 0o600)?;
    }
    let signer = Pair { cert: all.kube.pem(), key: all.kube.issuer.key().serialize_pem() };
    pair(root, &format!("{RESOURCES}/kube-controller-manager-certs/secrets/csr-signer/tls"), &signer)?;
    std::fs::create_dir_all(root.path(&format!("{RESOURCES}/kube-scheduler-certs")))?;

    for (component, name) in COMPONENTS.into_iter().enumerate() {
        let revision = BEFORE.revisions[component];
        let folder = format!("{RESOURCES}/{name}-pod-{revision}");
        text(&format!("{folder}/configmaps/config/config.yaml"), &format!("component: {name}\n"), 0o644)?;
        match name {
            "kube-apiserver" => {
                pair(root, &format!("{folder}/secrets/etcd-client/tls"), &all.etcd.issue("etcd-client", None, &[])?)?;
                text(&format!("{folder}/configmaps/etcd-serving-ca/ca-bundle.crt"), &all.etcd.pem(), 0o644)?;
                let kubelet = all.user("system:kube-apiserver", Some("system:masters"))?;
                pair(root, &format!("{folder}/secrets/kubelet-client/tls"), &kubelet)?;
                tokens(root, &format!("{folder}/secrets/bound-service-account-signing-key/service-account"), all)?;
            }
            "kube-controller-manager" => {
                let user = all.user("system:kube-controller-manager", None)?;
                text(&format!("{folder}/configmaps/controller-manager-kubeconfig/kubeconfig"), &all.kubeconfig(&user, ""), 0o600)?;
                text(&format!("{folder}/configmaps/serviceaccount-ca/ca-bundle.crt"), &all.kube.pem(), 0o644)?;
                tokens(root, &format!("{folder}/secrets/service-account-private-key/service-account"), all)?;
            }
            "kube-scheduler" => {
                let user = all.user("system:kube-scheduler", None)?;
                text(&format!("{folder}/configmaps/scheduler-kubeconfig/kubeconfig"), &all.kubeconfig(&user, ""), 0o600)?;
            }
            _ => {}
        }
        let pod = manifest(Kind::OpenShift, &BEFORE, component, revision).to_string();
        text(&format!("{folder}/{name}-pod.yaml"), &pod, 0o644)?;
        text(&Kind::OpenShift.manifest(name), &pod, 0o644)?;
    }
    Ok(())
}

fn kubeadm(root: &Root, all: &Authorities) -> Result<()> {
    let text = |path: &str, text: &str, mode: u32| root.put(path, text.as_bytes(), mode);
    let authorities = [("ca", &all.kube), ("etcd/ca", &all.etcd), ("front-proxy-ca", &all.aggregator)];
    for (name, authority) in authorities {
        pair(root, &format!("{PKI}/{name}"), &Pair { cert: authority.pem(), key: authority.issuer.key().serialize_pem() })?;
    }
    for name in ["server", "peer", "healthcheck-client"] {
        pair(root, &format!("{PKI}/etcd/{name}"), &all.etcd.issue(name, Some("system:masters"), &NAMES)?)?;
    }
    pair(root, &format!("{PKI}/apiserver-etcd-client"), &all.etcd.issue("kube-apiserver-etcd-client", None, &[])?)?;
    pair(root, &format!("{PKI}/apiserver"), &all.kube.issue("kube-apiserver", None, &NAMES)?)?;
    pair(root, &format!("{PKI}/apiserver-kubelet-client"), &all.user("kube-apiserver-kubelet-client", Some("system:masters"))?)?;
    pair(root, &format!("{PKI}/front-proxy-client"), &all.aggregator.issue("front-proxy-client", None, &[])?)?;
    tokens(root, &format!("{PKI}/sa"), all)?;
    let users = [
        ("admin", "kubernetes-admin", Some("system:masters")),
        ("super-admin", "kubernetes-super-admin", Some("system:masters")),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("bootstrap-kubelet", BOOTSTRAPPERS.0, Some(BOOTSTRAPPERS.1)),
    ];
    for (file, name, group) in users {
        text(&format!("/etc/kubernetes/{file}.conf"), &all.kubeconfig(&all.user(name, group)?, ""), 0o600)?;
    }
    for (component, name) in COMPONENTS.into_iter().enumerate() {
        let pod = manifest(Kind::Kubeadm, &BEFORE, component, 0);
        text(&Kind::Kubeadm.manifest(name), &serde_saphyr::to_string(&pod).context("writing YAML")?, 0o600)?;
    }
    Ok(())
}
