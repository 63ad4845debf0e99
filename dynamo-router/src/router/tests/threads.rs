//! Choices of many threads at once, and the same choices again.

use std::thread;

use dynamo_core::random::Random;

use super::*;

#[test]
fn the_same_seed_gives_the_same_choices() {
    let chosen = |seed| {
        let config = RouterConfig::default().with_seed(seed);
        let router = KvRouter::new(config, Arc::new(ManualClock::new()));
        router.set_workers(&(0..8).map(instance).collect::<Vec<_>>()).unwrap();
        let choose = |_| router.route(&request(64), &Constraints::default()).unwrap();
        let decisions: Vec<_> = (0..64).map(choose).collect();
        decisions.iter().map(|decision| decision.worker).collect::<Vec<_>>()
    };
    assert_eq!(chosen(7), chosen(7));
    assert_ne!(chosen(7), chosen(8));
}

#[test]
fn a_burst_of_many_threads_is_shared_as_one_of_one_is() {
    let router = router();
    router.set_workers(&(0..4).map(instance).collect::<Vec<_>>()).unwrap();
    let burst = |router: KvRouter| {
        move || -> Vec<_> {
            let any = Constraints::default();
            (0..50).map(|_| router.route(&request(160), &any).unwrap()).collect()
        }
    };
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(burst(router.clone()))).collect();
    let decisions: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    for id in 0..4 {
        // Overtaken four times in a row, a choice books without looking again: one off, or two.
        let requests = router.load(worker(id)).requests;
        assert!((45..=55).contains(&requests), "worker {id} has {requests}");
    }
    drop(decisions);
    assert_eq!(router.stats().bookings, 0);
}

#[test]
fn whoever_comes_leaves_and_speaks_meanwhile_the_ledger_is_right_in_the_end() {
    let clock = Arc::new(ManualClock::new());
    let router = KvRouter::new(RouterConfig::default(), Arc::<ManualClock>::clone(&clock));
    router.set_workers(&[instance(0)]).unwrap();
    let choosing = |seed| {
        let router = router.clone();
        move || {
            let (mut random, mut kept) = (Random::new(seed), Vec::new());
            for _ in 0..500 {
                let exclude = [InstanceId(random.next_u64() % 4)];
                let constraints = Constraints::default().with_exclude(&exclude);
                let Ok(mut decision) = router.route(&request(160), &constraints) else { continue };
                assert_ne!(decision.worker.instance, exclude[0]);
                match random.next_u64() % 3 {
                    0 => router.observe_first_token(&mut decision),
                    1 => decision.booking.progress(1),
                    _ => {}
                }
                kept.push(decision);
                if let Some(nth) = random.below(kept.len() + 1).filter(|nth| *nth < kept.len()) {
                    drop(kept.swap_remove(nth));
                }
            }
            kept
        }
    };
    let threads: Vec<_> = (0..3).map(|seed| thread::spawn(choosing(seed))).collect();
    for round in 0..300u64 {
        let listed: Vec<_> = (0..1 + round % 4).map(instance).collect();
        router.set_workers(&listed).unwrap();
        router.apply(&stored(round % 5, 1, round, &request(160).blocks));
        clock.advance(ABSENT_MAX / 3);
    }
    let kept: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let stats = router.stats();
    let expired = usize::try_from(stats.leases_expired_total).unwrap();
    assert!(stats.bookings <= kept.len() && stats.bookings + expired >= kept.len());
    drop(kept);
    assert_eq!(router.stats().bookings, 0);
    for id in 0..5 {
        assert_eq!(router.load(worker(id)), Load::default());
    }
}
