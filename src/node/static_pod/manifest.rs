//! What a manifest says, and which revision is in use.
//!
//! Manifests on OpenShift are one line of JSON in files named `*-pod.yaml`; kubeadm writes YAML. Only the fields that are needed are read.
//! The revision in use is what the manifest says, never the newest directory: after a power cut or a copy, file times prove nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::error::damaged;
use crate::node::profile::{Profile, StaticPod};
use crate::node::{Node, yaml};

/// A static pod, as its manifest describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Name and labels.
    pub metadata: Metadata,
    /// Containers and volumes.
    pub spec: Spec,
}

/// Name and labels of a static pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Its name, without the node's.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels; OpenShift's `revision` is one.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// Containers and volumes of a static pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Containers that run before the others.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
    /// Its containers.
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// Its volumes.
    #[serde(deserialize_with = "or_default")]
    pub volumes: Vec<Volume>,
}

/// A container of a static pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// Its command; on OpenShift often a shell and a whole script.
    #[serde(deserialize_with = "or_default")]
    pub command: Vec<String>,
    /// Its arguments.
    #[serde(deserialize_with = "or_default")]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<Variable>,
    /// Where its volumes are mounted.
    #[serde(deserialize_with = "or_default")]
    pub volume_mounts: Vec<Mount>,
}

/// A variable of a container's environment; its value is empty when it comes from elsewhere (`valueFrom`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(deserialize_with = "or_default")]
    pub value: String,
}

/// Where a volume is mounted in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// The volume's name.
    pub name: String,
    /// The path in the container.
    pub mount_path: PathBuf,
}

/// A volume of a static pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The node's path that it shows, for a volume of that kind.
    pub host_path: Option<HostPath>,
}

/// A path of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostPath {
    /// The path.
    pub path: PathBuf,
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Manifest {
    /// Reads the manifest at the node's path `path`.
    ///
    /// # Errors
    /// When it cannot be read; [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it does not describe a pod (empty after a
    /// power cut, for example).
    pub fn read(node: &Node, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::parse(&node.read_text(path)?).map_err(|why| damaged(format!("{} is not the manifest of a pod: {why:#}", path.display())))
    }

    /// As [`Manifest::read`], for a static pod of the profile; `None` when its manifest is not there.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn of(node: &Node, profile: &Profile, pod: &StaticPod) -> Result<Option<Self>> {
        let path = profile.manifest(pod);
        if node.exists(&path) { Self::read(node, &path).map(Some) } else { Ok(None) }
    }

    /// Parses the text of a manifest, YAML or JSON, as kubelet does.
    ///
    /// # Errors
    /// When it is no pod.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let manifest: Self = yaml::first(text)?;
        if manifest.metadata.name.is_empty() || manifest.spec.containers.is_empty() {
            bail!("it has no name or no containers");
        }
        Ok(manifest)
    }

    /// The revision that an OpenShift operator installed: the label `revision`, else the directory `<name>-pod-<revision>` that it uses.
    #[must_use]
    pub fn revision(&self) -> Option<u32> {
        let label = self.metadata.labels.get("revision").and_then(|label| label.parse().ok());
        label.or_else(|| self.host_paths().find_map(|path| path.file_name()?.to_str()?.rsplit_once("-pod-")?.1.parse().ok()))
    }

    /// Images of all its containers, each once, sorted.
    #[must_use]
    pub fn images(&self) -> Vec<&str> {
        let mut images: Vec<&str> = self.all_containers().map(|c| c.image.as_str()).filter(|image| !image.is_empty()).collect();
        images.sort_unstable();
        images.dedup();
        images
    }

    fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    fn host_paths(&self) -> impl Iterator<Item = &Path> {
        self.spec.volumes.iter().filter_map(|volume| Some(volume.host_path.as_ref()?.path.as_path()))
    }

    pub(super) fn container(&self, name: &str) -> Option<&Container> {
        self.spec.containers.iter().find(|c| c.name == name)
    }

    /// The path on the node of `path` in a container: through its mounts, of which the longest that fits counts.
    pub(super) fn on_node(&self, container: &Container, path: &Path) -> Option<PathBuf> {
        let mounts = container.volume_mounts.iter().filter(|mount| path.starts_with(&mount.mount_path));
        let mount = mounts.max_by_key(|mount| mount.mount_path.components().count())?;
        let volume = self.spec.volumes.iter().find(|volume| volume.name == mount.name)?;
        Some(volume.host_path.as_ref()?.path.join(path.strip_prefix(&mount.mount_path).ok()?))
    }
}

impl Container {
    /// A variable of its environment, unless it is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|v| v.name == name).map(|v| v.value.as_str()).filter(|value| !value.is_empty())
    }

    /// The value of a flag (`name=value` or `name value`), anywhere in command and arguments: as a word of its own or inside a shell
    /// script.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut words = self.command.iter().chain(&self.args).flat_map(|part| part.split_whitespace());
        while let Some(word) = words.next() {
            if let Some(value) = word.strip_prefix(name) {
                if let Some(value) = value.strip_prefix('=') {
                    return Some(value.trim_matches(['"', '\'']));
                }
                if value.is_empty() {
                    return words.next().map(|value| value.trim_matches(['"', '\'']));
                }
            }
        }
        None
    }
}

/// The revision of a static pod that is in use, from its manifest; `None` when there is no manifest, or when no operator made it.
///
/// # Errors
/// When the manifest cannot be read.
pub fn revision_in_use(node: &Node, profile: &Profile, pod: &StaticPod) -> Result<Option<u32>> {
    Ok(Manifest::of(node, profile, pod)?.and_then(|manifest| manifest.revision()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::node::profile::OPENSHIFT;
    use crate::node::static_pod::{etcd_access, etcd_member_name};

    fn captured(name: &str) -> Manifest {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/static-pods").join(name);
        Manifest::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// A node with a captured manifest as its etcd's, and these files, empty.
    pub(in super::super) fn node_with(manifest: &str, files: &[&str]) -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("/etc/kubernetes/manifests/etcd-pod.yaml", manifest);
        put("/etc/kubernetes/manifests/etcd.yaml", manifest);
        for file in files {
            put(file, "");
        }
        let node = Node::at(dir.path(), None);
        (dir, node)
    }

    #[test]
    fn every_captured_manifest_is_read() {
        for (name, pod, namespace, revision, first) in [
            ("etcd-pod-rev3.yaml", "etcd", "openshift-etcd", Some(3), "etcdctl"),
            ("kube-apiserver-pod-rev8.yaml", "kube-apiserver", "openshift-kube-apiserver", Some(8), "kube-apiserver"),
            ("kube-scheduler-pod-rev5.yaml", "openshift-kube-scheduler", "openshift-kube-scheduler", Some(5), "kube-scheduler"),
            ("etcd-pod-configmap-template-rev3.yaml", "etcd", "openshift-etcd", None, "etcdctl"),
            ("api-mirror-pod-etcd-rev3.json", "etcd-sno-node-0", "openshift-etcd", Some(3), "etcdctl"),
        ] {
            let manifest = captured(name);
            assert_eq!((manifest.metadata.name.as_str(), manifest.metadata.namespace.as_str()), (pod, namespace), "{name}");
            assert_eq!(manifest.revision(), revision, "{name}");
            assert_eq!(manifest.spec.containers[0].name, first, "{name}");
            assert!(!manifest.images().is_empty(), "{name}");
        }
        assert_eq!(captured("etcd-pod-rev3.yaml").images().len(), 2);
    }

    #[test]
    fn the_revision_is_also_in_the_directory_it_uses() {
        let mut manifest = captured("kube-apiserver-pod-rev8.yaml");
        manifest.metadata.labels.clear();
        assert_eq!(manifest.revision(), Some(8));
    }

    #[test]
    fn a_manifest_that_kubelet_takes_is_taken() {
        let yaml = "metadata:\n  name: old\n  name: etcd\nspec:\n  containers:\n  - name: etcd\n    image: a\n    image: b\n---\n";
        let json = r#"{"metadata":{"name":"old","name":"etcd"},"spec":{"containers":[{"name":"etcd","image":"a","image":"b"}]}}"#;
        for text in [yaml, json] {
            let manifest = Manifest::parse(text).unwrap();
            assert_eq!((manifest.metadata.name.as_str(), manifest.images()), ("etcd", vec!["b"]), "{text}");
        }
    }

    #[test]
    fn a_manifest_that_a_power_cut_has_emptied_is_damaged() {
        for text in ["", "\0\0\0\0", "{\"kind\":\"Pod\"", "{}"] {
            let (_dir, node) = node_with(text, &[]);
            let error = revision_in_use(&node, &OPENSHIFT, OPENSHIFT.etcd()).unwrap_err();
            assert_eq!(exit_code(&error), 65, "{text:?}: {error:#}");
        }
        let (dir, node) = node_with("", &[]);
        std::fs::remove_file(dir.path().join("etc/kubernetes/manifests/etcd-pod.yaml")).unwrap();
        assert_eq!(revision_in_use(&node, &OPENSHIFT, OPENSHIFT.etcd()).unwrap(), None);
        assert_eq!(etcd_member_name(&node, &OPENSHIFT).unwrap(), None);
        assert_eq!(exit_code(&etcd_access(&node, &OPENSHIFT).unwrap_err()), 78);
    }
}
