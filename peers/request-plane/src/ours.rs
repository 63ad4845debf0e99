//! Our planes, through endpoints and clients as users have them.

use std::sync::Arc;

use anyhow::Result;
use dynamo_core::discovery::MemoryDiscovery;
use dynamo_core::event_plane::MemoryEventPlane;
use dynamo_core::protocol::GenerateChunk;
use dynamo_core::request_plane::{TcpConfig, TcpRequestPlane, TcpStats};
use dynamo_core::{Client, Context, Endpoint, Engine, ResponseStream, Runtime, Serving, engine_fn};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream;

use crate::Subject;

pub struct Ours {
    client: Client<u32, GenerateChunk>,
    server: Option<Arc<TcpRequestPlane>>,
    _serving: Serving,
}

/// Client and server in one process, values moved.
pub async fn memory() -> Result<Ours> {
    let runtime = Runtime::in_process();
    let serving = serve(&runtime).await?;
    Ok(Ours { client: endpoint(&runtime)?.client().await?, server: None, _serving: serving })
}

/// Client and server as two processes have them, over the loopback.
pub async fn tcp() -> Result<Ours> {
    let discovery = Arc::<MemoryDiscovery>::default();
    let runtime = |plane: &Arc<TcpRequestPlane>| {
        let (discovery, plane) = (Arc::clone(&discovery), Arc::clone(plane));
        Runtime::new(discovery, plane, Arc::new(MemoryEventPlane::default()))
    };
    let listening = TcpConfig::default().with_listen(([127, 0, 0, 1], 0).into());
    let server = Arc::new(TcpRequestPlane::start(listening).await?);
    let caller = Arc::new(TcpRequestPlane::start(TcpConfig::default()).await?);
    let serving = serve(&runtime(&server)).await?;
    let client = endpoint(&runtime(&caller))?.client().await?;
    Ok(Ours { client, server: Some(server), _serving: serving })
}

impl Ours {
    /// Returns what the server's side has written so far.
    pub fn server_stats(&self) -> TcpStats {
        self.server.as_ref().map_or_else(TcpStats::default, |server| server.stats())
    }
}

impl Subject for Ours {
    fn ask(&self, count: u32) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async move {
            let mut stream = self.client.generate(Context::new(), count).await?;
            let mut got = 0;
            while let Some(item) = stream.next().await {
                got += item?.token_ids.len() as u32;
            }
            Ok(got)
        })
    }
}

async fn serve(runtime: &Runtime) -> Result<Serving> {
    let engine = engine_fn(|ctx: Context, count: u32| async move {
        let items = stream::iter(0..count).map(|n| {
            Ok(GenerateChunk { token_ids: vec![40_000 + n % 9000], ..GenerateChunk::default() })
        });
        Ok(ResponseStream::new(&ctx, items))
    });
    // As many as a client has at once.
    let options = dynamo_core::ServeOptions::default().with_inflight_max(4096);
    Ok(endpoint(runtime)?.serve_with(engine, options).await?)
}

fn endpoint(runtime: &Runtime) -> Result<Endpoint<u32, GenerateChunk>> {
    Ok(runtime.namespace("bench")?.component("llm")?.endpoint("generate")?)
}
