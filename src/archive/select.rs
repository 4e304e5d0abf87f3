//! Which part of a tree is meant: named paths, and patterns that are left out.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::Result;

use super::path::{compare_paths, is_below};
use crate::error::usage;

/// The directory in which a restore makes what it then renames into place. It is not part of any tree: what one that was killed has left
/// there is never packed, and never compared.
pub(super) const STAGE: &[u8] = b".recovery-stage";

/// Which part of a tree is meant. Paths are relative to the tree's root.
///
/// The parents of a named path are passed on the way to it and nothing more: they may be mount points, they are not listed, and their own
/// metadata is of no interest. They may not be symbolic links; the caller resolves those
/// ([`Node::real_path`](crate::node::Node::real_path)).
#[derive(Debug, Clone, Default)]
pub struct Selection {
    only: Option<Vec<Vec<u8>>>,
    except: Vec<Vec<Vec<u8>>>,
}

/// What a selection says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is meant, and so is what is below it (unless left out).
    Inside,
    /// It only leads to something that is meant.
    Parent,
    /// It is not meant.
    Outside,
}

impl Selection {
    /// The whole tree.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only these files and directories (with all below them), and their parent directories' existence.
    #[must_use]
    pub fn only<P: AsRef<Path>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        let mut only: Vec<Vec<u8>> = paths.into_iter().map(|path| parts(path.as_ref()).join(&b'/')).collect();
        only.sort_by(|a, b| compare_paths(a, b));
        only.dedup();
        Self { only: Some(only), ..self }
    }

    /// Without what these patterns match (and all below it): each is a path relative to the root, its components may hold the wildcards of
    /// glob(7); none of them is ever read, compared, written or deleted. As there, a wildcard does not match a leading period.
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

    /// What it says of `path`.
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

    /// The names that lead on from `path`, one that only leads to something that is meant; sorted.
    pub(super) fn names_from(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        let below = self.only.iter().flatten().filter(|named| named.len() > path.len() && is_below(named, path));
        let mut names: Vec<Vec<u8>> = below.filter_map(|named| named[skip..].split(|b| *b == b'/').next().map(<[u8]>::to_vec)).collect();
        names.sort();
        names.dedup();
        names
    }

    fn excepts(&self, path: &[u8]) -> bool {
        !path.is_empty() && self.except.iter().any(|pattern| excepted(pattern, path))
    }
}

fn parts(path: &Path) -> Vec<Vec<u8>> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.as_bytes().to_vec()),
            // Never the name of anything that is found in a directory: it selects nothing.
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
        // An escaped period is explicit too.
        return pattern.starts_with(b"\\.") && glob(&pattern[1..], name);
    }
    matches(pattern, name)
}

/// As [`glob`], but a wildcard matches a leading period too.
pub(crate) fn matches(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // Where the last star was, and how much of the name it has taken: a later star makes an earlier one's choice final.
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

/// Matches one byte against the head of `pattern`, which is not empty and not a star; the rest of the pattern when it matches.
pub(crate) fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'\\', escaped, rest @ ..] => (*escaped == byte).then_some(rest),
        [b'[', class @ ..] => match bracket(class, byte) {
            Some((true, rest)) => Some(rest),
            Some((false, _)) => None,
            // Without its closing bracket it stands for itself.
            None => (byte == b'[').then_some(class),
        },
        [literal, rest @ ..] => (*literal == byte).then_some(rest),
        [] => None,
    }
}

/// Matches a byte against what follows `[`: whether it is in the class, and what follows the class; `None` when it does not end.
fn bracket(class: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let negated = matches!(class.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let (mut found, start) = (false, at);
    loop {
        match class.get(at..)? {
            // A bracket in the first place is a member of the class.
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
