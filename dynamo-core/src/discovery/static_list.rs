use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::Deserialize;

use super::local::Local;
use super::{Address, Change, Discovery, Instance, Registration};
use crate::error::{Error, Result};
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;

/// A directory that is a fixed list: for a fleet whose addresses are known beforehand; a clone is
/// the same directory.
///
/// # What is said
/// - A watch gives the listed instances of its endpoint as one snapshot, and nothing more: whether
///   they live is for the request plane to find out.
/// - [`register`](Discovery::register) is for processes that serve and are given the same list:
///   it always makes the instance known, listed or not, but **in this process only**. While the
///   guard lives, the registration stands in front of a listed instance of the same id, whatever
///   its incarnation; then the listed one is back, and one that is not listed is gone.
///   [`Conflict`](crate::ErrorKind::Conflict) is among registrations alone.
/// - Ids are part of the list: an instance serves with the id that it is listed with
///   ([`ServeOptions::with_instance`](crate::ServeOptions::with_instance)), and an incarnation no
///   higher than listed, or the request plane refuses what clients send to it.
///
/// # As configuration
/// It deserialises from a list; `incarnation` and `labels` may be left out, and unknown keys are
/// errors:
///
/// ```
/// # use dynamo_core::discovery::StaticDiscovery;
/// let list = r#"[{"endpoint": "demo/llm/generate", "id": 1, "address": "tcp:10.0.0.1:7000"}]"#;
/// let discovery: StaticDiscovery = serde_json::from_str(list)?;
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Vec<Listed>")]
pub struct StaticDiscovery(Local);

impl StaticDiscovery {
    /// Lists `instances`.
    ///
    /// Fails with [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if an endpoint has two of
    /// the same id.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Result<Self> {
        Local::listing(instances).map(Self)
    }
}

#[async_trait]
impl Discovery for StaticDiscovery {
    async fn register(&self, instance: Instance) -> Result<Registration> {
        self.0.register(instance)
    }

    async fn watch(&self, endpoint: &EndpointPath) -> Result<BoxStream<'static, Change>> {
        Ok(self.0.watch(endpoint))
    }
}

/// An instance as a person writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    endpoint: String,
    id: u64,
    address: String,
    #[serde(default)]
    incarnation: u64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl TryFrom<Vec<Listed>> for StaticDiscovery {
    type Error = Error;

    fn try_from(listed: Vec<Listed>) -> Result<Self> {
        let instances: Result<Vec<_>> = listed.into_iter().map(Instance::try_from).collect();
        Self::new(instances?)
    }
}

impl TryFrom<Listed> for Instance {
    type Error = Error;

    fn try_from(listed: Listed) -> Result<Self> {
        let mut names = listed.endpoint.split('/');
        let (Some(namespace), Some(component), Some(endpoint), None) =
            (names.next(), names.next(), names.next(), names.next())
        else {
            let path = &listed.endpoint;
            let message = format!("endpoint {path:?} is not of the form namespace/component/name");
            return Err(Error::invalid(message));
        };
        Ok(Self {
            id: InstanceId(listed.id),
            incarnation: listed.incarnation,
            endpoint: EndpointPath {
                namespace: Name::new(namespace)?,
                component: Name::new(component)?,
                endpoint: Name::new(endpoint)?,
            },
            address: Address(listed.address),
            labels: listed.labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::super::conformance::{self, Reach};
    use super::*;
    use crate::error::ErrorKind;

    const LIST: &str = r#"[
        {"endpoint": "n/c/e", "id": 1, "address": "tcp:10.0.0.1:7000"},
        {"endpoint": "n/c/e", "id": 2, "address": "tcp:10.0.0.2:7000", "labels": {"zone": "a"}},
        {"endpoint": "n/c/e2", "id": 1, "address": "tcp:10.0.0.1:7000", "incarnation": 3}
    ]"#;

    fn listed() -> StaticDiscovery {
        serde_json::from_str(LIST).unwrap()
    }

    fn instance(id: u64, address: &str) -> Instance {
        let name = |name| Name::new(name).unwrap();
        Instance {
            id: InstanceId(id),
            incarnation: 0,
            endpoint: EndpointPath {
                namespace: name("n"),
                component: name("c"),
                endpoint: name("e"),
            },
            address: Address(address.into()),
            labels: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn static_discovery_conforms_inside_one_process() {
        conformance::run(&listed(), Reach::Process).await;
    }

    #[tokio::test]
    async fn a_watch_is_one_snapshot_of_its_endpoint_and_ends_with_the_directory() {
        let discovery = listed();
        let path = instance(1, "").endpoint;
        let mut watch = discovery.watch(&path).await.unwrap();
        let Some(Change::Snapshot(said)) = watch.next().await else { unreachable!("no snapshot") };
        assert_eq!(said[0], instance(1, "tcp:10.0.0.1:7000"));
        assert_eq!((said.len(), said[1].labels["zone"].as_str()), (2, "a"));
        assert_eq!(watch.next().now_or_never(), None);
        drop(discovery);
        assert_eq!(watch.next().await, None);
    }

    #[tokio::test]
    async fn who_serves_stands_in_front_of_its_listing_and_who_is_not_listed_is_added() {
        let discovery = listed();
        let path = instance(1, "").endpoint;
        let mut watch = discovery.watch(&path).await.unwrap();
        watch.next().await.unwrap();
        let mut next = || watch.next().now_or_never().flatten();
        let as_listed = discovery.register(instance(1, "tcp:10.0.0.1:7000")).await.unwrap();
        assert_eq!(next(), None, "nothing has changed");
        let error = discovery.register(instance(1, "other")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        drop(as_listed);
        assert_eq!(next(), None, "the list stays");
        let moved = discovery.register(instance(1, "other")).await.unwrap();
        let added = discovery.register(instance(9, "added")).await.unwrap();
        assert_eq!(next(), Some(Change::Upsert(instance(1, "other"))));
        assert_eq!(next(), Some(Change::Upsert(instance(9, "added"))));
        drop((moved, added));
        assert_eq!(next(), Some(Change::Upsert(instance(1, "tcp:10.0.0.1:7000"))));
        assert_eq!(next(), Some(Change::Remove(InstanceId(9))));
    }

    #[test]
    fn lists_that_cannot_be_meant_are_refused_by_name() {
        let refuse =
            |list: &str| serde_json::from_str::<StaticDiscovery>(list).unwrap_err().to_string();
        let one = r#"{"endpoint": "n/c/e", "id": 1, "address": "a"}"#;
        assert!(refuse(&format!("[{one}, {one}]")).contains("instance 1 of n/c/e is listed twice"));
        for (bad, named) in [("n/c", "\"n/c\""), ("n/c/e/f", "\"n/c/e/f\""), ("n/C/e", "\"C\"")] {
            assert!(refuse(&format!("[{}]", one.replace("n/c/e", bad))).contains(named), "{bad}");
        }
        assert!(refuse(r#"[{"endpoint": "n/c/e", "idd": 1}]"#).contains("idd"));
    }
}
