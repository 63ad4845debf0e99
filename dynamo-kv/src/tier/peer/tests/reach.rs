//! What a tier asks of an owner that has nothing for it, or does not answer.

use std::sync::Mutex;

use dynamo_core::Serving;

use super::*;

/// Serves the owner of a world, and notes what it is asked.
async fn serve(world: &World, layout: &RankLayout) -> (PeerTier, Serving, Arc<Mutex<Vec<Ask>>>) {
    let (owner, asked): (_, Arc<Mutex<Vec<Ask>>>) = (world.owner.clone(), Arc::default());
    let heard = Arc::clone(&asked);
    let engine = engine_fn(move |ctx: Context, request: Request| {
        heard.lock().unwrap().push(request.0.clone());
        let owner = owner.clone();
        async move { owner.generate(ctx, request).await }
    });
    let runtime = Runtime::in_process();
    let endpoint = runtime.namespace("n").unwrap().component("c").unwrap().endpoint("e").unwrap();
    let options = ServeOptions::default().with_instance(InstanceId(7));
    let serving = endpoint.serve_with(engine, options).await.unwrap();
    let client = endpoint.client().await.unwrap();
    let config = PeerConfig::default();
    let tier = PeerTier::new(client, InstanceId(7), world.agent.clone(), layout, config).unwrap();
    (tier, serving, asked)
}

#[tokio::test(start_paused = true)]
async fn an_owner_of_another_layout_has_nothing_and_is_asked_once() {
    let world = world(8, OwnerConfig::new(8)).await;
    let keys = keys(4);
    fill(&world.manager, &keys);
    let other = BlockLayout::new(4, 1, 2, BlockSize::DEFAULT, DType::F32).unwrap().into();
    let (tier, _serving, asked) = serve(&world, &other).await;
    for _ in 0..3 {
        assert_eq!(tier.match_prefix(&keys).await, 0);
    }
    assert_eq!(asked.lock().unwrap().len(), 1);
    let (tier, _serving, asked) = serve(&world, &layout()).await;
    for _ in 0..3 {
        assert_eq!(tier.match_prefix(&keys).await, 4);
    }
    assert_eq!(asked.lock().unwrap().len(), 3);
}
