//! JSON patches and merge patches, as Velero's library applies them (`evanphx/json-patch` 5, its defaults): RFC 6902 and 7396, but for what stands at
//! [`index`], and but for a `test` against null, which a missing key passes.

use serde_json::Value;

/// A JSON pointer: where in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pointer {
    /// The keys on the way, unescaped.
    parts: Vec<String>,
    text: String,
}

impl Pointer {
    /// Reads a pointer, which begins with a slash. `None` when it does not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts = text.strip_prefix('/')?.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect();
        Some(Self { parts, text: text.to_owned() })
    }

    /// The keys on the way.
    pub(super) fn parts(&self) -> &[String] {
        &self.parts
    }

    /// True when what is at `other` is at this, within it, or around it.
    pub(super) fn touches(&self, other: &Self) -> bool {
        self.parts.iter().zip(&other.parts).all(|(one, other)| one == other)
    }
}

impl std::fmt::Display for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// One operation of a JSON patch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operation {
    Add(Pointer, Value),
    Remove(Pointer),
    Replace(Pointer, Value),
    Move { from: Pointer, path: Pointer },
    Copy { from: Pointer, path: Pointer },
    Test(Pointer, Value),
}

impl Operation {
    /// True when it looks at, or changes, the field of this name of the object itself, or what is in it.
    pub(super) fn touches(&self, field: &str) -> bool {
        self.pointers().any(|path| path.parts.first().is_some_and(|first| first == field))
    }

    /// Where it looks, or changes something.
    pub(super) fn pointers(&self) -> impl Iterator<Item = &Pointer> {
        let (path, from) = match self {
            Self::Add(path, _) | Self::Remove(path) | Self::Replace(path, _) | Self::Test(path, _) => (path, None),
            Self::Move { from, path } | Self::Copy { from, path } => (path, Some(from)),
        };
        std::iter::once(path).chain(from)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add(path, value) => write!(f, "add {path} {value}"),
            Self::Remove(path) => write!(f, "remove {path}"),
            Self::Replace(path, value) => write!(f, "replace {path} {value}"),
            Self::Move { from, path } => write!(f, "move {from} to {path}"),
            Self::Copy { from, path } => write!(f, "copy {from} to {path}"),
            Self::Test(path, value) => write!(f, "test {path} {value}"),
        }
    }
}

/// Why an operation has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// A `test` that does not hold.
    Test(String),
    /// Anything else.
    Error(String),
}

/// Applies one operation; after a fault the object is in no particular state.
pub(super) fn apply(object: &mut Value, operation: &Operation) -> Result<(), Fault> {
    match operation {
        Operation::Add(path, value) => add(object, path, value.clone()),
        Operation::Remove(path) => remove(object, path, "remove").map(drop),
        Operation::Replace(path, value) => {
            let place = place(object, path, "replace")?;
            let found = found(place, path, "replace")?.ok_or_else(|| missing(path, "replace"))?;
            *found = value.clone();
            Ok(())
        }
        Operation::Move { from, path } => {
            let value = remove(object, from, "move")?;
            add(object, path, value)
        }
        Operation::Copy { from, path } => {
            let place = place(object, from, "copy")?;
            let value = found(place, from, "copy")?.ok_or_else(|| missing(from, "copy"))?.clone();
            add(object, path, value)
        }
        Operation::Test(path, wanted) => test(object, path, wanted),
    }
}

/// Whether the object has `wanted` at `path`; null is as good as nothing.
fn test(object: &mut Value, path: &Pointer, wanted: &Value) -> Result<(), Fault> {
    let place = place(object, path, "test")?;
    let found = found(place, path, "test")?;
    if found.as_deref().unwrap_or(&Value::Null) == wanted {
        return Ok(());
    }
    // What is there may be a secret.
    let there = if found.is_some() { "something else is there" } else { "nothing is there" };
    Err(Fault::Test(format!("test: {path} is not {wanted}: {there}")))
}

/// True when the object has `wanted` at `path`: a condition, which nothing that is missing meets, but a key for null.
pub(super) fn holds(object: &Value, path: &Pointer, wanted: &Value) -> bool {
    let Some((last, way)) = path.parts.split_last() else { return false };
    let place = way.iter().try_fold(object, |place, key| child(place, key));
    match place {
        Some(place @ Value::Object(_)) => child(place, last).unwrap_or(&Value::Null) == wanted,
        Some(place @ Value::Array(_)) => child(place, last).is_some_and(|found| found == wanted),
        _ => false,
    }
}

fn child<'a>(place: &'a Value, key: &str) -> Option<&'a Value> {
    match place {
        Value::Object(fields) => fields.get(key),
        Value::Array(items) => items.get(index(key, items.len())?),
        _ => None,
    }
}

/// The object or list that holds what is at `path`.
fn place<'a>(object: &'a mut Value, path: &Pointer, what: &str) -> Result<&'a mut Value, Fault> {
    let way = &path.parts[..path.parts.len() - 1];
    let mut place = object;
    for key in way {
        let next = match place {
            Value::Object(fields) => fields.get_mut(key),
            Value::Array(items) => index(key, items.len()).and_then(|index| items.get_mut(index)),
            _ => None,
        };
        place = next.ok_or_else(|| Fault::Error(format!("{what}: there is no {path}, nor what would hold it")))?;
    }
    match place {
        Value::Object(_) | Value::Array(_) => Ok(place),
        _ => Err(Fault::Error(format!("{what}: there is no {path}: what would hold it is neither an object nor a list"))),
    }
}

/// What is at the end of `path`, in the `place` that holds it; `None` for a key that is missing.
fn found<'a>(place: &'a mut Value, path: &Pointer, what: &str) -> Result<Option<&'a mut Value>, Fault> {
    let key = last(path);
    match place {
        Value::Array(items) => {
            let at = index(key, items.len()).filter(|at| *at < items.len());
            Ok(Some(&mut items[at.ok_or_else(|| no_index(path, what))?]))
        }
        Value::Object(fields) => Ok(fields.get_mut(key)),
        _ => Ok(None),
    }
}

fn add(object: &mut Value, path: &Pointer, value: Value) -> Result<(), Fault> {
    let key = last(path);
    match place(object, path, "add")? {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            // One more place than there are items: before the first, between, behind the last, which is -1.
            let at = index(key, items.len() + 1).filter(|at| *at <= items.len());
            items.insert(at.ok_or_else(|| no_index(path, "add"))?, value);
        }
        Value::Object(fields) => drop(fields.insert(key.clone(), value)),
        _ => {}
    }
    Ok(())
}

fn remove(object: &mut Value, path: &Pointer, what: &str) -> Result<Value, Fault> {
    let key = last(path);
    match place(object, path, what)? {
        Value::Array(items) => {
            let at = index(key, items.len()).filter(|at| *at < items.len());
            Ok(items.remove(at.ok_or_else(|| no_index(path, what))?))
        }
        Value::Object(fields) => fields.shift_remove(key).ok_or_else(|| missing(path, what)),
        _ => Err(missing(path, what)),
    }
}

/// The place in a list of `len` items that a key names: Go's `Atoi`, so that `01` is 1; negative ones count from the end. It may be beyond the end.
fn index(key: &str, len: usize) -> Option<usize> {
    let number: i64 = key.parse().ok()?;
    if number < 0 { len.checked_sub(usize::try_from(number.unsigned_abs()).ok()?) } else { usize::try_from(number).ok() }
}

fn last(path: &Pointer) -> &String {
    &path.parts[path.parts.len() - 1]
}

fn missing(path: &Pointer, what: &str) -> Fault {
    Fault::Error(format!("{what}: there is no {path}"))
}

fn no_index(path: &Pointer, what: &str) -> Fault {
    Fault::Error(format!("{what}: {path} is no place in its list"))
}

/// Applies a merge patch: null deletes, lists are replaced.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    let (Value::Object(fields), Value::Object(patch)) = (&mut *object, patch) else {
        let anew = !object.is_object();
        *object = patch.clone();
        if anew {
            without_nulls(object);
        }
        return;
    };
    for (key, value) in patch {
        match fields.get_mut(key) {
            _ if value.is_null() => drop(fields.shift_remove(key)),
            Some(there) => merge(there, value),
            None => {
                let mut value = value.clone();
                without_nulls(&mut value);
                fields.insert(key.clone(), value);
            }
        }
    }
}

/// What a merge patch brings anew: nulls in it have nothing to delete. The library looks for them in lists too, but not in a list that takes the place of
/// an object (`v5/merge.go`).
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn at(text: &str) -> Pointer {
        Pointer::parse(text).unwrap()
    }

    #[test]
    fn lists_take_indices_as_go_reads_them() {
        let list = || json!({"l": [0, 1, 2]});
        let after = |operation: Operation| {
            let mut object = list();
            apply(&mut object, &operation).map(|()| object["l"].clone())
        };
        for (path, becomes) in [("/l/-", json!([0, 1, 2, 9])), ("/l/-1", json!([0, 1, 2, 9])), ("/l/3", json!([0, 1, 2, 9]))] {
            assert_eq!(after(Operation::Add(at(path), json!(9))), Ok(becomes), "{path}");
        }
        for (path, becomes) in [("/l/-4", json!([9, 0, 1, 2])), ("/l/01", json!([0, 9, 1, 2])), ("/l/+1", json!([0, 9, 1, 2]))] {
            assert_eq!(after(Operation::Add(at(path), json!(9))), Ok(becomes), "{path}");
        }
        for path in ["/l/4", "/l/-5", "/l/x", "/l/1.0", "/l/"] {
            assert!(matches!(after(Operation::Add(at(path), json!(9))), Err(Fault::Error(_))), "{path}");
        }
        assert_eq!(after(Operation::Remove(at("/l/-1"))), Ok(json!([0, 1])));
        assert_eq!(after(Operation::Remove(at("/l/-3"))), Ok(json!([1, 2])));
        for path in ["/l/3", "/l/-4", "/l/-"] {
            assert!(matches!(after(Operation::Remove(at(path))), Err(Fault::Error(_))), "{path}");
            assert!(matches!(after(Operation::Replace(at(path), json!(9))), Err(Fault::Error(_))), "{path}");
        }
    }

    #[test]
    fn what_is_missing_is_an_error_a_failed_test_or_null() {
        let mut object = json!({"a": {"b": null}, "t": "x"});
        let mut test = |path: &str, value: Value| apply(&mut object, &Operation::Test(at(path), value));
        assert_eq!(test("/a/none", Value::Null), Ok(()));
        assert_eq!(test("/a/b", Value::Null), Ok(()));
        assert!(matches!(test("/a/none", json!(1)), Err(Fault::Test(_))));
        assert!(matches!(test("/none/none", Value::Null), Err(Fault::Error(_))));
        assert!(matches!(test("/t/none", Value::Null), Err(Fault::Error(_))));
        for (path, value, held) in [
            ("/a/none", Value::Null, true),
            ("/none/none", Value::Null, false),
            ("/t", json!("x"), true),
            ("/t/none", Value::Null, false),
            ("/a/b", json!("x"), false),
        ] {
            assert_eq!(holds(&object, &at(path), &value), held, "{path}");
        }
        assert!(holds(&json!({"l": [1, {"a": 2}]}), &at("/l/-1/a"), &json!(2)));
        assert!(!holds(&json!({"l": [1]}), &at("/l/1"), &Value::Null));
    }

    #[test]
    fn nulls_in_what_a_merge_patch_brings_are_left_out_as_the_library_does() {
        let merged = |object: Value, patch: Value| {
            let mut object = object;
            merge(&mut object, &patch);
            object
        };
        let list = json!([{"b": null, "c": 1}, null]);
        for before in [json!({}), json!({"a": null}), json!({"a": 1}), json!({"a": [1]})] {
            assert_eq!(merged(before, json!({"a": list})), json!({"a": [{"c": 1}, null]}));
        }
        assert_eq!(merged(json!({"a": {"x": 1}}), json!({"a": list})), json!({"a": list}));
        assert_eq!(merged(json!({"a": {"x": 1, "y": 2}}), json!({"a": {"x": null, "z": {"n": null}}})), json!({"a": {"y": 2, "z": {}}}));
    }

    #[test]
    fn pointers_touch_what_is_around_and_within_them() {
        for (one, other, touch) in [("/status", "/status/a", true), ("/metadata", "/metadata/uid", true), ("/statu", "/status", false)] {
            assert_eq!((at(one).touches(&at(other)), at(other).touches(&at(one))), (touch, touch), "{one} {other}");
        }
        assert_eq!(Pointer::parse("spec"), None);
        assert_eq!(at("/a~1b/~01").parts, ["a/b", "~1"]);
    }

    /// Numbers that look random, and are the same each time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((self.0 >> 33) % sides as u64).unwrap()
        }

        fn value(&mut self, deep: usize) -> Value {
            match self.roll(if deep == 0 { 4 } else { 7 }) {
                0 => json!(self.roll(3)),
                1 => json!(["x", "y/z", "~"][self.roll(3)]),
                2 => json!(self.roll(2) == 0),
                3 => json!("5"),
                4 => (0..self.roll(4)).map(|_| self.value(deep - 1)).collect(),
                _ => (0..self.roll(4)).map(|_| (self.key(), self.value(deep - 1))).collect::<Map<_, _>>().into(),
            }
        }

        fn key(&mut self) -> String {
            ["a", "b", "c", "x/y", "~z"][self.roll(5)].to_owned()
        }

        /// A path that is often there.
        fn path(&mut self, object: &Value) -> String {
            let (mut path, mut place) = (String::new(), Some(object));
            loop {
                let key = match place {
                    Some(Value::Array(items)) if !items.is_empty() => self.roll(items.len() + 1).to_string(),
                    Some(Value::Object(fields)) if !fields.is_empty() && self.roll(5) > 0 => {
                        fields.keys().nth(self.roll(fields.len())).unwrap().clone()
                    }
                    _ => self.key(),
                };
                place = place.and_then(|place| child(place, &key));
                path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                if place.is_none() || self.roll(3) == 0 {
                    return path;
                }
            }
        }

        fn operation(&mut self, object: &Value) -> (Operation, Value) {
            let (from, value) = (self.path(object), self.value(2));
            let path = self.path(object);
            let (op, operation) = match self.roll(6) {
                0 => ("add", Operation::Add(at(&path), value.clone())),
                1 => ("remove", Operation::Remove(at(&path))),
                2 => ("replace", Operation::Replace(at(&path), value.clone())),
                3 => ("move", Operation::Move { from: at(&from), path: at(&path) }),
                4 => ("copy", Operation::Copy { from: at(&from), path: at(&path) }),
                _ => {
                    let value = if self.roll(2) == 0 { object.pointer(&path).cloned().unwrap_or(value) } else { value };
                    return (Operation::Test(at(&path), value.clone()), json!({"op": "test", "path": path, "value": value}));
                }
            };
            (operation, json!({"op": op, "path": path, "from": from, "value": value}))
        }
    }

    /// A second implementation, which reads lists and missing keys as RFC 6902 does: paths here have neither negative numbers nor leading zeros,
    /// and no value is null. A move into itself, which the RFC forbids, is an error to both.
    #[test]
    fn another_implementation_comes_to_the_same_end() {
        let (mut applied, mut failed, mut dice) = (0, 0, Dice(1));
        for round in 0..20_000 {
            let mut object = dice.value(3);
            if !object.is_object() {
                continue;
            }
            let (operation, theirs) = dice.operation(&object);
            let mut other = object.clone();
            let theirs: json_patch::Patch = serde_json::from_value(json!([theirs])).unwrap();
            let (before, shown) = (object.clone(), format!("{operation:?}"));
            match (apply(&mut object, &operation), json_patch::patch(&mut other, &theirs)) {
                (Ok(()), Ok(())) => {
                    assert_eq!(object, other, "round {round}: {shown} on {before}");
                    applied += 1;
                }
                (Err(_), Err(_)) => failed += 1,
                (ours, theirs) => panic!("round {round}: {shown} on {before}: {ours:?}, {theirs:?}"),
            }
        }
        assert!(applied > 1000 && failed > 1000, "{applied} {failed}");
        for round in 0..20_000 {
            let (mut object, patch) = (dice.value(3), dice.value(3));
            let mut other = object.clone();
            merge(&mut object, &patch);
            json_patch::merge(&mut other, &patch);
            assert_eq!(object, other, "round {round}: {patch}");
        }
    }
}
