//! CRI-O's configuration and release, as far as they decide whether the images survive the next boot.
//!
//! `crio wipe`, which OpenShift runs at every boot (`crio-wipe.service`), erases the whole store when CRI-O was not stopped in order: when the file
//! `clean.shutdown.supported` is there, and `clean.shutdown` is not. CRI-O removes the latter when it starts and writes it when it stops (seen with
//! 1.34). CRI-O's own start erases nothing then; from 1.31 on it looks for broken images and repairs them (`internal_repair`).
//!
//! What CRI-O's start does delete: the images of the containers in its store, when the release that ran last had another minor version. The
//! file `version_file_persist` records that release: by default in 1.22 to 1.24 (OpenShift 4.9 to 4.11), later only where the configuration
//! names such a file (defaults of CRI-O's releases 1.20 to 1.34).

use std::path::{Path, PathBuf};

use super::Node;

/// The unit that erases.
pub const WIPE_UNIT: &str = "crio-wipe.service";
/// `clean_shutdown_file`, where the configuration says nothing.
const DEFAULT_FILE: &str = "/var/lib/crio/clean.shutdown";
/// `version_file`, where the configuration says nothing. It is on a file system that is empty after a boot.
const VERSION_FILE: &str = "/run/crio/version";
/// `version_file_persist`, where the configuration says nothing, in the releases of [`DELETES`].
const PERSISTENT: &str = "/var/lib/crio/version";
/// The first and the last release that uses a `version_file_persist` by default and deletes images at its start.
const DELETES: (Release, Release) = (Release(1, 22), Release(1, 24));
/// The first release with `internal_repair` on by default.
const REPAIRS: Release = Release(1, 31);
const CONFIG: &str = "crio/crio.conf";
const DROP_INS: &str = "crio/crio.conf.d";

/// A minor release: 1.29.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Release {
    /// The CRI-O release that an OpenShift release comes with, which has the version of its Kubernetes: 1.24 for 4.11.
    #[must_use]
    pub fn of_openshift(version: &str) -> Option<Self> {
        let Self(major, minor) = Self::parse(version)?;
        (major == 4).then_some(Self(1, minor + 13))
    }

    fn parse(version: &str) -> Option<Self> {
        let mut numbers = version.trim().trim_matches('"').split('.');
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// The release that started last in this boot, from CRI-O's own version file; `None` when none did.
#[must_use]
pub fn release(node: &Node) -> Option<Release> {
    let file = said(node, Path::new("/etc"), "version_file").unwrap_or_else(|| VERSION_FILE.to_owned());
    Release::parse(&node.read_text(file).ok()?)
}

/// Whether CRI-O's start looks for broken images and layers and repairs them. After a power cut, an image that was being written may be
/// broken.
#[must_use]
pub fn repairs(node: &Node) -> bool {
    let told = said(node, Path::new("/etc"), "internal_repair").map(|said| said == "true");
    told.unwrap_or_else(|| release(node).is_none_or(|release| release >= REPAIRS))
}

/// The release that ran last on this store, when CRI-O of release `next`, configured below `etc`, would at its start delete the images of
/// the containers in the store; else `None`. `crio wipe` would delete them too, but it is held while a recovery is open.
#[must_use]
pub fn deletes_those_of(node: &Node, etc: &Path, next: Release) -> Option<String> {
    let by_default = (DELETES.0..=DELETES.1).contains(&next).then(|| PERSISTENT.to_owned());
    let file = said(node, etc, "version_file_persist").or(by_default).filter(|file| !file.is_empty())?;
    if next < DELETES.0 || said(node, etc, "internal_wipe").is_some_and(|said| said == "false") {
        return None;
    }
    // A version file that cannot be read counts as that of another release.
    match node.read_text(file).ok().and_then(|text| Release::parse(&text)) {
        Some(last) if last == next => None,
        Some(last) => Some(last.to_string()),
        None => Some("one that is not known".to_owned()),
    }
}

/// The node's path of the file that marks an orderly stop, when `crio wipe` finds it missing: all images are then erased at the next boot.
/// `None` when the file is there, and where CRI-O is configured to erase nothing (`clean_shutdown_file = ""`) or has never run. While CRI-O
/// runs, the file is never there.
#[must_use]
pub fn missing_mark(node: &Node) -> Option<PathBuf> {
    let told = said(node, Path::new("/etc"), "clean_shutdown_file");
    let mark = told.or_else(|| Some(DEFAULT_FILE.to_owned())).filter(|file| !file.is_empty())?;
    let supported = node.exists(format!("{mark}.supported"));
    (supported && !node.exists(&mark)).then(|| PathBuf::from(mark))
}

/// The value of a key in the configuration below `etc`: `crio.conf`, then the files in `crio.conf.d` by name; the last one that has the key
/// counts.
fn said(node: &Node, etc: &Path, key: &str) -> Option<String> {
    let mut files = vec![node.real_path(etc.join(CONFIG))];
    let mut more: Vec<PathBuf> =
        std::fs::read_dir(node.real_path(etc.join(DROP_INS))).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect();
    more.sort();
    files.append(&mut more);
    files.iter().filter_map(|file| value(&std::fs::read_to_string(file).ok()?, key)).next_back()
}

/// The string or bare word that a key has in the last line that sets it. CRI-O's keys are unique over all tables, so the table need not be
/// known.
fn value(text: &str, key: &str) -> Option<String> {
    let of = |line: &str| {
        let text = line.trim().strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
        match text.chars().next()? {
            quote @ ('"' | '\'') => text[1..].split_once(quote).map(|(value, _)| value.to_owned()),
            _ => text.split(['#', ' ', '\t']).next().map(str::to_owned),
        }
    };
    text.lines().filter_map(of).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, path: &str, text: &str) -> anyhow::Result<()> {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(root))?;
        Ok(std::fs::write(path, text)?)
    }

    #[test]
    fn what_the_next_start_deletes_depends_on_both_releases_and_the_configuration() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let put = |path: &str, text: &str| put(root.path(), path, text);
        let etc = Path::new("/target/etc");
        let [of_4_11, of_4_12] = ["4.11.59", "4.12.0-rc.1"].map(|version| Release::of_openshift(version).expect("a release"));
        assert_eq!((of_4_11, of_4_12), (Release(1, 24), Release(1, 25)));
        assert_eq!(Release::of_openshift("v1.29.5"), None);
        let last = |next| deletes_those_of(&node, etc, next);
        // A store of an older or a newer release, or of an unknown one.
        assert_eq!((last(of_4_11), last(of_4_12)), (Some("one that is not known".to_owned()), None));
        put("var/lib/crio/version", "\"1.25.5+unknown\"")?;
        assert_eq!(last(of_4_11).as_deref(), Some("1.25"));
        put("var/lib/crio/version", "\"1.24.6\"")?;
        assert_eq!(last(of_4_11), None, "the same");
        // The target's configuration counts, and every release obeys it.
        put("etc/crio/crio.conf", "version_file_persist = \"\"\n")?;
        assert_eq!(last(Release(1, 23)).as_deref(), Some("1.24"));
        put("target/etc/crio/crio.conf.d/50", "version_file_persist = \"\"\n")?;
        assert_eq!(last(Release(1, 23)), None);
        put("target/etc/crio/crio.conf.d/60", "version_file_persist = \"/var/lib/crio/version\"\n")?;
        assert_eq!(last(of_4_12).as_deref(), Some("1.24"));
        put("target/etc/crio/crio.conf.d/70", "internal_wipe = false # crio wipe does it\n")?;
        assert_eq!(last(of_4_12), None);
        Ok(())
    }

    #[test]
    fn whether_it_repairs_depends_on_the_release_that_runs() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        assert_eq!(release(&node), None);
        for (version, expected) in [("\"1.30.14+unknown\"", false), ("\"1.31.0\"", true), ("\"1.34.11+unknown\"", true)] {
            put(root.path(), "run/crio/version", version)?;
            assert_eq!(repairs(&node), expected, "{version}");
        }
        put(root.path(), "etc/crio/crio.conf", "[crio]\ninternal_repair = false\n")?;
        assert!(!repairs(&node) && release(&node) == Some(Release(1, 34)));
        Ok(())
    }

    #[test]
    fn what_is_erased_is_what_the_last_file_says() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let put = |path: &str, text: &str| put(root.path(), path, text);
        assert_eq!(missing_mark(&node), None, "it has never run");
        put("var/lib/crio/clean.shutdown.supported", "")?;
        assert_eq!(missing_mark(&node), Some(PathBuf::from(DEFAULT_FILE)));
        put("var/lib/crio/clean.shutdown", "")?;
        assert_eq!(missing_mark(&node), None, "stopped in order");
        // In other places: commented lines and other keys say nothing.
        put(
            "etc/crio/crio.conf",
            "[crio]\n# clean_shutdown_file = \"\"\nclean_shutdown_file = '/var/other' # there\nclean_shutdown_files = \"\"\n",
        )?;
        assert_eq!(missing_mark(&node), None, "no file says that this place is supported");
        put("var/other.supported", "")?;
        assert_eq!(missing_mark(&node), Some(PathBuf::from("/var/other")));
        // As the telco profile has it.
        put("etc/crio/crio.conf.d/99-crio-disable-wipe.toml", "[crio]\nclean_shutdown_file = \"\"\n")?;
        put("etc/crio/crio.conf.d/00-default", "[crio]\nclean_shutdown_file = \"/var/other\"\n")?;
        assert_eq!(missing_mark(&node), None);
        Ok(())
    }
}
