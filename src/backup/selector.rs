//! Label selectors, in the language of `kubectl -l`: `=`, `==`, `!=`, `in (…)`, `notin (…)`, `key`, `!key`, and all of them with commas between.
//!
//! Kubernetes (`k8s.io/apimachinery/pkg/labels`) also has `<` and `>` for numbers: no label of a backup is one.

use std::collections::BTreeSet;

use anyhow::Result;
use kube::core::{Expression, Selector};

use super::names::{check_key, check_value};
use crate::error::usage;

/// Parses a selector. An empty one selects everything. As in Kubernetes, `!=` and `notin` also select what does not have the label.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage), with the part that is wrong.
pub fn parse(text: &str) -> Result<Selector> {
    if text.trim().is_empty() {
        return Ok(Selector::default());
    }
    let wrong = |part: &str, why: &str| usage(format!("the selector `{text}` cannot be read at `{part}`: {why}"));
    requirements(text).map(|part| requirement(part.trim()).map_err(|why| wrong(part.trim(), &why))).collect()
}

/// The requirements of a selector: what stands between the commas that are in no parentheses.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn requirement(part: &str) -> Result<Expression, String> {
    if let Some(key) = part.strip_prefix('!') {
        return key_of(key.trim()).map(Expression::DoesNotExist);
    }
    let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || "./_-".contains(c))).unwrap_or(part.len());
    let (key, rest) = (key_of(&part[..end])?, part[end..].trim());
    if rest.is_empty() {
        return Ok(Expression::Exists(key));
    }
    if let Some(value) = rest.strip_prefix("!=") {
        return value_of(&key, value).map(|value| Expression::NotEqual(key, value));
    }
    if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        return value_of(&key, value).map(|value| Expression::Equal(key, value));
    }
    let set = |set: &str| -> Result<BTreeSet<String>, String> {
        let inner = set.trim().strip_prefix('(').and_then(|set| set.strip_suffix(')'));
        inner.ok_or("in and notin take a list, `in (a, b)`")?.split(',').map(|value| value_of(&key, value)).collect()
    };
    match rest.split_once(|c: char| c.is_whitespace() || c == '(') {
        Some(("in", _)) => set(&rest["in".len()..]).map(|values| Expression::In(key.clone(), values)),
        Some(("notin", _)) => set(&rest["notin".len()..]).map(|values| Expression::NotIn(key.clone(), values)),
        _ => Err("after the key comes nothing, or one of = == != in notin".to_owned()),
    }
}

fn key_of(key: &str) -> Result<String, String> {
    check_key(key).map(|()| key.to_owned()).map_err(|error| error.to_string())
}

fn value_of(key: &str, value: &str) -> Result<String, String> {
    let value = value.trim();
    check_value(key, value).map(|()| value.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use kube::core::SelectorExt;

    #[test]
    fn the_whole_language_selects_as_kubectl_does() {
        let labels = [("app", "x"), ("example.com/release", "kcm-0-2-0"), ("empty", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (selector, selects) in [
            ("", true),
            ("app=x", true),
            (" app == x ", true),
            ("app=y", false),
            ("app!=x", false),
            ("app!=y", true),
            ("gone!=x", true),
            ("app in (x)", true),
            ("app in(y,x)", true),
            ("app in ( y , x ),example.com/release", true),
            ("app in (y)", false),
            ("app notin (x, y)", false),
            ("gone notin (x)", true),
            ("app", true),
            ("gone", false),
            ("!gone", true),
            ("! app", false),
            ("empty=", true),
            ("empty in ()", true),
            ("example.com/release=kcm-0-2-0,app=x,!gone", true),
            ("example.com/release=kcm-0-2-0,app=y", false),
        ] {
            assert_eq!(parse(selector).unwrap().matches(&labels), selects, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_part_that_is_wrong() {
        for (selector, part) in [
            ("app=x,", "``"),
            ("=x", "`=x`"),
            ("app x", "`app x`"),
            ("app in x", "`app in x`"),
            ("app in (x", "`app in (x`"),
            ("app>1", "`app>1`"),
            ("a/b/c", "`a/b/c`"),
            ("app=a b", "`app=a b`"),
            ("app===x", "`app===x`"),
            ("app=x,!", "`!`"),
            ("inn (x)", "`inn (x)`"),
        ] {
            let error = parse(selector).unwrap_err();
            assert!(exit_code(&error) == 2 && error.to_string().contains(&format!("at {part}")), "{selector}: {error}");
        }
    }
}
