//! The paths below `/etc` that `/etc/tmpfiles.d` names: they are made, changed or removed at every boot, and a restore of `/etc` does not
//! touch them.
//!
//! The format is tmpfiles.d(5): `type path mode user group age argument`. Fields may be quoted; paths may have specifiers and, for some
//! types, wildcards.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use crate::node::Node;

const DIR: &str = "/etc/tmpfiles.d";
/// Types whose path may have wildcards; in the path of any other type `*` is a plain character.
const GLOB_TYPES: &str = "wexXrRzZtThHaAm";

/// The paths below `/etc` that the files of `/etc/tmpfiles.d` name: patterns of glob(7), relative to `/etc`, sorted.
///
/// # Errors
/// When a file there cannot be read.
pub fn paths_below_etc(node: &Node) -> Result<Vec<PathBuf>> {
    let dir = node.real_path(DIR);
    let list = match std::fs::read_dir(&dir) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {DIR}")),
    };
    let machine_id = node.read_text("/etc/machine-id").unwrap_or_default();
    let mut paths = Vec::new();
    for entry in list {
        let name = entry.with_context(|| format!("listing {DIR}"))?.file_name();
        let path = Path::new(DIR).join(&name);
        // A link to /dev/null hides a file of /usr/lib/tmpfiles.d, and names nothing.
        if path.extension().is_some_and(|e| e == "conf") && node.real_path(&path).is_file() {
            let text = String::from_utf8_lossy(&node.read(&path)?).into_owned();
            paths.extend(text.lines().filter_map(|line| below_etc(line, machine_id.trim())));
        }
    }
    paths.sort();
    paths.dedup();
    Ok(paths)
}

/// The pattern of one line, if it names something below `/etc`.
fn below_etc(line: &str, machine_id: &str) -> Option<PathBuf> {
    let mut fields = Fields { rest: line.trim_start() };
    let kind = fields.next()?;
    if kind.starts_with('#') {
        return None;
    }
    let path = pattern(&fields.next()?, GLOB_TYPES.contains(kind.chars().next()?), machine_id);
    let mut parts = Path::new(&path).components();
    if parts.next() != Some(Component::RootDir) || parts.next()?.as_os_str() != "etc" {
        return None;
    }
    let mut below = PathBuf::new();
    for part in parts {
        // systemd-tmpfiles refuses `/etc/x/../y` too.
        let Component::Normal(name) = part else { return None };
        below.push(name);
    }
    (!below.as_os_str().is_empty()).then_some(below)
}

/// A path field as a pattern. A specifier of unknown value, or a byte that is not UTF-8, becomes `*`: excluding one path too many is better
/// than overwriting one that is made at boot.
fn pattern(path: &str, globs: bool, machine_id: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '%' => match letters.next() {
                Some('%') => out.push('%'),
                Some('m') if !machine_id.is_empty() => out.push_str(machine_id),
                _ => out.push('*'),
            },
            _ if globs => out.push(letter),
            _ => out.push_str(&literal(letter.encode_utf8(&mut [0; 4]))),
        }
    }
    out.replace('\u{fffd}', "*")
}

/// `text` as a pattern that matches nothing else.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '*' | '?' | '[') { out.extend(['[', letter, ']']) } else { out.push(letter) }
    }
    out
}

/// Fields between blanks; quotes and C escapes as in systemd's `extract_first_word` with `EXTRACT_UNQUOTE | EXTRACT_CUNESCAPE`.
struct Fields<'a> {
    rest: &'a str,
}

impl Iterator for Fields<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut letters = self.rest.trim_start().chars();
        if letters.as_str().is_empty() {
            return None;
        }
        let (mut field, mut quote) = (String::new(), None);
        while let Some(letter) = letters.next() {
            match (letter, quote) {
                ('\\', _) => field.push(unescape(&mut letters)),
                (c, Some(open)) if c == open => quote = None,
                ('"' | '\'', None) => quote = Some(letter),
                (c, None) if c.is_whitespace() => break,
                (c, _) => field.push(c),
            }
        }
        self.rest = letters.as_str();
        Some(field)
    }
}

/// The value of an escape after its backslash: `\x20`, `\040`, `\n`, or a letter that stands for itself.
fn unescape(letters: &mut std::str::Chars<'_>) -> char {
    let (digits, radix) = match letters.as_str().chars().next() {
        Some('x') => (1..3, 16),
        Some('0'..='7') => (0..3, 8),
        _ => {
            return match letters.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('s') => ' ',
                Some(other) => other,
                None => '\\',
            };
        }
    };
    let value = letters.as_str().get(digits.clone()).and_then(|d| u32::from_str_radix(d, radix).ok()).and_then(char::from_u32);
    letters.by_ref().take(digits.end).for_each(drop);
    value.unwrap_or('\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<String> {
        below_etc(line, "0123abcd").map(|p| p.to_str().unwrap().to_owned())
    }

    #[test]
    fn lines_of_every_kind() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(of("L+ /etc/resolv.conf - - - - ../run/systemd/resolve/stub-resolv.conf"), some("resolv.conf"));
        assert_eq!(of("d /etc/cni/multus/net.d 0755 root root"), some("cni/multus/net.d"));
        assert_eq!(of("\tr!  //etc//machine-info/"), some("machine-info"));
        assert_eq!(of("x /etc/cache-*"), some("cache-*"));
        assert_eq!(of("f /etc/lit*ral[1] 0644"), some("lit[*]ral[[]1]"));
        assert_eq!(of("f \"/etc/with blank\" 0644"), some("with blank"));
        assert_eq!(of("f '/etc/with \"x' 0644"), some("with \"x"));
        assert_eq!(of(r"f /etc/with\x20blank\040too 0644"), some("with blank too"));
        assert_eq!(of("f /etc/id-%m/100%% - - - -"), some("id-0123abcd/100%"));
        assert_eq!(of("f /etc/kernel-%v.conf"), some("kernel-*.conf"));
        assert_eq!(of("f+ %t/x"), None);
    }

    #[test]
    fn what_names_nothing_below_etc() {
        for line in [
            "",
            "   ",
            "# f /etc/x",
            "#f /etc/x",
            "d",
            "d /etc",
            "d /etc/",
            "d /run/x",
            "d /etcetera/x",
            "d etc/x",
            "d /etc/../var",
            "d /etc/x/../y",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn only_conf_files_that_are_files_count() -> Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        assert_eq!(paths_below_etc(&node)?, Vec::<PathBuf>::new());
        let dir = root.path().join("etc/tmpfiles.d");
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("b.conf"), b"# comment\nf /etc/b\nd /etc/a\nf /etc/bad\xff\n")?;
        std::fs::write(dir.join("c.conf"), "f /etc/b\n")?;
        std::fs::write(dir.join("README"), "f /etc/readme\n")?;
        std::os::unix::fs::symlink("/dev/null", dir.join("hidden.conf"))?;
        assert_eq!(paths_below_etc(&node)?, ["a", "b", "bad*"].map(PathBuf::from));
        Ok(())
    }
}
