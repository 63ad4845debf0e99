//! Our planes, through endpoints and clients as users have them.

use std::sync::Arc;

use anyhow::Result;
use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::GenerateChunk;
use dynamo_core::request_plane::{
    NatsRequestPlane, NatsRequestPlaneConfig, RequestPlane, TcpConfig, TcpRequestPlane,
};
use dynamo_core::{Client, Context, Endpoint, Engine, ResponseStream, Runtime, Serving, engine_fn};
use futures::StreamExt;
use futures::future::BoxFuture;

use crate::model::{Ask, Model};
use crate::turn::Subject;

pub struct Ours {
    client: Client<Ask, GenerateChunk>,
    model: Arc<Model>,
    /// Bytes that the server has sent, and in how many writes or datagrams.
    sent: Option<Sent>,
    _serving: Serving,
    /// Its plane ends with it.
    _callee: Runtime,
}

type Sent = Box<dyn Fn() -> [u64; 2] + Send + Sync>;

/// Client and server in one process, values moved.
pub async fn memory(model: &Arc<Model>) -> Result<Ours> {
    let runtime = Runtime::in_process();
    ours(model, &runtime, &runtime, None).await
}

/// Client and server as two processes have them, over the loopback.
pub async fn tcp(model: &Arc<Model>) -> Result<Ours> {
    let listening = TcpConfig::default().with_listen(([127, 0, 0, 1], 0).into());
    let server = Arc::new(TcpRequestPlane::start(listening).await?);
    let caller = Arc::new(TcpRequestPlane::start(TcpConfig::default()).await?);
    let (caller, callee) = runtimes(caller, Arc::clone(&server));
    let sent = move || {
        let stats = server.stats();
        [stats.written_bytes_total, stats.writes_total]
    };
    ours(model, &caller, &callee, Some(Box::new(sent))).await
}

/// Client and server as two processes have them, over a server of NATS.
pub async fn nats(model: &Arc<Model>, url: &str) -> Result<Ours> {
    let server = Arc::new(NatsRequestPlane::start(NatsRequestPlaneConfig::new(url)).await?);
    let caller = Arc::new(NatsRequestPlane::start(NatsRequestPlaneConfig::new(url)).await?);
    let (caller, callee) = runtimes(caller, Arc::clone(&server));
    let sent = move || {
        let stats = server.stats();
        [stats.datagram_bytes_total, stats.datagrams_total]
    };
    ours(model, &caller, &callee, Some(Box::new(sent))).await
}

/// Two runtimes that know of each other.
fn runtimes(caller: Arc<impl RequestPlane>, callee: Arc<impl RequestPlane>) -> (Runtime, Runtime) {
    let discovery = Arc::<MemoryDiscovery>::default();
    let events = || Arc::new(MemoryEventPlane::default());
    let caller = Runtime::new(Arc::<MemoryDiscovery>::clone(&discovery), caller, events());
    (caller, Runtime::new(discovery, callee, events()))
}

async fn ours(
    model: &Arc<Model>,
    caller: &Runtime,
    callee: &Runtime,
    sent: Option<Sent>,
) -> Result<Ours> {
    let serving = serve(callee, Arc::clone(model)).await?;
    let client = endpoint(caller)?.client().await?;
    let (model, callee) = (Arc::clone(model), callee.clone());
    Ok(Ours { client, model, sent, _serving: serving, _callee: callee })
}

impl Ours {
    /// Returns how many bytes the server's side has sent so far, and in how many writes or datagrams.
    pub fn sent(&self) -> [u64; 2] {
        self.sent.as_ref().map_or([0; 2], |sent| sent())
    }
}

impl Subject for Ours {
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            let mut stream = self.client.generate(Context::new(), ask).await?;
            let mut got = 0;
            while let Some(item) = stream.next().await {
                let came = item?.token_ids.len() as u32;
                self.model.take(ask, came);
                got += came;
            }
            Ok(got)
        })
    }
}

async fn serve(runtime: &Runtime, model: Arc<Model>) -> Result<Serving> {
    let engine = engine_fn(move |ctx: Context, ask: Ask| {
        let tokens = model.answer(ask);
        let items =
            tokens.map(|id| Ok(GenerateChunk { token_ids: vec![id], ..GenerateChunk::default() }));
        async move { Ok(ResponseStream::new(&ctx, items)) }
    });
    // As many as a client has at once.
    let options = dynamo_core::ServeOptions::default().with_inflight_max(4096);
    Ok(endpoint(runtime)?.serve_with(engine, options).await?)
}

fn endpoint(runtime: &Runtime) -> Result<Endpoint<Ask, GenerateChunk>> {
    Ok(runtime.namespace("bench")?.component("llm")?.endpoint("generate")?)
}
