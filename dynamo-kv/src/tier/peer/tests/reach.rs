//! What a tier asks of an owner that has nothing for it, or does not answer.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use dynamo_core::Serving;
use tokio::time::Instant;

use super::*;
use crate::tier::Tier as _;

struct Served {
    tier: PeerTier,
    /// What the owner was asked.
    asked: Arc<Mutex<Vec<Ask>>>,
    /// The owner answers no question; what it tells those that watch goes on.
    is_frozen: Arc<AtomicBool>,
    _serving: Serving,
}

/// Serves the owner of a world.
async fn serve(world: &World, layout: &RankLayout, config: PeerConfig) -> Served {
    let (owner, asked) = (world.owner.clone(), Arc::<Mutex<Vec<Ask>>>::default());
    let is_frozen = Arc::<AtomicBool>::default();
    let (heard, frozen) = (Arc::clone(&asked), Arc::clone(&is_frozen));
    let engine = engine_fn(move |ctx: Context, request: Request| {
        heard.lock().unwrap().push(request.0.clone());
        let (owner, is_frozen) = (owner.clone(), frozen.load(Ordering::SeqCst));
        async move {
            if is_frozen {
                std::future::pending::<()>().await;
            }
            owner.generate(ctx, request).await
        }
    });
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap();
    let options = ServeOptions::default().with_instance(InstanceId(7));
    let _serving = endpoint.serve_with(engine, options).await.unwrap();
    let client = endpoint.client().await.unwrap();
    let tier = PeerTier::new(client, InstanceId(7), world.agent.clone(), layout, config).unwrap();
    Served { tier, asked, is_frozen, _serving }
}

impl Served {
    fn freeze(&self, is_frozen: bool) {
        self.is_frozen.store(is_frozen, Ordering::SeqCst);
    }

    /// Asks for a match; returns what was found, how long that took, and how often the owner was asked.
    async fn matched(&self, keys: &[BlockKey]) -> (usize, Duration, usize) {
        let (begun, asked) = (Instant::now(), self.matches());
        let found = self.tier.match_prefix(keys).await;
        (found, begun.elapsed(), self.matches() - asked)
    }

    fn matches(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|ask| matches!(ask, Ask::Match { .. })).count()
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_another_layout_has_nothing_and_is_asked_once() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(4);
    fill(&world.manager, &keys);
    let other = BlockLayout::new(4, 1, 2, BlockSize::DEFAULT, DType::F32).unwrap().into();
    let served = serve(&world, &other, PeerConfig::default()).await;
    for asked in [1, 0, 0] {
        assert_eq!(served.matched(&keys).await, (0, Duration::ZERO, asked));
    }
    let served = serve(&world, &layout(), PeerConfig::default()).await;
    for _ in 0..3 {
        assert_eq!(served.matched(&keys).await, (4, Duration::ZERO, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_owner_is_waited_for_once_in_a_while() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(4);
    fill(&world.manager, &keys);
    let config = PeerConfig::default();
    let limit = config.match_timeout;
    let served = serve(&world, &layout(), config).await;
    assert_eq!(served.matched(&keys).await, (4, Duration::ZERO, 1));
    served.freeze(true);
    let at_once = tokio::join!(served.matched(&keys), served.matched(&keys));
    assert!([at_once.0.0, at_once.1.0] == [0, 0] && [at_once.0.1, at_once.1.1] == [limit; 2]);
    for pause in [4, 8, 16] {
        for _ in 0..100 {
            assert_eq!(served.matched(&keys).await, (0, Duration::ZERO, 0));
        }
        pass(limit * pause).await;
        let (one, other) = tokio::join!(served.matched(&keys), served.matched(&keys));
        assert_eq!((one.0, other.0, one.1, other.1), (0, 0, limit, Duration::ZERO));
    }
    served.freeze(false);
    assert_eq!(served.matched(&keys).await, (0, Duration::ZERO, 0));
    pass(limit * 32).await;
    for _ in 0..3 {
        assert_eq!(served.matched(&keys).await, (4, Duration::ZERO, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_owner_tells_or_answers_ends_its_silence() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(4);
    fill(&world.manager, &keys);
    let beat = Duration::from_millis(100);
    let config = PeerConfig::default().with_request_timeout(beat * 3);
    for is_watched in [true, false] {
        let served = serve(&world, &layout(), config.clone()).await;
        if is_watched {
            served.tier.watch(Box::new(|_| {}));
            pass(beat / 2).await;
        }
        served.freeze(true);
        assert_eq!(served.matched(&keys).await, (0, config.match_timeout, 1));
        assert_eq!(served.matched(&keys).await, (0, Duration::ZERO, 0));
        served.freeze(false);
        if is_watched {
            pass(beat).await;
        } else {
            let target = manager(1).allocate(1).unwrap().remove(0);
            assert!(served.tier.load(vec![(keys[0], target)]).await[0].is_ok());
        }
        assert_eq!(served.matched(&keys).await, (4, Duration::ZERO, 1));
    }
}
