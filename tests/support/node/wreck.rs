//! What a failed upgrade leaves behind, step by step as it happens: operators roll out new revisions, the cluster's objects move on,
//! machine-config-daemon writes the new configuration and deploys the new operating system, the node boots into it, and there it breaks.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::layout::{CURRENT_CONFIG_PATH, machine_config, mknod, put, write_machine_config};
use super::{Kind, Node, checked, pods};

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const RESOURCES: &str = "/etc/kubernetes/static-pod-resources";

impl Node {
    /// Everything, up to a node that is booted into the new release and does not serve.
    pub fn ruin(&self) -> Result<()> {
        self.change_cluster()?;
        self.new_revisions()?;
        self.change_files()?;
        if self.options.kind == Kind::OpenShift {
            self.upgrade_platform()?;
        }
        self.break_it()
    }

    /// Commits the new operating system, deploys it (`/etc` is merged) and boots it. The old deployment stays.
    pub fn upgrade_platform(&self) -> Result<()> {
        self.commit(pods::AFTER)?;
        let target = format!("os/{}", pods::AFTER.tag);
        checked(self.tool("ostree").args(["admin", "deploy", "--os=rhcos", &target]))?;
        self.reboot()
    }

    /// Objects are changed, added and removed, as a new release's controllers do.
    fn change_cluster(&self) -> Result<()> {
        let keys = self.keys()?;
        let changed: Vec<_> = keys.iter().filter(|(key, _)| text(key).contains("/configmaps/default/settings-")).collect();
        self.with_etcd(async |client| {
            for (at, (key, value)) in changed.iter().enumerate() {
                match at % 3 {
                    0 => drop(client.put(key.clone(), text(value).replace("before the upgrade", "after the upgrade"), None).await?),
                    1 => drop(client.delete(key.clone(), None).await?),
                    _ => {}
                }
            }
            for at in 0..25 {
                let key = format!("/{}/configmaps/default/new-in-{}-{at}", self.prefix(), pods::AFTER.tag);
                client
                    .put(key, format!("{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"n{at}\"}}}}"), None)
                    .await?;
            }
            // A database that the new release has compacted holds none of the old revisions.
            let now = client.get("x", None).await?.header().map_or(0, etcd_client::ResponseHeader::revision);
            client.compact(now, None).await?;
            Ok(())
        })
    }

    /// Where the API server keeps its objects.
    fn prefix(&self) -> &'static str {
        if self.options.kind == Kind::OpenShift { "kubernetes.io" } else { "registry" }
    }

    /// Every static pod at its next revision, with the new release's image; the oldest revisions are pruned.
    fn new_revisions(&self) -> Result<()> {
        for (component, name) in pods::COMPONENTS.iter().enumerate() {
            let manifest = pods::manifest(self.options.kind, self.ports, pods::AFTER, component);
            if self.options.kind == Kind::Kubeadm {
                put(&self.at(&format!("{MANIFESTS}/{name}.yaml")), manifest.to_string().as_bytes(), 0o600)?;
                continue;
            }
            let folder = |revision: u32| self.at(&format!("{RESOURCES}/{name}-pod-{revision}"));
            let (old, new) = (folder(pods::BEFORE.revisions[component]), folder(pods::AFTER.revisions[component]));
            checked(std::process::Command::new("cp").arg("-a").arg(&old).arg(&new))?;
            put(&new.join(format!("{name}-pod.yaml")), manifest.to_string().as_bytes(), 0o644)?;
            put(&self.at(&format!("{MANIFESTS}/{name}-pod.yaml")), manifest.to_string().as_bytes(), 0o644)?;
            if *name != "kube-apiserver" {
                std::fs::remove_dir_all(&old).with_context(|| format!("pruning {}", old.display()))?;
            }
        }
        // The upgraded pods serve before the machine configuration changes.
        self.wait_containers(&["etcd", "kube-apiserver"])?;
        self.wait_api()
    }

    /// Files are edited, added, deleted, and given other attributes; the new machine configuration brings more, also outside `/etc`.
    fn change_files(&self) -> Result<()> {
        put(&self.at("/etc/site/settings.conf"), b"mode = bold\nlevel = 11\n", 0o600)?;
        put(&self.at("/etc/site/added.conf"), b"of the new release\n", 0o644)?;
        put(&self.at("/etc/cron.d/new-job"), b"* * * * * root /bin/true\n", 0o644)?;
        put(&self.at("/usr/local/bin/new-tool"), b"#!/bin/sh\n", 0o755)?;
        std::fs::remove_file(self.at("/usr/local/bin/site-check"))?;
        let config = std::fs::read_to_string(self.at("/var/lib/kubelet/config.yaml"))? + "new: true\n";
        put(&self.at("/var/lib/kubelet/config.yaml"), config.as_bytes(), 0o600)?;
        put(&self.at("/var/lib/kubelet/memory_manager_state"), b"{\"policyName\":\"Static\"}", 0o600)?;
        for tree in ["/etc/site/odd", "/usr/local/share/odd"] {
            change_oddities(&self.at(tree))?;
        }
        let many = self.at("/etc/site/many");
        if many.exists() {
            std::fs::remove_dir_all(many.join("00"))?;
            std::fs::set_permissions(many.join("01"), std::fs::Permissions::from_mode(0o700))?;
            put(&many.join("02/file-00002.conf"), b"# file 2\nvalue = 99\n", 0o644)?;
        }
        if self.at(CURRENT_CONFIG_PATH).exists() {
            let mut config = machine_config(&[
                ("/opt/site/agent.conf", "agent = off\n"),
                ("/var/lib/site/tuning.json", "{\"tuned\":false}\n"),
                ("/opt/site/new-in-the-release.conf", "new\n"),
                ("/var/lib/site/also-new.json", "{}\n"),
                ("/etc/site/managed-and-new.conf", "new\n"),
            ])?;
            config["metadata"]["name"] = "rendered-master-0123456789abcdef0123456789abcdef".into();
            write_machine_config(&config, &|path| self.at(path))?;
        }
        Ok(())
    }

    /// The new release does not come up: its API server's image is nowhere to be had.
    fn break_it(&self) -> Result<()> {
        let name = if self.options.kind == Kind::OpenShift { "kube-apiserver-pod.yaml" } else { "kube-apiserver.yaml" };
        let path = self.at(&format!("{MANIFESTS}/{name}"));
        let good = pods::image("kube-apiserver", pods::AFTER.tag);
        let manifest = std::fs::read_to_string(&path)?.replace(&good, "registry.example.com/release/kube-apiserver:lost");
        put(&path, manifest.as_bytes(), 0o644)?;
        put(&self.at("/etc/site/after-the-boot.conf"), b"written by the new release\n", 0o644)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every odd file is changed in the one way that a careless restore would leave.
fn change_oddities(folder: &Path) -> Result<()> {
    use rustix::fs::{FileType, XattrFlags, lsetxattr, removexattr};
    let at = |name: &str| folder.join(name);
    let chmod = |name: &str, mode: u32| std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode));
    std::fs::remove_dir(at("empty-directory"))?;
    chmod("setuid", 0o755)?;
    std::os::unix::fs::chown(at("owned"), Some(0), Some(0))?;
    std::fs::remove_file(at("linked-too"))?;
    std::fs::copy(at("linked"), at("linked-too"))?;
    std::fs::remove_file(at("dangling"))?;
    std::fs::create_dir(at("dangling"))?;
    std::fs::remove_file(at("relative"))?;
    std::os::unix::fs::symlink("../odd/owned", at("relative"))?;
    std::fs::copy(at("old"), at("sparse"))?;
    if at("fifo").exists() {
        std::fs::remove_file(at("fifo"))?;
        put(&at("fifo"), b"a file now\n", 0o640)?;
    }
    if at("character-device").exists() {
        std::fs::remove_file(at("character-device"))?;
        mknod(&at("character-device"), FileType::CharacterDevice, rustix::fs::makedev(240, 1))?;
        std::fs::remove_file(at("block-device"))?;
    }
    removexattr(at("attributes"), "user.note")?;
    lsetxattr(at("attributes"), "security.selinux", b"system_u:object_r:unlabeled_t:s0\0", XattrFlags::empty())?;
    lsetxattr(at("attributes"), "user.new", b"to be removed", XattrFlags::empty())?;
    removexattr(at("capable"), "security.capability")?;
    removexattr(at("acl"), "system.posix_acl_access")?;
    for name in ["before", "after"] {
        std::fs::remove_file(at("default-acl").join(name))?;
    }
    put(&at("old"), b"from long ago\n", 0o644)?;
    checked(std::process::Command::new("chattr").arg("-i").arg(at("immutable")))?;
    put(&at("immutable"), b"changed\n", 0o644)?;
    // It cannot be replaced while it has the flag.
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(at("append-only"))?, b"one more line\n")?;
    Ok(())
}
