//! What is on the node's disk when it has been installed: the operating system as an ostree commit, `/etc` and `/var` as an installer and
//! machine-config-daemon leave them, the PKI, and files of every kind that a recovery must bring back as they were.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::FileType;
use serde_json::{Value, json};

use super::pods::{self, Release};
use super::{Kind, Node, Options, checked};
use crate::pki::{Authority, kubeconfig};
use crate::place::RUNTIME_OF_THE_RELEASE;

/// The node's name: the seed of the cluster has the same.
pub(super) const NODE_NAME: &str = "sno-node-0";
const RESOURCES: &str = "/etc/kubernetes/static-pod-resources";
/// A real one, of a single-node 4.16 (`tests/fixtures/machineconfig`).
const CURRENT_CONFIG: &str = include_str!("../../fixtures/machineconfig/currentconfig-rendered-master-4.16-sno.json");
/// Where the configuration is, and what it is called there.
pub(super) const CURRENT_CONFIG_PATH: &str = "/etc/machine-config-daemon/currentconfig";
/// Named by a file of `/etc/tmpfiles.d`: written at each boot, and none of a backup's business.
pub(super) const VOLATILE: &str = "/etc/site/boot-stamp";

impl Node {
    /// Everything, from nothing.
    pub(super) fn lay_out(&self) -> Result<()> {
        let seat = match self.options.kind {
            Kind::OpenShift => {
                let sysroot = self.place.sysroot();
                std::fs::create_dir_all(&sysroot)?;
                checked(Command::new("ostree").args(["admin", "init-fs"]).arg(&sysroot))?;
                checked(Command::new("ostree").arg("admin").arg(sysroot_option(&sysroot)).args(["os-init", "rhcos"]))?;
                self.commit(pods::BEFORE)?;
                let deploy = ["deploy", "--os=rhcos", "--karg=root=LABEL=root", "--karg=psi=1", "os/4.16.4"];
                checked(Command::new("ostree").arg("admin").arg(sysroot_option(&sysroot)).args(deploy))?;
                let deployments = sysroot.join("ostree/deploy/rhcos/deploy");
                let first = std::fs::read_dir(&deployments)?.filter_map(|e| Some(e.ok()?.path())).find(|path| path.is_dir());
                Seat { root: first.context("ostree deployed nothing")?, var: sysroot.join("ostree/deploy/rhcos/var") }
            }
            Kind::Kubeadm => {
                let root = self.place.dir().join("plain");
                os_tree(&root, pods::BEFORE, &self.options)?;
                std::fs::rename(root.join("usr/etc"), root.join("etc"))?;
                Seat { var: root.join("var"), root }
            }
        };
        self.common(&seat)?;
        match self.options.kind {
            Kind::OpenShift => self.openshift(&seat),
            Kind::Kubeadm => self.kubeadm(&seat),
        }
    }

    /// Commits a release's operating system.
    pub(super) fn commit(&self, release: Release) -> Result<()> {
        let tree = self.place.dir().join("tree");
        os_tree(&tree, release, &self.options)?;
        let repo = self.place.sysroot().join("ostree/repo");
        let mut commit = Command::new("ostree");
        commit.arg(format!("--repo={}", repo.display())).args(["commit", "-b"]).arg(format!("os/{}", release.tag));
        commit.arg(format!("--tree=dir={}", tree.display())).arg(format!("--add-metadata-string=version={}", release.tag));
        checked(&mut commit)?;
        std::fs::remove_dir_all(tree).context("removing the tree")
    }

    fn common(&self, seat: &Seat) -> Result<()> {
        for folder in
            ["/var/lib/etcd", "/var/lib/kubelet/pki", "/var/lib/crio", "/var/log", "/var/opt", "/var/roothome", "/var/usrlocal/bin"]
        {
            std::fs::create_dir_all(seat.at(folder))?;
        }
        std::fs::set_permissions(seat.at("/var/lib/etcd"), Permissions::from_mode(0o700))?;
        seat.put("/var/lib/crio/clean.shutdown", "", 0o644)?;
        seat.put("/etc/machine-id", "3f1c2ab0c41d4f9fb0c7a7d5a1e0c0de\n", 0o444)?;
        seat.put("/etc/hostname", &format!("{NODE_NAME}\n"), 0o644)?;
        seat.put("/etc/tmpfiles.d/site.conf", &format!("# Written at each boot.\nF {VOLATILE} 0644 root root - -\n"), 0o644)?;
        seat.put("/etc/site/settings.conf", "mode = steady\nlevel = 4\n", 0o640)?;
        seat.put("/usr/local/bin/site-check", "#!/bin/sh\nexit 0\n", 0o755)?;
        // What kubeadm was told of; with containerd it need not be.
        let socket = Some(self.options.runtime.1).filter(|socket| self.options.kind == Kind::Kubeadm && socket.ends_with("/crio.sock"));
        let told = socket.map_or_else(String::new, |socket| format!("containerRuntimeEndpoint: unix://{socket}\n"));
        seat.put("/var/lib/kubelet/config.yaml", &format!("kind: KubeletConfiguration\n{told}"), 0o600)?;
        seat.put("/var/lib/kubelet/cpu_manager_state", "{\"policyName\":\"none\",\"defaultCpuSet\":\"\",\"checksum\":1353318690}", 0o600)?;
        for at in 0..self.options.files {
            seat.put(&format!("/etc/site/many/{:02}/file-{at:05}.conf", at % 40), &format!("# file {at}\nvalue = {}\n", at * 37), 0o644)?;
        }
        oddities(&seat.at("/etc/site/odd"))?;
        oddities(&seat.at("/usr/local/share/odd"))?;
        // Not in /etc: ostree cannot merge it into the next deployment ("Cannot copy non-regular/non-symlink file").
        let odd = seat.at("/usr/local/share/odd");
        mknod(&odd.join("fifo"), FileType::Fifo, 0)?;
        mknod(&odd.join("character-device"), FileType::CharacterDevice, rustix::fs::makedev(240, 70_000))?;
        mknod(&odd.join("block-device"), FileType::BlockDevice, rustix::fs::makedev(7, 250))
    }

    fn openshift(&self, seat: &Seat) -> Result<()> {
        let etcd = Authority::new("etcd-signer")?;
        let kube = Authority::new("kube-apiserver-lb-signer")?;
        let alternatives = ["localhost", "127.0.0.1", NODE_NAME];
        let all = format!("{RESOURCES}/etcd-certs/secrets/etcd-all-certs");
        for which in ["serving", "peer", "serving-metrics"] {
            let pair = etcd.issue(&format!("system:etcd-{which}:{NODE_NAME}"), Some("system:etcd-servers"), &alternatives)?;
            seat.pair(&format!("{all}/etcd-{which}-{NODE_NAME}"), &pair)?;
        }
        seat.put(&format!("{RESOURCES}/etcd-certs/configmaps/etcd-all-bundles/server-ca-bundle.crt"), &etcd.pem(), 0o644)?;
        let certs = format!("{RESOURCES}/kube-apiserver-certs");
        for (folder, names) in
            [("localhost-serving-cert-certkey", &alternatives[..2]), ("localhost-recovery-serving-certkey", &["localhost-recovery"])]
        {
            seat.pair(&format!("{certs}/secrets/{folder}/tls"), &kube.issue(folder, None, names)?)?;
        }
        seat.put(&format!("{certs}/configmaps/client-ca/ca-bundle.crt"), &kube.pem(), 0o644)?;
        seat.put("/etc/kubernetes/kubelet-ca.crt", &kube.pem(), 0o644)?;
        let admin = kube.issue("system:admin", Some("system:masters"), &[])?;
        let server = format!("https://localhost:{}", self.ports.api);
        for (name, more) in [("localhost", ""), ("localhost-recovery", "    tls-server-name: localhost-recovery\n")] {
            let path = format!("{certs}/secrets/node-kubeconfigs/{name}.kubeconfig");
            seat.put(&path, &kubeconfig(&server, &kube, &admin, more), 0o600)?;
        }
        let client = etcd.issue("etcd-client", Some("system:etcd-clients"), &[])?;
        for (component, name) in pods::COMPONENTS.iter().enumerate() {
            let folder = format!("{RESOURCES}/{name}-pod-{}", pods::BEFORE.revisions[component]);
            if *name == "kube-apiserver" {
                seat.pair(&format!("{folder}/secrets/etcd-client/tls"), &client)?;
                seat.put(&format!("{folder}/secrets/encryption-config/encryption-config"), "{\"resources\":[]}", 0o600)?;
            }
            seat.put(&format!("{folder}/configmaps/config/config.yaml"), &format!("component: {name}\n"), 0o644)?;
            let manifest = pods::manifest(Kind::OpenShift, self.ports, pods::BEFORE, component).to_string();
            seat.put(&format!("{folder}/{name}-pod.yaml"), &manifest, 0o644)?;
            seat.put(&format!("/etc/kubernetes/manifests/{name}-pod.yaml"), &manifest, 0o644)?;
        }
        self.kubelet_and_clients(seat, &kube, &etcd, &server)?;
        let config = machine_config(&[("/opt/site/agent.conf", "agent = on\n"), ("/var/lib/site/tuning.json", "{\"tuned\":true}\n")])?;
        write_machine_config(&config, &|path| seat.at(path))
    }

    fn kubeadm(&self, seat: &Seat) -> Result<()> {
        let (etcd, kube) = (Authority::new("etcd-ca")?, Authority::new("kubernetes")?);
        let alternatives = ["localhost", "127.0.0.1", NODE_NAME];
        let pki = "/etc/kubernetes/pki";
        seat.put(&format!("{pki}/etcd/ca.crt"), &etcd.pem(), 0o644)?;
        seat.put(&format!("{pki}/ca.crt"), &kube.pem(), 0o644)?;
        for name in ["server", "peer", "healthcheck-client"] {
            seat.pair(&format!("{pki}/etcd/{name}"), &etcd.issue(name, Some("system:masters"), &alternatives)?)?;
        }
        seat.pair(&format!("{pki}/apiserver-etcd-client"), &etcd.issue("kube-apiserver-etcd-client", Some("system:masters"), &[])?)?;
        seat.pair(&format!("{pki}/apiserver"), &kube.issue("kube-apiserver", None, &alternatives)?)?;
        let admin = kube.issue("kubernetes-super-admin", Some("system:masters"), &[])?;
        let server = format!("https://127.0.0.1:{}", self.ports.api);
        for name in ["super-admin.conf", "admin.conf"] {
            seat.put(&format!("/etc/kubernetes/{name}"), &kubeconfig(&server, &kube, &admin, ""), 0o600)?;
        }
        for (component, name) in pods::COMPONENTS.iter().enumerate() {
            let manifest = pods::manifest(Kind::Kubeadm, self.ports, pods::BEFORE, component);
            seat.put(&format!("/etc/kubernetes/manifests/{name}.yaml"), &yaml(&manifest)?, 0o600)?;
        }
        self.kubelet_and_clients(seat, &kube, &etcd, &server)
    }

    /// kubelet's own certificates, and what the harness itself uses to talk to the cluster.
    fn kubelet_and_clients(&self, seat: &Seat, kube: &Authority, etcd: &Authority, server: &str) -> Result<()> {
        let server = server.replace("localhost", "127.0.0.1");
        let pki = "/var/lib/kubelet/pki";
        let mine = kube.issue(&format!("system:node:{NODE_NAME}"), Some("system:nodes"), &[])?;
        seat.put(&format!("{pki}/kubelet-client-2026-01-01-00-00-00.pem"), &format!("{}{}", mine.cert, mine.key), 0o600)?;
        symlink("kubelet-client-2026-01-01-00-00-00.pem", seat.at(&format!("{pki}/kubelet-client-current.pem")))?;
        seat.put("/var/lib/kubelet/kubeconfig", &kubeconfig(&server, kube, &mine, ""), 0o600)?;
        let name = "system:serviceaccount:openshift-machine-config-operator:node-bootstrapper";
        let bootstrapper = kube.issue(name, Some("system:bootstrappers"), &[])?;
        seat.put("/etc/kubernetes/kubeconfig", &kubeconfig(&server, kube, &bootstrapper, ""), 0o600)?;
        let harness = Seat { root: self.place.dir().join("pki"), var: self.place.dir().join("pki") };
        harness.pair("/etcd-client", &etcd.issue("harness", Some("system:masters"), &[])?)?;
        harness.put("/etcd-ca.crt", &etcd.pem(), 0o644)?;
        let admin = kube.issue("harness", Some("system:masters"), &[])?;
        harness.put("/admin.kubeconfig", &kubeconfig(&server, kube, &admin, ""), 0o600)
    }
}

/// Where a node's paths are while it is off: `/var` belongs to the stateroot, and some of `/` are links into it.
struct Seat {
    root: PathBuf,
    var: PathBuf,
}

impl Seat {
    fn at(&self, path: &str) -> PathBuf {
        for (link, target) in [("/var/", ""), ("/usr/local/", "usrlocal"), ("/opt/", "opt"), ("/root/", "roothome")] {
            if let Some(rest) = path.strip_prefix(link) {
                return self.var.join(target).join(rest);
            }
        }
        self.root.join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str, mode: u32) -> Result<()> {
        put(&self.at(path), text.as_bytes(), mode)
    }

    fn pair(&self, stem: &str, pair: &crate::pki::Pair) -> Result<()> {
        self.put(&format!("{stem}.crt"), &pair.cert, 0o600)?;
        self.put(&format!("{stem}.key"), &pair.key, 0o600)
    }
}

fn sysroot_option(sysroot: &Path) -> String {
    format!("--sysroot={}", sysroot.display())
}

/// Writes a file with exactly this mode, making its folders.
pub(super) fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || -> Result<()> {
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        std::fs::write(path, bytes)?;
        Ok(std::fs::set_permissions(path, Permissions::from_mode(mode))?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// JSON as YAML of kubeadm's kind: block style, plain words.
fn yaml(value: &Value) -> Result<String> {
    serde_saphyr::to_string(value).context("writing YAML")
}

/// The operating system of a release.
fn os_tree(tree: &Path, release: Release, options: &Options) -> Result<()> {
    let file = |path: &str, text: &str, mode: u32| put(&tree.join(path), text.as_bytes(), mode);
    for folder in ["usr/bin", "usr/sbin", "usr/lib64", "var", "sysroot", "tmp", "dev", "proc", "sys", "run", "boot"] {
        std::fs::create_dir_all(tree.join(folder))?;
    }
    let links = [
        ("usr/bin", "bin"),
        ("usr/sbin", "sbin"),
        ("usr/lib", "lib"),
        ("usr/lib64", "lib64"),
        ("sysroot/ostree", "ostree"),
        ("var/home", "home"),
        ("var/opt", "opt"),
        ("var/roothome", "root"),
        ("../var/usrlocal", "usr/local"),
    ];
    for (target, link) in links {
        symlink(target, tree.join(link)).with_context(|| format!("linking {link}"))?;
    }
    let version = release.tag;
    let about = format!(
        "ID=rhcos\nNAME=\"Red Hat Enterprise Linux CoreOS\"\nPRETTY_NAME=\"Red Hat Enterprise Linux CoreOS {version}\"\nVERSION_ID={version}\n"
    );
    file("usr/lib/os-release", &about, 0o644)?;
    file("usr/lib/modules/5.14.0/vmlinuz", &format!("kernel {version}"), 0o644)?;
    file("usr/lib/modules/5.14.0/initramfs.img", &format!("initramfs {version}"), 0o644)?;
    let (mut runtime, socket) = options.runtime;
    if let Some(unit) = options.runtime_after_upgrade.filter(|_| release.tag == pods::AFTER.tag) {
        runtime = unit;
        file(RUNTIME_OF_THE_RELEASE.trim_start_matches('/'), unit, 0o644)?;
    }
    let program = if socket.ends_with("/crio.sock") { "crio" } else { "containerd" };
    let mut units = vec![("kubelet.service", "kubelet", String::new()), (runtime, program, String::new())];
    if options.kind == Kind::OpenShift {
        // As RHCOS has it: kubelet's configuration names no socket, its unit does.
        units[0].2 = format!(" --config=/etc/kubernetes/kubelet.conf --container-runtime-endpoint={socket}");
        units.push(("crio-wipe.service", "crio", " wipe\nType=oneshot".to_owned()));
        units.push(("ovsdb-server.service", "ovsdb-server", String::new()));
        units.push(("ovs-vswitchd.service", "ovs-vswitchd", String::new()));
    }
    units.push(("chronyd.service", "chronyd", String::new()));
    for (unit, program, arguments) in units {
        let text = format!(
            "[Unit]\nDescription={unit}\n[Service]\nExecStart=/usr/bin/{program}{arguments}\n[Install]\nWantedBy=multi-user.target\n"
        );
        file(&format!("usr/lib/systemd/system/{unit}"), &text, 0o644)?;
        file(&format!("usr/bin/{program}"), &format!("program {program} of {version}"), 0o755)?;
    }
    if options.runtime.0 == "crio.service" {
        file("usr/etc/crictl.yaml", &format!("runtime-endpoint: unix://{socket}\n"), 0o644)?;
    }
    // What the operating system brings for /etc; an upgrade changes some of it.
    file("usr/etc/passwd", "root:x:0:0:root:/root:/bin/bash\ncore:x:1000:1000::/home/core:/bin/bash\n", 0o644)?;
    file("usr/etc/shadow", "root:*:19000:0:99999:7:::\n", 0o000)?;
    file("usr/etc/sudoers", "root ALL=(ALL) ALL\n", 0o440)?;
    file("usr/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644)?;
    file("usr/etc/crio/crio.conf.d/00-default", &format!("[crio]\n# of {version}\n"), 0o644)?;
    file("usr/etc/release-notes", &format!("{version}\n"), 0o644)?;
    symlink("../usr/lib/os-release", tree.join("usr/etc/os-release"))?;
    symlink("/usr/share/zoneinfo/UTC", tree.join("usr/etc/localtime"))?;
    Ok(())
}

/// The node's machine configuration: the captured one, with more files outside `/etc`.
pub(super) fn machine_config(more: &[(&str, &str)]) -> Result<Value> {
    let mut config: Value = serde_json::from_str(CURRENT_CONFIG).context("reading the captured currentconfig")?;
    let files = config["spec"]["config"]["storage"]["files"].as_array_mut().context("the captured currentconfig has no files")?;
    for (path, text) in more {
        let source: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        files.push(json!({"contents": {"source": format!("data:,{source}")}, "mode": 0o640, "overwrite": true, "path": path}));
    }
    Ok(config)
}

/// Writes a machine configuration's files and units, and the record of it, as machine-config-daemon does.
pub(super) fn write_machine_config(config: &Value, at: &dyn Fn(&str) -> PathBuf) -> Result<()> {
    for file in config["spec"]["config"]["storage"]["files"].as_array().into_iter().flatten() {
        let path = file["path"].as_str().context("a managed file without a path")?;
        let mode = u32::try_from(file["mode"].as_u64().unwrap_or(0o644))?;
        put(&at(path), &data_url(file["contents"]["source"].as_str().unwrap_or("data:,"))?, mode)?;
    }
    for unit in config["spec"]["config"]["systemd"]["units"].as_array().into_iter().flatten() {
        let path = format!("/etc/systemd/system/{}", unit["name"].as_str().context("a unit without a name")?);
        if let Some(text) = unit["contents"].as_str().filter(|text| !text.is_empty()) {
            put(&at(&path), text.as_bytes(), 0o644)?;
        }
        for dropin in unit["dropins"].as_array().into_iter().flatten() {
            let (name, text) = (dropin["name"].as_str().unwrap_or_default(), dropin["contents"].as_str().unwrap_or_default());
            if !text.is_empty() {
                put(&at(&format!("{path}.d/{name}")), text.as_bytes(), 0o644)?;
            }
        }
    }
    put(&at(CURRENT_CONFIG_PATH), config.to_string().as_bytes(), 0o644)
}

/// RFC 2397.
fn data_url(url: &str) -> Result<Vec<u8>> {
    let (head, data) = url.strip_prefix("data:").and_then(|rest| rest.split_once(',')).context("no data: URL")?;
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(data).collect();
    if head.ends_with(";base64") { Ok(data_encoding::BASE64.decode(&bytes)?) } else { Ok(bytes) }
}

/// Makes what is not a file. No driver needs to be there.
pub(super) fn mknod(path: &Path, kind: FileType, device: rustix::fs::Dev) -> Result<()> {
    let made = rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from_raw_mode(0o640), device);
    made.with_context(|| format!("making {}", path.display()))
}

/// An access list (`linux/posix_acl_xattr.h`, version 2): a tag, permissions and an id for each entry.
fn access_list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// One file of every kind that is easily restored wrongly.
pub(super) fn oddities(folder: &Path) -> Result<()> {
    use rustix::fs::{XattrFlags, lsetxattr};
    use std::os::unix::ffi::OsStrExt;
    let at = |name: &str| folder.join(name);
    std::fs::create_dir_all(at("empty-directory"))?;
    put(&at("setuid"), b"#!/bin/sh\n", 0o4755)?;
    put(&at("owned"), b"not root's\n", 0o600)?;
    std::os::unix::fs::chown(at("owned"), Some(1000), Some(1001))?;
    put(&at("linked"), b"one file, three names\n", 0o644)?;
    std::fs::create_dir_all(at("elsewhere"))?;
    std::fs::hard_link(at("linked"), at("linked-too"))?;
    std::fs::hard_link(at("linked"), at("elsewhere/linked-three"))?;
    symlink("/nowhere/at/all", at("dangling"))?;
    symlink("../odd/linked", at("relative"))?;
    symlink(format!("/{}", "long/".repeat(200)), at("long-link"))?;
    let sparse = std::fs::File::create(at("sparse"))?;
    std::os::unix::fs::FileExt::write_at(&sparse, b"far out", 8 << 20)?;
    sparse.set_len(16 << 20)?;
    put(&folder.join(std::ffi::OsStr::from_bytes(b"latin-\xe9\xff")), b"a name that is not UTF-8\n", 0o644)?;
    let deep = format!("{}/leaf", ["a-rather-long-directory-name-of-forty-two-bytes"; 8].join("/"));
    put(&at(&deep), b"a path over 256 bytes\n", 0o644)?;
    put(&at("attributes"), b"with attributes\n", 0o644)?;
    lsetxattr(at("attributes"), "user.note", b"kept\0as it is", XattrFlags::empty())?;
    lsetxattr(at("attributes"), "trusted.note", b"root's", XattrFlags::empty())?;
    lsetxattr(at("attributes"), "security.selinux", b"system_u:object_r:etc_t:s0\0", XattrFlags::empty())?;
    // cap_net_raw=ep, revision 2 (linux/capability.h).
    let capability: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    put(&at("capable"), b"#!/bin/sh\n", 0o755)?;
    lsetxattr(at("capable"), "security.capability", &capability, XattrFlags::empty())?;
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::---
    let acl = access_list(&[(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]);
    put(&at("acl"), b"with an access list\n", 0o640)?;
    lsetxattr(at("acl"), "system.posix_acl_access", &acl, XattrFlags::empty())?;
    // What is made in it gets a list of its own; what was there before has none: user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::---
    let default = access_list(&[(1, 7, u32::MAX), (2, 7, 1000), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]);
    put(&at("default-acl/before"), b"without an access list\n", 0o640)?;
    lsetxattr(at("default-acl"), "system.posix_acl_default", &default, XattrFlags::empty())?;
    put(&at("default-acl/after"), b"with the directory's\n", 0o640)?;
    put(&at("old"), b"from long ago\n", 0o644)?;
    let times = rustix::fs::Timespec { tv_sec: 981_173_106, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: times, last_modification: times };
    rustix::fs::utimensat(rustix::fs::CWD, at("old"), &times, rustix::fs::AtFlags::empty())?;
    put(&at("immutable"), b"chattr +i\n", 0o644)?;
    put(&at("append-only"), b"chattr +a\n", 0o644)?;
    checked(Command::new("chattr").arg("+i").arg(at("immutable")))?;
    checked(Command::new("chattr").arg("+a").arg(at("append-only"))).map(drop)
}
