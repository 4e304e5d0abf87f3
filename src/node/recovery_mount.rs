//! What mounts the recovery directory, where it is a file system of its own: the unit, who enabled it, and whether what is mounted is what it says.
//!
//! The unit is the machine configuration's, somebody's, `/etc/fstab`'s, or [`MADE`] by `recovery partition create`. Each deployment has an `/etc` of its
//! own, an older one knows nothing of the partition, and a restored `/etc` may be of before it. Without the mount, the journal would be out of sight
//! after the reboot, and kubelet held for ever. So the unit is put into every `/etc` that will be booted, as the [hold](super::hold) is, and no restore
//! removes it ([`kept`]). A line of fstab cannot be kept so: without it in the backup, no recovery begins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::dir::RecoveryDir;
use super::{Node, durable, mounts};
use crate::error::{AndNext, misfit, run};

/// The label of the partition in the table, and of its file system.
pub const LABEL: &str = "recovery";
/// The partition by its name in the table: what the original guide mounts.
pub const BY_PARTLABEL: &str = "/dev/disk/by-partlabel/recovery";
/// The partition by the label of its file system.
pub const BY_LABEL: &str = "/dev/disk/by-label/recovery";
/// The packaged unit: its comments say why each line is there.
const PACKAGED: &str = include_str!("../../systemd/var-recovery.mount");
/// The first line of a unit that `recovery partition create` has made.
pub const MADE: &str = "# Made by `recovery partition create`.\n";
/// The folder of unit files below `/etc`.
const UNITS: &str = "systemd/system";
/// Where systemd looks for units: systemd.unit(5), "Unit File Load Path", in the order in which they win.
const LOAD_PATH: [&str; 6] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Whose start at a boot waits for the mount.
const WANTED_BY: &str = "local-fs.target";

/// The name of the unit that mounts `dir` (systemd-escape(1), `--path`).
#[must_use]
pub fn unit_name(dir: &Path) -> String {
    format!("{}.mount", escaped(dir))
}

/// A path in the name of a unit.
fn escaped(path: &Path) -> String {
    let words = path.to_string_lossy();
    let mut name = String::new();
    for (at, c) in words.trim_matches('/').chars().enumerate() {
        match c {
            '/' => name.push('-'),
            '.' if at == 0 => name.push_str("\\x2e"),
            c if c.is_ascii_alphanumeric() || "_.:".contains(c) => name.push(c),
            c => c.to_string().bytes().for_each(|byte| name += &format!("\\x{byte:02x}")),
        }
    }
    name
}

/// The unit that mounts `device` at `dir`, without comments. With `fsck`, systemd checks the file system first, as the original guide has it.
#[must_use]
pub fn unit(dir: &Path, device: &str, fsck: bool) -> String {
    let check = format!("systemd-fsck@{}.service", escaped(Path::new(device)));
    let mut text = String::new();
    for line in PACKAGED.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once('=') {
            Some(("What", _)) => text += &format!("What={device}"),
            Some(("Where", _)) => text += &format!("Where={}", dir.display()),
            Some(("Before", _)) if fsck => text += &format!("{line}\nRequires={check}\nAfter={check}"),
            _ => text += line,
        }
        text.push('\n');
    }
    text
}

/// The unit that is to mount the recovery directory at a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// The unit file, as the node calls it.
    pub file: PathBuf,
    /// What it mounts.
    pub what: String,
    /// `recovery partition create` has made it.
    pub made: bool,
    /// A link pulls it in at every boot. Without one, the units of the agent do (`RequiresMountsFor=`): the one that goes on with a recovery, those of timers.
    pub linked: bool,
}

impl Configured {
    /// When it is mounted, in words.
    #[must_use]
    pub fn when(&self) -> &'static str {
        if self.linked { "at every boot" } else { "as soon as a unit needs it, as the one does that goes on with a recovery" }
    }

    /// What leaves the directory to the disk below it.
    fn way_out(&self, name: &str) -> String {
        let file = self.file.display();
        match self.file.to_string_lossy() {
            file if file.starts_with("/run/systemd/generator") => "removing its line from /etc/fstab leaves".to_owned(),
            path if path.starts_with("/etc") => format!("`systemctl disable {name}` and `rm {file}` leave"),
            _ => format!("`systemctl mask {name}` leaves"),
        }
    }
}

/// The unit that is to mount `dir` at a boot of this node; `None` where it is no mount of its own. One that nothing links counts too: the unit that goes on
/// with a recovery pulls it in, over a journal that was written below it.
///
/// # Errors
/// When a unit file cannot be read.
pub fn configured(node: &Node, dir: &RecoveryDir) -> Result<Option<Configured>> {
    let name = unit_name(dir.shown());
    let folders = LOAD_PATH.map(Path::new);
    let Some(file) = folders.iter().map(|folder| folder.join(&name)).find(|file| node.exists(file)) else { return Ok(None) };
    // A mask is a link to /dev/null, or empty.
    if node.real_path(&file).metadata().is_ok_and(|meta| !meta.is_file() || meta.len() == 0) {
        return Ok(None);
    }
    let text = node.read_text(&file)?;
    let mut what = setting(&text);
    // Those for all mounts come behind every other (unit_file_find_dropin_paths in systemd 252).
    let (own, of_all) = (drop_in_folders(&name), ["mount.d".to_owned()]);
    let in_order =
        [&own[..], &of_all].into_iter().flat_map(|names| folders.iter().flat_map(move |folder| names.iter().map(|one| folder.join(one))));
    for path in drop_ins(in_order.map(|folder| node.real_path(folder))).into_values() {
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", node.shown(&path).display()))?;
        what = setting(&text).or(what);
    }
    let linked = folders.iter().any(|folder| !links(&node.real_path(folder), &name).is_empty());
    Ok(what.map(|what| Configured { made: text.starts_with(MADE), what, file, linked }))
}

/// The folders with drop-ins for a unit by its name, the most specific first (systemd.unit(5)): `var-recovery.mount.d`, `var-.mount.d`.
fn drop_in_folders(name: &str) -> Vec<String> {
    let stem = name.strip_suffix(".mount").unwrap_or(name);
    let prefixes = stem.rmatch_indices('-').map(|(at, _)| format!("{}.mount.d", &stem[..=at]));
    std::iter::once(format!("{name}.d")).chain(prefixes).collect()
}

/// The drop-ins in folders, in the order in which they are read, which is that of their names wherever they are: of two of one name that of the first folder
/// counts. One that is empty, or a link to /dev/null, says nothing, and keeps others of its name from saying anything.
fn drop_ins(folders: impl Iterator<Item = PathBuf>) -> BTreeMap<OsString, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten()) {
        // Somebody may keep older ones in a folder there.
        if entry.path().extension().is_some_and(|ending| ending == "conf") && !entry.path().is_dir() {
            found.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    found
}

/// `What=` in the text of a unit; of two the last counts.
#[must_use]
pub fn setting(text: &str) -> Option<String> {
    let value = text.lines().rev().find_map(|line| line.trim().strip_prefix("What")?.trim_start().strip_prefix('='))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The links in a folder of units that pull in a unit, below it. systemd takes nothing but links there.
fn links(folder: &Path, unit: &str) -> Vec<PathBuf> {
    let list = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| PathBuf::from(entry.file_name()));
    let pulls = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "wants" || ending == "requires");
    list.filter(pulls).map(|path| path.join(unit)).filter(|link| folder.join(link).is_symlink()).collect()
}

/// Whether what is mounted at the recovery directory is what should be. Returns a warning where there is a partition for it that is not used.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the unit that mounts it at a boot has not, or something else is there: what is
/// written now would be out of sight after the next boot.
pub fn check(node: &Node, dir: &RecoveryDir) -> Result<Option<String>> {
    let shown = dir.shown().display();
    let Some(unit) = configured(node, dir)? else {
        // A subdirectory of the mounted partition lies on it, too; of what does not say its device, nothing is said.
        let partition = partition(node).filter(|(_, number)| device_below(dir).is_some_and(|there| there != *number));
        return Ok(partition.map(|(link, _)| {
            format!(
                "there is a partition for it, {link}, and it is not what {shown} lies on: `recovery partition status` says what is missing"
            )
        }));
    };
    let name = unit_name(dir.shown());
    if !is_mounted(dir)? {
        return Err(misfit(format!(
            "{shown} is not mounted, although {} mounts {} there {}: what is written now would be out of sight then",
            unit.file.display(),
            unit.what,
            unit.when()
        ))
        .and_next(run(
            format!("systemctl start {name}"),
            format!("mounts it; where the partition is lost for good, {} the directory to the disk below it", unit.way_out(&name)),
        )));
    }
    match (device_of(node, &unit.what), device_below(dir)) {
        (Some(meant), Some(there)) if meant != there => Err(misfit(format!(
            "what is mounted at {shown} is not {}, which {} mounts there {}: what is written now would be out of sight then",
            unit.what,
            unit.file.display(),
            unit.when()
        ))
        .and_next(run(format!("findmnt {shown}"), "shows what is there: unmount it, mount the other, or put the unit right"))),
        _ => Ok(None),
    }
}

/// True when something is mounted right at the recovery directory.
///
/// # Errors
/// When the mounts cannot be read.
pub fn is_mounted(dir: &RecoveryDir) -> Result<bool> {
    mounts::is_mount_point(&dir.path().canonicalize().unwrap_or_else(|_| dir.path().to_owned()))
}

/// The number of the device that the recovery directory lies on. `None` where its file system has a number of its own, of major number 0, as btrfs and
/// overlay file systems have: which devices are below them is not told by that.
#[must_use]
pub fn device_below(dir: &RecoveryDir) -> Option<u64> {
    let number = dir.path().metadata().ok()?.dev();
    (rustix::fs::major(number) != 0).then_some(number)
}

/// A partition with the label, by either of its names: the link and the number of the device. `None` where the node shows none.
#[must_use]
pub fn partition(node: &Node) -> Option<(&'static str, u64)> {
    [BY_PARTLABEL, BY_LABEL].into_iter().find_map(|link| Some((link, device_of(node, link)?)))
}

/// The number of the device that a unit names: `None` where it is not there, or is not named as a device.
#[must_use]
pub fn device_of(node: &Node, what: &str) -> Option<u64> {
    let path = match what.split_once('=') {
        None => PathBuf::from(what),
        Some((by @ ("LABEL" | "UUID" | "PARTLABEL" | "PARTUUID"), name)) => {
            Path::new("/dev/disk").join(format!("by-{}", by.to_ascii_lowercase())).join(name.trim_matches('"'))
        }
        Some(_) => return None,
    };
    let meta = node.real_path(path).metadata().ok()?;
    rustix::fs::FileType::from_raw_mode(meta.mode()).is_block_device().then(|| meta.rdev())
}

/// Writes the unit that mounts `device` at the recovery directory, and the link that starts it at a boot, durably. The unit comes last: from its rename
/// on, and not before, each boot mounts the device.
///
/// # Errors
/// When they cannot be written.
pub fn make(node: &Node, dir: &RecoveryDir, device: &str) -> Result<()> {
    put(&node.real_path("/etc"), &unit_name(dir.shown()), &format!("{MADE}{}", unit(dir.shown(), device, false)))
}

fn put(etc: &Path, name: &str, text: &str) -> Result<()> {
    let units = etc.join(UNITS);
    let wants = units.join(format!("{WANTED_BY}.wants"));
    std::fs::create_dir_all(&wants).with_context(|| format!("making {}", wants.display()))?;
    for made in [&wants, &units, &etc.join("systemd"), etc] {
        durable::sync_dir(made)?;
    }
    durable::symlink(&Path::new("/etc").join(UNITS).join(name), &wants.join(name))?;
    durable::write(&units.join(name), text.as_bytes(), 0o644)
}

/// Puts what mounts the recovery directory at a boot into the `/etc` at `etc`: another deployment's. A unit that `recovery partition create` has made
/// replaces what is there; another is put where there is none. True when something was written.
///
/// # Errors
/// When it cannot be read or written.
pub fn install(node: &Node, dir: &RecoveryDir, etc: &Path) -> Result<bool> {
    let (own, file) = (node.real_path("/etc"), Path::new(UNITS).join(unit_name(dir.shown())));
    let there = |path: &Path| {
        let meta = etc.join(path).symlink_metadata().ok()?;
        if meta.is_file() { std::fs::read(etc.join(path)).ok() } else { Some(Vec::new()) }
    };
    let kept = kept(node, dir, &there)?;
    let is_same = |path: &PathBuf| {
        let from = own.join(path);
        if from.is_symlink() && *path != file { there(path).is_some() } else { std::fs::read(from).ok() == there(path) }
    };
    if kept.iter().all(is_same) {
        return Ok(false);
    }
    let (unit, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(|path| *path == file);
    // The unit comes last: from its rename on, and not before, each boot mounts the device.
    others.iter().chain(&unit).try_for_each(|path| copy(&own, etc, path, *path == file))?;
    Ok(true)
}

/// Copies a small file, or a link, from one `/etc` to the other, durably. Of a `unit` that is a link it takes the text: what that leads to may not be there.
fn copy(own: &Path, etc: &Path, path: &Path, unit: bool) -> Result<()> {
    let (from, to) = (own.join(path), etc.join(path));
    let folders: Vec<&Path> = path.ancestors().skip(1).map(|folder| if folder == Path::new("") { etc } else { folder }).collect();
    let copied = || -> Result<()> {
        std::fs::create_dir_all(to.parent().unwrap_or(etc))?;
        folders.iter().try_for_each(|folder| durable::sync_dir(&etc.join(folder)))?;
        if from.is_symlink() && !unit {
            return durable::symlink(&std::fs::read_link(&from)?, &to);
        }
        let mode = from.metadata()?.mode() & 0o7777;
        durable::write(&to, &std::fs::read(&from)?, mode)
    };
    copied().with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// What of this `/etc` mounts the recovery directory at a boot, and is kept whatever is restored, relative to it: what `recovery partition create` has made,
/// always; a unit of somebody else, with its links and drop-ins, where the other `/etc` would not mount the same. (What would is left to it: a machine
/// configuration looks after its files itself.) `there` reads a file of the other one, and of a link nothing.
///
/// # Errors
/// When a unit file cannot be read.
pub fn kept(node: &Node, dir: &RecoveryDir, there: &dyn Fn(&Path) -> Option<Vec<u8>>) -> Result<Vec<PathBuf>> {
    let (name, units) = (unit_name(dir.shown()), Path::new(UNITS));
    let file = units.join(&name);
    let Some(unit) = configured(node, dir)? else { return Ok(Vec::new()) };
    if unit.file != Path::new("/etc").join(&file) {
        return Ok(Vec::new());
    }
    let own = node.real_path(Path::new("/etc").join(units));
    let links: Vec<PathBuf> = links(&own, &name).into_iter().map(|link| units.join(link)).collect();
    let folders = drop_in_folders(&name).into_iter().chain(["mount.d".to_owned()]);
    let below = |path: PathBuf| path.strip_prefix(&own).map(|path| units.join(path)).ok();
    let drop_ins: Vec<PathBuf> = drop_ins(folders.map(|folder| own.join(folder))).into_values().filter_map(below).collect();
    let says = |path: &PathBuf| there(path).and_then(|text| setting(&String::from_utf8_lossy(&text)));
    let mounts = drop_ins.iter().rev().find_map(says).or_else(|| says(&file));
    let is_linked = links.is_empty() || links.iter().any(|link| there(link).is_some());
    if !unit.made && mounts == Some(unit.what) && is_linked {
        return Ok(Vec::new());
    }
    let mut kept = [vec![file], links, drop_ins].concat();
    kept.sort();
    Ok(kept)
}

/// True when a line of `/etc/fstab` mounts the recovery directory, and nothing else does.
///
/// # Errors
/// When a unit file cannot be read.
pub fn is_of_fstab(node: &Node, dir: &RecoveryDir) -> Result<bool> {
    Ok(configured(node, dir)?.is_some_and(|unit| unit.file.starts_with("/run/systemd/generator")))
}

/// True when the text of an `/etc/fstab` has a line for the directory (fstab(5)).
#[must_use]
pub fn in_fstab(text: &str, dir: &Path) -> bool {
    let point = |line: &str| line.split_whitespace().nth(1).is_some_and(|point| Path::new(point) == dir);
    text.lines().filter(|line| !line.trim_start().starts_with('#')).any(point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{exit_code, said};
    use crate::node::dir::DEFAULT;

    fn node() -> (tempfile::TempDir, Node, RecoveryDir) {
        let root = tempfile::tempdir().unwrap();
        let node = Node::at(root.path(), None);
        let dir = RecoveryDir::new(&node, Path::new(DEFAULT));
        for folder in ["etc/systemd/system", "var/recovery"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        (root, node, dir)
    }

    #[test]
    fn names_are_those_of_systemd() {
        // systemd-escape 252: `--path --suffix=mount`, and of a device.
        for (path, name) in [("/var/recovery", "var-recovery.mount"), ("/srv/a-b/.c", "srv-a\\x2db-.c.mount"), ("/.x", "\\x2ex.mount")] {
            assert_eq!(unit_name(Path::new(path)), name);
        }
        assert_eq!(escaped(Path::new(BY_PARTLABEL)), "dev-disk-by\\x2dpartlabel-recovery");
    }

    #[test]
    fn a_unit_counts_because_the_agents_own_pull_it_in() -> Result<()> {
        let (root, node, dir) = node();
        assert_eq!((configured(&node, &dir)?, check(&node, &dir)?), (None, None));
        std::fs::write(root.path().join("etc/systemd/system/var-recovery.mount"), unit(Path::new(DEFAULT), BY_LABEL, true))?;
        let unlinked = configured(&node, &dir)?.unwrap();
        assert_eq!((unlinked.what.as_str(), unlinked.made, unlinked.linked), (BY_LABEL, false, false));
        assert!(said(&check(&node, &dir).unwrap_err()).contains("there as soon as a unit needs it"));
        // It is kept by itself, and where it is there already nothing is.
        let file = Path::new(UNITS).join("var-recovery.mount");
        assert_eq!(kept(&node, &dir, &|_| None)?, std::slice::from_ref(&file));
        assert!(kept(&node, &dir, &|path| (*path == file).then(|| unit(Path::new(DEFAULT), BY_LABEL, true).into_bytes()))?.is_empty());
        // Not a link, so that systemd ignores it.
        std::fs::create_dir_all(root.path().join("etc/systemd/system/local-fs.target.wants"))?;
        std::fs::write(root.path().join("etc/systemd/system/local-fs.target.wants/var-recovery.mount"), "")?;
        assert!(!configured(&node, &dir)?.unwrap().linked);
        std::fs::create_dir_all(root.path().join("etc/systemd/system/local-fs.target.requires"))?;
        std::os::unix::fs::symlink(
            "../var-recovery.mount",
            root.path().join("etc/systemd/system/local-fs.target.requires/var-recovery.mount"),
        )?;
        let unit = configured(&node, &dir)?.unwrap();
        assert_eq!((unit.what.as_str(), unit.made, unit.linked), (BY_LABEL, false, true));
        let names = ["local-fs.target.requires/var-recovery.mount", "var-recovery.mount"].map(|name| Path::new(UNITS).join(name));
        assert_eq!(kept(&node, &dir, &|_| None)?, names);
        let same =
            |path: &Path| Some(if *path == names[1] { super::unit(Path::new(DEFAULT), BY_LABEL, false).into_bytes() } else { Vec::new() });
        assert!(kept(&node, &dir, &same)?.is_empty(), "one that mounts the same keeps its own");
        // Masked, not enabled, or of another device.
        assert_eq!(kept(&node, &dir, &|_| Some(Vec::new()))?, names);
        assert_eq!(kept(&node, &dir, &|path| same(path).filter(|_| *path == names[1]))?, names);
        assert_eq!(kept(&node, &dir, &|path| same(path).map(|text| [text, b"What=/dev/sdz\n".to_vec()].concat()))?, names);
        // The drop-in that is packaged beside it.
        std::fs::create_dir_all(root.path().join("etc/systemd/system/var-recovery.mount.d"))?;
        std::fs::write(
            root.path().join("etc/systemd/system/var-recovery.mount.d/10-partlabel.conf"),
            include_str!("../../systemd/10-partlabel.conf"),
        )?;
        assert_eq!(configured(&node, &dir)?.unwrap().what, BY_PARTLABEL);
        for folder in ["old", "old.conf"] {
            std::fs::create_dir(root.path().join("etc/systemd/system/var-recovery.mount.d").join(folder))?;
        }
        let other = root.path().join("other/etc");
        assert!(install(&node, &dir, &other)? && !install(&node, &dir, &other)?);
        for path in ["local-fs.target.requires/var-recovery.mount", "var-recovery.mount", "var-recovery.mount.d/10-partlabel.conf"] {
            let (own, copied) = (root.path().join("etc").join(UNITS).join(path), other.join(UNITS).join(path));
            assert_eq!(own.is_symlink(), copied.is_symlink());
            assert!(own.is_symlink() && own.read_link()? == copied.read_link()? || std::fs::read(own)? == std::fs::read(copied)?, "{path}");
        }
        let error = check(&node, &dir).unwrap_err();
        assert_eq!(exit_code(&error), 78);
        assert!(
            said(&error).contains("is not mounted, although /etc/systemd/system/var-recovery.mount mounts /dev/disk/by-partlabel"),
            "{error:#}"
        );
        Ok(())
    }

    /// The order, and what is hidden, is that of `systemd-analyze verify` (systemd 252), which names each such file as it reads it.
    #[test]
    fn drop_ins_are_read_by_their_names_wherever_they_are() -> Result<()> {
        let (root, node, dir) = node();
        let what = || Ok::<_, anyhow::Error>(configured(&node, &dir)?.unwrap().what);
        let put = |path: &str, what: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, if what.is_empty() { String::new() } else { format!("[Mount]\nWhat={what}\n") }).unwrap();
        };
        put("etc/systemd/system/var-recovery.mount", "/dev/unit");
        put("usr/lib/systemd/system/mount.d/50-all.conf", "/dev/all");
        assert_eq!(what()?, "/dev/all");
        put("usr/lib/systemd/system/var-.mount.d/60-var.conf", "/dev/var");
        assert_eq!(what()?, "/dev/var");
        // A later name counts, also where its folder has less to say.
        put("etc/systemd/system/var-recovery.mount.d/20-own.conf", "/dev/own");
        assert_eq!(what()?, "/dev/var");
        // Of one name that of /etc, and of a unit's own folder before that for all mounts.
        put("etc/systemd/system/var-.mount.d/60-var.conf", "/dev/etc");
        put("etc/systemd/system/mount.d/60-var.conf", "/dev/all-of-etc");
        assert_eq!(what()?, "/dev/etc");
        put("etc/systemd/system/mount.d/20-own.conf", "/dev/all-of-etc");
        let kept = kept(&node, &dir, &|_| None)?;
        let names = ["mount.d/60-var.conf", "var-.mount.d/60-var.conf", "var-recovery.mount", "var-recovery.mount.d/20-own.conf"];
        assert_eq!(kept, [names[1], names[2], names[3]].map(|name| Path::new(UNITS).join(name)));
        // An empty one hides those of its name, and so does a link to /dev/null.
        put("etc/systemd/system/var-.mount.d/60-var.conf", "");
        assert_eq!(what()?, "/dev/all");
        put("etc/systemd/system/var-recovery.mount.d/50-all.conf", "x");
        let mask = root.path().join("etc/systemd/system/var-recovery.mount.d/50-all.conf");
        std::fs::remove_file(&mask)?;
        std::os::unix::fs::symlink("/dev/null", mask)?;
        assert_eq!(what()?, "/dev/own");
        // Nor is an empty unit one.
        put("etc/systemd/system/var-recovery.mount", "");
        assert_eq!(configured(&node, &dir)?, None);
        Ok(())
    }

    #[test]
    fn a_unit_that_was_made_goes_into_every_etc_and_no_restore_touches_it() -> Result<()> {
        let (root, node, dir) = node();
        let other = root.path().join("other/etc");
        std::fs::create_dir_all(&other)?;
        assert!(!install(&node, &dir, &other)?);
        make(&node, &dir, BY_PARTLABEL)?;
        make(&node, &dir, BY_PARTLABEL)?;
        let unit = configured(&node, &dir)?.unwrap();
        assert!(unit.made && unit.what == BY_PARTLABEL, "{unit:?}");
        assert!(install(&node, &dir, &other)? && !install(&node, &dir, &other)?);
        assert!(
            std::fs::read_to_string(other.join("systemd/system/var-recovery.mount"))?.contains("What=/dev/disk/by-partlabel/recovery\n")
        );
        let all = kept(&node, &dir, &|path| std::fs::read(other.join(path)).ok())?;
        assert!(all.len() == 2 && all.iter().all(|path| node.path("/etc").join(path).symlink_metadata().is_ok()), "{all:?}");
        Ok(())
    }

    #[test]
    fn a_line_of_fstab_is_found_by_its_mount_point() {
        let text = "# /dev/sdb /var/recovery xfs\nUUID=1 / xfs defaults 0 0\nPARTLABEL=recovery\t/var/recovery/ xfs nofail 0 2\n";
        assert!(in_fstab(text, Path::new("/var/recovery")) && !in_fstab(text, Path::new("/var/recover")));
        assert!(!in_fstab("# /dev/sdb /var/recovery xfs\n/var/recovery\n", Path::new("/var/recovery")));
    }
}
