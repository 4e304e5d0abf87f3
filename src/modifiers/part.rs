//! As much of an object as rules look at: most of its JSON is gone over, and not kept.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::value::is_float_as_go_writes;

/// The fields of an object that are wanted; `None` when another has a number in it that Go writes in another way.
///
/// # Errors
/// When it is no JSON, or no object.
pub(super) fn part(json: &[u8], wanted: &dyn Fn(&str) -> bool) -> serde_json::Result<Option<Value>> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let part = Fields(wanted).deserialize(&mut from)?;
    from.end()?;
    Ok(part.map(Value::Object))
}

struct Fields<'a>(&'a dyn Fn(&str) -> bool);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Option<Map<String, Value>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Option<Map<String, Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let (mut fields, mut as_go_writes) = (Map::new(), true);
        while let Some(name) = from.next_key_seed(Name(self.0))? {
            match name {
                Some(name) => drop(fields.insert(name, from.next_value()?)),
                None => as_go_writes &= from.next_value::<AsGoWrites>()?.0,
            }
        }
        Ok(as_go_writes.then_some(fields))
    }
}

/// The name of a field that is wanted.
struct Name<'a>(&'a dyn Fn(&str) -> bool);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok((self.0)(name).then(|| name.to_owned()))
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
