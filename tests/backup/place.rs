//! A node in a temporary root with a recovery directory, and backups put there by hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use testing::session::session;

use recovery::backup::manifest::Manifest;
use recovery::node::{Node, dir::RecoveryDir};

use testing::etcd::{Etcd as RealEtcd, Options as Start, Version};
use testing::manifest::{part, plain};

/// A node's root and recovery directory.
pub(crate) struct Place {
    pub(crate) root: tempfile::TempDir,
    pub(crate) node: Node,
    pub(crate) dir: RecoveryDir,
}

impl Place {
    /// An empty node.
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let tools = root.path().join("tools");
        std::fs::create_dir_all(&tools).unwrap();
        let node = Node::at(root.path(), Some(&tools));
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        dir.prepare().unwrap();
        Self { root, node, dir }
    }

    /// Puts a file, with the directories above it.
    pub(crate) fn put(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let real = self.root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(real.parent().unwrap()).unwrap();
        std::fs::write(&real, content).unwrap();
        real
    }

    /// A published backup that was not made by the agent: its sums are those of sha256sum(1).
    pub(crate) fn published(&self, id: &str, sequence: u64) -> PathBuf {
        self.published_as(&manifest(id, sequence))
    }

    /// As [`Place::published`], with a manifest of one's own.
    pub(crate) fn published_as(&self, manifest: &Manifest) -> PathBuf {
        let path = self.dir.backups().join(&manifest.id);
        std::fs::create_dir(&path).unwrap();
        let parts = MADE.get_or_init(|| PARTS.map(|name| (name, part(name))).into());
        for name in manifest.sizes.keys() {
            std::fs::write(path.join(name), &parts[name.as_str()]).unwrap();
        }
        manifest.write(&path).unwrap();
        sh(&path, "sha256sum -- * > .sums && mv .sums SHA256SUMS");
        path
    }

    /// Ids that `list` shows, with their states.
    pub(crate) fn listed(&self) -> Vec<(String, String)> {
        let lines = recovery::backup::store::list(&session(&self.node, &self.dir), &kube::core::Selector::default()).unwrap();
        let state = |line: &recovery::backup::store::Listed| serde_json::to_value(line.state).unwrap().as_str().unwrap().to_owned();
        lines.iter().map(|line| (line.id.clone(), state(line))).collect()
    }
}

/// What no backup lacks.
pub(crate) const PARTS: [&str; 5] = ["etc.tar.zst", "usr-local.tar.zst", "kubelet.tar.zst", "static-pods.tar.zst", "etcd-snapshot.db.zst"];

/// These, as a recovery takes them.
static MADE: OnceLock<BTreeMap<&str, Vec<u8>>> = OnceLock::new();

/// A manifest with these, and nothing else.
pub(crate) fn manifest(id: &str, sequence: u64) -> Manifest {
    let sizes = PARTS.map(|name| (name.to_owned(), 20));
    Manifest { sizes: BTreeMap::from(sizes), ..plain(id, sequence) }
}

/// Runs a shell script in `dir`; its output.
pub(crate) fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every path below `dir` with kind, mode, owner, time, size, link and the sum of its content: by find(1) and sha256sum(1), not by the crate.
pub(crate) fn fingerprint(dir: &Path) -> String {
    let meta =
        sh(dir, r"find . -printf '%y %m %U:%G %T@ %s %l %p\n' | sed -E 's/^(d [0-7]+ [0-9:]+ [0-9.]+) [0-9]+/\1/' | LC_ALL=C sort -k7");
    let sums = sh(dir, "find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum");
    meta + &sums
}

/// A single-node OpenShift as far as a backup looks at it: its files, and a real etcd with TLS. Its API server does not answer.
pub(crate) struct Sno {
    pub(crate) place: Place,
    pub(crate) etcd: RealEtcd,
}

/// Container and revision of the static pods.
pub(crate) const PODS: [(&str, u32); 4] = [("etcd", 3), ("kube-apiserver", 8), ("kube-controller-manager", 6), ("kube-scheduler", 5)];

impl Sno {
    /// One that runs.
    pub(crate) fn new() -> Self {
        Self::with(Version::V34, &[])
    }

    /// One that runs, with an etcd of this release that is given more arguments.
    pub(crate) fn with(etcd: Version, args: &[String]) -> Self {
        let place = Place::new();
        let data = place.root.path().join("var/lib/etcd");
        std::fs::create_dir_all(&data).unwrap();
        let start = Start { name: Some("sno".to_owned()), args: args.to_vec(), ..Start::default() };
        let etcd = RealEtcd::start(etcd, &data, &start).unwrap();
        etcd.put_many(300).unwrap();
        let sno = Self { place, etcd };
        sno.put_configuration();
        sno.put_static_pods();
        sno
    }

    pub(crate) fn root(&self) -> &Path {
        self.place.root.path()
    }

    fn put_configuration(&self) {
        let place = &self.place;
        let fixture =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machineconfig/currentconfig-rendered-master-4.16-sno.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
        let files = config["spec"]["config"]["storage"]["files"].as_array_mut().unwrap();
        files.push(serde_json::json!({"path": "/opt/managed/tool", "mode": 493, "contents": {"source": "data:,tool"}}));
        place.put("/etc/machine-config-daemon/currentconfig", config.to_string());
        place.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        place.put("/etc/tmpfiles.d/resolv.conf", "L /etc/resolv.conf - - - - ../run/resolv.conf\n");
        place.put("/etc/.updated", "then");
        place.put("/etc/deep/resolv.conf", "another");
        place.put("/etc/kubernetes/kubelet-ca.crt", std::fs::read(self.etcd.certs.dir().join("ca.pem")).unwrap());
        place.put("/proc/sys/kernel/random/boot_id", "9d0b3f8e-0000-4000-8000-000000000001\n");
        place.put("/var/usrlocal/bin/cluster-backup.sh", "#!/bin/bash\n");
        place.put("/var/opt/managed/tool", "tool");
        place.put("/var/opt/managed/other", "nobody's");
        place.put("/var/lib/kubelet/config.json", "{}");
        place.put("/var/lib/kubelet/cpu_manager_state", "{}");
        place.put("/var/lib/kubelet/pods/u-1/volumes/x", "volume");
        sh(
            self.root(),
            "mkdir -p usr && ln -s ../var/usrlocal usr/local && ln -s var/opt opt && chmod 4750 var/usrlocal/bin/cluster-backup.sh
             ln -s ../run/resolv.conf etc/resolv.conf && ln etc/machine-id etc/machine-id.hard && mkdir etc/empty && chmod 1777 etc/empty
             touch -d '2020-02-03 04:05:06.123456789' etc/machine-id && setfattr -n user.note -v kept etc/.updated",
        );
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crictl/real-1.36-containerd-1.6");
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *\" images \"*) exec cat {0}/images.json;; *\" ps \"*) exec cat {0}/ps-a.json;; esac\nexit 1\n",
            fixtures.display()
        );
        // Copied by a child: what this process wrote, a child that another thread forks at that moment holds open ("text file busy").
        place.put("/tools/text", script);
        sh(self.root(), "install -m 755 tools/text tools/crictl");
    }

    fn put_static_pods(&self) {
        let port = self.etcd.client_url.rsplit(':').next().unwrap();
        for (pod, revision) in PODS {
            self.roll_out(pod, revision, port);
        }
        let resources = "/etc/kubernetes/static-pod-resources";
        for (from, to) in [
            ("client.pem", "etcd-certs/secrets/etcd-all-certs/etcd-client-sno.crt"),
            ("client.key", "etcd-certs/secrets/etcd-all-certs/etcd-client-sno.key"),
            ("ca.pem", "etcd-certs/configmaps/etcd-all-bundles/server-ca-bundle.crt"),
        ] {
            self.place.put(&format!("{resources}/{to}"), std::fs::read(self.etcd.certs.dir().join(from)).unwrap());
        }
        self.place.put(&format!("{resources}/etcd-pod-2/etcd-pod.yaml"), "an older revision");
        self.place.put("/etc/kubernetes/manifests/criometricsproxy.yaml", "kind: Pod");
        self.place.put("/etc/kubernetes/manifests/kube-apiserver-startup-monitor-pod.yaml", "never restored");
    }

    /// The revision of a static pod, and its manifest in use.
    pub(crate) fn roll_out(&self, pod: &str, revision: u32, port: &str) {
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": format!("openshift-{pod}"), "labels": {"revision": revision.to_string()}},
            "spec": {"containers": [{"name": pod, "image": "localhost/x", "command": [pod, format!("--listen-client-urls=https://127.0.0.1:{port}")],
                "env": [{"name": "NODE_sno_ETCD_NAME", "value": "sno"}]}]},
        });
        let dir = format!("/etc/kubernetes/static-pod-resources/{pod}-pod-{revision}");
        self.place.put(&format!("{dir}/{pod}-pod.yaml"), manifest.to_string());
        self.place.put(&format!("{dir}/secrets/encryption-config/key"), "secret");
        self.place.put(&format!("/etc/kubernetes/manifests/{pod}-pod.yaml"), manifest.to_string());
    }
}
