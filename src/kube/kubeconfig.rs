//! A kubeconfig of the node, and how to reach its server.
//!
//! The agent runs on the node whose API server this is. So a server that is given by name (`localhost`, or the cluster's own `api-int.…`)
//! is reached at the loopback address, and the name is used only to check its certificate: nothing is looked up, and no proxy is used,
//! whatever the environment or the file says.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ::kube::Config;
use ::kube::config::{AuthInfo, Cluster, Kubeconfig};
use anyhow::{Context, Result, anyhow};
use data_encoding::BASE64;
use x509_parser::pem::Pem;

use crate::error::misfit;
use crate::node::Node;
use crate::node::profile::Profile;
use crate::node::yaml;

/// How to reach the API server, and with which credentials.
pub(super) struct Access {
    /// The node's path of the kubeconfig.
    pub(super) file: PathBuf,
    /// The server's URL, as the file has it.
    pub(super) server: String,
    /// The TLS settings, as the HTTP client takes them. The URL, timeouts and proxy in it are not used.
    pub(super) config: Config,
    /// A bearer token, for users that have no certificate.
    pub(super) token: Option<String>,
}

/// The first of the profile's kubeconfigs that this node has.
pub(super) fn find(node: &Node, profile: &Profile) -> Result<Access> {
    let Some(path) = profile.kubeconfigs.iter().find(|path| node.exists(path)) else {
        return Err(misfit(format!(
            "this node has no kubeconfig to reach its API server with: looked for {}",
            profile.kubeconfigs.join(", ")
        )));
    };
    read(node, Path::new(path)).with_context(|| format!("reading the kubeconfig {path}"))
}

fn read(node: &Node, path: &Path) -> Result<Access> {
    let kubeconfig: Kubeconfig = yaml::first_of_secrets(&node.read_text(path)?)?;
    let (cluster, user) = chosen(kubeconfig)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let server = cluster.server.clone().context("its cluster has no server")?;
    let mut config = Config::new(server.parse().with_context(|| format!("reading the server {server}"))?);
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify == Some(true);
    config.tls_server_name = cluster.tls_server_name.clone().filter(|name| !name.is_empty());
    config.root_cert = Some(authorities(node, dir, &cluster)?);
    let token = token(node, dir, &user)?;
    config.auth_info = certificate(node, dir, user)?;
    if token.is_none() && config.auth_info.client_certificate_data.is_none() {
        return Err(misfit("its user has neither a client certificate nor a token; an `exec` program that fetches credentials is not run"));
    }
    Ok(Access { file: path.to_owned(), server, config, token })
}

/// Cluster and user of the current context; where none is named, of the only context.
fn chosen(kubeconfig: Kubeconfig) -> Result<(Cluster, AuthInfo)> {
    let current = kubeconfig.current_context.filter(|name| !name.is_empty());
    let mut contexts = kubeconfig.contexts.into_iter().filter(|c| current.as_ref().is_none_or(|name| c.name == *name));
    let context = contexts.next().and_then(|c| c.context).with_context(|| match &current {
        Some(name) => format!("it has no context {name}"),
        None => "it has no context".to_owned(),
    })?;
    let cluster = kubeconfig.clusters.into_iter().find(|c| c.name == context.cluster).and_then(|c| c.cluster);
    let cluster = cluster.with_context(|| format!("it has no cluster {}", context.cluster))?;
    let name = context.user.unwrap_or_default();
    let user = kubeconfig.auth_infos.into_iter().find(|u| u.name == name).and_then(|u| u.auth_info);
    Ok((cluster, user.with_context(|| format!("it has no user {name}"))?))
}

/// A value that is given in the kubeconfig, or in another file of the node (relative to the kubeconfig's directory).
fn given(node: &Node, dir: &Path, data: Option<&str>, file: Option<&str>) -> Result<Option<Vec<u8>>> {
    match (data.filter(|d| !d.is_empty()), file.filter(|f| !f.is_empty())) {
        (Some(data), _) => Ok(Some(BASE64.decode(data.trim().as_bytes()).context("decoding its base64 data")?)),
        (None, Some(file)) => Ok(Some(node.read(dir.join(file))?)),
        (None, None) => Ok(None),
    }
}

fn authorities(node: &Node, dir: &Path, cluster: &Cluster) -> Result<Vec<Vec<u8>>> {
    let pem = given(node, dir, cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref())?;
    let Some(pem) = pem else {
        // Without one, the HTTP client would use the host's own bundle, which does not have a cluster's authorities.
        return if cluster.insecure_skip_tls_verify == Some(true) {
            Ok(Vec::new())
        } else {
            Err(misfit("its cluster names no certificate authority"))
        };
    };
    let blocks = Pem::iter_from_buffer(&pem).collect::<Result<Vec<_>, _>>().context("reading its certificate authority")?;
    Ok(blocks.into_iter().filter(|block| block.label == "CERTIFICATE").map(|block| block.contents).collect())
}

fn certificate(node: &Node, dir: &Path, user: AuthInfo) -> Result<AuthInfo> {
    let mut certificate = AuthInfo::default();
    if let Some(pem) = given(node, dir, user.client_certificate_data.as_deref(), user.client_certificate.as_deref())? {
        certificate.client_certificate_data = Some(BASE64.encode(&pem));
        certificate.client_key_data = match (user.client_key_data, user.client_key) {
            (Some(data), _) => Some(data),
            (None, Some(file)) => Some(BASE64.encode(&node.read(dir.join(file))?).into()),
            (None, None) => return Err(anyhow!("its user has a client certificate but no key")),
        };
    }
    Ok(certificate)
}

fn token(node: &Node, dir: &Path, user: &AuthInfo) -> Result<Option<String>> {
    // The secret's type belongs to another crate, so the token is taken from its serialised form.
    let inline = serde_json::to_value(user).ok().and_then(|user| Some(user.get("token")?.as_str()?.to_owned()));
    match (inline, &user.token_file) {
        (Some(token), _) => Ok(Some(token)),
        (None, Some(file)) => Ok(Some(node.read_text(dir.join(file))?.trim().to_owned())),
        (None, None) => Ok(None),
    }
}

/// Where to connect to when the host is not an address: this machine, by IPv4 and, when nothing listens there, by IPv6.
pub(super) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];
