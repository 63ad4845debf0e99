//! What is booked ends: with its stream, or when progress stops.

use std::sync::atomic::AtomicUsize;

use super::*;

const LEASE: Duration = Duration::from_secs(8);

fn leasing() -> (Arc<ManualClock>, KvRouter) {
    let clock = Arc::new(ManualClock::new());
    let config = RouterConfig::default().with_lease(LEASE);
    let router = KvRouter::new(config, Arc::<ManualClock>::clone(&clock));
    router.set_workers(&[instance(1)]).unwrap();
    (clock, router)
}

#[test]
fn a_booking_lives_by_its_progress_and_not_by_its_age() {
    let (clock, router) = leasing();
    let any = Constraints::default();
    let mut busy = router.route(&request(64), &any).unwrap();
    let stuck = router.route(&request(64), &any).unwrap();
    for _ in 0..20 {
        clock.advance(LEASE / 4);
        busy.booking.progress(1);
        router.tidy();
    }
    let stats = router.stats();
    assert_eq!((stats.bookings, stats.leases_expired_total), (1, 1));
    assert_eq!(router.load(worker(1)).prefill_tokens, 64);
    drop(stuck);
    assert_eq!(router.stats().bookings, 1, "what has expired is released once");
    drop(busy);
    assert_eq!(router.stats().bookings, 0);
}

#[test]
fn what_goes_on_after_all_is_booked_again() {
    let (clock, router) = leasing();
    let mut slow = router.route(&request(64), &Constraints::default()).unwrap();
    clock.advance(LEASE * 2);
    router.tidy();
    assert_eq!(router.load(worker(1)), Load::default());
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let _listener = router.on_change(move |_, change| tell.lock().unwrap().push(change));
    slow.booking.prefill_done();
    assert_eq!(*told.lock().unwrap(), [Change::More]);
    let load = router.load(worker(1));
    assert_eq!((load.requests, load.decoding, load.prefill_tokens, load.blocks), (1, 1, 0, 4));
    drop(slow);
    assert_eq!(router.load(worker(1)), Load::default());
}

#[test]
fn a_picked_stream_is_booked_until_it_is_dropped() {
    let (clock, router) = leasing();
    let pick = router.pick(&Context::new(), &request(64), &[instance(1)]).unwrap();
    clock.advance(LEASE * 100);
    router.tidy();
    assert_eq!(router.stats().bookings, 1);
    drop(pick);
    assert_eq!(router.stats().bookings, 0);
}

#[test]
fn a_listener_is_told_whenever_there_may_be_room() {
    let (clock, router) = leasing();
    let told = Arc::new(AtomicUsize::new(0));
    let (seen, inner) = (Arc::clone(&told), router.clone());
    let listener = router.on_release(move |released| {
        assert_eq!(released, worker(1));
        // It may ask what there is now.
        let _ = (inner.load(released), inner.stats());
        seen.fetch_add(1, Ordering::Relaxed);
    });
    let any = Constraints::default();
    let mut times = 0;
    let mut expect_one_more = |why: &str| {
        times += 1;
        assert_eq!(told.load(Ordering::Relaxed), times, "{why}");
    };
    let mut decision = router.route(&request(64), &any).unwrap();
    decision.booking.prefill_done();
    decision.booking.prefill_done();
    expect_one_more("prefilled");
    drop(decision);
    expect_one_more("ended");
    let stuck = router.route(&request(64), &any).unwrap();
    clock.advance(LEASE * 2);
    router.tidy();
    expect_one_more("expired");
    drop(stuck);
    let report = LoadReport {
        worker: worker(1),
        requests_running: 0,
        requests_waiting: 0,
        prefill_tokens: Some(0),
        blocks_active: 0,
        blocks_total: 9,
    };
    assert!(router.report(&report, clock.now()));
    expect_one_more("reported");
    assert_eq!(router.load(worker(1)).blocks_total, 9);
    router.set_workers(&[Instance { incarnation: 1, ..instance(1) }]).unwrap();
    expect_one_more("came back");
    router.set_workers(&[Instance { incarnation: 1, ..instance(1) }]).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), times, "nobody came");
    drop(listener);
    drop(router.route(&request(64), &any).unwrap());
    assert_eq!(told.load(Ordering::Relaxed), times, "nobody listens");
}

#[test]
fn a_worker_that_left_and_came_back_still_has_what_is_booked_on_it() {
    let (clock, router) = leasing();
    let mut decision = router.route(&request(64), &Constraints::default()).unwrap();
    router.set_workers(&[instance(2)]).unwrap();
    for _ in 0..4 {
        clock.advance(ABSENT_MAX / 2);
        decision.booking.progress(1);
        router.tidy();
    }
    assert_eq!(router.load(worker(1)).requests, 1);
    router.set_workers(&[instance(1)]).unwrap();
    assert_eq!(router.load(worker(1)).requests, 1);
    drop(decision);
    assert_eq!(router.load(worker(1)), Load::default());
}

#[test]
fn slots_are_used_again_once_nobody_holds_them() {
    let (clock, router) = leasing();
    let slot = |id| router.members().get(worker(id)).map(|seat| seat.slot());
    let first = slot(1);
    let booking =
        router.route(&request(64), &Constraints::default()).unwrap().booking.until_dropped();
    let leave_to = |id| {
        router.set_workers(&[instance(id)]).unwrap();
        clock.advance(ABSENT_MAX);
        router.tidy();
    };
    leave_to(2);
    leave_to(3);
    assert_ne!(slot(3), first, "the booking still counts there");
    drop(booking);
    assert_eq!(slot(1), None);
    leave_to(4);
    assert_eq!(slot(4), first);
}
