//! YAML as kubelet reads it.
//!
//! kubelet turns every file into JSON first (`sigs.k8s.io/yaml`): of several documents the first one counts, of a key that is there twice the
//! last value does, in JSON as well.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_saphyr::options::DuplicateKeyPolicy;

/// The first document of `text`, which is YAML or JSON.
///
/// # Errors
/// When it is neither, when it is empty, or when it is not a `T`.
pub fn first<T: DeserializeOwned>(text: &str) -> Result<T> {
    // JSON is tried as JSON: its escapes are not all YAML's. By way of a value, because that takes the last of two.
    if text.trim_start().starts_with('{')
        && let Some(Ok(value)) = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>().next()
    {
        return Ok(serde_json::from_value(value)?);
    }
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
    let mut documents = serde_saphyr::read_with_options(&mut bytes, options);
    Ok(documents.next().context("it is empty")??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_first_document_and_the_last_of_two_values_count() {
        for text in [
            "a: 2\n",
            "---\na: 2\n---\n",
            "# said first\n---\na: 2\n...\n",
            "a: 2\n---\na: 3\n",
            "a: 1\na: 2\n",
            "{a: 1, a: 2}\n",
            "{\"a\":1,\"a\":2}",
            "{\"a\":2}\n---\n",
        ] {
            assert_eq!(first::<BTreeMap<String, u32>>(text).ok(), Some(BTreeMap::from([("a".to_owned(), 2)])), "{text:?}");
        }
        for text in ["", "---\n", "a: [1", "a: x\n", "\0\0"] {
            assert!(first::<BTreeMap<String, u32>>(text).is_err(), "{text:?}");
        }
    }
}
