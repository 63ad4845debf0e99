//! dynamo-runtime 1.6.1 over its TCP request plane, as a service uses it: component, endpoint,
//! client and router, in one process by its `process_local` discovery.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use dynamo_runtime::component::StartedEndpoint;
use dynamo_runtime::distributed::DistributedConfig;
use dynamo_runtime::engine::{AsyncEngine, AsyncEngineContextProvider};
use dynamo_runtime::pipeline::network::Ingress;
use dynamo_runtime::pipeline::network::egress::push_router::{PushRouter, RouterMode};
use dynamo_runtime::pipeline::{Context, ManyOut, ResponseStream, SingleIn};
use dynamo_runtime::protocols::annotated::Annotated;
use dynamo_runtime::{DistributedRuntime, Runtime};
use futures::StreamExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::child::{self, Child};
use crate::model::{Ask, Model};
use crate::turn::Subject;

/// The content of one item.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Token {
    token_ids: Vec<u32>,
}

/// Its defaults, which answer over a TCP connection per request, built for low latency; other
/// sizes of its pool and its other codec were no faster.
pub fn tcp() -> Result<Child> {
    Child::start(NAME, &[HOST, RESPONSE_HOST])
}

/// Answers over the QUIC that it offers besides, batched for half a millisecond: streams were
/// slower at its default of five, and at none.
pub fn quic() -> Result<Child> {
    let batched = ("DYN_QUIC_RESPONSE_BATCH_INTERVAL_US", "500");
    Child::start(NAME, &[HOST, RESPONSE_HOST, ("DYN_RESPONSE_PLANE", "quic"), batched])
}

/// Is the contender, in the process that was started for it.
pub async fn take_turns() -> Result<()> {
    let model = Arc::<Model>::default();
    let runtime = Runtime::from_current()?;
    let config = DistributedConfig::process_local();
    let distributed = DistributedRuntime::new(runtime.clone(), config).await?;
    let component = distributed.namespace("bench")?.component("llm")?;
    let endpoint = component.endpoint("generate");
    let ingress = Ingress::for_engine(Arc::new(Server(Arc::clone(&model))))?;
    let started = endpoint.endpoint_builder().handler(ingress).start_with_registration().await?;
    let client = endpoint.client().await?;
    client.wait_for_routable_instances().await?;
    let router = PushRouter::from_client(client, RouterMode::RoundRobin).await?;
    let subject = Dynamo { router, model: Arc::clone(&model), _started: started };
    child::take_turns(Arc::new(subject), &model).await?;
    runtime.shutdown();
    Ok(())
}

struct Server(Arc<Model>);

#[tonic::async_trait]
impl AsyncEngine<SingleIn<Ask>, ManyOut<Annotated<Token>>, anyhow::Error> for Server {
    async fn generate(&self, request: SingleIn<Ask>) -> Result<ManyOut<Annotated<Token>>> {
        let (ask, context) = request.into_parts();
        let tokens = self.0.answer(ask);
        let items = tokens.map(|id| Annotated::from_data(Token { token_ids: vec![id] }));
        Ok(ResponseStream::new(Box::pin(items), context.context()))
    }
}

struct Dynamo {
    router: PushRouter<Ask, Annotated<Token>>,
    model: Arc<Model>,
    _started: StartedEndpoint,
}

impl Subject for Dynamo {
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            let mut stream = self.router.generate(Context::new(ask)).await?;
            let mut got = 0;
            while let Some(item) = stream.next().await {
                let item = item.into_result().map_err(|error| anyhow!(error))?;
                let came = item.context("an item without a token")?.token_ids.len() as u32;
                self.model.take(ask, came);
                got += came;
            }
            Ok(got)
        })
    }
}

/// What this program is called as when it is this contender.
pub const NAME: &str = "dynamo-runtime";
const HOST: (&str, &str) = ("DYN_TCP_RPC_HOST", "127.0.0.1");
const RESPONSE_HOST: (&str, &str) = ("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1");
