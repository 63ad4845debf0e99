use dynamo_core::ErrorKind;
use dynamo_core::protocol::HandoffTicket;
use dynamo_transfer::{Agent, AgentConfig, MemoryFabric};

use super::*;
use crate::handoff::{Handoff, HandoffConfig};

fn keys(tenant: usize, path: usize, depth: usize) -> Vec<BlockKey> {
    sequence_of(tenant, path).keys()[..depth].to_vec()
}

/// How many blocks there are of a sequence.
fn found(manager: &BlockManager, keys: &[BlockKey]) -> usize {
    manager.match_prefix(keys).len()
}

#[test]
fn a_quota_that_is_reached_gives_up_its_own_blocks_and_nobody_elses() {
    let (manager, _) = manager(8);
    let (all, mine) = (keys(0, 0, 2), keys(1, 0, 3));
    drop(store(&manager, &all).unwrap());
    let quota = manager.with_quota(3).unwrap();
    drop(store(&quota, &mine).unwrap());
    let taken = quota.allocate(2).unwrap();
    assert_eq!((found(&quota, &mine), found(&manager, &all)), (1, 2));
    assert_eq!((quota.stats().evicted_total, manager.stats().free), (2, 3));
    // One of its blocks is cached, and two are mutable.
    let error = quota.allocate(2).unwrap_err();
    let expected = AllocateError { requested: 2, available: 1, capacity: 3, limit: Limit::Quota };
    assert_eq!(error, expected);
    let said = "2 blocks requested, 1 of the quota's 3 are free or evictable";
    assert_eq!(error.to_string(), said);
    assert_eq!(found(&quota, &mine), 1, "a refused allocation evicts nothing");
    drop(taken);
    assert_eq!(quota.allocate(3).unwrap().len(), 3);
}

#[test]
fn where_the_pool_has_less_than_the_quota_it_is_said_to_be_the_pool() {
    let (manager, _) = manager(4);
    let quota = manager.with_quota(3).unwrap();
    let _held = manager.allocate(3).unwrap();
    let error = quota.allocate(2).unwrap_err();
    let expected = AllocateError { requested: 2, available: 1, capacity: 4, limit: Limit::Pool };
    assert_eq!(error, expected);
    let said = "2 blocks requested, 1 of the pool's 4 are free or evictable";
    assert_eq!(error.to_string(), said);
    assert_eq!(manager.allocate(2).unwrap_err().limit, Limit::Pool);
    assert_eq!(quota.allocate(4).unwrap_err().available, 1, "the tighter of both is told");
}

#[test]
fn a_quota_reserves_nothing() {
    let (manager, events) = manager(4);
    let [first, second] = [(); 2].map(|()| manager.with_quota(4).unwrap());
    drop(store(&first, &keys(1, 0, 3)).unwrap());
    drop(store(&second, &keys(2, 0, 3)).unwrap());
    // The oldest went, whose ever it was.
    assert_eq!((first.stats().cached, second.stats().cached), (1, 3));
    assert_eq!((first.stats().free, second.stats().free), (3, 1));
    let all = manager.allocate(4).unwrap();
    assert_eq!(replay(&events.lock().unwrap()).len(), 0);
    assert_eq!(first.allocate(1).unwrap_err().limit, Limit::Pool);
    drop(all);
    assert_eq!(first.allocate(4).unwrap().len(), 4);
}

#[test]
fn a_block_is_registered_under_the_quota_it_was_allocated_under() {
    let (manager, events) = manager(6);
    let [one, other] = [(); 2].map(|()| manager.with_quota(2).unwrap());
    for (from, to) in [(&one, &other), (&manager, &one), (&one, &manager)] {
        let foreign = from.allocate(1).unwrap().remove(0).complete(keys(1, 0, 1)[0]);
        let register = std::panic::AssertUnwindSafe(|| to.register(foreign));
        assert!(std::panic::catch_unwind(register).is_err());
        assert_eq!((one.stats().free, other.stats().free, manager.stats().free), (2, 2, 6));
    }
    assert_eq!(events.lock().unwrap().len(), 0);
}

#[test]
fn what_is_not_needed_or_not_registered_comes_back_to_its_quota() {
    let (manager, _) = manager(6);
    let quota = manager.with_quota(3).unwrap();
    let keys = keys(1, 0, 2);
    let held = store(&quota, &keys).unwrap();
    let twice = quota.allocate(1).unwrap().remove(0).complete(keys[0]);
    assert_eq!((quota.stats().complete, quota.stats().free), (1, 0));
    let other = manager.allocate(1).unwrap().remove(0).complete(sequence(7).keys()[0]);
    assert_eq!((quota.stats().complete, manager.stats().complete), (1, 2));
    drop((quota.register(twice), other));
    assert_eq!((quota.stats().active, quota.stats().free, manager.stats().free), (2, 1, 4));
    drop(quota.allocate(1).unwrap().remove(0).into_partial(1));
    drop(held);
    assert_eq!(quota.allocate(3).unwrap().len(), 3);
}

#[test]
fn a_quota_that_is_dropped_leaves_nothing_but_what_is_held() {
    let (manager, events) = manager(6);
    let quota = manager.with_quota(4).unwrap();
    let keys = keys(1, 0, 3);
    let held = store(&quota, &keys).unwrap();
    let weak = Vec::from(held.clone())[0].downgrade();
    let mutable = quota.allocate(1).unwrap();
    assert_eq!(found(&quota, &keys), 3);
    drop(quota);
    assert_eq!((manager.stats().active, manager.stats().mutable), (3, 1));
    assert_eq!(
        (weak.upgrade().unwrap().identity(), held[2][0]),
        (&keys[0].identity, content(&keys[2].identity))
    );
    drop(held);
    assert!(weak.upgrade().is_none());
    let stats = manager.stats();
    assert_eq!((stats.free, stats.mutable, stats.cached), (5, 1, 0));
    assert_eq!((stats.evicted_total, stats.hits_total), (3, 3), "what was counted stays so");
    assert_eq!(replay(&events.lock().unwrap()).len(), 0);
    // Another one is another one, and owes nothing for the block of the first.
    let quota = manager.with_quota(1).unwrap();
    drop(mutable);
    assert_eq!((quota.stats().free, manager.stats().free), (1, 6));
    let all = manager.allocate(6).unwrap();
    drop(manager);
    drop((all, quota));
}

#[test]
fn clearing_and_snapshots_go_for_a_quota_or_for_all() {
    let (manager, events) = manager(8);
    let [one, other] = [(); 2].map(|()| manager.with_quota(3).unwrap());
    let store_all = || {
        for (manager, tenant) in [(&manager, 0), (&one, 1), (&other, 2)] {
            drop(store(manager, &keys(tenant, 0, 2)).unwrap());
        }
    };
    store_all();
    assert_eq!(one.snapshot(), manager.snapshot());
    assert_eq!((one.snapshot().stored.len(), one.snapshot().seq), (6, 3));
    one.clear();
    assert_eq!([&one, &other, &manager].map(|of| of.stats().cached), [0, 2, 4]);
    assert_eq!(manager.stats().free, 4);
    store_all();
    manager.clear();
    assert_eq!([&one, &other, &manager].map(|of| of.stats().cached), [0, 0, 0]);
    assert_eq!(events.lock().unwrap().last().unwrap().change, KvChange::AllBlocksCleared);
    assert_eq!([&one, &other, &manager].map(|of| of.stats().free), [3, 3, 8]);
    // While one block of a quota is held, not all are cleared.
    let held = store(&one, &keys(1, 0, 1)).unwrap();
    drop(store(&manager, &keys(0, 0, 2)).unwrap());
    manager.clear();
    assert_eq!(replay(&events.lock().unwrap()).len(), 1);
    drop(held);
}

#[test]
fn quotas_that_make_no_sense_or_are_too_many_are_refused() {
    let (manager, _) = manager(4);
    let refused = |manager: &BlockManager, blocks| manager.with_quota(blocks).unwrap_err();
    for blocks in [0, 5] {
        let error = refused(&manager, blocks);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(&format!("a quota of {blocks} of 4 blocks")), "{error}");
    }
    let mut quotas: Vec<_> = (0..1024).map(|_| manager.with_quota(4).unwrap()).collect();
    assert_eq!(refused(&quotas[0], 1).kind(), ErrorKind::InvalidArgument);
    assert_eq!(refused(&manager, 1).kind(), ErrorKind::Overloaded);
    drop(quotas.pop());
    assert_eq!(manager.with_quota(1).unwrap().stats().capacity, 1);
}

#[test]
fn many_threads_under_several_quotas_never_have_more_than_those_and_lose_no_block() {
    const BLOCKS: usize = 2048;
    const QUOTA: usize = 900;
    let (manager, events) = manager(BLOCKS);
    let quotas = [(); 3].map(|()| manager.with_quota(QUOTA).unwrap());
    let (stored, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (quotas, stored, refused) = (&quotas, &stored, &refused);
            scope.spawn(move || {
                let mut held = Vec::new();
                for round in 0..if cfg!(miri) { 3 } else { 300_u32 } {
                    let tenant = (round + thread) as usize % 3;
                    let namespace =
                        CacheNamespace { tenant: tenant.to_string(), ..CacheNamespace::default() };
                    // Some that others store too, and far more than fit.
                    let first = if round % 2 == 0 { round % 8 } else { 100 + round * 4 + thread };
                    let tokens: Vec<u32> =
                        (0..64 + round % 64).map(|at| first * 1000 + at).collect();
                    let size = BlockSize::new(1).unwrap();
                    let sequence = TokenSequence::new(&namespace, size, &tokens);
                    match store(&quotas[tenant], sequence.keys()) {
                        Ok(run) => {
                            assert_eq!(run.len(), sequence.keys().len());
                            stored.fetch_add(run.len(), Ordering::Relaxed);
                            held.push(run);
                        }
                        Err(_) => drop((refused.fetch_add(1, Ordering::Relaxed), held.pop())),
                    }
                    let stats = quotas[tenant].stats();
                    let PoolStats { free, mutable, complete, active, cached, .. } = stats;
                    assert_eq!(free + mutable + complete + active + cached, QUOTA);
                    if held.len() > 7 {
                        held.swap_remove((round % 7) as usize);
                    }
                }
            });
        }
    });
    let cached = quotas.each_ref().map(|quota| quota.stats().cached);
    for quota in &quotas {
        let stats = quota.stats();
        assert_eq!(stats.free + stats.cached, QUOTA, "{stats:?}");
        assert!(stats.evicted_total > 0 || cfg!(miri), "{stats:?}");
    }
    let stats = manager.stats();
    assert_eq!((stats.cached, stats.free + stats.cached), (cached.iter().sum(), BLOCKS));
    assert!(stored.into_inner() > BLOCKS || cfg!(miri));
    assert_eq!(replay(&events.lock().unwrap()).len(), stats.cached);
    drop(quotas);
    assert_eq!(manager.allocate(BLOCKS).unwrap().len(), BLOCKS);
}

#[tokio::test]
async fn a_hand_off_is_pulled_under_a_quota() {
    let fabric = MemoryFabric::new();
    let worker = async |name: &str| {
        let config = AgentConfig::default().with_name(name).with_fabric(fabric.clone());
        let agent = Agent::start(config).await.unwrap();
        let (manager, _) = manager(8);
        let quota = manager.with_quota(3).unwrap();
        let handoff = Handoff::new(agent.clone(), quota.clone(), HandoffConfig::default()).unwrap();
        (agent, manager, quota, handoff)
    };
    let (prefill, decode) = (worker("prefill").await, worker("decode").await);
    let stage = |path: usize| {
        let blocks = store(&prefill.2, sequence_of(1, path).keys()).unwrap();
        prefill.3.stage(blocks.into(), None).unwrap()
    };
    let pull = async |ticket: &HandoffTicket, path: usize| {
        decode.3.pull([ticket], &sequence_of(1, path), None).await
    };
    let staged = stage(0);
    let pulled = pull(staged.ticket(), 0).await.unwrap();
    assert!(
        pulled
            .blocks
            .iter()
            .zip(sequence_of(1, 0).keys())
            .all(|(bytes, key)| bytes[0] == content(&key.identity))
    );
    assert_eq!((decode.2.stats().active, decode.1.stats().free), (3, 5));
    drop(staged);
    // Of another sequence there is no room, though the manager has some.
    let staged = stage(7);
    assert_eq!(pull(staged.ticket(), 7).await.unwrap_err().kind(), ErrorKind::Overloaded);
    drop(pulled);
    assert_eq!(pull(staged.ticket(), 7).await.unwrap().blocks.len(), 3);
    assert_eq!((decode.2.stats().cached, decode.1.stats().free), (3, 5));
    drop(staged);
    for (agent, _, _, handoff) in [prefill, decode] {
        handoff.shutdown().await;
        agent.shutdown().await;
    }
}
