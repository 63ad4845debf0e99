//! The suite that every [`Discovery`] passes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use super::{Address, Change, Discovery, Instance, View};
use crate::error::ErrorKind;
use crate::name::{EndpointPath, Name};
use crate::protocol::InstanceId;

/// How far a directory reaches.
#[derive(Debug, Clone, Copy)]
pub enum Reach<'a> {
    /// To other processes: this is another handle on it, as one of them would have.
    Host(&'a dyn Discovery),
    /// Not beyond its process, whose runtimes share it: it is not ended by one of them.
    Process,
}

/// Runs the whole suite against `here`, and shuts it down; endpoints of the namespace
/// `conformance` must be empty.
///
/// # Panics
/// If the contract is broken.
pub async fn run(here: &dyn Discovery, reach: Reach<'_>) {
    // Whatever one sees through another handle, it sees through its own.
    let there = match reach {
        Reach::Host(there) => there,
        Reach::Process => here,
    };
    a_watch_starts_with_a_snapshot_and_then_says_who_comes_and_who_leaves(here, there).await;
    an_instance_arrives_as_it_was_registered(here, there).await;
    a_watch_shows_its_endpoint_and_no_other(here, there).await;
    the_same_id_on_two_endpoints_is_two_registrations(here, there).await;
    an_id_is_taken_over_only_by_a_higher_incarnation(here, there).await;
    of_many_that_register_the_same_at_once_one_succeeds(here, there).await;
    who_has_left_comes_back_at_once_with_any_incarnation(here, there).await;
    a_register_that_is_dropped_leaves_nothing(here, there).await;
    the_first_snapshot_has_whoever_was_registered_before(here, there).await;
    a_watch_that_is_not_polled_is_told_the_present_alone(here, there).await;
    // The last one, for what it does.
    match reach {
        Reach::Host(there) => shutdown_removes_and_closes(here, there).await,
        Reach::Process => shutdown_by_one_user_takes_it_from_no_other(here).await,
    }
}

async fn a_watch_starts_with_a_snapshot_and_then_says_who_comes_and_who_leaves(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let mut early = Watch::of(there, "follow").await;
    assert_eq!(early.next().await, Change::Snapshot(vec![]), "also of an unknown endpoint");
    let first = instance("follow", 1, 0);
    let registered = here.register(first.clone()).await.expect("registers");
    assert_eq!(early.next().await, Change::Upsert(first.clone()));
    let mut late = Watch::of(there, "follow").await;
    assert_eq!(late.next().await, Change::Snapshot(vec![first]));

    let second = instance("follow", 2, 0);
    let also_registered = there.register(second.clone()).await.expect("registers");
    assert_eq!(early.next().await, Change::Upsert(second.clone()));
    assert_eq!(late.next().await, Change::Upsert(second));
    drop(registered);
    assert_eq!(early.next().await, Change::Remove(InstanceId(1)), "leaving is no absence");
    assert_eq!(late.next().await, Change::Remove(InstanceId(1)));
    drop(also_registered);
    assert_eq!(early.next().await, Change::Remove(InstanceId(2)));
    assert_eq!(late.next().await, Change::Remove(InstanceId(2)));
}

async fn an_instance_arrives_as_it_was_registered(here: &dyn Discovery, there: &dyn Discovery) {
    let mut whole = instance("whole", u64::MAX, u64::MAX - 1);
    whole.address = Address("tcp:[::1]:7000".into());
    whole.labels = BTreeMap::from([("zone/\"α\"\n".into(), "../..\0".into())]);
    let _registered = here.register(whole.clone()).await.expect("registers");
    assert_eq!(Watch::of(there, "whole").await.next().await, Change::Snapshot(vec![whole]));
}

async fn a_watch_shows_its_endpoint_and_no_other(here: &dyn Discovery, there: &dyn Discovery) {
    // Neighbours by each of the three names, the one a prefix of the other.
    let mut neighbours = Vec::new();
    for (namespace, component, endpoint) in
        [("conformance2", "c", "e"), ("conformance", "c2", "e"), ("conformance", "c", "e2")]
    {
        let endpoint = EndpointPath {
            namespace: name(namespace),
            component: name(component),
            endpoint: name(endpoint),
        };
        neighbours.push(Instance { endpoint, ..instance("e", 1, 0) });
    }
    let mut watch = Watch::of(there, "e").await;
    let mut others = Vec::new();
    for neighbour in &neighbours {
        others.push(here.register(neighbour.clone()).await.expect("registers"));
    }
    let _own = here.register(instance("e", 2, 0)).await.expect("registers");
    watch.until(&[(2, 0)]).await;
    for neighbour in &neighbours {
        let mut watch = there.watch(&neighbour.endpoint).await.expect("watches");
        let first = watch.next().await.expect("a snapshot");
        assert_eq!(first, Change::Snapshot(vec![neighbour.clone()]));
    }
    drop(others);
    let _mark = here.register(instance("e", 3, 0)).await.expect("registers");
    watch.until(&[(2, 0), (3, 0)]).await;
    assert_eq!(watch.seen, [InstanceId(2), InstanceId(3)], "no neighbour was ever seen");
}

async fn the_same_id_on_two_endpoints_is_two_registrations(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let one = here.register(instance("twin-a", 1, 0)).await.expect("registers");
    let _other = there.register(instance("twin-b", 1, 0)).await.expect("registers");
    let (mut a, mut b) = (Watch::of(there, "twin-a").await, Watch::of(there, "twin-b").await);
    a.until(&[(1, 0)]).await;
    b.until(&[(1, 0)]).await;
    drop(one);
    a.until(&[]).await;
    let mut b = Watch::of(here, "twin-b").await;
    b.until(&[(1, 0)]).await;
}

async fn an_id_is_taken_over_only_by_a_higher_incarnation(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let mut watch = Watch::of(there, "incarnation").await;
    let old = here.register(instance("incarnation", 1, 1)).await.expect("registers");
    for stale in [0, 1] {
        for discovery in [here, there] {
            let stale = discovery.register(instance("incarnation", 1, stale)).await;
            assert_eq!(stale.expect_err("stale").kind(), ErrorKind::Conflict);
        }
    }
    watch.until(&[(1, 1)]).await;
    let new = there.register(instance("incarnation", 1, 2)).await.expect("takes over");
    watch.until(&[(1, 2)]).await;
    drop(old);
    let newest = here.register(instance("incarnation", 1, 3)).await.expect("takes over");
    drop(new);
    let _mark = here.register(instance("incarnation", 2, 0)).await.expect("registers");
    watch.until(&[(1, 3), (2, 0)]).await;
    let mut late = Watch::of(here, "incarnation").await;
    late.until(&[(1, 3), (2, 0)]).await;
    assert_eq!(newest.displaced(), None);
    let last = here.register(instance("incarnation", 1, 4)).await.expect("takes over");
    let why = newest.displaced().expect("is told");
    assert!(why.starts_with("conflict: "), "{why}");
    drop(newest);
    late.until(&[(1, 4), (2, 0)]).await;
    drop(last);
    late.until(&[(2, 0)]).await;
}

async fn of_many_that_register_the_same_at_once_one_succeeds(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let register = |at: usize| {
        let discovery = if at.is_multiple_of(2) { here } else { there };
        discovery.register(instance("race", 1, 0))
    };
    let outcomes = futures::future::join_all((0..8).map(register)).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for lost in lost {
        assert_eq!(lost.expect_err("lost").kind(), ErrorKind::Conflict);
    }
}

async fn who_has_left_comes_back_at_once_with_any_incarnation(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let mut watch = Watch::of(there, "back").await;
    for incarnation in [3, 4, 4, 0] {
        let registered = here.register(instance("back", 1, incarnation)).await.expect("registers");
        watch.until(&[(1, incarnation)]).await;
        drop(registered);
    }
    watch.until(&[]).await;
}

async fn a_register_that_is_dropped_leaves_nothing(here: &dyn Discovery, there: &dyn Discovery) {
    let mut watch = Watch::of(there, "dropped").await;
    for incarnation in 2..5 {
        // Some begin, and some get as far as to be done.
        let _ = here.register(instance("dropped", 1, incarnation)).now_or_never();
        tokio::task::yield_now().await;
    }
    let _last = here.register(instance("dropped", 1, 1)).await.expect("nothing is in the way");
    watch.until(&[(1, 1)]).await;
}

async fn the_first_snapshot_has_whoever_was_registered_before(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    // The endpoint is watched already, so that there is an older view to be given by mistake.
    let mut running = Watch::of(there, "before").await;
    running.until(&[]).await;
    let mut registered = Vec::new();
    for id in 1..6 {
        registered.push(here.register(instance("before", id, 0)).await.expect("registers"));
        let mut watch = Watch::of(there, "before").await;
        watch.next().await;
        assert_eq!(watch.instances(), (1..=id).map(|id| (id, 0)).collect::<Vec<_>>());
    }
}

async fn a_watch_that_is_not_polled_is_told_the_present_alone(
    here: &dyn Discovery,
    there: &dyn Discovery,
) {
    let mut slow = Watch::of(there, "slow").await;
    slow.until(&[]).await;
    let mut quick = Watch::of(there, "slow").await;
    let _stays = here.register(instance("slow", 1, 0)).await.expect("registers");
    for round in 0..20 {
        let registered = here.register(instance("slow", 2, round)).await.expect("registers");
        quick.until(&[(1, 0), (2, round)]).await;
        drop(registered);
        quick.until(&[(1, 0)]).await;
    }
    let count = slow.until(&[(1, 0)]).await;
    assert!(count <= 3, "{count} changes for one that came");
}

async fn shutdown_removes_and_closes(here: &dyn Discovery, there: &dyn Discovery) {
    let registered = here.register(instance("shutdown", 1, 0)).await.expect("registers");
    let _stays = there.register(instance("shutdown", 2, 0)).await.expect("registers");
    let (mut own, mut other) =
        (Watch::of(here, "shutdown").await, Watch::of(there, "shutdown").await);
    own.until(&[(1, 0), (2, 0)]).await;
    other.until(&[(1, 0), (2, 0)]).await;
    here.shutdown().await;
    assert_eq!(other.next().await, Change::Remove(InstanceId(1)), "leaving is no absence");
    drop(registered);
    let _again = there.register(instance("shutdown", 1, 0)).await.expect("its id is free");
    own.until_end().await;
    let closed = here.register(instance("shutdown", 3, 0)).await.expect_err("it has shut down");
    assert_eq!(closed.kind(), ErrorKind::Closed);
    let closed = here.watch(&path("shutdown")).await.err().expect("it has shut down");
    assert_eq!(closed.kind(), ErrorKind::Closed);
    here.shutdown().await;
}

async fn shutdown_by_one_user_takes_it_from_no_other(directory: &dyn Discovery) {
    let _stays = directory.register(instance("shutdown", 1, 0)).await.expect("registers");
    let mut watch = Watch::of(directory, "shutdown").await;
    watch.until(&[(1, 0)]).await;
    directory.shutdown().await;
    let _also = directory.register(instance("shutdown", 2, 0)).await.expect("registers");
    watch.until(&[(1, 0), (2, 0)]).await;
}

/// A watch, what it amounts to, and whoever it has ever shown.
struct Watch {
    changes: BoxStream<'static, Change>,
    view: View,
    is_told: bool,
    seen: Vec<InstanceId>,
}

impl Watch {
    async fn of(discovery: &dyn Discovery, endpoint: &str) -> Self {
        let changes = discovery.watch(&path(endpoint)).await.expect("watches");
        Self { changes, view: View::default(), is_told: false, seen: Vec::new() }
    }

    async fn next(&mut self) -> Change {
        let change = tokio::time::timeout(PATIENCE, self.changes.next()).await;
        let change = change.expect("a change within the bound").expect("the watch goes on");
        assert!(self.is_told || matches!(change, Change::Snapshot(_)), "{change:?} comes first");
        self.is_told = true;
        self.view.apply(change.clone());
        for instance in self.view.instances().iter() {
            if !self.seen.contains(&instance.id) {
                self.seen.push(instance.id);
            }
        }
        change
    }

    /// Folds changes until the instances are these, by id and incarnation; returns how many.
    async fn until(&mut self, expected: &[(u64, u64)]) -> usize {
        let mut count = 0;
        while !self.is_told || self.instances() != expected {
            self.next().await;
            count += 1;
        }
        count
    }

    async fn until_end(&mut self) {
        let end = async { while self.changes.next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, end).await.expect("the watch ends");
    }

    fn instances(&self) -> Vec<(u64, u64)> {
        self.view.instances().iter().map(|i| (i.id.0, i.incarnation)).collect()
    }
}

fn name(name: &str) -> Name {
    Name::new(name).expect("a valid name")
}

fn path(endpoint: &str) -> EndpointPath {
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

const PATIENCE: Duration = Duration::from_secs(20);
