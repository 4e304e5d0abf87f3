//! The configuration that machine-config-daemon says the node has: which files it manages, and whether they are on disk as it wrote them.
//!
//! `/etc/machine-config-daemon/currentconfig` is a `MachineConfig` as compact JSON; the daemon refuses to go on ("unexpected on-disk
//! state") when files, modes or units differ from it, so a recovery looks before kubelet starts.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{Node, profile::CURRENT_CONFIG};
use crate::error::damaged;

/// Mode of a file or unit that names none (machine-config-operator, `pkg/daemon`: `defaultFilePermissions`).
const DEFAULT_MODE: u32 = 0o644;
/// The most bytes that a managed file may decode to: a gzip bomb must not fill memory.
const MOST_CONTENT: u64 = 32 << 20;

/// A `MachineConfig`, as far as it concerns files.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// `metadata.name`: `rendered-master-…`.
    pub name: String,
    /// The managed files; of two with the same path the last counts.
    pub files: Vec<ManagedFile>,
    /// Units and their drop-ins.
    units: Vec<Unit>,
}

/// A managed file.
#[derive(Debug, Clone)]
pub struct ManagedFile {
    /// Absolute.
    pub path: PathBuf,
    /// Permissions.
    pub mode: u32,
    contents: Contents,
}

/// How one managed file on disk differs from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Absolute.
    pub path: PathBuf,
    /// In words.
    pub what: String,
}

// Only the fields that are needed: all others of a MachineConfig are ignored, and new releases add more.
#[derive(Deserialize)]
struct Raw {
    metadata: RawMeta,
    spec: RawSpec,
}
#[derive(Deserialize)]
struct RawMeta {
    #[serde(default)]
    name: String,
}
#[derive(Deserialize)]
struct RawSpec {
    config: Option<RawConfig>,
}
#[derive(Deserialize, Default)]
struct RawConfig {
    #[serde(default)]
    storage: RawStorage,
    #[serde(default)]
    systemd: RawSystemd,
}
#[derive(Deserialize, Default)]
struct RawStorage {
    files: Option<Vec<RawFile>>,
}
#[derive(Deserialize, Default)]
struct RawSystemd {
    units: Option<Vec<Unit>>,
}
#[derive(Deserialize)]
struct RawFile {
    path: PathBuf,
    mode: Option<u32>,
    #[serde(default)]
    contents: Contents,
}
#[derive(Debug, Clone, Default, Deserialize)]
struct Contents {
    source: Option<String>,
    compression: Option<String>,
}
#[derive(Debug, Clone, Deserialize)]
struct Unit {
    name: String,
    contents: Option<String>,
    #[serde(default)]
    mask: Option<bool>,
    dropins: Option<Vec<DropIn>>,
}
#[derive(Debug, Clone, Deserialize)]
struct DropIn {
    name: String,
    contents: Option<String>,
}

impl MachineConfig {
    /// The node's current configuration; `None` where there is none (kubeadm).
    ///
    /// # Errors
    /// When it cannot be read; [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not a `MachineConfig`.
    pub fn current(node: &Node) -> Result<Option<Self>> {
        if !node.exists(CURRENT_CONFIG) {
            return Ok(None);
        }
        Self::parse(&node.read(CURRENT_CONFIG)?).with_context(|| format!("reading {CURRENT_CONFIG}")).map(Some)
    }

    /// Parses the JSON of one.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not a `MachineConfig`, or names a file by a path that is not absolute
    /// and plain.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(json).map_err(|e| damaged(format!("not a MachineConfig: {e}")))?;
        let config = raw.spec.config.unwrap_or_default();
        let mut files: Vec<ManagedFile> = Vec::new();
        for file in config.storage.files.unwrap_or_default() {
            let plain = file.path.is_absolute() && file.path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
            if !plain {
                return Err(damaged(format!("the managed file {} is not an absolute path", file.path.display())));
            }
            files.retain(|earlier| earlier.path != file.path);
            files.push(ManagedFile { path: file.path, mode: file.mode.unwrap_or(DEFAULT_MODE), contents: file.contents });
        }
        Ok(Self { name: raw.metadata.name, files, units: config.systemd.units.unwrap_or_default() })
    }

    /// Paths of the managed files that are not below `/etc`, in order.
    #[must_use]
    pub fn outside_etc(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.files.iter().map(|f| f.path.clone()).filter(|p| !p.starts_with("/etc")).collect();
        paths.sort();
        paths
    }

    /// What on the node's disk differs from the configuration: content or mode of files, content of units and drop-ins.
    ///
    /// # Errors
    /// When a file of the configuration cannot be decoded, or one on disk is there and cannot be read.
    pub fn differences_on_disk(&self, node: &Node) -> Result<Vec<Difference>> {
        let mut wanted: BTreeMap<PathBuf, (Vec<u8>, u32)> = BTreeMap::new();
        for unit in &self.units {
            unit.files(&mut wanted);
        }
        for file in &self.files {
            wanted.insert(file.path.clone(), (file.decode()?, file.mode));
        }
        let mut found = Vec::new();
        for (path, (content, mode)) in wanted {
            if let Some(what) = difference(node, &path, &content, mode)? {
                found.push(Difference { path, what });
            }
        }
        Ok(found)
    }
}

impl ManagedFile {
    /// Its content.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when the `data:` URL or its compression cannot be decoded.
    pub fn decode(&self) -> Result<Vec<u8>> {
        let decode = || -> Result<Vec<u8>> {
            let bytes = self.contents.source.as_deref().map_or(Ok(Vec::new()), data_url)?;
            match self.contents.compression.as_deref().unwrap_or_default() {
                "" => Ok(bytes),
                "gzip" => gunzip(&bytes),
                other => Err(damaged(format!("compression `{other}` is not known"))),
            }
        };
        decode().with_context(|| format!("decoding the managed file {}", self.path.display()))
    }
}

impl Unit {
    /// The files below `/etc/systemd/system` that belong to this unit, as machine-config-daemon checks them: a drop-in without content is
    /// no file.
    fn files(&self, wanted: &mut BTreeMap<PathBuf, (Vec<u8>, u32)>) {
        let dir = Path::new("/etc/systemd/system");
        let own = self.contents.clone().unwrap_or_default();
        if !own.is_empty() && !self.mask.unwrap_or(false) {
            wanted.insert(dir.join(&self.name), (own.into_bytes(), DEFAULT_MODE));
        }
        for dropin in self.dropins.iter().flatten() {
            let text = dropin.contents.clone().unwrap_or_default();
            if !text.is_empty() {
                wanted.insert(dir.join(format!("{}.d", self.name)).join(&dropin.name), (text.into_bytes(), DEFAULT_MODE));
            }
        }
    }
}

fn difference(node: &Node, path: &Path, content: &[u8], mode: u32) -> Result<Option<String>> {
    let real = node.real_path(path);
    let meta = match real.metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some("is missing".to_owned())),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    if !meta.is_file() {
        return Ok(Some("is not a regular file".to_owned()));
    }
    let has = meta.permissions().mode() & 0o7777;
    if has != mode & 0o7777 {
        return Ok(Some(format!("has mode {has:04o} instead of {:04o}", mode & 0o7777)));
    }
    let same = meta.len() == content.len() as u64 && node.read(path)? == content;
    Ok((!same).then(|| "has another content".to_owned()))
}

/// RFC 2397: `data:[<media type>][;charset=…][;base64],<data>`.
fn data_url(url: &str) -> Result<Vec<u8>> {
    let rest = url.strip_prefix("data:").ok_or_else(|| damaged(format!("`{}` is not a data: URL", first(url))))?;
    let (head, data) = rest.split_once(',').ok_or_else(|| damaged(format!("`{}` has no comma", first(url))))?;
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(data).collect();
    if head.split(';').any(|part| part == "base64") {
        return BASE64.decode(&bytes).map_err(|e| damaged(format!("`{}` is not base64: {e}", first(url))));
    }
    Ok(bytes)
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(bytes).take(MOST_CONTENT + 1);
    reader.read_to_end(&mut out).map_err(|e| damaged(format!("not gzip: {e}")))?;
    if out.len() as u64 > MOST_CONTENT {
        return Err(damaged(format!("more than {MOST_CONTENT} bytes when decompressed")));
    }
    Ok(out)
}

/// The beginning of a URL, for messages: the rest may be a secret.
fn first(url: &str) -> String {
    url.chars().take(24).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn fixture(name: &str) -> MachineConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machineconfig").join(name);
        MachineConfig::parse(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn every_fixture_is_read_and_every_file_in_it_decoded() -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machineconfig");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir)? {
            let config = fixture(entry?.file_name().to_str().unwrap());
            assert!(!config.name.is_empty() && !config.files.is_empty());
            for file in &config.files {
                file.decode()?;
            }
            seen += 1;
        }
        assert_eq!(seen, 4);
        Ok(())
    }

    #[test]
    fn the_rendered_config_of_a_node() -> Result<()> {
        let config = fixture("currentconfig-rendered-master-4.16-sno.json");
        assert_eq!(config.name, "rendered-master-d48af40c1f2f7d22c8f98c4c13aaaba1");
        let file = |path: &str| config.files.iter().find(|f| f.path == Path::new(path)).unwrap();
        let ca = file("/etc/pki/ca-trust/source/anchors/openshift-config-user-ca-bundle.crt");
        assert_eq!((ca.decode()?, ca.mode), (Vec::new(), 0o600));
        assert_eq!(file("/etc/NetworkManager/conf.d/01-ipv6.conf").decode()?, b"[connection]\nipv6.dhcp-duid=ll\nipv6.dhcp-iaid=mac\n");
        let sizing = file("/etc/node-sizing-enabled.env");
        assert!(String::from_utf8(sizing.decode()?)?.starts_with("NODE_SIZING_ENABLED=false\n"));
        assert!(config.outside_etc().iter().any(|p| p.starts_with("/usr/local/bin")));
        assert!(config.outside_etc().iter().all(|p| !p.starts_with("/etc")));
        Ok(())
    }

    #[test]
    fn compressed_contents_and_the_last_of_two_entries() -> Result<()> {
        // `printf hello | gzip -n | base64 -w0`
        let json = br#"{"metadata":{},"spec":{"config":{"storage":{"files":[
            {"path":"/a","contents":{"source":"data:,old"}},
            {"path":"/a","contents":{"source":"data:;base64,H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==","compression":"gzip"},"mode":493},
            {"path":"/b"}]}}}}"#;
        let config = MachineConfig::parse(json)?;
        assert_eq!(config.files.len(), 2);
        assert_eq!((config.files[0].decode()?, config.files[0].mode), (b"hello".to_vec(), 0o755));
        assert_eq!((config.files[1].decode()?, config.files[1].mode), (Vec::new(), 0o644));
        Ok(())
    }

    #[test]
    fn what_is_no_machine_config_is_damaged() {
        for bad in [&b"{}"[..], b"garbage", br#"{"metadata":{},"spec":{"config":{"storage":{"files":[{"path":"../x"}]}}}}"#] {
            assert_eq!(exit_code(&MachineConfig::parse(bad).unwrap_err()), 65);
        }
        for source in ["http://x/", "data:no-comma", "data:;base64,!!!"] {
            let contents = Contents { source: Some(source.to_owned()), compression: None };
            let file = ManagedFile { path: "/x".into(), mode: 0o644, contents };
            assert_eq!(exit_code(&file.decode().unwrap_err()), 65, "{source}");
        }
    }

    #[test]
    fn differences_on_disk_are_named() -> Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let config = fixture("currentconfig-rendered-master-4.16-sno.json");
        let missing = config.differences_on_disk(&node)?.len();
        assert!(missing > config.files.len(), "units count too: {missing}");
        let mut wanted = BTreeMap::new();
        config.units.iter().for_each(|unit| unit.files(&mut wanted));
        for file in &config.files {
            wanted.insert(file.path.clone(), (file.decode()?, file.mode));
        }
        for (path, (content, mode)) in &wanted {
            let real = root.path().join(path.strip_prefix("/")?);
            std::fs::create_dir_all(real.parent().unwrap())?;
            std::fs::write(&real, content)?;
            std::fs::set_permissions(&real, PermissionsExt::from_mode(*mode))?;
        }
        assert_eq!(config.differences_on_disk(&node)?, []);
        let changed = root.path().join("etc/node-sizing-enabled.env");
        std::fs::write(&changed, "NODE_SIZING_ENABLED=true\n")?;
        assert_eq!(config.differences_on_disk(&node)?[0].what, "has another content");
        std::fs::set_permissions(&changed, PermissionsExt::from_mode(0o600))?;
        assert_eq!(config.differences_on_disk(&node)?[0].what, "has mode 0600 instead of 0644");
        Ok(())
    }
}
