//! Everything that a recovery has to bring back, to be compared with what it was: every file of the restored trees with all of its
//! attributes, and every key of the cluster (of the node's own object all but kubelet's heartbeat).

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::Node;

/// The trees that are restored whole.
pub const TREES: [&str; 3] = ["/etc", "/var/usrlocal", "/var/lib/kubelet"];
/// Where managed files are besides. Only they are restored: that a new file came and went shows in the time of its directory.
pub const MANAGED: [&str; 2] = ["/var/opt", "/var/lib/site"];
/// What differs after a recovery, and may (`ARCHITECTURE.md`, "One owner for each path"): the files that a recovery itself keeps in
/// `/etc`, what `/etc/tmpfiles.d` names, and the stamp of the last update.
pub const NOT_RESTORED: [&str; 10] = [
    "/etc/systemd/system/crio-wipe.service.d",
    "/etc/systemd/system/crio-wipe.service.d/10-recovery-images.conf",
    "/etc/systemd/system/kubelet.service.d/10-recovery-hold.conf",
    "/etc/systemd/system/recovery-resume.service",
    "/etc/systemd/system/recovery-schedule.service",
    "/etc/systemd/system/recovery-schedule.timer",
    "/etc/systemd/system/timers.target.wants",
    "/etc/systemd/system/timers.target.wants/recovery-schedule.timer",
    super::layout::VOLATILE,
    "/etc/.updated",
];

/// The node's own object, in which kubelet says now and then when it last was ready.
const NODES: &[u8] = b"/kubernetes.io/minions/";

/// One state of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Each path, with its attributes as text.
    pub files: BTreeMap<PathBuf, String>,
    /// Each key, with a hash of its value.
    pub keys: BTreeMap<Vec<u8>, String>,
}

impl Snapshot {
    /// The state now; the cluster must be up.
    pub fn take(node: &Node) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for (key, value) in node.keys()? {
            let hash = if key.starts_with(NODES) { hash(&without_heartbeat(&value)) } else { hash(&value) };
            keys.insert(key, hash);
        }
        Ok(Self { files: Self::files_of(node)?, keys })
    }

    /// The files alone.
    pub fn files_of(node: &Node) -> Result<BTreeMap<PathBuf, String>> {
        let (mut files, mut names) = (BTreeMap::new(), BTreeMap::new());
        for tree in TREES.iter().chain(&MANAGED) {
            walk(&node.root(), &node.at(tree), &mut files, &mut names)?;
        }
        Ok(files)
    }

    /// What differs in `later`, one line each; nothing when it is the same, [`NOT_RESTORED`] aside.
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let mut lines = differences(&self.files, &later.files, |path| path.display().to_string());
        lines.retain(|line| !NOT_RESTORED.iter().any(|path| line.starts_with(&format!("{path}: "))));
        lines.extend(differences(&self.keys, &later.keys, |key| format!("key {}", String::from_utf8_lossy(key))));
        lines
    }
}

fn differences<K: Ord>(before: &BTreeMap<K, String>, after: &BTreeMap<K, String>, name: impl Fn(&K) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, was) in before {
        match after.get(key) {
            None => lines.push(format!("{}: is gone", name(key))),
            Some(is) if is != was => lines.push(format!("{}: was {was}, is {is}", name(key))),
            Some(_) => {}
        }
    }
    lines.extend(after.keys().filter(|key| !before.contains_key(key)).map(|key| format!("{}: is new", name(key))));
    lines
}

/// The node's object without the times of its conditions. One that is not JSON stays as it is.
fn without_heartbeat(node: &[u8]) -> Vec<u8> {
    let Ok(mut object) = serde_json::from_slice::<serde_json::Value>(node) else { return node.to_vec() };
    for condition in object.pointer_mut("/status/conditions").and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        for time in ["lastHeartbeatTime", "lastTransitionTime"] {
            condition.as_object_mut().map(|fields| fields.remove(time));
        }
    }
    object.to_string().into_bytes()
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Adds what is at `path` and below. `names` holds the first name of each file that has several.
fn walk(root: &Path, path: &Path, files: &mut BTreeMap<PathBuf, String>, names: &mut BTreeMap<u64, PathBuf>) -> Result<()> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        // What runs on the node may be at work.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    if meta.file_type().is_socket() {
        return Ok(());
    }
    let shown = Path::new("/").join(path.strip_prefix(root)?);
    // Restoring what is in a directory changes its time, and is to put it back.
    let mut words = vec![format!("{:06o} {}:{}", meta.mode(), meta.uid(), meta.gid())];
    if !(meta.is_dir() && MANAGED.iter().any(|tree| shown.starts_with(tree))) {
        words.push(format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    if meta.is_file() {
        words.push(format!("{} bytes {}", meta.len(), hash(&std::fs::read(path)?)));
        if meta.len() > 1 << 20 {
            // A hole takes no blocks; how many a file without one takes is the file system's business.
            words.push(if meta.blocks() * 512 < meta.len() / 2 { "sparse" } else { "full" }.to_owned());
        }
        if meta.nlink() > 1 {
            let first = names.entry(meta.ino()).or_insert_with(|| shown.clone());
            words.push(format!("{} names, the first {}", meta.nlink(), first.display()));
        }
        words.extend(flags(path));
    } else if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
        words.push(format!("device {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    } else if meta.is_symlink() {
        words.push(format!("-> {}", std::fs::read_link(path)?.display()));
    }
    words.extend(attributes(path)?.iter().map(|(name, value)| format!("{name}={}", hash(value))));
    files.insert(shown, words.join(" "));
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("listing {}", path.display()))? {
            walk(root, &entry?.path(), files, names)?;
        }
    }
    Ok(())
}

fn attributes(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0_u8; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list).with_context(|| format!("listing the attributes of {}", path.display()))?;
    let mut all = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 65_536];
        let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value)?;
        value.truncate(length);
        all.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(all)
}

/// Those of chattr(1) that are in the way of a change.
fn flags(path: &Path) -> Vec<String> {
    use rustix::fs::IFlags;
    let flags = std::fs::File::open(path).ok().and_then(|file| rustix::fs::ioctl_getflags(&file).ok()).unwrap_or(IFlags::empty());
    let names = [(IFlags::IMMUTABLE, "immutable"), (IFlags::APPEND, "append-only")];
    names.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| (*name).to_owned()).collect()
}
