//! What differs between two objects, path by path.

use serde::Serialize;
use serde_json::Value;

/// One place in which they differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Where: a JSON pointer.
    pub path: String,
    /// What was there; left out where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What is there then; left out where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// Every place in which `after` differs from `before`, the deepest that say it all. Lists of different lengths differ as a whole.
#[must_use]
pub fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    look(String::new(), Some(before), Some(after), &mut found);
    found
}

fn look(path: String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            // Of most objects nearly all is the same: no path is made for that.
            for key in old.keys().chain(added).filter(|key| old.get(*key) != new.get(*key)) {
                look(format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), old.get(key), new.get(key), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                look(format!("{path}/{index}"), Some(old), Some(new), found);
            }
        }
        _ if before == after => {}
        _ => found.push(Difference { path, before: before.cloned(), after: after.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_named() {
        let before = json!({"spec": {"a/b": 1, "list": [1, {"x": 1}], "gone": {"y": 2}, "same": [1]}});
        let after = json!({"spec": {"a/b": 2, "list": [1, {"x": 2}], "same": [1], "new": null}});
        let shown: Vec<String> = differences(&before, &after).iter().map(|found| serde_json::to_string(found).unwrap()).collect();
        assert_eq!(
            shown,
            [
                r#"{"path":"/spec/a~1b","before":1,"after":2}"#,
                r#"{"path":"/spec/list/1/x","before":1,"after":2}"#,
                r#"{"path":"/spec/gone","before":{"y":2}}"#,
                r#"{"path":"/spec/new","after":null}"#,
            ]
        );
        assert!(differences(&before, &before).is_empty());
    }
}
