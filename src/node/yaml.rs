//! YAML as kubelet reads it.
//!
//! kubelet turns every file into JSON first (`sigs.k8s.io/yaml`): of several documents the first counts; of a key that is given twice the
//! last value counts, in JSON too.

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use serde_saphyr::options::DuplicateKeyPolicy;

/// The first document of `text`, which is YAML or JSON.
///
/// # Errors
/// When it is neither, when it is empty, or when it is not a `T`.
pub fn first<T: DeserializeOwned>(text: &str) -> Result<T> {
    // JSON is parsed as JSON: YAML does not have all of its escapes. It goes through a `Value`, because that takes the last of two equal
    // keys.
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

/// As [`first`], for a file that may hold keys and tokens: the error says where the file is wrong and does not quote it, as a parser's own
/// error would.
///
/// # Errors
/// As [`first`].
pub fn first_of_secrets<T: DeserializeOwned>(text: &str) -> Result<T> {
    first(text).map_err(|error| {
        let place = error.downcast_ref::<serde_saphyr::Error>().and_then(serde_saphyr::Error::location);
        let place = place.map_or_else(String::new, |at| format!(", at line {}, column {}", at.line(), at.column()));
        anyhow!("it is not as it should be{place}; what is there is not shown, because it may be secret")
    })
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

    #[test]
    fn an_error_in_a_file_of_secrets_quotes_nothing() {
        for text in [
            "a: hush\nb:\n- 1\n",
            "a: [hush",
            "hush",
            "b: 1\na: {hush: hush}\n",
            "a: 1\nb: *hush\n",
            "{\"a\": \"hush\"}",
            "{\"a\": {\"b\": \"hush\"}}",
        ] {
            let error = first_of_secrets::<BTreeMap<String, u32>>(text).unwrap_err();
            assert!(!format!("{error:#} {error:?}").contains("hush"), "{error:?}");
        }
        let error = first_of_secrets::<BTreeMap<String, u32>>("b: 1\na: hush\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
