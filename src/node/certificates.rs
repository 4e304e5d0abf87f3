//! Certificates on the node's disk: when the first of them expires, and the fingerprints of authorities.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::Node;
use super::profile::{Kind, Profile};
use super::static_pod::revision_in_use;

/// What kubelet shows to the API server, and to clients that connect to it. The links point to dated files.
const KUBELET: [&str; 2] = ["/var/lib/kubelet/pki/kubelet-client-current.pem", "/var/lib/kubelet/pki/kubelet-server-current.pem"];

/// The earliest expiry of the certificates by which kubelet, etcd and the API server prove who they are, and the node's path of the file
/// that holds it. A backup contains these certificates, so it is useful only until then.
///
/// Authorities do not count: a bundle keeps expired ones beside their successors.
///
/// # Errors
/// When one of the directories or files cannot be read. A file without a certificate is no error, nor is one that has vanished: kubelet and
/// the operators replace their certificates at any time.
pub fn certificates_expire(node: &Node, profile: &Profile) -> Result<Option<(Timestamp, PathBuf)>> {
    let mut files: Vec<PathBuf> = KUBELET.iter().map(PathBuf::from).filter(|path| node.exists(path)).collect();
    for directory in directories(node, profile)? {
        collect(node, &directory, &mut files)?;
    }
    first_to_expire(node, files)
}

fn first_to_expire(node: &Node, files: Vec<PathBuf>) -> Result<Option<(Timestamp, PathBuf)>> {
    let mut earliest: Option<(Timestamp, PathBuf)> = None;
    for file in files {
        let pem = match std::fs::read(node.real_path(&file)) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        let Some(end) = end_of(&pem) else { continue };
        if earliest.as_ref().is_none_or(|(first, _)| end < *first) {
            earliest = Some((end, file));
        }
    }
    Ok(earliest)
}

/// The directories that hold these certificates: the `secrets` of every `*-certs` directory and of the revisions in use; with kubeadm, its
/// one directory.
fn directories(node: &Node, profile: &Profile) -> Result<Vec<PathBuf>> {
    let kubernetes = Path::new(profile.kubernetes);
    if profile.kind == Kind::Kubeadm {
        return Ok(vec![kubernetes.join("pki")]);
    }
    let resources = kubernetes.join("static-pod-resources");
    let mut directories = Vec::new();
    for name in names(node, &resources)? {
        if name.to_string_lossy().ends_with("-certs") {
            directories.push(resources.join(name).join("secrets"));
        }
    }
    for pod in profile.static_pods {
        if let Some(revision) = revision_in_use(node, profile, pod)? {
            directories.push(resources.join(format!("{}-pod-{revision}", pod.container)).join("secrets"));
        }
    }
    Ok(directories)
}

fn names(node: &Node, directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let real = node.real_path(directory);
    let list = || std::fs::read_dir(&real)?.map(|entry| entry.map(|e| e.file_name())).collect::<std::io::Result<Vec<_>>>();
    match list() {
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("listing {}", directory.display())),
    }
}

/// Adds the files named `*.crt` and `*.pem` below a directory of the node.
fn collect(node: &Node, directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for name in names(node, directory)? {
        let path = directory.join(&name);
        // Links are not followed into directories: kubelet's atomic writer makes some, and each file is also in its own place.
        let is_dir = node.path(&path).symlink_metadata().is_ok_and(|meta| meta.is_dir());
        if is_dir {
            collect(node, &path, files)?;
        } else if [".crt", ".pem"].iter().any(|end| name.to_string_lossy().ends_with(end)) && node.real_path(&path).is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// When the certificates in a PEM file expire: the earliest of those that are not authorities. Keys and anything else are skipped.
fn end_of(pem: &[u8]) -> Option<Timestamp> {
    let blocks = Pem::iter_from_buffer(pem).filter_map(Result::ok).filter(|block| block.label == "CERTIFICATE");
    let ends = blocks.filter_map(|block| {
        let (_, certificate) = X509Certificate::from_der(&block.contents).ok()?;
        if certificate.is_ca() {
            return None;
        }
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    });
    ends.min()
}

/// SHA-256 (hex, of the DER) of each self-signed certificate in a PEM bundle, sorted, each once.
///
/// # Errors
/// When the bundle is damaged.
pub fn root_fingerprints(pem: &[u8]) -> Result<Vec<String>> {
    let mut roots = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.context("reading a PEM bundle")?;
        if block.label != "CERTIFICATE" {
            continue;
        }
        let (_, certificate) = X509Certificate::from_der(&block.contents).context("reading a certificate of a PEM bundle")?;
        if certificate.subject().as_raw() == certificate.issuer().as_raw() {
            roots.push(HEXLOWER.encode(&Sha256::digest(&block.contents)));
        }
    }
    roots.sort();
    roots.dedup();
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    fn certificate(year: i32, authority: bool) -> String {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 2, 3);
        if authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_first_to_expire_is_found_among_keys_bundles_and_old_revisions() {
        let dir = tempfile::tempdir().unwrap();
        let (root, node) = (dir.path(), Node::at(dir.path(), None));
        assert_eq!(certificates_expire(&node, &OPENSHIFT).unwrap(), None);
        let key = KeyPair::generate().unwrap().serialize_pem();
        put(root, "var/lib/kubelet/pki/kubelet-client-2026.pem", &format!("{}{key}", certificate(2041, false)));
        std::os::unix::fs::symlink(
            "/var/lib/kubelet/pki/kubelet-client-2026.pem",
            root.join("var/lib/kubelet/pki/kubelet-client-current.pem"),
        )
        .unwrap();
        let resources = "etc/kubernetes/static-pod-resources";
        put(root, &format!("{resources}/etcd-certs/secrets/etcd-all-certs/etcd-peer-a.crt"), &certificate(2040, false));
        put(root, &format!("{resources}/etcd-certs/secrets/etcd-all-certs/etcd-peer-a.key"), &key);
        // None of these counts: an authority, a bundle, a revision that is not in use, a text.
        put(root, &format!("{resources}/etcd-certs/secrets/etcd-all-certs/ca.crt"), &certificate(2021, true));
        put(root, &format!("{resources}/etcd-certs/configmaps/ca/ca-bundle.crt"), &certificate(2022, false));
        put(root, &format!("{resources}/etcd-pod-2/secrets/x/tls.crt"), &certificate(2023, false));
        put(root, &format!("{resources}/kube-apiserver-certs/secrets/x/note.crt"), "not a certificate\n");
        let (end, file) = certificates_expire(&node, &OPENSHIFT).unwrap().unwrap();
        assert_eq!(end.to_string(), "2040-02-03T00:00:00Z");
        assert_eq!(file, Path::new("/etc/kubernetes/static-pod-resources/etcd-certs/secrets/etcd-all-certs/etcd-peer-a.crt"));
        put(root, &format!("{resources}/etcd-pod-3/secrets/x/tls.crt"), &certificate(2030, false));
        let pod = include_str!("../../tests/fixtures/static-pods/etcd-pod-rev3.yaml");
        put(root, "etc/kubernetes/manifests/etcd-pod.yaml", pod);
        assert_eq!(certificates_expire(&node, &OPENSHIFT).unwrap().unwrap().0.to_string(), "2030-02-03T00:00:00Z");
        // One file that has vanished since it was listed, and one that never existed.
        let listed = ["gone.crt", "etcd-pod-3/secrets/x/tls.crt"].map(|name| Path::new("/").join(resources).join(name));
        assert_eq!(first_to_expire(&node, listed.into()).unwrap().unwrap().0.to_string(), "2030-02-03T00:00:00Z");
        assert!(first_to_expire(&node, vec!["/etc/kubernetes".into()]).is_err());
    }

    #[test]
    fn kubeadms_certificates_are_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "etc/kubernetes/pki/ca.crt", &certificate(2020, true));
        put(dir.path(), "etc/kubernetes/pki/apiserver.crt", &certificate(2045, false));
        put(dir.path(), "etc/kubernetes/pki/etcd/server.crt", &certificate(2044, false));
        let (end, file) = certificates_expire(&Node::at(dir.path(), None), &KUBEADM).unwrap().unwrap();
        assert_eq!((end.to_string().as_str(), file.as_path()), ("2044-02-03T00:00:00Z", Path::new("/etc/kubernetes/pki/etcd/server.crt")));
    }

    #[test]
    fn only_roots_have_fingerprints() {
        let authority = rcgen::CertifiedIssuer::self_signed(CertificateParams::new(vec![]).unwrap(), KeyPair::generate().unwrap()).unwrap();
        let mut leaf = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        let bundle = format!("# a comment\n{}{}{}", authority.pem(), leaf.pem(), authority.pem());
        let roots = root_fingerprints(bundle.as_bytes()).unwrap();
        assert_eq!(roots.len(), 1);
        assert_eq!(roots[0].len(), 64);
        assert!(root_fingerprints(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }
}
