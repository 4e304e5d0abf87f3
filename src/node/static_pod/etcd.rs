//! etcd's static pod: the name of its member, and how it is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::manifest::{Container, Manifest, Variable};
use crate::error::{damaged, misfit};
use crate::node::Node;
use crate::node::profile::{Kind, Profile};

/// The name of the node's etcd member, which is also the node's name: OpenShift keeps it in the variable `NODE_<node>_ETCD_NAME`, kubeadm
/// in the flag `--name`. `None` when the manifest is not there.
///
/// # Errors
/// When the manifest cannot be read, or names no member or several.
pub fn etcd_member_name(node: &Node, profile: &Profile) -> Result<Option<String>> {
    let pod = profile.etcd();
    let Some(manifest) = Manifest::of(node, profile, pod)? else { return Ok(None) };
    let path = profile.manifest(pod);
    let container = manifest.container(pod.container);
    let container = container.ok_or_else(|| damaged(format!("{} has no container {}", path.display(), pod.container)))?;
    member_name(container)
        .map(|name| Some(name.to_owned()))
        .with_context(|| format!("looking for the name of the etcd member in {}", path.display()))
}

fn member_name(container: &Container) -> Result<&str> {
    let is_name = |name: &str| name.starts_with("NODE_") && name.ends_with("_ETCD_NAME");
    let names: Vec<&Variable> = container.env.iter().filter(|v| is_name(&v.name) && !v.value.is_empty()).collect();
    match names.as_slice() {
        [one] => Ok(&one.value),
        // With several control-plane nodes each has a variable; this node's script says which one it uses.
        [_, ..] => {
            let used = |v: &Variable| {
                container.command.iter().chain(&container.args).any(|part| part.contains(&format!("ETCD_NAME=${{{}}}", v.name)))
            };
            let mut used = names.iter().filter(|v| used(v));
            match (used.next(), used.next()) {
                (Some(one), None) => Ok(&one.value),
                _ => Err(misfit("it has the variables NODE_…_ETCD_NAME of several nodes")),
            }
        }
        [] => container
            .flag("--name")
            .filter(|name| !name.is_empty() && !name.contains('$'))
            .ok_or_else(|| damaged("it has neither a variable NODE_…_ETCD_NAME nor a flag --name")),
    }
}

/// How the node's own etcd is reached. The paths are the node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAccess {
    /// `https://127.0.0.1:2379`: an IP address, never a name that would have to be looked up.
    pub url: String,
    /// The name that etcd's certificate is checked for.
    pub server_name: String,
    /// CA bundle, PEM.
    pub ca: PathBuf,
    /// Client certificate, PEM.
    pub cert: PathBuf,
    /// Client key, PEM.
    pub key: PathBuf,
}

/// How the node's own etcd is reached: the port from the manifest, and the first certificates that are there.
///
/// # Errors
/// When the manifest cannot be read; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when it is not there or the node has no certificates
/// for a client of etcd.
pub fn etcd_access(node: &Node, profile: &Profile) -> Result<EtcdAccess> {
    let pod = profile.etcd();
    let manifest = Manifest::of(node, profile, pod)?;
    let path = profile.manifest(pod);
    let manifest = manifest.ok_or_else(|| misfit(format!("this node has no etcd: {} is missing", path.display())))?;
    let container = manifest.container(pod.container);
    let container = container.ok_or_else(|| damaged(format!("{} has no container {}", path.display(), pod.container)))?;
    let (pairs, bundles) = match profile.kind {
        Kind::OpenShift => (openshift_pairs(&manifest, container), openshift_bundles(&manifest, container)),
        Kind::Kubeadm => {
            (["healthcheck-client", "server"].map(kubeadm_pair).to_vec(), vec![PathBuf::from("/etc/kubernetes/pki/etcd/ca.crt")])
        }
    };
    let pair = pairs.iter().find(|(cert, key)| node.exists(cert) && node.exists(key));
    let (cert, key) = pair.ok_or_else(|| missing("certificate for a client of etcd", pairs.iter().map(|pair| &pair.0)))?.clone();
    let ca = bundles.iter().find(|path| node.exists(path)).ok_or_else(|| missing("CA bundle of etcd", bundles.iter()))?.clone();
    Ok(EtcdAccess { url: client_url(container), server_name: "localhost".to_owned(), ca, cert, key })
}

/// Where the API server keeps its objects in etcd, as a key begins: `/registry`. From the flag `--etcd-prefix` of its static pod; OpenShift's is in its
/// configuration instead, and always `kubernetes.io` (cluster-kube-apiserver-operator, `bindata/assets/config/defaultconfig.yaml`, 4.10 to 4.18).
///
/// # Errors
/// When the pod has no container of the API server's.
pub fn etcd_prefix(profile: &Profile, manifest: &Manifest) -> Result<String> {
    let pod = profile.api_server();
    let container = manifest.container(pod.container);
    let container = container.ok_or_else(|| damaged(format!("{} has no container {}", profile.manifest(pod).display(), pod.container)))?;
    let usual = match profile.kind {
        Kind::OpenShift => "kubernetes.io",
        Kind::Kubeadm => "/registry",
    };
    let prefix = container.flag("--etcd-prefix").filter(|prefix| !prefix.is_empty()).unwrap_or(usual).trim_matches('/');
    Ok(if prefix.is_empty() { String::new() } else { format!("/{prefix}") })
}

fn missing<'a>(what: &str, looked_for: impl Iterator<Item = &'a PathBuf>) -> anyhow::Error {
    let paths: Vec<String> = looked_for.map(|path| path.display().to_string()).collect();
    misfit(format!("this node has no {what}: looked for {}", paths.join(", ")))
}

const ALL_CERTS: &str = "/etc/kubernetes/static-pod-resources/etcd-certs/secrets/etcd-all-certs";
const CONFIG_MAPS: &str = "/etc/kubernetes/static-pod-resources/etcd-certs/configmaps";

/// First the pair that the pod itself uses as a client (`ETCDCTL_CERT`, `ETCDCTL_KEY`, seen in 4.13), then those in the usual places.
fn openshift_pairs(manifest: &Manifest, container: &Container) -> Vec<(PathBuf, PathBuf)> {
    let own = |name: &str| manifest.on_node(container, Path::new(container.variable(name)?));
    let mut pairs: Vec<_> = own("ETCDCTL_CERT").zip(own("ETCDCTL_KEY")).into_iter().collect();
    if let Ok(name) = member_name(container) {
        pairs.extend(["client", "peer", "serving"].map(|kind| {
            let base = format!("{ALL_CERTS}/etcd-{kind}-{name}");
            (PathBuf::from(format!("{base}.crt")), PathBuf::from(format!("{base}.key")))
        }));
    }
    pairs
}

fn openshift_bundles(manifest: &Manifest, container: &Container) -> Vec<PathBuf> {
    let own = container.variable("ETCDCTL_CACERT").and_then(|path| manifest.on_node(container, Path::new(path)));
    let usual = ["etcd-all-bundles/server-ca-bundle.crt", "etcd-serving-ca/ca-bundle.crt"].map(|name| Path::new(CONFIG_MAPS).join(name));
    own.into_iter().chain(usual).collect()
}

fn kubeadm_pair(name: &str) -> (PathBuf, PathBuf) {
    let base = format!("/etc/kubernetes/pki/etcd/{name}");
    (PathBuf::from(format!("{base}.crt")), PathBuf::from(format!("{base}.key")))
}

/// The URL of the first etcd listener on a loopback address of this machine, else of the first that has an address;
/// `https://127.0.0.1:2379` when there is none.
fn client_url(container: &Container) -> String {
    let listed = container.flag("--listen-client-urls").or_else(|| container.variable("ETCD_LISTEN_CLIENT_URLS")).unwrap_or_default();
    let reached: Vec<(IpAddr, u16)> = listed.split(',').filter_map(listener).collect();
    let best = reached.iter().find(|(address, _)| address.is_loopback()).or(reached.first());
    match best {
        Some((IpAddr::V6(address), port)) => format!("https://[{address}]:{port}"),
        Some((IpAddr::V4(address), port)) => format!("https://{address}:{port}"),
        None => "https://127.0.0.1:2379".to_owned(),
    }
}

/// The address and port at which this machine reaches a listener. Names, variables of a script and sockets give `None`.
fn listener(url: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = url.trim().strip_prefix("https://")?.trim_end_matches('/').rsplit_once(':')?;
    let address: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    let reached = match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    Some((reached, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use crate::node::static_pod::manifest::tests::node_with;

    fn text(name: &str) -> String {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/static-pods").join(name)).unwrap()
    }

    const KUBEADM_ETCD: &str = "apiVersion: v1
kind: Pod
metadata:
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command:
    - etcd
    - --advertise-client-urls=https://192.0.2.10:2379
    - --listen-client-urls=https://192.0.2.10:2379,https://127.0.0.1:2379
    - --listen-metrics-urls=http://127.0.0.1:2381
    - --name=node-a
    image: registry.k8s.io/etcd:3.6.4-0
    name: etcd
  volumes:
  - hostPath:
      path: /var/lib/etcd
      type: DirectoryOrCreate
    name: etcd-data
status: {}
";

    #[test]
    fn objects_are_where_the_api_servers_flag_says_or_where_they_usually_are() {
        let prefix = |profile, manifest: &str| etcd_prefix(profile, &Manifest::parse(manifest).unwrap());
        assert_eq!(prefix(&OPENSHIFT, &text("kube-apiserver-pod-rev8.yaml")).unwrap(), "/kubernetes.io");
        let pod = KUBEADM_ETCD.replace("name: etcd\n", "name: kube-apiserver\n");
        assert_eq!(prefix(&KUBEADM, &pod).unwrap(), "/registry");
        assert_eq!(prefix(&KUBEADM, &pod.replace("--name=node-a", "--etcd-prefix=/elsewhere/")).unwrap(), "/elsewhere");
        assert_eq!(prefix(&KUBEADM, &pod.replace("--name=node-a", "--etcd-prefix=/")).unwrap(), "");
        assert_eq!(exit_code(&prefix(&KUBEADM, KUBEADM_ETCD).unwrap_err()), 65);
    }

    #[test]
    fn the_member_is_named_by_a_variable_or_a_flag() {
        let (_dir, node) = node_with(&text("etcd-pod-rev3.yaml"), &[]);
        assert_eq!(etcd_member_name(&node, &OPENSHIFT).unwrap().as_deref(), Some("sno-node-0"));
        let (_dir, node) = node_with(KUBEADM_ETCD, &[]);
        assert_eq!(etcd_member_name(&node, &KUBEADM).unwrap().as_deref(), Some("node-a"));
        let (_dir, node) = node_with(&KUBEADM_ETCD.replace("--name=node-a", "--name="), &[]);
        assert_eq!(exit_code(&etcd_member_name(&node, &KUBEADM).unwrap_err()), 65, "no name is no name");
        let several = text("etcd-pod-rev3.yaml").replace(
            r#"{"name":"ETCD_STATIC_POD_VERSION""#,
            r#"{"name":"NODE_other_ETCD_NAME","value":"other"},{"name":"ETCD_STATIC_POD_VERSION""#,
        );
        let (_dir, node) = node_with(&several, &[]);
        assert_eq!(etcd_member_name(&node, &OPENSHIFT).unwrap().as_deref(), Some("sno-node-0"));
    }

    #[test]
    fn openshifts_etcd_is_reached_with_the_certificates_the_pod_itself_uses() {
        let certs = "/etc/kubernetes/static-pod-resources/etcd-certs";
        let (peer, client) = (
            format!("{certs}/secrets/etcd-all-certs/etcd-peer-sno-node-0"),
            format!("{certs}/secrets/etcd-all-certs/etcd-client-sno-node-0"),
        );
        let (serving_ca, all) = (
            format!("{certs}/configmaps/etcd-serving-ca/ca-bundle.crt"),
            format!("{certs}/configmaps/etcd-all-bundles/server-ca-bundle.crt"),
        );
        let pair = |base: &str| [format!("{base}.crt"), format!("{base}.key")];
        let files: Vec<String> = [pair(&peer), pair(&client)].concat().into_iter().chain([serving_ca.clone(), all.clone()]).collect();
        let (dir, node) = node_with(&text("etcd-pod-rev3.yaml"), &files.iter().map(String::as_str).collect::<Vec<_>>());
        let access = etcd_access(&node, &OPENSHIFT).unwrap();
        assert_eq!(access.url, "https://127.0.0.1:2379");
        assert_eq!(
            (&access.cert, &access.key, &access.ca),
            (&format!("{peer}.crt").into(), &format!("{peer}.key").into(), &serving_ca.clone().into())
        );
        // What is missing is skipped.
        let gone = |path: &str| std::fs::remove_file(dir.path().join(path.trim_start_matches('/'))).unwrap();
        gone(&format!("{peer}.key"));
        gone(&serving_ca);
        let access = etcd_access(&node, &OPENSHIFT).unwrap();
        assert_eq!((access.cert, access.ca), (format!("{client}.crt").into(), all.clone().into()));
        gone(&all);
        assert_eq!(exit_code(&etcd_access(&node, &OPENSHIFT).unwrap_err()), 78);
    }

    #[test]
    fn kubeadms_etcd_is_reached_by_its_loopback_listener() {
        let pki = "/etc/kubernetes/pki/etcd";
        let files = ["ca.crt", "server.crt", "server.key"].map(|name| format!("{pki}/{name}"));
        let (_dir, node) = node_with(KUBEADM_ETCD, &files.each_ref().map(String::as_str));
        let access = etcd_access(&node, &KUBEADM).unwrap();
        assert_eq!(access.url, "https://127.0.0.1:2379");
        assert_eq!(access.cert, Path::new(pki).join("server.crt"));
    }

    #[test]
    fn a_listener_is_reached_by_number() {
        let url = |flag: &str| {
            client_url(&Container {
                command: vec!["sh".into(), "-c".into(), format!("exec etcd \\\n {flag} \\\n --x")],
                ..Container::default()
            })
        };
        assert_eq!(url("--listen-client-urls=https://0.0.0.0:12379,unixs://${NODE_IP}:0"), "https://127.0.0.1:12379");
        assert_eq!(url("--listen-client-urls=https://[::]:2379"), "https://[::1]:2379");
        assert_eq!(url("--listen-client-urls https://${IP}:2379,https://192.0.2.1:2380"), "https://192.0.2.1:2380");
        assert_eq!(url("--other=1"), "https://127.0.0.1:2379");
    }
}
