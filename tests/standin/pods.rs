//! Static pod manifests, read as kubelet reads them. OpenShift's files are one line of JSON, kubeadm's are YAML.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// A pod that is to run on this node.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// With the node's name behind it, as its mirror pod.
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// Of a static pod: a hash of its file, so that an edited file is another pod.
    pub(crate) uid: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) host_network: bool,
    pub(crate) containers: Vec<Spec>,
    /// `file` or `api`.
    pub(crate) source: &'static str,
}

/// A container of a pod.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) image: String,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
}

#[derive(Deserialize)]
struct Manifest {
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    host_network: bool,
    containers: Vec<Spec>,
}

/// The first 32 hex digits of a SHA-256: kubelet's config hashes have that form.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(16).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// One manifest.
pub(crate) fn parse(bytes: &[u8], node: &str) -> Result<Pod> {
    let text = std::str::from_utf8(bytes).context("a manifest that is not text")?;
    let Manifest { metadata, spec } = serde_saphyr::from_str(text).context("parsing a manifest")?;
    Ok(Pod {
        name: format!("{}-{node}", metadata.name),
        namespace: metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        uid: hash(bytes),
        labels: metadata.labels,
        host_network: spec.host_network,
        containers: spec.containers,
        source: "file",
    })
}

/// The static pods of a folder. As kubelet does, a file that cannot be parsed is left out and the others go on; what starts with a dot
/// is not looked at.
pub(crate) fn of_folder(folder: &Path, node: &str) -> Vec<Pod> {
    let mut pods = Vec::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        match std::fs::read(&path).map_err(anyhow::Error::from).and_then(|bytes| parse(&bytes, node)) {
            Ok(pod) => pods.push(pod),
            Err(error) => eprintln!("kubelet: {}: {error:#}", path.display()),
        }
    }
    pods
}
