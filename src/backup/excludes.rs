//! `etc.exclude.list` of the old script: patterns for rsync's `--exclude-from`, read and written.
//!
//! rsync's are not anchored: `resolv.conf` leaves every file of that name alone, `a/b` every path that ends in it; a leading `/` ties one to the top. The agent's
//! own patterns always begin at `/etc`: an unanchored one becomes itself at the top, and every path that it matches now.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tmpfiles::literal;
use super::trees::always_excluded;

/// What the old script leaves to `cluster-restore.sh`. Here, the archive of the static pods owns it.
const OWNED: &str = "kubernetes/manifests";

/// The patterns of the list at `file` as the agent's own, tried on each of `trees` (copies of `/etc`). A list that is missing is empty.
///
/// # Errors
/// When the list or one of the trees cannot be read.
pub(super) fn import(file: &Path, trees: &[&Path]) -> Result<Vec<PathBuf>> {
    let text = match std::fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).replace('\u{fffd}', "*"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])).collect();
    let top = |line: &&str| line.trim_matches('/').replace("**", "*");
    let mut paths: Vec<PathBuf> = lines.iter().map(top).filter(|p| !p.is_empty() && p != OWNED).map(PathBuf::from).collect();
    let loose: Vec<Vec<&str>> = lines
        .iter()
        .filter(|l| !l.starts_with('/') && l.trim_matches('/') != OWNED)
        .map(|l| l.trim_matches('/').split('/').collect())
        .collect();
    for tree in trees {
        paths.extend(matched(tree, &loose)?);
    }
    paths.extend(always_excluded());
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// The list that stands for `patterns`: each tied to the top, and what the old script always leaves alone.
#[must_use]
pub(super) fn export(patterns: &[PathBuf]) -> String {
    let lines: Vec<String> = patterns.iter().map(|p| p.display().to_string()).chain([OWNED.to_owned()]).map(|p| format!("/{p}")).collect();
    lines.join("\n") + "\n"
}

/// Every path below `tree`, not at its top, that one of the patterns matches by its end.
fn matched(tree: &Path, patterns: &[Vec<&str>]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut walk = walkdir::WalkDir::new(tree).min_depth(1).into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.io_error().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => continue,
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

/// glob(7) within one component: `*`, `?`, `[…]`, backslash.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return name.is_empty() };
    match first {
        b'*' => (0..=name.len()).any(|at| matches(rest, &name[at..])),
        b'?' => !name.is_empty() && matches(rest, &name[1..]),
        b'[' if set(rest).is_some() => {
            let Some((members, after)) = set(rest) else { return false };
            name.first().is_some_and(|byte| contains(members, *byte)) && matches(after, &name[1..])
        }
        b'\\' if !rest.is_empty() => name.first() == rest.first() && matches(&rest[1..], &name[1..]),
        byte => name.first() == Some(byte) && matches(rest, &name[1..]),
    }
}

/// The members of a set whose `[` is behind us, and what follows its `]`; a `]` that comes first is a member.
fn set(pattern: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = 1 + usize::from(matches!(pattern.first(), Some(b'!' | b'^')));
    let end = pattern.iter().skip(first).position(|byte| *byte == b']')? + first;
    Some((&pattern[..end], &pattern[end + 1..]))
}

fn contains(members: &[u8], byte: u8) -> bool {
    let (negated, members) = match members.split_first() {
        Some((b'!' | b'^', rest)) => (true, rest),
        _ => (false, members),
    };
    let mut rest = members;
    let mut found = false;
    while let Some(first) = rest.first() {
        if let [low, b'-', high, ..] = rest {
            found |= (*low..=*high).contains(&byte);
            rest = &rest[3..];
        } else {
            found |= *first == byte;
            rest = &rest[1..];
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_match_as_in_a_shell() {
        let yes = [
            ("a", "a"),
            ("*", ""),
            ("a*c", "abbc"),
            ("?x", "ax"),
            ("[a-c]1", "b1"),
            ("[!a]", "b"),
            ("[]]", "]"),
            ("[*]", "*"),
            ("\\*", "*"),
        ];
        for (pattern, name) in yes {
            assert!(matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "b"), ("a*c", "ab"), ("?", ""), ("[a-c]", "d"), ("[!a]", "a"), ("[*]", "x"), ("[", "x"), ("\\*", "x")]
        {
            assert!(!matches(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn loose_patterns_become_the_paths_they_match() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for path in ["etc/a/resolv.conf", "etc/resolv.conf", "etc/x/cni/net.d", "etc/kubernetes/manifests", "node/b/resolv.conf/deep"] {
            std::fs::create_dir_all(dir.path().join(path))?;
        }
        let list = dir.path().join("list");
        std::fs::write(&list, "resolv.conf\ncni/net.d\n# no\n\n.updated\nkubernetes/manifests\n/tied\n")?;
        let paths = import(&list, &[&dir.path().join("etc"), &dir.path().join("node")])?;
        for wanted in ["resolv.conf", "a/resolv.conf", "b/resolv.conf", "cni/net.d", "x/cni/net.d", ".updated", "tied"] {
            assert!(paths.contains(&PathBuf::from(wanted)), "{wanted} in {paths:?}");
        }
        assert!(!paths.iter().any(|p| p.starts_with("kubernetes")));
        assert_eq!(paths.len(), 9, "{paths:?}");
        Ok(())
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("etc/deep/resolv.conf"))?;
        let list = dir.path().join("list");
        let mut patterns: Vec<PathBuf> = ["resolv.conf", "cni/*.d"].map(PathBuf::from).into();
        patterns.extend(always_excluded());
        patterns.sort();
        std::fs::write(&list, export(&patterns))?;
        assert_eq!(import(&list, &[&dir.path().join("etc")])?, patterns);
        assert_eq!(import(Path::new("/nowhere"), &[])?.len(), 3);
        Ok(())
    }
}
