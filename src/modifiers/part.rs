//! As much of an object as rules look at: most of its JSON is gone over, and not kept.

use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::file::Patches;
use super::patch::Operation;

/// What of a value is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of it.
    All,
    /// Of an object these fields; of anything else all of it.
    Fields(Vec<(String, Wanted)>),
}

impl Wanted {
    /// What patches look at or change, and what says which object it is.
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a Patches>) -> Self {
        let mut wanted = Self::Fields(Vec::new());
        ["name", "namespace"].iter().for_each(|name| wanted.add(&["metadata", name].map(str::to_owned)));
        for patches in all {
            match patches {
                Patches::Json(operations) => {
                    operations.iter().flat_map(Operation::pointers).for_each(|pointer| wanted.add(pointer.parts()));
                }
                Patches::Merge(patches) => patches.iter().for_each(|patch| wanted.add_merged(patch)),
            }
        }
        wanted
    }

    fn field(&mut self, name: &str) -> Option<&mut Self> {
        let Self::Fields(fields) = self else { return None };
        let at = fields.iter().position(|(have, _)| have == name).unwrap_or_else(|| {
            fields.push((name.to_owned(), Self::Fields(Vec::new())));
            fields.len() - 1
        });
        Some(&mut fields[at].1)
    }

    fn add(&mut self, path: &[String]) {
        match path.split_first() {
            None => *self = Self::All,
            Some((first, rest)) => {
                if let Some(field) = self.field(first) {
                    field.add(rest);
                }
            }
        }
    }

    /// A merge patch: an object goes into what is there, anything else takes its place.
    fn add_merged(&mut self, patch: &Value) {
        match patch {
            Value::Object(fields) => {
                for (name, patch) in fields {
                    if let Some(field) = self.field(name) {
                        field.add_merged(patch);
                    }
                }
            }
            _ => *self = Self::All,
        }
    }

    fn get(&self, name: &str) -> Option<(&str, &Self)> {
        match self {
            // All of a value is not looked at field by field.
            Self::All => None,
            Self::Fields(fields) => fields.iter().find_map(|(have, wanted)| (have == name).then_some((have.as_str(), wanted))),
        }
    }
}

/// The part of an object that is wanted.
///
/// # Errors
/// When it is no JSON, or no object.
pub(super) fn part(json: &[u8], wanted: &Wanted) -> serde_json::Result<Value> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let part = from.deserialize_map(Part(wanted))?;
    from.end()?;
    Ok(part)
}

struct Part<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if *self.0 == Wanted::All { Value::deserialize(from) } else { from.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(wanted) = from.next_key_seed(Name(self.0))? {
            match wanted {
                Some((name, wanted)) => drop(fields.insert(name.to_owned(), from.next_value_seed(Part(wanted))?)),
                None => drop(from.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(fields))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(from))
    }
}

/// The name of a field that is wanted, and what of the field.
struct Name<'a>(&'a Wanted);

impl<'de, 'a> DeserializeSeed<'de> for Name<'a> {
    type Value = Option<(&'a str, &'a Wanted)>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Name<'a> {
    type Value = Option<(&'a str, &'a Wanted)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.get(name))
    }
}
