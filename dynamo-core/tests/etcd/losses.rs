//! What a watch says when etcd, or the way to it, loses something: absence, expiry, nothing at all.

use dynamo_core::discovery::Registration;
use etcd_client::PutOptions;

use super::*;
use crate::proxy::{Mode, Proxy};

/// Another way to the same etcd, with an end of its own.
fn behind(proxy: &Proxy) -> EtcdDiscovery {
    let config = EtcdConfig::new([proxy.url()]).with_ttl(Duration::from_secs(2));
    EtcdDiscovery::start(config).unwrap()
}

/// A watch, everything that it has said, and what that amounts to.
pub(crate) struct Watch {
    changes: BoxStream<'static, Change>,
    pub(crate) said: Vec<Change>,
    view: View,
}

impl Watch {
    pub(crate) async fn of(discovery: &EtcdDiscovery) -> Self {
        let changes = discovery.watch(&path()).await.unwrap();
        Self { changes, said: Vec::new(), view: View::default() }
    }

    async fn next(&mut self) -> Change {
        let change = tokio::time::timeout(Duration::from_secs(20), self.changes.next()).await;
        let change = change.unwrap().unwrap();
        self.said.push(change.clone());
        self.view.apply(change.clone());
        // Nobody answers for whom a snapshot lacks.
        for id in self.view.doubtful().collect::<Vec<_>>() {
            self.view.settle(id, false);
        }
        change
    }

    pub(crate) async fn until(&mut self, expected: &[(u64, u64)]) {
        while self.said.is_empty() || incarnations(&self.view) != expected {
            self.next().await;
        }
    }

    /// Tells whether an instance was ever said to be gone.
    pub(crate) fn has_removed(&self, id: u64) -> bool {
        self.said.contains(&Change::Remove(InstanceId(id)))
    }
}

/// The fleet changes while nobody who watches through `proxy` can hear of it, and etcd forgets how.
async fn change_unheard(
    server: &Server,
    fleet: &EtcdDiscovery,
    leaves: Registration,
) -> Registration {
    let mut raw = Box::pin(raw(server)).await;
    drop(leaves);
    let comes = fleet.register(instance(3, 0)).await.unwrap();
    // Who comes is published behind who leaves.
    assert_eq!(keys(&mut raw).await, [1, 3]);
    for _ in 0..3 {
        raw.put("/elsewhere", "something", None).await.unwrap();
    }
    let revision = raw.get("/elsewhere", None).await.unwrap().header().unwrap().revision();
    raw.compact(revision, None).await.unwrap();
    comes
}

/// The ids that stand in etcd.
pub(crate) async fn keys(raw: &mut etcd_client::Client) -> Vec<u64> {
    let options = GetOptions::new().with_prefix();
    let found = raw.get("/dynamo/v1/instances/n/c/e/", Some(options)).await.unwrap();
    let id = |key: &str| u64::from_str_radix(key.rsplit('/').next().unwrap(), 16).unwrap();
    found.kvs().iter().map(|kv| id(kv.key_str().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_compacted_between_a_listing_and_its_watch_is_listed_again_and_no_outage() {
    let Some(server) = Server::start() else { return };
    let fleet = discovery(&server);
    let _one = fleet.register(instance(1, 0)).await.unwrap();
    let two = fleet.register(instance(2, 0)).await.unwrap();
    let proxy = Proxy::start(server.address(), Mode::Trap("/dynamo/v1/instances/n/c/e/")).await;
    let watcher = behind(&proxy);
    let mut watch = Watch::of(&watcher).await;
    // It is listed, and the watch is not yet asked for.
    proxy.sprung().await;
    let _three = change_unheard(&server, &fleet, two).await;
    proxy.set(Mode::Open);
    watch.until(&[(1, 0), (3, 0)]).await;
    assert!(!watch.said.contains(&Change::Degraded), "{:?}", watch.said);
    assert!(!watch.has_removed(2), "nobody has told that it left: {:?}", watch.said);
    // The second watch works.
    let four = fleet.register(instance(4, 0)).await.unwrap();
    watch.until(&[(1, 0), (3, 0), (4, 0)]).await;
    drop(four);
    assert_eq!(watch.next().await, Change::Remove(InstanceId(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_on_a_wire_gone_silent_says_so_and_comes_to_the_truth_behind_a_compaction() {
    let Some(server) = Server::start() else { return };
    let fleet = discovery(&server);
    let _one = fleet.register(instance(1, 0)).await.unwrap();
    let two = fleet.register(instance(2, 0)).await.unwrap();
    let proxy = Proxy::start(server.address(), Mode::Open).await;
    let watcher = behind(&proxy);
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0), (2, 0)]).await;
    proxy.set(Mode::Silent);
    let _three = change_unheard(&server, &fleet, two).await;
    assert_eq!(watch.next().await, Change::Degraded);
    assert_eq!(incarnations(&watch.view), [(1, 0), (2, 0)], "what was known stays");
    proxy.set(Mode::Open);
    watch.until(&[(1, 0), (3, 0)]).await;
    assert!(watch.said.contains(&Change::Recovered), "{:?}", watch.said);
    assert!(!watch.has_removed(2), "nobody has told that it left: {:?}", watch.said);
    let four = fleet.register(instance(4, 0)).await.unwrap();
    watch.until(&[(1, 0), (3, 0), (4, 0)]).await;
    drop(four);
    assert_eq!(watch.next().await, Change::Remove(InstanceId(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restarted_with_its_data_changes_nothing() {
    let Some(mut server) = Server::start() else { return };
    let process = || EtcdDiscovery::start(EtcdConfig::new([server.url()])).unwrap();
    let (worker, watcher) = (process(), process());
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0)]).await;
    let key = "/dynamo/v1/instances/n/c/e/0000000000000001";
    let published = |found: etcd_client::GetResponse| found.kvs()[0].mod_revision();
    let before = published(Box::pin(raw(&server)).await.get(key, None).await.unwrap());
    server.kill();
    assert_eq!(watch.next().await, Change::Degraded);
    server.restart();
    assert_eq!(watch.next().await, Change::Recovered);
    assert_eq!(watch.next().await, Change::Snapshot(vec![instance(1, 0)]));
    let _two = worker.register(instance(2, 0)).await.unwrap();
    assert_eq!(watch.next().await, Change::Upsert(instance(2, 0)));
    let after = published(Box::pin(raw(&server)).await.get(key, None).await.unwrap());
    assert_eq!(before, after, "the lease was taken up again, nothing was published anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_whose_lease_expires_is_absent_for_others_may_still_reach_it() {
    let Some(server) = Server::start() else { return };
    let (fleet, watcher) = (discovery(&server), discovery(&server));
    let _one = fleet.register(instance(1, 0)).await.unwrap();
    let proxy = Proxy::start(server.address(), Mode::Open).await;
    let dead = behind(&proxy);
    let _two = dead.register(instance(2, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0), (2, 0)]).await;
    proxy.set(Mode::Cut);
    assert_eq!(watch.next().await, Change::Snapshot(vec![instance(1, 0)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_come_back_to_a_wiped_etcd_is_absent_and_not_said_to_be_gone() {
    let Some(mut server) = Server::start() else { return };
    let (fleet, watcher) = (discovery(&server), discovery(&server));
    let _one = fleet.register(instance(1, 0)).await.unwrap();
    let proxy = Proxy::start(server.address(), Mode::Open).await;
    let cut_off = behind(&proxy);
    let _two = cut_off.register(instance(2, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0), (2, 0)]).await;
    server.kill();
    proxy.set(Mode::Cut);
    server.wipe();
    server.restart();
    watch.until(&[(1, 1)]).await;
    assert!(!watch.has_removed(2) && !watch.has_removed(1), "{:?}", watch.said);
    // It was alive all the time.
    proxy.set(Mode::Open);
    watch.until(&[(1, 1), (2, 1)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_taken_out_by_hand_is_put_in_again_before_anyone_is_told() {
    let Some(server) = Server::start() else { return };
    let config = EtcdConfig::new([server.url()]).with_reconcile(Duration::from_secs(1));
    let (worker, watcher) = (EtcdDiscovery::start(config).unwrap(), discovery(&server));
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0)]).await;
    let mut raw = Box::pin(raw(&server)).await;
    for _ in 0..2 {
        let options = etcd_client::DeleteOptions::new().with_prefix();
        let deleted = raw.delete("/dynamo/", Some(options)).await.unwrap();
        assert_eq!(deleted.deleted(), 1);
        let back = async {
            while keys(&mut raw).await != [1] {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    }
    let _two = worker.register(instance(2, 0)).await.unwrap();
    assert_eq!(watch.next().await, Change::Upsert(instance(2, 0)), "nothing was said before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_whose_answer_was_lost_is_found_and_no_conflict_with_itself() {
    let Some(server) = Server::start() else { return };
    let worker = discovery(&server);
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let mut raw = Box::pin(raw(&server)).await;
    let key = |id| format!("/dynamo/v1/instances/n/c/e/{id:016x}");
    let one = raw.get(key(1), None).await.unwrap();
    let (lease, value) = (one.kvs()[0].lease(), one.kvs()[0].value_str().unwrap());
    // As if a first try of the same process had reached etcd.
    let earlier = |id: u64| value.replace("\"id\":1", &format!("\"id\":{id}"));
    let options = PutOptions::new().with_lease(lease);
    raw.put(key(2), earlier(2), Some(options)).await.unwrap();
    let two = worker.register(instance(2, 0)).await.unwrap();
    drop(two);
    // The same value under another lease is another process's.
    raw.put(key(3), earlier(3), None).await.unwrap();
    let error = worker.register(instance(3, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}
