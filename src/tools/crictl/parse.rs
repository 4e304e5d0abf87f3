//! What `crictl -o json` prints (`cri-tools` 1.24 to 1.36, the CRI v1 messages as protobuf JSON). Unknown keys are ignored, because they
//! differ between releases. 64-bit numbers are strings.

use anyhow::{Result, anyhow, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

use super::{Container, Image, Sandbox};

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Containers {
    containers: Vec<RawContainer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainer {
    id: String,
    pod_sandbox_id: String,
    metadata: Metadata,
    image: Option<RawImageSpec>,
    #[serde(default)]
    image_ref: String,
    state: String,
    #[serde(default)]
    created_at: Whole<i64>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    attempt: u32,
}

#[derive(Deserialize)]
struct RawImageSpec {
    #[serde(default)]
    image: String,
}

#[derive(Deserialize)]
struct Sandboxes {
    items: Vec<RawSandbox>,
}

#[derive(Deserialize)]
struct RawSandbox {
    id: String,
    metadata: Metadata,
    state: String,
    #[serde(default)]
    labels: Labels,
}

#[derive(Deserialize)]
struct Images {
    images: Vec<RawImage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawImage {
    id: String,
    #[serde(default)]
    repo_tags: Vec<String>,
    #[serde(default)]
    repo_digests: Vec<String>,
    #[serde(default)]
    size: Whole<u64>,
    #[serde(default)]
    pinned: bool,
}

/// A whole number, as protobuf JSON (a string) or plain JSON writes it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Whole<N> {
    Number(N),
    Text(String),
}

/// Protobuf JSON may leave out a number that is 0.
impl<N: Default> Default for Whole<N> {
    fn default() -> Self {
        Self::Number(N::default())
    }
}

impl<N: std::str::FromStr> Whole<N> {
    fn value(self) -> Result<N> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => text.parse().map_err(|_| anyhow!("crictl printed `{text}` where a whole number belongs")),
        }
    }
}

fn json<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| anyhow!("`crictl {what} -o json` printed something else: {error}"))
}

/// The runtime's name in the output of `crictl version`, which is lines of `Key:  value` in every release.
#[must_use]
pub fn runtime_name(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("RuntimeName:")).map(str::trim)
}

/// An id becomes an argument of crictl, so it must not look like an option such as `--all`.
fn id(id: String) -> Result<String> {
    if id.is_empty() || id.starts_with('-') {
        bail!("crictl printed `{id}` where an id belongs");
    }
    Ok(id)
}

/// `crictl ps -a -o json`.
///
/// # Errors
/// When the output is anything else.
pub fn containers(bytes: &[u8]) -> Result<Vec<Container>> {
    json::<Containers>("ps", bytes)?.containers.into_iter().map(container).collect()
}

fn container(raw: RawContainer) -> Result<Container> {
    let RawContainer { id: own_id, pod_sandbox_id, metadata, image, image_ref, state, created_at, mut labels } = raw;
    let mut label = |name: &str| labels.remove(name).unwrap_or_default();
    // A container that kubelet did not make has no labels; its metadata still has a name.
    let name = Some(label("io.kubernetes.container.name")).filter(|name| !name.is_empty()).unwrap_or(metadata.name);
    Ok(Container {
        id: id(own_id)?,
        name,
        namespace: label("io.kubernetes.pod.namespace"),
        pod: label("io.kubernetes.pod.name"),
        running: state == "CONTAINER_RUNNING",
        state,
        sandbox: pod_sandbox_id,
        image: Some(image_ref).filter(|image| !image.is_empty()).or(image.map(|spec| spec.image)).unwrap_or_default(),
        created_at: created_at.value()?,
        attempt: metadata.attempt,
    })
}

/// `crictl pods -o json`.
///
/// # Errors
/// When the output is anything else.
pub fn sandboxes(bytes: &[u8]) -> Result<Vec<Sandbox>> {
    let sandbox = |raw: RawSandbox| {
        Ok(Sandbox {
            ready: raw.state == "SANDBOX_READY",
            labels: raw.labels,
            id: id(raw.id)?,
            name: raw.metadata.name,
            namespace: raw.metadata.namespace,
        })
    };
    json::<Sandboxes>("pods", bytes)?.items.into_iter().map(sandbox).collect()
}

/// `crictl images -o json`.
///
/// # Errors
/// When the output is anything else.
pub fn images(bytes: &[u8]) -> Result<Vec<Image>> {
    let image = |raw: RawImage| {
        Ok(Image { id: raw.id, tags: raw.repo_tags, digests: raw.repo_digests, size: raw.size.value()?, pinned: raw.pinned })
    };
    json::<Images>("images", bytes)?.images.into_iter().map(image).collect()
}

/// `crictl inspectp -o json`: true when the pod has the host's network. The CRI's `NamespaceMode` is `POD` (0) or `NODE` (2); protobuf JSON
/// leaves out a value of 0, so a missing mode means the pod's own network.
///
/// # Errors
/// When the output is anything else.
pub fn is_host_network(bytes: &[u8]) -> Result<bool> {
    let sandbox: serde_json::Value = json("inspectp", bytes)?;
    if !sandbox["status"].is_object() {
        bail!("`crictl inspectp -o json` printed no status");
    }
    Ok(sandbox["status"]["linux"]["namespaces"]["options"]["network"] == "NODE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_says_its_name() {
        // As captured from CRI-O 1.34.11.
        assert_eq!(runtime_name("Version:  0.1.0\nRuntimeName:  cri-o\nRuntimeVersion:  1.34.11\nRuntimeApiVersion:  v1\n"), Some("cri-o"));
        assert_eq!(runtime_name("something else"), None);
    }
    use crate::error::exit_code;
    use std::path::PathBuf;

    fn fixture(name: &str) -> Vec<u8> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crictl").join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn named<'a>(all: &'a [Container], name: &str) -> &'a Container {
        all.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no container {name}"))
    }

    #[test]
    fn a_real_node_of_static_pods() -> Result<()> {
        let all = containers(&fixture("real-1.36-containerd-1.6/ps-a.json"))?;
        assert_eq!(all.len(), 5);
        let pinned: Vec<_> = images(&fixture("images-crio-1.34.11.json"))?.into_iter().filter(|i| i.pinned).flat_map(|i| i.tags).collect();
        assert_eq!(pinned, ["localhost/pause:3.10"], "the one that no list of containers names");
        assert_eq!(all.iter().filter(|c| c.running).count(), 4);
        let exited = all.iter().find(|c| !c.running).expect("an exited one");
        assert_eq!(exited.state, "CONTAINER_EXITED");
        assert_eq!(containers(&fixture("real-1.36-containerd-1.6/ps.json"))?.len(), 4);
        let only = containers(&fixture("real-1.36-containerd-1.6/ps-label-etcd.json"))?;
        let etcd = named(&all, "etcd");
        assert_eq!(only, std::slice::from_ref(etcd));
        assert_eq!(etcd.id, "cc2f7ed736bf1c0b040f3c3879588ed267a2a370c3669aa9879ccbf47210c093");
        assert_eq!((etcd.namespace.as_str(), etcd.pod.as_str(), etcd.attempt), ("openshift-etcd", "etcd-sno", 0));
        assert_eq!(etcd.created_at, 1_795_236_445_358_915_818);
        assert_eq!(etcd.image, "sha256:6ff28670b94e8f31cbd9e471214f6aca4ecb0435e2f36daae8f7747a783695a5");
        Ok(())
    }

    #[test]
    fn a_stopped_container_is_listed_and_not_running() -> Result<()> {
        let all = containers(&fixture("real-1.36-containerd-1.6/ps-after-stop.json"))?;
        assert!(!named(&all, "etcd").running);
        assert!(containers(&fixture("real-1.36-containerd-1.6/ps-after-rmp.json"))?.is_empty());
        assert!(containers(&fixture("ps-empty.json"))?.is_empty());
        Ok(())
    }

    #[test]
    fn openshift_containers() -> Result<()> {
        let all = containers(&fixture("ps-ocp-ovnkube-running.json"))?;
        assert_eq!((all[0].name.as_str(), all[0].attempt, all[0].running), ("sbdb", 4, true));
        let all = containers(&fixture("assembled-ps-a-static-etcd-kas.json"))?;
        let etcd = named(&all, "etcd");
        assert_eq!((etcd.namespace.as_str(), etcd.running), ("openshift-etcd", true));
        assert!(all.iter().any(|c| c.state == "CONTAINER_EXITED"));
        Ok(())
    }

    #[test]
    fn containers_that_kubelet_did_not_make_have_the_name_of_their_metadata() -> Result<()> {
        let all = containers(&fixture("ps-running-and-exited.json"))?;
        assert_eq!((all[0].name.as_str(), all[0].namespace.as_str(), all[0].running), ("alpine", "", true));
        assert_eq!((all[1].name.as_str(), all[1].running), ("busybox", false));
        Ok(())
    }

    #[test]
    fn sandboxes_with_their_revision() -> Result<()> {
        let all = sandboxes(&fixture("real-1.36-containerd-1.6/pods.json"))?;
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|s| s.ready));
        let etcd = all.iter().find(|s| s.name == "etcd-sno").expect("etcd");
        assert_eq!((etcd.namespace.as_str(), etcd.labels["revision"].as_str()), ("openshift-etcd", "3"));
        assert!(sandboxes(&fixture("real-1.36-containerd-1.6/pods-after-rmp.json"))?.is_empty());
        let other = sandboxes(&fixture("pods-bpfman-ready.json"))?;
        assert_eq!((other[0].namespace.as_str(), other[0].labels.contains_key("revision")), ("bpfman", false));
        let old = sandboxes(&fixture("assembled-pods-static-etcd-kas.json"))?;
        assert_eq!(old.iter().filter(|s| !s.ready).map(|s| s.labels["revision"].as_str()).collect::<Vec<_>>(), ["2"]);
        Ok(())
    }

    #[test]
    fn images_with_tags_digests_and_size() -> Result<()> {
        let all = images(&fixture("real-1.36-containerd-1.6/images.json"))?;
        assert_eq!(all.len(), 5);
        assert_eq!((all[0].tags.as_slice(), all[0].size), (["localhost/etcd:3.5.21".to_owned()].as_slice(), 44_903_070));
        Ok(())
    }

    #[test]
    fn the_hosts_network_is_told_from_a_pods_own() -> Result<()> {
        assert!(is_host_network(&fixture("real-1.36-containerd-1.6/inspectp-etcd.json"))?);
        assert!(!is_host_network(br#"{"status":{"id":"x","linux":{"namespaces":{"options":{"network":"POD"}}}}}"#)?);
        assert!(!is_host_network(br#"{"status":{"id":"x","linux":{"namespaces":{"options":{}}}}}"#)?);
        assert_eq!(exit_code(&is_host_network(b"{}").unwrap_err()), 1);
        Ok(())
    }

    /// All other captured files: a table, an error or another verb's output must never be taken for a list.
    #[test]
    fn what_is_not_a_list_is_refused() {
        for name in ["", "real-1.36-containerd-1.6"] {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crictl").join(name);
            for entry in std::fs::read_dir(folder).expect("fixtures").map(|e| e.expect("entry").path()).filter(|p| p.is_file()) {
                let bytes = std::fs::read(&entry).expect("fixture");
                let file = entry.file_name().expect("name").to_string_lossy().into_owned();
                let stem = file.trim_start_matches("assembled-");
                let is_json = entry.extension().is_some_and(|extension| extension == "json");
                assert_eq!(
                    containers(&bytes).is_ok(),
                    is_json && stem.starts_with("ps-") | stem.starts_with("ps."),
                    "{file} as containers"
                );
                assert_eq!(sandboxes(&bytes).is_ok(), is_json && stem.starts_with("pods"), "{file} as sandboxes");
                assert_eq!(images(&bytes).is_ok(), is_json && stem.starts_with("images"), "{file} as images");
                assert_eq!(is_host_network(&bytes).is_ok(), is_json && stem.starts_with("inspect"), "{file} as a sandbox");
            }
        }
        for id in ["", "--all", "-f"] {
            let container =
                format!(r#"{{"containers":[{{"id":"{id}","podSandboxId":"s","metadata":{{"name":"n"}},"state":"CONTAINER_RUNNING"}}]}}"#);
            assert_eq!(exit_code(&containers(container.as_bytes()).unwrap_err()), 1, "{id}");
            assert!(containers(container.replace(&format!(r#""id":"{id}""#), r#""id":"c1""#).as_bytes()).is_ok(), "{id}");
            let sandbox = format!(r#"{{"items":[{{"id":"{id}","metadata":{{"name":"n"}},"state":"SANDBOX_READY"}}]}}"#);
            assert_eq!(exit_code(&sandboxes(sandbox.as_bytes()).unwrap_err()), 1, "{id}");
        }
        for garbage in [&b""[..], b"\xff\xfe", b"[]", b"{\"containers\":null}", b"{\"containers\":[{}]}", b"{\"containers\":[]", b"null"] {
            assert_eq!(exit_code(&containers(garbage).unwrap_err()), 1);
        }
    }
}
