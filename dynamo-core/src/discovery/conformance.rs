//! The suite that every [`Discovery`] passes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;

use super::{Address, Change, Discovery, Instance, View};
use crate::error::ErrorKind;
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;

/// Runs the whole suite against `discovery`, which must be empty.
///
/// # Panics
/// If the contract is broken.
pub async fn run(discovery: &dyn Discovery) {
    a_watch_starts_with_a_snapshot_and_follows(discovery).await;
    endpoints_with_a_common_prefix_never_mix(discovery).await;
    an_id_is_taken_over_only_by_a_higher_incarnation(discovery).await;
}

async fn a_watch_starts_with_a_snapshot_and_follows(discovery: &dyn Discovery) {
    let first = discovery.register(instance("follow", 1, 0)).await.expect("registers");
    let mut watch = discovery.watch(&path("follow")).await.expect("watches");
    let mut view = View::default();
    let change = next(&mut watch).await;
    assert!(matches!(change, Change::Snapshot(_)), "the first change is a snapshot: {change:?}");
    view.apply(change);
    assert_eq!(ids(&view), [1]);

    let second = discovery.register(instance("follow", 2, 0)).await.expect("registers");
    until(&mut watch, &mut view, &[1, 2]).await;
    drop(first);
    until(&mut watch, &mut view, &[2]).await;
    drop(second);
    until(&mut watch, &mut view, &[]).await;
}

async fn endpoints_with_a_common_prefix_never_mix(discovery: &dyn Discovery) {
    let _other = discovery.register(instance("prefix2", 1, 0)).await.expect("registers");
    let mut watch = discovery.watch(&path("prefix")).await.expect("watches");
    let mut view = View::default();
    view.apply(next(&mut watch).await);
    assert_eq!(ids(&view), [0; 0]);
}

async fn an_id_is_taken_over_only_by_a_higher_incarnation(discovery: &dyn Discovery) {
    let old = discovery.register(instance("incarnation", 1, 1)).await.expect("registers");
    for stale in [0, 1] {
        let error = discovery.register(instance("incarnation", 1, stale)).await.expect_err("stale");
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    let _new = discovery.register(instance("incarnation", 1, 2)).await.expect("takes over");
    drop(old);
    let mut watch = discovery.watch(&path("incarnation")).await.expect("watches");
    let mut view = View::default();
    view.apply(next(&mut watch).await);
    assert_eq!(view.instances()[0].incarnation, 2, "dropping the old guard keeps the new one");
}

async fn until(watch: &mut BoxStream<'static, Change>, view: &mut View, expected: &[u64]) {
    while ids(view) != expected {
        view.apply(next(watch).await);
    }
}

async fn next(watch: &mut BoxStream<'static, Change>) -> Change {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a change within the bound")
        .expect("the watch goes on")
}

fn ids(view: &View) -> Vec<u64> {
    view.instances().iter().map(|instance| instance.id.0).collect()
}

fn path(endpoint: &str) -> EndpointPath {
    let name = |name| Name::new(name).expect("a valid name");
    EndpointPath { namespace: name("conformance"), component: name("c"), endpoint: name(endpoint) }
}

fn instance(endpoint: &str, id: u64, incarnation: u64) -> Instance {
    Instance {
        id: InstanceId(id),
        incarnation,
        endpoint: path(endpoint),
        address: Address(format!("test-{id}")),
        labels: BTreeMap::new(),
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
