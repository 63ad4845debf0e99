//! Instances as keys and values: one key per instance, a value that a person can read.
//!
//! ```text
//! {root}/v1/instances/{namespace}/{component}/{endpoint}/{instance, 16 hexadecimal digits}
//! ```

use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};
use crate::name::EndpointPath;

/// Returns what the keys of an endpoint's instances start with; no other key does.
pub(super) fn prefix(root: &str, endpoint: &EndpointPath) -> String {
    // Names have no slash, so the last one ends the endpoint's.
    format!("{root}/v1/instances/{endpoint}/")
}

pub(super) fn key(root: &str, instance: &Instance) -> String {
    format!("{}{:016x}", prefix(root, &instance.endpoint), instance.id.0)
}

/// Stands in the place of an instance that leaves, for a moment before its key goes: a key that goes
/// without it has lost its lease, which is no proof of death.
pub(super) const LEAVING: &[u8] = b"leaving";

pub(super) fn encode(instance: &Instance) -> Result<Vec<u8>> {
    serde_json::to_vec(instance)
        .map_err(|error| Error::invalid(format!("{instance} does not encode")).with_source(error))
}

/// Decodes a value; fails with [`Protocol`](ErrorKind::Protocol) if it is not the instance that
/// its key names.
pub(super) fn decode(root: &str, found_at: &[u8], value: &[u8]) -> Result<Instance> {
    let bad = || {
        let at = String::from_utf8_lossy(found_at);
        Error::new(ErrorKind::Protocol, format!("value of {at} is no instance of that key"))
    };
    let instance: Instance = serde_json::from_slice(value).map_err(|e| bad().with_source(e))?;
    if key(root, &instance).as_bytes() == found_at { Ok(instance) } else { Err(bad()) }
}

/// An instance that is taken stands under its key, and survives the way; the first line of `data`
/// is the key.
///
/// # Panics
/// If not.
#[cfg(any(test, feature = "test-util"))]
pub fn fuzz_etcd_key(data: &[u8]) {
    let line = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (found_at, value) = data.split_at(line);
    let value = value.get(1..).unwrap_or_default();
    if let Ok(instance) = decode("fuzz", found_at, value) {
        assert!(found_at.starts_with(prefix("fuzz", &instance.endpoint).as_bytes()));
        let again = encode(&instance).and_then(|value| decode("fuzz", found_at, &value));
        assert!(again.is_ok_and(|again| again == instance));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::discovery::Address;
    use crate::name::Name;
    use crate::protocol::InstanceId;

    fn instance(id: u64, endpoint: &str) -> Instance {
        let name = |name| Name::new(name).unwrap();
        Instance {
            id: InstanceId(id),
            incarnation: 3,
            endpoint: EndpointPath {
                namespace: name("n"),
                component: name("c"),
                endpoint: name(endpoint),
            },
            address: Address("tcp:127.0.0.1:1".into()),
            labels: BTreeMap::from([("zone".into(), "a/b".into())]),
        }
    }

    #[test]
    fn an_instance_survives_the_way_and_stands_under_its_endpoint_only() {
        let instance = instance(0x1f, "e");
        let key = key("/dynamo", &instance);
        assert_eq!(key, "/dynamo/v1/instances/n/c/e/000000000000001f");
        let value = encode(&instance).unwrap();
        assert_eq!(decode("/dynamo", key.as_bytes(), &value).unwrap(), instance);
        let longer = self::instance(0x1f, "e2");
        assert!(!self::key("/dynamo", &longer).starts_with(&prefix("/dynamo", &instance.endpoint)));
    }

    #[test]
    fn a_value_under_another_key_or_of_another_sort_is_refused() {
        let value = encode(&instance(1, "e")).unwrap();
        let other = key("/dynamo", &instance(2, "e"));
        for (found_at, value) in [(&other, &value[..]), (&other, b"{}"), (&other, b"")] {
            let error = decode("/dynamo", found_at.as_bytes(), value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
            assert!(error.message().contains("0000000000000002"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            found_at in prop::collection::vec(any::<u8>(), 0..60),
            value in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode("/dynamo", &found_at, &value);
        }
    }
}
