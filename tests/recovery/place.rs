//! A small node of the kubeadm kind in a temporary root, with a backup of real archives and programs that remember what was asked of them.
//!
//! Everything up to etcd's data is real; the whole way is walked on the emulated node of `tests/support/node.rs`.

#![allow(clippy::unwrap_used, reason = "what cannot be done here ends the test")]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testing::session::{opened, session};

use recovery::archive::{Selection, pack};
use recovery::backup::last_run::NOTE;
use recovery::backup::manifest::{Image, Manifest};
use recovery::backup::{ETC, ETCD, KUBELET, STATIC_PODS, USR_LOCAL};
use recovery::node::profile::{KUBEADM, Kind};
use recovery::node::{Node, dir::RecoveryDir, identity::Identity};
use recovery::recovery::procedure::{Event, Reading};
use recovery::recovery::{Asked, Options, Proposal, ResumeOptions, RunReport};

use crate::through::Ended;
use testing::manifest::{plain, snapshot};

/// The programs. A file of the repository, because one that this process has just written cannot always be run: another thread may be
/// forking at that moment, and its child holds it open ("text file busy").
pub(crate) const TOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recovery/tool.sh");

/// The node.
pub(crate) struct Place {
    pub(crate) temporary: tempfile::TempDir,
    pub(crate) node: Node,
    pub(crate) dir: RecoveryDir,
}

impl Place {
    /// A node that was backed up as `b1`, and whose files have changed since.
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        for folder in ["root", "tools", "state"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for tool in ["systemctl", "crictl"] {
            symlink(TOOL, at("tools").join(tool)).unwrap();
        }
        let node = Node::at(&at("root"), Some(&at("tools")));
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        let place = Self { temporary, node, dir };
        place.lay_out();
        place.dir.prepare().unwrap();
        std::fs::write(place.dir.path().join("recovery"), "the installed agent").unwrap();
        place.back_up("b1", 1);
        place.put("/etc/site/settings", "after");
        place.put("/etc/site/added", "after");
        place.put("/usr/local/bin/tool", "after");
        std::fs::remove_file(place.at("/etc/site/gone")).unwrap();
        place
    }

    fn lay_out(&self) {
        for (unit, state) in [("kubelet.service", "active"), ("containerd.service", "active")] {
            self.state(unit, state);
        }
        let container = r#"{"containers":[{"id":"old-etcd","podSandboxId":"s","metadata":{"name":"etcd","attempt":0},"image":{"image":"i"},
            "imageRef":"i","state":"CONTAINER_RUNNING","createdAt":"1","labels":{"io.kubernetes.container.name":"etcd",
            "io.kubernetes.pod.namespace":"kube-system","io.kubernetes.pod.name":"etcd-n"}}]}"#;
        self.state("containers.json", container);
        self.boot("boot-1");
        self.put("/etc/machine-id", "0123\n");
        self.put("/etc/hostname", "n\n");
        self.put("/etc/kubernetes/pki/ca.crt", authority());
        self.put("/etc/kubernetes/manifests/kube-apiserver.yaml", "before");
        self.put("/etc/site/settings", "before");
        self.put("/etc/site/gone", "before");
        self.put("/usr/local/bin/tool", "before");
        self.put("/var/lib/kubelet/config.yaml", "before");
        self.put("/var/lib/etcd/member/old", "before");
    }

    /// Publishes a backup of what is there now. Its etcd snapshot only begins as one: everything before etcd's data can be restored from it.
    pub(crate) fn back_up(&self, id: &str, sequence: u64) -> PathBuf {
        let path = self.dir.backups().join(id);
        std::fs::create_dir(&path).unwrap();
        let owned = ["kubernetes/manifests", "kubernetes/pki"];
        // No backup lacks it; what it says is never read here.
        self.put("/etc/kubernetes/manifests/etcd.yaml", "before");
        for (tree, file, selection) in [
            ("/etc", ETC, Selection::all().except(owned).unwrap()),
            ("/usr/local", USR_LOCAL, Selection::all()),
            ("/var/lib/kubelet", KUBELET, Selection::all()),
            ("/etc/kubernetes", STATIC_PODS, Selection::all().only(["manifests", "pki"])),
        ] {
            pack(&self.at(tree), &path.join(file), &selection, None, &|_| ()).unwrap();
        }
        std::fs::remove_file(self.at("/etc/kubernetes/manifests/etcd.yaml")).unwrap();
        std::fs::write(path.join(ETCD), snapshot()).unwrap();
        Self::publish(&path, &self.manifest(id, sequence));
        path
    }

    /// (Re)writes a backup's manifest and sums; those by sha256sum(1).
    pub(crate) fn publish(path: &Path, manifest: &Manifest) {
        manifest.write(path).unwrap();
        let sums = "rm -f SHA256SUMS && sha256sum -- * > .sums && mv .sums SHA256SUMS";
        assert!(Command::new("bash").args(["-c", sums]).current_dir(path).status().unwrap().success());
    }

    pub(crate) fn manifest(&self, id: &str, sequence: u64) -> Manifest {
        let sizes = [ETC, USR_LOCAL, KUBELET, STATIC_PODS, ETCD].map(|name| (name.to_owned(), 20));
        Manifest {
            profile: Kind::Kubeadm,
            identity: Identity::of(&self.node, &KUBEADM).unwrap(),
            boot_id: "boot-0".to_owned(),
            images: vec![
                Image { id: "sha256:1111".to_owned(), name: "registry/etcd:1".to_owned() },
                Image { id: "sha256:2222".to_owned(), name: "registry/gone:1".to_owned() },
            ],
            certificates_expire: Some("2026-02-01T00:00:00Z".parse().unwrap()),
            sizes: BTreeMap::from(sizes),
            ..plain(id, sequence)
        }
    }

    /// Where the node's path is.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.temporary.path().join("root").join(path.trim_start_matches('/'))
    }

    /// Puts a file, with the directories above it.
    pub(crate) fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let real = self.at(path);
        std::fs::create_dir_all(real.parent().unwrap()).unwrap();
        std::fs::write(&real, content).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap_or_else(|error| format!("{error}"))
    }

    /// Sets what the programs remember.
    pub(crate) fn state(&self, name: &str, value: &str) {
        std::fs::write(self.temporary.path().join("state").join(name), value).unwrap();
    }

    /// What the programs remember.
    pub(crate) fn state_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.temporary.path().join("state").join(name)).unwrap().trim().to_owned()
    }

    /// The node boots: another boot id, nothing runs but what is enabled and not held.
    pub(crate) fn boot(&self, id: &str) {
        self.put("/proc/sys/kernel/random/boot_id", format!("{id}\n"));
    }

    /// As [`Place::boot`], after something has run.
    pub(crate) fn reboot(&self, id: &str) {
        self.boot(id);
        self.state("containerd.service", "active");
        let held = self.at("/var/lib/recovery/hold-kubelet").exists();
        self.state("kubelet.service", if held { "inactive" } else { "active" });
    }

    /// Lets the next call that contains this fail.
    pub(crate) fn fail(&self, call: &str) {
        self.state("fault", call);
    }

    /// The calls so far that are changes, each once for every time.
    pub(crate) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.temporary.path().join("state/calls")).unwrap_or_default();
        let asks = ["systemctl show", "crictl version", "crictl ps", "crictl pods", "crictl images", "ostree admin status"];
        text.lines().filter(|line| !asks.iter().any(|ask| line.starts_with(ask))).map(str::to_owned).collect()
    }

    /// Lets every call of a program go wrong: `hangs`, `fails` or `prints garbage`.
    pub(crate) fn goes_wrong(&self, tool: &str, how: &str) {
        self.state(&format!("{tool}.wrong"), how);
    }

    /// Gives the node one more program, which only goes wrong.
    pub(crate) fn add_tool(&self, name: &str) {
        symlink(TOOL, self.temporary.path().join("tools").join(name)).unwrap();
    }

    /// The agent itself, ready to be started on this node.
    pub(crate) fn agent_command(&self, args: &[&str]) -> Command {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_recovery"));
        for (flag, folder) in [("--root", "root"), ("--tools", "tools")] {
            agent.arg(flag).arg(self.temporary.path().join(folder));
        }
        agent.args(args).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
        agent
    }

    /// Runs the agent on this node, to its end.
    pub(crate) fn agent(&self, args: &[&str]) -> Ended {
        self.agent_command(args).output().unwrap().into()
    }

    pub(crate) fn plan(&self, options: Options) -> anyhow::Result<Proposal<'_>> {
        recovery::recovery::propose(&opened(&self.node, &self.dir)?, options)
    }

    pub(crate) fn restore_files(&self, asked: Asked) -> anyhow::Result<RunReport> {
        self.plan(Options { asked: Asked { wait: Some(1), ..asked }, ..Options::default() })?.begin()
    }

    pub(crate) fn restart(&self, backup: Option<&str>) -> anyhow::Result<RunReport> {
        let options = Options { backup: backup.map(str::to_owned), ..Options::default() };
        recovery::recovery::propose_restart(&opened(&self.node, &self.dir)?, options)?.begin()
    }

    pub(crate) fn resume(&self, options: &ResumeOptions) -> anyhow::Result<Option<RunReport>> {
        recovery::recovery::resume(&opened(&self.node, &self.dir)?, options)
    }

    pub(crate) fn abandon(&self) -> anyhow::Result<Option<recovery::recovery::AbandonReport>> {
        recovery::recovery::abandon(&opened(&self.node, &self.dir)?, false)
    }

    pub(crate) fn status(&self) -> recovery::recovery::StatusReport {
        recovery::recovery::status(&session(&self.node, &self.dir)).unwrap()
    }

    pub(crate) fn journal(&self) -> Reading {
        Reading::of(&self.dir.journal()).unwrap().unwrap()
    }

    /// How often each step was done, in the order of the first time.
    pub(crate) fn done(&self) -> Vec<(String, usize)> {
        let mut done: Vec<(String, usize)> = Vec::new();
        for record in &self.journal().records {
            let Event::StepDone(_, step) = record.event.clone() else { continue };
            match done.iter_mut().find(|(name, _)| *name == step) {
                Some((_, times)) => *times += 1,
                None => done.push((step, 1)),
            }
        }
        done
    }

    /// Names in `history/`.
    pub(crate) fn history(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.history()).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every file of the node below these trees with its content.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let trees = ["/etc", "/usr", "/var/lib"].map(|tree| self.at(tree));
        let entries = trees.iter().flat_map(|tree| walkdir::WalkDir::new(tree).into_iter().map(Result::unwrap));
        // How a backup ended is noted there, whatever it was.
        let note = self.at(NOTE);
        entries
            .filter(|e| e.file_type().is_file() && e.path() != note)
            .map(|e| (e.path().to_owned(), std::fs::read(e.path()).unwrap()))
            .collect()
    }
}

/// A certificate authority, PEM.
pub(crate) fn authority() -> String {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}
