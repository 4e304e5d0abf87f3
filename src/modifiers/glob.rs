//! Globs, as Velero's library reads them (`gobwas/glob`) with `.` between segments: `*` and `?` stay within a segment, `**` does not.

use anyhow::{Context, Result, bail};
use regex::Regex;

/// A pattern for names, of which the whole must match.
#[derive(Debug, Clone)]
pub(super) struct Glob {
    text: String,
    /// Nothing where the text is the name itself.
    regex: Option<Regex>,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// When a list, a range or alternatives do not end.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let plain = !text.contains(['*', '?', '[', '{', '\\']);
        let regex = if plain { None } else { Some(Regex::new(&format!("(?s)^{}$", translated(text)?)).context("it is no pattern")?) };
        Ok(Self { text: text.to_owned(), regex })
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.regex.as_ref().map_or_else(|| self.text == name, |regex| regex.is_match(name))
    }
}

fn translated(text: &str) -> Result<String> {
    let (mut regex, mut depth) = (String::new(), 0_usize);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '*' if rest.peek() == Some(&'*') => {
                while rest.next_if_eq(&'*').is_some() {}
                regex.push_str(".*");
            }
            '*' => regex.push_str("[^.]*"),
            '?' => regex.push_str("[^.]"),
            '[' => regex.push_str(&list(&mut rest)?),
            '{' => {
                depth += 1;
                regex.push_str("(?:");
            }
            ',' if depth > 0 => regex.push('|'),
            '}' if depth > 0 => {
                depth -= 1;
                regex.push(')');
            }
            '\\' => regex.push_str(&literal(rest.next().context("it ends with a backslash")?)),
            other => regex.push_str(&literal(other)),
        }
    }
    if depth > 0 {
        bail!("a `{{` of it is not closed");
    }
    Ok(regex)
}

/// The list or range after a `[`, `!` first for what is not in it.
fn list(rest: &mut impl Iterator<Item = char>) -> Result<String> {
    let mut within = Vec::new();
    loop {
        match rest.next().context("a `[` of it is not closed")? {
            ']' if !within.is_empty() => break,
            '\\' => within.push(rest.next().context("a `[` of it is not closed")?),
            c => within.push(c),
        }
    }
    let not = within.first() == Some(&'!');
    let within = if not { &within[1..] } else { &within[..] };
    let inner = match within {
        [] => bail!("a `[` of it lists nothing"),
        [low, '-', high] if low > high => bail!("the range {low}-{high} of it is empty"),
        [low, '-', high] => format!("{}-{}", literal(*low), literal(*high)),
        listed => listed.iter().copied().map(literal).collect(),
    };
    Ok(format!("[{}{inner}]", if not { "^" } else { "" }))
}

fn literal(c: char) -> String {
    // Within a class `-` and `^` would mean something, which the library escapes nowhere.
    if c == '-' || c == '^' { format!("\\{c}") } else { regex::escape(&c.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_segment_and_two_do_not() {
        for (pattern, matched, not) in [
            ("*", &["configmaps"][..], &["deployments.apps", "managements.k0rdent.mirantis.com"][..]),
            ("**", &["configmaps", "managements.k0rdent.mirantis.com"], &[]),
            ("*.*", &["deployments.apps"], &["configmaps", "managements.k0rdent.mirantis.com"]),
            ("*.k0rdent.mirantis.com", &["managements.k0rdent.mirantis.com"], &["k0rdent.mirantis.com", "a.b.k0rdent.mirantis.com"]),
            ("managements.**", &["managements.k0rdent.mirantis.com"], &["managements"]),
            ("deployment?.apps", &["deployments.apps"], &["deployment.apps", "deployment.s.apps"]),
            ("{dep,daemon}*.apps", &["deployments.apps", "daemonsets.apps"], &["replicasets.apps", "xdep.apps"]),
            ("[a-d]*.apps", &["deployments.apps"], &["replicasets.apps"]),
            ("[!a-d]*.apps", &["replicasets.apps"], &["deployments.apps"]),
            ("[dr]*", &["d", "r", "rx"], &["a", "-"]),
            ("a\\*", &["a*"], &["ab"]),
            ("a+(b)", &["a+(b)"], &["aab"]),
            ("ab", &["ab"], &["xab", "abx", "ab\n"]),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            for name in matched {
                assert!(glob.matches(name), "{pattern} {name}");
            }
            for name in not {
                assert!(!glob.matches(name), "{pattern} {name}");
            }
        }
        for bad in ["[a", "{a", "[", "[]", "[!]", "[z-a]", "a\\"] {
            assert!(Glob::parse(bad).is_err(), "{bad}");
        }
    }
}
