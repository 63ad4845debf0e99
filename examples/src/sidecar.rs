//! The sidecar of an engine that others wrote: it makes a server that speaks OpenAI's API an
//! instance of a component, like any worker.
//!
//! ```text
//! front ends ◄── requests ──► Sidecar ◄── HTTP ──► vLLM, SGLang, …
//!            ◄── KV events ──         ◄── ZeroMQ ──  (vLLM)
//!            ◄── load      ──         ◄── /metrics ─
//! ```

use std::time::Duration;

use dynamo_core::openai::{EngineLoad, EngineLoadConfig, ModelCard, OpenAiConfig, OpenAiEngine};
use dynamo_core::protocol::{
    BlockSize, CacheNamespace, GenerateRequest, InstanceId, KvEvent, LoadReport, Sampling,
};
use dynamo_core::server::{Canary, DrainReport, LoadPublisher, LoadPublisherConfig};
use dynamo_core::{Component, Error, ErrorKind, Instance, Result, Runtime, ServeOptions, Serving};
use dynamo_router::RANKS_LABEL;
use dynamo_router::events::vllm::{BridgeSnapshots, EventBridge, VllmConfig};

use crate::graph::{GENERATE, KV_EVENTS, KV_SNAPSHOT, WORKER};

/// Which engine becomes an instance, and of what.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// The engine's server.
    pub engine: OpenAiConfig,
    /// Where the engine says what its cache holds, if it does.
    pub events: Option<EventsConfig>,
    /// The namespace of the component.
    pub namespace: String,
    /// The component, whose instances all serve the same model.
    pub component: String,
    /// A name for people, such as `vllm-0`.
    pub name: String,
    /// Where the engine's metrics are, if not at `/metrics`.
    pub metrics: Option<String>,
    /// Data-parallel ranks of the engine, each with a cache of its own.
    pub ranks: u32,
    /// Tokens per block of the requests' hashes: that of the front ends.
    pub block_size: BlockSize,
    /// How long the engine may take to be there: it loads its model first.
    pub ready_max: Duration,
    /// How long the engine may be without an item before it is asked whether it lives, and for its
    /// answer.
    pub canary: [Duration; 2],
}

/// Where a vLLM publishes its KV events: each rank at the port plus its number, as vLLM does.
#[derive(Debug, Clone)]
pub struct EventsConfig {
    /// The endpoint of the first rank, as vLLM writes it.
    pub endpoint: String,
    /// The endpoint of the first rank that repeats what was lost.
    pub replay: Option<String>,
    /// What topics begin with.
    pub topic: String,
    /// Whether the engine connects, because its endpoint has no `*`; else it listens.
    pub is_bound: bool,
}

impl SidecarConfig {
    /// Makes `engine` an instance of `namespace` and `component`, which people call `name`.
    pub fn new(
        engine: OpenAiConfig,
        namespace: impl Into<String>,
        component: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            engine,
            events: None,
            namespace: namespace.into(),
            component: component.into(),
            name: name.into(),
            metrics: None,
            ranks: 1,
            block_size: BlockSize::DEFAULT,
            ready_max: READY_MAX,
            canary: [CANARY_AFTER, CANARY_WITHIN],
        }
    }
}

/// An engine server as an instance; dropping it takes the instance off the list and ends its
/// requests, [`drain`](Self::drain) lets them finish.
///
/// The instance is listed as long as the engine answers: an engine that dies or hangs is taken off,
/// and is back as the next incarnation when it, or what took its place at the same address, answers
/// again.
#[derive(Debug)]
pub struct Sidecar {
    serving: Serving,
    snapshots: Option<Serving>,
    bridges: Vec<EventBridge>,
    load: EngineLoad,
    publishers: Vec<LoadPublisher>,
    engine: OpenAiEngine,
    model: ModelCard,
}

impl Sidecar {
    /// Waits until the engine serves its model, and registers it.
    ///
    /// Fails with [`NotFound`](ErrorKind::NotFound) if the server does not list the model, with
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if it is not there within
    /// [`ready_max`](SidecarConfig::ready_max), and if a name, an endpoint or the URL is none.
    ///
    /// # Cancel safety
    /// Cancel safe; nothing is registered then.
    pub async fn start(runtime: &Runtime, config: SidecarConfig) -> Result<Self> {
        let component = runtime.namespace(&config.namespace)?.component(&config.component)?;
        let engine = OpenAiEngine::new(config.engine.clone())?;
        let model = ready(&engine, config.ready_max).await?;
        let id = InstanceId::random();
        let options = ServeOptions::default().with_instance(id);
        // Before requests come: what they store is said.
        let bridges = bridges(&component, id, &config).await?;
        let held = bridges.iter().map(EventBridge::snapshots).reduce(BridgeSnapshots::and);
        let snapshots = match held {
            Some(held) => {
                let endpoint = component.endpoint(KV_SNAPSHOT)?;
                Some(endpoint.serve_with(held, options.clone()).await?)
            }
            None => None,
        };
        let mut looks = EngineLoadConfig::default().with_block_size(config.block_size);
        if let Some(path) = &config.metrics {
            looks = looks.with_path(path);
        }
        let load = EngineLoad::start(&engine, id, looks);
        let publishers = publishers(&component, &load, config.ranks)?;
        let options = options.with_label(WORKER, &config.name);
        let options = options.with_label(RANKS_LABEL, config.ranks.to_string());
        let serving = component
            .endpoint(GENERATE)?
            .serve_watched(engine.clone(), options, canary(&config))
            .await?;
        Ok(Self { serving, snapshots, bridges, load, publishers, engine, model })
    }

    /// Returns the instance that the engine is served as.
    pub fn instance(&self) -> &Instance {
        self.serving.instance()
    }

    /// Returns what the engine says of its model.
    pub fn model(&self) -> &ModelCard {
        &self.model
    }

    /// Takes the instance off the list, lets requests in flight finish for `patience`, and ends all.
    pub async fn drain(self, patience: Duration) -> DrainReport {
        let report = self.serving.drain(patience).await;
        for publisher in self.publishers {
            publisher.shutdown().await;
        }
        self.load.shutdown().await;
        for bridge in self.bridges {
            bridge.shutdown().await;
        }
        if let Some(snapshots) = self.snapshots {
            snapshots.drain(Duration::ZERO).await;
        }
        self.engine.shutdown().await;
        report
    }
}

/// Waits until the server is there and lists the model.
async fn ready(engine: &OpenAiEngine, ready_max: Duration) -> Result<ModelCard> {
    let mut last = None;
    let asking = async {
        loop {
            let asked = async {
                engine.check().await?;
                engine.model().await
            };
            match asked.await {
                Ok(model) => return Ok(model),
                Err(error) if is_loading(&error) => last = Some(error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    let asked = tokio::time::timeout(ready_max, asking).await;
    asked.unwrap_or_else(|_| {
        let url = &engine.config().url;
        let error = Error::new(
            ErrorKind::DeadlineExceeded,
            format!("engine at {url} was not there within {ready_max:?}"),
        );
        Err(match last {
            Some(last) => error.with_source(last),
            None => error,
        })
    })
}

/// Tells whether a server may yet come, or a proxy before it.
fn is_loading(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Internal)
}

async fn bridges(
    component: &Component,
    id: InstanceId,
    config: &SidecarConfig,
) -> Result<Vec<EventBridge>> {
    let mut bridges = Vec::new();
    let Some(events) = &config.events else { return Ok(bridges) };
    for rank in 0..config.ranks {
        let endpoint = of_rank(&events.endpoint, rank)?;
        let model = CacheNamespace::model(&config.engine.model);
        let mut follow = VllmConfig::new(id, endpoint, model, config.block_size)
            .with_topic(&events.topic)
            .with_rank(rank);
        if let Some(replay) = &events.replay {
            follow = follow.with_replay(of_rank(replay, rank)?);
        }
        let publisher = component.publisher::<KvEvent>(KV_EVENTS)?;
        bridges.push(match events.is_bound {
            true => EventBridge::bind(follow, publisher).await?,
            false => EventBridge::connect(follow, publisher)?,
        });
    }
    Ok(bridges)
}

/// Returns the endpoint of a rank: that of the first one with its number added to the port.
fn of_rank(endpoint: &str, rank: u32) -> Result<String> {
    if rank == 0 {
        return Ok(endpoint.to_owned());
    }
    let place = endpoint.strip_prefix("tcp://").and_then(|address| address.rsplit_once(':'));
    let port = place.and_then(|(host, port)| Some((host, port.parse::<u32>().ok()? + rank)));
    let port = port.filter(|(_, port)| u16::try_from(*port).is_ok());
    port.map(|(host, port)| format!("tcp://{host}:{port}"))
        .ok_or_else(|| Error::invalid(format!("endpoint {endpoint} has no port for rank {rank}")))
}

fn publishers(component: &Component, load: &EngineLoad, ranks: u32) -> Result<Vec<LoadPublisher>> {
    let publisher = |rank| {
        let (reports, load) = (component.publisher(LoadReport::EVENT)?, load.clone());
        let source = move || load.report(rank);
        Ok(LoadPublisher::start(reports, source, LoadPublisherConfig::default()))
    };
    (0..ranks).map(publisher).collect()
}

/// One token: a prompt shorter than any block leaves nothing in the cache.
fn canary(config: &SidecarConfig) -> Canary<GenerateRequest> {
    let model = CacheNamespace::model(&config.engine.model);
    let sampling = Sampling { max_tokens: 1, ..Sampling::default() };
    let request = GenerateRequest::new(model, config.block_size, vec![1], sampling);
    let [after, within] = config.canary;
    Canary::new(request).with_after(after).with_within(within)
}

/// A large model takes minutes to load.
const READY_MAX: Duration = Duration::from_secs(1800);

/// A connection that is refused costs nothing.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// No item for so long is no sign yet: nobody may have asked.
const CANARY_AFTER: Duration = Duration::from_secs(10);

/// One token behind whatever an engine prefills, which may be a long prompt.
const CANARY_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_the_port_that_vllm_gives_it() {
        let of = |endpoint, rank| of_rank(endpoint, rank).ok();
        assert_eq!(of("tcp://*:5557", 0).as_deref(), Some("tcp://*:5557"));
        assert_eq!(of("tcp://10.0.0.7:5557", 3).as_deref(), Some("tcp://10.0.0.7:5560"));
        assert_eq!(of("ipc:///run/kv", 0).as_deref(), Some("ipc:///run/kv"));
        assert_eq!([of("ipc:///run/kv", 1), of("tcp://host:65535", 1)], [None, None]);
    }
}
