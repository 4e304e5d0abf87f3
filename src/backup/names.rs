//! Names, labels and ids: which text may become a directory in `backups/` or a label in a report.

use std::collections::BTreeMap;

use anyhow::Result;
use data_encoding::HEXLOWER;
use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest, Sha256};

use super::layout::{DELETING, LEGACY_ID, PARTIAL};
use crate::error::usage;

/// The longest name of a backup: as long as Kubernetes has them, so that a scheduled backup can be called what k0rdent would call it. (An id, which is
/// a directory's name, is made by the agent and short.)
pub const LONGEST: usize = 253;
/// The longest value of a label.
const LONGEST_LABEL: usize = 63;

/// The label of a backup that a schedule takes: the schedule. As of k0rdent's kcm.
pub const SCHEDULE_LABEL: &str = "k0rdent.mirantis.com/management-backup";
/// The label of a backup from before an upgrade: the release that the upgrade leaves. As of kcm.
pub const RELEASE_LABEL: &str = "k0rdent.mirantis.com/release-backup";
/// What stands for the rest of a name that is cut: hyphen and digits.
const DIGEST: usize = 1 + 8;

/// A name of no more than `most` bytes, at least [`DIGEST`], as kcm 1.11 shortens one: cut, what is then at the end and may not be there (`-`, `.`) taken away,
/// and eight hex digits of the SHA-256 of the whole behind it. One that is short enough stays as it is.
#[must_use]
pub fn shortened(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let end = (0..=most - DIGEST).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    with_digest(name[..end].trim_end_matches(['-', '.']), name)
}

/// What is left of a text, and behind it what tells it from others: eight hex digits of the SHA-256 of the whole.
fn with_digest(left: &str, whole: &str) -> String {
    format!("{left}-{}", HEXLOWER.encode(&Sha256::digest(whole)[..4]))
}

/// Checks that `text` can be a backup's name or id: one plain path component, and none that the agent itself uses.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage), with the reason.
pub fn check_name(text: &str) -> Result<()> {
    let wrong = if text.is_empty() {
        Some("is empty")
    } else if text.len() > LONGEST {
        Some("is too long")
    } else if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | ':' | '@')) {
        Some("may hold letters, digits and . _ - + : @ only")
    } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Some("must begin with a letter or digit")
    } else if text.ends_with(PARTIAL) || text.ends_with(DELETING) {
        Some("must not end in .partial or .deleting, which the agent itself uses")
    } else if text == LEGACY_ID || text == "latest" {
        Some("has a meaning of its own")
    } else {
        None
    };
    wrong.map_or(Ok(()), |wrong| Err(usage(format!("`{text}` cannot name a backup: it {wrong}"))))
}

/// Parses `key=value` labels. Keys and values are as in Kubernetes: `[prefix/]name=value`.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage), with the reason; also when a key is given twice.
pub fn parse_labels<S: AsRef<str>>(given: &[S]) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for label in given {
        let label = label.as_ref();
        let (key, value) = label.split_once('=').ok_or_else(|| usage(format!("the label `{label}` is not KEY=VALUE")))?;
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(usage(format!("the label `{key}` is given twice")));
        }
    }
    check_labels(&labels)?;
    Ok(labels)
}

/// Checks keys and values of labels, as Kubernetes does.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage), with the reason.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    labels.iter().try_for_each(|(key, value)| check_key(key).and_then(|()| check_value(key, value)))
}

/// Checks the key of a label: `[PREFIX/]NAME`, the prefix a DNS name.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage).
pub fn check_key(key: &str) -> Result<()> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefix_fits = prefix.is_none_or(|p| {
        p.len() <= 253 && p.split('.').all(|part| is_label(part) && part.chars().all(|c| !c.is_ascii_uppercase() && c != '_'))
    });
    if prefix_fits && is_label(name) {
        return Ok(());
    }
    Err(usage(format!("`{key}` cannot be the key of a label: [PREFIX/]NAME of letters, digits and . _ -")))
}

/// Checks a value of the label `key`; it may be empty.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage).
pub fn check_value(key: &str, value: &str) -> Result<()> {
    if value.is_empty() || is_label(value) {
        return Ok(());
    }
    Err(usage(format!("`{value}` cannot be the value of the label `{key}`: up to 63 letters, digits and . _ -")))
}

/// `text` as the value of a label: as it is where it can be one; else cut to what fits, what no label may hold as `-`, and the first 8 hex digits of
/// the SHA-256 of the whole behind it, so that different texts stay different. For one that is only too long, k0rdent's kcm does the same (from 1.11).
#[must_use]
pub fn label_value(text: &str) -> String {
    if text.is_empty() || is_label(text) {
        return text.to_owned();
    }
    let plain = text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' });
    let plain: String = plain.take(LONGEST_LABEL - DIGEST).collect();
    with_digest(plain.trim_matches(['-', '.', '_']), text).trim_start_matches('-').to_owned()
}

/// An id for a backup of a node at `release`, begun at `taken`: ids sort by time, and people can read them.
#[must_use]
pub fn id(taken: Timestamp, release: Option<&str>) -> String {
    let time = taken.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string();
    let release: String =
        release.unwrap_or_default().chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+')).take(60).collect();
    let what = if release.is_empty() { uuid::Uuid::new_v4().simple().to_string()[..6].to_owned() } else { release };
    format!("{time}-{what}")
}

/// True for text that begins like every [`id`], with the time: no name that a person gives does so by accident.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.split_once('-').is_some_and(|(time, what)| !what.is_empty() && jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", time).is_ok())
}

/// Letters, digits and `-_.`, letters or digits at both ends, at most 63.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.len() <= LONGEST_LABEL && text.chars().all(inner) && text.starts_with(ends) && text.ends_with(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn an_id_is_told_from_a_name() -> Result<()> {
        assert!(is_id(&id("2026-01-02T03:04:05Z".parse()?, Some("4.17.3"))) && is_id(&id(Timestamp::now(), None)));
        for name in ["nightly", "before-4.17", "20260102-nightly", "20260102T030405Z", "20260102T030405Z-", "20261302T030405Z-x"] {
            assert!(!is_id(name), "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_name_is_one_plain_path_component() {
        for good in ["before-4.17", "a", "20261121T060536Z-4.16.8", "x_y+1:2@3"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(254);
        for bad in
            ["", ".", "..", "a/b", "/a", "-v", ".hidden", "a b", "ä", "a\n", "a.partial", "a.deleting", "upgrade-recovery", "latest", &long]
        {
            assert_eq!(check_name(bad).map_err(|e| exit_code(&e)), Err(2), "{bad}");
        }
    }

    /// What sha256sum(1) says of the whole.
    #[test]
    fn a_name_that_is_too_long_is_cut_as_kcm_does_it() {
        let fits = "b".repeat(63);
        assert_eq!(shortened(&fits, LONGEST_LABEL), fits);
        let long = "a".repeat(70);
        assert_eq!(shortened(&long, LONGEST_LABEL), format!("{}-{}", "a".repeat(54), "6bd5e503"));
        let trimmed = format!("{}.-.-{}", "a".repeat(50), "b".repeat(20));
        assert_eq!(shortened(&trimmed, LONGEST_LABEL), format!("{}-{}", "a".repeat(50), "f1bc7c6b"));
        assert_eq!(shortened(&"x".repeat(300), LONGEST).len(), LONGEST);
        assert!(check_labels(&BTreeMap::from([(SCHEDULE_LABEL.to_owned(), shortened(&trimmed, LONGEST_LABEL))])).is_ok());
    }

    #[test]
    fn labels_are_those_of_kubernetes() -> Result<()> {
        let labels = parse_labels(&["app=x", "example.com/policy=before-4.17", "empty="])?;
        assert_eq!(labels.len(), 3);
        assert_eq!(labels["example.com/policy"], "before-4.17");
        for bad in ["x", "=v", "a b=c", "a=b c", "Ex.com/a=b", "a/b/c=d", "-a=b", "a=b-", "/a=b"] {
            assert_eq!(parse_labels(&[bad]).map_err(|e| exit_code(&e)), Err(2), "{bad}");
        }
        assert!(parse_labels(&["a=1", "a=2"]).is_err());
        Ok(())
    }

    #[test]
    fn every_text_has_a_value_of_a_label() {
        assert_eq!(label_value("kcm-0-2-0"), "kcm-0-2-0");
        // The hashes by sha256sum.
        assert_eq!(label_value("v1.30.4+rke2r1"), "v1.30.4-rke2r1-1e4c9044");
        assert_eq!(label_value(&format!("{}.-{}", "a".repeat(53), "x".repeat(9))), format!("{}-95f63ace", "a".repeat(53)));
        for odd in ["", "+", "ä", "-a", "a-", &"x".repeat(63), &"x".repeat(64), &"-".repeat(99)] {
            assert!(check_value("k", &label_value(odd)).is_ok(), "{odd}: {}", label_value(odd));
        }
    }

    #[test]
    fn an_id_says_when_and_which_release() -> Result<()> {
        let taken: Timestamp = "2026-11-21T06:05:36Z".parse()?;
        assert_eq!(id(taken, Some("4.16.8/../x")), "20261121T060536Z-4.16.8..x");
        assert_eq!(id(taken, None).len(), "20261121T060536Z-".len() + 6);
        check_name(&id(taken, Some("v1.34.4")))
    }
}
