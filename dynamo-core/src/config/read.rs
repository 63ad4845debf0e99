//! From a tree to typed values, with the place of what is wrong. Values are never shown: one of them
//! may be a password.

use std::collections::{BTreeMap, btree_map};
use std::fmt::{self, Display};

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::Tree;

/// What is wrong, and where.
#[derive(Debug, Default)]
pub(super) struct Bad {
    /// The keys that lead there.
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

impl Bad {
    fn new(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into() }
    }

    fn below(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }
}

impl Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.join("."), self.message)
    }
}

impl std::error::Error for Bad {}

impl de::Error for Bad {
    fn custom<T: Display>(message: T) -> Self {
        // What our own types say starts with the kind.
        let message = message.to_string();
        Self::new(message.trim_start_matches("invalid_argument: "))
    }

    fn invalid_type(is: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let is = match is {
            Unexpected::Bool(_) => "a truth value",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a number",
            Unexpected::Str(_) => "a text",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a table",
            _ => "empty",
        };
        Self::new(format!("is {is}, not {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("is not {expected}"))
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("has {len} items, not those of {expected}"))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("is not known, only {}", expected.join(", "))).below(field)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is missing").below(field)
    }
}

/// Reads a word as `$kind` if it is one, and everything else as what it is.
macro_rules! words {
    ($($method:ident $kind:ident $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Bad> {
            match self {
                Self::Word(word) => match word.trim().parse::<$kind>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::invalid_value(Unexpected::Other("word"), &visitor)),
                },
                other => other.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Tree {
    type Error = Bad;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Bad> {
        match self {
            Self::Nothing => visitor.visit_unit(),
            Self::Truth(truth) => visitor.visit_bool(truth),
            Self::Signed(number) => visitor.visit_i64(number),
            Self::Unsigned(number) => visitor.visit_u64(number),
            Self::Float(number) => visitor.visit_f64(number),
            Self::Text(text) | Self::Word(text) => visitor.visit_string(text),
            Self::List(items) => visitor.visit_seq(Items(items.into_iter().enumerate())),
            Self::Table(table) => {
                visitor.visit_map(Entries { entries: table.into_iter(), next: None })
            }
        }
    }

    words! {
        deserialize_bool bool visit_bool;
        deserialize_i8 i64 visit_i64;
        deserialize_i16 i64 visit_i64;
        deserialize_i32 i64 visit_i64;
        deserialize_i64 i64 visit_i64;
        deserialize_u8 u64 visit_u64;
        deserialize_u16 u64 visit_u64;
        deserialize_u32 u64 visit_u64;
        deserialize_u64 u64 visit_u64;
        deserialize_f32 f64 visit_f64;
        deserialize_f64 f64 visit_f64;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Bad> {
        match self {
            Self::Nothing => visitor.visit_none(),
            some => visitor.visit_some(some),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Bad> {
        let list = match self {
            Self::Word(word) if word.trim().is_empty() => Self::List(Vec::new()),
            Self::Word(word) => {
                Self::List(word.split(',').map(|item| Self::Word(item.trim().into())).collect())
            }
            other => other,
        };
        list.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Bad> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Bad> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Bad> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Bad> {
        match self {
            // `tcp` alone, or a table of YAML without keys.
            Self::Nothing => Self::Table(BTreeMap::new()).deserialize_any(visitor),
            Self::Table(_) => self.deserialize_any(visitor),
            _ => Err(Bad::new("is not a table of keys")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Bad> {
        let choices = || format!("{} is possible", variants.join(", "));
        let one_of = |what| Bad::new(format!("{what}: one of {}", choices()));
        let (name, content) = match self {
            Self::Text(name) | Self::Word(name) if variants.contains(&name.as_str()) => {
                (name, Self::Nothing)
            }
            Self::Table(table) if table.len() > 1 => {
                return Err(one_of("says more than one thing"));
            }
            Self::Table(table) => match table.into_iter().next() {
                Some((name, content)) if variants.contains(&name.as_str()) => (name, content),
                Some((name, _)) => return Err(one_of("is not known").below(&name)),
                None => return Err(one_of("is empty")),
            },
            _ => return Err(one_of("is not known")),
        };
        visitor.visit_enum(Choice { name: name.clone(), content }).map_err(|bad| bad.below(&name))
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct map identifier ignored_any
    }
}

struct Items(std::iter::Enumerate<std::vec::IntoIter<Tree>>);

impl<'de> SeqAccess<'de> for Items {
    type Error = Bad;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Bad> {
        let Some((at, item)) = self.0.next() else { return Ok(None) };
        seed.deserialize(item).map(Some).map_err(|bad| bad.below(&at.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries {
    entries: btree_map::IntoIter<String, Tree>,
    next: Option<(String, Tree)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Bad;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Bad> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let reader: StringDeserializer<Bad> = key.clone().into_deserializer();
        self.next = Some((key, value));
        seed.deserialize(reader).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Bad> {
        let (key, value) = self.next.take().ok_or_else(|| Bad::new("has no value"))?;
        seed.deserialize(value).map_err(|bad| bad.below(&key))
    }
}

struct Choice {
    name: String,
    content: Tree,
}

impl<'de> EnumAccess<'de> for Choice {
    type Error = Bad;
    type Variant = Tree;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Tree), Bad> {
        let reader: StringDeserializer<Bad> = self.name.into_deserializer();
        Ok((seed.deserialize(reader)?, self.content))
    }
}

impl<'de> VariantAccess<'de> for Tree {
    type Error = Bad;

    fn unit_variant(self) -> Result<(), Bad> {
        match self {
            Self::Nothing => Ok(()),
            Self::Table(table) if table.is_empty() => Ok(()),
            Self::Table(mut table) => {
                let key = table.pop_first().map(|(key, _)| key).unwrap_or_default();
                Err(Bad::new("is not known: nothing is set there").below(&key))
            }
            _ => Err(Bad::new("takes no value")),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Bad> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Bad> {
        self.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Bad> {
        self.deserialize_struct("", fields, visitor)
    }
}
