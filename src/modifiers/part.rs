//! As much of an object as rules look at: most of its JSON is gone over, and not kept.

use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::file::Patches;
use super::patch::Operation;
use super::value::is_float_as_go_writes;

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

/// The part of an object that is wanted; `None` when there is a number in the rest that Go writes in another way.
///
/// # Errors
/// When it is no JSON, or no object.
pub(super) fn part(json: &[u8], wanted: &Wanted) -> serde_json::Result<Option<Value>> {
    let (mut from, as_go_writes) = (serde_json::Deserializer::from_slice(json), Cell::new(true));
    let part = from.deserialize_map(Part { wanted, as_go_writes: &as_go_writes })?;
    from.end()?;
    Ok(as_go_writes.get().then_some(part))
}

#[derive(Clone, Copy)]
struct Part<'a> {
    wanted: &'a Wanted,
    /// All numbers that were gone over are as Go writes them.
    as_go_writes: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if *self.wanted == Wanted::All { Value::deserialize(from) } else { from.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(wanted) = from.next_key_seed(Name(self.wanted))? {
            if let Some((name, wanted)) = wanted {
                fields.insert(name.to_owned(), from.next_value_seed(Part { wanted, ..self })?);
            } else {
                let AsGoWrites(are) = from.next_value()?;
                self.as_go_writes.set(self.as_go_writes.get() && are);
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

/// Whether all numbers in a value are as Go writes them.
struct AsGoWrites(bool);

impl<'de> Deserialize<'de> for AsGoWrites {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Numbers).map(Self)
    }
}

struct Numbers;

impl<'de> Visitor<'de> for Numbers {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_i64<E>(self, _: i64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_f64<E>(self, number: f64) -> Result<bool, E> {
        Ok(is_float_as_go_writes(number))
    }

    fn visit_str<E>(self, _: &str) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<bool, A::Error> {
        let mut all = true;
        while let Some(AsGoWrites(one)) = from.next_element()? {
            all &= one;
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<bool, A::Error> {
        let mut all = true;
        while let Some((IgnoredAny, AsGoWrites(one))) = from.next_entry()? {
            all &= one;
        }
        Ok(all)
    }
}
