//! `etc.exclude.list` of the old script: patterns for rsync's `--exclude-from`, read and written.
//!
//! rsync's patterns are not anchored: `resolv.conf` excludes every file of that name, `a/b` every path that ends in it; a leading `/`
//! anchors a pattern at the top. The agent's own patterns are always anchored at `/etc`. So an unanchored pattern becomes itself at the
//! top, and every path that it matches now.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Selection;
use crate::archive::select::{matches, one};
use crate::backup::parts::always_excluded;
use crate::backup::take::tmpfiles::literal;
use crate::error::unsupported;
use crate::node::mounts;

/// The most patterns that a list may expand to; a real one has some twenty. Each part of a line that begins with a wildcard doubles the
/// patterns of that line.
const MOST_PATTERNS: usize = 10_000;
/// The most bytes of these patterns.
const MOST_PATTERN_BYTES: usize = 1 << 20;
/// What the old script leaves to `cluster-restore.sh`. Here it belongs to the archive of the static pods.
const LEFT_TO_STATIC_PODS: &str = "kubernetes/manifests";

/// The patterns of the list in `file`, converted to the agent's own by trying them on each of `trees` (copies of `/etc`). A missing list is
/// empty.
///
/// # Errors
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it expands to more than [`MOST_PATTERNS`] patterns; when the
/// list or one of the trees cannot be read.
pub(super) fn read_list(file: &Path, trees: &[&Path]) -> Result<Vec<PathBuf>> {
    let text = match std::fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\u{fffd}', "*"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])).collect();
    let top = |line: &&str| line.trim_matches('/').replace("**", "*");
    let mut paths = Vec::new();
    for line in lines.iter().map(top).filter(|p| p != LEFT_TO_STATIC_PODS) {
        paths.extend(as_glob(&line)?);
        if paths.len() > MOST_PATTERNS {
            return Err(too_many());
        }
    }
    let loose: Vec<Vec<&str>> = lines
        .iter()
        .filter(|l| !l.starts_with('/') && l.trim_matches('/') != LEFT_TO_STATIC_PODS)
        .map(|l| l.trim_matches('/').split('/').collect())
        .collect();
    for tree in trees {
        paths.extend(matched(tree, &loose)?);
        // The patterns go into the manifest, which has a limit of its own.
        if paths.len() > MOST_PATTERNS || paths.iter().map(|path| path.as_os_str().len()).sum::<usize>() > MOST_PATTERN_BYTES {
            return Err(too_many());
        }
    }
    paths.extend(always_excluded());
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// The list for `patterns`: each anchored at the top, and what the old script always excludes.
#[must_use]
pub(super) fn to_list(patterns: &[PathBuf]) -> String {
    let lines: Vec<String> =
        patterns.iter().map(|p| p.display().to_string()).chain([LEFT_TO_STATIC_PODS.to_owned()]).map(|p| format!("/{p}")).collect();
    lines.join("\n") + "\n"
}

/// Every path below the top of `tree` whose end one of the patterns matches.
fn matched(tree: &Path, patterns: &[Vec<&str>]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut walk = walkdir::WalkDir::new(tree).min_depth(1).into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.io_error().is_some_and(mounts::is_out_of_reach) => continue,
            Err(error) => return Err(error).with_context(|| format!("walking through {}", tree.display())),
        };
        let below = entry.path().strip_prefix(tree).unwrap_or(entry.path());
        let parts: Vec<&OsStr> = below.iter().collect();
        let fits = |pattern: &&Vec<&str>| {
            pattern.len() < parts.len()
                && pattern.iter().rev().zip(parts.iter().rev()).all(|(p, part)| matches(p.as_bytes(), part.as_encoded_bytes()))
        };
        if patterns.iter().any(|pattern| fits(&pattern)) {
            found.push(PathBuf::from(literal(&below.to_string_lossy()).replace('\u{fffd}', "*")));
            if entry.file_type().is_dir() {
                walk.skip_current_dir();
            }
        }
    }
    Ok(found)
}

/// Converts rsync's pattern `line`, anchored at the top, to patterns of the agent's own that together match the same. In rsync a wildcard
/// also matches a leading period; in glob(7), and so in tmpfiles.d and here, a leading period must be written out.
fn as_glob(line: &str) -> Result<Vec<PathBuf>> {
    let mut patterns = vec![Vec::new()];
    for part in line.split('/').filter(|part| !part.is_empty()) {
        let kinds = [vec![part.as_bytes().to_vec()], hidden(part.as_bytes())].concat();
        if patterns.len() * kinds.len() > MOST_PATTERNS {
            return Err(too_many());
        }
        let longer = |pattern: &Vec<u8>| {
            kinds.iter().map(|kind| [pattern, &b"/"[..usize::from(!pattern.is_empty())], kind].concat()).collect::<Vec<_>>()
        };
        patterns = patterns.iter().flat_map(longer).collect();
    }
    // No file that rsync or a restore visits has a name like `..`, so a pattern with it matches nothing and is left out.
    let fits = |path: &PathBuf| Selection::all().except([path]).is_ok();
    Ok(patterns.into_iter().map(|pattern| PathBuf::from(OsString::from_vec(pattern))).filter(fits).collect())
}

fn too_many() -> anyhow::Error {
    unsupported(format!(
        "the list expands to more than {MOST_PATTERNS} patterns, which is not supported: write it with fewer lines, or fewer wildcards"
    ))
}

/// The patterns of glob(7) for those names with a leading period that rsync's pattern `part` matches.
fn hidden(part: &[u8]) -> Vec<Vec<u8>> {
    match part {
        // A star matches the period, or nothing.
        [b'*', rest @ ..] => [vec![[b".", part].concat()], hidden(rest)].concat(),
        _ => one(part, b'.').map(|rest| [b".", rest].concat()).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files that a script names, sorted.
    fn files(dir: &Path, script: &str) -> Result<Vec<String>> {
        let output = std::process::Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).output()?;
        anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        let mut files: Vec<String> = String::from_utf8(output.stdout)?.lines().filter(|l| !l.ends_with('/')).map(str::to_owned).collect();
        files.sort();
        Ok(files)
    }

    /// Our patterns must leave out the same as the real rsync.
    #[test]
    fn tied_patterns_match_as_rsyncs_do() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (etc, list) = (dir.path().join("etc"), dir.path().join("list"));
        std::fs::create_dir_all(etc.join("sub"))?;
        for name in ["a", "ab", "b.d", ".a", ".ab", "..a", ".b.d", ".d", "*", "x"] {
            std::fs::write(etc.join(name), name)?;
            std::fs::write(etc.join("sub").join(name), name)?;
        }
        let patterns = "* a* *a **b ?a ?? *.d *?d *[.]d [.a]* [!a]a .* \\.a* \\* sub/* */.a* su?/?a [ ../etc .";
        for pattern in patterns.split(' ') {
            std::fs::write(&list, format!("/{pattern}\n"))?;
            let theirs = files(dir.path(), "rsync -rn --out-format=%n --exclude-from list etc/ to/")?;
            let selection = Selection::all().except(read_list(&list, &[])?)?;
            crate::archive::pack(&etc, &dir.path().join("etc.tar.zst"), &selection, None, &|_| {})?;
            let ours = files(dir.path(), "tar --zstd -tf etc.tar.zst | sed 's,^[.]/\\(.\\),\\1,'; rm etc.tar.zst")?;
            assert_eq!(ours, theirs, "{pattern}");
        }
        Ok(())
    }

    #[test]
    fn loose_patterns_become_the_paths_they_match() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for path in ["etc/a/resolv.conf", "etc/resolv.conf", "etc/x/cni/net.d", "etc/kubernetes/manifests", "node/b/resolv.conf/deep"] {
            std::fs::create_dir_all(dir.path().join(path))?;
        }
        let list = dir.path().join("list");
        std::fs::write(&list, "resolv.conf\ncni/net.d\n# no\n\n.updated\nkubernetes/manifests\n/tied\n")?;
        let paths = read_list(&list, &[&dir.path().join("etc"), &dir.path().join("node")])?;
        for wanted in ["resolv.conf", "a/resolv.conf", "b/resolv.conf", "cni/net.d", "x/cni/net.d", ".updated", "tied"] {
            assert!(paths.contains(&PathBuf::from(wanted)), "{wanted} in {paths:?}");
        }
        assert!(!paths.iter().any(|p| p.starts_with("kubernetes")));
        assert_eq!(paths.len(), 13, "{paths:?}");
        Ok(())
    }

    #[test]
    fn a_list_that_stands_for_too_much_is_not_taken() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let list = dir.path().join("list");
        std::fs::write(&list, "*/*/*/*/*\n")?;
        assert_eq!(read_list(&list, &[])?.len(), 32 + always_excluded().len());
        for text in ["*/".repeat(40), (0..9000).map(|n| format!("*{n}\n")).collect()] {
            std::fs::write(&list, text)?;
            let error = read_list(&list, &[]).unwrap_err();
            assert!(crate::error::exit_code(&error) == 64 && error.to_string().contains("more than 10000 patterns"), "{error:#}");
        }
        Ok(())
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("etc/deep/resolv.conf"))?;
        let list = dir.path().join("list");
        let mut patterns: Vec<PathBuf> = ["resolv.conf", "cni/x*.d"].map(PathBuf::from).into();
        patterns.extend(always_excluded());
        patterns.sort();
        std::fs::write(&list, to_list(&patterns))?;
        assert_eq!(read_list(&list, &[&dir.path().join("etc")])?, patterns);
        assert_eq!(read_list(Path::new("/nowhere"), &[])?.len(), always_excluded().len());
        Ok(())
    }
}
