//! One pool of workers, found by discovery, as one engine: a request goes where it is cheapest, an
//! answer whose worker is lost goes on at another one, and each is told how it went.
//!
//! ```text
//! HTTP ─► Journal ─► Migrate ─► QueuedPool (KvRouter) or Client (round robin) ─► workers
//!                                  ▲ what they cache (EventFeed), how busy they are (LoadFeed)
//! ```
//!
//! What the workers are is not known here: they answer `generate`, and say the rest as events
//! ([`graph`](crate::graph) has the names). The binary `front_end` puts the HTTP server before it.

mod journal;
mod workers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dynamo_core::protocol::{GenerateChunk, GenerateRequest, KvEvent, LoadReport};
use dynamo_core::time::SystemClock;
use dynamo_core::{Client, Component, Result, Runtime, SharedEngine};
use dynamo_router::{
    EventFeed, KvRouter, LoadFeed, QueueConfig, QueuedPool, ResyncConfig, RouterConfig,
};

pub use journal::{Outcome, Served};

use crate::graph::{GENERATE, KV_EVENTS, KV_SNAPSHOT};
use journal::Journal;
use workers::Workers;

/// Which worker gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// The one where it costs least time, by what it has cached and how busy it is.
    Kv,
    /// The next one.
    RoundRobin,
}

/// Where a front end looks for workers.
#[derive(Debug, Clone)]
pub struct FrontEndConfig {
    /// Their namespace.
    pub namespace: String,
    /// Their component.
    pub component: String,
    /// Which of them gets a request.
    pub routing: Routing,
    /// How that is chosen by [`Routing::Kv`].
    pub router: RouterConfig,
    /// How many have to be there before the first request is taken.
    pub workers: usize,
    /// How long to wait for them.
    pub workers_wait_max: Duration,
}

/// A running front end.
pub struct FrontEnd {
    runtime: Runtime,
    engine: SharedEngine<GenerateRequest, GenerateChunk>,
    client: Client<GenerateRequest, GenerateChunk>,
    routed: Option<Routed>,
}

/// A router and what feeds it.
struct Routed {
    router: KvRouter,
    events: EventFeed,
    load: LoadFeed,
}

impl FrontEnd {
    /// Starts a front end once the workers are there; `told` is told how each request went, exactly
    /// once, and must not block.
    ///
    /// Fails with [`Unavailable`](dynamo_core::ErrorKind::Unavailable) if they do not come in time, with
    /// [`InvalidArgument`](dynamo_core::ErrorKind::InvalidArgument) if their namespace or component is
    /// no name, and as the planes do.
    pub async fn start(
        runtime: Runtime,
        config: FrontEndConfig,
        told: impl Fn(&Served) + Send + Sync + 'static,
    ) -> Result<Self> {
        let component = runtime.namespace(&config.namespace)?.component(&config.component)?;
        // It listens before the first worker speaks, so that it misses no event.
        let routed = match config.routing {
            Routing::Kv => Some(Routed::start(&component, config.router).await?),
            Routing::RoundRobin => None,
        };
        let client = component.endpoint(GENERATE)?.client().await?;
        client.wait_for(config.workers, config.workers_wait_max).await?;
        let workers = match &routed {
            Some(Routed { router, .. }) => {
                // Who cannot be chosen is said in the log; all others serve.
                let _ = router.set_workers(&client.instances());
                let config = QueueConfig::default().with_wait_max(WAIT_MAX);
                Workers::Kv(QueuedPool::new(client.clone(), router.clone(), config))
            }
            None => Workers::InTurn(client.clone()),
        };
        let engine = Arc::new(Journal::new(workers, client.clone(), told));
        Ok(Self { runtime, engine, client, routed })
    }

    /// Returns the engine before the workers.
    pub fn engine(&self) -> SharedEngine<GenerateRequest, GenerateChunk> {
        Arc::clone(&self.engine)
    }

    /// Returns the router, if there is one.
    pub fn router(&self) -> Option<&KvRouter> {
        self.routed.as_ref().map(|routed| &routed.router)
    }

    /// Returns a probe that tells whether there is a worker.
    pub fn readiness(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let client = self.client.clone();
        move || !client.instances().is_empty()
    }

    /// Ends everything and joins it.
    ///
    /// Fails with [`DeadlineExceeded`](dynamo_core::ErrorKind::DeadlineExceeded) if something does not
    /// end once it was told to.
    pub async fn shutdown(self) -> Result<()> {
        if let Some(Routed { events, load, .. }) = self.routed {
            events.shutdown().await;
            load.shutdown().await;
        }
        drop((self.engine, self.client));
        self.runtime.shutdown(ENDING_MAX).await
    }
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEnd").field("router", &self.router()).finish_non_exhaustive()
    }
}

impl Routed {
    async fn start(component: &Component, config: RouterConfig) -> Result<Self> {
        let router = KvRouter::new(config, Arc::new(SystemClock));
        let events = component.subscriber::<KvEvent>(KV_EVENTS).await?;
        let snapshots = component.endpoint(KV_SNAPSHOT)?.client().await?;
        let (known, config) = (router.clone(), ResyncConfig::default());
        let events = EventFeed::start_with_snapshots(known, events, snapshots, config);
        let reports = component.subscriber(LoadReport::EVENT).await?;
        let load = LoadFeed::start(router.clone(), reports);
        Ok(Self { router, events, load })
    }
}

/// Engines may be slow: the request's own deadline ends its wait for a worker, not this.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// What listens ends at once when it is told to.
const ENDING_MAX: Duration = Duration::from_secs(10);
