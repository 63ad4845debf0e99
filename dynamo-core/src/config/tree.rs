use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A configuration before it is understood, whatever it was written in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Nothing,
    Truth(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    /// The value of a variable: a truth, a number, a text or a list, as its reader wants it.
    Word(String),
    List(Vec<Self>),
    Table(BTreeMap<String, Self>),
}

impl Tree {
    /// Tells whether `path` is said: as the keys of tables, or at its end as a text.
    pub(super) fn says(&self, path: &[&str]) -> bool {
        match (self, path) {
            (_, []) => true,
            (Self::Table(table), [first, rest @ ..]) => {
                table.get(*first).is_some_and(|inner| inner.says(rest))
            }
            (Self::Text(text) | Self::Word(text), [last]) => text == last,
            _ => false,
        }
    }

    /// Puts `value` at `path`; fails if something stands there or on the way.
    pub(super) fn put(&mut self, path: &[String], value: Self) -> Result<(), ()> {
        let Self::Table(table) = self else { return Err(()) };
        match path {
            [] => Err(()),
            [last] if table.contains_key(last) => Err(()),
            [last] => {
                table.insert(last.clone(), value);
                Ok(())
            }
            [first, rest @ ..] => {
                let inner = table.entry(first.clone());
                inner.or_insert_with(|| Self::Table(BTreeMap::new())).put(rest, value)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Grow)
    }
}

struct Grow;

impl<'de> Visitor<'de> for Grow {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Tree, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Tree, E> {
        Ok(Tree::Truth(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Signed(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Unsigned(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Tree, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry::<String, Tree>()? {
            if table.contains_key(&key) {
                return Err(de::Error::custom(format_args!("{key} is said twice")));
            }
            table.insert(key, value);
        }
        Ok(Tree::Table(table))
    }
}
