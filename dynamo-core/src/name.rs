//! Names that are parsed once, so that no byte of a user reaches a subject or a key unescaped.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

/// One segment of a path: 1 to 63 bytes of `[a-z0-9_-]`.
///
/// Cheap to clone. Comparison is by whole segment: `component` never matches `component2`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

impl Name {
    /// Parses a name, or says which rule it breaks ([`InvalidArgument`](crate::ErrorKind)).
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Error::invalid(format!(
                "name {name:?} has {} bytes: 1 to {NAME_LEN_MAX} are allowed",
                name.len()
            )));
        }
        let allowed = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(b);
        if !name.as_bytes().iter().all(allowed) {
            return Err(Error::invalid(format!("name {name:?} must match [a-z0-9_-]+")));
        }
        Ok(Self(name.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The length limit of a DNS label (RFC 1035), so that a name fits wherever a host name does.
const NAME_LEN_MAX: usize = 63;

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::new(name)
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// The full path of an endpoint: `namespace/component/endpoint`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct EndpointPath {
    /// The namespace that isolates one deployment from another.
    pub namespace: Name,
    /// The component: one role in the graph, served by any number of instances.
    pub component: Name,
    /// The endpoint: one operation of the component.
    pub endpoint: Name,
}

impl fmt::Display for EndpointPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.component, self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_with_separators_wildcards_or_wrong_length_are_refused() {
        for bad in ["", "a.b", "a*", ">", "a/b", "A", "ä", "a b", "a\r\n", &"x".repeat(64)] {
            let error = Name::new(bad).unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::InvalidArgument, "{bad:?}");
            assert!(error.message().contains(&format!("{bad:?}")), "{error}");
        }
        assert_eq!(Name::new("x".repeat(63)).unwrap().as_str().len(), 63);
    }

    proptest! {
        #[test]
        fn a_name_is_accepted_exactly_when_it_matches_the_rule(text in ".{0,70}") {
            let rule = (1..=63).contains(&text.len())
                && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
            prop_assert_eq!(Name::new(&text).is_ok(), rule);
        }
    }
}
