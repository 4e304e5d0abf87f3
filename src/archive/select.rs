//! Which part of a tree is selected: named paths, and patterns that are left out.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::Result;

use super::path::{compare_paths, is_below};
use crate::error::usage;

/// The directory in which a restore makes what it then renames into place. It belongs to no tree: what a killed restore left there is never
/// packed and never compared.
pub(super) const STAGE: &[u8] = b".recovery-stage";

/// Which part of a tree is selected. Paths are relative to the tree's root.
///
/// The parents of a named path are only passed through: they may be mount points, they are not listed, and their metadata is neither packed
/// nor restored. They may not be symbolic links; the caller resolves those ([`Node::real_path`](crate::node::Node::real_path)).
#[derive(Debug, Clone, Default)]
pub struct Selection {
    only: Option<Vec<Vec<u8>>>,
    except: Vec<Vec<Vec<u8>>>,
}

/// What a selection says about one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is selected, with everything below it (unless that is left out).
    Inside,
    /// It only leads to something that is selected.
    Parent,
    /// It is not selected.
    Outside,
}

impl Selection {
    /// The whole tree.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only these files and directories with everything below them, and the existence of their parent directories.
    #[must_use]
    pub fn only<P: AsRef<Path>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        let mut only: Vec<Vec<u8>> = paths.into_iter().map(|path| parts(path.as_ref()).join(&b'/')).collect();
        only.sort_by(|a, b| compare_paths(a, b));
        only.dedup();
        Self { only: Some(only), ..self }
    }

    /// Leaves out what these patterns match, with everything below: none of it is ever read, compared, written or deleted. A pattern is a
    /// path relative to the root, with the wildcards of glob(7) in its components; as there, a wildcard does not match a leading period.
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for a pattern that is absolute, empty or has `..` in it.
    pub fn except<P: AsRef<Path>>(mut self, patterns: impl IntoIterator<Item = P>) -> Result<Self> {
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let plain = pattern.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            let parts = parts(pattern);
            if !plain || parts.is_empty() {
                return Err(usage(format!("the pattern {} is not a path relative to the root of the tree", pattern.display())));
            }
            self.except.push(parts);
        }
        Ok(self)
    }

    /// What the selection says about `path`.
    pub(super) fn standing(&self, path: &[u8]) -> Standing {
        if self.excepts(path) || is_below(path, STAGE) {
            return Standing::Outside;
        }
        let Some(only) = &self.only else { return Standing::Inside };
        if only.iter().any(|named| is_below(path, named)) {
            Standing::Inside
        } else if only.iter().any(|named| is_below(named, path)) {
            Standing::Parent
        } else {
            Standing::Outside
        }
    }

    /// For a path that only leads to something selected: the names in it that lead on; sorted.
    pub(super) fn names_from(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        let below = self.only.iter().flatten().filter(|named| named.len() > path.len() && is_below(named, path));
        let mut names: Vec<Vec<u8>> = below.filter_map(|named| named[skip..].split(|b| *b == b'/').next().map(<[u8]>::to_vec)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// So many names a path can have before nothing that was named or left out is below it.
    pub(super) fn levels(&self) -> usize {
        let only = self.only.iter().flatten().map(|path| path.split(|byte| *byte == b'/').count());
        only.chain(self.except.iter().map(Vec::len)).max().unwrap_or(0)
    }

    fn excepts(&self, path: &[u8]) -> bool {
        !path.is_empty() && self.except.iter().any(|pattern| excepted(pattern, path))
    }
}

fn parts(path: &Path) -> Vec<Vec<u8>> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            // No file in a directory has this name, so it selects nothing.
            Component::ParentDir => Some(b"..".to_vec()),
            _ => None,
        })
        .collect()
}

/// True when the pattern matches `path` or a directory above it.
fn excepted(pattern: &[Vec<u8>], path: &[u8]) -> bool {
    let mut names = path.split(|b| *b == b'/');
    pattern.iter().all(|part| names.next().is_some_and(|name| glob(part, name)))
}

/// True when the wildcard pattern of glob(7) matches all of `name`, a single component.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        // An escaped period is an explicit one too.
        return pattern.starts_with(b"\\.") && glob(&pattern[1..], name);
    }
    matches(pattern, name)
}

/// As [`glob`], but a wildcard matches a leading period too.
pub(crate) fn matches(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // The place of the last star, and how much of the name it has matched: a later star makes the match of an earlier one final.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match pattern.split_first() {
            Some((b'*', rest)) => {
                star = Some((rest, name));
                pattern = rest;
                continue;
            }
            None if name.is_empty() => return true,
            None => None,
            Some(_) => name.split_first().and_then(|(byte, left)| one(pattern, *byte).map(|rest| (rest, left))),
        };
        if let Some((rest, left)) = step {
            (pattern, name) = (rest, left);
            continue;
        }
        match star {
            Some((rest, [_, left @ ..])) => {
                star = Some((rest, left));
                (pattern, name) = (rest, left);
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the beginning of `pattern`, which is not empty and no star; returns the rest of the pattern if it matches.
pub(crate) fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [b'[', class @ ..] => match bracket(class, byte) {
            Some((true, rest)) => Some(rest),
            Some((false, _)) => None,
            // Without a closing bracket, `[` is a plain character.
            None => (byte == b'[').then_some(class),
        },
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Matches a byte against what follows `[`: whether it is in the class, and what follows the class; `None` when the class has no end.
fn bracket(class: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let negated = matches!(class.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let (mut found, start) = (false, at);
    loop {
        match class.get(at..)? {
            // A closing bracket in the first place belongs to the class.
            [b']', rest @ ..] if at > start => return Some((found != negated, rest)),
            [low, b'-', high, ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                at += 3;
            }
            [member, ..] => {
                found |= *member == byte;
                at += 1;
            }
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_those_of_glob() {
        let cases: [(&str, &str, bool); 22] = [
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "acb", false),
            ("*", "anything", true),
            ("*", ".hidden", false),
            (".*", ".hidden", true),
            ("\\.h*", ".hidden", true),
            ("?b", "ab", true),
            ("?", "", false),
            ("?hidden", ".hidden", false),
            ("[abc]", "b", true),
            ("[!abc]", "b", false),
            ("[!abc]", "d", true),
            ("[a-c]x", "bx", true),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*.y*ml", "a.b.yaml", true),
            ("a*b*c*d", "axbxcx", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn a_selection_knows_what_leads_where() -> Result<()> {
        let selection = Selection::all().only(["a/b", "x", "./a/c/"]).except(["a/b/*.tmp", "x/y"])?;
        for (path, expected) in [
            ("", Standing::Parent),
            ("a", Standing::Parent),
            ("a/b", Standing::Inside),
            ("a/b/deep/er", Standing::Inside),
            ("a/bb", Standing::Outside),
            ("a/b/x.tmp", Standing::Outside),
            ("a/b/x.tmp/below", Standing::Outside),
            ("x/y", Standing::Outside),
            ("x/yy", Standing::Inside),
            ("z", Standing::Outside),
        ] {
            assert_eq!(selection.standing(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(selection.names_from(b""), [b"a".to_vec(), b"x".to_vec()]);
        assert_eq!(selection.names_from(b"a"), [b"b".to_vec(), b"c".to_vec()]);
        Ok(())
    }

    #[test]
    fn a_pattern_that_leaves_the_tree_is_refused() {
        for pattern in ["/etc", "../x", "", "a/../b", "."] {
            assert_eq!(crate::error::exit_code(&Selection::all().except([pattern]).unwrap_err()), 2, "{pattern}");
        }
    }
}
