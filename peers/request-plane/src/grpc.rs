//! gRPC by tonic: one HTTP/2 channel, server streaming.

use std::sync::Arc;

use anyhow::Result;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::model::{Ask, Model};
use crate::turn::Subject;

include!(concat!(env!("OUT_DIR"), "/bench.Bench.rs"));

/// How many tokens are wanted, and whether in steps.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Count {
    #[prost(uint32, tag = "1")]
    pub count: u32,
    #[prost(bool, tag = "2")]
    pub stepped: bool,
}

/// One item of the answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Token {
    #[prost(uint32, repeated, tag = "1")]
    pub ids: Vec<u32>,
}

struct Tokens(Arc<Model>);

#[tonic::async_trait]
impl bench_server::Bench for Tokens {
    type TokensStream = BoxStream<'static, Result<Token, Status>>;

    async fn tokens(
        &self,
        request: Request<Count>,
    ) -> Result<Response<Self::TokensStream>, Status> {
        let Count { count, stepped } = request.into_inner();
        let items = self.0.answer(Ask { count, stepped }).map(|id| Ok(Token { ids: vec![id] }));
        Ok(Response::new(items.boxed()))
    }
}

pub struct Grpc {
    client: bench_client::BenchClient<Channel>,
    model: Arc<Model>,
}

pub async fn start(model: &Arc<Model>) -> Result<Grpc> {
    // The server's own setting does not reach sockets that it is handed.
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    let serving = Server::builder()
        .max_concurrent_streams(4096)
        .add_service(bench_server::BenchServer::new(Tokens(Arc::clone(model))))
        .serve_with_incoming(incoming);
    tokio::spawn(serving);
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_connection_window_size(4 << 20)
        .initial_stream_window_size(256 << 10)
        .connect()
        .await?;
    Ok(Grpc { client: bench_client::BenchClient::new(channel), model: Arc::clone(model) })
}

impl Subject for Grpc {
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<u32>> {
        let mut client = self.client.clone();
        Box::pin(async move {
            let count = Count { count: ask.count, stepped: ask.stepped };
            let mut stream = client.tokens(count).await?.into_inner();
            let mut got = 0;
            while let Some(item) = stream.message().await? {
                let came = item.ids.len() as u32;
                self.model.take(ask, came);
                got += came;
            }
            Ok(got)
        })
    }
}
