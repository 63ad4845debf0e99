//! What is left in etcd by who leaves or is displaced: nothing, and nothing is said that is not so.

use dynamo_core::readiness::State;
use etcd_client::PutOptions;

use super::*;
use crate::losses::{Watch, keys};
use crate::proxy::{Mode, Proxy};

/// A process whose lease outlives the test: whatever goes is taken out.
fn lasting(url: String) -> EtcdDiscovery {
    let config = EtcdConfig::new([url]).with_ttl(Duration::from_secs(300));
    EtcdDiscovery::start(config.with_reconcile(Duration::from_secs(1))).unwrap()
}

async fn until_keys(raw: &mut etcd_client::Client, expected: &[u64]) {
    let reach = async {
        while keys(raw).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reach).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_the_answer_to_its_put_leaves_no_ghost_and_says_that_it_leaves() {
    let Some(server) = Server::start() else { return };
    let mut raw = Box::pin(raw(&server)).await;
    let proxy = Proxy::start(server.address(), Mode::Open).await;
    // The rounds that look for what nobody wants are far off.
    let config = EtcdConfig::new([proxy.url()]).with_ttl(Duration::from_secs(300));
    let config = config.with_reconcile(Duration::from_secs(3600));
    let worker = EtcdDiscovery::start(config).unwrap();
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let watcher = discovery(&server);
    let mut watch = Watch::of(&watcher).await;
    watch.until(&[(1, 0)]).await;
    proxy.set(Mode::Withhold("\"id\":2"));
    {
        let registering = worker.register(instance(2, 0));
        let put = async {
            proxy.withheld().await;
            until_keys(&mut raw, &[1, 2]).await;
        };
        tokio::select! {
            outcome = registering => unreachable!("there was no answer: {outcome:?}"),
            () = put => {}
        }
    }
    proxy.cut().await;
    watch.until(&[(1, 0), (2, 0)]).await;
    proxy.set(Mode::Open);
    until_keys(&mut raw, &[1]).await;
    watch.until(&[(1, 0)]).await;
    assert!(watch.has_removed(2), "{:?}", watch.said);
    // It comes back at once, with the same incarnation.
    let _two = worker.register(instance(2, 0)).await.unwrap();
    until_keys(&mut raw, &[1, 2]).await;
    // All of it goes when the process ends in such a moment.
    proxy.set(Mode::Withhold("\"id\":3"));
    let registering = worker.register(instance(3, 0));
    let ends = async {
        proxy.withheld().await;
        until_keys(&mut raw, &[1, 2, 3]).await;
        proxy.cut().await;
        proxy.set(Mode::Open);
        worker.shutdown().await;
    };
    // It may be asked for again in between, and be answered.
    let (registered, ()) = tokio::join!(registering, ends);
    drop(registered);
    until_keys(&mut raw, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_about_behind_the_leaving_is_found_and_taken_out() {
    let Some(server) = Server::start() else { return };
    let worker = lasting(server.url());
    let _one = worker.register(instance(1, 0)).await.unwrap();
    let mut raw = Box::pin(raw(&server)).await;
    let key = |id| format!("/dynamo/v1/instances/n/c/e/{id:016x}");
    let one = raw.get(key(1), None).await.unwrap();
    let (lease, value) = (one.kvs()[0].lease(), one.kvs()[0].value_str().unwrap());
    let late = value.replace("\"id\":1", "\"id\":2");
    let under_ours = PutOptions::new().with_lease(lease);
    raw.put(key(2), late.clone(), Some(under_ours)).await.unwrap();
    // That of another process is none of ours.
    raw.put(key(3), late, None).await.unwrap();
    until_keys(&mut raw, &[1, 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_key_another_has_taken_is_not_ready_and_says_by_which_conflict() {
    let Some(server) = Server::start() else { return };
    let config = TcpConfig::default().with_listen("127.0.0.1:0".parse().unwrap());
    let plane = Arc::new(TcpRequestPlane::start(config).await.unwrap());
    let ours = lasting(server.url());
    let runtime = Runtime::new(Arc::new(ours), plane, Arc::new(MemoryEventPlane::default()));
    let options = dynamo_core::ServeOptions::default().with_instance(InstanceId(7));
    let engine =
        engine_fn(|ctx: Context, n: u32| async move { Ok(ResponseStream::from_items(&ctx, 0..n)) });
    let serving = endpoint(&runtime).serve_with(engine, options).await.unwrap();
    assert_eq!(runtime.readiness()[0].state, State::Listed);
    let other = discovery(&server);
    let later = other.register(instance(7, 1)).await.unwrap();
    wait(|| runtime.readiness()[0].state == State::Displaced).await;
    let readiness = runtime.readiness()[0].to_string();
    let expected = "instance 7 of n/c/e is displaced: conflict: instance ";
    assert!(readiness.starts_with(expected), "{readiness}");
    // It stays so, and touches nothing that is the other's.
    let mut watch = Watch::of(&other).await;
    watch.until(&[(7, 1)]).await;
    drop(serving);
    let _mark = runtime.discovery().register(instance(8, 0)).await.unwrap();
    watch.until(&[(7, 1), (8, 0)]).await;
    assert!(!watch.has_removed(7), "{:?}", watch.said);
    drop(later);
    watch.until(&[(8, 0)]).await;
}
