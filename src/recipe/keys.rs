//! What each key of a recipe takes, asked of the config structs themselves, so that nothing is listed twice.
//!
//! serde's derive tells a deserializer what it wants: a struct with these fields, one of these variants, an `f64`. The
//! [`Probe`] follows a path of keys down to one value, notes what is wanted there, and gives up.

use super::RecipeFile;
use serde::Deserialize;
use serde::de::value::{Error as ProbeError, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Keys of its own.
    Section(&'static [&'static str]),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Any number.
    Number,
    /// A whole number from 0.
    Count,
    /// `true` or `false`.
    Flag,
    /// Text: a name or a path.
    Text,
    /// Something that serde cannot say in a word, such as "a word or a list".
    Other,
}

/// What the key at `route` takes (`["lora", "r"]`); an empty route is the recipe itself. `None` when there is no such key.
pub(super) fn kind_of(route: &[&str]) -> Option<Kind> {
    let mut kind = None;
    let _ = RecipeFile::deserialize(Probe { route, kind: &mut kind });
    kind
}

/// As [`kind_of`], for a dotted path.
pub(super) fn kind_at(path: &str) -> Option<Kind> {
    let route: Vec<&str> = path.split('.').filter(|key| !key.is_empty()).collect();
    kind_of(&route)
}

/// The keys of a section; of the recipe itself for an empty path; none where the path is not a section.
pub(super) fn keys_of(path: &str) -> &'static [&'static str] {
    match kind_at(path) {
        Some(Kind::Section(keys)) => keys,
        _ => &[],
    }
}

/// The sections that have a key of this name.
pub(super) fn sections_with(key: &str) -> Vec<&'static str> {
    keys_of("").iter().copied().filter(|section| keys_of(section).contains(&key)).collect()
}

struct Probe<'a> {
    route: &'a [&'a str],
    kind: &'a mut Option<Kind>,
}

impl Probe<'_> {
    fn note<T>(self, kind: Kind) -> Result<T, ProbeError> {
        if self.route.is_empty() {
            *self.kind = Some(kind);
        }
        Err(ProbeError::custom("noted"))
    }
}

macro_rules! note {
    ($kind:ident: $($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, ProbeError> {
            self.note(Kind::$kind)
        }
    )*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeError;

    note!(Other: deserialize_any);
    note!(Flag: deserialize_bool);
    note!(Number: deserialize_f32 deserialize_f64);
    note!(Count: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);
    note!(Text: deserialize_str deserialize_string);

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ProbeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ProbeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, ProbeError> {
        self.note(Kind::OneOf(variants))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeError> {
        match self.route.split_first() {
            Some((key, route)) => visitor.visit_map(Step { key, below: Probe { route, kind: self.kind } }),
            None => self.note(Kind::Section(fields)),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 char bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// A mapping with one key, whose value is probed.
struct Step<'a> {
    key: &'a str,
    below: Probe<'a>,
}

impl<'de> MapAccess<'de> for Step<'_> {
    type Error = ProbeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ProbeError> {
        let key: StrDeserializer<'_, ProbeError> = self.key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ProbeError> {
        seed.deserialize(Probe { route: self.below.route, kind: self.below.kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_tell_their_keys() {
        assert!(keys_of("").contains(&"base") && keys_of("").contains(&"output_dir"));
        assert_eq!(kind_at("base.file"), Some(Kind::Text));
        assert_eq!(kind_at("quantization"), Some(Kind::Section(&["type"])));
        assert!(matches!(kind_at("quantization.type"), Some(Kind::OneOf(types)) if types.contains(&"q4_k")));
        assert_eq!(kind_at("lora.r"), Some(Kind::Count));
        assert_eq!(kind_at("lora.use_rslora"), Some(Kind::Flag));
        assert_eq!(kind_at("lora.target_modules"), Some(Kind::Other));
        assert_eq!(kind_at("training.max_steps"), Some(Kind::Count));
        assert_eq!(kind_at("training.learning_rate"), Some(Kind::Number));
        assert_eq!(kind_at("data.train"), Some(Kind::Other));
        assert_eq!(kind_at("device"), Some(Kind::Text));
        assert_eq!(kind_at("lora.rank"), None);
        assert_eq!(kind_at("lora.r.x"), None);
        assert_eq!(sections_with("learning_rate"), ["training"]);
        assert_eq!(sections_with("type"), ["quantization", "objective"]);
    }
}
