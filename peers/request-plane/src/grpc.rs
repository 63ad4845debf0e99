//! gRPC by tonic: one HTTP/2 channel, server streaming.

use anyhow::Result;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::Subject;

include!(concat!(env!("OUT_DIR"), "/bench.Bench.rs"));

/// How many tokens are wanted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Count {
    #[prost(uint32, tag = "1")]
    pub count: u32,
}

/// One item of the answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Token {
    #[prost(uint32, repeated, tag = "1")]
    pub ids: Vec<u32>,
}

struct Tokens;

#[tonic::async_trait]
impl bench_server::Bench for Tokens {
    type TokensStream = BoxStream<'static, Result<Token, Status>>;

    async fn tokens(
        &self,
        request: Request<Count>,
    ) -> Result<Response<Self::TokensStream>, Status> {
        let count = request.into_inner().count;
        let items = stream::iter(0..count).map(|n| Ok(Token { ids: vec![40_000 + n % 9000] }));
        Ok(Response::new(items.boxed()))
    }
}

pub struct Grpc(bench_client::BenchClient<Channel>);

pub async fn start() -> Result<Grpc> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = Server::builder()
        .tcp_nodelay(true)
        .max_concurrent_streams(4096)
        .add_service(bench_server::BenchServer::new(Tokens))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_connection_window_size(4 << 20)
        .initial_stream_window_size(256 << 10)
        .connect()
        .await?;
    Ok(Grpc(bench_client::BenchClient::new(channel)))
}

impl Subject for Grpc {
    fn ask(&self, count: u32) -> BoxFuture<'_, Result<u32>> {
        let mut client = self.0.clone();
        Box::pin(async move {
            let mut stream = client.tokens(Count { count }).await?.into_inner();
            let mut got = 0;
            while let Some(item) = stream.message().await? {
                got += item.ids.len() as u32;
            }
            Ok(got)
        })
    }
}
