//! The same requests through the real runtime: clients, streams and `PrefillDecode`, with engines
//! that sleep as long as the simulated ones say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dynamo_core::protocol::{
    FinishReason, GenerateChunk, GenerateRequest, HandoffTicket, InstanceId, KvEvent, Sampling,
    Stage, Usage, WorkerId,
};
use dynamo_core::time::SystemClock;
use dynamo_core::{
    Context, Engine as _, Error, ResponseSender, ResponseStream, Runtime, Serving, engine_fn,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::engine::{Cache, Engine, Output, OutputKind, Part, Sequence};
use super::super::fleet::Running;
use super::super::policy::message;
use super::super::published::as_events;
use super::*;
use crate::disagg::{DisaggConfig, DisaggReport, Outcome, Pool, PrefillDecode, Split};
use crate::router::KvRouter;

/// A worker whose engine sleeps instead of computing.
struct Sleeper {
    state: Mutex<State>,
    work: Notify,
    fleet: Fleet,
}

struct State {
    engine: Engine,
    cache: Cache,
    answers: HashMap<usize, Answer>,
    events: u64,
}

struct Answer {
    sender: ResponseSender<GenerateChunk>,
    /// The prefill's first token goes with a ticket.
    is_handed_off: bool,
    prompt_tokens: usize,
}

impl Sleeper {
    fn new(fleet: Fleet) -> Arc<Self> {
        let cache = Cache::new(fleet.engine.cache_tokens / 512);
        let engine = Engine::new(fleet.engine);
        let state = State { engine, cache, answers: HashMap::new(), events: 0 };
        Arc::new(Self { state: Mutex::new(state), work: Notify::new(), fleet })
    }

    async fn generate(
        &self,
        ctx: Context,
        request: GenerateRequest,
    ) -> Result<ResponseStream<GenerateChunk>> {
        let (number, tokens) =
            (usize::try_from(request.sampling.seed).unwrap(), request.sampling.max_tokens as usize);
        let part = match request.stage {
            Stage::Decode { .. } => Part::Rest { tokens: tokens - 1 },
            _ => Part::Whole { tokens: 1 },
        };
        let prompt_tokens = request.token_ids.len();
        if matches!(part, Part::Rest { .. }) {
            let (found, _) = self.state.lock().unwrap().cache.find(request.blocks.sequence());
            sleep(self.fleet.link_time(prompt_tokens - found * 512)).await;
        }
        let (sender, stream) = ResponseStream::channel(&ctx, 64);
        let mut state = self.state.lock().unwrap();
        let is_handed_off = tokens > 1 && matches!(part, Part::Whole { .. });
        let answer = Answer { sender, is_handed_off, prompt_tokens };
        state.answers.insert(number, answer);
        state.engine.submit(Sequence::new(number, request.blocks, prompt_tokens, part));
        drop(state);
        self.work.notify_one();
        Ok(stream)
    }

    async fn run(self: Arc<Self>, worker: WorkerId, router: KvRouter) {
        // Prefill's streams stay open until what they hold has been pulled.
        let mut holds = Vec::new();
        loop {
            let pass = {
                let mut state = self.state.lock().unwrap();
                let State { engine, cache, .. } = &mut *state;
                engine.pass(cache)
            };
            let Some(pass) = pass else {
                self.work.notified().await;
                continue;
            };
            sleep(pass.takes).await;
            self.publish(worker, &router);
            for output in pass.outputs {
                let (answer, chunk, is_last) = self.answer(output);
                answer.sender.send(chunk).await.unwrap();
                if answer.is_handed_off {
                    holds.push(answer.sender);
                } else if is_last {
                    answer.sender.finish();
                } else {
                    self.state.lock().unwrap().answers.insert(output.request, answer);
                }
            }
        }
    }

    fn publish(&self, worker: WorkerId, router: &KvRouter) {
        let mut state = self.state.lock().unwrap();
        for change in as_events(state.cache.take_changes()) {
            router.apply(&KvEvent { worker, epoch: 0, seq: state.events, change });
            state.events += 1;
        }
    }

    fn answer(&self, output: Output) -> (Answer, GenerateChunk, bool) {
        let answer = self.state.lock().unwrap().answers.remove(&output.request).unwrap();
        let OutputKind::Token { cached_tokens, is_last } = output.kind else {
            unreachable!("all prompts fit")
        };
        let usage = Usage {
            prompt_tokens: u32::try_from(answer.prompt_tokens).unwrap(),
            cached_tokens: u32::try_from(cached_tokens).ok(),
            completion_tokens: 1,
            ..Usage::default()
        };
        let chunk = GenerateChunk {
            token_ids: vec![0],
            finish: (is_last && !answer.is_handed_off).then_some(FinishReason::Length),
            usage: Some(usage),
            ticket: answer.is_handed_off.then(|| HandoffTicket::new(Vec::new())),
            handoff: None,
        };
        (answer, chunk, is_last)
    }
}

/// The workers of one role, in the order of their ids, as the simulated fleet numbers them.
struct Served {
    pool: Pool,
    workers: Vec<InstanceId>,
    _servings: Vec<Serving>,
}

async fn serve(role: &str, count: usize, fleet: Fleet, tasks: &mut JoinSet<()>) -> Served {
    let namespace = Runtime::in_process().namespace("replay").unwrap();
    let endpoint = namespace.component(role).unwrap().endpoint("generate").unwrap();
    let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
    let (mut workers, mut servings) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let sleeper = Sleeper::new(fleet);
        let engine = Arc::clone(&sleeper);
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let engine = Arc::clone(&engine);
            async move { engine.generate(ctx, request).await }
        });
        let serving = endpoint.serve(engine).await.unwrap();
        let id = serving.instance().id;
        tasks.spawn(sleeper.run(WorkerId::new(id), router.clone()));
        workers.push(id);
        servings.push(serving);
    }
    workers.sort();
    let pool = Pool::new(endpoint.client().await.unwrap(), router);
    Served { pool, workers, _servings: servings }
}

/// Runs `trace` through the real runtime; returns the reports in the order of the requests.
async fn real(trace: &Trace, fleet: Fleet) -> (Vec<DisaggReport>, [Vec<InstanceId>; 2]) {
    let Roles::Disaggregated { prefill, decode, .. } = fleet.roles else { unreachable!() };
    let mut engines = JoinSet::new();
    let prefill = serve("prefill", prefill, fleet, &mut engines).await;
    let decode = serve("decode", decode, fleet, &mut engines).await;
    let mut requests = JoinSet::new();
    let started = Instant::now();
    for (number, arrival) in trace.requests.iter().enumerate() {
        let (pools, at) = ((prefill.pool.clone(), decode.pool.clone()), started + arrival.at);
        let mut request = message(arrival, Stage::Full);
        let (seed, max_tokens) = (number as u64, u32::try_from(arrival.output_tokens).unwrap());
        request.sampling = Sampling { max_tokens, seed, ..Sampling::default() };
        requests.spawn(async move {
            let report = Arc::<Mutex<Option<DisaggReport>>>::default();
            let sink = Arc::clone(&report);
            let config = DisaggConfig::default().with_split(Split::Always);
            let engine = PrefillDecode::new(pools.0, pools.1).with_config(config).with_observer(
                move |report: &DisaggReport| *sink.lock().unwrap() = Some(report.clone()),
            );
            sleep_until(at).await;
            let stream = engine.generate(Context::new(), request).await?;
            stream.collect().await?;
            let report = report.lock().unwrap().take();
            Ok::<_, Error>((number, report.unwrap()))
        });
    }
    let mut reports = requests.join_all().await.into_iter().collect::<Result<Vec<_>>>().unwrap();
    reports.sort_by_key(|(number, _)| *number);
    engines.shutdown().await;
    (reports.into_iter().map(|(_, report)| report).collect(), [prefill.workers, decode.workers])
}

/// Bounds: nineteen of twenty requests find as many tokens, every worker gets as many requests but
/// for a tenth, and first tokens come as soon in the mean but for a twentieth. Tokio's timers count
/// milliseconds, so that now and then another one of workers that cost the same is chosen.
#[tokio::test(start_paused = true)]
async fn the_fleet_does_as_the_real_runtime_with_engines_that_sleep() {
    let trace = conversations(30, 5);
    let fleet = Fleet::disaggregated(3, 2);
    let (courses, _) = Running::new(&trace, &fleet, &ours()).unwrap().courses().unwrap();
    let (reports, workers) = real(&trace, fleet).await;
    assert_eq!(reports.len(), courses.len());
    assert!(reports.iter().all(|report| report.outcome == Outcome::Complete));

    let cached = reports.iter().zip(&courses);
    let cached =
        cached.filter(|(report, course)| report.cached_tokens == Some(course.cached_tokens));
    let cached = cached.count();
    assert!(cached * 20 >= courses.len() * 19, "{cached} of {} find as much", courses.len());

    for (role, workers) in workers.iter().enumerate() {
        let chosen = reports.iter().filter_map(|report| match role {
            0 => report.prefill_worker(),
            _ => report.decode_worker(),
        });
        let chosen = chosen.filter_map(|of| workers.iter().position(|id| *id == of.instance));
        let real = counts(workers.len(), chosen);
        let simulated = counts(workers.len(), courses.iter().filter_map(|of| of.workers[role]));
        for (real, simulated) in real.iter().zip(&simulated) {
            assert!(real.abs_diff(*simulated) * 10 <= courses.len(), "{real} and {simulated}");
        }
    }

    let ttft: Duration = reports.iter().map(|report| report.ttft.unwrap()).sum();
    let simulated: Duration = courses.iter().map(|course| course.first.unwrap() - course.at).sum();
    let ratio = ttft.as_secs_f64() / simulated.as_secs_f64();
    assert!((ratio - 1.0).abs() < 0.05, "{ttft:?} and {simulated:?}");
}

/// Counts the requests of each worker, the busiest first.
fn counts(workers: usize, chosen: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut counts = vec![0; workers];
    chosen.for_each(|worker| counts[worker] += 1);
    counts.sort_by(|a, b| b.cmp(a));
    counts
}
