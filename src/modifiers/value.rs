//! What the text of a `value` becomes, as Velero makes JSON of it (`internal/resourcemodifiers/json_patch.go` 1.18.1): a text that looks like a
//! number is one, and strings are put between quotes as they are.

use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;
use serde_json::{Number, Value};

/// A number as Go's `strconv.ParseFloat` takes it, which is more than JSON does.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    let (digits, hex) = ("[0-9]+(?:_[0-9]+)*", "[0-9a-fA-F]+(?:_[0-9a-fA-F]+)*");
    let decimal = format!(r"(?:{digits}(?:\.(?:{digits})?)?|\.{digits})(?:[eE][+-]?{digits})?");
    let hexadecimal = format!(r"0[xX](?:_?{hex}(?:\.(?:{hex})?)?|\.{hex})[pP][+-]?{digits}");
    let pattern = format!(r"^(?:[+-]?(?:{decimal}|{hexadecimal}|(?i:inf|infinity))|(?i:nan))$");
    Regex::new(&pattern).unwrap_or_else(|error| unreachable!("{error}"))
});

/// Reads a value.
///
/// # Errors
/// When what Velero makes of it is no JSON.
pub(super) fn parse(text: &str) -> Result<Value> {
    let json = if text.is_empty() {
        return Ok(Value::String(String::new()));
    } else if text == "\"" {
        "\"\"".to_owned()
    } else if text.starts_with('"') && text.ends_with('"') || is_raw(text) {
        text.to_owned()
    } else {
        format!("\"{text}\"")
    };
    let hint = if json == text {
        "a text that looks like a number, a truth value or JSON is put in as it is; between double quotes of its own it is a string: '\"…\"'"
    } else {
        "text is put between quotes as it is: write \\\" for a quote and \\n for a new line"
    };
    serde_json::from_str(&json).with_context(|| format!("the value {text:?} makes no JSON ({hint})"))
}

/// True for what is put in without quotes.
fn is_raw(text: &str) -> bool {
    text == "null"
        || ["true", "false"].iter().any(|word| text.eq_ignore_ascii_case(word))
        || text.starts_with(['{', '['])
        || is_number(text)
}

fn is_number(text: &str) -> bool {
    // Beyond the largest float ParseFloat fails, which leaves a string.
    let beyond = || text.contains(|c: char| c.is_ascii_digit()) && text.replace('_', "").parse::<f64>().is_ok_and(f64::is_infinite);
    NUMBER.is_match(text) && !beyond()
}

/// Whole numbers are written without a fraction, as Go's JSON does: `5.0` and `1e3` become 5 and 1000.
pub(super) fn as_go_writes(value: &mut Value) {
    new_as_go_writes(value, None);
}

/// As [`as_go_writes`], for what is not as it was `before`. (Velero writes all of an object anew. Here, what no patch has changed stays as it is.)
pub(super) fn new_as_go_writes(value: &mut Value, before: Option<&Value>) {
    match value {
        Value::Number(_) if before == Some(value) => {}
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|_| number.is_f64()).and_then(whole) {
                *number = Number::from(whole);
            }
        }
        Value::Array(items) => {
            items.iter_mut().enumerate().for_each(|(at, item)| new_as_go_writes(item, before.and_then(|list| list.get(at))));
        }
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(name, value)| new_as_go_writes(value, before.and_then(|object| object.get(name))));
        }
        _ => {}
    }
}

/// The whole number that a float is exactly; none beyond 2^53, where floats leave numbers out.
fn whole(float: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[allow(clippy::cast_possible_truncation)]
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_looks_like_a_number_is_one() {
        for (text, becomes) in [
            ("", json!("")),
            ("\"", json!("")),
            ("\"5\"", json!("5")),
            ("5", json!(5)),
            ("-7", json!(-7)),
            ("0.2", json!(0.2)),
            ("0.2.0", json!("0.2.0")),
            ("1.30", json!(1.3)),
            ("0x10", json!("0x10")),
            ("0o17", json!("0o17")),
            (" 5", json!(" 5")),
            ("1e999", json!("1e999")),
            ("1__0", json!("1__0")),
            ("_1", json!("_1")),
            ("-nan", json!("-nan")),
            ("Null", json!("Null")),
            ("null", Value::Null),
            ("false", json!(false)),
            ("a\\\"b", json!("a\"b")),
            ("[1, {\"a\": null}]", json!([1, {"a": null}])),
        ] {
            assert_eq!(parse(text).unwrap(), becomes, "{text:?}");
        }
        for bad in ["007", "+5", ".5", "5.", "inf", "-Infinity", "NaN", "1_000", "0x1p-2", "True", "a\"b", "a\nb", "{a", "\"a\"b\""] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn whole_floats_are_written_as_go_writes_them() {
        let mut value = json!({"a": [5.0, 0.5, 1e3, -0.0], "b": 1e300});
        as_go_writes(&mut value);
        assert_eq!(value, json!({"a": [5, 0.5, 1000, 0], "b": 1e300}));
        let mut value = json!({"a": [5.0, 6.0, {"x": 7.0, "y": 8.0}], "b": 9.0});
        new_as_go_writes(&mut value, Some(&json!({"a": [5.0, 0, {"y": 8.0}], "b": "x"})));
        assert_eq!(value, json!({"a": [5.0, 6, {"x": 7, "y": 8.0}], "b": 9}));
    }
}
