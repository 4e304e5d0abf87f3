//! Nodes that differ from the standard one.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::command::{Limit, checked};
use super::place::Place;
use super::release::{AFTER, BEFORE, Kind};
use super::root::Root;
use super::system::System;
use super::{Node, Stay, base, disk, slots};

const OSTREE: Limit = Limit::of(120);
/// Bytes of the second disk.
const SPARE: u64 = 8 << 30;

/// What boots next on a node, when that is not what is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ahead {
    /// Staged: it becomes a deployment when the node shuts down.
    Staged,
    /// Deployed, and never booted.
    Pending,
}

/// How a node differs from the standard one: Debian 12, OpenShift, one deployment, etcd's data on the root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The kind of control plane.
    pub kind: Kind,
    /// The operating system.
    #[serde(default)]
    pub system: System,
    /// `/var/lib/etcd` is a mount of its own.
    pub etcd_mount: bool,
    /// The directory of static pods holds one that is not the control plane's, as machine-config-operator's `criometricsproxy.yaml`.
    pub extra_manifest: bool,
    /// The next release is ahead of what is booted.
    pub ahead: Option<Ahead>,
    /// It has a second disk, which is empty, and no partition for `/var/recovery`.
    #[serde(default)]
    pub spare_disk: bool,
    /// So many other deployments stand behind what is booted, none of them pinned.
    pub standbys: u32,
}

impl Default for Variant {
    fn default() -> Self {
        Self {
            kind: Kind::OpenShift,
            system: System::default(),
            etcd_mount: false,
            extra_manifest: false,
            ahead: None,
            spare_disk: false,
            standbys: 0,
        }
    }
}

/// `kubeadm,etcd-mount,extra-manifest,staged,standbys=2`: what differs, in any order.
impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut variant = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word.split_once('=').unwrap_or((word, "")) {
                ("kubeadm", "") => variant.kind = Kind::Kubeadm,
                ("etcd-mount", "") => variant.etcd_mount = true,
                ("extra-manifest", "") => variant.extra_manifest = true,
                ("spare-disk", "") => variant.spare_disk = true,
                ("staged", "") => variant.ahead = Some(Ahead::Staged),
                ("pending", "") => variant.ahead = Some(Ahead::Pending),
                ("standbys", "") => variant.standbys = 2,
                ("standbys", number) => variant.standbys = number.parse().context("standbys=NUMBER")?,
                ("debian13", "") => variant.system = System::Debian13,
                ("composefs", "") => variant.system = System::Composefs,
                _ => bail!(
                    "`{word}` is none of kubeadm, debian13, composefs, etcd-mount, extra-manifest, spare-disk, staged, pending, \
                     standbys[=NUMBER]"
                ),
            }
        }
        Ok(variant)
    }
}

impl Variant {
    /// Which the node in this place is.
    pub fn of(place: &Place) -> Result<Self> {
        let text = std::fs::read(place.variant()).context("reading which node this is")?;
        serde_json::from_slice(&text).context("reading which node this is")
    }

    /// Notes it.
    pub fn save(&self, place: &Place) -> Result<()> {
        std::fs::write(place.variant(), serde_json::to_vec(self)?).context("noting which node this is")
    }
}

impl Node {
    /// Makes a node in `dir`, turns it on, and waits until it is Ready. It is off when this process ends or it is dropped. Where there
    /// is no room for one more ([`slots`]), it waits first.
    pub fn up(dir: &Path, variant: &Variant) -> Result<Self> {
        Self::make(dir, variant, Stay::WithMe, vec![slots::one()?])
    }

    /// The same, with no other node beside it until the file is closed: for what is measured.
    pub fn up_alone(dir: &Path, variant: &Variant) -> Result<(Self, Vec<File>)> {
        let mut others = slots::all()?;
        let mine = others.remove(0);
        Ok((Self::make(dir, variant, Stay::WithMe, vec![mine])?, others))
    }

    /// The same, which stays on until somebody turns it off, whatever else is on.
    pub fn up_to_stay(dir: &Path, variant: &Variant) -> Result<Self> {
        Self::make(dir, variant, Stay::Forever, Vec::new())
    }

    fn make(dir: &Path, variant: &Variant, stay: Stay, slots: Vec<File>) -> Result<Self> {
        let place = Place::new(dir)?;
        ensure!(!place.disk().exists(), "there is a node in {} already: `node down` removes it", dir.display());
        std::fs::create_dir_all(place.dir()).with_context(|| format!("making {}", dir.display()))?;
        variant.save(&place)?;
        base::copy(variant, &place)?;
        if variant.etcd_mount {
            disk::make(&place.partition("etcd"), 2 << 30, "etcd")?;
        }
        if variant.spare_disk {
            std::fs::remove_file(place.partition("recovery"))?;
            File::create(place.spare()).and_then(|file| file.set_len(SPARE)).context("making the second disk")?;
        }
        if variant.etcd_mount || variant.extra_manifest || variant.spare_disk || variant.standbys > 0 {
            disk::with(&place, |sysroot| differ(sysroot, &place, variant))?;
        }
        let mut node = Self { place, variant: variant.clone(), stay, machine: None, _slots: slots };
        node.boot()?;
        node.wait_well()?;
        match variant.ahead {
            Some(Ahead::Staged) => node.run(&["ostree", "admin", "deploy", "--stage", &AFTER.branch()]).map(drop)?,
            Some(Ahead::Pending) => node.run(&["ostree", "admin", "deploy", &AFTER.branch()]).map(drop)?,
            None => {}
        }
        Ok(node)
    }

    /// The node in `dir`, on or off.
    pub fn at(dir: &Path, stay: Stay) -> Result<Self> {
        let place = Place::existing(dir)?;
        Ok(Self { variant: Variant::of(&place)?, place, stay, machine: None, _slots: Vec::new() })
    }

    /// Removes it with everything, turning it off first.
    pub fn down(mut self) -> Result<()> {
        if super::machine::is_on(&self.place)? {
            self.kill()?;
        }
        // The immutable files of its deployments are in an image: removing that is all.
        std::fs::remove_dir_all(self.place.dir()).with_context(|| format!("removing {}", self.place.dir().display()))
    }
}

/// What is changed on a node's disk before its first boot.
fn differ(sysroot: &Path, place: &Place, variant: &Variant) -> Result<()> {
    let root = Root::only(sysroot)?;
    if variant.etcd_mount {
        let unit = "[Unit]\nDescription=The partition of etcd\n\n[Mount]\nWhat=/dev/disk/by-label/etcd\nWhere=/var/lib/etcd\nType=xfs\n\
                    Options=nouuid\n\n[Install]\nRequiredBy=local-fs.target\n";
        root.put("/etc/systemd/system/var-lib-etcd.mount", unit.as_bytes(), 0o644)?;
        let link = "/etc/systemd/system/local-fs.target.requires/var-lib-etcd.mount";
        root.link("/etc/systemd/system/var-lib-etcd.mount", link)?;
        let partition = place.dir().join("etcd");
        disk::mount(&place.partition("etcd"), &partition)?;
        let data = root.path("/var/lib/etcd");
        checked(Command::new("cp").arg("--archive").arg(data.join(".")).arg(&partition), OSTREE)?;
        std::fs::remove_dir_all(data.join("member"))?;
        checked(Command::new("umount").arg(&partition), OSTREE)?;
    }
    if variant.extra_manifest {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "kube-rbac-proxy-crio", "namespace": "default"},
            "spec": {
                "hostNetwork": true, "priorityClassName": "system-cluster-critical", "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "kube-rbac-proxy-crio", "image": BEFORE.image("pause"), "imagePullPolicy": "IfNotPresent"}],
            },
        });
        root.put("/etc/kubernetes/manifests/criometricsproxy.yaml", serde_saphyr::to_string(&pod)?.as_bytes(), 0o644)?;
    }
    if variant.spare_disk {
        ensure!(variant.kind == Kind::Kubeadm, "the machine configuration of OpenShift has the recovery partition");
        let units = root.path("/etc/systemd/system");
        std::fs::remove_file(units.join("var-recovery.mount"))?;
        std::fs::remove_file(units.join("local-fs.target.wants/var-recovery.mount"))?;
        std::fs::remove_dir_all(units.join("var-recovery.mount.d"))?;
    }
    for standby in 1..=variant.standbys {
        let (branch, option) = (format!("os/4.15.{standby}"), format!("--sysroot={}", sysroot.display()));
        let mut commit = Command::new("ostree");
        commit.arg(format!("--repo={}", sysroot.join("ostree/repo").display())).args(["commit", "--branch", &branch]);
        commit.arg(format!("--tree=ref={}", BEFORE.branch())).arg(format!("--add-metadata-string=version=4.15.{standby}"));
        checked(&mut commit, OSTREE)?;
        let deploy = ["deploy", "--os=rhcos", "--not-as-default", "--retain", &branch];
        checked(Command::new("ostree").arg("admin").arg(&option).args(deploy), OSTREE)?;
    }
    Ok(())
}
