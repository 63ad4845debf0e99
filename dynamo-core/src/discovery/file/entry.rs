//! Instances as files: one file per instance, a value that a person can read.
//!
//! ```text
//! {namespace}.{component}.{endpoint}.{instance, 16 hexadecimal digits}.json
//! ```

use serde::{Deserialize, Serialize};

use crate::discovery::Instance;
use crate::error::{Error, ErrorKind, Result};
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;

/// Returns the name of an instance's file; no two have the same: names have no dot.
pub(super) fn file_name(endpoint: &EndpointPath, id: InstanceId) -> String {
    let EndpointPath { namespace, component, endpoint } = endpoint;
    format!("{namespace}.{component}.{endpoint}.{:016x}.json", id.0)
}

/// Returns whose file has this name, if it is one that [`file_name`] gives.
pub(super) fn parse(file_name: &str) -> Option<(EndpointPath, InstanceId)> {
    let mut parts = file_name.strip_suffix(".json")?.split('.');
    let mut name = || Name::new(parts.next()?).ok();
    let endpoint = EndpointPath { namespace: name()?, component: name()?, endpoint: name()? };
    let id = InstanceId(u64::from_str_radix(parts.next()?, 16).ok()?);
    // Other ways to write the number are not ours.
    (self::file_name(&endpoint, id) == file_name).then_some((endpoint, id))
}

#[derive(Serialize, Deserialize)]
struct Entry<I> {
    version: u32,
    instance: I,
}

/// What a reader looks at before the rest.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Encodes an instance; fails with [`InvalidArgument`](ErrorKind::InvalidArgument) on one that
/// readers would not take.
pub(super) fn encode(instance: &Instance) -> Result<Vec<u8>> {
    let bytes =
        serde_json::to_vec_pretty(&Entry { version: VERSION, instance }).map_err(|error| {
            Error::invalid(format!("{instance} does not encode")).with_source(error)
        })?;
    if bytes.len() > LEN_MAX {
        let message = format!("{instance} has {} bytes: {LEN_MAX} are allowed", bytes.len());
        return Err(Error::invalid(message));
    }
    Ok(bytes)
}

/// Decodes a file; fails with [`Protocol`](ErrorKind::Protocol) if it is not the instance that its
/// name says.
pub(super) fn decode(file_name: &str, bytes: &[u8]) -> Result<Instance> {
    let bad = |why| Error::new(ErrorKind::Protocol, format!("file {file_name} {why}"));
    let no_instance = |error| bad("is no instance").with_source(error);
    let Version { version } = serde_json::from_slice(bytes).map_err(no_instance)?;
    if version != VERSION {
        return Err(bad("is of another version"));
    }
    let entry: Entry<Instance> = serde_json::from_slice(bytes).map_err(no_instance)?;
    if self::file_name(&entry.instance.endpoint, entry.instance.id) == file_name {
        Ok(entry.instance)
    } else {
        Err(bad("names another instance"))
    }
}

const VERSION: u32 = 1;

/// Far above what labels are for; checked before a file is read.
pub(super) const LEN_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::discovery::Address;

    fn instance(endpoint: &str, id: u64) -> Instance {
        let name = |name| Name::new(name).unwrap();
        Instance {
            id: InstanceId(id),
            incarnation: 3,
            endpoint: EndpointPath {
                namespace: name("n"),
                component: name("c-1"),
                endpoint: name(endpoint),
            },
            address: Address("tcp:127.0.0.1:1".into()),
            labels: BTreeMap::from([("zone".into(), "../a\n".into())]),
        }
    }

    #[test]
    fn an_instance_survives_the_way_under_the_name_that_says_it() {
        let instance = instance("e_x", 0x1f);
        let name = file_name(&instance.endpoint, instance.id);
        assert_eq!(name, "n.c-1.e_x.000000000000001f.json");
        assert_eq!(parse(&name), Some((instance.endpoint.clone(), instance.id)));
        let bytes = encode(&instance).unwrap();
        assert_eq!(decode(&name, &bytes).unwrap(), instance);
        let longest = "x".repeat(63);
        assert!(file_name(&self::instance(&longest, u64::MAX).endpoint, InstanceId(0)).len() < 255);
    }

    #[test]
    fn other_names_other_versions_and_other_values_are_refused() {
        for name in [
            "",
            ".json",
            "n.c.e.json",
            "n.c.e.1.json",
            "n.c.e.+00000000000001f.json",
            "n.c.e.000000000000001F.json",
            "n.c.e.f.000000000000001f.json",
            "n.c..000000000000001f.json",
            "n.c.E.000000000000001f.json",
            "../n.c.e.000000000000001f.json",
            "n.c.e.000000000000001f.json.tmp",
        ] {
            assert_eq!(parse(name), None, "{name:?}");
        }
        let good = encode(&instance("e", 1)).unwrap();
        let of = |id| file_name(&instance("e", id).endpoint, InstanceId(id));
        let newer = br#"{"version": 2, "instance": [], "more": 1}"#;
        for (name, bytes, why) in [
            (of(2), &good[..], "names another instance"),
            (of(1), newer, "is of another version"),
            (of(1), b"{}", "is no instance"),
            (of(1), &good[..good.len() - 1], "is no instance"),
        ] {
            let error = decode(&name, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
            assert!(error.message().contains(&format!("{name} {why}")), "{error}");
        }
        let mut large = instance("e", 1);
        large.labels.insert("large".into(), "x".repeat(LEN_MAX));
        assert_eq!(encode(&large).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(name in ".{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&name);
            let _ = decode(&name, &bytes);
        }
    }
}
