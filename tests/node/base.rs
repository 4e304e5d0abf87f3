//! What every node is a copy of: disks of a node that was installed, booted, made Ready, and powered off. Built once, in about a minute,
//! and kept in `target/node` for as long as it is made of the same.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use testing::cargo::{example, in_checkout};

use super::command::{self, Limit, checked, sha256};
use super::managed::{self, CURRENT_CONFIG};
use super::place::Place;
use super::release::{AFTER, BEFORE, Kind, Programs, Release, images};
use super::root::Root;
use super::system::System;
use super::{Node, Stay, Variant, disk, pki};

/// What a base is made of, besides programs: everything in these.
const SOURCES: [&str; 9] = [
    "tests/node",
    "systemd/var-recovery.mount",
    "tests/standin/rpm-ostree.py",
    "tests/support/api/objects.rs",
    "tests/support/api/roll_out.rs",
    "tests/support/pki.rs",
    "tests/support/subject.rs",
    "tests/fixtures/crds",
    "tests/fixtures/oc",
];
/// What only looks after a node does not make another base.
const HARNESS: [&str; 17] = [
    "Cargo.toml",
    "check/host.rs",
    "check/main.rs",
    "check/smoke.rs",
    "node.rs",
    "machine.rs",
    "initramfs.sh",
    "inside.rs",
    "cgroup.rs",
    "variant.rs",
    "upgrade.rs",
    "command.rs",
    "lib.rs",
    "slots.rs",
    "spare.rs",
    "unsynced.rs",
    "host.sh",
];
/// For a build from nothing, on two busy cores.
const BUILD: Limit = Limit::of(3600);
const RECIPE: Limit = Limit::of(900);

/// The folder where what is built is kept.
pub(super) fn kept() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| in_checkout("target"), PathBuf::from).join("node")
}

/// Copies the disks of the base of this kind and system to `place`; the base is made if it is not there.
pub fn copy(variant: &Variant, place: &Place) -> Result<()> {
    let (kind, system) = (variant.kind, variant.system);
    checked(&mut Command::new(in_checkout("tests/node/host.sh")), Limit::of(10))?;
    let kept = kept();
    std::fs::create_dir_all(&kept)?;
    // One at a time: the others find it made, and nobody removes what is being copied.
    let alone = File::create(kept.join("lock"))?;
    flock(&alone, FlockOperation::LockExclusive).context("waiting for another build of the node")?;
    let programs = programs()?;
    let name = format!("base-{}-{}-", system.name(), kind.name());
    let dir = kept.join(format!("{name}{}", key(&programs)?));
    if !dir.exists() {
        remove_others(&kept, &name)?;
        let new = Place::new(&dir.with_extension("new"))?;
        let _ = std::fs::remove_dir_all(new.dir());
        std::fs::create_dir_all(new.dir())?;
        make(&new, kind, system, &programs).with_context(|| format!("making the base of nodes in {}", new.dir().display()))?;
        std::fs::rename(new.dir(), &dir)?;
    }
    let base = Place::existing(&dir)?;
    disk::copy(&base.partition("recovery"), &place.partition("recovery"))?;
    disk::copy(&base.disk(), &place.disk())
}

/// Bases of an earlier state of the sources, which take a gigabyte each.
fn remove_others(kept: &Path, name: &str) -> Result<()> {
    for entry in std::fs::read_dir(kept)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(name) {
            std::fs::remove_dir_all(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn programs() -> Result<Programs> {
    build("tests/etcd-tools/build.sh")?;
    let node = node_tools()?;
    let operator = example("operator")?;
    Ok(Programs { node, etcd: in_checkout("target/etcd-tools"), operator })
}

/// The folder of Kubernetes' programs (`kubernetes`) and of crictl; they are built when they are missing.
pub fn node_tools() -> Result<PathBuf> {
    build("tests/node/tools/build.sh")?;
    Ok(in_checkout("target/node-tools"))
}

/// The folder of the work agent of Open Cluster Management (`work-agent`) and of the definitions of its kinds (`crds`); they are built when they are
/// missing.
pub fn ocm_tools() -> Result<PathBuf> {
    build("tests/hub/ocm-tools/build.sh")?;
    Ok(in_checkout("target/ocm-tools"))
}

fn build(recipe: &str) -> Result<()> {
    let mut build = Command::new(in_checkout(recipe));
    if command::run(Command::new("go").arg("version"), &[], RECIPE).is_err() {
        let path = std::env::var("PATH").unwrap_or_default();
        build.env("PATH", format!("{path}:{}", in_checkout("target/go/bin").display()));
    }
    checked(&mut build, BUILD).map(drop)
}

/// A hash of what a base is made of.
fn key(programs: &Programs) -> Result<String> {
    let mut parts = String::new();
    for source in SOURCES {
        let path = in_checkout(source);
        for entry in walkdir::WalkDir::new(&path).sort_by_file_name() {
            let entry = entry.with_context(|| format!("listing {}", path.display()))?;
            let name = entry.path().strip_prefix(&path)?.to_string_lossy().into_owned();
            if entry.file_type().is_file() && !(source == "tests/node" && HARNESS.contains(&name.as_str())) {
                parts += &format!("{source}/{name} {}\n", sha256(std::fs::read(entry.path())?));
            }
        }
    }
    for program in ["kubernetes", "crictl", "pause"] {
        parts += &std::fs::read_to_string(programs.node.join(program).join("made-of"))?;
    }
    for release in [BEFORE, AFTER] {
        parts += &std::fs::read_to_string(programs.etcd.join(release.etcd).join("pins"))?;
    }
    Ok(sha256(parts)[..12].to_owned())
}

fn make(new: &Place, kind: Kind, system: System, programs: &Programs) -> Result<()> {
    say(&format!("making the base of {} nodes on {}: a minute or two", kind.name(), system.name()));
    disk::make(&new.disk(), 20 << 30, "root")?;
    disk::make(&new.partition("recovery"), 4 << 30, "recovery")?;
    let debian = debian(system)?;
    disk::with(new, |sysroot| install(sysroot, &debian, &new.dir().join("tree"), kind, system, programs))?;
    let variant = Variant { kind, system, ..Variant::default() };
    variant.save(new)?;
    let mut node = Node { place: new.clone(), variant, stay: Stay::WithMe, machine: None, _slots: Vec::new() };
    node.boot()?;
    import(&node, programs)?;
    node.wait_api()?;
    super::cluster::fill(&node)?;
    node.power_off()?;
    disk::with(new, |sysroot| {
        // A node's log begins with its own first boot.
        for log in std::fs::read_dir(Root::only(sysroot)?.path("/var/log/journal"))? {
            std::fs::remove_dir_all(log?.path())?;
        }
        // The disk is copied for each node: what was written and removed again is not.
        checked(Command::new("fstrim").arg(sysroot), RECIPE).map(drop)
    })?;
    for leftover in [new.console(), new.boots(), new.power(), new.lock(), new.variant(), new.dir().join("machine.log")] {
        let _ = std::fs::remove_file(leftover);
    }
    Ok(())
}

fn say(text: &str) {
    eprintln!("node: {text}");
}

fn debian(system: System) -> Result<PathBuf> {
    let recipe = in_checkout("tests/node/os/debian.sh");
    let key = sha256(std::fs::read(&recipe)?);
    let tree = kept().join(format!("{}-{}", system.suite(), &key[..12]));
    if !tree.exists() {
        say("fetching a minimal Debian: a minute or two");
        checked(Command::new(recipe).arg(&tree).arg(system.suite()), BUILD)?;
    }
    Ok(tree)
}

/// From an empty disk to a node that can boot: both releases' commits, the first one deployed, `/etc` and `/var`.
fn install(sysroot: &Path, debian: &Path, tree: &Path, kind: Kind, system: System, programs: &Programs) -> Result<()> {
    let run = |command: &mut Command| checked(command, RECIPE);
    run(Command::new("cp").arg("--archive").args([debian, tree]))?;
    run(Command::new("cp").arg("--archive").arg(in_checkout("tests/node/os/tree/.")).arg(tree))?;
    for program in ["kubernetes/kubelet", "kubernetes/kubectl", "crictl/crictl"] {
        run(Command::new("install").args(["--mode=755", "-t"]).arg(tree.join("usr/bin")).arg(programs.node.join(program)))?;
    }
    if system.prepares_root() {
        prepare(tree, system).context("preparing the system for its initramfs")?;
    }
    let rpm_ostree = format!("#!/usr/bin/python3\n{}", std::fs::read_to_string(in_checkout("tests/standin/rpm-ostree.py"))?);
    std::fs::write(tree.join("usr/bin/rpm-ostree"), rpm_ostree)?;
    run(Command::new("chmod").arg("755").arg(tree.join("usr/bin/rpm-ostree")))?;
    run(Command::new(in_checkout("tests/node/os/shape.sh")).arg(tree))?;
    run(Command::new("ostree").args(["admin", "init-fs"]).arg(sysroot))?;
    run(Command::new("ostree").args(["admin", "os-init", "rhcos"]).arg(format!("--sysroot={}", sysroot.display())))?;
    for release in [&BEFORE, &AFTER] {
        commit(sysroot, tree, release)?;
    }
    // By the system's own ostree: it makes the composefs image, which an older one does not know.
    let inside = r#"mount --bind "$1" "$2/mnt" && mount -t proc proc "$2/proc" && shift && exec chroot "$@""#;
    let mut deploy = Command::new("unshare");
    deploy.args(["--mount", "sh", "-ec", inside, "deploy"]).args([sysroot, debian]);
    deploy.args(["ostree", "admin", "deploy", "--sysroot=/mnt", "--os=rhcos"]);
    run(deploy.args(["--karg=root=LABEL=root", "--karg=rw", "--karg=psi=1", &BEFORE.branch()]))?;
    let root = Root::only(sysroot)?;
    let var = tree.with_extension("var");
    run(Command::new("cp").arg("--archive").arg(var.join(".")).arg(root.path("/var/")))?;
    std::fs::remove_dir_all(tree)?;
    std::fs::remove_dir_all(var)?;
    settle(&root, kind)
}

/// What says how the root is made, and kubelet and the container runtime with the controllers that they need.
fn prepare(tree: &Path, system: System) -> Result<()> {
    checked(Command::new("cp").arg("--archive").arg(in_checkout("tests/node/os/newer/.")).arg(tree), RECIPE)?;
    for folder in ["usr/lib/ostree", "usr/libexec/node"] {
        std::fs::create_dir_all(tree.join(folder))?;
    }
    let composefs = system == System::Composefs;
    let configuration = format!("[sysroot]\nreadonly=true\n\n[composefs]\nenabled={composefs}\n");
    std::fs::write(tree.join("usr/lib/ostree/prepare-root.conf"), configuration)?;
    // The initramfs makes it, and writes into it what it has done.
    std::fs::remove_file(tree.join("usr/lib/tmpfiles.d/ostree-booted.conf"))?;
    for program in ["kubelet", "containerd"] {
        let path = tree.join("usr/bin").join(program);
        std::fs::rename(&path, tree.join("usr/libexec/node").join(program))?;
        std::os::unix::fs::symlink("../share/node/with-controllers", path)?;
    }
    Ok(())
}

fn commit(sysroot: &Path, tree: &Path, release: &Release) -> Result<()> {
    let version = release.version;
    let about = format!(
        "ID=rhcos\nNAME=\"Red Hat Enterprise Linux CoreOS\"\nPRETTY_NAME=\"CoreOS {version}, played by Debian\"\nVERSION_ID={version}\n"
    );
    std::fs::write(tree.join("usr/lib/os-release"), about)?;
    // What the operating system brings for /etc, which an upgrade merges.
    std::fs::write(tree.join("usr/etc/release-notes"), format!("{version}\n"))?;
    let mut commit = Command::new("ostree");
    commit.arg(format!("--repo={}", sysroot.join("ostree/repo").display())).arg("commit").arg(format!("--branch={}", release.branch()));
    commit.arg(format!("--tree=dir={}", tree.display())).arg(format!("--add-metadata-string=version={version}"));
    checked(&mut commit, RECIPE).map(drop)
}

/// What an installer leaves in `/etc` and `/var`. With `/var/log/journal` the log outlives a boot, as on RHCOS.
fn settle(root: &Root, kind: Kind) -> Result<()> {
    for folder in
        ["home", "opt", "srv", "mnt", "roothome", "usrlocal/bin", "recovery", "lib/kubelet", "lib/etcd", "log/pods", "log/journal"]
    {
        std::fs::create_dir_all(root.path("/var/").join(folder))?;
    }
    for private in ["/var/lib/etcd", "/var/recovery"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(root.path(private), mode)?;
    }
    root.put("/etc/machine-id", b"3f1c2ab0c41d4f9fb0c7a7d5a1e0c0de\n", 0o444)?;
    root.link("/usr/lib/systemd/system/node-network.service", "/etc/systemd/system/multi-user.target.wants/node-network.service")?;
    root.link("/usr/lib/systemd/system/node-cgroups.service", "/etc/systemd/system/sysinit.target.wants/node-cgroups.service")?;
    let files = managed::files(&[kind.name()])?;
    managed::write(root, &files)?;
    if kind == Kind::OpenShift {
        root.link("/dev/null", "/etc/systemd/system/containerd.service")?;
        let record = managed::record("rendered-master-3a1f0f8c5d0b4c8e9f7a6b5c4d3e2f10", &files, BEFORE.version);
        root.put(CURRENT_CONFIG, record.to_string().as_bytes(), 0o644)?;
    }
    pki::lay_out(root, kind)
}

fn import(node: &Node, programs: &Programs) -> Result<()> {
    let file = node.place().dir().join("image.tar");
    node.wait_output("the container runtime to answer", &["crictl", "version"], |text| text.contains("RuntimeVersion"))?;
    for image in images(programs) {
        image.write(&file)?;
        let argv = ["ctr", "--namespace=k8s.io", "images", "import", "-"];
        node.exec_with(&argv, &std::fs::read(&file)?, RECIPE)?.checked().with_context(|| format!("importing {}", image.names[0]))?;
    }
    std::fs::remove_file(file)?;
    let listed = node.run(&["crictl", "images", "--output=json"])?;
    let missing: Vec<String> =
        images(programs).into_iter().flat_map(|image| image.names).filter(|name| !listed.contains(name.as_str())).collect();
    ensure!(missing.is_empty(), "these images are not there: {}", missing.join(", "));
    Ok(())
}
