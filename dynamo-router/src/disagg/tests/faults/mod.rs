//! Everything fails, by a seed: whatever workers, the network and clients do, an answer has one end,
//! and nothing stays behind.

mod check;
mod client;
mod worker;
mod world;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use dynamo_core::random::Random;
use dynamo_core::time::SystemClock;
use dynamo_core::{ResponseSender, Runtime, Serving, engine_fn};
use futures::future::join_all;

use super::super::journey::Role;
use super::*;
use crate::queue::{BusyThresholds, QueueConfig, QueueStats, QueuedRouter, Watermarks};
use crate::router::{KvRouter, RouterConfig};
use client::{Client, Seen};
use world::World;

/// One graph, what befalls it, and who asks it; all of it drawn from a seed.
struct Plan {
    seed: u64,
    workers: [usize; 2],
    config: DisaggConfig,
    /// Before prefill workers, before decode workers.
    queues: [Option<Queue>; 2],
    /// How likely a call is to fail, and how many may.
    fault_percent: usize,
    faults_max: usize,
    clients: Vec<Client>,
    /// Workers that leave in the middle.
    departures: Vec<Departure>,
}

/// How one pool lets requests wait.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Queue {
    /// All requests there are have room, and time.
    is_roomy: bool,
    /// What a worker has before it is busy.
    prefill_tokens: usize,
    blocks: usize,
}

struct Departure {
    role: Role,
    after: Duration,
    /// It lets its requests finish for so long.
    patience: Option<Duration>,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut below = |count: usize| random.below(count).unwrap();
        let splits = [Split::ByCost, Split::Always, Split::Always, Split::Never];
        let fallbacks = [Fallback::Fail, Fallback::OtherWorker, Fallback::LocalPrefill];
        let config = DisaggConfig::default()
            .with_split(splits[below(splits.len())])
            .with_fallback(fallbacks[below(fallbacks.len())])
            .with_attempts_max(1 + below(3))
            .with_silence_max(Duration::from_secs(2));
        let workers = [below(4), 1 + below(3)];
        let faults_max = [0, 1, 1, 2, 4, usize::MAX][below(6)];
        let fault_percent = [20, 50, 90][below(3)];
        let departures = if faults_max > 1 && below(3) == 0 { 1 + below(2) } else { 0 };
        let departures = (0..departures).map(|_| Departure {
            role: [Role::Prefill, Role::Decode][below(2)],
            after: Duration::from_millis(below(200) as u64),
            patience: (below(2) == 0).then(|| Duration::from_millis(below(200) as u64)),
        });
        let departures = departures.collect();
        let mut queue = || {
            let (is_roomy, prefill_tokens, blocks) = (below(2) == 0, 1 + below(60), 1 + below(6));
            (below(3) == 0).then_some(Queue { is_roomy, prefill_tokens, blocks })
        };
        let queues = [queue(), queue()];
        // Whoever is to wait needs others in front.
        let clients = if queues == [None, None] { 1 + below(3) } else { 2 + below(5) };
        let clients = (0..clients).map(|_| Client::draw(&mut random)).collect();
        Self { seed, workers, config, queues, fault_percent, faults_max, clients, departures }
    }
}

impl Queue {
    fn before(self, pool: Pool) -> Pool {
        let marks = |high: usize| Watermarks::new(0.0, high as f64).unwrap();
        let busy = BusyThresholds::never()
            .with_prefill_tokens(marks(self.prefill_tokens))
            .with_blocks_share(marks(self.blocks))
            .with_blocks_total(NonZeroUsize::MIN);
        let config = QueueConfig::default().with_busy(busy);
        pool.with_queue(match self.is_roomy {
            true => config.with_wait_max(HANGS),
            false => config.with_room(1, 100).with_wait_max(Duration::from_millis(50)),
        })
    }
}

/// A graph of workers that follow their fates.
struct FaultyGraph {
    world: Arc<World>,
    runtime: Runtime,
    engine: PrefillDecode,
    reports: Arc<Mutex<Vec<DisaggReport>>>,
    servings: [Mutex<Vec<Serving>>; 2],
}

impl FaultyGraph {
    async fn start(plan: &Plan) -> Self {
        let world = Arc::new(World::new(plan));
        let runtime = Runtime::in_process();
        let namespace = runtime.namespace("n").unwrap();
        let (mut pools, mut servings) = (Vec::new(), Vec::new());
        let roles = ["prefill", "decode"].into_iter().zip(plan.workers).zip(plan.queues);
        for ((role, count), queue) in roles {
            let endpoint = namespace.component(role).unwrap().endpoint("generate").unwrap();
            let mut serving = Vec::new();
            for _ in 0..count {
                let world = Arc::clone(&world);
                let engine = engine_fn(move |ctx, request| {
                    std::future::ready(worker::serve(&world, ctx, request))
                });
                serving.push(endpoint.serve(engine).await.unwrap());
            }
            servings.push(Mutex::new(serving));
            let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
            let pool = Pool::new(endpoint.client().await.unwrap(), router);
            pools.push(match queue {
                Some(queue) => queue.before(pool),
                None => pool,
            });
        }
        let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
        let sink = Arc::clone(&reports);
        let observer = move |report: &DisaggReport| sink.lock().unwrap().push(report.clone());
        let [prefill, decode]: [Pool; 2] = pools.try_into().unwrap();
        let engine = PrefillDecode::new(prefill, decode)
            .with_config(plan.config.clone())
            .with_observer(observer);
        let servings = servings.try_into().unwrap();
        Self { world, runtime, engine, reports, servings }
    }

    fn of(&self, role: Role) -> &Mutex<Vec<Serving>> {
        &self.servings[usize::from(role == Role::Decode)]
    }

    async fn departs(&self, departure: &Departure) {
        tokio::time::sleep(departure.after).await;
        let leaving = self.of(departure.role).lock().unwrap().pop();
        if let (Some(serving), Some(patience)) = (leaving, departure.patience) {
            serving.drain(patience).await;
        }
    }
}

/// How the requests of a seed went, or of many.
#[derive(Default)]
struct Played {
    reports: Vec<DisaggReport>,
    /// Of the queues before each pool.
    queues: [Vec<QueueStats>; 2],
}

/// Plays a seed; returns what is wrong with it, and how its requests went.
async fn play(seed: u64) -> (Vec<String>, Played) {
    let plan = Plan::draw(seed);
    let graph = FaultyGraph::start(&plan).await;
    let clients = plan.clients.iter().enumerate().map(|(number, client)| {
        let id = format!("{number}");
        client.run(&graph.engine, id)
    });
    let departures = plan.departures.iter().map(|departure| graph.departs(departure));
    let all = futures::future::join(join_all(clients), join_all(departures));
    let Ok((seen, _)) = tokio::time::timeout(HANGS, all).await else {
        return (vec!["a request hangs".to_owned()], Played::default());
    };
    // Whatever is held for a request goes with the request, long before it would lapse.
    graph.world.tasks.close();
    let ended = tokio::time::timeout(worker::HOLD_TTL / 10, graph.world.tasks.wait()).await;
    let mut wrong = check::at_rest(&graph);
    if ended.is_err() {
        wrong.push("work goes on that nobody waits for".to_owned());
    }
    for (number, (client, seen)) in plan.clients.iter().zip(&seen).enumerate() {
        let said = check::answer(&plan, &graph, (number, client, seen));
        wrong.extend(said.into_iter().map(|said| format!("request {number}: {said}; {seen:?}")));
    }
    graph.runtime.shutdown(Duration::from_secs(1)).await.unwrap();
    let reports = graph.reports.lock().unwrap().clone();
    let pools = [&graph.engine.prefill, &graph.engine.decode];
    let queues = pools.map(|pool| pool.queue().map(QueuedRouter::stats).into_iter().collect());
    (wrong, Played { reports, queues })
}

/// Plays seeds; a failure names its seed, and `seeds(seed..seed + 1)` plays it again.
fn seeds(seeds: std::ops::Range<u64>) -> Played {
    let mut all = Played::default();
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (wrong, played) = runtime.block_on(play(seed));
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
        all.reports.extend(played.reports);
        for (all, queues) in all.queues.iter_mut().zip(played.queues) {
            all.extend(queues);
        }
    }
    all
}

/// Far beyond all attempts, waits and silences of a request together.
const HANGS: Duration = Duration::from_secs(3600);

#[test]
fn whatever_fails_an_answer_has_one_end_and_nothing_stays_behind() {
    let Played { reports, queues } = seeds(0..SEEDS);
    // The seeds lead everywhere.
    let some = |is: &dyn Fn(&DisaggReport) -> bool| reports.iter().filter(|r| is(r)).count();
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Overloaded,
        ErrorKind::DeadlineExceeded,
        ErrorKind::Internal,
    ] {
        assert!(some(&|report| report.outcome == Outcome::Failed(kind)) > 10, "{kind}");
    }
    for reason in [
        SplitReason::Cost,
        SplitReason::Configured,
        SplitReason::NoPrefillWorker,
        SplitReason::Fallback,
    ] {
        let is_reason = |report: &DisaggReport| report.split.is_some_and(|s| s.reason == reason);
        assert!(some(&|report| is_reason(report)) > 10, "{reason:?}");
    }
    for moves in 1..3 {
        let survived =
            |report: &DisaggReport| report.moves == moves && report.outcome == Outcome::Complete;
        assert!(some(&survived) > 10, "{moves} moves");
    }
    assert!(some(&|report| report.outcome == Outcome::Cancelled) > 10);
    for queues in queues {
        for (count, what) in [
            (queues.iter().map(|stats| stats.popped_total).sum::<u64>(), "waited for their turn"),
            (queues.iter().map(|stats| stats.refused_total).sum(), "found no room"),
            (queues.iter().map(|stats| stats.expired_total).sum(), "waited too long"),
            (queues.iter().map(|stats| stats.cancelled_total).sum(), "ended while they waited"),
        ] {
            assert!(count > 10, "{count} {what}");
        }
    }
}

/// A few seconds without optimisation; many more were played.
const SEEDS: u64 = 4000;
