//! A virtual machine: QEMU, which emulates the processor too, Debian's kernel, and an initramfs whose script the test says.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use real_node::command::{Limit, checked, tail};
use testing::cargo::in_checkout;
use testing::etcd::ends_with_this_thread;

/// A disk of the machine's: `/dev/vda` and so on, in their order.
pub(crate) struct Drive {
    /// Its bytes, raw.
    pub(crate) image: PathBuf,
    /// All that is written to it and when it is flushed goes here too, in this order (`log.rs`); it is not there yet.
    pub(crate) log: Option<PathBuf>,
}

/// What a machine is made of.
pub(crate) struct Hardware<'a> {
    pub(crate) drives: &'a [Drive],
    pub(crate) megabytes: u32,
    /// The names of the kernel's modules that its initramfs loads, beside those of the hardware and those that they need.
    pub(crate) modules: &'a [&'a str],
    /// What the initramfs does then, as a script for busybox's sh: `/dev`, `/proc` and `/sys` are mounted. At its end the machine is off.
    pub(crate) script: &'a str,
    /// Further arguments for the kernel.
    pub(crate) arguments: &'a str,
    /// This machine's own `/` can be mounted by `mount -t 9p -o trans=virtio,version=9p2000.L,ro host` (modules `9p`, `9pnet_virtio`), read-only.
    pub(crate) shares_root: bool,
    /// A network in which 10.0.2.2 is this machine's own loopback address (module `virtio_net`).
    pub(crate) is_on_network: bool,
}

/// A machine that is on, until it is dropped.
pub(crate) struct Machine {
    qemu: Child,
    console: PathBuf,
    said: PathBuf,
}

impl Machine {
    /// Turns one on. `dir` is for its initramfs, its console and what QEMU says.
    pub(crate) fn start(dir: &Path, hardware: &Hardware<'_>) -> Result<Self> {
        let initramfs = initramfs(dir, hardware)?;
        let (console, said) = (dir.join("console.log"), dir.join("qemu.log"));
        // Nobody is to read what another machine has printed.
        File::create(&console).with_context(|| format!("making {}", console.display()))?;
        let mut qemu = ends_with_this_thread("qemu-system-x86_64");
        // `-cpu max` has the instructions that the kernel's checksums are fast with.
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", "tcg", "-cpu", "max"]);
        qemu.args(["-m", &hardware.megabytes.to_string(), "-device", "virtio-rng-pci", "-kernel"]).arg(kernel()?.join("vmlinux"));
        qemu.arg("-initrd").arg(initramfs).arg("-append");
        qemu.arg(format!("console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off {}", hardware.arguments));
        qemu.arg("-serial").arg(joined("file:", &console));
        if hardware.shares_root {
            qemu.args(["-fsdev", "local,id=host,path=/,security_model=passthrough,readonly=on,multidevs=remap"]);
            qemu.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        }
        if hardware.is_on_network {
            qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        for (number, drive) in hardware.drives.iter().enumerate() {
            qemu.args(arguments(number, drive)?);
        }
        qemu.stdin(Stdio::null()).stdout(File::create(&said)?).stderr(File::options().append(true).open(&said)?);
        Ok(Self { qemu: qemu.spawn().context("starting QEMU: `tests/setup.sh virtual` installs it")?, console, said })
    }

    /// What the machine has printed so far.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until it has printed this.
    pub(crate) fn wait_for(&mut self, text: &str, limit: Limit) -> Result<()> {
        let look = || {
            // In this order: what it has printed before it went off has been printed.
            let is_off = self.qemu.try_wait()?.is_some();
            let console = String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned();
            match (console.contains(text), is_off) {
                (true, _) => Ok(Some(())),
                (false, true) => bail!("it went off before it printed `{text}`: {}", tail(&console)),
                (false, false) => Ok(None),
            }
        };
        limit.wait(&format!("`{text}`"), look, || tail(&String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default())))
    }

    /// Waits until it is off: what it has printed.
    pub(crate) fn wait_off(mut self, limit: Limit) -> Result<String> {
        let console = self.console.clone();
        let why = || tail(&String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()));
        let status = limit.wait("the machine to be off", || self.qemu.try_wait().context("waiting for QEMU"), why)?;
        ensure!(status.success(), "QEMU ended with {status}: {}", fs::read_to_string(&self.said)?);
        Ok(self.console())
    }

    /// The power fails, at once.
    pub(crate) fn cut_power(mut self) -> Result<()> {
        self.qemu.kill().context("killing QEMU")?;
        self.qemu.wait().map(drop).context("waiting for QEMU")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may be off.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A disk as QEMU takes it. The guest sees one with a cache, flushes it, and waits for that. QEMU itself flushes nothing, which would only keep
/// this machine's disks at work: what is in its files when it is killed is there afterwards, and the log says what the guest has flushed.
fn arguments(number: usize, drive: &Drive) -> Result<Vec<OsString>> {
    let file = |path: &Path, of: &str| {
        let node = serde_json::json!({"driver": "raw", "node-name": format!("{of}{number}"), "cache": {"no-flush": true},
            "file": {"driver": "file", "filename": path, "cache": {"no-flush": true}}});
        OsString::from(node.to_string())
    };
    let mut all = vec!["-blockdev".into(), file(&drive.image, "disk")];
    let mut top = format!("disk{number}");
    if let Some(log) = &drive.log {
        // It grows, and has to have its size before.
        File::create_new(log)?.set_len(LOG)?;
        let logged = serde_json::json!({"driver": "blklogwrites", "node-name": "logged".to_owned() + &number.to_string(), "file": top,
            "log": format!("log{number}"), "log-sector-size": crate::log::SECTOR, "log-super-update-interval": 1});
        all.extend(["-blockdev".into(), file(log, "log"), "-blockdev".into(), logged.to_string().into()]);
        top = format!("logged{number}");
    }
    all.extend(["-device".into(), format!("virtio-blk-pci,drive={top},write-cache=on,discard=off,write-zeroes=off").into()]);
    Ok(all)
}

/// The size of a log, of which it takes only what is written.
const LOG: u64 = 8 << 30;

fn joined(before: &str, path: &Path) -> OsString {
    let mut all = OsString::from(before);
    all.push(path);
    all
}

/// Where Debian's kernel is, with its modules.
fn kernel() -> Result<PathBuf> {
    let dir = in_checkout("target/virtual/kernel");
    ensure!(dir.join("vmlinux").is_file(), "{} has no kernel: `tests/setup.sh virtual` brings it", dir.display());
    Ok(dir)
}

/// Busybox, the modules and the script, in one file.
fn initramfs(dir: &Path, hardware: &Hardware<'_>) -> Result<PathBuf> {
    let root = dir.join("initramfs");
    for below in ["bin", "dev", "proc", "sys", "new", "modules"] {
        fs::create_dir_all(root.join(below))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("copying busybox: `tests/setup.sh virtual` installs it")?;
    for name in ["sh", "init"] {
        let link = root.join("bin").join(name);
        if !link.is_symlink() {
            symlink("busybox", link)?;
        }
    }
    let mut order = String::new();
    for module in modules(hardware)? {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        if let Some(plain) = name.strip_suffix(".xz") {
            // What busybox loads is as it is.
            let unpacked = File::create(root.join("modules").join(plain))?;
            let status = Command::new("xz").args(["-dc"]).arg(&module).stdout(unpacked).status().context("running xz")?;
            ensure!(status.success(), "xz -dc {} ended with {status}", module.display());
            order += &format!("{plain}\n");
        } else {
            fs::copy(&module, root.join("modules").join(name))?;
            order += &format!("{name}\n");
        }
    }
    fs::write(root.join("modules/order"), order)?;
    fs::write(root.join("script"), hardware.script)?;
    fs::write(root.join("init"), INIT)?;
    checked(Command::new("chmod").arg("755").arg(root.join("init")), LIMIT)?;
    let file = dir.join("initramfs.cpio");
    checked(Command::new("bsdtar").args(["--format", "newc", "-cf"]).arg(&file).arg("-C").arg(&root).arg("."), LIMIT)?;
    Ok(file)
}

const LIMIT: Limit = Limit::of(60);

/// Process 1. Whatever the script does, the machine goes off after it.
const INIT: &str = "#!/bin/sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
while read module; do insmod /modules/$module || echo \"no module $module\"; done </modules/order
. /script
poweroff -f
";

/// The files of the modules, each after those that it needs.
fn modules(hardware: &Hardware<'_>) -> Result<Vec<PathBuf>> {
    let kernel = kernel()?;
    let mut versions = fs::read_dir(kernel.join("lib/modules"))?;
    let version = versions.next().context("a kernel without modules")??.file_name();
    let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
    for name in ["virtio_pci", "virtio_blk"].iter().chain(hardware.modules) {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("-d").arg(&kernel).arg("-S").arg(&version).args(["--show-depends", name]);
        // What is built in needs no file.
        for line in checked(&mut modprobe, LIMIT)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(line.split(' ').next().unwrap_or_default());
            if seen.insert(file.clone()) {
                all.push(file);
            }
        }
    }
    Ok(all)
}

#[test]
fn a_machine_boots_prints_and_is_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script =
        "mount -t 9p -o trans=virtio,version=9p2000.L,ro host /new && chroot /new /bin/cat /etc/debian_version && echo at $((6 * 7))";
    let hardware = Hardware {
        drives: &[],
        megabytes: 256,
        modules: &["9p", "9pnet_virtio"],
        script,
        arguments: "",
        shares_root: true,
        is_on_network: false,
    };
    let mut machine = Machine::start(dir.path(), &hardware)?;
    machine.wait_for("at 42", Limit::of(120))?;
    let console = machine.wait_off(Limit::of(60))?;
    let version = fs::read_to_string("/etc/debian_version")?;
    ensure!(console.contains(version.trim()), "{console}");
    Ok(())
}
