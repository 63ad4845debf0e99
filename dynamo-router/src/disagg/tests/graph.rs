//! Graphs of workers that do what a test says.

use std::sync::Mutex;

use dynamo_core::time::SystemClock;
use dynamo_core::{Endpoint, ResponseSender, Runtime, ServeOptions, Serving, engine_fn};
use tokio::sync::mpsc;

use super::*;
use crate::router::{KvRouter, RouterConfig};

pub(super) type Call = (Context, GenerateRequest, ResponseSender<GenerateChunk>);

/// One worker whose every call is handed to the test.
pub(super) struct Puppet {
    pub(super) serving: Serving,
    pub(super) calls: mpsc::Receiver<Call>,
}

impl Puppet {
    pub(super) async fn serve(
        endpoint: &Endpoint<GenerateRequest, GenerateChunk>,
        zone: &str,
    ) -> Self {
        let (hand, calls) = mpsc::channel(8);
        let engine = engine_fn(move |ctx: Context, request: GenerateRequest| {
            let hand = hand.clone();
            async move {
                let (sender, stream) = ResponseStream::channel(&ctx, 8);
                let call = (ctx, request, sender);
                hand.send(call).await.map_err(|_| Error::internal("test is over"))?;
                Ok(stream)
            }
        });
        let options = ServeOptions::default().with_label(ZONE, zone);
        Self { serving: endpoint.serve_with(engine, options).await.unwrap(), calls }
    }

    pub(super) async fn call(&mut self) -> Call {
        let call = tokio::time::timeout(NOBODY_CALLS, self.calls.recv());
        call.await.unwrap().unwrap()
    }
}

/// Longer than any silence that a test lets pass: it fails then, and does not hang.
const NOBODY_CALLS: Duration = Duration::from_secs(60);

/// Waits for the call of whichever worker of two is chosen; returns its index as well.
pub(super) async fn whichever(pool: &mut [Puppet]) -> (usize, Call) {
    let [first, second] = pool else { unreachable!("two workers") };
    tokio::select! {
        call = first.call() => (0, call),
        call = second.call() => (1, call),
    }
}

/// A graph of puppets, and the reports it made.
pub(super) struct Graph {
    pub(super) engine: PrefillDecode,
    pub(super) prefill: Vec<Puppet>,
    pub(super) decode: Vec<Puppet>,
    pub(super) reports: Arc<Mutex<Vec<DisaggReport>>>,
}

impl Graph {
    /// A graph that always splits.
    pub(super) async fn new(prefill: usize, decode: usize) -> Self {
        Self::with_config(prefill, decode, DisaggConfig::default().with_split(Split::Always)).await
    }

    pub(super) async fn with_config(prefill: usize, decode: usize, config: DisaggConfig) -> Self {
        Self::with_pools([prefill, decode], config, [|pool| pool, |pool| pool]).await
    }

    /// A graph of pools so many workers each, made what they are by `make`.
    pub(super) async fn with_pools(
        [prefill, decode]: [usize; 2],
        config: DisaggConfig,
        make: [fn(Pool) -> Pool; 2],
    ) -> Self {
        let runtime = Runtime::in_process();
        let namespace = runtime.namespace("n").unwrap();
        let (mut pools, mut puppets) = (Vec::new(), Vec::new());
        for (role, count, make) in [("prefill", prefill, make[0]), ("decode", decode, make[1])] {
            let endpoint = namespace.component(role).unwrap().endpoint("generate").unwrap();
            let mut workers = Vec::new();
            for zone in ["a", "b"].into_iter().cycle().take(count) {
                workers.push(Puppet::serve(&endpoint, zone).await);
            }
            puppets.push(workers);
            let router = KvRouter::new(RouterConfig::default(), Arc::new(SystemClock));
            pools.push(make(Pool::new(endpoint.client().await.unwrap(), router)));
        }
        let reports = Arc::<Mutex<Vec<DisaggReport>>>::default();
        let sink = Arc::clone(&reports);
        let observer = move |report: &DisaggReport| sink.lock().unwrap().push(report.clone());
        let decode_pool = pools.pop().unwrap();
        let engine = PrefillDecode::new(pools.pop().unwrap(), decode_pool)
            .with_config(config)
            .with_observer(observer);
        let (decode, prefill) = (puppets.pop().unwrap(), puppets.pop().unwrap());
        Self { engine, prefill, decode, reports }
    }

    pub(super) fn start(&self) -> tokio::task::JoinHandle<Result<ResponseStream<GenerateChunk>>> {
        self.start_with(request())
    }

    pub(super) fn start_with(
        &self,
        request: GenerateRequest,
    ) -> tokio::task::JoinHandle<Result<ResponseStream<GenerateChunk>>> {
        let (engine, ctx) = (self.engine.clone(), Context::new());
        #[expect(clippy::disallowed_methods, reason = "the test joins it")]
        tokio::spawn(async move { engine.generate(ctx, request).await })
    }

    /// Starts a request, lets the one prefill worker answer it, and takes the first token; the
    /// worker's call goes on.
    pub(super) async fn first_token(&mut self) -> (ResponseStream<GenerateChunk>, Call) {
        let started = self.start();
        let call = self.prefill[0].call().await;
        call.2.send(prefilled()).await.unwrap();
        let mut stream = started.await.unwrap().unwrap();
        assert!(stream.next().await.unwrap().is_ok());
        (stream, call)
    }

    /// Nothing is booked and nothing runs; one report says how it ended.
    pub(super) fn assert_at_rest(&self, outcome: Outcome) {
        for pool in [&self.engine.prefill, &self.engine.decode] {
            assert_eq!(pool.router.stats().bookings, 0);
        }
        for puppet in self.prefill.iter().chain(&self.decode) {
            assert_eq!(puppet.serving.inflight(), 0);
        }
        let reports = self.reports.lock().unwrap();
        assert_eq!(reports.iter().map(|report| report.outcome).collect::<Vec<_>>(), [outcome]);
    }
}

/// What a worker's label of that name says.
pub(super) const ZONE: &str = "zone";
