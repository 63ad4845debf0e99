//! What a choice allocates, counted: nothing, once there have been as many bookings before.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::alloc::System;
use std::collections::BTreeMap;
use std::sync::Arc;

use dynamo_core::Instance;
use dynamo_core::discovery::Address;
use dynamo_core::name::{EndpointPath, Name};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvChange, KvEvent, Sampling,
    StoredBlock, Tier, WorkerId,
};
use dynamo_core::time::SystemClock;
use dynamo_router::{Constraints, KvRouter, Preference, RouterConfig};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WORKERS: u64 = 256;

fn instance(id: u64) -> Instance {
    let name = |name| Name::new(name).unwrap();
    let zone = if id.is_multiple_of(2) { "a" } else { "b" };
    Instance {
        id: InstanceId(id),
        incarnation: 0,
        endpoint: EndpointPath { namespace: name("n"), component: name("c"), endpoint: name("e") },
        address: Address(String::new()),
        labels: BTreeMap::from([("zone".into(), zone.into())]),
    }
}

fn stored(id: u64, request: &GenerateRequest) -> KvEvent {
    let blocks = request.blocks.sequence().iter().zip(request.blocks.local());
    let blocks = blocks.map(|(&sequence, &local)| StoredBlock { sequence, local });
    let blocks = blocks.take(usize::try_from(id % 9).unwrap()).collect();
    let change = KvChange::BlockStored { parent: None, blocks, tier: Tier::Device };
    KvEvent { worker: WorkerId::new(InstanceId(id)), epoch: 0, seq: 0, change }
}

/// One test: what is counted is the whole process's.
#[test]
fn a_choice_allocates_nothing_nor_does_its_booking() {
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let listed: Vec<_> = (0..WORKERS).map(instance).collect();
    router.set_workers(&listed).unwrap();
    let tokens: Vec<u32> = (0..2048).collect();
    let namespace = CacheNamespace::model("m");
    let request = GenerateRequest::new(namespace, BlockSize::DEFAULT, tokens, Sampling::default());
    (0..WORKERS).for_each(|id| router.apply(&stored(id, &request)));

    let exclude = [InstanceId(3)];
    let only: Vec<_> = (0..100).map(InstanceId).collect();
    let preferred = [Preference { label: "zone", value: "a", seconds: 0.01 }];
    let constraints = [
        Constraints::default(),
        Constraints::default().with_exclude(&exclude).with_only(&only),
        Constraints::default().with_required(&[("zone", "b")]).with_preferred(&preferred),
        Constraints::default().with_pinned(WorkerId::new(InstanceId(7))),
    ];
    let choose = || {
        for constraints in constraints.iter().cycle().take(400) {
            let mut decision = router.route(&request, constraints).unwrap();
            router.observe_first_token(&mut decision);
            decision.booking.progress(1);
            drop(decision);
            // Somebody lists the same workers before each request.
            router.set_workers(&listed).unwrap();
        }
    };
    choose();
    for worker in (0..WORKERS).map(|id| WorkerId::new(InstanceId(id))) {
        // Each has had a booking: its place is used again.
        drop(router.route(&request, &Constraints::default().with_pinned(worker)).unwrap());
    }
    let region = Region::new(ALLOCATOR);
    choose();
    assert_eq!(region.change().allocations, 0);
}
